"""A trained model asked about a table: a run's folder, or any head's.

Recordings, and groups, that the model was trained on are found where the run says who they were.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reclass_plex.encoders import Readout
from reclass_plex.errors import ConfigError, ModelError, printable
from reclass_plex.files import naming_errors
from reclass_plex.genres import genre_key
from reclass_plex.heads import CARD, TENSORS, TREES, Head, load_card, load_head
from reclass_plex.models import load_tensors
from reclass_plex.training.approaches.base import Model, State
from reclass_plex.training.checkpoints import (
    load_state,
    require_empty,
    restore_model,
    write_json,
)
from reclass_plex.training.judging import Answers, Calibration, judge, pool
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.run_outputs import (
    METRICS,
    PREDICTIONS,
    RECORDINGS,
    TAGGER,
    write_predictions,
)
from reclass_plex.training.splits import LEAK
from reclass_plex.training.table import FeatureTable, Rows, check_finite, rows_at_once
from reclass_plex.training.tagger_card import load_tagger_card


@dataclass(frozen=True, eq=False)
class Trained:
    """A model as it answers: `logits` turns rows into (n, k), calibrated but for the pooling."""

    folder: Path
    name: str
    features: str
    dims: int
    layers: tuple[int, ...]
    label_names: tuple[str, ...]
    multi_label: bool
    calibration: Calibration
    logits: Callable[[Rows], Floats]


def load_trained(folder: Path) -> Trained:
    """Load a run or a head. Raises ModelError or FileError, naming the folder."""
    if not (folder / CARD).exists() and not (folder / TAGGER).exists():
        raise ModelError(f"{printable(folder)}: holds no model: neither {CARD} nor {TAGGER}")
    if (folder / TAGGER).exists():
        return _load_tagger(folder)
    head = load_head(folder)
    card = head.card
    return Trained(
        folder,
        card.name,
        card.features,
        card.dims,
        card.readout.layers if card.readout is not None else (),
        card.genres,
        False,
        Calibration(1.0, card.sharpness),
        lambda rows: _log_probabilities(head, rows),
    )


def _load_tagger(folder: Path) -> Trained:
    kept = load_state(folder / TAGGER)
    if kept is None:
        raise ModelError(f"{printable(folder / TAGGER)}: is missing")
    facts = kept.facts
    model = restore_model(State(kept.tensors, facts["model"]))
    card = load_tagger_card(folder)
    return Trained(
        folder, folder.name if card is None else card.name, facts["features"], facts["dims"],
        tuple(facts["layers"]), tuple(facts["label_names"]), True,
        Calibration(facts["temperature"]), model.logits,
    )  # fmt: skip


def load_model(folder: Path) -> Model:
    """Return a run's own model, of labels or of tags. Raises ModelError or FileError."""
    if (kept := load_state(folder / TAGGER)) is not None:
        return restore_model(State(kept.tensors, kept.facts["model"]))
    card = load_card(folder)
    if card.kind == "tags":
        raise ConfigError(f"{printable(folder)}: is a shipped head of tags, not a training run")
    trees = None
    if card.kind == "xgboost":
        with naming_errors(folder / TREES, writing=False):
            trees = (folder / TREES).read_text(encoding="utf-8")
    layers = card.readout.layers if card.readout is not None else ()
    weights = card.readout.weights if card.readout is not None else ()
    return Model(
        card.kind, load_tensors(folder / TENSORS), card.hidden, card.limit,
        weights or (1.0,) * len(layers), trees, card.network,
    )  # fmt: skip


def _log_probabilities(head: Head, rows: Rows) -> Floats:
    parts = []
    readout = head.card.readout or Readout()
    step = rows_at_once(rows)
    for start in range(0, len(rows), step):
        x = torch.from_numpy(np.array(rows[start : start + step], np.float32))
        if x.ndim == 3:
            x = readout.combine(x, readout.layers)
        parts.append(head.predict(x).double().clamp(min=1e-12).log().numpy())
    return np.concatenate(parts)


