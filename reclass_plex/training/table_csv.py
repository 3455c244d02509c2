"""Feature tables from CSV files: FMA's `features.csv` and excerpts of it, or a plain table.

Features: the first column is the key; either one header line, or FMA's three (series, statistic,
number) with a line that names the key. Labels: a second file with a header, the key in its first
column and a column of labels (several of one recording are parted by "|"), perhaps one of groups
and one of splits; or these columns stand in the features' file itself.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import FileError
from reclass_plex.files import naming_errors
from reclass_plex.training.datasets.collection import Split, our_name
from reclass_plex.training.table import FeatureTable

LABELS = ("label", "labels", "genre", "track_genre", "genre_top")
GROUPS = ("group", "artist", "artist_id")
SPLITS = ("split", "set")
SPLIT_NAMES: Mapping[str, Split | None] = {
    "": None, "train": "train", "training": "train", "valid": "valid", "validation": "valid",
    "test": "test",
}  # fmt: skip
SEPARATOR = "|"


@dataclass(frozen=True)
class CsvSource:
    """Where a table is and what it does not say itself. `parents`: FMA's genres.csv.

    `name` of the features; None takes fma518 for FMA's 518 columns, else the file's name.
    """

    features: Path
    labels: Path | None = None
    parents: Path | None = None
    name: str | None = None
    excerpt: str = "full"
    rate: int | Literal["native"] = "native"
    window_seconds: float = 30.0


@dataclass(frozen=True)
class Labelled:
    """What a labels' file says of one recording."""

    labels: tuple[str, ...]
    group: str | None
    split: Split | None


def read_csv_table(source: CsvSource) -> tuple[FeatureTable, tuple[str, ...]]:
    """Return the table, and remarks on recordings that were left out. Raises FileError."""
    columns, values = _read_features(source.features)
    facts = [i for i, name in enumerate(columns) if name in LABELS + GROUPS + SPLITS]
    if source.labels is None and not any(columns[i] in LABELS for i in facts):
        wanted = ", ".join(LABELS)
        raise FileError(
            source.features, f"has no column of labels ({wanted}): name a file with --labels"
        )
    parents = {} if source.parents is None else read_parents(source.parents)
    numeric = [i for i in range(len(columns)) if i not in set(facts)]
    empty = {key for key, row in values.items() if not any(row[i].strip() for i in numeric)}
    if source.labels is None:
        header = [columns[i] for i in facts]
        lines = {key: [row[i] for i in facts] for key, row in values.items()}
    else:
        header, lines = _read_plain(source.labels)
    wanted_lines = {key: lines[key] for key in values if key in lines and key not in empty}
    known = _labelled(source.labels or source.features, header, wanted_lines, parents)
    keys = tuple(known)
    remarks = []
    if empty:
        remarks.append(f"{len(empty)} recordings without features are left out")
    if unlabelled := len(values) - len(empty) - len(keys):
        remarks.append(f"{unlabelled} recordings without a label are left out")
    if not keys:
        raise FileError(source.features, "no recording has both features and a label")
    rows = np.stack([_numbers(source.features, key, values[key], numeric) for key in keys])
    chosen = [known[key] for key in keys]
    names = tuple(sorted({label for one in chosen for label in one.labels}))
    feature_columns = [columns[i] for i in numeric]
    table = FeatureTable(
        name=source.name or _name(source.features, feature_columns),
        rows=rows,
        recording=np.arange(len(keys)),
        keys=keys,
        labels=_label_array(chosen, names),
        label_names=names,
        groups=tuple(one.group for one in chosen),
        splits=tuple(one.split for one in chosen),
        excerpt=source.excerpt,
        rate=source.rate,
        window_seconds=source.window_seconds,
        collection=source.features.stem,
        columns=tuple(feature_columns),
    )
    return table, tuple(remarks)


def join_labels(names: Sequence[str]) -> str:
    """Return labels in one field, as `split_labels` reads them: in quotes where that is needed."""
    text = io.StringIO()
    csv.writer(text, delimiter=SEPARATOR, lineterminator="").writerow(names)
    return text.getvalue()


def split_labels(text: str) -> list[str]:
    """Return the labels of a field."""
    return next(csv.reader([text], delimiter=SEPARATOR), [])


