"""Names of files and folders that a file system takes, whatever they are made from. Pure."""

from __future__ import annotations

import os
import re

LONGEST = 255  # bytes of a name, on Linux; Windows and its file systems count 255 UTF-16 units
_RESERVED = re.compile(r"(con|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³])(\.|$)", re.IGNORECASE)
_BAD = re.compile(r'[<>:"\\|?*\x00-\x1f\x7f]')


def folder_name(text: str, *, foreign: bool) -> str:
    """Return a text (a genre) as the name of a folder: no hidden one, and only one."""
    name = re.sub(r"[/\x00-\x1f\x7f]+", "-", text).strip(" ")
    name = re.sub(r"^[.\s]+", "", name) or "Other"
    return file_name(name, foreign=foreign)


def file_name(name: str, *, foreign: bool) -> str:
    """Return a name that fits; with `foreign` one that Windows takes as well.

    What it does not take becomes "_". The suffix stays.
    """
    if foreign:
        name = _BAD.sub("_", name)
        name = re.sub(r"[. ]+$", lambda end: "_" * len(end[0]), name)
        if _RESERVED.match(name):
            name = "_" + name
    return _cut(name, "")


def numbered(name: str, number: int) -> str:
    """Return "name (2).mp3" for "name.mp3"."""
    return _cut(name, f" ({number})")


def _cut(name: str, mark: str) -> str:
    """Put `mark` before the suffix, and shorten what is before it until all of it fits."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a name, not a path
    if len(suffix) > 12:  # "Vol. 2 of a long title" has none
        stem, suffix = name, ""
    room = LONGEST - len(os.fsencode(mark + suffix))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + mark + suffix
