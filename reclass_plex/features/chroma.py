"""From pitch-class energy to chroma_cqt, chroma_stft, chroma_cens and tonnetz.

Conventions: chroma is (batch, 12, frames), C first, not negative. A silent frame stays zero.
"""

from __future__ import annotations

import torch

from reclass_plex.features import filters

TINY = torch.finfo(torch.float32).tiny  # librosa leaves a frame with less in it unnormalised
CENS_STEPS = (0.4, 0.2, 0.1, 0.05)
CENS_FRAMES = 41


def divide_by(rows: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return `rows` (batch, rows, frames) over `length` (batch, frames) where it is not tiny."""
    return rows / torch.where(length < TINY, 1.0, length)[:, None]


def by_maximum(chroma: torch.Tensor) -> torch.Tensor:
    """Return `chroma` with the strongest pitch class of each frame at 1."""
    return divide_by(chroma, chroma.amax(1))


def energy_normalised(chroma: torch.Tensor) -> torch.Tensor:
    """Return the chroma energy normalised statistics (CENS) of `chroma`.

    Mueller and Ewert, *Chroma Toolbox*, ISMIR 2011: shares of the frame, quantised in four steps,
    smoothed over 41 frames, each frame of length 1.
    """
    shares = divide_by(chroma, chroma.sum(1))
    steps = torch.stack([shares > step for step in CENS_STEPS]).float().mean(0)
    window = torch.hann_window(
        CENS_FRAMES + 2, periodic=False, dtype=torch.float64, device=chroma.device
    )
    window = (window / window.sum()).float()
    smooth = torch.nn.functional.conv1d(
        steps.flatten(0, 1)[:, None], window[None, None], padding=(CENS_FRAMES + 1) // 2
    ).view_as(chroma)
    return divide_by(smooth, smooth.square().sum(1).sqrt_())


def tonal_centroids(cens: torch.Tensor) -> torch.Tensor:
    """Return tonnetz (batch, 6, frames): fifths, minor and major thirds, each as sine and cosine.

    Harte, Sandler and Gasser, *Detecting harmonic change in musical audio*, AMCMM 2006.
    """
    notes = torch.arange(filters.NOTES, dtype=torch.float64, device=cens.device)
    steps = notes.new_tensor([7 / 6, 7 / 6, 3 / 2, 3 / 2, 2 / 3, 2 / 3])[:, None]
    quarter_turns = notes.new_tensor([0.5, 0, 0.5, 0, 0.5, 0])[:, None]
    radii = notes.new_tensor([1, 1, 1, 1, 0.5, 0.5])[:, None]
    circles = radii * torch.cos(torch.pi * (steps * notes - quarter_turns))
    return circles.float() @ divide_by(cens, cens.sum(1))
