"""Pitch classes from a constant-Q transform, with librosa's recursive halving of the rate.

Schoerkhuber and Klapuri, *Constant-Q transform toolbox for music processing*, SMC 2010: the same
twelve kernels meet the signal at seven rates, each half of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from reclass_plex.features import filters

SEGMENT_FRAMES = 4096  # frames at a time; bounds the memory of a long track
HALVING_BLOCKS = 64  # blocks at a time, which stay in a CPU's cache


@dataclass(frozen=True)
class Span:
    """Samples `first` to `first + n` of a longer signal, which is zero outside its length."""

    samples: torch.Tensor  # (batch, n)
    first: int

    def frames(self, start: int, count: int, length: int, hop: int) -> torch.Tensor:
        """Return (batch, count, length): frames every `hop` samples from `start` of the signal."""
        end = start + (count - 1) * hop + length
        n = self.samples.shape[-1]
        wanted = self.samples[..., max(start - self.first, 0) : min(end - self.first, n)]
        padded = pad(wanted, (max(self.first - start, 0), max(end - self.first - n, 0)))
        return padded.unfold(-1, length, hop)


def constant_q_frames(n: int, rate: int) -> int:
    """Return how many frames librosa gives for `n` samples (sometimes one more than its STFT)."""
    halvings = filters.early_halvings(rate)
    return 1 + _halved(n, halvings) // (filters.HOP_SAMPLES >> halvings)


def constant_q_chroma(samples: torch.Tensor, rate: int, tunings: Sequence[int]) -> torch.Tensor:
    """Return the constant-Q magnitudes summed over octaves: (batch, 12, frames), C first.

    `samples` is (batch, n) float32 at `rate` Hz; `tunings` holds an index into `TUNINGS` an item.
    """
    batch, n = samples.shape
    early = filters.early_halvings(rate)
    banks = [filters.constant_q_bank(rate / 2**early, tuning, samples.device) for tuning in tunings]
    total = constant_q_frames(n, rate)
    chroma = samples.new_zeros((batch, total, filters.NOTES))
    for first in range(0, total, SEGMENT_FRAMES):
        count = min(SEGMENT_FRAMES, total - first)
        _add_segment(chroma[:, first : first + count], samples, early, banks, first)
    return chroma.transpose(1, 2).contiguous()


def _add_segment(
    chroma: torch.Tensor,
    samples: torch.Tensor,
    early: int,
    banks: Sequence[torch.Tensor],
    first: int,
) -> None:
    """Add to `chroma` (batch, count, 12) the seven octaves of its frames, from frame `first`."""
    count = chroma.shape[1]
    lengths = [_halved(samples.shape[1], level) for level in range(early + filters.OCTAVES)]
    reach = max(len(bank) for bank in banks) // 2
    # What each level must cover, from the lowest rate up: its own frames and the next level.
    spans: list[tuple[int, int]] = []
    needed = (lengths[-1], 0)
    for level in reversed(range(len(lengths))):
        start, end = needed
        if level >= early:
            hop = filters.HOP_SAMPLES >> level
            start = min(start, first * hop - reach)
            end = max(end, (first + count - 1) * hop + reach)
        start, end = max(start, 0), min(end, lengths[level])
        spans.insert(0, (start, end))
        needed = 2 * start - filters.HALVING_REACH, 2 * end - 1 + filters.HALVING_REACH

    start, end = spans[0]
    span = Span(samples[:, start:end], start)
    for level in range(len(lengths)):
        if level > 0:
            span = _halve(span, *spans[level])
        if level >= early:
            octave = level - early
            gain = 2 ** ((early + octave) / 2)
            _add_octave(chroma, span, filters.HOP_SAMPLES >> level, banks, first, gain)


def _halve(span: Span, start: int, end: int) -> Span:
    """Return the halved signal from its sample `start` to `end`, by overlapping blocks."""
    reach, length = filters.HALVING_REACH, filters.HALVING_SAMPLES
    response = filters.halving_response(span.samples.device)
    fresh = length // 2 - reach  # halved samples of a block that its edges do not reach
    halved = span.samples.new_empty((len(span.samples), end - start))
    stride = fresh * HALVING_BLOCKS
    for first in range(start, end, stride):
        last = min(first + stride, end)
        blocks = -(-(last - first) // fresh)
        frames = span.frames(2 * first - reach, blocks, length, 2 * fresh)
        spectra = torch.fft.rfft(frames)[..., : len(response)] * response
        pieces = torch.fft.irfft(spectra, n=length // 2)[..., reach:].flatten(1)
        halved[:, first - start : last - start] = pieces[:, : last - first]
    return Span(halved, start)


def _add_octave(
    chroma: torch.Tensor,
    span: Span,
    hop: int,
    banks: Sequence[torch.Tensor],
    first: int,
    gain: float,
) -> None:
    """Add one octave's magnitudes to `chroma` (batch, count, 12)."""
    for item, bank in enumerate(banks):
        one = Span(span.samples[item], span.first)
        frames = one.frames(first * hop - len(bank) // 2, chroma.shape[1], len(bank), hop)
        squares = (frames @ bank).square_()
        notes = squares[:, : filters.NOTES] + squares[:, filters.NOTES :]
        chroma[item].add_(notes.sqrt_(), alpha=gain)


def _halved(n: int, times: int) -> int:
    """Return the length of `n` samples after `times` halvings, each rounded up."""
    return -(-n // (1 << times))
