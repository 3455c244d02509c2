"""The same file under two names: as the Plex server sees it, and as this machine does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from reclass_plex.config import PathMap


def to_local(plex_path: str, maps: Sequence[PathMap]) -> Path | None:
    """Return the local path of a Plex path: the longest prefix wins.

    A path that no prefix fits is the same on both sides, except one of Windows, which is None,
    as is a path that climbs (..).
    """
    path = plain_path(plex_path)
    if ".." in path.parts or not path.is_absolute():
        return None
    best: tuple[int, Path] | None = None
    for one in maps:
        prefix = plain_path(one.plex)
        if path.is_relative_to(prefix):
            length = len(prefix.parts)
            if best is None or length > best[0]:
                best = length, Path(one.local, *path.parts[length:])
    if best is not None:
        return best[1]
    return None if isinstance(path, PureWindowsPath) else Path(path)


def to_plex(path: Path, maps: Sequence[PathMap]) -> str | None:
    """Return the Plex path of a local path: the longest prefix wins that leads back to it.

    None if there is none, so that a path never becomes another file's.
    """
    if ".." in path.parts or not path.is_absolute():
        return None
    candidates = []
    for one in maps:
        if path.is_relative_to(one.local):
            length = len(Path(one.local).parts)
            candidates.append((length, str(plain_path(one.plex).joinpath(*path.parts[length:]))))
    candidates.sort(key=lambda candidate: -candidate[0])
    for _, plex_path in (*candidates, (0, str(path))):
        if to_local(plex_path, maps) == path:
            return plex_path
    return None


def spellings(path: Path) -> tuple[Path, ...]:
    """Return a path as it is, and as others may write it: macOS and some NAS write accents in
    two characters, and Plex may show either.
    """
    text = str(path)
    if text.isascii():
        return (path,)
    forms = (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))
    return tuple(map(Path, dict.fromkeys(forms)))


def plain_path(path: str) -> PurePath:
    """Tell paths of a server on Windows (D:\\Music, \\\\nas\\music) from the others."""
    windows = re.match(r"[A-Za-z]:[\\/]|\\\\", path)
    return PureWindowsPath(path) if windows else PurePosixPath(path)
