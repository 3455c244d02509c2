"""Logistic heads, fitted as what they are: a problem with one solution for each strength of L2.

The strengths form a path from strong to weak (Friedman, Hastie and Tibshirani, 2010), each step
begun where the one before it ended; the tuned part says where to stop. A step takes L-BFGS over all
examples, with exact gradients. The weights of an encoder's layers are learned jointly, equal at
first and drawn to that by the same penalty; with them the problem is no longer convex, but its path
is as repeatable. A run that is resumed goes on with the next step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reclass_plex.device import device_errors
from reclass_plex.training.approaches.base import Examples, Fit, Keeper, Round, State
from reclass_plex.training.approaches.gpu import gpu_load
from reclass_plex.training.approaches.network import (
    Network,
    NetworkOptions,
    load_batch,
    row_losses,
)
from reclass_plex.training.metrics import Floats
from reclass_plex.training.table import ROWS_AT_ONCE

STRONGEST = 1.0  # of the path: nats for a squared unit of weight, as the loss is a mean
STEPS_A_DECADE = 4
PATIENCE = 4  # steps without a better loss: a decade
ITERATIONS = 300  # of L-BFGS at most, in each step

Batch = tuple[Tensor, Tensor, Tensor]


def strength(step: int) -> float:
    """Return the L2 of a step, which counts from 1."""
    return float(STRONGEST * 10 ** (-(step - 1) / STEPS_A_DECADE))


@dataclass(frozen=True)
class LogisticApproach:
    """Fits a `Network` that has no inner layer. Of `options` the ways of descent do not matter."""

    options: NetworkOptions

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Walk down the path until `tune` gets no better, or `rounds` steps.

        Raises DeviceError if the GPU fails.
        """
        with device_errors():
            return _Path(self.options, train, tune, keeper).walk(rounds)


class _Path:
    def __init__(
        self, options: NetworkOptions, train: Examples, tune: Examples | None, keeper: Keeper
    ) -> None:
        self.options, self.train, self.tune, self.keeper = options, train, tune, keeper
        self.network = Network(options, train).double().to(options.device).eval()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        (linear,) = self.network.linears
        self.penalised = np.concatenate(
            [np.full(p.numel(), p is not linear.bias) for p in self.parameters]
        )
        # Without layers to weigh, what enters never changes: it is read and standardised once.
        self.enters_once = self.network.scores is None
        self.fixed = list(self._batches(train)) if self.enters_once else None
        size = sum(p.numel() for p in self.parameters)
        self.now, self.best = np.zeros(size), np.zeros(size)
        self.best_loss, self.best_step = math.inf, 0
        self.log: list[Round] = []
        if kept := keeper.load():
            self.now, self.best = (kept.tensors[name].numpy() for name in ("now", "best"))
            self.log = [Round(**line) for line in kept.facts["log"]]
            losses = [math.inf if line.tune_loss is None else line.tune_loss for line in self.log]
            self.best_loss, self.best_step = min(losses), int(np.argmin(losses)) + 1

    def walk(self, rounds: int | None) -> Fit:
        """Go on from where the path was left."""
        most = self.options.epochs if rounds is None else rounds
        while len(self.log) < most and not self._stalled():
            self._step(len(self.log) + 1)
        self._assign(self.now if self.tune is None else self.best)
        done = len(self.log) if self.tune is None else self.best_step
        return Fit(self.network.export(self.train.layers), done, tuple(self.log))

    def _stalled(self) -> bool:
        return self.tune is not None and len(self.log) - self.best_step >= PATIENCE

    def _step(self, step: int) -> None:
        from scipy.optimize import minimize

        started = time.monotonic()
        l2 = strength(step)
        self.now = minimize(
            self._objective, self.now, (l2,), "L-BFGS-B", jac=True, options={"maxiter": ITERATIONS}
        ).x
        self._assign(self.now)
        with torch.no_grad():
            train_loss = self._loss(self.train)
            tune_loss = None if self.tune is None else self._loss(self.tune)
        if tune_loss is not None and tune_loss < self.best_loss:
            self.best, self.best_loss, self.best_step = self.now, tune_loss, step
        memory, use = gpu_load(self.options.device)
        seconds = time.monotonic() - started
        self.log.append(Round(step, train_loss, tune_loss, None, seconds, memory, use, l2))
        self.keeper.tell(self.log[-1])
        tensors = {"now": torch.from_numpy(self.now), "best": torch.from_numpy(self.best)}
        self.keeper.save(State(tensors, {"log": [line.as_json() for line in self.log]}))

    def _objective(self, values: Floats, l2: float) -> tuple[float, Floats]:
        """Return the mean loss with its penalty, and their gradient."""
        self._assign(values)
        self.network.zero_grad()
        drawn = np.where(self.penalised, values, 0.0)
        total = l2 * float(drawn @ drawn)
        for batch in self._read(self.train):
            loss = self._share(batch, self.train)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        gradient = torch.cat([part.reshape(-1) for part in gradients]).cpu().numpy()
        return total, gradient + 2 * l2 * drawn

    def _loss(self, examples: Examples) -> float:
        return sum(float(self._share(batch, examples)) for batch in self._read(examples))

    def _share(self, batch: Batch, examples: Examples) -> Tensor:
        """Return what a batch adds to the mean loss."""
        x, target, weights = batch
        z = x.double() if self.enters_once else self.network.enter(x.double())
        losses = row_losses(self.network(z), target, examples.multi_label)
        return (weights * losses).sum() / float(examples.weights.sum())

    def _read(self, examples: Examples) -> Iterator[Batch]:
        if self.fixed is not None and examples is self.train:
            return iter(self.fixed)
        return self._batches(examples)

    def _batches(self, examples: Examples) -> Iterator[Batch]:
        step = max(1, ROWS_AT_ONCE // max(1, examples.layers))
        for start in range(0, len(examples.index), step):
            chosen = np.arange(start, min(start + step, len(examples.index)))
            x, target, weights = load_batch(examples, chosen, self.options.device)
            if self.enters_once:
                with torch.no_grad():
                    x = self.network.enter(x.double()).float()  # kept, so half the memory counts
            yield x, target, weights

    @torch.no_grad()
    def _assign(self, values: Floats) -> None:
        taken = 0
        for parameter in self.parameters:
            part = values[taken : taken + parameter.numel()]
            parameter.copy_(torch.from_numpy(part).reshape(parameter.shape))
            taken += parameter.numel()
