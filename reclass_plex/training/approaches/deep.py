"""Networks that learn from a window's spectrogram or hidden states, by descent over epochs.

AdamW in mixed precision, linear warm-up and cosine decay, SpecAugment, mixup, early stopping; then
stochastic weight averaging (Izmailov et al., 2018): a constant rate, and after each epoch the mean
of the weights since, which is what is tuned and kept. A network that was trained before first
learns its new head alone, then all of it, the old part at a lower rate: a head that knows nothing
would spoil what is below it (Kumar et al., 2022).

What it does like every descent, the same steps after a stop among it, is in `epochs`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reclass_plex.device import device_errors
from reclass_plex.networks import NetworkSpec, as_module
from reclass_plex.training.approaches.augment import disturb_spectrograms
from reclass_plex.training.approaches.base import Examples, Fit, Keeper, Model, Round, State
from reclass_plex.training.approaches.epochs import (
    epoch_numbers,
    mix,
    pack,
    pass_over,
    rate_share,
    unpack,
)
from reclass_plex.training.approaches.gpu import Precision, gpu_load
from reclass_plex.training.approaches.network import load_batch, row_losses
from reclass_plex.training.metrics import Labels

HEAD_ALONE = 0.2  # of the epochs, where there is something below the head
FLOOR = 0.1  # of the highest rate: where cosine decay ends, and what averaging goes on with
ASKED_AT_ONCE = 64  # windows
CLIP = 5.0  # the longest gradient


@dataclass(frozen=True)
class DeepOptions:
    """How a network is fitted. `average` is the share of epochs that weights are averaged over."""

    epochs: int
    patience: int
    batch: int
    learning_rate: float
    body_rate: float  # times the learning rate, for what was trained before
    weight_decay: float
    dropout: float
    mixup: float
    disturb: bool  # spectrograms
    average: float
    seed: int
    device: str
    amp: bool


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a network begins as: `tensors` are those that it does not begin with by chance.

    `freeze` says, once the tensors are in, what of it is never learned.
    """

    spec: NetworkSpec
    tensors: Mapping[str, Tensor]
    trained: bool  # what is below the head
    freeze: Callable[[nn.Module], None] = lambda network: None


