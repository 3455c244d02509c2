"""Encoders: from a waveform to vectors that a head can read. One file each, one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Encoder(Protocol):
    """Turns audio at its own rate into one vector for each window that it listens to."""

    name: str
    rate: int  # Hz, of the samples that `embed` takes
    dims: int

    def embed(self, samples: torch.Tensor) -> torch.Tensor:
        """Return (windows, dims) float32 for mono `samples` (n,) at `rate` Hz."""
        ...
