"""What one frame's spectrum says: energy, centre, width, roll-off, contrast, mel level.

Conventions: a spectrum is (1025, columns), a column a frame, so that work on bins runs over
contiguous memory; results are (rows, columns). Frequencies are those of 22,050 Hz whatever the
rate is, except in the mel bank: so did the published script.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch.nn.functional import pad

from reclass_plex.features import filters
from reclass_plex.features.chroma import TINY
from reclass_plex.features.statistics import sort_rows

BIN_HZ = filters.LIBROSA_RATE / filters.FRAME_SAMPLES
BLOCK_BINS = 32  # 32 blocks of 32 bins and one more bin make the spectrum
TRANSFORM_FRAMES = 64  # frames transformed at a time, so that they stay in a CPU's cache
ROLLOFF_SHARE = 0.85
CONTRAST_SHARE = 0.02  # of a band's bins make its peak, as many its valley
LOWEST_POWER = 1e-10
RANGE_DB = 80.0
CROSSING_HOPS = 128  # hops whose zero crossings are counted at a time


def frame_count(n: int) -> int:
    """Return the number of centred frames in `n` samples."""
    return 1 + n // filters.HOP_SAMPLES


@dataclass(frozen=True)
class Chunk:
    """Some frames of some items; a spectrum of it has items x frames columns, frames fastest."""

    items: slice
    first: int
    count: int


def power_spectrum(samples: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """Return the power in the chunk's frames of `samples` (batch, n): (1025, columns) float32.

    The transform runs in float64, as librosa's does: in music that an encoder cut off at 16 kHz,
    single precision would fill the empty bins with its own noise.
    """
    window = filters.frame_window(samples.device)
    items = samples[chunk.items]
    power = samples.new_empty((filters.BINS, len(items), chunk.count))
    block = chunk.count if samples.is_cuda else TRANSFORM_FRAMES
    for item, start in product(range(len(items)), range(0, chunk.count, block)):
        count = min(block, chunk.count - start)
        piece = _centred_samples(items[item], chunk.first + start, count).double()
        frames = piece.unfold(-1, filters.FRAME_SAMPLES, filters.HOP_SAMPLES)
        spectrum = torch.fft.rfft(frames * window).to(torch.complex64)
        parts = torch.view_as_real(spectrum).square_()
        place = power[:, item, start : start + count]
        torch.add(parts[..., 0].t(), parts[..., 1].t(), out=place)
    return power.flatten(1)


def _centred_samples(samples: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return what `count` frames from `first` see of `samples` (n,), with zeros around it."""
    half = filters.FRAME_SAMPLES // 2
    start = first * filters.HOP_SAMPLES - half
    end = (first + count - 1) * filters.HOP_SAMPLES + half
    before = max(-start, 0)
    inside = samples[start + before : end]
    return pad(inside, (before, end - start - before - len(inside)))


