"""Small feature tables that the tests of training share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reclass_plex.models.installed import hash_file
from reclass_plex.training.datasets.collection import Split
from reclass_plex.training.extraction import MANIFEST, RECORDING, ROWS, Entry, Manifest, Plan
from reclass_plex.training.table import FeatureTable

GENRES = ("Blues", "Jazz", "Metal")


def make_table(
    recordings: int = 90,
    *,
    dims: int = 6,
    windows: int = 1,
    layers: tuple[int, ...] = (),
    tags: bool = False,
    groups: bool = True,
    split: bool = False,
    name: str = "fma518",
    seed: int = 0,
) -> FeatureTable:
    """Return a table whose labels can be learned; of several layers the last one alone tells."""
    generator = np.random.default_rng(seed)
    label = np.arange(recordings) % len(GENRES)
    centres = np.random.default_rng(99).standard_normal((len(GENRES), dims)) * 2
    recording = np.repeat(np.arange(recordings), windows)
    told = centres[label[recording]] + generator.standard_normal((len(recording), dims))
    rows = told * np.linspace(1, 50, dims) + 7
    if layers:
        noise = generator.standard_normal((len(recording), len(layers), dims)) * 100
        noise[:, -1] = rows
        rows = noise
    labels = label.astype(np.int64)
    splits: tuple[Split | None, ...] = (None,) * recordings
    if split:
        names: tuple[Split, ...] = ("train", "train", "train", "valid", "test")
        splits = tuple(names[(i // 6) % 5] for i in range(recordings))
    both = np.eye(len(GENRES), dtype=bool)[label]
    both[::4, 0] = True  # some recordings are Blues besides
    return FeatureTable(
        name=name,
        rows=rows.astype(np.float32),
        recording=recording,
        keys=tuple(f"song {i}" for i in range(recordings)),
        labels=both if tags else labels,
        label_names=GENRES,
        groups=tuple(f"artist {i // 6}" if groups else None for i in range(recordings)),
        splits=splits,
        excerpt="middle30",
        rate=22_050,
        window_seconds=3.0,
        layers=layers,
        collection="made",
        licence="CC0-1.0",
        groups_are_artists=groups,
        versions={"made": "1"},
    )


def write_folder(table: FeatureTable, folder: Path) -> Path:
    """Write a table as `reclass-plex extract` leaves it."""
    folder.mkdir(parents=True)
    np.save(folder / ROWS, table.rows)
    np.save(folder / RECORDING, table.recording)
    counts = np.bincount(table.recording)
    manifest = Manifest(
        plan=Plan(
            collection=table.collection, recordings="", features=table.name,
            table_name=table.name, excerpt=table.excerpt, rate=table.rate,
            window_seconds=table.window_seconds, layers=table.layers,
            dtype="float16" if table.rows.dtype == np.float16 else "float32",
            device="cpu", precision="float32", versions=dict(table.versions),
        ),
        labels=table.label_names,
        multi_label=table.multi_label,
        groups_are_artists=table.groups_are_artists,
        licence=table.licence,
        shape=table.rows.shape,
        files={name: hash_file(folder / name) for name in (ROWS, RECORDING)},
        recordings=tuple(
            Entry(
                key=key, labels=_labels(table, i), group=table.groups[i],
                split=table.splits[i], audio="", rows=int(counts[i]),
            )
            for i, key in enumerate(table.keys)
        ),
        failed=(),
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def _labels(table: FeatureTable, recording: int) -> tuple[str, ...]:
    if not table.multi_label:
        return (table.label_names[int(table.labels[recording])],)
    return tuple(table.label_names[j] for j in np.flatnonzero(table.labels[recording]))


def write_csv(table: FeatureTable, path: Path) -> Path:
    """Write a table of one window a recording as one plain CSV file."""
    dims = range(table.dims)
    lines = [",".join(("key", "label", "artist", "split", *(f"f{i}" for i in dims)))]
    for i, key in enumerate(table.keys):
        names = np.flatnonzero(table.labels[i]) if table.multi_label else [int(table.labels[i])]
        label = "|".join(table.label_names[j] for j in names)
        numbers = (repr(float(value)) for value in table.rows[i])
        lines.append(",".join((key, label, table.groups[i] or "", table.splits[i] or "", *numbers)))
    path.write_text("\n".join(lines) + "\n")
    return path
