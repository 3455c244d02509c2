"""What a model looks at: three measures of how much a feature matters.

- Permutation (Breiman, 2001): features of a group are exchanged between recordings that the model
  did not learn from; how much worse it gets is what the group is worth to it beyond all others.
  Groups that say the same hide each other.
- Gain: by how much the splits on a column lowered the loss in training; of boosted trees only.
- SHAP (Lundberg and Lee, 2017): how far a column moves the answers on average, of trees and of
  linear heads. The `shap` package computes it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reclass_plex.errors import ConfigError
from reclass_plex.heads import normal_scores
from reclass_plex.training import metrics
from reclass_plex.training.approaches.base import Model
from reclass_plex.training.columns import Grouping
from reclass_plex.training.judging import Calibration, pool
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.table import Rows

BACKGROUND = 100  # rows that stand for "not known" in SHAP of linear heads


@dataclass(frozen=True, eq=False)
class Asked:
    """Windows (n, ...) of r recordings that a model did not learn from.

    `owner` (n,) numbers them from 0, `labels` (r,) or (r, k) are true, `groups` (r,) as in
    `metrics.bootstrap_interval`.
    """

    rows: Rows
    owner: Labels
    labels: npt.NDArray[Any]
    groups: Labels


@dataclass(frozen=True)
class Effect:
    """What a group of columns is worth: how much worse the answers are without it.

    `loss` in nats a recording (of tags, the mean over the tags), `accuracy` as a share, None for
    tags. Each with its 95 % interval, by bootstrap over artists.
    """

    by: str
    group: str
    columns: int
    loss: float
    loss_low: float
    loss_high: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None


def measure_groups(
    models: Sequence[tuple[Model, Asked]],
    groupings: Sequence[Grouping],
    calibration: Calibration,
    *,
    repeats: int,
    seed: int,
    step: Callable[[], None],
) -> list[Effect]:
    """Return the effect of every group, pooled over `models`, each with those it is asked about.

    `step` is called once a model and group.
    """
    before = [_scores(model, asked, asked.rows, calibration) for model, asked in models]
    groups = np.concatenate([asked.groups for _, asked in models])
    effects = []
    for grouping in groupings:
        for name, places in grouping.groups.items():
            losses, rights = [], []
            for number, (model, asked) in enumerate(models):
                generator = np.random.default_rng([seed, number])  # the same donors for all groups
                after = [
                    _scores(
                        model, asked, _exchanged(asked, grouping.by, places, generator), calibration
                    )
                    for _ in range(repeats)
                ]
                losses.append(np.mean([loss for loss, _ in after], 0) - before[number][0])
                rights.append(before[number][1] - np.mean([right for _, right in after], 0))
                step()
            loss, right = np.concatenate(losses), np.concatenate(rights)
            tags = models[0][1].labels.ndim == 2
            drop = (None, None, None) if tags else _interval(right, groups)
            effects.append(Effect(grouping.by, name, len(places), *_interval(loss, groups), *drop))
    return effects


def _interval(values: Floats, groups: Labels) -> tuple[float, float, float]:
    low, high = metrics.bootstrap_interval(lambda rows: float(values[rows].mean()), groups)
    return float(values.mean()), low, high


def _exchanged(asked: Asked, by: str, places: Labels, generator: np.random.Generator) -> Rows:
    """Return the rows with a group's columns (or layers) taken from other recordings' windows."""
    recordings = int(asked.owner.max()) + 1
    donor = generator.permutation(recordings)
    order = np.argsort(asked.owner, kind="stable")
    counts = np.bincount(asked.owner)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    source = np.empty(len(asked.rows), np.int64)
    for recording, giver in enumerate(donor):
        own = order[starts[recording] : starts[recording] + counts[recording]]
        given = order[starts[giver] : starts[giver] + counts[giver]]
        source[own] = given[np.arange(len(own)) % len(given)]
    rows: Rows = asked.rows.copy()
    rows[:, places] = asked.rows[source][:, places]  # axis 1: columns, or the layers of a row
    return rows


def _scores(
    model: Model, asked: Asked, rows: Rows, calibration: Calibration
) -> tuple[Floats, Floats]:
    """Return each recording's loss in nats, and whether its answer is right (of tags, zeros)."""
    tags = asked.labels.ndim == 2
    p = pool(model.logits(rows), asked.owner, calibration, tags)
    if tags:
        said = np.where(asked.labels, p, 1 - p)
        return -np.log(np.maximum(said, 1e-12)).mean(1), np.zeros(len(p))
    chosen = p[np.arange(len(p)), asked.labels]
    right = (p.argmax(1) == asked.labels).astype(np.float64)
    return -np.log(np.maximum(chosen, 1e-12)), right


def gain(model: Model, dims: int) -> Floats | None:
    """Return each column's share (d,) of all gain; None unless the model is of trees alone."""
    if model.trees is None or _begins_elsewhere(model):
        return None
    trees = json.loads(model.trees)["learner"]["gradient_booster"]["model"]["trees"]
    total = np.zeros(dims)
    for tree in trees:
        inner = np.array(tree["left_children"]) >= 0
        columns = np.array(tree["split_indices"])[inner]
        np.add.at(total, columns, np.array(tree["loss_changes"], np.float64)[inner])
    shares: Floats = total / max(float(total.sum()), 1e-30)
    return shares


def _begins_elsewhere(model: Model) -> bool:
    return "centres" in model.tensors  # what trees add to it says little of what tells labels


def shap_values(model: Model, rows: Rows, background: Rows) -> Floats | None:
    """Return the mean absolute SHAP value (d, k) of each column for each label, in logits.

    None of networks with inner layers, nor of trees that begin at one. Layers of a row are combined
    as the model does. Raises ConfigError if the package is not there.
    """
    if _begins_elsewhere(model) or (model.trees is None and model.kind != "logistic"):
        return None
    shap = _import_shap()
    x, known = _combined(model, rows), _combined(model, background[:BACKGROUND])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about each other
        if model.trees is not None:
            import xgboost

            booster = xgboost.Booster()
            booster.load_model(bytearray(model.trees, "utf-8"))
            values = np.asarray(shap.TreeExplainer(booster).shap_values(x.numpy()))
        else:
            weight, bias = model.tensors["weight"].numpy(), model.tensors["bias"].numpy()
            masker = shap.maskers.Independent(_entered(model, known), max_samples=BACKGROUND)
            explainer = shap.LinearExplainer((weight.T, bias), masker)
            values = np.asarray(explainer.shap_values(_entered(model, x)))
    found: Floats = np.abs(values.reshape(len(rows), x.shape[1], -1)).mean(0).astype(np.float64)
    return found


def _combined(model: Model, rows: Rows) -> torch.Tensor:
    x = torch.from_numpy(np.array(rows, np.float32))
    if model.layer_weights:
        x = (x * x.new_tensor(model.layer_weights)[:, None]).sum(1)
    return x


def _entered(model: Model, x: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return what the linear part reads: each column by itself, so columns stay columns."""
    if "quantiles" in model.tensors:
        x = normal_scores(x, model.tensors["quantiles"])
    z = (x - model.tensors["mean"]) / model.tensors["deviation"]
    if model.limit is not None:
        z = z.clamp(-model.limit, model.limit)
    entered: npt.NDArray[np.float32] = z.numpy()
    return entered


def _import_shap() -> Any:  # noqa: ANN401 (shap has no types)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import shap
    except ImportError as error:
        raise ConfigError(f"SHAP: {error}: pip install 'reclass-plex[train]'") from error
    return shap
