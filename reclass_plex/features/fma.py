"""The 518 FMA features of a batch of tracks, told from waveform to table row.

Defferrard, Benzi, Vandergheynst, Bresson, *FMA: A Dataset for Music Analysis*, ISMIR 2017: eleven
time series (74 rows), each summed up by seven statistics over time. The values are those of the
published script run with librosa 0.11 (`tests/fma_reference.py` is that script).

Two things to know before feeding them to a classifier:

- As in the published script the sampling rate reaches only the constant-Q transform and the mel
  bank. chroma_stft, centroid, bandwidth, contrast and roll-off are computed as if at 22,050 Hz.
- The published table comes from full tracks, and from the librosa of 2017: its rmse is about 45
  times ours (2048 / sqrt(2 x 1025)), and its edge frames were padded by reflection.

Parity ends where the last bit of a float decides a jump: a tie between two tunings, or a pitch
class whose share lies on a step of CENS. librosa itself falls either way there, by processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from reclass_plex.features import chroma, constant_q, filters, spectral, tuning
from reclass_plex.features.spectral import Chunk
from reclass_plex.features.statistics import STATISTICS, summarise

SERIES_ROWS = (  # in the published (alphabetical) order
    ("chroma_cens", 12),
    ("chroma_cqt", 12),
    ("chroma_stft", 12),
    ("mfcc", 20),
    ("rmse", 1),
    ("spectral_bandwidth", 1),
    ("spectral_centroid", 1),
    ("spectral_contrast", 7),
    ("spectral_rolloff", 1),
    ("tonnetz", 6),
    ("zcr", 1),
)

COLUMNS: tuple[tuple[str, str, str], ...] = tuple(
    (series, statistic, f"{number:02d}")
    for series, rows in SERIES_ROWS
    for statistic in STATISTICS
    for number in range(1, rows + 1)
)
COLUMN_NAMES: tuple[str, ...] = tuple("_".join(column) for column in COLUMNS)

CHUNK_COLUMNS = 768  # frames at a time on a CPU: 3 MB a spectrum, and few enough calls
CHUNK_COLUMNS_GPU = 8192
KEPT_BYTES = 128 * 2**20  # spectra kept for chroma_stft; a longer track's are computed twice


def extract_fma_features(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Return the 518 features (batch, 518) float32 of `samples` (batch, n) float32 at `rate` Hz.

    Columns are in the order of `COLUMNS`; the result is on the device of `samples`, and always
    finite: silence gives zeros where music gives shares. A track shorter than a filter is taken
    to be surrounded by silence, as librosa does. A long track is worked through in pieces: what
    stays is about a kilobyte a frame, and at most 128 MiB of spectra.

    Raises ValueError if `samples` is not (batch, n) float32 with n > 0, holds a NaN or an infinity,
    or if `rate` is below `MINIMUM_RATE`: the highest of the seven octaves would not fit below half
    the rate, and the published script stops there too. Resample such audio first.
    """
    _check(samples, rate)
    with torch.no_grad():
        return _extract(samples, rate)


def _check(samples: torch.Tensor, rate: int) -> None:
    if samples.ndim != 2 or samples.dtype != torch.float32 or 0 in samples.shape:
        raise ValueError(
            f"samples are {samples.dtype} of shape {tuple(samples.shape)}, "
            "not float32 of shape (batch, n) with n > 0"
        )
    if rate < filters.MINIMUM_RATE:
        raise ValueError(
            f"a rate of {rate} Hz is too low for the constant-Q features: "
            f"resample to {filters.MINIMUM_RATE} Hz or more"
        )
    if not bool((samples.amax() - samples.amin()).isfinite()):
        raise ValueError("samples hold a NaN or an infinity")


def _extract(samples: torch.Tensor, rate: int) -> torch.Tensor:
    batch, n = samples.shape
    frames = spectral.frame_count(n)
    shapes = samples.new_empty((4, batch, frames))
    extremes = samples.new_empty((14, batch, frames))
    mel_levels = samples.new_empty((filters.MELS, batch, frames))
    true_peaks: list[tuning.Peaks] = []
    told_peaks: list[tuning.Peaks] = []
    keep = batch * frames * filters.BINS * samples.element_size() <= KEPT_BYTES
    kept: list[torch.Tensor] = []

    for chunk in _chunks(samples, frames):
        power = spectral.power_spectrum(samples, chunk)
        magnitude = power.sqrt()
        _put(shapes, chunk, spectral.shape_series(magnitude, power))
        _put(extremes, chunk, spectral.contrast_extremes(magnitude))
        _put(mel_levels, chunk, spectral.mel_levels(power, rate))
        true, told = tuning.find_peaks(magnitude, power, rate, chunk)
        true_peaks.append(true)
        told_peaks.append(told)
        if keep:
            kept.append(power)

    # Only now, when all frames were seen, are the tunings known.
    told_tunings = tuning.estimate_tunings(told_peaks, batch)
    powers = kept or (spectral.power_spectrum(samples, c) for c in _chunks(samples, frames))
    chroma_stft = _chroma_stft(samples, frames, powers, told_tunings)
    true_tunings = tuning.estimate_tunings(true_peaks, batch)
    chroma_cqt = constant_q.constant_q_chroma(samples, rate, true_tunings)

    cens = chroma.energy_normalised(chroma_cqt)
    rms, bandwidth, centroid, rolloff = (row[:, None] for row in shapes)
    series = {
        "chroma_cens": cens,
        "chroma_cqt": chroma.by_maximum(chroma_cqt),
        "chroma_stft": chroma.by_maximum(chroma_stft),
        "mfcc": spectral.mfcc(mel_levels),
        "rmse": rms,
        "spectral_bandwidth": bandwidth,
        "spectral_centroid": centroid,
        "spectral_contrast": spectral.contrast(extremes),
        "spectral_rolloff": rolloff,
        "tonnetz": chroma.tonal_centroids(cens),
        "zcr": spectral.zero_crossing_rate(samples),
    }
    return torch.cat([summarise(series[name]).flatten(1) for name, _ in SERIES_ROWS], dim=1)


def _chroma_stft(
    samples: torch.Tensor, frames: int, powers: Iterable[torch.Tensor], tunings: Sequence[int]
) -> torch.Tensor:
    """Return the energy in the twelve tuned pitch classes (batch, 12, frames), by chunks."""
    banks = torch.stack([filters.chroma_bank(each, samples.device) for each in tunings])
    table = samples.new_empty((filters.NOTES, len(samples), frames))
    for chunk, power in zip(_chunks(samples, frames), powers, strict=True):
        by_item = power.view(filters.BINS, -1, chunk.count).transpose(0, 1)
        _put(table, chunk, (banks[chunk.items] @ by_item).transpose(0, 1))
    return table.transpose(0, 1)


def _chunks(samples: torch.Tensor, frames: int) -> Iterator[Chunk]:
    """Yield the batch in chunks: several whole short items, or a part of one long item."""
    columns = CHUNK_COLUMNS_GPU if samples.is_cuda else CHUNK_COLUMNS
    count = min(columns, frames)
    items = columns // count if count == frames else 1
    for item in range(0, len(samples), items):
        for first in range(0, frames, count):
            some = slice(item, min(item + items, len(samples)))
            yield Chunk(some, first, min(count, frames - first))


def _put(table: torch.Tensor, chunk: Chunk, rows: torch.Tensor) -> None:
    """Write `rows` (rows, columns of the chunk) to their place in `table` (rows, batch, frames)."""
    place = table[:, chunk.items, chunk.first : chunk.first + chunk.count]
    place.copy_(rows.reshape(place.shape))
