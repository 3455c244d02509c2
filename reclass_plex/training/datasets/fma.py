"""FMA: its tracks and splits (tracks.csv), its clips, and its table of features (features.csv).

Defferrard, Benzi, Vandergheynst, Bresson, *FMA: a dataset for music analysis*, 2017. Two traps are
in the table, and what is read from it says so in the words that feature tables use:

- It was computed on **whole tracks**, not on the clips: its excerpt is "full".
- It was computed at each file's **native rate**, of which only some series know.

A third is taken away here: the librosa of 2017 gave an rmse that is 2048 / sqrt(2 * 1025) times
that of today's, so those columns are divided by it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection as Some
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import FileError
from reclass_plex.genres import FMA16
from reclass_plex.training.datasets.collection import Collection, Recording, Split, our_name

Subset = Literal["small", "medium", "large", "full"]

LICENCE = "metadata and features CC BY 4.0, audio each artist's Creative Commons licence"
EXCERPT = "full"
RATE: Literal["native"] = "native"

_SUBSETS = {"small": 0, "medium": 1, "large": 2}  # each holds the ones before
_SPLITS: dict[str, Split] = {"training": "train", "validation": "valid", "test": "test"}
_RMSE_OF_2017 = 2048 / math.sqrt(2 * 1025)
_LONGEST_FIELD = 1 << 24  # characters: the csv module stops at 131,072, some biographies do not
_HEADERS = (("feature", "statistics", "number"), ("features", "statistics", "number"))


@dataclass(frozen=True)
class PublishedFeatures:
    """Rows of features.csv: `keys` (r,) are track numbers, `rows` (r, d) float32.

    `names` are those of `features.COLUMN_NAMES`; the published table has all of them, in order.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    rows: npt.NDArray[np.float32]


def read_fma(metadata: Path, subset: Subset, audio: Path | None = None) -> Collection:
    """Read the tracks of a subset; `audio` is the folder with 000/, 001/, ... of its clips.

    `metadata` is the folder with tracks.csv. Tracks without a top genre (half of large and full)
    are left out. Raises FileError, naming the file and the line.
    """
    path = metadata / "tracks.csv"
    recordings, without = [], 0
    for number, row in _read_tracks(path):
        try:
            key, genre = str(int(row["track_id"])), row["track.genre_top"]
            within = _SUBSETS[row["set.subset"]]
            split = _SPLITS[row["set.split"]]
        except (KeyError, ValueError) as error:
            raise FileError(path, f"line {number}: is not as published: {error}") from error
        if subset != "full" and within > _SUBSETS[subset]:
            continue
        if not genre:
            without += 1
            continue
        label = _label(genre, path, number)
        file = None if audio is None else audio / f"{int(key):06d}"[:3] / f"{int(key):06d}.mp3"
        recordings.append(Recording(key, file, (label,), f"artist {row['artist.id']}", split))
    there = {recording.labels[0] for recording in recordings}
    return Collection(
        f"fma-{subset}",
        tuple(name for name in map(our_name, FMA16.genres) if name in there),
        tuple(recordings),
        LICENCE,
        groups_are_artists=True,
        remarks=(f"{without} tracks without a top genre are left out.",) if without else (),
    )


def read_features(path: Path, keys: Some[str] | None = None) -> PublishedFeatures:
    """Read features.csv (900 MB) row by row: all tracks, or those of `keys`.

    Tracks of which a value is missing or not finite are left out. Raises FileError.
    """
    from reclass_plex.features import COLUMN_NAMES  # which imports torch

    wanted = None if keys is None else frozenset(keys)
    found, rows = [], []
    with _opened(path) as lines:
        names = _feature_names(lines, path, frozenset(COLUMN_NAMES))
        for number, line in enumerate(lines, 4):
            key, *values = line
            if key == "track_id" or (wanted is not None and key not in wanted):
                continue
            if len(values) != len(names):
                raise FileError(path, f"line {number}: has {len(values)} values, not {len(names)}")
            if "" in values:
                continue
            try:
                row = np.array(values, np.float64)
            except ValueError as error:
                raise FileError(path, f"line {number}: {error}") from error
            if np.isfinite(row).all():
                found.append(key)
                rows.append(row.astype(np.float32))
    table = np.stack(rows) if rows else np.empty((0, len(names)), np.float32)
    shapes = ("kurtosis", "skew")  # which do not change with the scale
    old = [n.startswith("rmse_") and n.split("_")[1] not in shapes for n in names]
    table[:, old] /= _RMSE_OF_2017
    return PublishedFeatures(tuple(found), names, table)


def _label(genre: str, path: Path, number: int) -> str:
    if genre not in FMA16.genres:
        raise FileError(path, f"line {number}: {genre!r} is none of FMA's 16 genres")
    return our_name(genre)


def _read_tracks(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and values by "group.name" of each track: two header rows, then one more
    with the name of the first column."""
    with _opened(path) as lines:
        try:
            groups, names = next(lines), next(lines)
        except StopIteration:
            raise FileError(path, "is not FMA's tracks.csv: it has no two header rows") from None
        columns = [f"{group}.{name}" for group, name in zip(groups, names, strict=False)]
        columns[:1] = ["track_id"]
        if missing := {"artist.id", "set.split", "set.subset", "track.genre_top"} - set(columns):
            raise FileError(
                path, f"is not FMA's tracks.csv: it has no {', '.join(sorted(missing))}"
            )
        for number, line in enumerate(lines, 3):
            if line and line[0] != "track_id":
                yield number, dict(zip(columns, line, strict=False))


def _feature_names(
    lines: Iterator[list[str]], path: Path, known: frozenset[str]
) -> tuple[str, ...]:
    header = list(islice(lines, 3))
    if len(header) < 3 or tuple(row[0] for row in header) not in _HEADERS:
        raise FileError(path, "is not FMA's features.csv: it has no three header rows")
    names = tuple("_".join(parts) for parts in zip(*(row[1:] for row in header), strict=False))
    if strange := [name for name in names if name not in known]:
        raise FileError(path, f"is not FMA's features.csv: it has a column {strange[0]!r}")
    return names


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[list[str]]]:
    """Open a CSV file, and name what goes wrong while it is read."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield csv.reader(file)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(path, f"is damaged: {error}") from error
    finally:
        csv.field_size_limit(before)
