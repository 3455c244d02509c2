"""Logistic and multi-layer heads on frozen features, with learned weights over an encoder's layers.

One loop: AdamW, linear warm-up and cosine decay, dropout, mixup (Zhang et al., 2018), early
stopping; mixed precision on a GPU. Every epoch draws its random numbers from (seed, epoch), so that
a run which goes on from a checkpoint takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.device import device_errors
from reclass_plex.training.approaches.base import (
    Examples,
    Fit,
    Keeper,
    Model,
    Round,
    State,
    layer_moments,
    mlp_tensors,
    safe_deviation,
)
from reclass_plex.training.approaches.gpu import Precision, gpu_load

WARM_UP = 0.1  # of all steps
EVALUATED_AT_ONCE = 4096


@dataclass(frozen=True)
class NetworkOptions:
    """How a network is built and fitted. `hidden` () is a logistic head."""

    hidden: tuple[int, ...]
    epochs: int
    patience: int  # epochs without a better loss
    batch: int
    learning_rate: float
    weight_decay: float
    dropout: float
    input_dropout: float
    mixup: float  # both parameters of the Beta distribution; 0 mixes nothing
    limit: float  # of the standardised features
    seed: int
    device: str
    amp: bool


class Network(nn.Module):
    """Softmax-weighted layers (Yang et al., SUPERB, 2021), standardised exactly, then an MLP.

    Mean and deviation of the combination follow from the layers' covariances, whatever the weights.
    """

    def __init__(self, options: NetworkOptions, train: Examples) -> None:
        super().__init__()
        self.options = options
        mean, covariance = layer_moments(train)
        self.register_buffer("mean", torch.from_numpy(mean).float())  # (layers, d)
        self.register_buffer("covariance", torch.from_numpy(covariance).float())
        fixed = safe_deviation(covariance[:, 0, 0])
        self.register_buffer("deviation", torch.from_numpy(fixed).float())  # of the only layer
        self.scores = nn.Parameter(torch.zeros(train.layers)) if train.layers > 1 else None
        widths = (train.rows.shape[-1], *options.hidden, train.classes)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def standard(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers' weights, and mean and deviation (d,) of what they combine to."""
        mean, covariance = self.get_buffer("mean"), self.get_buffer("covariance")
        if self.scores is None:
            return mean.new_ones(1), mean[0], self.get_buffer("deviation")
        weights = torch.softmax(self.scores, 0)
        variance = torch.einsum("l,dlm,m->d", weights, covariance, weights)
        usable = variance > 1e-12
        deviation = torch.where(usable, variance.clamp(min=1e-12).sqrt(), torch.ones_like(variance))
        return weights, weights @ mean, deviation

    def enter(self, x: Tensor) -> Tensor:
        """Return z (n, d) for rows (n, d) or (n, layers, d)."""
        weights, mean, deviation = self.standard()
        if x.ndim == 3:
            x = (x * weights[:, None]).sum(1)
        return ((x - mean) / deviation).clamp(-self.options.limit, self.options.limit)

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (n, k)."""
        z = functional.dropout(z, self.options.input_dropout, self.training)
        for number, linear in enumerate(self.linears):
            if number:
                z = functional.dropout(torch.relu(z), self.options.dropout, self.training)
            z = linear(z)
        return z

    @torch.no_grad()
    def export(self, layers: int) -> Model:
        """Return the model, on the CPU."""
        weights, mean, deviation = (part.detach().cpu().clone() for part in self.standard())
        pairs = [
            (line.weight.detach().T.cpu().contiguous(), line.bias.detach().cpu().clone())
            for line in self.linears
            if isinstance(line, nn.Linear)
        ]
        total = float(weights.double().sum())
        return Model(
            "mlp" if self.options.hidden else "logistic",
            {"mean": mean, "deviation": deviation, **mlp_tensors(pairs)},
            hidden=self.options.hidden,
            limit=self.options.limit,
            layer_weights=tuple(float(w) / total for w in weights) if layers else (),
        )


@dataclass(frozen=True)
class NetworkApproach:
    """Fits a `Network`."""

    options: NetworkOptions

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Fit. Raises DeviceError if the GPU fails."""
        with device_errors():
            return _Training(self.options, train, tune, keeper).run(rounds)


