"""Unpacking archives that others made: nothing may get out of the folder, and nothing may swell.

Refused are: names that are absolute, climb (..), or hold what a terminal or another system would
act on; links, devices and encrypted members; two members of one name; more bytes or files than
were told. Modes and owners in the archive are not taken over.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Literal

from reclass_plex.errors import printable, visible
from reclass_plex.training.datasets.collection import DatasetError
from reclass_plex.training.datasets.installed import Unpacked, named

_BLOCK = 1 << 20  # bytes read at a time
_MOST_FILES = 3_000_000
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
)
_JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")  # left out, wherever they stand


def unpack(
    archive: BinaryIO,
    kind: Literal["zip", "tar.gz"],
    target: Path,
    *,
    limit: int,
    on_bytes: Callable[[int], None] = lambda here: None,
) -> tuple[Unpacked, ...]:
    """Unpack into the new folder `target`; return its files in the archive's order.

    `limit` is the most bytes that may come out. `on_bytes` is told how many there are. Raises
    DatasetError for an archive that is damaged or not to be trusted, NoSpace or ReadOnly if
    `target` cannot be written.
    """
    members = _zip_members if kind == "zip" else _tar_members
    seen: set[str] = set()
    done: list[Unpacked] = []
    total = 0
    try:
        target.mkdir()
    except OSError as error:
        raise named(error, target) from error
    try:
        for name, content in members(archive):
            plain = _safe_name(name)
            if any(part in _JUNK for part in plain.parts):
                continue
            if str(plain) in seen:
                raise DatasetError(f"the archive has two files named {visible(name)}")
            seen.add(str(plain))
            if len(seen) > _MOST_FILES:
                raise DatasetError(f"the archive has more than {_MOST_FILES:,} files")
            digest = hashlib.sha256()
            with _created(target, plain) as file:
                while block := content.read(_BLOCK):
                    total += len(block)
                    if total > limit:
                        raise DatasetError(
                            f"the archive holds more than the {limit:,} bytes that it may have"
                        )
                    _write(file, block, target)
                    digest.update(block)
                    on_bytes(total)
            done.append(Unpacked(str(plain), digest.hexdigest()))
    except _DAMAGED as error:
        raise DatasetError(f"the archive is damaged: {visible(str(error))}") from error
    except NotImplementedError as error:
        raise DatasetError(f"the archive cannot be read: {visible(str(error))}") from error
    if not done:
        raise DatasetError("the archive is empty")
    return tuple(done)


def _safe_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    odd = not name.isprintable() or "\\" in name or ":" in name
    # surrogates, of names that are no UTF-8, are not printable either
    if odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise DatasetError(f"the archive has a file of the name {visible(name)!r}: refused")
    return path


def _zip_members(archive: BinaryIO) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            mode = member.external_attr >> 16
            if member.is_dir():
                continue
            if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise DatasetError(
                    f"the archive has a link or device, {visible(member.filename)}: refused"
                )
            if member.flag_bits & 1:
                raise DatasetError(f"the archive is encrypted ({visible(member.filename)})")
            with opened.open(member) as content:
                yield member.filename, content


def _tar_members(archive: BinaryIO) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=archive, mode="r:gz") as opened:
        for member in opened:
            if member.isdir():
                continue
            content = opened.extractfile(member) if member.isreg() else None
            if content is None:
                raise DatasetError(
                    f"the archive has a link or device, {visible(member.name)}: refused"
                )
            with content:
                yield member.name, content


def _created(target: Path, name: PurePosixPath) -> BinaryIO:
    path = target / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        # Two that differ in case, where the file system knows none; a file and a folder.
        raise DatasetError(f"the archive has two things named {printable(name)}") from error
    except OSError as error:
        raise named(error, path) from error


def _write(file: BinaryIO, block: bytes, target: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise named(error, target) from error


class Joined(io.RawIOBase):
    """Files, read as if they were one: an archive that was cut to pieces."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._sizes = [os.fstat(file.fileno()).st_size for file in self._files]
        self._at = 0

    def close(self) -> None:
        """Close them all."""
        for file in self._files:
            file.close()
        super().close()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, counted over all files."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: sum(self._sizes)}[whence]
        if start + offset < 0:
            raise ValueError("before the beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return the byte that comes next."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read from the file in which the next byte stands."""
        begin = 0
        for file, size in zip(self._files, self._sizes, strict=True):
            if self._at < begin + size:
                file.seek(self._at - begin)
                count = file.readinto(memoryview(buffer)[: begin + size - self._at])
                self._at += count
                return count
            begin += size
        return 0
