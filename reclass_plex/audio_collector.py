"""From decoded blocks to one excerpt: of the right place and length, at a rate that models take."""

from __future__ import annotations

import numpy as np
import soxr

from reclass_plex.records import FloatArray

MAX_NATIVE_RATE = 192000  # Hz; above (DSD, DXD) comes at 44.1 or 48 kHz
MAX_AMPLITUDE = 8.0  # +18 dB: no decoder overshoots so far; beyond lie broken floats


class Collector:
    """Takes blocks of mono samples and keeps `seconds` of them, after `early` seconds to drop."""

    def __init__(self, rate: int, early: float, seconds: float) -> None:
        self.rate = rate
        self.kept_rate = kept_rate(rate)
        self.surplus = max(0, round(early * rate))  # samples still to drop
        self.missing = round(seconds * rate)  # samples still to take
        # untouched pages of an empty array cost no memory, joining a list of blocks twice as much
        self._kept = np.empty(round(seconds * self.kept_rate) + 1, np.float32)
        self._filled = 0
        self._resampler = None
        if self.kept_rate != rate:
            self._resampler = soxr.ResampleStream(rate, self.kept_rate, 1, quality="HQ")

    def add(self, block: FloatArray) -> None:
        """Take the next block (n,) of the track; what lies outside the excerpt is dropped."""
        taken = block[self.surplus : self.surplus + self.missing]
        self.surplus = max(0, self.surplus - len(block))
        self.missing -= len(taken)
        if self._resampler is not None:
            taken = self._resampler.resample_chunk(taken)
        self._keep(taken)

    def finish(self) -> FloatArray:
        """Return the samples, finite and within +-MAX_AMPLITUDE."""
        if self._resampler is not None:
            self._keep(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        samples = self._kept[: self._filled]
        if self._filled < len(self._kept) // 2:
            samples = samples.copy()
        np.nan_to_num(samples, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return np.clip(samples, -MAX_AMPLITUDE, MAX_AMPLITUDE, out=samples)

    def _keep(self, block: FloatArray) -> None:
        block = block[: len(self._kept) - self._filled]
        self._kept[self._filled : self._filled + len(block)] = block
        self._filled += len(block)


def kept_rate(rate: int) -> int:
    """Return the rate in Hz at which audio of `rate` is handed out: its own, but of DSD or DXD."""
    if rate <= MAX_NATIVE_RATE:
        return rate
    return 44100 if rate % 44100 == 0 else 48000
