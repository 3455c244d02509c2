"""An index of vectors in one file, memory-mapped: checked, and replaced as a whole or not at all.

The file is usearch's (a graph, HNSW), then a JSON object that says what is in it, then that
object's length and `MAGIC`. It is only a copy of what the store has: whatever is wrong with it, it
is made anew. Checked before use, because usearch follows a damaged graph out of its memory.

Conventions: keys are positive integers; vectors are (n, dims) of length 1, kept as float16;
similarity is their cosine, -1 to 1.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import StoreError, printable
from reclass_plex.files import give_to_owner, sync_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from usearch.index import Index

    Ids = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float32]
    Halves = npt.NDArray[np.float16]

FORMAT = 1  # of the file: raise it when a file of before cannot be used
MAGIC = b"RPXSIM01"
_END = struct.Struct("<I8s")  # length of the JSON object, MAGIC
MOST_DESCRIPTION = 1 << 20  # bytes of the JSON object


@dataclass(frozen=True)
class IndexCard:
    """What a file holds: `count` vectors of `encoder`, all the store had up to the id `mark`.

    `samples` are some (id, digest) of the store, by which a file is known to be of this store.
    """

    encoder: str
    dims: int
    mark: int
    count: int
    samples: tuple[tuple[int, str], ...]


class VectorIndex:
    """An open file. For any number of threads, one of which searches at a time."""

    def __init__(self, index: Index, card: IndexCard, stamp: tuple[int, ...]) -> None:
        self.card = card
        self.stamp = stamp  # of the file, see `file_stamp`
        self._index = index
        self._lock = threading.Lock()  # usearch's searches share their scratch memory

    def search(self, vector: Floats, count: int, *, exact: bool = False) -> tuple[Ids, Floats]:
        """Return keys and similarities of the nearest `count`, the nearest first."""
        import numpy as np

        count = min(count, self.card.count)
        if count < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        with self._lock:
            found = self._index.search(vector, count, threads=1, exact=exact)
        return found.keys.astype(np.int64), (1 - found.distances).astype(np.float32)

    def search_many(self, vectors: Halves, count: int) -> tuple[Ids, Floats]:
        """Return keys and similarities (n, at most count), of whatever is nearest to each row."""
        import numpy as np

        with self._lock:
            found = self._index.search(vectors, min(count, self.card.count), threads=1)
        shape = len(vectors), -1
        # Where fewer were found, the rest is no key, at a distance that is none.
        near = np.nan_to_num(1 - found.distances.astype(np.float32), nan=-1.0).reshape(shape)
        return found.keys.astype(np.int64).reshape(shape), near


def read_card(path: Path, encoder: str, dims: int) -> tuple[IndexCard, tuple[int, ...]] | None:
    """Return what a file holds, and its stamp; None if it is not whole, or of another encoder.

    All of it is read, and none of it kept.
    """
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                card = _check(content)
    except (OSError, ValueError):  # missing, empty, damaged
        return None
    if card is None or (card.encoder, card.dims) != (encoder, dims):
        return None
    return card, stamp


def open_index(path: Path, encoder: str, dims: int) -> VectorIndex | None:
    """Open a file; None if there is none, or none that is whole and of this encoder."""
    found = read_card(path, encoder, dims)
    if found is None:
        return None
    card, stamp = found
    index = _new_index(dims)
    try:
        index.view(os.fspath(path))
    except (OSError, RuntimeError, ValueError):  # made by another version of usearch
        return None
    if len(index) != card.count or file_stamp(path) != stamp:
        return None  # replaced in between: whoever did it has a newer one
    return VectorIndex(index, card, stamp)


def file_stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when the file is replaced; None if there is none."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def write_index(
    path: Path,
    batches: Iterable[tuple[Ids, Halves]],
    describe: Callable[[int], IndexCard],
    *,
    dims: int,
    add_to_it: bool = False,
    threads: int = 0,
) -> IndexCard:
    """Build an index of batches of keys and vectors, and put it in the place of `path`.

    With `add_to_it` what `path` has, which was opened before, is in it, too. `describe` gets the
    count and returns the card. `threads` 0 means all cores. One at a time: the caller holds a
    lock. Raises StoreError if it cannot be written; then the former one stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # of one that was killed
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        give_to_owner(temporary, path.parent)
        index = _new_index(dims)
        if add_to_it:
            index.load(os.fspath(path))
        for keys, vectors in batches:
            index.add(keys.astype("uint64"), vectors, threads=threads)
        index.save(os.fspath(temporary))
        card = describe(len(index))
        _seal(temporary, card)
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError, MemoryError) as error:
        raise StoreError(
            f"{printable(path)}: the index of similar music cannot be written: {error}"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return card


def _seal(path: Path, card: IndexCard) -> None:
    """Say at the end of the file what is in it, and see to it that all of it is on disk."""
    with path.open("r+b") as file:
        checksum = 0
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
        body = json.dumps({"format": FORMAT, "crc32": checksum, **asdict(card)}).encode()
        file.write(body + _END.pack(len(body), MAGIC))
        file.flush()
        os.fsync(file.fileno())


def _check(content: mmap.mmap) -> IndexCard | None:
    """Return what a whole file holds, or None."""
    if len(content) < _END.size:
        return None
    length, magic = _END.unpack(content[-_END.size :])
    start = len(content) - _END.size - length
    if magic != MAGIC or start < 0 or length > MOST_DESCRIPTION:
        return None
    try:
        said = json.loads(content[start : start + length])
        if said.pop("format") != FORMAT:
            return None
        checksum = said.pop("crc32")
        said["samples"] = tuple((int(key), str(digest)) for key, digest in said["samples"])
        card = IndexCard(**said)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    with memoryview(content) as view, view[:start] as body:
        return card if zlib.crc32(body) == checksum else None


def _new_index(dims: int) -> Index:
    from usearch.index import Index

    return Index(ndim=dims, metric="cos", dtype="f16")


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
