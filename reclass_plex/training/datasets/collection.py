"""The one shape that every dataset takes: labelled recordings, with what a fair split must know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reclass_plex.errors import ReclassError
from reclass_plex.genres import DEFAULT, genre_key

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_OUR_NAMES = {genre_key(genre): genre for genre in DEFAULT.genres}


class DatasetError(ReclassError):
    """A dataset is missing, damaged, or not to be had as it was asked for."""

    kind = "dataset"


@dataclass(frozen=True)
class Recording:
    """One labelled recording.

    `key` is stable and unique within its collection. `path` is its audio, or where that ought to
    be; None where a dataset gives features only. `labels` are names of `Collection.labels`: one for
    genres, any number for tags. `group` is what may never stand on both sides of a split: the
    artist, else the album or whatever the dataset knows; None if nothing is known.
    """

    key: str
    path: Path | None
    labels: tuple[str, ...]
    group: str | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Collection:
    """A dataset that is on this machine.

    `labels` are all of its labels in their published order, by our names where we have such a
    genre. `groups_are_artists` says whether accuracy across groups is accuracy across artists.
    `remarks` are sentences on what was left out, and why.
    """

    name: str
    labels: tuple[str, ...]
    recordings: tuple[Recording, ...]
    licence: str
    multi_label: bool = False
    groups_are_artists: bool = False
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        keys = {recording.key for recording in self.recordings}
        if len(keys) != len(self.recordings):
            raise ValueError(f"{self.name}: several recordings have the same key")
        known = set(self.labels)
        for recording in self.recordings:
            if not known.issuperset(recording.labels):
                strange = sorted(set(recording.labels) - known)
                raise ValueError(f"{self.name}: {recording.key} has unknown labels {strange}")
            if not self.multi_label and len(recording.labels) != 1:
                raise ValueError(f"{self.name}: {recording.key} has not exactly one label")


def has_audio(recording: Recording) -> bool:
    """Say whether a recording's file is there and not empty."""
    try:
        return recording.path is not None and recording.path.stat().st_size > 0
    except OSError:
        return False


def our_name(label: str) -> str:
    """Return a label by our name of the same genre ("hiphop" is Hip-Hop), else as it is."""
    return _OUR_NAMES.get(genre_key(label), label)
