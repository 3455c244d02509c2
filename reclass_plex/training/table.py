"""Feature tables: what every training run and every evaluation reads.

A table holds the windows of labelled recordings as numbers. `extraction.read_table(folder)` makes
one from what `reclass-plex extract` wrote, `table_csv.read_csv_table` one from a CSV file.

Conventions: n windows of r recordings with k labels; a window's row is (d,) or, of an encoder with
several layers, (layers, d), float32; or float16 where a row is a whole spectrogram or a window's
hidden states, which memory does not hold twice. The rows may be memory-mapped: read them in parts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import ConfigError
from reclass_plex.training.datasets.collection import Split

Rows = npt.NDArray[Any]  # float32, or float16: see above
Indices = npt.NDArray[np.int64]

ROWS_AT_ONCE = 4096  # read from a memory-mapped table
LONG_ROW = 8192  # numbers: a spectrogram, or hidden states
NUMBERS_AT_ONCE = 2**24  # and no more than so many numbers: 64 MiB


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """The features of a collection's recordings, several windows each, with their labels.

    `labels` is (r,) int64, positions in `label_names`; or (r, k) bool for several labels at once.
    `recording` (n,) int64 gives each row's recording, a position in `keys`; every recording has a
    row. `groups` and `splits` are `Recording.group` and `Recording.split`. Raises ConfigError,
    naming the table, if the parts do not fit together.
    """

    name: str  # of the features, as a model card gives it: fma518, mert-95m, musicnn-msd
    rows: Rows  # (n, d) or (n, layers, d)
    recording: Indices  # (n,)
    keys: tuple[str, ...]  # r, distinct
    labels: Indices | npt.NDArray[np.bool_]
    label_names: tuple[str, ...]  # k
    groups: tuple[str | None, ...]  # r
    splits: tuple[Split | None, ...]  # r
    excerpt: str  # full, middle30
    rate: int | Literal["native"]  # Hz
    window_seconds: float
    layers: tuple[int, ...] = ()  # numbers of the layers in `rows`; empty where rows are (n, d)
    collection: str = ""  # Collection.name
    licence: str = ""  # of the data
    groups_are_artists: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)  # of what computed the features
    columns: tuple[str, ...] = ()  # d names, where they are known beside the features' own

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ConfigError(f"table {self.collection or '?'}/{self.name}: {problem}")

    @property
    def dims(self) -> int:
        """Features of one layer."""
        return int(self.rows.shape[-1])

    @property
    def multi_label(self) -> bool:
        """Whether a recording may have several labels, or none."""
        return self.labels.ndim == 2

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.keys)

    def _problem(self) -> str | None:
        n, r, k = len(self.rows), len(self.keys), len(self.label_names)
        if self.rows.ndim != (3 if self.layers else 2):
            return f"rows have shape {self.rows.shape} with {len(self.layers)} layers"
        if self.layers and self.rows.shape[1] != len(self.layers):
            return f"rows have {self.rows.shape[1]} layers, not {len(self.layers)}"
        if self.columns and len(self.columns) != self.dims:
            return f"{self.dims} columns, but {len(self.columns)} names of columns"
        if self.rows.dtype not in (np.float32, np.float16):
            return f"rows are {self.rows.dtype}, neither float32 nor float16"
        if n == 0 or self.dims == 0:
            return "it is empty"
        if self.recording.shape != (n,):
            return f"{n} rows, but {len(self.recording)} recording numbers"
        if not np.array_equal(np.unique(self.recording), np.arange(r)):
            return "recording numbers and keys do not match: every recording needs a row"
        if len(set(self.keys)) != r:
            return "several recordings have the same key"
        if len(self.groups) != r or len(self.splits) != r:
            return "groups, splits and keys differ in length"
        if k < 2 or len(set(self.label_names)) != k:
            return f"needs at least two distinct labels, not {list(self.label_names)}"
        if self.multi_label:
            if self.labels.shape != (r, k) or self.labels.dtype != np.bool_:
                return f"labels must be bool {(r, k)}, not {self.labels.dtype} {self.labels.shape}"
        elif self.labels.shape != (r,):
            return f"labels must be {(r,)}, not {self.labels.shape}"
        elif self.labels.min() < 0 or self.labels.max() >= k:
            return f"labels must be between 0 and {k - 1}"
        return None


def rows_at_once(rows: Rows) -> int:
    """Return how many rows are read at once."""
    return max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // math.prod(rows.shape[1:])))


def check_finite(table: FeatureTable) -> None:
    """Raise ConfigError, naming a recording, if any feature is NaN or infinite."""
    step = rows_at_once(table.rows)
    for start in range(0, len(table.rows), step):
        part = table.rows[start : start + step]
        bad = ~np.isfinite(part.reshape(len(part), -1)).all(1)
        if bad.any():
            row = start + int(bad.argmax())
            key = table.keys[int(table.recording[row])]
            raise ConfigError(
                f"table {table.collection}/{table.name}: a feature of {key!r} (row {row}) is not a"
                " number: extract that recording again, or leave it out"
            )


def fingerprint(table: FeatureTable) -> str:
    """Return a digest of everything that a fit depends on: features, labels, groups, splits."""
    digest = hashlib.blake2b(digest_size=16)
    words = (table.name, table.keys, table.label_names, table.groups, table.splits, table.layers)
    digest.update(repr((words, table.rows.shape)).encode())
    digest.update(np.ascontiguousarray(table.labels).tobytes())
    digest.update(np.ascontiguousarray(table.recording).tobytes())
    step = rows_at_once(table.rows)
    for start in range(0, len(table.rows), step):
        digest.update(np.ascontiguousarray(table.rows[start : start + step]).tobytes())
    return digest.hexdigest()


def leave_out(table: FeatureTable, split: Split) -> FeatureTable:
    """Return `table` without the recordings of a split; itself if it has none of it.

    Raises ConfigError if nothing is left.
    """
    kept = np.array([own != split for own in table.splits])
    if kept.all():
        return table
    if not kept.any():
        raise ConfigError(f"table {table.collection}/{table.name}: has only {split} recordings")
    return keep(table, [key for key, one in zip(table.keys, kept, strict=True) if one])


def keep(table: FeatureTable, keys: Sequence[str]) -> FeatureTable:
    """Return `table` with the recordings of `keys` alone, in their order; each must be in it."""
    position = {key: number for number, key in enumerate(table.keys)}
    chosen = np.array([position[key] for key in keys], np.int64)
    number = np.full(len(table), -1)
    number[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(number[table.recording] >= 0)
    return replace(
        table,
        rows=np.asarray(table.rows[rows]),
        recording=number[table.recording[rows]],
        keys=tuple(keys),
        labels=table.labels[chosen],
        groups=tuple(table.groups[i] for i in chosen),
        splits=tuple(table.splits[i] for i in chosen),
    )


def average_layers(table: FeatureTable) -> FeatureTable:
    """Return `table` with the mean of its layers in place of them; itself if it has none."""
    if not table.layers:
        return table
    means = np.empty((len(table.rows), table.dims), np.float32)
    for start in range(0, len(table.rows), ROWS_AT_ONCE):
        means[start : start + ROWS_AT_ONCE] = table.rows[start : start + ROWS_AT_ONCE].mean(1)
    return replace(table, rows=means, layers=())


def join_tables(tables: Sequence[FeatureTable]) -> FeatureTable:
    """Return one table with the features of all side by side, of the recordings that all have.

    One row a recording: the mean over its windows, as the tables cut them differently; and the
    mean over layers. Raises ConfigError if labels, groups or splits contradict each other, or if no
    recording is in all.
    """
    from reclass_plex.training.columns import column_names

    first = tables[0]
    in_all = set(first.keys).intersection(*(table.keys for table in tables[1:]))
    common = [key for key in first.keys if key in in_all]
    if not common:
        names = ", ".join(f"{t.collection}/{t.name}" for t in tables)
        raise ConfigError(f"tables {names}: no recording is in all of them")
    blocks, picks = [], []
    for table in tables:
        position = {key: number for number, key in enumerate(table.keys)}
        pick = np.array([position[key] for key in common])
        blocks.append(recording_means(average_layers(table))[pick])
        picks.append(pick)
        same = table.label_names == first.label_names and np.array_equal(
            table.labels[pick], first.labels[picks[0]]
        )
        if not same or any(
            (table.groups[a], table.splits[a]) != (first.groups[b], first.splits[b])
            for a, b in zip(pick, picks[0], strict=True)
        ):
            raise ConfigError(
                f"tables {first.collection}/{first.name} and {table.collection}/{table.name}"
                " contradict each other about labels, groups or splits: extract both from the same"
                " collection"
            )
    return replace(
        first,
        name="+".join(table.name for table in tables),
        rows=np.concatenate(blocks, 1),
        recording=np.arange(len(common)),
        keys=tuple(common),
        labels=first.labels[picks[0]],
        groups=tuple(first.groups[i] for i in picks[0]),
        splits=tuple(first.splits[i] for i in picks[0]),
        layers=(),
        versions={f"{t.name}: {key}": v for t in tables for key, v in t.versions.items()},
        columns=tuple(f"{t.name}/{name}" for t in tables for name in column_names(t)),
    )


def recording_means(table: FeatureTable) -> Rows:
    """Return (r, d): the mean over each recording's windows of a table without layers."""
    sums = np.zeros((len(table), table.dims))
    np.add.at(sums, table.recording, table.rows)
    means = sums / np.bincount(table.recording)[:, None]
    return means.astype(np.float32)
