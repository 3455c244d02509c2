"""Whether two files hold the same recording, whatever they were encoded with: by their sound.

After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): 32 bits each
23 ms, each telling whether the difference of two neighbouring bands' energies rises or falls. Of
the same recording some bits differ, of any other half of them.

Conventions: a fingerprint is (frames, 32) bool; frame i lies at `start` + i * `HOP_SECONDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from reclass_plex.records import Waveform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RATE = 11025  # Hz
FRAME = 4096  # samples, 0.37 s: a shift by half a hop changes little
HOP = 256  # samples
HOP_SECONDS = HOP / RATE
BITS = 32
LOWEST, HIGHEST = 300.0, 2000.0  # Hz; what lies between, every encoder keeps
SILENCE = 1e-4  # of the full scale: below, bits would be noise, or all of them equal
SHORTEST = 1.0  # seconds that two must share to be compared
_BLOCK = 512  # frames transformed at a time


@dataclass(frozen=True)
class Fingerprint:
    """Bits (frames, 32) of an excerpt that begins at `start` s of a track of `track_seconds`."""

    bits: npt.NDArray[np.bool_]
    start: float
    track_seconds: float


def take_fingerprint(waveform: Waveform) -> Fingerprint:
    """Return the fingerprint of an excerpt; an empty one of silence, or less than two frames."""
    import numpy as np

    from reclass_plex.audio import resample

    samples = resample(waveform, RATE).samples
    count = max(0, (len(samples) - FRAME) // HOP + 1)
    if count < 2 or np.abs(samples).max() < SILENCE:
        return Fingerprint(np.empty((0, BITS), bool), waveform.start, waveform.track_seconds)
    energies = np.empty((count, BITS + 1), np.float32)
    window = np.hanning(FRAME).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    for start in range(0, count, _BLOCK):
        spectrum = np.abs(np.fft.rfft(frames[start : start + _BLOCK] * window, axis=1)) ** 2
        energies[start : start + _BLOCK] = spectrum @ _bands()
    slopes = np.diff(energies, axis=1)
    bits = np.diff(slopes, axis=0) > 0
    return Fingerprint(bits, waveform.start, waveform.track_seconds)


def differing_bits(some: Fingerprint, other: Fingerprint, most_shift: float = 2.5) -> float:
    """Return the share of bits that differ where two fit best: 0 the same, 0.5 unrelated.

    They may be shifted by `most_shift` seconds against each other. 0.5 if they share too little.
    """
    import numpy as np

    a, b = some.bits, other.bits
    expected = round((some.start - other.start) / HOP_SECONDS)
    reach = round(most_shift / HOP_SECONDS)
    least = SHORTEST / HOP_SECONDS
    best = 0.5
    a_signs, b_signs = (np.where(bits, np.int8(1), np.int8(-1)) for bits in (a, b))
    for shift in range(expected - reach, expected + reach + 1):  # b's frame is a's plus shift
        begin, end = max(0, -shift), min(len(a), len(b) - shift)
        if end - begin < least:
            continue
        same = np.count_nonzero(a_signs[begin:end] == b_signs[begin + shift : end + shift])
        best = min(best, 1 - same / ((end - begin) * BITS))
    return best


@cache
def _bands() -> npt.NDArray[np.float32]:
    """Return (FRAME / 2 + 1, BITS + 1): the bins of each band, spaced as ears do."""
    import numpy as np

    edges = np.geomspace(LOWEST, HIGHEST, BITS + 2)
    bins = np.arange(FRAME // 2 + 1) * RATE / FRAME
    inside = (bins[:, None] >= edges[:-1]) & (bins[:, None] < edges[1:])
    return inside.astype(np.float32)
