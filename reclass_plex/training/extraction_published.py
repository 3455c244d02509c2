"""Features that a dataset publishes, put where `extract` puts those that are computed here.

So that all that reads tables reads them alike: FMA's 518 of whole tracks, the Echo Nest's 90 of the
Million Song Dataset and of MagnaTagATune. Nothing is heard. The folder is there whole, or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from reclass_plex.errors import ConfigError, printable
from reclass_plex.files import naming_errors
from reclass_plex.models.installed import hash_file, write_record
from reclass_plex.training.datasets.published_table import read_published_table
from reclass_plex.training.datasets.reading import Reading
from reclass_plex.training.extraction import (
    MANIFEST,
    RECORDING,
    ROWS,
    Entry,
    Manifest,
    Plan,
    check_digests,
    differences,
    read_manifest,
)
from reclass_plex.training.table import FeatureTable, check_finite

NAME = "published"  # as `--features` has it


def extract_published(
    dataset: str, datasets: Path, how: Reading, out: Path, *, restart: bool = False
) -> tuple[Path, Manifest, tuple[str, ...]]:
    """Write OUT/published; return it, its manifest, and remarks on what is not in it.

    What is there already is checked, and kept. Raises ConfigError if it is of something else
    (unless `restart`), DatasetError, and FileError.
    """
    table, remarks = read_published_table(dataset, datasets, how)
    check_finite(table)
    folder = out / NAME
    plan = _plan(table)
    if (folder / MANIFEST).exists() and not restart:
        before = read_manifest(folder)
        if changed := list(differences(before.plan, plan)):
            raise ConfigError(
                f"{printable(folder)}: {'; '.join(changed)}: take another --out, or --restart"
            )
        check_digests(folder, before)
        return folder, before, remarks
    fresh = out / f".{NAME}.{os.getpid()}"
    with naming_errors(folder, writing=True):
        if folder.exists() and not restart and any(folder.iterdir()):
            raise ConfigError(f"{printable(folder)}: is something else; take another --out")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        np.save(fresh / ROWS, table.rows)
        np.save(fresh / RECORDING, table.recording)
        manifest = _manifest(table, plan, fresh)
        write_record(fresh / MANIFEST, manifest)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.replace(folder)
    return folder, manifest, remarks


def _plan(table: FeatureTable) -> Plan:
    listed = [table.keys, _labels(table), table.groups, table.splits]
    digest = hashlib.sha256(json.dumps([table.label_names, listed]).encode()).hexdigest()
    rows = hashlib.sha256(np.ascontiguousarray(table.rows).tobytes()).hexdigest()
    return Plan(
        collection=table.collection, recordings=digest, features=NAME, table_name=table.name,
        excerpt=table.excerpt, rate=table.rate, window_seconds=table.window_seconds, layers=(),
        dtype="float32", device="cpu", precision="float32", versions={"published": rows},
    )  # fmt: skip


def _manifest(table: FeatureTable, plan: Plan, folder: Path) -> Manifest:
    entries = tuple(
        Entry(key=key, labels=labels, group=group, split=split, audio="", rows=1)
        for key, labels, group, split in zip(
            table.keys, _labels(table), table.groups, table.splits, strict=True
        )
    )
    return Manifest(
        plan=plan,
        labels=table.label_names,
        multi_label=table.multi_label,
        groups_are_artists=table.groups_are_artists,
        licence=table.licence,
        shape=table.rows.shape,
        files={name: hash_file(folder / name) for name in (ROWS, RECORDING)},
        recordings=entries,
        failed=(),
    )


def _labels(table: FeatureTable) -> list[tuple[str, ...]]:
    if table.multi_label:
        return [
            tuple(name for name, has in zip(table.label_names, row, strict=True) if has)
            for row in table.labels
        ]
    return [(table.label_names[int(label)],) for label in table.labels]
