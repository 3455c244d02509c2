"""Finding files, and replacing one so that it is always either wholly old or wholly new.

`find_audio_files` walks folders. A `Replacement` is a changed copy under a hidden name in the
same folder: `fill` writes it, with the original's mode, owner and extended attributes, durable on
disk; `commit` puts it in the original's place by one rename. Nothing here knows about tags.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import secrets
import signal
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, BinaryIO

from reclass_plex.errors import (
    FileChanged,
    FileError,
    NoSpace,
    ReadOnly,
    RetryLater,
    Unreadable,
    printable,
)

log = logging.getLogger(__name__)

# What FFmpeg decodes and mutagen can give a genre. Left out: raw AAC (.aac has no tags of its
# own), .mp4 and .asf (videos, nearly always), Matroska (mutagen does not know it), TAK and Speex
# (no encoder here to test them with).
AUDIO_SUFFIXES = frozenset(
    (
        *(".mp3", ".flac", ".m4a", ".m4b", ".ogg", ".oga", ".opus", ".wav", ".aif", ".aiff"),
        *(".aifc", ".wma", ".ape", ".wv", ".mpc", ".mp+", ".dsf", ".tta"),
    )
)

SPACE_MARGIN = 8 << 20  # bytes that must stay free: the journal may lie on the same disk
HASH_SIZE = 16  # bytes of a whole file's BLAKE2b
BLOCK = 1 << 20  # bytes read or copied at a time

# Folders and files that are no part of a music library: recycle bins, thumbnails and snapshots
# of NAS systems, macOS resource forks. Other hidden names count: "...Like Clockwork" is an album
_JUNK = re.compile(
    r"\._.*|\.trash.*|\.appledouble|@eadir|@__thumb|#recycle|#snapshot|@recycle|@tmp|~snapshot"
    r"|\.snapshots?|\.zfs|\.stversions|lost\+found|\$recycle\.bin|system volume information",
    re.IGNORECASE,
)
_LEFTOVER = re.compile(r"\..{0,40}\.reclass-([0-9a-f]{8})-[0-9a-f]{4}\.tmp(\..{0,10})?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file with an audio suffix: its size in bytes and its modification time in ns."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class FileStamp:
    """What tells that a file is still the same without reading it (times in ns)."""

    size: int
    mtime_ns: int
    ino: int
    dev: int
    ctime_ns: int  # changes with mode, owner and attributes too, which a copy would miss

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Take the stamp from a stat result."""
        return cls(
            status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_ctime_ns
        )


def find_audio_files(
    paths: Iterable[str | os.PathLike[str]],
    suffixes: Collection[str],
    on_leftover: Callable[[Path], object] = lambda path: None,
) -> Iterator[FoundFile | FileError]:
    """Yield the files in `paths` (files, or folders with all below them) that have `suffixes`.

    `suffixes` are lower case with their dot (".mp3"). A file named in `paths` counts whatever its
    suffix. Links are followed, each real folder is visited once, and what cannot be read is
    yielded as an error record, never raised. In each folder files come first; both are sorted.
    `on_leftover` is called with each temporary copy of ours on the way, whose writer was killed
    or is at work.
    """
    wanted = frozenset(suffixes)
    seen: set[tuple[int, int]] = set()
    for start in dict.fromkeys(os.fspath(path) for path in paths):
        try:
            status = Path(start).stat()
        except OSError as error:
            yield _unreadable(start, error)
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(start, wanted, seen, on_leftover)
        elif stat.S_ISREG(status.st_mode):
            for path in find_leftovers(Path(start).parent):
                on_leftover(path)
            yield FoundFile(Path(start), status.st_size, status.st_mtime_ns)
        else:
            yield Unreadable(start, "is neither a file nor a folder")


def _walk(
    start: str,
    wanted: frozenset[str],
    seen: set[tuple[int, int]],
    on_leftover: Callable[[Path], object],
) -> Iterator[FoundFile | FileError]:
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:  # a loop of links, or a second way here
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield _unreadable(folder, error)
            continue
        below = []
        for entry in ordered:
            name = entry.name
            if is_leftover(name):
                on_leftover(Path(entry.path))
                continue
            if is_junk(name):
                continue
            audio = os.path.splitext(name)[1].lower() in wanted  # noqa: PTH122 - 3x as fast
            try:
                if entry.is_dir():
                    below.append(entry.path)
                elif audio:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield FoundFile(Path(entry.path), status.st_size, status.st_mtime_ns)
                    else:
                        yield Unreadable(entry.path, "is not a regular file")
            except OSError as error:
                if audio or error.errno not in {errno.ENOENT, errno.ELOOP}:
                    yield _unreadable(entry.path, error)
        folders.extend(reversed(below))


def _unreadable(path: str, error: OSError) -> FileError:
    if error.errno == errno.ENOENT and Path(path).is_symlink():
        return Unreadable(path, "is a broken link")
    return Unreadable(path, (error.strerror or str(error)).lower())


