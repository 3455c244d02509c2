"""A network with one inner layer of infinite width, which is a kernel machine (`kernels`).

What early stopping is to a network, the strength of the penalty is to its limit: both say how far
it may follow the examples. Strengths form a path from strong to weak. Each is judged by what the
model says of recordings that it did not learn from: of the tuned part, and of each group of the
others as if it had not been there (`kernel_ridge`). Nothing is drawn at random.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from reclass_plex.training.approaches.base import (
    Examples,
    Fit,
    Keeper,
    Model,
    Round,
    State,
    uniform,
)
from reclass_plex.training.approaches.kernel_ridge import KernelRidge, both

STRONGEST = 100.0  # of the path: squared error of one example, for a squared unit of the function
STEPS_A_DECADE = 4
PATIENCE = 4  # steps without a better loss: a decade


def strength(step: int) -> float:
    """Return the L2 of a step, which counts from 1."""
    return float(STRONGEST * 10 ** (-(step - 1) / STEPS_A_DECADE))


@dataclass(frozen=True)
class InfiniteNetwork:
    """Fits by ridge regression; `quantiles` a feature give it a normal distribution."""

    quantiles: int
    steps: int  # at most
    seed: int  # of the centres, where examples are too many

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Fit with the best strength, or with that of step `rounds`."""
        ridge = KernelRidge(train, self.quantiles, self.seed)
        if rounds is None:
            log = follow_path(ridge, tune, self.steps, keeper)
            step = best_step(log)
        else:
            log, step = [look(ridge, None, rounds)], rounds
            keeper.tell(log[0])
        tensors = kernel_tensors(ridge, strength(step))
        model = Model("kernel", tensors, layer_weights=uniform(train.layers))
        return Fit(model, step, tuple(log))


def follow_path(
    ridge: KernelRidge, tune: Examples | None, steps: int, keeper: Keeper
) -> list[Round]:
    """Return the steps of the path, of `steps` at most, until they get no better."""
    kept = keeper.load()
    log = [] if kept is None else [Round(**line) for line in kept.facts["log"]]
    while len(log) < steps and not stalled(log):
        log.append(look(ridge, tune, len(log) + 1))
        keeper.tell(log[-1])
        keeper.save(State({}, {"log": [line.as_json() for line in log]}))
    return log


def look(ridge: KernelRidge, tune: Examples | None, step: int) -> Round:
    """Return how good a step of the path is."""
    started = time.monotonic()
    l2 = strength(step)
    held_out = ridge.held_out(l2)
    scale = held_out.best_scale()
    loss = both(held_out, None if tune is None else ridge.ask(tune, l2)).loss(scale)
    train_loss = ridge.fitted(l2).loss(scale)
    return Round(step, train_loss, loss, None, time.monotonic() - started, l2=l2)


def best_step(log: list[Round]) -> int:
    """Return the step of least loss on what was not learned from."""
    losses = [math.inf if line.tune_loss is None else line.tune_loss for line in log]
    return log[losses.index(min(losses))].number


def stalled(log: list[Round]) -> bool:
    """Say whether the path need not be followed further."""
    return bool(log) and log[-1].number - best_step(log) >= PATIENCE


def kernel_tensors(ridge: KernelRidge, l2: float) -> dict[str, torch.Tensor]:
    """Return the tensors of a head of kind kernel; its logits are scaled on held-out answers."""
    d = ridge.centres.shape[1]
    return {
        "mean": torch.zeros(d),
        "deviation": torch.ones(d),
        "quantiles": ridge.quantiles,
        "centres": ridge.centres.contiguous(),
        "weight": (ridge.weight(l2) * ridge.held_out(l2).best_scale()).float().contiguous(),
    }
