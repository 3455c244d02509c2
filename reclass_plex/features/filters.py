"""Filter banks of the FMA features: built once by librosa, kept as torch tensors per device.

Conventions: a bank is (filters, bins), float32, for a spectrum of 2048-sample frames (1025 bins).
A tuning is an index into `TUNINGS`, because librosa reads it off a histogram of 100 bins.
"""

from __future__ import annotations

import math
import threading
import warnings
from functools import lru_cache

import numpy as np
import torch

FRAME_SAMPLES = 2048
HOP_SAMPLES = 512
BINS = FRAME_SAMPLES // 2 + 1
LIBROSA_RATE = 22_050  # Hz; what librosa assumes when it is told no rate
OCTAVES = 7
NOTES = 12  # pitch classes, and constant-Q bins an octave
MELS = 128
MFCCS = 20

# Hundredths of a semitone; the left edges of the histogram in librosa.pitch_tuning.
TUNINGS: tuple[float, ...] = tuple(float(edge) for edge in np.linspace(-0.5, 0.5, 101)[:-1])
NO_TUNING = 50  # TUNINGS[50] == 0.0

# Hz; the top filter of the highest tuning reaches 4,240.4 Hz, and must stay below half the rate.
MINIMUM_RATE = 8_481

MEL_BLOCK = 16  # filters a block; neighbours share most of their bins

_warnings_lock = threading.Lock()  # catch_warnings is global, and extraction runs in threads


@lru_cache(maxsize=8)
def frame_window(device: torch.device) -> torch.Tensor:
    """Return the periodic Hann window (2048,) in float64."""
    from librosa.filters import get_window

    return torch.from_numpy(get_window("hann", FRAME_SAMPLES)).to(device)