class _Training:
    def __init__(
        self, options: NetworkOptions, train: Examples, tune: Examples | None, keeper: Keeper
    ) -> None:
        self.options, self.train, self.tune, self.keeper = options, train, tune, keeper
        devices = [torch.cuda.current_device()] if options.device == "cuda" else []
        self.devices = devices
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
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(_seed(self.options.seed, epoch))
            train_loss, rate = self._pass(np.random.default_rng([self.options.seed, epoch]), epoch)
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
        order = generator.permutation(len(self.train.index))
        steps = -(-len(order) // self.options.batch)
        total = rate = 0.0
        for step in range(steps):
            chosen = np.sort(order[step::steps])  # sorted: a mapped table is read forwards
            rate = self._rate((epoch * steps + step) / (self.epochs * steps))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            with self.precision.context():
                loss = self._mixed_loss(chosen, generator)
            self.optimiser.zero_grad()
            self.precision.step(loss, self.optimiser)
            total += float(loss.detach()) * len(chosen)
        return total / len(order), rate

    def _rate(self, progress: float) -> float:
        if progress < WARM_UP:
            return self.options.learning_rate * (progress + 1e-3) / (WARM_UP + 1e-3)
        falling = (progress - WARM_UP) / (1 - WARM_UP)
        return self.options.learning_rate * (1 + math.cos(math.pi * falling)) / 2

    def _batch(self, examples: Examples, chosen: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        device = self.options.device
        target = torch.from_numpy(examples.targets[chosen])
        if not examples.multi_label:
            target = functional.one_hot(target, examples.classes)
        weights = torch.from_numpy(examples.weights[chosen])
        x = torch.from_numpy(examples.take(chosen))
        return x.to(device), target.float().to(device), weights.float().to(device)

    def _mixed_loss(self, chosen: Any, generator: np.random.Generator) -> Tensor:  # noqa: ANN401
        x, target, weights = self._batch(self.train, chosen)
        z = self.network.enter(x)
        if self.options.mixup:
            share = float(generator.beta(self.options.mixup, self.options.mixup))
            other = torch.from_numpy(generator.permutation(len(chosen))).to(z.device)
            z = share * z + (1 - share) * z[other]
            target = share * target + (1 - share) * target[other]
            weights = share * weights + (1 - share) * weights[other]
        return (weights * _losses(self.network(z), target, self.train.multi_label)).mean()

    @torch.no_grad()
    def _evaluate(self, examples: Examples) -> float:
        self.network.eval()
        total = 0.0
        for start in range(0, len(examples.index), EVALUATED_AT_ONCE):
            chosen = np.arange(start, min(start + EVALUATED_AT_ONCE, len(examples.index)))
            x, target, weights = self._batch(examples, chosen)
            logits = self.network(self.network.enter(x))
            total += float((weights * _losses(logits, target, examples.multi_label)).sum())
        return total / float(examples.weights.sum())

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p.detach().cpu().clone() for n, p in self.network.named_parameters()}

    @torch.no_grad()
    def _restore(self, parameters: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(parameters[name])

    def _state(self) -> State:
        tensors = {f"now.{name}": value for name, value in self._parameters().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": v.detach().cpu() for name, v in state.items()}
        facts = {
            "log": [line.as_json() for line in self.log],
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_epoch": self.best_epoch,
            "scaler": self.precision.state(),
        }
        return State(tensors, facts)

    def _resume(self) -> None:
        kept = self.keeper.load()
        if kept is None:
            return
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for name, tensor in kept.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self._restore(parts["now"])
        self.best = parts["best"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["adam"].items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        best_loss = kept.facts["best_loss"]
        self.best_loss = math.inf if best_loss is None else best_loss
        self.best_epoch = kept.facts["best_epoch"]
        self.log = [Round(**line) for line in kept.facts["log"]]
        self.precision.restore(kept.facts["scaler"])


def _losses(logits: Tensor, target: Tensor, multi_label: bool) -> Tensor:
    """Return each row's loss in nats: over the labels, or the mean over the tags."""
    logits = logits.float()
    if multi_label:
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return -(torch.log_softmax(logits, 1) * target).sum(1)


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
