"""How far a track is tuned from A440: librosa's piptrack and pitch_tuning, in pieces.

The estimate is the highest of 100 histogram bins, so that a rounding error can move it far. The
arithmetic therefore follows librosa's, single precision where librosa has it, double where its
compiled stencil has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reclass_plex.features import filters
from reclass_plex.features.spectral import Chunk
from reclass_plex.features.statistics import median

LOWEST, HIGHEST = 150.0, 4000.0  # Hz; the peaks that count
LOUD = 0.1  # of the frame's maximum; fainter peaks do not count


@dataclass(frozen=True)
class Peaks:
    """Spectral peaks of some frames."""

    items: torch.Tensor  # (peaks,) int32, of the batch
    tunings: torch.Tensor  # (peaks,) uint8, into TUNINGS
    heights: torch.Tensor  # (peaks,) float32


def peak_bins(rate: int) -> tuple[int, int]:
    """Return the first bin that counts at `rate` Hz and the first above that does not."""
    spacing = rate / filters.FRAME_SAMPLES
    highest = min(HIGHEST, rate / 2)
    counted = [k for k in range(1, filters.BINS - 1) if LOWEST <= k * spacing < highest]
    return counted[0], counted[-1] + 1


def find_peaks(
    magnitude: torch.Tensor, power: torch.Tensor, rate: int, chunk: Chunk
) -> tuple[Peaks, Peaks]:
    """Return the peaks that tune the constant-Q transform, and those that tune chroma_stft.

    The first are those of the chunk's `magnitude` (1025, columns) at the true `rate` in Hz, the
    second those of its `power` as if at 22,050 Hz.
    """
    columns = magnitude.shape[1]
    true_first, true_last = peak_bins(rate)
    told_first, told_last = peak_bins(filters.LIBROSA_RATE)
    first, last = min(true_first, told_first), max(true_last, told_last)
    middle = magnitude[first:last]
    strongest = power.amax(0)
    loud = middle > LOUD * strongest.sqrt()
    loud.logical_and_(middle > magnitude[first - 1 : last - 1])
    loud.logical_and_(middle >= magnitude[first + 1 : last + 1])
    found = loud.flatten().nonzero().squeeze(1) + first * columns

    in_range = (found >= true_first * columns).logical_and_(found < true_last * columns)
    true = _interpolate(magnitude, found[in_range], rate, chunk)
    # A peak that is loud in power is loud in magnitude, so that all were found.
    in_range = (found >= told_first * columns).logical_and_(found < told_last * columns)
    in_range.logical_and_(power.flatten()[found] > (LOUD * strongest)[found.remainder(columns)])
    told = _interpolate(power, found[in_range], filters.LIBROSA_RATE, chunk)
    return true, told


def _interpolate(spectrum: torch.Tensor, found: torch.Tensor, rate: int, chunk: Chunk) -> Peaks:
    """Return the peaks at the flat positions `found` of `spectrum` (1025, columns).

    A parabola goes through each and its neighbours. A local maximum always has its summit within
    half a bin, so librosa's guard against larger shifts is not needed.
    """
    columns = spectrum.shape[1]
    flat = spectrum.flatten()
    here, below, above = flat[found], flat[found - columns], flat[found + columns]
    slopes = above - below
    shifts = (slopes.double() / -2 / ((above + below).double() - 2 * here.double())).float()
    pitches = (found.floor_divide(columns) + shifts.double()) * rate / filters.FRAME_SAMPLES
    octaves = (pitches.float() / 27.5).double().log2_().float()  # above A0
    semitones = (filters.NOTES * octaves).remainder_(1.0)
    # Half a semitone and more is counted from the next note down: -0.5 to 0.5, then hundredths.
    tunings = (semitones.double() + 0.5).remainder_(1.0).mul_(len(filters.TUNINGS))
    return Peaks(
        items=found.remainder(columns).floor_divide_(chunk.count).add_(chunk.items.start).int(),
        tunings=tunings.to(torch.uint8),
        heights=here + 0.5 * (slopes / 2) * shifts,
    )


def estimate_tunings(chunks: Sequence[Peaks], batch: int) -> list[int]:
    """Return an index into `TUNINGS` for each item: the commonest among its higher peaks.

    Higher means at or above the median of the whole track. An item without peaks is in tune.
    """
    items = torch.cat([chunk.items for chunk in chunks])
    tunings = torch.cat([chunk.tunings for chunk in chunks])
    heights = torch.cat([chunk.heights for chunk in chunks])
    commonest = []
    for item in range(batch):
        mine = items == item
        own_heights = heights[mine]
        if len(own_heights):
            higher = tunings[mine][own_heights >= median(own_heights)]
            commonest.append(higher.bincount(minlength=len(filters.TUNINGS)).argmax())
        else:
            commonest.append(torch.tensor(filters.NO_TUNING, device=items.device))
    return [int(tuning) for tuning in torch.stack(commonest).tolist()]
