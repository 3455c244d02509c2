"""A compact difference between two versions of a file, which restores the older from the newer.

A tag edit moves audio about but changes little of it, so the older file is told as a list of
ranges to copy from the newer one, with the few bytes between them. Ranges are found by walking
both files in parallel: equal bytes are skipped in blocks; at a difference, anchors of the older
file are looked for in the newer, near first, then ever farther. Memory stays at some 20 MiB
whatever the files' sizes are, besides the delta itself.

Format, version 1: b"RPD1"; the length of the next part; two zstandard frames with checksums.
The first holds the sizes of the older and the newer file, the older's BLAKE2b-16, the number of
ranges, and the ranges (number of own bytes before it, signed step of the position in the newer
file, number of copied bytes); the second all own bytes, the ones after the last range included.
All integers are unsigned LEB128; signed ones are zigzag-coded first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import zstandard

MAGIC = b"RPD1"
LEVEL = 3  # of zstandard; the data are small, and higher levels take 5 ms to begin
BLOCK = 1 << 16  # bytes compared at a time
ANCHOR = 32  # bytes of the older file that are looked for in the newer
SHORTEST = 16  # copied bytes that are worth a range
NEAR = 1 << 18  # bytes: no genre that is inserted is longer
FARTHEST = 1 << 24  # bytes skipped in the older file before the rest is stored as it is
HASH_SIZE = 16  # bytes of BLAKE2b, the same as in `reclass_plex.files`


class DeltaError(ValueError):
    """The delta is damaged, from a newer version, or not for this file."""


class _Blocks:
    """Reads of a file that never fail in the middle: past the end they are short."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb", buffering=0)
        self.size = os.fstat(self.file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.file.fileno(), length, offset)


def make_delta(old: Path, new: Path, *, old_hash: bytes | None = None) -> bytes:
    """Return what restores `old` from `new`. Raises OSError if one cannot be read.

    `old_hash`: the BLAKE2b-16 of `old` where it is known, which saves a pass over it.
    """
    a, b = _Blocks(old), _Blocks(new)
    with a.file, b.file:
        ranges = list(_ranges(a, b))
        head = bytearray(_number(a.size) + _number(b.size) + (old_hash or _hash(a)))
        head += _number(len(ranges))
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        stream = compressor.compressobj()
        own = []
        done = position = 0
        for start, source, length in (*ranges, (a.size, 0, 0)):
            own += [stream.compress(block) for block in _pieces(a, done, start - done)]
            if length:
                head += _number(start - done)
                head += _number(_zigzag(source - position))
                head += _number(length)
            done, position = start + length, source + length
        own.append(stream.flush())
    packed = compressor.compress(bytes(head))
    return b"".join((MAGIC, _number(len(packed)), packed, *own))


def apply_delta(new: Path, delta: bytes, out: BinaryIO) -> None:
    """Write to `out` the older file that `delta` restores from `new`.

    Raises DeltaError if the delta is damaged or made for another file; `out` is then worthless.
    """
    if not delta.startswith(MAGIC):
        raise DeltaError("this is no delta of a known version")
    length, at = _take(delta, len(MAGIC))
    source = _Blocks(new)
    try:
        with source.file:
            head = zstandard.ZstdDecompressor().decompress(delta[at : at + length])
            own = zstandard.ZstdDecompressor().stream_reader(BytesIO(delta[at + length :]))
            _apply(source, head, own, out)
    except zstandard.ZstdError as error:
        raise DeltaError(f"the delta is damaged: {error}") from error


def _apply(source: _Blocks, head: bytes, own: BinaryIO, out: BinaryIO) -> None:
    old_size, at = _take(head, 0)
    new_size, at = _take(head, at)
    expected, at = head[at : at + HASH_SIZE], at + HASH_SIZE
    count, at = _take(head, at)
    if source.size != new_size:
        raise DeltaError("the delta is not for this file")
    digest = blake2b(digest_size=HASH_SIZE)

    def put(block: bytes) -> int:
        digest.update(block)
        view = memoryview(block)
        while view:  # an unbuffered file may take less than all of it at a time
            view = view[out.write(view) :]
        return len(block)

    written = position = 0
    for _ in range(count):
        length, at = _take(head, at)
        step, at = _take(head, at)
        copied, at = _take(head, at)
        while length:
            block = own.read(min(length, BLOCK))
            if not block:
                raise DeltaError("the delta is damaged")
            length -= len(block)
            written += put(block)
        position += _unzigzag(step)
        for block in _pieces(source, position, copied):
            written += put(block)
        position += copied
    while block := own.read(BLOCK):  # to the end, where the checksum is
        written += put(block)
    if written != old_size or digest.digest() != expected:
        raise DeltaError("the delta is not for this file")


