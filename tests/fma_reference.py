"""The published FMA feature script, said again with librosa 0.11: the oracle of the tests.

Source: `features.py` of the FMA repository (Defferrard et al., ISMIR 2017). The script ran with
the librosa of 2017, so three of its calls are spelled differently here:

- `chroma_cqt` and `chroma_cens` took 12 bins an octave from `n_chroma`. librosa 0.11 assumes 36
  unless told, and would fold three semitones of this 84-bin transform into each pitch class.
- `rmse` is called `rms`, and counts both halves of the spectrum and the frame length:
  the published values are about 45 times as large (2048 / sqrt(2 x 1025)).
- `librosa.stft` padded by reflection; 0.11 pads with zeros.

Conventions: `samples` (n,) float32 mono; a series is (rows, frames); `rate` in Hz reaches only the
constant-Q transform and the mel filter bank, as in the script.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from time import perf_counter

import librosa
import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float32]

# Statistics in the published (alphabetical) order. The script calls scipy's biased estimators;
# the `nan` that today's scipy gives for a constant row was 0 (skew) and -3 (kurtosis) in 2017.
STATISTICS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("kurtosis", lambda x: np.nan_to_num(stats.kurtosis(x, axis=1), nan=-3.0)),
    ("max", lambda x: np.max(x, axis=1)),
    ("mean", lambda x: np.mean(x, axis=1)),
    ("median", lambda x: np.median(x, axis=1)),
    ("min", lambda x: np.min(x, axis=1)),
    ("skew", lambda x: np.nan_to_num(stats.skew(x, axis=1), nan=0.0)),
    ("std", lambda x: np.std(x, axis=1)),
)


class Stopwatch:
    """Seconds spent in each part of the reference, for the benchmark."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = perf_counter()

    def lap(self, part: str) -> None:
        """Book the time since the last call to `part`."""
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


def compute_series(
    samples: Array, rate: int, quirk: bool = True, watch: Stopwatch | None = None
) -> dict[str, Array]:
    """Return the eleven series. `quirk=False` gives every call the true rate (not as published)."""
    watch = watch or Stopwatch()
    told = 22_050 if quirk else rate  # Hz; librosa's default, which the script relied on

    series: dict[str, Array] = {}
    series["zcr"] = librosa.feature.zero_crossing_rate(samples, frame_length=2048, hop_length=512)
    watch.lap("zcr")

    constant_q = np.abs(
        librosa.cqt(
            samples, sr=rate, hop_length=512, bins_per_octave=12, n_bins=7 * 12, tuning=None
        )
    )
    watch.lap("constant-Q")
    octaves = {"n_chroma": 12, "n_octaves": 7, "bins_per_octave": 12}
    series["chroma_cqt"] = librosa.feature.chroma_cqt(C=constant_q, **octaves)
    series["chroma_cens"] = librosa.feature.chroma_cens(C=constant_q, **octaves)
    series["tonnetz"] = librosa.feature.tonnetz(chroma=series["chroma_cens"])
    watch.lap("chroma of constant-Q")

    stft = np.abs(librosa.stft(samples, n_fft=2048, hop_length=512))
    watch.lap("STFT")
    series["chroma_stft"] = librosa.feature.chroma_stft(S=stft**2, n_chroma=12, sr=told)
    watch.lap("chroma_stft")
    series["rmse"] = librosa.feature.rms(S=stft)
    watch.lap("rmse")
    series["spectral_centroid"] = librosa.feature.spectral_centroid(S=stft, sr=told)
    watch.lap("spectral_centroid")
    series["spectral_bandwidth"] = librosa.feature.spectral_bandwidth(S=stft, sr=told)
    watch.lap("spectral_bandwidth")
    series["spectral_contrast"] = librosa.feature.spectral_contrast(S=stft, n_bands=6, sr=told)
    watch.lap("spectral_contrast")
    series["spectral_rolloff"] = librosa.feature.spectral_rolloff(S=stft, sr=told)
    watch.lap("spectral_rolloff")
    mel = librosa.feature.melspectrogram(sr=rate, S=stft**2)
    series["mfcc"] = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=20)
    watch.lap("mfcc")
    return dict(sorted(series.items()))


def summarise(
    series: dict[str, Array],
) -> tuple[list[tuple[str, str, str]], npt.NDArray[np.float64]]:
    """Return the names (series, statistic, number) and the values of the seven statistics."""
    names: list[tuple[str, str, str]] = []
    values: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, on rows that hardly change
        for name, rows in series.items():
            for statistic, function in STATISTICS:
                for number, value in enumerate(function(rows), start=1):
                    names.append((name, statistic, f"{number:02d}"))
                    values.append(float(value))
    return names, np.array(values)


def reference_features(
    samples: Array, rate: int, quirk: bool = True, watch: Stopwatch | None = None
) -> npt.NDArray[np.float64]:
    """Return the 518 features in the published order."""
    watch = watch or Stopwatch()
    series = compute_series(samples, rate, quirk, watch)
    values = summarise(series)[1]
    watch.lap("statistics")
    return values


def undecided_series(samples: Array, rate: int) -> set[str]:
    """Return the series in which the last bit of a float can decide a jump.

    - A tuning is the highest of 100 histogram bins of some dozen peaks each. With a lead of no
      or one peak it hangs on the rounding of a logarithm, which differs between processors.
    - CENS rounds each pitch class's share of a frame to steps. A share within 1e-6 of a step
      hangs on the rounding of a sum.
    """
    undecided: set[str] = set()
    stft = np.abs(librosa.stft(samples, n_fft=2048, hop_length=512))
    if _tuning_lead(stft, rate) <= 1:
        undecided |= {"chroma_cqt", "chroma_cens", "tonnetz"}
    if _tuning_lead(stft**2, 22_050) <= 1:
        undecided |= {"chroma_stft"}
    constant_q = np.abs(librosa.cqt(samples, sr=rate, hop_length=512, tuning=None))
    energy = constant_q.reshape(7, 12, -1).sum(axis=0)
    shares = energy / np.maximum(energy.sum(axis=0), 1e-30)
    if any(np.abs(shares - step).min() < 1e-6 for step in (0.4, 0.2, 0.1, 0.05)):
        undecided |= {"chroma_cens", "tonnetz"}
    return undecided


def _tuning_lead(spectrum: Array, rate: int) -> int:
    """Return by how many peaks the tuning estimate won over the next."""
    pitches, heights = librosa.piptrack(S=spectrum, sr=rate)
    counted = (pitches > 0) & (heights >= np.median(heights[pitches > 0]))
    residuals = np.mod(12 * librosa.hz_to_octs(pitches[counted]) + 0.5, 1.0) - 0.5
    counts = np.sort(np.histogram(residuals, np.linspace(-0.5, 0.5, 101))[0])
    return int(counts[-1] - counts[-2])
