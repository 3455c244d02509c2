"""A collection's audio to features on disk, in steps that survive anything.

    OUT/fma/manifest.json   what was computed, from what, by which versions; who failed and why
    OUT/fma/rows.npy        (n, dims) or (n, layers, dims), to be mapped into memory; or
    OUT/fma/rows.packed     the same in float16 where memory holds them (`extraction_packed`)
    OUT/fma/recording.npy   (n,) int64, each row's place in the manifest's `recordings`
    OUT/fma/.parts/         the work while it is not finished (`extraction_parts`)

An extraction that was interrupted, in whatever way, goes on where it stopped and ends in the same
bytes. What is begun belongs to one plan: collection, options and versions. With another plan it is
refused, never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from reclass_plex.errors import ConfigError, Unreadable, printable
from reclass_plex.files import naming_errors
from reclass_plex.models.catalogue import Record
from reclass_plex.models.installed import hash_file
from reclass_plex.records import Excerpt
from reclass_plex.training.datasets.collection import Collection, Split
from reclass_plex.training.extraction_packed import read_packed
from reclass_plex.training.extraction_sets import Dtype, FeatureSet, Precision
from reclass_plex.training.table import LONG_ROW, FeatureTable

MANIFEST, ROWS, RECORDING = "manifest.json", "rows.npy", "recording.npy"
PACKED = "rows.packed"
WORK = ".parts"


class Plan(Record):
    """Everything that decides about the rows' bits. `recordings` is a digest of what is listed."""

    version: int = 1
    collection: str
    recordings: str
    features: str
    table_name: str
    excerpt: str
    rate: int | Literal["native"]
    window_seconds: float
    layers: tuple[int, ...]
    dtype: Dtype
    device: str
    precision: Precision
    versions: dict[str, str]


class Entry(Record):
    """A recording that has rows. `audio` is the digest of its compressed audio."""

    key: str
    labels: tuple[str, ...]
    group: str | None
    split: Split | None
    audio: str
    rows: int


class Failed(Record):
    """A recording that was left out."""

    key: str
    kind: str
    reason: str


class Manifest(Record):
    """What lies in a folder of features. `files` are SHA-256 digests."""

    plan: Plan
    labels: tuple[str, ...]
    multi_label: bool
    groups_are_artists: bool
    licence: str
    shape: tuple[int, ...]
    files: dict[str, str]
    recordings: tuple[Entry, ...]
    failed: tuple[Failed, ...]


def make_plan(collection: Collection, features: FeatureSet, excerpt: Excerpt) -> Plan:
    """Return what decides about the rows of a set."""
    listed = [(r.key, r.labels, r.group, r.split) for r in collection.recordings]
    told = json.dumps([collection.labels, listed]).encode()
    return Plan(
        collection=collection.name,
        recordings=hashlib.sha256(told).hexdigest(),
        features=features.name,
        table_name=features.table_name,
        excerpt=excerpt.name,
        rate=features.rate,
        window_seconds=features.window_seconds,
        layers=features.layers,
        dtype=features.dtype,
        device=features.device,
        precision=features.precision,
        versions=dict(features.versions),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of finished features. Raises ConfigError or FileError."""
    path = folder / MANIFEST
    if not path.exists():
        if (folder / WORK).is_dir():
            reason = "the extraction is not finished: give the same command again"
        elif found := sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}")):
            reason = f"has no {MANIFEST}; name one of the folders in it: {', '.join(found)}"
        else:
            reason = f"has no {MANIFEST}: it is no folder that reclass-plex extract wrote"
        raise ConfigError(f"{printable(folder)}: {reason}")
    try:
        with naming_errors(path, writing=False):
            return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = f"is damaged ({error.error_count()} faults); extract again with --restart"
        raise Unreadable(path, reason) from None


def differences(before: Plan, now: Plan) -> Iterator[str]:
    """Yield in words what is not the same in two plans."""
    for name, was in before:
        is_now = getattr(now, name)
        if was == is_now:
            continue
        if name == "recordings":
            yield "the collection's recordings, labels, groups or splits have changed since"
        elif name == "versions":
            for part in sorted(was.keys() | is_now.keys()):
                old, new = was.get(part, "not there"), is_now.get(part, "not there")
                if old != new:
                    yield f"{part} was {old:.16}, is {new:.16}"
        else:
            yield f"{name} was {was}, is {is_now}"


def rows_file(plan: Plan, shape: tuple[int, ...]) -> str:
    """Return the name of the file that holds rows of this shape (n, ...)."""
    return PACKED if plan.dtype == "float16" and shape[-1] < LONG_ROW else ROWS


def check_digests(folder: Path, manifest: Manifest) -> None:
    """Read the finished files whole. Raises Unreadable if one is not as it was written."""
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.exists():
            raise Unreadable(path, "is missing; extract again with --restart")
        with naming_errors(path, writing=False):
            found = hash_file(path)
        if found != digest:
            raise Unreadable(path, "is damaged; extract again with --restart")


def read_table(folder: Path) -> FeatureTable:
    """Return finished features as a table. Raises ConfigError or FileError, naming the folder.

    Rows in float32 are mapped, not read; those in float16 are unpacked into memory, but for rows
    so long that it would be filled: they are mapped as they are.
    """
    manifest = read_manifest(folder)
    plan = manifest.plan
    rows: npt.NDArray[Any]
    if PACKED in manifest.files:
        rows = read_packed(folder / PACKED, manifest.shape)
    else:
        rows = _map(folder / ROWS)
        if rows.shape != manifest.shape or rows.dtype != plan.dtype:
            raise Unreadable(folder / ROWS, f"is not what {MANIFEST} says; extract with --restart")
    recording = _map(folder / RECORDING)
    if len(recording) != len(rows):
        raise Unreadable(folder / RECORDING, f"is not what {MANIFEST} says; extract with --restart")
    entries = manifest.recordings
    place = {label: number for number, label in enumerate(manifest.labels)}
    labels: npt.NDArray[np.int64] | npt.NDArray[np.bool_]
    if manifest.multi_label:
        labels = np.zeros((len(entries), len(place)), np.bool_)
        for number, entry in enumerate(entries):
            labels[number, [place[label] for label in entry.labels]] = True
    else:
        labels = np.array([place[entry.labels[0]] for entry in entries], np.int64)
    return FeatureTable(
        name=plan.table_name,
        rows=rows,
        recording=np.asarray(recording),
        keys=tuple(entry.key for entry in entries),
        labels=labels,
        label_names=manifest.labels,
        groups=tuple(entry.group for entry in entries),
        splits=tuple(entry.split for entry in entries),
        excerpt=plan.excerpt,
        rate=plan.rate,
        window_seconds=plan.window_seconds,
        layers=plan.layers,
        collection=plan.collection,
        licence=manifest.licence,
        groups_are_artists=manifest.groups_are_artists,
        versions=plan.versions,
    )


def _map(path: Path) -> npt.NDArray[Any]:
    try:
        with naming_errors(path, writing=False):
            mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise Unreadable(path, f"is damaged: {error}; extract again with --restart") from None
    return mapped