def shape_series(magnitude: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Return rms, bandwidth in Hz, centroid in Hz and roll-off in Hz: (4, columns).

    One pass over the spectrum gives the moments of blocks of 32 bins about their own centres;
    the rest is made of these, without the cancellation that moments about 0 Hz would bring.
    """
    within = torch.arange(BLOCK_BINS, device=power.device) - (BLOCK_BINS - 1) / 2
    blocks = magnitude[:-1].view(-1, BLOCK_BINS, magnitude.shape[1])
    moments = (torch.stack([within**0, within, within**2]) @ blocks).double()
    last = magnitude[-1:].double()  # the Nyquist bin, a block of its own
    content, first, second = (
        torch.cat([moment, last * own])
        for moment, own in zip(moments.unbind(1), (1, 0, 0), strict=True)
    )
    centres = torch.arange(len(content), dtype=torch.float64, device=power.device) * BLOCK_BINS
    centres = (centres + (BLOCK_BINS - 1) / 2).clamp_(max=filters.BINS - 1)[:, None]
    total = content.sum(0)
    divisor = torch.where(total < TINY, 1.0, total)
    centroid = (centres * content + first).sum(0) / divisor
    offsets = centres - centroid
    spread = (second + 2 * offsets * first + offsets.square() * content).sum(0)
    bandwidth = (spread.clamp_(min=0) / divisor).sqrt_()
    energy = 2 * power.sum(0) - power[0] - power[-1]  # 0 Hz and Nyquist have no mirror image
    rms = energy.clamp_(min=0).sqrt_() / filters.FRAME_SAMPLES
    rolloff = _rolloff_bin(blocks, content.cumsum(0))
    return torch.stack([rms, bandwidth * BIN_HZ, centroid * BIN_HZ, rolloff * BIN_HZ]).float()


def _rolloff_bin(blocks: torch.Tensor, reached: torch.Tensor) -> torch.Tensor:
    """Return the bin up to which 85 % of the magnitude lies: (columns,).

    `reached` (blocks + 1, columns) is the sum up to the end of each block and of the whole.
    """
    wanted = ROLLOFF_SHARE * reached[-1]
    block = (reached[:-1] < wanted).sum(0).clamp_(max=len(blocks) - 1)
    below = pad(reached, (0, 0, 1, 0)).gather(0, block[None])
    inside = blocks.gather(0, block.expand(1, BLOCK_BINS, -1)).squeeze(0)
    return block * BLOCK_BINS + (inside.cumsum(0) + below < wanted).sum(0)


def _contrast_bands() -> tuple[tuple[int, int, int], ...]:
    """Return (first bin, last bin + 1, bins of a peak) for librosa's seven octave bands."""
    edges = [0.0, *(200.0 * 2**octave for octave in range(7))]
    bands = []
    for band in range(7):
        inside = [k for k in range(filters.BINS) if edges[band] <= k * BIN_HZ <= edges[band + 1]]
        first, last = inside[0] - (band > 0), inside[-1]
        count = last + 1 - first
        few = max(round(CONTRAST_SHARE * count), 1)
        bands.append((first, last + (band == 6), few))  # all but the highest lose their last bin
    return tuple(bands)


CONTRAST_BANDS = _contrast_bands()


def contrast_extremes(magnitude: torch.Tensor) -> torch.Tensor:
    """Return the valleys, then the peaks of the seven octave bands: (14, columns)."""
    valleys, peaks = [], []
    for first, last, few in CONTRAST_BANDS:
        band = magnitude[first:last]
        if few == 1:
            valleys.append(band.amin(0))
            peaks.append(band.amax(0))
        else:
            ordered = sort_rows(band.t().contiguous())
            valleys.append(ordered[:, :few].mean(1))
            peaks.append(ordered[:, -few:].mean(1))
    return torch.stack(valleys + peaks)


def contrast(extremes: torch.Tensor) -> torch.Tensor:
    """Return peaks less valleys in dB: (batch, 7, frames), from (14, batch, frames)."""
    valleys, peaks = decibels(extremes.double()).chunk(2)
    return (_limit_range(peaks) - _limit_range(valleys)).transpose(0, 1).float()


def mel_levels(power: torch.Tensor, rate: int) -> torch.Tensor:
    """Return the levels in dB of the 128 mel bands of `rate`: (128, columns)."""
    blocks = filters.mel_blocks(rate, power.device)
    bands = [weights @ power[first : first + weights.shape[1]] for first, weights in blocks]
    return decibels(torch.cat(bands))


def mfcc(levels: torch.Tensor) -> torch.Tensor:
    """Return 20 mel-frequency cepstral coefficients (batch, 20, frames).

    `levels` (128, batch, frames) are the track's mel levels in dB; they are changed in place.
    """
    limited = _limit_range(levels).flatten(1)
    coefficients = filters.cosine_bank(levels.device) @ limited
    return coefficients.view(-1, *levels.shape[1:]).transpose(0, 1)


def decibels(power: torch.Tensor) -> torch.Tensor:
    """Return 10 log10 of `power`, which counts as 1e-10 at least (librosa.power_to_db)."""
    return power.clamp(min=LOWEST_POWER).log10_().mul_(10)


def _limit_range(levels: torch.Tensor) -> torch.Tensor:
    """Raise to 80 dB below its item's highest what is lower; `levels` is (rows, batch, frames)."""
    return levels.clamp_(min=levels.amax((0, 2), keepdim=True) - RANGE_DB)


def zero_crossing_rate(samples: torch.Tensor) -> torch.Tensor:
    """Return the share of sign changes in each frame: (batch, 1, frames), from (batch, n).

    librosa takes +-1e-10 and less for zero, zero for positive, and repeats the first and last
    sample beyond the ends.
    """
    batch, n = samples.shape
    hop = filters.HOP_SAMPLES
    frames = frame_count(n)
    hops_a_frame = filters.FRAME_SAMPLES // hop
    # Changes an item, hop by hop, from half a frame before its first sample.
    whole = samples.new_zeros((batch, frames - 1 + hops_a_frame))
    opening = torch.zeros_like(whole)  # the change at the first sample of the hop alone
    for start in range(0, n, hop * CROSSING_HOPS):
        block = samples[:, max(start - 1, 0) : start + hop * CROSSING_HOPS] < -1e-10
        changes = pad(block[:, 1:] ^ block[:, :-1], (1 if start == 0 else 0, 0))
        changes = pad(changes, (0, -changes.shape[1] % hop)).view(batch, -1, hop)
        place = start // hop + hops_a_frame // 2
        end = min(place + changes.shape[1], whole.shape[1])
        whole[:, place:end] = _count(changes)[:, : end - place]
        opening[:, place:end] = changes[:, : end - place, 0]
    # A frame does not see what happened between its first sample and the one before it.
    inside = whole.unfold(1, hops_a_frame, 1).sum(2) - opening[:, :frames]
    return (inside / filters.FRAME_SAMPLES)[:, None]


def _count(flags: torch.Tensor) -> torch.Tensor:
    """Return how many of the last dimension's flags are set, at most 2040 of them.

    Eight flags are added at a time, as the bytes of one integer.
    """
    return flags.view(torch.int64).sum(-1, keepdim=True).view(torch.uint8).sum(-1)
