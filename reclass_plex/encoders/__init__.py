"""Encoders: from a waveform to vectors that a head can read. One file each, one protocol.

What a head reads of an encoder is a `Readout`, and it is part of the head's card: which hidden
layers, weighed how, pooled over what. The encoder gives the time-means of the layers, the head
weighs them. That loses nothing, since a mean over time and a sum over layers commute, and one run
of the encoder serves every head that asks for some of its layers; training, which learns the
weights, reads the same embeddings. The encoder computes up to the highest layer that it was loaded
with, and holds no weights above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "cls", "cls+mean"]


@dataclass(frozen=True)
class Readout:
    """What of an encoder a head reads.

    `layers` are hidden states, ascending: 0 is what enters the first block, i what leaves block i.
    () means the one output of an encoder that has no choice. `weights`, one a layer, sum to 1:
    the softmax of what was learned; one layer needs none. `pooling` is over a window's tokens, and
    `cls` exists where the encoder has such a token. Raises ValueError where these do not fit.
    """

    layers: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        if list(self.layers) != sorted(set(self.layers)) or any(i < 0 for i in self.layers):
            raise ValueError(f"layers are distinct, ascending and not negative: {self.layers}")
        if len(self.layers) > 1 and not self.weights:
            raise ValueError("several layers need weights")
        if self.weights and len(self.weights) != len(self.layers):
            raise ValueError(f"{len(self.layers)} layers, but {len(self.weights)} weights")
        if self.weights and not abs(math.fsum(self.weights) - 1) < 1e-4:  # a NaN fails, too
            raise ValueError(f"weights sum to {math.fsum(self.weights)}, not to 1")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling is one of {', '.join(get_args(Pooling))}")

    def combine(self, states: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        """Return (n, dims), what the head reads, from an encoder's `states` (n, l, dims).

        `layers` are the encoder's: more than the readout's own if another head reads it, too.
        Raises ValueError if one is not among them.
        """
        if states.ndim != 3 or states.shape[1] != max(1, len(layers)):
            raise ValueError(f"states {tuple(states.shape)} do not hold the layers {layers}")
        if missing := set(self.layers) - set(layers):
            raise ValueError(f"the encoder was not loaded with the layers {sorted(missing)}")
        if not self.layers and len(layers) > 1:
            raise ValueError(f"the encoder gives the layers {layers}; which one is not said")
        rows = [list(layers).index(layer) for layer in self.layers] or [0]
        weights = states.new_tensor(self.weights or (1.0,))
        return (states[:, rows] * weights[:, None]).sum(1)


class Encoder(Protocol):
    """Turns windows of audio at its own rate into one vector a window and layer."""

    @property
    def name(self) -> str:
        """What the weights are called, as `reclass-plex models list` has it."""
        ...

    @property
    def licence(self) -> str:
        """The licence of the weights."""
        ...

    @property
    def rate(self) -> int:
        """Hz, of the samples that `cut` and `encode` take."""
        ...

    @property
    def window_seconds(self) -> float:
        """How long a window is."""
        ...

    @property
    def dims(self) -> int:
        """Length of a vector."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden layers that `encode` gives, ascending; () for an encoder without a choice."""
        ...

    @property
    def device(self) -> str:
        """Where it computes."""
        ...

    def cut(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the windows (w, samples) of mono `samples` (n > 0,), any length.

        They are spread evenly from start to end; audio shorter than a window is repeated as the
        encoder was trained. Windows of several tracks may go into one batch where they are equally
        long, which only an encoder that says so leaves open. Raises ValueError.
        """
        ...

    def encode(self, windows: torch.Tensor) -> torch.Tensor:
        """Return (n, max(1, len(layers)), dims) float32, on `device`, for windows (n, samples).

        Raises ValueError for what is no audio (shape, NaN, infinity), ModelError if the weights
        turn it into values that are not finite.
        """
        ...


__all__ = ["Encoder", "Pooling", "Readout"]
