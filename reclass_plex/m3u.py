"""Playlists as extended M3U in UTF-8, which every player reads: a line of text a track.

What a line cannot hold (a line end, bytes that are no UTF-8) is left out, and said. A file that is
there and is no playlist is never replaced unasked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reclass_plex.errors import ConfigError, FileError, Unreadable, printable, visible
from reclass_plex.files import naming_errors, open_regular, sync_folder, temporary_name

SUFFIXES = (".m3u", ".m3u8")
_HEADER = b"#EXTM3U"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Entry:
    """A track of a playlist: an absolute path, and its length in seconds, None if not known."""

    path: Path
    seconds: float | None = None


@dataclass(frozen=True)
class Written:
    """What became of a playlist: how many tracks are in it, and which are not."""

    count: int
    left_out: tuple[FileError, ...]


def is_replaceable(path: Path) -> bool:
    """Tell whether a playlist may be written at `path`: nothing is there, or a playlist.

    Raises ConfigError for a name that no playlist has or a folder that is not there, Unreadable
    for what is no file.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{printable(path)}: a playlist's name ends in .m3u8 or .m3u")
    if not path.parent.is_dir():
        raise ConfigError(f"{printable(path)}: its folder is not there: make it first")
    if not os.path.lexists(path):
        return True
    with open_regular(path) as file:
        start = file.read(len(_BOM) + len(_HEADER) + 1)
    lines = start.removeprefix(_BOM)
    return not start or (lines[:7] == _HEADER and lines[7:8] in (b"", b"\r", b"\n", b" "))


def write_m3u(
    path: Path, entries: Iterable[Entry], *, title: str = "", relative: bool = True
) -> Written:
    """Write a playlist in one step, in the place of what is there; see `is_replaceable` before.

    `relative`: paths from the playlist's folder, so that both can be moved together. Raises
    ReadOnly, NoSpace, FileChanged or Unreadable; then what was there stays.
    """
    target = Path(os.path.realpath(path))  # a link to a playlist stays one
    content, written = render_m3u(entries, title=title, folder=target.parent if relative else None)
    _replace(target, content)
    return written


def render_m3u(
    entries: Iterable[Entry], *, title: str = "", folder: Path | None = None
) -> tuple[bytes, Written]:
    """Return a playlist's bytes, and what became of the tracks; paths from `folder`, if given."""
    lines = ["#EXTM3U", "#EXTENC:UTF-8"]
    if title:
        lines.append(f"#PLAYLIST:{_one_line(title)}")
    left_out = []
    count = 0
    for entry in entries:
        line = _line(entry.path, folder)
        if line is None:
            reason = "its name has a line end, or is not UTF-8: no playlist can hold it"
            left_out.append(FileError(entry.path, reason))
            continue
        seconds = -1 if entry.seconds is None else round(entry.seconds)
        lines += [f"#EXTINF:{seconds},{_one_line(entry.path.stem)}", line]
        count += 1
    return "\n".join((*lines, "")).encode(), Written(count, tuple(left_out))


def _line(path: Path, folder: Path | None) -> str | None:
    text = os.fspath(path if folder is None else os.path.relpath(path, folder))
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    if text.splitlines() != [text] or "\0" in text:  # also U+2028 and others that some readers see
        return None
    if text[0] == "#" or text[0].isspace():  # a comment, or a name that readers trim
        text = f"./{text}"
    return text


def _one_line(text: str) -> str:
    return " ".join(visible(text.encode("utf-8", "replace").decode()).split())


def _replace(path: Path, content: bytes) -> None:
    with naming_errors(path, writing=True):
        mode = 0o666
        with suppress(FileNotFoundError):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable(path, "is not a regular file")
            mode = stat.S_IMODE(status.st_mode)
        temporary = path.with_name(temporary_name(path.name))
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            with open(os.open(temporary, flags, mode), "wb") as file:  # noqa: PTH123
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
