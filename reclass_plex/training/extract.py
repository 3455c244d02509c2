"""Clips to features, as the ensemble's stages hear them; kept in a cache folder, never shipped.

Each clip is cut into windows of 3 s. Besides, each gives some disturbed windows for fitting: up to
2.5 semitones faster or slower, -12 to +6 dB, the treble raised or lowered, cut at random places.
They stand for what differs between recordings of one kind of music. Nothing is judged by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
import torch

from reclass_plex.audio import decode_excerpt, resample
from reclass_plex.encoders.musicnn import RATE, load_musicnn, log_mel_patches
from reclass_plex.evidence import cut_windows
from reclass_plex.features import extract_fma_features
from reclass_plex.records import Excerpt, FloatArray, Waveform

FMA_RATE = 22_050  # Hz, that of the training clips
DISTURBED = 6  # windows a clip
EXCERPT = Excerpt(30.0)


@dataclass(frozen=True)
class Table:
    """Features (n, d) of windows; `clip` (n,) says whose, `disturbed` (n,) that they are not real.

    Windows of one clip stand together in the order of time.
    """

    features: npt.NDArray[np.float64]
    clip: npt.NDArray[np.int64]
    disturbed: npt.NDArray[np.bool_]

    @property
    def real(self) -> Table:
        """The windows as they are in the clips."""
        return self.rows(~self.disturbed)

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Table:
        """Some of the windows."""
        return Table(self.features[chosen], self.clip[chosen], self.disturbed[chosen])

    def columns(self, chosen: slice) -> Table:
        """The same windows with fewer features."""
        return Table(self.features[:, chosen], self.clip, self.disturbed)


def musicnn_features(waveform: Waveform, windows: int = 10) -> FloatArray:
    """Return (w, 500): for each window the features of `msd`, then those of `mtt`."""
    samples = torch.from_numpy(resample(waveform, RATE).samples)
    patches = log_mel_patches(samples, windows)
    both = [load_musicnn(checkpoint).encode(patches).features for checkpoint in ("msd", "mtt")]
    return torch.cat(both, 1).numpy()


def fma518_features(waveform: Waveform, windows: int = 10) -> FloatArray:
    """Return (w, 518) at 22,050 Hz."""
    pieces = cut_windows(resample(waveform, FMA_RATE).samples, 3 * FMA_RATE, windows)
    return extract_fma_features(torch.from_numpy(pieces), FMA_RATE).numpy()


def disturb(waveform: Waveform, generator: np.random.Generator) -> Waveform:
    """Return a piece of at most 3 s, played faster or slower, louder or softer, tilted."""
    rate = waveform.rate
    speed = 2 ** (generator.uniform(-2.5, 2.5) / 12)
    samples = soxr.resample(waveform.samples, rate * speed, rate)
    samples *= 10 ** (generator.uniform(-12, 6) / 20)
    tilt = generator.uniform(-0.5, 0.5)
    samples[1:] += tilt * samples[:-1].copy()
    length = 3 * rate
    start = int(generator.integers(max(1, len(samples) - length)))
    piece = np.ascontiguousarray(samples[start : start + length], dtype=np.float32)
    return Waveform(piece, rate, 0.0, len(piece) / rate)


def extract_table(
    paths: tuple[Path, ...], extract: Callable[[Waveform], FloatArray], cache: Path
) -> Table:
    """Return the windows of all clips, real and disturbed; read from `cache` if it is there."""
    if not cache.exists():
        rows = list(_rows(paths, extract))
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            cache,
            features=np.concatenate([features for features, _, _ in rows]),
            clip=np.concatenate([np.full(len(f), clip) for f, clip, _ in rows]),
            disturbed=np.concatenate([np.full(len(f), d) for f, _, d in rows]),
        )
    with np.load(cache) as stored:
        return Table(stored["features"].astype(np.float64), stored["clip"], stored["disturbed"])


def _rows(
    paths: tuple[Path, ...], extract: Callable[[Waveform], FloatArray]
) -> Iterator[tuple[FloatArray, int, bool]]:
    for clip, path in enumerate(paths):
        waveform = decode_excerpt(path, EXCERPT)
        yield extract(waveform), clip, False
        generator = np.random.default_rng(clip)
        for _ in range(DISTURBED):
            yield extract(disturb(waveform, generator)), clip, True
