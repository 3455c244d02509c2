"""Disturbed spectrograms: what a window may lose, or where it may begin, and still be its genre.

SpecAugment (Park et al., 2019) without warping: two bars of bands and two of frames are given the
window's mean. Before that a window is turned in time, its end going on at its beginning.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BARS = 2  # of each kind
BAND_SHARE = 8  # a bar hides at most an eighth of the bands
FRAME_SHARE = 6  # and at most a sixth of the frames


def disturb_spectrograms(windows: Tensor, generator: np.random.Generator) -> Tensor:
    """Return disturbed copies of windows (n, frames, bands), each in its own way."""
    n, frames, bands = windows.shape
    device = windows.device
    begins = torch.from_numpy(generator.integers(frames, size=n)).to(device)
    turned = (torch.arange(frames, device=device) + begins[:, None]) % frames  # (n, frames)
    windows = windows.gather(1, turned[..., None].expand(-1, -1, bands))
    hidden = _bars(n, frames, frames // FRAME_SHARE, generator).to(device)[:, :, None]
    hidden = hidden | _bars(n, bands, bands // BAND_SHARE, generator).to(device)[:, None, :]
    return torch.where(hidden, windows.mean((1, 2), keepdim=True), windows)


def _bars(n: int, length: int, longest: int, generator: np.random.Generator) -> Tensor:
    """Return (n, length) bool: what `BARS` random bars of each row cover."""
    widths = generator.integers(longest + 1, size=(n, BARS, 1))
    begins = (generator.random((n, BARS, 1)) * (length - widths + 1)).astype(np.int64)
    place = np.arange(length)
    covered = (place >= begins) & (place < begins + widths)
    return torch.from_numpy(covered.any(1))