def is_junk(name: str) -> bool:
    """Tell whether a file or folder of this name is no part of a music library."""
    return _JUNK.fullmatch(name) is not None


def is_leftover(name: str) -> bool:
    """Tell whether `name` (without folder) is that of a temporary copy of ours."""
    return _LEFTOVER.fullmatch(name) is not None


def leftover_token(name: str) -> str:
    """Return the `process_token` of the process that made the temporary copy `name`."""
    match = _LEFTOVER.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no temporary copy")
    return match[1]


def find_leftovers(folder: Path) -> list[Path]:
    """Return the temporary copies in `folder` itself; none if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if is_leftover(path.name))
    except OSError:
        return []


def process_token() -> str:
    """Return what tells this process's temporary copies from those of any other, ever."""
    return _token(os.getpid())  # a forked child is another process


@functools.cache
def _token(pid: int) -> str:
    return secrets.token_hex(4)


def temporary_name(name: str) -> str:
    """Return a hidden name for a copy of `name`: new, and under 255 bytes in UTF-8."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a name, not a path
    unique = f"{process_token()}-{secrets.token_hex(2)}"
    return f".{stem[:40]}.reclass-{unique}.tmp{suffix[:11]}"


def give_to_owner(made: Path | int, like: Path) -> None:
    """Let what was just made (or its descriptor) belong to whom `like` belongs, if we are root.

    Else a command that root gives would lock out the service, which has its own user.
    """
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(made, owner.st_uid, owner.st_gid)


def open_lock(path: Path) -> IO[str]:
    """Open a file to lock, made where there is none."""
    made = not path.exists()
    file = path.open("a")
    if made:
        give_to_owner(file.fileno(), path.parent)
    return file


def try_lock(file: IO[str] | int, *, shared: bool = False) -> bool:
    """Lock an open file (flock); return False if another process has it locked.

    Where nothing can be locked, on some network file systems, nobody has.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        name = file if isinstance(file, int) else printable(file.name)
        log.info("%s: cannot be locked: %s", name, error.strerror)
    return True


