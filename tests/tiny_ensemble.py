"""Tiny published models on a local server, and an ensemble of one's own that votes with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from model_server import ModelServer

from reclass_plex.encoders import Readout
from reclass_plex.heads import Head, ModelCard
from reclass_plex.models import DATA, write_sums
from reclass_plex.models.catalogue import OWN_CATALOGUE, Model, PublishedFile, find_in_catalogue
from reclass_plex.profiles import (
    HEADS,
    SPEC,
    EnsembleSpec,
    StageSpec,
    ensemble_folder,
    load_ensemble,
)

GENRES = (
    "Blues",
    "Classical",
    "Country",
    "Disco",
    "Hip-Hop",
    "Jazz",
    "Metal",
    "Pop",
    "Reggae",
    "Rock",
)


def publish(name: str, files: Path, server: ModelServer, models: Path) -> Model:
    """Serve the tiny model in `files` as the one of that name, and make it the one to fetch."""
    real = find_in_catalogue(name, models)
    described = []
    for path in sorted(path for path in files.iterdir() if path.is_file()):
        content = path.read_bytes()
        server.add(real.repository, real.revision, path.name, content)
        digest = hashlib.sha256(content).hexdigest()
        size = len(content)
        described.append(PublishedFile(name=path.name, about=size, size=size, sha256=digest))
    own = real.model_copy(update={"files": tuple(described), "mark": None})
    models.mkdir(parents=True, exist_ok=True)
    path = models / OWN_CATALOGUE
    others = json.loads(path.read_text())["models"] if path.exists() else []
    path.write_text(json.dumps({"models": [*others, own.model_dump(mode="json")]}))
    return own


def make_head(
    name: str, features: str, dims: int, readout: Readout | None, seed: int = 0, **changes: Any
) -> Head:
    """Return a logistic head with random weights."""
    card = ModelCard(
        name=name, kind="logistic", taxonomy="gtzan", genres=GENRES, features=features, dims=dims,
        readout=readout, excerpt="middle30", rate=24_000, window_seconds=5.0, training_data="none",
        licence="MIT", split="none", measured=(), rests_on=dict.fromkeys(GENRES, "nothing"),
        date="2026-11-22", command="tests",
    ).model_copy(update=changes)  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "mean": torch.zeros(dims),
        "deviation": torch.ones(dims),
        "weight": torch.randn((dims, len(GENRES)), generator=generator),
        "bias": torch.zeros(len(GENRES)),
    }
    return Head(card, tensors)


def make_stage(name: str, features: str, head: str, weights: Sequence[float]) -> StageSpec:
    """Return a stage that never decides early."""
    return StageSpec(
        name=name, head=head, features=features, rate=24_000, windows=6, window_seconds=5.0,
        sharpness=1.2, weights=tuple(weights), exits={},
    )  # fmt: skip


def install_ensemble(
    models: Path, profile: str, heads: Sequence[Head], stages: Sequence[StageSpec]
) -> EnsembleSpec:
    """Install a profile for gtzan: the package's `musicnn-few`, without exit, then `stages`."""
    first = load_ensemble("gtzan").stages[0].model_copy(update={"exits": {}})
    folder = ensemble_folder("gtzan", profile, models)
    for head in heads:
        head.save(folder / HEADS / head.card.name)
    spec = EnsembleSpec(
        taxonomy="gtzan", genres=GENRES, stages=(first, *stages), protocol="none: tests"
    )
    (folder / SPEC).write_text(spec.model_dump_json(indent=2), encoding="utf-8")
    write_sums(folder)
    assert (DATA / HEADS / first.head).is_dir()
    return spec
