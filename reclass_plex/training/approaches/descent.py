"""Networks fitted by descent over epochs.

One loop: AdamW, linear warm-up and cosine decay, dropout, mixup (Zhang et al., 2018), early
stopping; mixed precision on a GPU. Every epoch draws its random numbers from (seed, epoch), so that
a run which goes on from a checkpoint takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reclass_plex.device import device_errors
from reclass_plex.training.approaches.base import Examples, Fit, Keeper, Round, State
from reclass_plex.training.approaches.epochs import (
    epoch_numbers,
    mix,
    pack,
    pass_over,
    rate_share,
    unpack,
)
from reclass_plex.training.approaches.gpu import Precision, gpu_load
from reclass_plex.training.approaches.network import (
    Network,
    NetworkOptions,
    load_batch,
    row_losses,
)
from reclass_plex.training.metrics import Labels

EVALUATED_AT_ONCE = 4096


@dataclass(frozen=True)
class DescentApproach:
    """Fits a `Network` that has inner layers."""

    options: NetworkOptions

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Fit. Raises DeviceError if the GPU fails."""
        with device_errors():
            return _Descent(self.options, train, tune, keeper).run(rounds)


class _Descent:
    def __init__(
        self, options: NetworkOptions, train: Examples, tune: Examples | None, keeper: Keeper
    ) -> None:
        self.options, self.train, self.tune, self.keeper = options, train, tune, keeper
        devices = [torch.cuda.current_device()] if options.device == "cuda" else []
        self.epochs = options.epochs
        with torch.random.fork_rng(devices):
            torch.manual_seed(options.seed)
            self.network = Network(options, train).to(options.device)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), options.learning_rate, weight_decay=options.weight_decay
        )
        self.precision = Precision(options.device, options.amp)
        self.best, self.best_loss, self.best_epoch = self._parameters(), math.inf, 0
        self.log: list[Round] = []
        self._resume()

    def run(self, rounds: int | None) -> Fit:
        """Train until `tune` gets no better, or for exactly `rounds` epochs."""
        self.epochs = self.options.epochs if rounds is None else rounds
        while len(self.log) < self.epochs and not self._stalled():
            self._epoch(len(self.log))
        if self.tune is not None:
            self._restore(self.best)
        model = self.network.export(self.train.layers)
        done = self.best_epoch if self.tune is not None else len(self.log)
        return Fit(model, done, tuple(self.log))

    def _stalled(self) -> bool:
        waited = len(self.log) - self.best_epoch
        return self.tune is not None and waited >= self.options.patience

    def _epoch(self, epoch: int) -> None:
        started = time.monotonic()
        with epoch_numbers(self.options.seed, epoch, self.options.device) as generator:
            train_loss, rate = self._pass(generator, epoch)
        tune_loss = None if self.tune is None else self._evaluate(self.tune)
        if tune_loss is not None and tune_loss < self.best_loss:
            self.best, self.best_loss, self.best_epoch = self._parameters(), tune_loss, epoch + 1
        memory, use = gpu_load(self.options.device)
        seconds = time.monotonic() - started
        line = Round(epoch + 1, train_loss, tune_loss, rate, seconds, memory, use)
        self.log.append(line)
        self.keeper.tell(line)
        self.keeper.save(self._state())

    def _pass(self, generator: np.random.Generator, epoch: int) -> tuple[float, float]:
        self.network.train()

        def set_rate(step: int, steps: int) -> float:
            progress = (epoch * steps + step) / (self.epochs * steps)
            rate = self.options.learning_rate * rate_share(progress)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            return rate

        return pass_over(
            *(len(self.train.index), self.options.batch, generator),
            *(self.optimiser, self.precision, set_rate),
            lambda chosen: self._mixed_loss(chosen, generator),
        )

    def _mixed_loss(self, chosen: Labels, generator: np.random.Generator) -> Tensor:
        x, target, weights = load_batch(self.train, chosen, self.options.device)
        z = self.network.enter(x)
        if self.options.mixup:
            z, target, weights = mix(generator, self.options.mixup, z, target, weights)
        return (weights * row_losses(self.network(z), target, self.train.multi_label)).mean()

    @torch.no_grad()
    def _evaluate(self, examples: Examples) -> float:
        self.network.eval()
        total = 0.0
        for start in range(0, len(examples.index), EVALUATED_AT_ONCE):
            chosen = np.arange(start, min(start + EVALUATED_AT_ONCE, len(examples.index)))
            x, target, weights = load_batch(examples, chosen, self.options.device)
            logits = self.network(self.network.enter(x))
            total += float((weights * row_losses(logits, target, examples.multi_label)).sum())
        return total / float(examples.weights.sum())

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self.network.named_parameters()}

    @torch.no_grad()
    def _restore(self, parameters: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(parameters[name])

    def _state(self) -> State:
        parts = {"now": self._parameters(), "best": self.best}
        facts = {
            "log": [line.as_json() for line in self.log],
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_epoch": self.best_epoch,
            "scaler": self.precision.state(),
        }
        return State(pack(self.optimiser, parts), facts)

    def _resume(self) -> None:
        kept = self.keeper.load()
        if kept is None:
            return
        parts = unpack(self.optimiser, kept.tensors, ("now", "best"))
        self._restore(parts["now"])
        self.best = parts["best"]
        best_loss = kept.facts["best_loss"]
        self.best_loss = math.inf if best_loss is None else best_loss
        self.best_epoch = kept.facts["best_epoch"]
        self.log = [Round(**line) for line in kept.facts["log"]]
        self.precision.restore(kept.facts["scaler"])
