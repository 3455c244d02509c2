"""Ridge regression with the tangent kernel (`kernels`), for many strengths of its penalty at once.

The network of infinite width, fitted to targets of 1 and -1 by squared error and L2. One
decomposition into eigenvectors gives the answers for any strength, and what the model would say of
each group of examples had it not learned from them (leave one group out, in closed form: Allen,
1974; Rasmussen and Williams, 2006, 5.4.2). That chooses the strength, and scales the answers to
logits.

Up to `CENTRES` examples the fit is exact; of more, so many drawn ones span the functions that it
may take (Nystroem: Williams and Seeger, 2001). Memory: 4 bytes for each example and centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from reclass_plex.heads import normal_scores
from reclass_plex.kernels import tangent_kernel
from reclass_plex.training.approaches.base import Examples, mean_layers, plain_quantiles
from reclass_plex.training.approaches.network import row_losses
from reclass_plex.training.metrics import Labels
from reclass_plex.training.table import ROWS_AT_ONCE

CENTRES = 2048
JITTER = 1e-9  # of the mean of the kernel's diagonal: examples that are alike are no error
NUMBERS_AT_ONCE = 1 << 24  # in the hat matrices of groups


@dataclass(frozen=True, eq=False)
class Said:
    """Answers (n, k), not yet scaled, and what would have been right.

    `target` (n, k) holds zeros and ones, `weights` (n,) how much each counts.
    """

    answers: Tensor
    target: Tensor
    weights: Tensor
    multi_label: bool

    def loss(self, scale: float) -> float:
        """Return the mean loss in nats of `scale` times the answers as logits."""
        losses = row_losses(self.answers * scale, self.target, self.multi_label)
        return float(self.weights @ losses.double() / self.weights.sum())

    def best_scale(self) -> float:
        """Return the scale of least loss."""
        found = minimize_scalar(
            lambda log: self.loss(math.exp(log)), bounds=(-3, 3.5), method="bounded"
        )
        return math.exp(float(found.x))


class KernelRidge:
    """All that is common to every strength of the penalty."""

    def __init__(self, train: Examples, quantiles: int, seed: int) -> None:
        self.train = train
        self.quantiles = torch.from_numpy(plain_quantiles(train, quantiles)).float()
        count = len(train.index)
        chosen = np.arange(count)
        if count > CENTRES:
            chosen = np.sort(np.random.default_rng(seed).choice(count, CENTRES, replace=False))
        self.centres = self.enter(train, chosen)
        among = tangent_kernel(self.centres, self.centres)
        among.diagonal().add_(JITTER * float(among.diagonal().mean()))
        self._factor = torch.linalg.cholesky(among)
        self.target = one_hot(train)
        self.weights = torch.from_numpy(np.asarray(train.weights, np.float64))
        self._root = self.weights.sqrt()[:, None]
        self._wanted = self._root * (2 * self.target - 1)
        self._decompose()

    def _decompose(self) -> None:
        """Turn the weighted features of all examples to their principal axes."""
        count, m = len(self.train.index), len(self.centres)
        self._axes = torch.empty(count, m)
        gram = torch.zeros(m, m, dtype=torch.float64)
        parts = [slice(at, at + ROWS_AT_ONCE) for at in range(0, count, ROWS_AT_ONCE)]
        for part in parts:
            z = self.enter(self.train, np.arange(count)[part])
            features = torch.linalg.solve_triangular(
                self._factor, tangent_kernel(self.centres, z), upper=False
            ).T
            features = features * self._root[part]
            gram += features.T @ features
            self._axes[part] = features.float()
        values, self._vectors = torch.linalg.eigh(gram)
        self._values = values.clamp(min=0)
        self._right = torch.zeros(m, self.target.shape[1], dtype=torch.float64)
        for part in parts:
            turned = self._axes[part].double() @ self._vectors
            self._right += turned.T @ self._wanted[part]
            self._axes[part] = turned.float()

    def enter(self, examples: Examples, chosen: Labels) -> Tensor:
        """Return normal scores (n, d) of some examples."""
        rows = torch.from_numpy(np.ascontiguousarray(mean_layers(examples.take(chosen))))
        return normal_scores(rows, self.quantiles)

    def weight(self, l2: float) -> Tensor:
        """Return what the centres count (m, k)."""
        turned = self._vectors @ (self._right / (self._values + l2)[:, None])
        weight: Tensor = torch.linalg.solve_triangular(self._factor.T, turned, upper=True)
        return weight

    def ask(self, examples: Examples, l2: float) -> Said:
        """Return what the model says of other examples."""
        weight = self.weight(l2)
        everyone = np.arange(len(examples.index))
        answers = [
            tangent_kernel(self.enter(examples, everyone[at : at + ROWS_AT_ONCE]), self.centres)
            @ weight
            for at in range(0, len(everyone), ROWS_AT_ONCE)
        ]
        weights = torch.from_numpy(np.asarray(examples.weights, np.float64))
        return Said(torch.cat(answers), one_hot(examples), weights, examples.multi_label)

    def fitted(self, l2: float) -> Said:
        """Return what the model says of the examples that it learned from."""
        answers = self._fitted(1 / (self._values + l2)) / self._root
        return Said(answers, self.target, self.weights, self.train.multi_label)

    def held_out(self, l2: float) -> Said:
        """Return for each group of examples what a model would say that learned from the others."""
        shrink = 1 / (self._values + l2)
        residual = self._wanted - self._fitted(shrink)
        groups = self.train.groups
        order = np.argsort(groups, kind="stable")
        _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
        for size in np.unique(sizes):
            members = order[starts[sizes == size][:, None] + np.arange(size)]
            step = max(1, NUMBERS_AT_ONCE // (size * len(self.centres)))
            for at in range(0, len(members), step):
                some = torch.from_numpy(members[at : at + step])
                axes = self._axes[some].double()  # (groups, size, m)
                hat = (axes * shrink) @ axes.transpose(1, 2)
                left = torch.eye(int(size), dtype=torch.float64) - hat
                residual[some] = torch.linalg.solve(left, residual[some])
        answers = (self._wanted - residual) / self._root
        return Said(answers, self.target, self.weights, self.train.multi_label)

    def _fitted(self, shrink: Tensor) -> Tensor:
        coefficients = shrink[:, None] * self._right
        count = len(self._axes)
        parts = [
            self._axes[at : at + ROWS_AT_ONCE].double() @ coefficients
            for at in range(0, count, ROWS_AT_ONCE)
        ]
        return torch.cat(parts)


def one_hot(examples: Examples) -> Tensor:
    """Return (n, k) float64 of zeros and ones."""
    targets = torch.from_numpy(examples.targets)
    if not examples.multi_label:
        targets = torch.nn.functional.one_hot(targets, examples.classes)
    return targets.double()


def both(one: Said, other: Said | None) -> Said:
    """Return the answers of both below each other."""
    if other is None:
        return one
    return Said(
        torch.cat([one.answers, other.answers]),
        torch.cat([one.target, other.target]),
        torch.cat([one.weights, other.weights]),
        one.multi_label,
    )
