"""Measures of classification and calibration. Pure: arrays in, floats out.

Conventions: `probabilities` is (n, k) with rows summing to 1, `labels` (n,) integers below k. For
tags, several labels at once, `scores` is (n, k) in any unit and `truth` (n, k) bool. `groups` (n,)
are integers: rows of one group, as of one artist, resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Truth = npt.NDArray[np.bool_]


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


# --- one label


def confusion_matrix(probabilities: Floats, labels: Labels) -> Labels:
    """Return counts (k, k): rows are the true labels, columns the answers."""
    k = probabilities.shape[1]
    return np.bincount(k * labels + probabilities.argmax(1), minlength=k * k).reshape(k, k)


@dataclass(frozen=True)
class ClassScores:
    """Of each label, (k,): precision, recall, F1 (0 where undefined), and how often it occurs."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Labels


def class_scores(matrix: Labels) -> ClassScores:
    """Return each label's precision, recall and F1 from a confusion matrix (k, k)."""
    hits = matrix.diagonal().astype(np.float64)
    answered, support = matrix.sum(0), matrix.sum(1)
    return ClassScores(
        hits / np.maximum(answered, 1),
        hits / np.maximum(support, 1),
        2 * hits / np.maximum(answered + support, 1),
        support,
    )


def macro_f1(probabilities: Floats, labels: Labels) -> float:
    """Return the mean F1 over the labels that occur, as truth or as answer."""
    matrix = confusion_matrix(probabilities, labels)
    seen = (matrix.sum(0) + matrix.sum(1)) > 0
    return float(class_scores(matrix).f1[seen].mean())


def top_accuracy(probabilities: Floats, labels: Labels, top: int = 3) -> float:
    """Return the share of rows whose label is among the `top` likeliest; ties go against it."""
    rows = np.arange(len(labels))
    ahead = (probabilities >= probabilities[rows, labels][:, None]).sum(1) - 1
    return float((ahead < top).mean())


# --- tags


def roc_auc(scores: Floats, truth: Truth) -> Floats:
    """Return (k,) areas under the ROC curves; NaN for a tag that all rows have, or none.

    The probability that a row with the tag scores higher than one without, ties counting half.
    """
    ranks = stats.rankdata(scores, axis=0)
    with_tag = truth.sum(0).astype(np.float64)
    pairs = with_tag * (len(truth) - with_tag)
    above = (ranks * truth).sum(0) - with_tag * (with_tag + 1) / 2
    result: Floats = np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)
    return result


def average_precision(scores: Floats, truth: Truth) -> Floats:
    """Return (k,) average precisions, sum over thresholds of (R_i - R_i-1) P_i; NaN without rows.

    Rows of equal score enter together. (Not interpolated.)
    """
    return np.array([_average_precision(scores[:, i], truth[:, i]) for i in range(truth.shape[1])])


def _average_precision(scores: Floats, truth: Truth) -> float:
    if not truth.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last row of each tie
    hits = np.cumsum(truth[order])[ends]
    recall = hits / hits[-1]
    return float(np.diff(recall, prepend=0.0) @ (hits / (ends + 1)))


def mean_over_tags(values: Floats) -> float:
    """Return the mean of the tags that could be measured; NaN if none could."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def tag_calibration_error(probabilities: Floats, truth: Truth, bins: int = 10) -> float:
    """Return the expected calibration error of all single answers, bins of equal counts."""
    said, true = probabilities.ravel(), truth.ravel()
    parts = [p for p in np.array_split(np.argsort(said, kind="stable"), bins) if len(p)]
    return float(sum(len(p) * abs(true[p].mean() - said[p].mean()) for p in parts) / len(said))


# --- how sure, and against whom


def bootstrap_interval(
    statistic: Callable[[Labels], float],
    groups: Labels,
    *,
    repeats: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of `statistic`, a function of row numbers.

    Whole groups are drawn with replacement: songs of one artist are not independent (cluster
    bootstrap; Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, 3.8).
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    values = np.empty(repeats)
    for i in range(repeats):
        drawn = generator.integers(0, len(parts), len(parts))
        values[i] = statistic(np.concatenate([parts[j] for j in drawn]))
    half = (1 - confidence) / 2
    low, high = np.nanquantile(values, [half, 1 - half])
    return float(low), float(high)


@dataclass(frozen=True)
class McNemar:
    """Two models on the same rows: how many only one has right, and how likely that is by chance.

    `exact` is the two-sided binomial p-value, `mid` the less cautious mid-p (Fagerland, Lydersen
    and Laake, *The McNemar test for binary matched-pairs data*, 2013, who recommend it).
    """

    only_first: int
    only_second: int
    exact: float
    mid: float


def mcnemar(first_right: Truth, second_right: Truth) -> McNemar:
    """Compare two models by the rows (n,) that each has right."""
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return McNemar(0, 0, 1.0, 1.0)
    below = float(stats.binom.cdf(fewer - 1, total, 0.5))
    at = float(stats.binom.pmf(fewer, total, 0.5))
    return McNemar(only_first, only_second, min(1.0, 2 * (below + at)), min(1.0, 2 * below + at))