@dataclass(frozen=True)
class DeepApproach:
    """Fits the network that `begin` gives for the training examples."""

    options: DeepOptions
    begin: Callable[[Examples], Beginning]

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Fit. Raises DeviceError if the GPU fails, ModelError where weights are missing."""
        with device_errors():
            return _Deep(self.options, self.begin(train), train, tune, keeper).run(rounds)


class _Deep:
    def __init__(
        self,
        options: DeepOptions,
        start: Beginning,
        train: Examples,
        tune: Examples | None,
        keeper: Keeper,
    ) -> None:
        self.options, self.start, self.keeper = options, start, keeper
        self.train, self.tune = train, tune
        devices = [torch.cuda.current_device()] if options.device == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(options.seed)
            self.network = _build(start, train.classes, options)
        fresh = {id(parameter) for parameter in self.network.fresh()}
        learned = [p for p in self.network.parameters() if p.requires_grad]
        self.body = [p for p in learned if start.trained and id(p) not in fresh]
        under = {id(parameter) for parameter in self.body}
        self.head = [p for p in learned if id(p) not in under]
        groups = [{"params": self.head}] + ([{"params": self.body}] if self.body else [])
        self.optimiser = torch.optim.AdamW(
            groups, options.learning_rate, weight_decay=options.weight_decay
        )
        self.precision = Precision(options.device, options.amp, clip=CLIP)
        self.best, self.best_loss, self.best_epoch = self._weights(), math.inf, 0
        self.mean: dict[str, Tensor] = {}
        self.averaged = 0  # epochs that are in the mean
        self.total = options.epochs
        self.averaging_from = self.total
        self.log: list[Round] = []

    def run(self, rounds: int | None) -> Fit:
        """Train until `tune` gets no better, then average; or for exactly `rounds` epochs."""
        self.total = self.options.epochs if rounds is None else rounds
        self.averaging_from = self.total - int(self.total * self.options.average)
        self._resume()
        while len(self.log) < self.total and not self._ends():
            self._epoch(len(self.log))
        if self.tune is not None:
            chosen, done = self.best, self.best_epoch
        else:
            chosen, done = (self.mean or self._weights()), len(self.log)
        model = Model("network", _on_cpu(chosen), network=self.start.spec)
        return Fit(model, done, tuple(self.log))

    def _ends(self) -> bool:
        """Say whether there is an end. Where tuning has stalled, averaging begins first."""
        if self.tune is None or self.averaged:
            return False
        if len(self.log) - max(self.best_epoch, self._alone) < self.options.patience:
            return False
        if len(self.log) < self.averaging_from and self.options.average:
            share = self.options.average / (1 - self.options.average)
            self.averaging_from = len(self.log)
            self.total = min(self.total, len(self.log) + max(1, round(share * len(self.log))))
            return False
        return not self.options.average

    @property
    def _alone(self) -> int:
        """Epochs that the head learns alone."""
        return math.ceil(HEAD_ALONE * self.averaging_from) if self.body else 0

    def _epoch(self, epoch: int) -> None:
        started = time.monotonic()
        for parameter in self.body:
            parameter.requires_grad_(epoch >= self._alone)
        with epoch_numbers(self.options.seed, epoch, self.options.device) as generator:
            train_loss, rate = self._pass(generator, epoch)
        weights = self._weights()
        if epoch >= self.averaging_from:
            weights = self._average(weights)
        tune_loss = None if self.tune is None else self._loss_of(weights, self.tune)
        if tune_loss is not None and tune_loss < self.best_loss:
            self.best, self.best_loss, self.best_epoch = weights, tune_loss, epoch + 1
        memory, use = gpu_load(self.options.device)
        seconds = time.monotonic() - started
        line = Round(epoch + 1, train_loss, tune_loss, rate, seconds, memory, use)
        self.log.append(line)
        self.keeper.tell(line)
        self.keeper.save(self._state())

    def _pass(self, generator: np.random.Generator, epoch: int) -> tuple[float, float]:
        self.network.train()

        def set_rate(step: int, steps: int) -> float:
            rate = self._rate(epoch + step / steps)
            for group, times in zip(
                self.optimiser.param_groups, (1.0, self.options.body_rate), strict=False
            ):
                group["lr"] = rate * times
            return rate

        return pass_over(
            *(len(self.train.index), self.options.batch, generator),
            *(self.optimiser, self.precision, set_rate),
            lambda chosen: self._mixed_loss(chosen, generator),
        )

    def _rate(self, epochs: float) -> float:
        """Return the rate after so many epochs."""
        progress = min(1.0, epochs / max(1, self.averaging_from))
        floor = FLOOR if self.options.average else 0.0
        return self.options.learning_rate * rate_share(progress, floor)

    def _mixed_loss(self, chosen: Labels, generator: np.random.Generator) -> Tensor:
        x, target, weights = load_batch(self.train, chosen, self.options.device)
        spec = self.start.spec
        x = x.view(len(x), spec.frames, spec.bands)
        if self.options.disturb:
            x = disturb_spectrograms(x, generator)
        if self.options.mixup:
            x, target, weights = mix(generator, self.options.mixup, x, target, weights)
        losses = row_losses(self.network(x), target, self.train.multi_label)
        return (weights * losses).mean()

    @torch.no_grad()
    def _average(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take weights into the mean, and return it."""
        self.averaged += 1
        if self.averaged == 1:
            self.mean = weights
        else:
            self.mean = {
                name: mean + (weights[name] - mean) / self.averaged
                for name, mean in self.mean.items()
            }
        return self.mean

    @torch.no_grad()
    def _loss_of(self, weights: dict[str, Tensor], examples: Examples) -> float:
        now = self._weights()
        self._assign(weights)
        self.network.eval()
        spec, total = self.start.spec, 0.0
        for at in range(0, len(examples.index), ASKED_AT_ONCE):
            chosen = np.arange(at, min(at + ASKED_AT_ONCE, len(examples.index)))
            x, target, weight = load_batch(examples, chosen, self.options.device)
            with self.precision.context():
                logits = self.network(x.view(len(x), spec.frames, spec.bands))
            total += float((weight * row_losses(logits, target, examples.multi_label)).sum())
        self._assign(now)
        return total / float(examples.weights.sum())

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of all tensors, where they are."""
        return {n: t.detach().clone() for n, t in self.network.state_dict().items()}

    @torch.no_grad()
    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self.network.state_dict().items():
            tensor.copy_(weights[name])

    def _state(self) -> State:
        parts = {"now": self._weights(), "best": self.best, "mean": self.mean}
        facts = {
            "log": [line.as_json() for line in self.log],
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_epoch": self.best_epoch,
            "averaged": self.averaged,
            "averaging_from": self.averaging_from,
            "total": self.total,
            "scaler": self.precision.state(),
        }
        held = {part: _on_cpu(weights) for part, weights in parts.items()}
        return State(pack(self.optimiser, held), facts)

    def _resume(self) -> None:
        kept = self.keeper.load()
        if kept is None:
            return
        parts = unpack(self.optimiser, kept.tensors, ("now", "best", "mean"))
        self._assign(parts["now"])
        self.best, self.mean = (
            {name: tensor.to(self.options.device) for name, tensor in parts[part].items()}
            for part in ("best", "mean")
        )
        facts: Mapping[str, Any] = kept.facts
        self.best_loss = math.inf if facts["best_loss"] is None else facts["best_loss"]
        self.best_epoch, self.averaged = facts["best_epoch"], facts["averaged"]
        self.averaging_from, self.total = facts["averaging_from"], facts["total"]
        self.log = [Round(**line) for line in facts["log"]]
        self.precision.restore(facts["scaler"])


def _build(start: Beginning, classes: int, options: DeepOptions) -> Any:  # noqa: ANN401 (a module)
    network = as_module(start.spec.build(classes))
    odd = network.load_state_dict(dict(start.tensors), strict=False).unexpected_keys
    if odd:
        raise ValueError(f"the network has no place for {odd}")
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = options.dropout
    network.to(options.device)
    start.freeze(network)
    return network


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", torch.float32) for name, tensor in weights.items()}
