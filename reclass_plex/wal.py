"""SQLite's write-ahead log (the file -wal), looked at without SQLite.

At a frame that is wrong SQLite stops reading, and what was committed behind it is lost without a
word: changes of music files, then, that no journal knows of. So after an unclean end the log is
looked through first. Format: https://sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PAGE_SIZES = frozenset(512 << n for n in range(8))  # 512 to 65,536 bytes
_HEADER = 32  # bytes
_FRAME_HEADER = 24
_MAGIC = (0x377F0682, 0x377F0683)  # sums over little-endian, over big-endian words


@dataclass(frozen=True)
class Log:
    """What is in a log: where the newest good copy of each page begins, as far as committed.

    `damaged`: frames that were on disk are wrong, so that SQLite would lose what follows them.
    """

    page_size: int
    pages: dict[int, int]
    damaged: bool


def log_path(store_path: Path) -> Path:
    """Return where the log of a database is."""
    return store_path.with_name(store_path.name + "-wal")


def read_log(path: Path, page_size: int = 4096) -> Log:
    """Look through a log that nobody writes to; one that is not there, or unreadable, is empty.

    `page_size` counts where its header says none. Each frame is checked with the sum that the one
    before it states, so that those behind a damaged one are known to be good.
    """
    try:
        with path.open("rb") as file:
            return _read(file.fileno(), page_size)
    except OSError:
        return Log(page_size, {}, damaged=False)


def _read(descriptor: int, page_size: int) -> Log:
    head = os.pread(descriptor, _HEADER, 0)
    magic, salts, former = int.from_bytes(head[:4], "big"), head[16:24], head[24:32]
    sound = magic in _MAGIC and len(head) == _HEADER
    if sound and int.from_bytes(head[8:12], "big") in PAGE_SIZES:
        page_size = int.from_bytes(head[8:12], "big")
    step = _FRAME_HEADER + page_size
    count = max(0, os.fstat(descriptor).st_size - _HEADER) // step
    starts = range(_HEADER, _HEADER + count * step, step)
    heads = [os.pread(descriptor, _FRAME_HEADER, start) for start in starts]
    if not sound:  # what most frames say
        magic = _MAGIC[0]
        common = Counter(one[8:16] for one in heads if any(one)).most_common(1)
        salts = common[0][0] if common else b""
    order = "<" if magic == _MAGIC[0] else ">"
    good: list[tuple[int, int, bool]] = []  # page, where it begins, whether it commits
    first_bad: int | None = None  # how many good ones come before it
    needed = 2
    for start, one in zip(starts, heads, strict=True):
        if one[8:16] == salts:
            body = os.pread(descriptor, page_size, start + _FRAME_HEADER)
            if len(former) == 8 and _sum(one[:8] + body, former, order) == one[16:24]:
                commits = one[4:8] != b"\0\0\0\0"
                good.append((int.from_bytes(one[:4], "big"), start + _FRAME_HEADER, commits))
            elif first_bad is None:
                first_bad = len(good)
                needed = 1 if one[4:8] != b"\0\0\0\0" else 2
        elif first_bad is None:  # perhaps the end: what follows is of an earlier time
            first_bad = len(good)
        former = one[16:24]
    last = max((at for at, frame in enumerate(good) if frame[2]), default=-1)
    # The transaction that was not on disk yet when the power went may lack any of its frames. It is
    # the last one: the next waits until it is. So what is bad was on disk if, behind it, another
    # transaction commits besides its own.
    behind = sum(frame[2] for frame in good[first_bad:]) if first_bad is not None else 0
    return Log(
        page_size,
        {number: offset for number, offset, _ in good[: last + 1]},
        damaged=behind >= needed,
    )


def _sum(data: bytes, seed: bytes, order: str) -> bytes:
    """Return the running sum over `data` that a frame states, 8 bytes."""
    first, second = struct.unpack(">II", seed)
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)