def evaluate_model(
    trained: Trained, table: FeatureTable, split: str | None = None
) -> tuple[Answers, dict[str, Any]]:
    """Return a model's answers on a table, perhaps on one split of it, and all figures.

    Raises ConfigError if the table's features or labels do not fit the model.
    """
    _check_features(trained, table)
    check_finite(table)
    chosen = np.arange(len(table))
    warnings = []
    if split is not None:
        chosen = np.array([i for i in chosen if table.splits[i] == split], np.int64)
        if not len(chosen):
            raise ConfigError(f"--split {split}: no recording of the table is in it")
    labels, chosen, unknown = _labels(trained, table, chosen)
    if not len(chosen):
        raise ConfigError(
            f"{trained.name}: knows none of the labels of the {unknown} recordings"
            f" {'of the table' if split is None else f'in --split {split}'}: nothing to compare"
        )
    if unknown:
        warnings.append(
            f"{unknown} recordings have only labels that {trained.name} does not know; left out"
        )
    warnings += _seen(trained, table, chosen)
    order, owner = _windows(table, chosen)
    logits = trained.logits(_columns(trained, table)(order))
    probabilities = pool(logits, owner, trained.calibration, trained.multi_label)
    answers = Answers(
        tuple(table.keys[i] for i in chosen),
        trained.label_names,
        labels,
        probabilities,
        tuple(table.groups[i] for i in chosen),
        np.ones(len(chosen), np.int64),
    )
    protocol = f"{trained.name} asked about {table.collection or table.name}"
    figures = judge(answers) | {"protocol": protocol, "warnings": warnings}
    return answers, figures


def write_evaluation(folder: Path, answers: Answers, figures: dict[str, Any]) -> None:
    """Write figures, predictions (as `compare` reads them) and the report. Raises FileError."""
    from reclass_plex.training.report import write_report

    require_empty(folder)
    write_predictions(folder / PREDICTIONS, answers)
    write_json(folder / METRICS, figures)
    write_report(folder)


def _check_features(trained: Trained, table: FeatureTable) -> None:
    if table.name != trained.features or table.dims != trained.dims:
        raise ConfigError(
            f"{printable(trained.folder)}: hears {trained.features} ({trained.dims} numbers), but"
            f" the table has {table.name} ({table.dims})"
        )
    if missing := set(trained.layers) - set(table.layers):
        raise ConfigError(
            f"{printable(trained.folder)}: reads the layers {trained.layers}; the table lacks"
            f" {sorted(missing)}"
        )


def _columns(trained: Trained, table: FeatureTable) -> Callable[[Labels], Rows]:
    if not table.layers or not trained.layers:
        return lambda order: np.asarray(table.rows[order])
    wanted = [table.layers.index(layer) for layer in trained.layers]
    return lambda order: np.asarray(table.rows[order][:, wanted])


def _labels(trained: Trained, table: FeatureTable, chosen: Labels) -> tuple[Any, Labels, int]:
    """Return the labels by the model's names, who has any, and how many have none."""
    known = {genre_key(name): i for i, name in enumerate(trained.label_names)}
    place = [known.get(genre_key(name), -1) for name in table.label_names]
    if max(place) < 0:
        raise ConfigError(
            f"{trained.name} knows {', '.join(trained.label_names)}; the table has"
            f" {', '.join(table.label_names)}: nothing to compare"
        )
    if trained.multi_label != table.multi_label:
        raise ConfigError(f"{trained.name}: of model and table only one has several labels at once")
    if not table.multi_label:
        mapped = np.array(place)[table.labels[chosen]]
        keep = mapped >= 0
        return mapped[keep], chosen[keep], int((~keep).sum())
    truth = np.zeros((len(chosen), len(trained.label_names)), np.bool_)
    for column, target in enumerate(place):
        if target >= 0:
            truth[:, target] |= table.labels[chosen, column]
    return truth, chosen, 0


def _windows(table: FeatureTable, chosen: Labels) -> tuple[Labels, Labels]:
    """Return the rows of the chosen recordings, and for each whose it is, from 0."""
    position = np.full(len(table), -1)
    position[chosen] = np.arange(len(chosen))
    rows = np.flatnonzero(position[table.recording] >= 0)
    return rows, position[table.recording[rows]]


def _seen(trained: Trained, table: FeatureTable, chosen: Labels) -> list[str]:
    path = trained.folder / RECORDINGS
    if not path.exists():
        return [f"{LEAK}: the model does not say what it was trained on"]
    with naming_errors(path, writing=False), path.open(encoding="utf-8", newline="") as file:
        learned = [line for line in csv.DictReader(file) if line["role"] in {"trained", "tuned"}]
    keys, groups = {line["key"] for line in learned}, {line["group"] for line in learned} - {""}
    warnings = []
    if same := sum(table.keys[i] in keys for i in chosen):
        warnings.append(f"TRAINED ON: {same} of {len(chosen)} recordings were in its training")
    if shared := sum(table.groups[i] in groups for i in chosen):
        warnings.append(f"{LEAK}: {shared} of {len(chosen)} are of groups in its training")
    if all(table.groups[i] is None for i in chosen):
        warnings.append(f"{LEAK}: the table does not know whose recordings these are")
    return warnings
