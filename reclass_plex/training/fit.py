"""Fitting: logistic regression drawn to a prior, temperatures, pooling weights.

Everything is deterministic and small enough for one core: L-BFGS on exact gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar

from reclass_plex.training.metrics import Floats, Labels


@dataclass(frozen=True)
class Logistic:
    """Logits = clamp((x - mean) / deviation, limit) @ weight + bias."""

    mean: Floats
    deviation: Floats
    weight: Floats
    bias: Floats
    limit: float | None

    def standardise(self, features: Floats) -> Floats:
        """Return z (n, d)."""
        z = (features - self.mean) / self.deviation
        return z if self.limit is None else z.clip(-self.limit, self.limit)

    def logits(self, features: Floats) -> Floats:
        """Return (n, k)."""
        return self.standardise(features) @ self.weight + self.bias


def softmax(logits: Floats) -> Floats:
    """Return probabilities along the last axis."""
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    result: Floats = odds / odds.sum(-1, keepdims=True)
    return result


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def fit_logistic(
    features: Floats,
    labels: Labels,
    weights: Floats,
    *,
    genres: int,
    prior: Floats,
    freedom: Floats,
    l2: float,
    limit: float | None = None,
) -> Logistic:
    """Fit W = a * `prior` + diag(`freedom`) U by maximum likelihood - l2 * |U|^2.

    `prior` (d, genres) says what the features mean before any clip is seen (its scale, a, is
    fitted freely); `freedom` (d,) how far each feature may leave that: 0 not at all. `weights` (n,)
    sum to 1.
    """
    mean = weights @ features
    deviation = np.sqrt(weights @ (features - mean) ** 2) + 1e-6
    empty = Logistic(mean, deviation, prior, np.zeros(genres), limit)
    z = empty.standardise(features)
    free = freedom > 0
    x = torch.from_numpy(z[:, free] * freedom[free])
    offset = torch.from_numpy(z @ prior)
    targets, row_weights = torch.from_numpy(labels), torch.from_numpy(weights)
    d = x.shape[1]
    has_prior = bool(np.any(prior))

    def objective(values: Floats) -> tuple[float, Floats]:
        v = torch.tensor(values, requires_grad=True)
        u = v[: d * genres].view(d, genres)
        logits = x @ u + v[d * genres : -1] + v[-1] * offset
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = row_weights @ losses + l2 * u.square().sum()
        (gradient,) = torch.autograd.grad(loss, v)
        return loss.item(), gradient.numpy()

    start = np.zeros(d * genres + genres + 1)
    start[-1] = float(has_prior)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    weight = found[-1] * prior
    weight[free] += found[: d * genres].reshape(d, genres) * freedom[free][:, None]
    return Logistic(mean, deviation, weight, found[d * genres : -1], limit)


def fit_temperature(logits: Floats, labels: Labels, weights: Floats | None = None) -> float:
    """Return the t that minimises the log loss of softmax(logits / t)."""
    rows = np.arange(len(labels))
    share = np.full(len(labels), 1 / len(labels)) if weights is None else weights / weights.sum()

    def loss(log_t: float) -> float:
        return float(-(share @ log_softmax(logits / np.exp(log_t))[rows, labels]))

    return float(np.exp(minimize_scalar(loss, bounds=(-2.5, 2.5), method="bounded").x))


def pool(votes: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return `evidence.pool_votes` of many clips at once, (..., k)."""
    logs = [w * np.log(np.maximum(v, 1e-12)) for v, w in zip(votes, weights, strict=True)]
    return softmax(np.sum(logs, axis=0))


def fit_pool(votes: Sequence[Floats], labels: Labels, rows: Floats) -> tuple[float, ...]:
    """Return weights >= 0 of the log-linear pool of `votes`, (n, k) each, by least log loss.

    `rows` (n,) weighs the clips.
    """
    logs = np.stack([np.log(np.maximum(vote, 1e-12)) for vote in votes])
    share = rows / rows.sum()

    def loss(weights: Floats) -> float:
        pooled = log_softmax(np.tensordot(weights, logs, 1))
        return float(-(share @ pooled[np.arange(len(labels)), labels]))

    bounds = [(0.0, 2.0)] * len(votes)
    found = minimize(loss, np.full(len(votes), 1 / len(votes)), bounds=bounds)
    return tuple(round(float(weight), 3) for weight in found.x)
