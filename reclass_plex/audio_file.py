"""A file that is opened for reading and must not change meanwhile; its errors, named."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from reclass_plex.errors import FileChanged, FileError, NotAudio, RetryLater, Unreadable

_TRANSIENT = {
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    errno.EIO,  # a cable, a server that did not answer; of a worn disk it comes again
}


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[int]:
    """Open a regular file that is not empty, and yield its descriptor.

    Every OSError inside becomes a FileError. If the file has changed since, that is the cause of
    whatever went wrong inside: FileChanged.
    """
    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            kind = "folder" if stat.S_ISDIR(before.st_mode) else "fifo, socket or device"
            raise Unreadable(path, f"is a {kind}, not a file")
        # non-blocking, should a fifo have taken its place since
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _os_error(path, error) from error
    try:
        if not before.st_size:
            raise NotAudio(path, "is empty")
        yield descriptor
        _check_unchanged(path, before, descriptor)
    except (FileError, OSError) as error:
        _check_unchanged(path, before, descriptor)
        if isinstance(error, FileError):
            raise
        raise _os_error(path, error) from error
    finally:
        os.close(descriptor)


def _check_unchanged(path: Path, before: os.stat_result, descriptor: int) -> None:
    """Raise FileChanged if `path` is not, or no longer, the file that was opened."""
    try:
        named = path.stat()
    except OSError as error:
        raise FileChanged(path, "vanished while it was read") from error
    for now in (named, os.fstat(descriptor)):
        if _identity(now) != _identity(before):
            raise FileChanged(path, "changed while it was read")


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _os_error(path: Path, error: OSError) -> FileError:
    if error.errno in _TRANSIENT:
        return RetryLater(path, f"cannot be read now: {error.strerror}")
    if error.errno == errno.ENOENT:
        return Unreadable(path, "is a broken link" if path.is_symlink() else "does not exist")
    if error.errno == errno.ELOOP:
        return Unreadable(path, "is a link in a loop of links")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return Unreadable(path, "no permission to read it")
    return Unreadable(path, f"cannot be read: {error.strerror}")
