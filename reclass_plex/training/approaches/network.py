"""The network behind logistic and multi-layer heads, with learned weights of an encoder's layers.

`logistic` and `descent` fit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reclass_plex.heads import normal_scores
from reclass_plex.training.approaches.base import (
    Examples,
    Model,
    layer_moments,
    mlp_tensors,
    plain_quantiles,
    safe_deviation,
)
from reclass_plex.training.metrics import Labels


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
    quantiles: int | None  # a feature, to give it a normal distribution; None leaves it as it is
    seed: int
    device: str
    amp: bool


class Network(nn.Module):
    """Softmax-weighted layers (Yang et al., SUPERB, 2021), standardised exactly, then an MLP.

    Mean and deviation of the combination follow from the layers' covariances, whatever the weights;
    its quantiles do not, so layers are not weighed where features get a normal distribution.
    """

    def __init__(self, options: NetworkOptions, train: Examples) -> None:
        super().__init__()
        self.options = options
        d, self.layers = train.rows.shape[-1], max(1, train.layers)
        weighed = self.layers > 1 and options.quantiles is None
        self.scores = nn.Parameter(torch.zeros(self.layers)) if weighed else None
        if options.quantiles is None:
            mean, covariance = layer_moments(train)
            fixed = safe_deviation(covariance[:, 0, 0])  # of the only layer
        else:
            quantiles = plain_quantiles(train, options.quantiles)
            self.register_buffer("quantiles", torch.from_numpy(quantiles).float())
            mean, covariance, fixed = np.zeros((1, d)), np.zeros(0), np.ones(d)
        self.register_buffer("mean", torch.from_numpy(mean).float())  # (layers, d)
        self.register_buffer("covariance", torch.from_numpy(covariance).float())
        self.register_buffer("deviation", torch.from_numpy(fixed).float())
        widths = (d, *options.hidden, train.classes)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def standard(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layers' weights, and mean and deviation (d,) of what they combine to."""
        mean, covariance = self.get_buffer("mean"), self.get_buffer("covariance")
        if self.scores is None:
            equal = mean.new_full((self.layers,), 1 / self.layers)
            return equal, mean[0], self.get_buffer("deviation")
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
        if self.options.quantiles is not None:
            x = normal_scores(x, self.get_buffer("quantiles"))
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
        weights, mean, deviation = (_for_head(part) for part in self.standard())
        tensors = {"mean": mean, "deviation": deviation}
        if self.options.quantiles is not None:
            tensors["quantiles"] = _for_head(self.get_buffer("quantiles"))
        pairs = [
            (_for_head(line.weight.T), _for_head(line.bias))
            for line in self.linears
            if isinstance(line, nn.Linear)
        ]
        total = float(weights.double().sum())
        return Model(
            "mlp" if self.options.hidden else "logistic",
            {**tensors, **mlp_tensors(pairs)},
            hidden=self.options.hidden,
            limit=self.options.limit,
            layer_weights=tuple(float(w) / total for w in weights) if layers else (),
        )


def _for_head(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def load_batch(examples: Examples, chosen: Labels, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, targets (n, k) and weights (n,) of some examples, on the device."""
    target = torch.from_numpy(examples.targets[chosen])
    if not examples.multi_label:
        target = functional.one_hot(target, examples.classes)
    weights = torch.from_numpy(examples.weights[chosen])
    x = torch.from_numpy(examples.take(chosen))
    return x.to(device), target.float().to(device), weights.float().to(device)


def row_losses(logits: Tensor, target: Tensor, multi_label: bool) -> Tensor:
    """Return each row's loss in nats: over the labels, or the mean over the tags."""
    logits = logits.float()
    if multi_label:
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    return -(torch.log_softmax(logits, 1) * target).sum(1)
