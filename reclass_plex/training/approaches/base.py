"""What every approach takes and gives.

An approach fits a `Model` to `Examples`. Whatever takes long keeps its state in a `Keeper` and
goes on from there, to the same bits: nothing may depend on how often it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reclass_plex.heads import is_learned, normal_scores, quantile_levels
from reclass_plex.kernels import kernel_logits
from reclass_plex.networks import NetworkSpec, ask_network, restore_network
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.table import ROWS_AT_ONCE, Rows, rows_at_once

Kind = Literal["logistic", "mlp", "kernel", "xgboost", "network"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Some rows of a table: `index` (m,) says which, `weights` (m,) sum to m.

    `groups` (m,) has the same number where rows are of one artist (or recording). `targets` is (m,)
    int64 below `classes`, or (m, classes) float32 of zeros and ones for tags.
    """

    rows: Rows
    index: Labels
    targets: npt.NDArray[Any]
    weights: Floats
    groups: Labels
    classes: int

    @property
    def multi_label(self) -> bool:
        """Whether the targets are tags."""
        return self.targets.ndim == 2

    @property
    def layers(self) -> int:
        """Layers of a row, 0 where rows are plain vectors."""
        return self.rows.shape[1] if self.rows.ndim == 3 else 0

    def take(self, chosen: Labels) -> Rows:
        """Return some examples' rows; `chosen` are positions in `index`."""
        return np.asarray(self.rows[self.index[chosen]], np.float32)


@dataclass(frozen=True, eq=False)
class Model:
    """A head without its card: `tensors` are as `heads` has them.

    `layer_weights` sum to 1 and combine the layers of a row; empty for plain rows.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    hidden: tuple[int, ...] = ()
    limit: float | None = None
    layer_weights: tuple[float, ...] = ()
    trees: str | None = None
    network: NetworkSpec | None = None

    @property
    def parameters(self) -> int:
        """Numbers that were learned; for trees, their nodes."""
        if self.trees is None:
            learned = [tensor for name, tensor in self.tensors.items() if is_learned(name)]
            return sum(tensor.numel() for tensor in learned) + len(self.layer_weights)
        import json

        trees = json.loads(self.trees)["learner"]["gradient_booster"]["model"]["trees"]
        return sum(int(tree["tree_param"]["num_nodes"]) for tree in trees)

    @torch.no_grad()
    def logits(self, rows: Rows, chosen: Labels | None = None) -> Floats:
        """Return (n, k) for rows (n, d) or (n, layers, d), all or the chosen; read in parts."""
        step = rows_at_once(rows)
        starts = range(0, len(rows if chosen is None else chosen), step)
        parts = []
        for start in starts:
            part = slice(start, start + step)
            some = rows[part if chosen is None else chosen[part]]
            parts.append(self._logits(torch.from_numpy(np.array(some, np.float32))))
        return np.concatenate(parts).astype(np.float64)

    @cached_property
    def _network(self) -> torch.nn.Module:
        assert self.network is not None  # noqa: S101
        classes = len(self.tensors["head.bias"])
        return restore_network(self.network, classes, dict(self.tensors))

    def _logits(self, x: Tensor) -> npt.NDArray[np.float32]:
        if self.network is not None:
            return ask_network(self._network, self.network, x).numpy()
        if self.layer_weights:
            x = (x * x.new_tensor(self.layer_weights)[:, None]).sum(1)
        if "quantiles" in self.tensors:
            x = normal_scores(x, self.tensors["quantiles"])
        z = (x - self.tensors["mean"]) / self.tensors["deviation"]
        if self.limit is not None:
            z = z.clamp(-self.limit, self.limit)
        if self.trees is not None:
            return self._margins(z)
        if self.kind == "kernel":
            return kernel_logits(z, self.tensors["centres"], self.tensors["weight"]).numpy()
        if self.kind == "logistic":
            return (z @ self.tensors["weight"] + self.tensors["bias"]).numpy()
        last = len(self.hidden)
        for i in range(last + 1):
            z = z @ self.tensors[f"weight{i}"] + self.tensors[f"bias{i}"]
            z = torch.relu(z) if i < last else z
        return z.numpy()

    def _margins(self, z: Tensor) -> npt.NDArray[np.float32]:
        import xgboost

        booster = xgboost.Booster()
        booster.load_model(bytearray(self.trees or "", "utf-8"))
        start = None
        if "centres" in self.tensors:
            start = kernel_logits(z, self.tensors["centres"], self.tensors["weight"]).numpy()
        matrix = xgboost.DMatrix(z.numpy(), base_margin=start)
        margins = booster.predict(matrix, output_margin=True)
        return np.asarray(margins, np.float32).reshape(len(z), -1)


@dataclass(frozen=True)
class Round:
    """One line of the learning curve: an epoch, some rounds of boosting, a step of a path.

    Losses in nats. `learning_rate` and `l2` are of those that have one.
    """

    number: int
    train_loss: float
    tune_loss: float | None
    learning_rate: float | None
    seconds: float
    gpu_mebibytes: float | None = None
    gpu_use: float | None = None  # percent
    l2: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what `Round(**...)` takes."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted model, and how it came about.

    `rounds` is what tuning found, in the approach's own unit: epochs, trees, or steps towards a
    weaker penalty. Fitted again for as many, it is as free to follow the examples.
    """

    model: Model
    rounds: int
    log: tuple[Round, ...] = ()


