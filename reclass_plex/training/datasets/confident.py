"""Labels that are probably wrong, by confident learning.

Northcutt, Jiang, Chuang, *Confident learning: estimating uncertainty in dataset labels*, 2021
(arXiv:1911.00068). A label's threshold is the mean probability of that label over the recordings
that bear it. The confident joint counts, by given label, which label is the most probable of those
that reach their thresholds; from it follows how many recordings of each label are really of which
other. So many are listed, those first whose own label is the least probable beside the other
("prune by noise rate").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Suspicion:
    """A label that is probably wrong: `index` of the recording, its label and the likelier one.

    `margin` is how much more probable that one is, 0 to 1.
    """

    index: int
    given: int
    suggested: int
    margin: float


def find_suspicious(labels: Labels, probabilities: Floats) -> list[Suspicion]:
    """Return the labels that are probably wrong, the most suspicious first.

    `labels` (n,) are columns of `probabilities` (n, k), which must come from models that did not
    see the recording's label (out of fold, or trained on other music): a model that has learned a
    wrong label by heart does not doubt it. Raises ValueError if they do not fit together.
    """
    _, width = _checked(labels, probabilities)
    wrong = estimate_wrong(labels, probabilities)
    found: dict[int, Suspicion] = {}
    for given in range(width):
        bearers = np.flatnonzero(labels == given)
        for other in np.flatnonzero(wrong[given]):
            margins = probabilities[bearers, other] - probabilities[bearers, given]
            for place in np.argsort(-margins, kind="stable")[: wrong[given, other]]:
                index, margin = int(bearers[place]), float(margins[place])
                if margin > 0 and (index not in found or margin > found[index].margin):
                    found[index] = Suspicion(index, given, int(other), margin)
    return sorted(found.values(), key=lambda one: (-one.margin, one.index))


def estimate_wrong(labels: Labels, probabilities: Floats) -> Labels:
    """Return how many recordings (k, k) of each label (row) are probably of which other (column).

    The diagonal is zero. Raises ValueError as `find_suspicious` does.
    """
    count, width = _checked(labels, probabilities)
    thresholds = np.full(width, np.inf)  # a label that nobody bears is nobody's other label
    for label in np.unique(labels):
        thresholds[label] = probabilities[labels == label, label].mean()
    reached = probabilities >= thresholds
    likeliest = np.where(reached, probabilities, -1.0).argmax(1) if count else labels
    confident = reached.any(1)
    joint = np.zeros((width, width))
    np.add.at(joint, (labels[confident], likeliest[confident]), 1)
    rows = joint.sum(1, keepdims=True)
    shares = np.divide(joint, rows, out=np.zeros_like(joint), where=rows > 0)
    wrong: Labels = np.rint(shares * np.bincount(labels, minlength=width)[:, None]).astype(np.int64)
    np.fill_diagonal(wrong, 0)
    return wrong


def _checked(labels: Labels, probabilities: Floats) -> tuple[int, int]:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"{labels.shape} labels do not fit probabilities {probabilities.shape}")
    count, width = probabilities.shape
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        raise ValueError("probabilities must be finite and not negative")
    if count and (labels.min() < 0 or labels.max() >= width):
        raise ValueError(f"labels must be columns of the probabilities, 0 to {width - 1}")
    return count, width
