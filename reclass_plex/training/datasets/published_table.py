"""The features that a dataset publishes, as a table to train on: FMA's 518, the Echo Nest's 90.

All are of whole tracks (of MagnaTagATune's clips: of the whole clip), and the table says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from reclass_plex.audio import MAX_FULL_SECONDS
from reclass_plex.errors import FileError, printable
from reclass_plex.training.datasets import echonest, fma
from reclass_plex.training.datasets.catalogue import find_dataset
from reclass_plex.training.datasets.collection import Collection, DatasetError
from reclass_plex.training.datasets.magnatagatune import analysis_path
from reclass_plex.training.datasets.msd import find_songs, song_path
from reclass_plex.training.datasets.reading import Reading, features_folder, read_dataset
from reclass_plex.training.table import FeatureTable

log = logging.getLogger(__name__)

ECHONEST_RATE = 22_050  # Hz, at which it analysed


@dataclass(frozen=True)
class _Published:
    name: str
    rate: int | Literal["native"]  # Hz
    keys: tuple[str, ...]
    rows: npt.NDArray[np.float32]


def read_published_table(
    name: str, folder: Path, how: Reading | None = None
) -> tuple[FeatureTable, tuple[str, ...]]:
    """Return the table of a dataset's published features, and sentences on what is not in it.

    `how` is as in `read_dataset`, but for the Million Song Dataset `path` is also where its files
    are. Raises DatasetError (no features are published, or they are not here) and FileError.
    """
    how = how or Reading()
    dataset = find_dataset(name)
    collection = read_dataset(name, folder, how)
    keys = [recording.key for recording in collection.recordings]
    if name.startswith("fma-"):
        table = fma.read_features(features_folder(dataset, folder) / "features.csv", set(keys))
        found = _Published("fma518", fma.RATE, table.keys, table.rows)
    else:
        own = name.startswith("msd-") and how.path is not None and how.path.is_dir()
        place = find_songs(how.path) if own and how.path else features_folder(dataset, folder)
        found = _echonest(_analyses(name, place, keys))
    if not found.keys:
        raise DatasetError(f"{name}: there are features of none of its {len(keys)} recordings")
    return _table(collection, found)


def _analyses(
    name: str, place: Path, keys: Iterable[str]
) -> Iterator[tuple[str, echonest.Segments]]:
    """Yield the analyses that there are; what cannot be read is logged, and left out."""
    songs = name.startswith("msd-")
    for key in keys:
        path = song_path(place, key) if songs else analysis_path(place, key)
        if not path.exists():  # most of the million songs are not in its subset
            continue
        try:
            yield key, echonest.read_hdf5(path) if songs else echonest.read_xml(path)
        except FileError as error:
            log.warning("%s; left out", printable(str(error)))


def _echonest(analyses: Iterable[tuple[str, echonest.Segments]]) -> _Published:
    keys, rows = [], []
    for key, segments in analyses:
        keys.append(key)
        rows.append(echonest.timbre_statistics(segments.timbre))
    table = np.stack(rows) if rows else np.empty((0, echonest.STATISTICS), np.float32)
    return _Published("echonest90", ECHONEST_RATE, tuple(keys), table)


def _table(collection: Collection, found: _Published) -> tuple[FeatureTable, tuple[str, ...]]:
    by_key = {recording.key: recording for recording in collection.recordings}
    there = [by_key[key] for key in found.keys]
    used = {label for recording in there for label in recording.labels}
    names = tuple(label for label in collection.labels if label in used)
    place = {label: number for number, label in enumerate(names)}
    labels: npt.NDArray[np.int64] | npt.NDArray[np.bool_]
    if collection.multi_label:
        labels = np.zeros((len(there), len(names)), np.bool_)
        for row, recording in enumerate(there):
            labels[row, [place[label] for label in recording.labels]] = True
    else:
        labels = np.array([place[recording.labels[0]] for recording in there])
    without = len(by_key) - len(there)
    remark = f"There are no features of {without:,} of {len(by_key):,} recordings."
    table = FeatureTable(
        name=found.name,
        rows=found.rows,
        recording=np.arange(len(there)),
        keys=found.keys,
        labels=labels,
        label_names=names,
        groups=tuple(recording.group for recording in there),
        splits=tuple(recording.split for recording in there),
        excerpt=fma.EXCERPT,
        rate=found.rate,
        window_seconds=MAX_FULL_SECONDS,
        collection=collection.name,
        licence=collection.licence,
        groups_are_artists=collection.groups_are_artists,
    )
    return table, (*collection.remarks, *((remark,) if without else ()))
