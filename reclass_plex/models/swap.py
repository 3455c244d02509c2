"""Folders of models that are replaced whole, the former one kept for one step back.

PLACE           what is in use
PLACE.former    what it replaced
PLACE.fresh     what is being written; never looked at by `in_use`
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reclass_plex.files import naming_errors
from reclass_plex.models.installed import locked

FORMER, FRESH = ".former", ".fresh"


def in_use(place: Path) -> Path | None:
    """Return the folder that counts, None if there is none.

    A replacement that broke off after it had put the former one aside counts as not begun. Raises
    OSError where the folders may not be looked at.
    """
    return next((folder for folder in (place, former_of(place)) if folder.is_dir()), None)


def former_of(place: Path) -> Path:
    """Return where what `place` replaced is kept."""
    return place.with_name(place.name + FORMER)


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """Give a path for a new folder, and put it in use if the body that writes it succeeds.

    One process at a time. Raises FileError if it cannot be written: then what was in use stays so.
    """
    with _changing(place) as fresh:
        try:
            yield fresh
            _sync(fresh)
            if place.exists():
                shutil.rmtree(former_of(place), ignore_errors=True)
                place.rename(former_of(place))
            fresh.rename(place)  # ended between the two: `in_use` goes by the former one
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def take_back(place: Path) -> bool:
    """Put the former folder in use again, and return whether there was one.

    What was in use is deleted. Raises FileError if the folders cannot be changed.
    """
    with _changing(place) as fresh:
        if place.exists():
            place.rename(fresh)
        there_is = former_of(place).exists()
        if there_is:
            former_of(place).rename(place)
        shutil.rmtree(fresh, ignore_errors=True)
    return there_is


@contextmanager
def _changing(place: Path) -> Iterator[Path]:
    """Give the folder for what comes, to one process at a time."""
    fresh = place.with_name(place.name + FRESH)
    with locked(place.name, place.parent), naming_errors(place, writing=True):
        shutil.rmtree(fresh, ignore_errors=True)
        yield fresh


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk: after a power cut its name must not be all there is."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
