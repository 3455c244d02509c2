"""What can go wrong, and what is worth a retry.

Every error names the file (or key) that it is about and says what to do. `kind` is a stable
word for machines (`--json`, the REST API); the message is for people.
"""

from __future__ import annotations

import os
from pathlib import Path

_JOINERS = "\u200c\u200d"  # of scripts and emoji: harmless, and names look wrong without them


def visible(text: str) -> str:
    """Return `text` with what a terminal would act on (escapes, line ends) made visible."""
    return "".join(
        char if char.isprintable() or char in _JOINERS else repr(char)[1:-1] for char in text
    )


def printable(path: str | os.PathLike[str]) -> str:
    """Return `path` as one line for any terminal: undecodable bytes become \\xNN."""
    return visible(os.fsencode(path).decode("utf-8", "backslashreplace"))


class ReclassError(Exception):
    """Base of every error this package raises on purpose."""

    kind = "error"


class ConfigError(ReclassError):
    """A configuration file, key or option is wrong; the user must change it."""

    kind = "config"


class ModelError(ReclassError):
    """A model file is missing, damaged or does not fit this installation."""

    kind = "model"


class StoreError(ReclassError):
    """The database cannot be opened, is damaged or belongs to a newer version."""

    kind = "store"


class StoreDamaged(StoreError):
    """The database is broken; nothing is written with it until a backup is restored."""

    kind = "store-damaged"

    @classmethod
    def of(cls, path: str | os.PathLike[str], text: str) -> StoreDamaged:
        """Say what is wrong with the store at `path`, and what to do."""
        return cls(
            f"{printable(path)}: the store is damaged ({visible(text[:200])}): no music file is"
            " written with it. Stop the daemon (systemctl stop reclass-plex), then give:"
            " reclass-plex restore"
        )


class StoreNewer(StoreError):
    """The database has a schema that this version does not know; nothing was changed."""

    kind = "store-newer"


class StoreBusy(StoreError):
    """Another process is changing files with this store; it will end."""

    kind = "store-busy"


class DeviceError(ReclassError):
    """The GPU is out of memory or its context is lost; a new process, or the CPU, may go on."""

    kind = "device"


class ClusterError(ReclassError):
    """The cluster cannot be reached, or none of its machines can be used."""

    kind = "cluster"


class DaemonError(ReclassError):
    """The running daemon does not answer, or refuses what it was asked."""

    kind = "daemon"


class NotHeard(ReclassError):
    """The store does not know how a track sounds: it was not heard yet, or there was no music."""

    kind = "not-heard"


class StreamError(ReclassError):
    """What was to be listened to cannot be: no such address, no audio there, no such input."""

    kind = "stream"


class StreamLost(StreamError):
    """A live stream broke off or stands still; it may be back in a moment."""

    kind = "stream-lost"


class PlexError(ReclassError):
    """The Plex server refused a request, or answered something else than Plex would."""

    kind = "plex"


class PlexUnauthorized(PlexError):
    """The token is missing, expired or not allowed this; the user must sign in again."""

    kind = "plex-unauthorized"


class PlexUnreachable(PlexError):
    """No answer in time, or the server is in trouble; the same call may work later."""

    kind = "plex-unreachable"


class FileError(ReclassError):
    """Something about one file; `path` is the file, `reason` says what and what to do."""

    kind = "file"

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason

    @staticmethod
    def of_kind(kind: str, reason: str, path: str | os.PathLike[str]) -> FileError:
        """Return the error that was recorded as `kind` and `reason`."""
        pending = [FileError]
        while pending:
            known = pending.pop()
            if known.kind == kind:
                return known(path, reason)
            pending += known.__subclasses__()
        return FileError(path, reason)

    def __reduce__(self) -> tuple[type[FileError], tuple[Path, str]]:
        return type(self), (self.path, self.reason)


class RetryLater(FileError):
    """The same call may work later: still changing, disk full, mount away."""

    kind = "retry"


class FileChanged(RetryLater):
    """The file changed or vanished while it was being read."""

    kind = "changed"


class NoSpace(RetryLater):
    """Too little free space to write safely."""

    kind = "no-space"


class ReadOnly(RetryLater):
    """The file, its folder or its file system cannot be written."""

    kind = "read-only"


class Unreadable(FileError):
    """No permission, a broken link, an I/O error, not a regular file."""

    kind = "unreadable"


class NotAudio(FileError):
    """Empty, truncated, random or misnamed: no decodable audio track in it."""

    kind = "not-audio"


class Harmful(NotAudio):
    """Reading it crashed, or took more time or memory than one file may: damaged, or made so."""

    kind = "harmful"


class TagsUnsupported(FileError):
    """The format can hold no genre, or its tags cannot be edited safely."""

    kind = "tags-unsupported"


class Hardlinked(FileError):
    """The file has several names; replacing it would part them, and that was not asked for."""

    kind = "hardlinked"


class EditedSince(FileError):
    """The user changed the file, or its genre, after we wrote it; it is theirs now."""

    kind = "edited-since"


class UnsafeWrite(FileError):
    """The edited copy did not read back as intended; the original was left as it was."""

    kind = "unsafe-write"
