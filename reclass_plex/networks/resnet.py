"""A small residual network (He et al., 2016) on log-mel spectrograms.

Each stage halves time and frequency and doubles the channels. Frequency is averaged at the end, as
is time, whose maximum counts, too: something that is heard once may tell the genre.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reclass_plex.networks import ResnetSpec


class Resnet(nn.Module):
    """Bands are standardised by `input_mean` and `input_deviation` (bands,), which are given."""

    input_mean: Tensor
    input_deviation: Tensor

    def __init__(self, spec: ResnetSpec, classes: int) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(spec.bands))
        self.register_buffer("input_deviation", torch.ones(spec.bands))
        widths = [spec.width * min(2**i, 8) for i in range(spec.stages)]
        self.stem = nn.Sequential(
            nn.Conv2d(1, spec.width, 5, stride=2, padding=2, bias=False),
            group_norm(spec.width),
            nn.ReLU(),
        )
        inputs = [spec.width, *widths[:-1]]
        self.stages = nn.Sequential(
            *(_Residual(a, b, 2) for a, b in zip(inputs, widths, strict=True))
        )
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits (n, classes) for windows (n, frames, bands)."""
        x = ((windows - self.input_mean) / self.input_deviation)[:, None]
        y = self.stages(self.stem(x)).mean(3)  # (n, channels, frames)
        logits: Tensor = self.head(self.dropout(torch.cat([y.mean(2), y.amax(2)], 1)))
        return logits

    def fresh(self) -> Iterable[nn.Parameter]:
        """All of it is."""
        return self.parameters()


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut of 1 x 1."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.first_norm = group_norm(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = group_norm(channels)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True),
            nn.Conv2d(inputs, channels, 1, bias=False),
            group_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, frames, bands) to (n, channels, half of both, rounded up)."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a norm over eight groups of channels, or as many as divide them.

    A batch norm would learn what is usual: too little is heard for that on few tracks, and
    averaged weights would need it learned anew.
    """
    return nn.GroupNorm(math.gcd(channels, 8), channels)
