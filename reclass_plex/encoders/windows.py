"""Audio into equal windows, and what is checked on the way in and out of an encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reclass_plex.errors import ModelError


def equal_windows(samples: Tensor, length: int) -> Tensor:
    """Return (w, length): mono `samples` (n > 0,) in equal windows, evenly spread from end to end.

    There are as many as fit best, n / length rounded, so neighbours overlap by half at most and
    leave out less than half a window between them. Shorter audio is repeated until it fills one:
    silence, or a mask over it, would be heard (MERT's group norm reaches over the whole window).
    """
    check_mono(samples)
    if len(samples) < length:
        return samples.repeat(math.ceil(length / len(samples)))[None, :length]
    count = max(1, math.floor(len(samples) / length + 0.5))
    spare = len(samples) - length
    starts = [spare // 2] if count == 1 else [round(i * spare / (count - 1)) for i in range(count)]
    return torch.stack([samples[start : start + length] for start in starts])


def check_mono(samples: Tensor) -> None:
    """Raise ValueError unless `samples` are mono audio, (n > 0,)."""
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"mono samples are (n > 0,), not {tuple(samples.shape)}")


def check_windows(windows: Tensor, shortest: int) -> None:
    """Raise ValueError unless `windows` are (n > 0, samples >= shortest) float32, all finite."""
    check_shape(windows, shortest)
    if not bool(windows.isfinite().all()):
        raise ValueError("windows hold a NaN or an infinity")


def check_shape(windows: Tensor, shortest: int) -> None:
    """Raise ValueError unless `windows` are (n > 0, samples >= shortest) float32."""
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < shortest:
        shape = tuple(windows.shape)
        raise ValueError(f"windows are (n > 0, samples >= {shortest}), not {shape}")
    if windows.dtype != torch.float32:
        raise ValueError(f"windows are float32, not {windows.dtype}")


def check_embeddings(states: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Return `states`. Raises ModelError if some are not finite: no head may see a NaN."""
    if not bool(states.isfinite().all()):
        kind = str(dtype).removeprefix("torch.")
        hint = ": float16 is too narrow for it, use float32" if dtype == torch.float16 else ""
        raise ModelError(f"{name} gave values that are not finite in {kind}{hint}")
    return states
