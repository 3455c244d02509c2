"""Measures of classification and calibration. Pure: arrays in, floats out.

Conventions: `probabilities` is (n, k) with rows summing to 1, `labels` (n,) integers below k.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def accuracy(probabilities: Floats, labels: Labels) -> float:
    """Return the share of rows whose largest probability is the label's."""
    return float((probabilities.argmax(1) == labels).mean())


def balanced_accuracy(probabilities: Floats, labels: Labels) -> float:
    """Return the mean over the labels that occur of their recall."""
    right = probabilities.argmax(1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def log_loss(probabilities: Floats, labels: Labels) -> float:
    """Return the mean negative log-probability of the label, in nats."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def calibration_error(probabilities: Floats, labels: Labels, bins: int = 10) -> float:
    """Return the expected calibration error of the top answer, bins of equal counts.

    The mean over bins, weighted by their counts, of |accuracy - mean confidence|.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(p) * abs(right[p].mean() - confidence[p].mean()) for p in parts]
    return float(sum(gaps) / len(labels))


def wilson_interval(right: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a share (95 % by default); counts need not be whole."""
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def lower_bound(right: float, total: float, confidence: float) -> float:
    """Return the one-sided Clopper-Pearson bound: the share is above it with `confidence`.

    Counts need not be whole: with weighted rows, give the effective ones.
    """
    if right <= 0:
        return 0.0
    return float(stats.beta.ppf(1 - confidence, right, total - right + 1))