@dataclass(frozen=True, eq=False)
class State:
    """The state of a fit in hand: tensors, and what JSON can hold."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Keeper(Protocol):
    """Keeps the state of one fit, if need be over the end of the process."""

    def load(self) -> State | None:
        """Return what was kept last."""
        ...

    def save(self, state: State, *, done: bool = False) -> None:
        """Keep a state; a keeper may leave out some, but not one that is `done`."""
        ...

    def tell(self, line: Round) -> None:
        """Show a line of the learning curve."""
        ...


class NoKeeper:
    """Keeps nothing: for fits that are short, and of which nothing stays."""

    def load(self) -> State | None:
        """Return nothing: every fit begins anew."""
        return None

    def save(self, state: State, *, done: bool = False) -> None:
        """Forget the state."""

    def tell(self, line: Round) -> None:
        """Show nothing."""


class Approach(Protocol):
    """A way to learn."""

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Fit to `train`, stopping where `tune` gets no better; or after exactly `rounds`."""
        ...


def plain_moments(examples: Examples) -> tuple[Floats, Floats]:
    """Return the weighted mean and deviation, (d,) each, of the mean over layers."""
    mean, covariance = layer_moments(examples)
    layers = max(1, examples.layers)
    share = np.full(layers, 1 / layers)
    variance = np.einsum("l,dlm,m->d", share, covariance, share)
    return share @ mean, safe_deviation(variance)


def layer_moments(examples: Examples) -> tuple[Floats, Floats]:
    """Return the weighted mean (layers, d) and each feature's covariance (d, layers, layers).

    With them, mean and deviation of any combination of layers are known without a second look.
    Plain rows count as one layer.
    """
    layers, d = max(1, examples.layers), examples.rows.shape[-1]
    total = float(examples.weights.sum())
    mean = np.zeros((layers, d))
    covariance = np.zeros((d, layers, layers))
    step = min(max(1, ROWS_AT_ONCE // layers), rows_at_once(examples.rows))
    parts = range(0, len(examples.index), step)
    for start in parts:
        chosen = np.arange(start, min(start + step, len(examples.index)))
        x = examples.take(chosen).reshape(-1, layers, d).astype(np.float64)
        mean += np.einsum("n,nld->ld", examples.weights[chosen] / total, x)
    for start in parts:  # a second pass: E[x^2] - E[x]^2 would cancel
        chosen = np.arange(start, min(start + step, len(examples.index)))
        x = examples.take(chosen).reshape(-1, layers, d) - mean
        weighted = x * (examples.weights[chosen] / total)[:, None, None]
        covariance += weighted.transpose(2, 1, 0) @ x.transpose(2, 0, 1)
    return mean, covariance


def plain_quantiles(examples: Examples, count: int) -> Floats:
    """Return the weighted quantiles (d, count) of the mean over layers, as `heads` wants them."""
    levels = quantile_levels(count).numpy()
    order = np.arange(len(examples.index))
    parts = range(0, len(order), ROWS_AT_ONCE)
    rows = [mean_layers(examples.take(order[at : at + ROWS_AT_ONCE])) for at in parts]
    x = np.concatenate(rows)
    quantiles = np.empty((x.shape[1], count))
    for feature, values in enumerate(x.T):
        ascending = np.argsort(values, kind="stable")
        weights = examples.weights[ascending]
        middles = (np.cumsum(weights) - weights / 2) / weights.sum()
        quantiles[feature] = np.interp(levels, middles, values[ascending])
    return quantiles


def safe_deviation(variance: Floats) -> Floats:
    """Return the square root; 1 for a feature that is always the same."""
    deviation = np.sqrt(np.maximum(variance, 0))
    result: Floats = np.where(deviation > 1e-9, deviation, 1.0)
    return result


def mean_layers(rows: Rows) -> Rows:
    """Return (n, d): plain rows as they are, else the mean over layers."""
    return rows if rows.ndim == 2 else rows.mean(1)


def uniform(layers: int) -> tuple[float, ...]:
    """Return equal weights, none for plain rows."""
    return (1 / max(1, layers),) * layers


def mlp_tensors(linears: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return tensors named as `heads` has them, from (weight (in, out), bias (out,)) pairs."""
    if len(linears) == 1:
        return {"weight": linears[0][0], "bias": linears[0][1]}
    if any(a[0].shape[1] != b[0].shape[0] for a, b in pairwise(linears)):
        raise ValueError("layers do not follow each other")
    named: dict[str, Tensor] = {}
    for i, (weight, bias) in enumerate(linears):
        named |= {f"weight{i}": weight, f"bias{i}": bias}
    return named
