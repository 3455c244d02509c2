"""Answers for recordings, and what they are worth: every figure that a report shows.

Conventions: `Answers.probabilities` (r, k) are of recordings, pooled over their windows; for tags
each is by itself, else rows sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from reclass_plex.evidence import pool_windows
from reclass_plex.training import metrics
from reclass_plex.training.fit import fit_temperature, log_softmax, softmax
from reclass_plex.training.metrics import Floats, Labels


@dataclass(frozen=True)
class Calibration:
    """What turns logits of windows into probabilities of recordings.

    A window's logits are divided by `temperature`; the pooled logarithms of several windows are
    multiplied by `sharpness`, as `evidence.pool_windows` has it.
    """

    temperature: float = 1.0
    sharpness: float = 1.0


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said about recordings. `fold` (r,) tells which fold's model did."""

    keys: tuple[str, ...]
    label_names: tuple[str, ...]
    labels: npt.NDArray[Any]  # (r,) int64, or (r, k) bool
    probabilities: Floats
    groups: tuple[str | None, ...]
    fold: Labels

    @property
    def multi_label(self) -> bool:
        """Whether the labels are tags."""
        return self.labels.ndim == 2

    @property
    def group_numbers(self) -> Labels:
        """(r,): one number a group; a recording without one is a group of its own."""
        known: dict[tuple[bool, str], int] = {}
        names = [
            (group is not None, key if group is None else group)
            for group, key in zip(self.groups, self.keys, strict=True)
        ]
        return np.array([known.setdefault(name, len(known)) for name in names], np.int64)


def calibrate(logits: Floats, labels: npt.NDArray[Any], recording: Labels) -> Calibration:
    """Fit temperature and sharpness on held-out windows; recordings count alike.

    `labels` are those of the recordings, which `recording` (n,) numbers from 0.
    """
    counts = np.bincount(recording)
    weights = 1 / counts[recording]
    if labels.ndim == 2:
        return Calibration(_tag_temperature(logits, labels[recording], weights))
    temperature = fit_temperature(logits, labels[recording], weights)
    if counts.max() == 1:
        return Calibration(temperature)
    logs = np.zeros((len(counts), logits.shape[1]))
    np.add.at(logs, recording, log_softmax(logits / temperature))
    logs /= counts[:, None]
    several = counts > 1
    return Calibration(temperature, 1 / fit_temperature(logs[several], labels[several]))


def _tag_temperature(logits: Floats, truth: Floats, weights: Floats) -> float:
    def loss(log_t: float) -> float:
        z = logits / math.exp(log_t)
        each = np.logaddexp(0, z) - truth * z
        return float(weights @ each.mean(1))

    return math.exp(float(minimize_scalar(loss, bounds=(-2.5, 2.5), method="bounded").x))


def pool(logits: Floats, recording: Labels, calibration: Calibration, tags: bool) -> Floats:
    """Return (r, k), the probabilities of recordings, from the logits (n, k) of their windows."""
    order = np.argsort(recording, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(recording[order])) + 1)
    scaled = logits / calibration.temperature
    if tags:
        means = np.stack([scaled[part].mean(0) for part in parts])
        result: Floats = 1 / (1 + np.exp(-means))
        return result
    windows = torch.from_numpy(softmax(scaled))
    return np.stack([pool_windows(windows[part], calibration.sharpness) for part in parts])


def judge(answers: Answers, repeats: int = 1000) -> dict[str, Any]:
    """Return every figure, ready for JSON: single labels or tags, 95 % bootstrap intervals."""
    common = {
        "recordings": len(answers.keys),
        "groups": len(np.unique(answers.group_numbers)),
        "multi_label": answers.multi_label,
    }
    figures = _judge_tags(answers, repeats) if answers.multi_label else _judge(answers, repeats)
    return common | figures


def _measured(value: float, interval: tuple[float, float]) -> dict[str, float | None]:
    low, high = interval
    return {"value": _finite(value), "low": _finite(low), "high": _finite(high)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _judge(answers: Answers, repeats: int) -> dict[str, Any]:
    p, labels, groups = answers.probabilities, answers.labels, answers.group_numbers
    right = (p.argmax(1) == labels).astype(np.float64)
    matrix = metrics.confusion_matrix(p, labels)
    each = metrics.class_scores(matrix)

    def interval(statistic: Any) -> tuple[float, float]:  # noqa: ANN401 (rows -> float)
        return metrics.bootstrap_interval(statistic, groups, repeats=repeats)

    return {
        "accuracy": _measured(right.mean(), interval(lambda rows: right[rows].mean())),
        "macro_f1": _measured(
            metrics.macro_f1(p, labels),
            interval(lambda rows: metrics.macro_f1(p[rows], labels[rows])),
        ),
        "top3": metrics.top_accuracy(p, labels, 3),
        "balanced_accuracy": metrics.balanced_accuracy(p, labels),
        "majority_accuracy": float(np.bincount(labels).max() / len(labels)),
        "log_loss": metrics.log_loss(p, labels),
        "calibration_error": metrics.calibration_error(p, labels),
        "folds": {
            str(fold): float(right[answers.fold == fold].mean()) for fold in np.unique(answers.fold)
        },
        "labels": [
            {
                "label": name,
                "precision": float(each.precision[i]),
                "recall": float(each.recall[i]),
                "f1": float(each.f1[i]),
                "recordings": int(each.support[i]),
            }
            for i, name in enumerate(answers.label_names)
        ],
        "confusion": matrix.tolist(),
    }


def _judge_tags(answers: Answers, repeats: int) -> dict[str, Any]:
    p, truth, groups = answers.probabilities, answers.labels, answers.group_numbers
    area, precision = metrics.roc_auc(p, truth), metrics.average_precision(p, truth)

    def interval(of_each: Any) -> tuple[float, float]:  # noqa: ANN401 (scores, truth -> (k,))
        return metrics.bootstrap_interval(
            lambda rows: metrics.mean_over_tags(of_each(p[rows], truth[rows])),
            groups,
            repeats=min(repeats, 200),  # each takes as long as hundreds of accuracies
        )

    return {
        "roc_auc": _measured(metrics.mean_over_tags(area), interval(metrics.roc_auc)),
        "mean_average_precision": _measured(
            metrics.mean_over_tags(precision), interval(metrics.average_precision)
        ),
        "calibration_error": metrics.tag_calibration_error(p, truth),
        "labels": [
            {
                "label": name,
                "roc_auc": _finite(area[i]),
                "average_precision": _finite(precision[i]),
                "recordings": int(truth[:, i].sum()),
            }
            for i, name in enumerate(answers.label_names)
        ],
    }


def headline(figures: Mapping[str, Any]) -> str:
    """Return the figures in one line for people."""
    names = (
        ("ROC-AUC", "roc_auc"), ("mAP", "mean_average_precision"), ("accuracy", "accuracy"),
        ("macro-F1", "macro_f1"),
    )  # fmt: skip
    parts = []
    for shown, name in names:
        if (one := figures.get(name)) and one["value"] is not None:
            parts.append(f"{shown} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})")
    parts.append(f"calibration error {figures['calibration_error']:.3f}")
    return ", ".join(parts)