@contextlib.contextmanager
def hold_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`; `waiting` is called if another process holds it.

    Raises OSError if it cannot be made.
    """
    with open_lock(path) as file:
        if not try_lock(file):
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, unbuffered; errors are named. Never waits for a fifo."""
    with naming_errors(path, writing=False):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable(path, "is not a regular file")
            yield file


def resolve_links(path: Path) -> Path:
    """Return the file that `path` leads to: what is replaced is a file, never a link to it."""
    with naming_errors(path, writing=False):
        return Path(os.path.realpath(path, strict=True))


@contextlib.contextmanager
def naming_errors(path: Path, *, writing: bool) -> Iterator[None]:
    """Turn OSError into this package's errors about `path`.

    A lack of permission is ReadOnly while `writing`, else Unreadable.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(path, f"{reason}; free some space") from error
        if error.errno in {errno.ENOENT, errno.ESTALE, errno.ENOTDIR}:
            raise FileChanged(path, f"vanished: {reason}") from error
        if writing and error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise ReadOnly(path, f"cannot be written: {reason}") from error
        if error.errno == errno.EIO:  # as of a cable or a server: it may be gone in a while
            raise RetryLater(path, reason) from error
        raise Unreadable(path, reason) from error


def check_writable(path: Path, status: os.stat_result) -> None:
    """Raise ReadOnly or NoSpace if a copy of `path` surely cannot take its place.

    A file without any write permission is taken for protected even where root could replace it.
    """
    with naming_errors(path, writing=True):
        disk = os.statvfs(path.parent)
    if disk.f_flag & os.ST_RDONLY:
        why = "its file system is read-only"
        if "INVOCATION_ID" in os.environ:  # under systemd, whose unit sees only what it was given
            why += ", or its folder is none of watch.folders since the service was started"
        raise ReadOnly(path, why)
    if not status.st_mode & 0o222 or not os.access(path, os.W_OK):
        raise ReadOnly(path, "is write-protected")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ReadOnly(path, "its folder cannot be written")
    free = disk.f_bavail * disk.f_frsize
    needed = status.st_size + SPACE_MARGIN
    if disk.f_blocks and free < needed:  # some network file systems report no blocks at all
        raise NoSpace(path, f"needs {needed >> 20} MiB of free space for a copy, has {free >> 20}")


@dataclass(frozen=True)
class Replacement:
    """A copy `temp_path` that may take the place of `path`, which had the stamp `before`."""

    path: Path
    temp_path: Path
    before: FileStamp

    @classmethod
    def beside(cls, path: Path) -> Replacement:
        """Choose a name beside `path`, which is no link. Nothing is written yet.

        Whoever holds it can `abandon` it at any time, so that nothing stays after an exception.
        """
        with naming_errors(path, writing=False):
            stamp = FileStamp.of(path.lstat())
        return cls(path, path.parent / temporary_name(path.name), stamp)

    def fill(
        self, source: BinaryIO, write: Callable[[BinaryIO], None], *, mtime_ns: int | None = None
    ) -> None:
        """Create the copy and let `write` fill it.

        It gets the mode, owner and extended attributes of `source` (the opened `path`), and
        `mtime_ns` as its modification time if given, and is synced to disk.
        """
        status = os.fstat(source.fileno())
        try:
            with naming_errors(self.path, writing=True):
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(self.temp_path, flags, 0o600)
                with os.fdopen(descriptor, "w+b", buffering=0) as copy:
                    write(copy)
                    _copy_metadata(source.fileno(), copy.fileno(), status, self.path)
                    if mtime_ns is not None:
                        os.utime(copy.fileno(), ns=(status.st_atime_ns, mtime_ns))
                    os.fsync(copy.fileno())
                self.check_unchanged()
        except BaseException:
            self.abandon()
            raise

    def commit(self) -> os.stat_result:
        """Put the copy in the file's place, durably; return the new file's status.

        Raises FileChanged, and removes the copy, if the file changed since it was copied, or if
        a program has it open for writing: what that writes next would go to the file that is
        replaced, and be lost. After a FileError the file was not replaced.
        """
        try:
            with naming_errors(self.path, writing=True):
                status = self.temp_path.stat()
                if _is_being_written(self.path):
                    reason = "another program has it open for writing; try again when it is done"
                    raise FileChanged(self.path, reason)
                self.check_unchanged()
                os.replace(self.temp_path, self.path)  # noqa: PTH105 - rename(2), named as such
        except BaseException:
            self.abandon()
            raise
        sync_folder(self.path.parent)
        return status

    def check_unchanged(self) -> None:
        """Raise FileChanged if the original is not the file that was copied."""
        if FileStamp.of(self.path.lstat()) != self.before:
            raise FileChanged(self.path, "changed while it was being worked on; try again")

    def abandon(self) -> None:
        """Remove the copy; the file stays as it is.

        Never fails: the error that led here matters more, and a later repair finds the name.
        """
        with contextlib.suppress(OSError):
            self.temp_path.unlink()


def _is_being_written(path: Path) -> bool:
    """Tell whether a process has a file open for writing, where the system says so.

    Linux gives a read lease (fcntl(2)) on a file only while nobody has; ours is given back at once.
    Not known on most network mounts, and for files of other users.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Who opens it meanwhile waits, and we are told by a signal: SIGIO would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def copy_range(source: BinaryIO, target: BinaryIO, offset: int, length: int) -> None:
    """Append `length` bytes at `offset` of `source` to unbuffered `target`.

    The kernel copies (and shares blocks, where the file system can), else this process does.
    Raises OSError ESTALE if `source` is shorter than that.
    """
    while length and hasattr(os, "copy_file_range"):
        try:
            done = os.copy_file_range(source.fileno(), target.fileno(), length, offset_src=offset)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}:
                raise
            break  # not for these two file systems
        if not done:
            break  # some file systems copy nothing, without an error
        offset, length = offset + done, length - done
    while length:
        block = os.pread(source.fileno(), min(length, BLOCK), offset)
        if not block:
            raise OSError(errno.ESTALE, "the file became shorter while it was read")
        write_all(target, block)
        offset, length = offset + len(block), length - len(block)


def write_all(target: BinaryIO, data: bytes) -> None:
    """Write all of `data` to unbuffered `target`: a single write may stop early."""
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


def hash_file(file: BinaryIO) -> bytes:
    """Return the BLAKE2b (16 bytes) of a whole open file, whatever its position is."""
    digest = blake2b(digest_size=HASH_SIZE)
    offset = 0
    while block := os.pread(file.fileno(), BLOCK, offset):
        digest.update(block)
        offset += len(block)
    return digest.digest()


def _copy_metadata(source: int, target: int, status: os.stat_result, path: Path) -> None:
    """Give `target` the owner, mode and extended attributes of `source` (file descriptors)."""
    new = os.fstat(target)
    if (new.st_uid, new.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.fchown(target, status.st_uid, status.st_gid)
        except OSError as error:
            owner = "group, which" if new.st_uid == status.st_uid else "user, who"
            raise ReadOnly(path, f"belongs to another {owner} would lose it") from error
    if os.fstat(target).st_mode != status.st_mode:  # some file systems know no modes to set
        os.fchmod(target, stat.S_IMODE(status.st_mode))
    if not hasattr(os, "listxattr"):
        return
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno in {errno.ENOTSUP, errno.ENOSYS}:
            return
        raise
    for name in names:
        try:
            value = os.getxattr(source, name)
            os.setxattr(target, name, value)
        except OSError as error:
            # Labels of the system (security.*, trusted.*) are its own to give; what users set
            # (user.*, access control lists) must not get lost.
            if name.startswith(("user.", "system.posix_acl")) and error.errno != errno.ENODATA:
                raise ReadOnly(path, f"its attribute {name} cannot be kept") from error


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the file system can.

    Not an error where it cannot: the rename took place, and a power cut could at worst take it
    back, which leaves the old file, whole.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