@lru_cache(maxsize=32)
def mel_blocks(rate: int, device: torch.device) -> tuple[tuple[int, torch.Tensor], ...]:
    """Return the mel bank as blocks of 16 filters: (first bin, weights (16, bins of the block)).

    A block leaves out the bins that none of its filters touches, which is most of them.
    """
    from librosa.filters import mel

    with _warnings_lock, warnings.catch_warnings():
        # Above about 120 kHz the lowest filters fall between two bins. The published script
        # would use them as they are, so do we.
        warnings.simplefilter("ignore")
        bank = mel(sr=rate, n_fft=FRAME_SAMPLES, n_mels=MELS)
    blocks = []
    for first_filter in range(0, MELS, MEL_BLOCK):
        block = bank[first_filter : first_filter + MEL_BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        weights = np.ascontiguousarray(block[:, first : last + 1], dtype=np.float32)
        blocks.append((first, torch.from_numpy(weights).to(device)))
    return tuple(blocks)


@lru_cache(maxsize=8)
def cosine_bank(device: torch.device) -> torch.Tensor:
    """Return the orthonormal DCT-II that turns 128 mel levels into 20 coefficients: (20, 128)."""
    mels = torch.arange(MELS, dtype=torch.float64)
    orders = torch.arange(MFCCS, dtype=torch.float64)[:, None]
    bank = torch.cos(math.pi / MELS * (mels + 0.5) * orders) * math.sqrt(2 / MELS)
    bank[0] /= math.sqrt(2)
    return bank.to(device, torch.float32)


@lru_cache(maxsize=256)
def chroma_bank(tuning: int, device: torch.device) -> torch.Tensor:
    """Return the pitch-class bank (12, 1025) at 22,050 Hz, tuned."""
    from librosa.filters import chroma

    bank = chroma(sr=LIBROSA_RATE, n_fft=FRAME_SAMPLES, n_chroma=NOTES, tuning=TUNINGS[tuning])
    return torch.from_numpy(bank).to(device)


@lru_cache(maxsize=32)
def early_halvings(rate: int) -> int:
    """Return how often librosa halves the rate before the highest octave of the constant-Q.

    librosa decides by the tuned filters, we by the untuned: between 32.0 and 33.9 kHz (and twice
    and four times that) one halving more or less, which changes no value that matters.
    """
    octaves_free = math.ceil(math.log2(rate / 2 / _highest_frequency())) - 2
    hop_spares = int(math.log2(HOP_SAMPLES)) - OCTAVES + 1  # the hop is halved with the rate
    return max(0, min(octaves_free, hop_spares))


@lru_cache(maxsize=512)
def constant_q_bank(rate: float, tuning: int, device: torch.device) -> torch.Tensor:
    """Return the kernels of the highest octave, real then imaginary: (samples, 24).

    `rate` is that of the signal they meet. One set serves all octaves, since librosa halves the
    rate from octave to octave. Each kernel is librosa's sparse frequency-domain filter, brought
    back to the time domain: a plain product with the samples gives librosa's response exactly,
    with what the sparsity of 1 % adds to it.
    """
    from librosa.filters import wavelet
    from librosa.util import sparsify_rows

    frequencies, alpha = _constant_q_frequencies(TUNINGS[tuning])
    basis, lengths = wavelet(freqs=frequencies[-NOTES:], sr=rate, alpha=alpha[-NOTES:])
    samples = basis.shape[1]
    basis *= lengths[:, None] / samples
    spectra = np.fft.fft(basis)[:, : samples // 2 + 1].astype(np.complex64)
    spectra = sparsify_rows(spectra, quantile=0.01).toarray().astype(np.complex128)
    # response = sum_k spectra[k] sum_n frame[n] exp(-2 pi i k n / samples)
    padded = np.zeros((NOTES, samples), np.complex128)
    padded[:, : samples // 2 + 1] = spectra
    kernels = np.fft.fft(padded) / np.sqrt(lengths)[:, None]
    stacked = np.concatenate([kernels.real, kernels.imag]).T
    return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32)).to(device)


def _constant_q_frequencies(tuning: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the 84 centre frequencies in Hz, from a tuned C1, and their relative bandwidths."""
    from librosa import cqt_frequencies, note_to_hz

    lowest = float(note_to_hz("C1")) * 2 ** (tuning / NOTES)
    frequencies = cqt_frequencies(OCTAVES * NOTES, fmin=lowest, bins_per_octave=NOTES)
    squared_ratio = 2 ** (2 / NOTES)
    alpha = np.full(len(frequencies), (squared_ratio - 1) / (squared_ratio + 1))
    return frequencies, alpha


def _highest_frequency() -> float:
    """Return the upper edge of the untuned top filter in Hz, as librosa reckons it."""
    from librosa.filters import wavelet_lengths

    frequencies, alpha = _constant_q_frequencies(0.0)
    return float(wavelet_lengths(freqs=frequencies, sr=LIBROSA_RATE, alpha=alpha)[1])


# The low-pass of soxr "HQ", with which librosa halves the rate: a sinc under a Kaiser window.
# Fitted to its response to an impulse (soxr 1.1.0); the largest difference is 3e-8.
HALVING_REACH = 194  # samples on either side of the one that a halved sample sits on
HALVING_HALF_WIDTH = 194.498699  # samples
HALVING_CUTOFF = 0.956871833  # of the new Nyquist frequency
HALVING_BETA = 13.03996899
HALVING_SAMPLES = 2048  # a block of the convolution, as long as soxr's own


@lru_cache(maxsize=8)
def halving_response(device: torch.device) -> torch.Tensor:
    """Return the low-pass up to the new Nyquist frequency, for blocks of 2048: (513,) complex.

    Nothing above it is left (150 dB down), so that a spectrum is halved by cutting it off there.
    The division by two that goes with the shorter inverse transform is included.
    """
    taps = np.arange(-HALVING_REACH, HALVING_REACH + 1)
    arch = np.sqrt(1 - (taps / HALVING_HALF_WIDTH) ** 2)
    low_pass = np.sinc(HALVING_CUTOFF / 2 * taps) * np.i0(HALVING_BETA * arch)
    low_pass /= low_pass.sum()
    response = np.fft.rfft(low_pass, HALVING_SAMPLES)[: HALVING_SAMPLES // 4 + 1] / 2
    return torch.from_numpy(response.astype(np.complex64)).to(device)
