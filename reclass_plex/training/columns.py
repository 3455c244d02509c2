"""What the columns of a feature table are called, and which of them belong together.

The 518 FMA features go by series (mfcc, chroma_cens, ...) and by statistic (mean, skew, ...),
MusiCNN's by checkpoint and by what they are (tags, penultimate layer), joined tables by table,
encoders by layer. A CSV file's columns that are none of these stand alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reclass_plex.errors import ConfigError
from reclass_plex.training.table import FeatureTable, Indices

MOST_ALONE = 64  # columns that are named one by one where nothing groups them


@dataclass(frozen=True)
class Grouping:
    """`by` series, statistic, table, layer or column; `groups` are positions, one set a name.

    Of a grouping by layer they are layers of a row, else columns.
    """

    by: str
    groups: Mapping[str, Indices]


@dataclass(frozen=True)
class _Column:
    table: str | None
    series: str | None
    statistic: str | None


def column_names(table: FeatureTable) -> tuple[str, ...]:
    """Return the names (d,) of a table's columns; numbers where nothing is known."""
    if table.columns:
        return table.columns
    return known_names(table.name, table.dims) or tuple(str(i) for i in range(table.dims))


def known_names(features: str, dims: int) -> tuple[str, ...] | None:
    """Return the names (d,) of features of our own making, by what a card calls them."""
    from reclass_plex.encoders.musicnn_tags import MSD_TAGS, MTT_TAGS
    from reclass_plex.features import COLUMN_NAMES

    if features == "fma518" and dims == len(COLUMN_NAMES):
        return COLUMN_NAMES
    blocks = {
        "musicnn": (("msd", MSD_TAGS), ("mtt", MTT_TAGS)),
        "musicnn-msd": (("msd", MSD_TAGS),),
    }
    names: list[str] = []
    for checkpoint, tags in blocks.get(features, ()):
        names += [f"{checkpoint} tag {tag}" for tag in tags]
        names += [f"{checkpoint} penultimate {i:03d}" for i in range(200)]
    return tuple(names) if names and len(names) == dims else None


def find_groupings(table: FeatureTable) -> tuple[Grouping, ...]:
    """Return the ways in which a table's columns, or layers, can be told apart."""
    if len(table.layers) > 1:
        places = {f"layer {layer}": np.array([i]) for i, layer in enumerate(table.layers)}
        return (Grouping("layer", places),)
    names = column_names(table)
    parts = [_parse(name, table.name) for name in names]
    found = []
    for by in ("table", "series", "statistic"):
        groups = _collect([getattr(part, by) for part in parts])
        if len(groups) > 1:
            found.append(Grouping(by, groups))
    if not found and len(names) <= MOST_ALONE:
        found.append(Grouping("column", _collect(names)))
    return tuple(found)


def select_columns(
    table: FeatureTable, wanted: Sequence[str], *, without: bool = False
) -> FeatureTable:
    """Return `table` with the columns of the groups named by `wanted` alone, or without them.

    The features get another name, so that no head is taken for one of the whole set. Raises
    ConfigError if a group is not there, naming those that are.
    """
    if table.layers:
        raise ConfigError(f"table {table.name}: has layers, so no columns can be chosen of it")
    known = {name: at for one in find_groupings(table) for name, at in one.groups.items()}
    if missing := [name for name in wanted if name not in known]:
        groups = ", ".join(known) or "no groups of columns"
        option = "--without" if without else "--columns"
        raise ConfigError(f"{option} {missing[0]}: table {table.name} has {groups}")
    chosen = np.unique(np.concatenate([known[name] for name in wanted]))
    if without:
        chosen = np.setdiff1d(np.arange(table.dims), chosen)
        if not len(chosen):
            raise ConfigError(f"--without {','.join(wanted)}: no column of {table.name} is left")
    names = column_names(table)
    return replace(
        table,
        name=f"{table.name}[{'without ' if without else ''}{','.join(wanted)}]",
        rows=np.ascontiguousarray(table.rows[:, chosen]),
        columns=tuple(names[i] for i in chosen),
    )


def _parse(name: str, features: str) -> _Column:
    from reclass_plex.features.fma import SERIES_ROWS
    from reclass_plex.features.statistics import STATISTICS

    table, slash, rest = name.partition("/")
    if not slash or table not in features.partition("[")[0].split("+"):
        table, rest = "", name
    rest = re.sub(r"[^a-z0-9]+", " ", rest.lower()).strip()
    for series, _ in SERIES_ROWS:
        found = re.fullmatch(rf"{series.replace('_', ' ')} ({'|'.join(STATISTICS)}) \d+", rest)
        if found:
            return _Column(table or None, series, found[1])
    found = re.match(r"(msd|mtt) (tag|penultimate)\b", rest)
    return _Column(table or None, found[0] if found else None, None)


def _collect(values: Sequence[str | None]) -> dict[str, Indices]:
    names = dict.fromkeys(value for value in values if value is not None)
    found = {name: np.array([i for i, v in enumerate(values) if v == name]) for name in names}
    rest = np.array([i for i, value in enumerate(values) if value is None], np.int64)
    return found | ({"others": rest} if found and len(rest) else {})