def _ranges(old: _Blocks, new: _Blocks) -> Iterator[tuple[int, int, int]]:
    """Yield (position in `old`, position in `new`, length) of equal ranges, ascending in both."""
    i = j = 0
    done = 0  # end of the last range in old
    while i < old.size and j < new.size:
        length = _common(old, i, new, j)
        if length >= SHORTEST or (length and i + length == old.size):
            yield i, j, length
            done = i + length
        i, j = i + length, j + length
        if i >= old.size or j >= new.size:
            break
        match = _resync(old, i, new, j)
        if match is None:
            break
        i, j = match
    # What both end with: a tag at the end may lie behind bytes that were found nowhere.
    tail = _common_tail(old, done, new)
    if tail >= SHORTEST:
        yield old.size - tail, new.size - tail, tail


def _common(old: _Blocks, i: int, new: _Blocks, j: int) -> int:
    """Return how many bytes are equal from (i, j) on."""
    start = i
    while True:
        a, b = old.read(i, BLOCK), new.read(j, BLOCK)
        if a != b or not a:
            return i - start + _equal_prefix(a, b)
        i, j = i + len(a), j + len(b)


def _common_tail(old: _Blocks, done: int, new: _Blocks) -> int:
    """Return how many bytes are equal at the end, not reaching back to `done` in old."""
    most = min(old.size - done, new.size)
    length = 0
    while length < most:
        step = min(BLOCK, most - length)
        a = old.read(old.size - length - step, step)
        b = new.read(new.size - length - step, step)
        equal = _equal_prefix(a[::-1], b[::-1])
        length += equal
        if equal < step:
            break
    return length


def _equal_prefix(a: bytes, b: bytes) -> int:
    """Return the length of the common prefix, by halving."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _resync(old: _Blocks, i: int, new: _Blocks, j: int) -> tuple[int, int] | None:
    """Return where both files agree again after the difference at (i, j), or None."""
    near, beside = old.read(i, 8 * ANCHOR), new.read(j, 8 * ANCHOR)
    for skip in range(1, len(near) - ANCHOR + 1):  # bytes changed in place (numbers, checksums)
        if near[skip : skip + ANCHOR] == beside[skip : skip + ANCHOR]:
            return i + skip, j + skip
    skip = 0
    while skip <= FARTHEST and i + skip + ANCHOR <= old.size:
        anchor = old.read(i + skip, ANCHOR)
        if len(set(anchor)) > 4:  # zeros of padding are found everywhere, and mean nothing
            found = _find(new, anchor, j, j + NEAR + 4 * skip)
            if found is not None:
                back = old.read(i, skip) if skip <= BLOCK else old.read(i + skip - BLOCK, BLOCK)
                ahead = new.read(max(j, found - len(back)), min(len(back), found - j))
                more = _equal_prefix(back[::-1], ahead[::-1])
                return i + skip - more, found - more
        skip = skip + 16 if skip < 128 else skip * 5 // 4
    return None


def _find(file: _Blocks, anchor: bytes, start: int, stop: int) -> int | None:
    """Return where `anchor` begins in `file` between `start` and `stop`, or None."""
    while start < min(stop, file.size):
        block = file.read(start, min(stop - start, 16 * BLOCK) + ANCHOR)
        place = block.find(anchor)
        if place >= 0:
            return start + place
        start += 16 * BLOCK
    return None


def _pieces(file: _Blocks, start: int, length: int) -> Iterator[bytes]:
    while length > 0:
        block = file.read(start, min(length, 16 * BLOCK))
        if not block:
            raise DeltaError("the delta is not for this file")
        yield block
        start, length = start + len(block), length - len(block)


def _hash(file: _Blocks) -> bytes:
    digest = blake2b(digest_size=HASH_SIZE)
    for block in _pieces(file, 0, file.size):
        digest.update(block)
    return digest.digest()


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _take(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends."""
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise DeltaError("the delta is damaged")


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if not value & 1 else -((value + 1) >> 1)
