"""The quick baseline: the nearest centroid of the standardised features.

-|z - c|^2 / 2 differs from z c - |c|^2 / 2 only by what all labels share, so it is a logistic head.
"""

from __future__ import annotations

import numpy as np
import torch

from reclass_plex.training.approaches.base import (
    Examples,
    Fit,
    Keeper,
    Model,
    mean_layers,
    plain_moments,
    uniform,
)
from reclass_plex.training.table import ROWS_AT_ONCE

LIMIT = 5.0  # deviations: one wild feature shall not decide alone


class NearestCentroid:
    """Takes a second, and shows what the features are worth at least."""

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Fit; there is nothing to tune and nothing to resume."""
        mean, deviation = plain_moments(train)
        k, d = train.classes, train.rows.shape[-1]
        inside, outside = np.zeros((k, d)), np.zeros((k, d))
        of_label, of_others = np.zeros(k), np.zeros(k)
        for start in range(0, len(train.index), ROWS_AT_ONCE):
            chosen = np.arange(start, min(start + ROWS_AT_ONCE, len(train.index)))
            z = ((mean_layers(train.take(chosen)) - mean) / deviation).clip(-LIMIT, LIMIT)
            member = train.targets[chosen]
            if not train.multi_label:
                member = np.eye(k)[member]
            share = member * train.weights[chosen, None]
            rest = (1 - member) * train.weights[chosen, None]
            inside += share.T @ z
            outside += rest.T @ z
            of_label += share.sum(0)
            of_others += rest.sum(0)
        inside /= np.maximum(of_label, 1e-12)[:, None]
        outside /= np.maximum(of_others, 1e-12)[:, None]
        weight, bias = inside, -(inside**2).sum(1) / 2
        if train.multi_label:  # each tag by itself: nearer to those with it, or to the others?
            weight, bias = weight - outside, bias + (outside**2).sum(1) / 2
        arrays = {"mean": mean, "deviation": deviation, "weight": weight.T, "bias": bias}
        tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array, np.float32))
            for name, array in arrays.items()
        }
        model = Model("logistic", tensors, limit=LIMIT, layer_weights=uniform(train.layers))
        return Fit(model, 1)