def read_parents(path: Path) -> dict[str, str]:
    """Return {genre id: name of its top-level genre} from FMA's genres.csv. Raises FileError."""
    header, lines = _read_plain(path)
    if not {"title", "top_level"} <= set(header):
        raise FileError(path, "needs the columns genre_id, title and top_level, as FMA's has")
    title, top = header.index("title"), header.index("top_level")
    try:
        return {key: our_name(lines[row[top]][title]) for key, row in lines.items()}
    except KeyError as error:
        raise FileError(path, f"top_level {error} is no genre of the file") from None


def _read_lines(path: Path) -> list[list[str]]:
    try:
        with (
            naming_errors(path, writing=False),
            path.open(encoding="utf-8-sig", newline="") as file,
        ):
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileError(path, f"is no CSV text: {error}") from None
    if len(lines) < 2:
        raise FileError(path, "has no rows below its header")
    width = len(lines[0])
    for number, line in enumerate(lines, 1):
        if len(line) != width:
            raise FileError(path, f"row {number} has {len(line)} columns, not {width}")
    return lines


def _by_key(path: Path, lines: Sequence[list[str]]) -> dict[str, list[str]]:
    keyed = {line[0]: line[1:] for line in lines}
    if len(keyed) != len(lines):
        raise FileError(path, "several rows have the same key in the first column")
    return keyed


def _read_plain(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    lines = _read_lines(path)
    return [name.strip().lower() for name in lines[0][1:]], _by_key(path, lines[1:])


def _read_features(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    lines = _read_lines(path)
    if len(lines) > 3 and [line[0] for line in lines[:3]] == ["features", "statistics", "number"]:
        columns = [" ".join(parts) for parts in zip(*(line[1:] for line in lines[:3]), strict=True)]
        begin = 4 if not any(lines[3][1:]) and lines[3][0] == "track_id" else 3
        return columns, _by_key(path, lines[begin:])
    return [name.strip().lower() for name in lines[0][1:]], _by_key(path, lines[1:])


def _labelled(
    path: Path,
    header: Sequence[str],
    lines: Mapping[str, Sequence[str]],
    parents: Mapping[str, str],
) -> dict[str, Labelled]:
    label, group, split = (_column(header, names) for names in (LABELS, GROUPS, SPLITS))
    if label is None:
        raise FileError(path, f"has no column of labels: {', '.join(LABELS)}")
    known = {}
    for key, line in lines.items():
        labels = [one.strip() for one in line[label].split(SEPARATOR) if one.strip()]
        if not labels:
            continue
        for one in labels if parents else ():
            if one not in parents:
                raise FileError(path, f"{key}: genre {one!r} is not in the file of --parents")
        told = line[split].strip().lower() if split is not None else ""
        if told not in SPLIT_NAMES:
            raise FileError(path, f"{key}: split {told!r} is none of train, valid, test")
        named = (parents[one] if parents else our_name(one) for one in labels)
        known[key] = Labelled(
            tuple(dict.fromkeys(named)),
            (line[group].strip() or None) if group is not None else None,
            SPLIT_NAMES[told],
        )
    return known


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _numbers(
    path: Path, key: str, row: Sequence[str], columns: Sequence[int]
) -> npt.NDArray[np.float32]:
    try:
        numbers = np.array([float(row[i]) for i in columns], np.float32)
    except ValueError as error:
        raise FileError(path, f"{key}: a feature is no number: {error}") from None
    if not np.isfinite(numbers).all():
        raise FileError(path, f"{key}: a feature is NaN or infinite")
    return numbers


def _label_array(
    chosen: Sequence[Labelled], names: Sequence[str]
) -> npt.NDArray[np.int64] | npt.NDArray[np.bool_]:
    place = {name: number for number, name in enumerate(names)}
    if all(len(one.labels) == 1 for one in chosen):
        return np.array([place[one.labels[0]] for one in chosen], np.int64)
    labels = np.zeros((len(chosen), len(names)), np.bool_)
    for number, one in enumerate(chosen):
        labels[number, [place[label] for label in one.labels]] = True
    return labels


def _name(path: Path, columns: Sequence[str]) -> str:
    from reclass_plex.features import COLUMN_NAMES

    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in columns]
    ours = ["".join(c for c in name.lower() if c.isalnum()) for name in COLUMN_NAMES]
    return "fma518" if plain == ours else path.stem
