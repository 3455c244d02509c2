"""Filter banks of the FMA features: librosa's, as torch tensors per device.

Those of the common rates were made once by `recipe.py` and are shipped; at another rate the
recipe, and with it librosa, is called here.

Conventions: a bank is (filters, bins), float32, for a spectrum of 2048-sample frames (1025 bins).
A tuning is an index into `TUNINGS`, because librosa reads it off a histogram of 100 bins.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from reclass_plex.errors import ModelError, printable

BANKS = Path(__file__).parents[1] / "data" / "filters" / "banks.safetensors"

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
HIGHEST_FREQUENCY = 4_122.064  # Hz; the same of the untuned top filter

# Hz; what is shipped. librosa halves each of the first to one of the second for the constant-Q.
MEL_RATES = (22_050, 44_100, 48_000, 88_200, 96_000, 192_000)
CONSTANT_Q_RATES = (22_050, 24_000)

# Of the encoders' own front ends: rate in Hz, samples a frame, mel bands, lowest frequency in Hz.
ENCODER_MELS = {"mel-musicnn": (16_000, 512, 96, 0.0), "mel-jmla": (16_000, 400, 80, 50.0)}

MEL_BLOCK = 16  # filters a block; neighbours share most of their bins


@lru_cache(maxsize=8)
def frame_window(device: torch.device) -> torch.Tensor:
    """Return the periodic Hann window (2048,) in float64."""
    return torch.hann_window(FRAME_SAMPLES, dtype=torch.float64, device=device)


@lru_cache(maxsize=32)
def mel_blocks(rate: int, device: torch.device) -> tuple[tuple[int, torch.Tensor], ...]:
    """Return the mel bank as blocks of 16 filters: (first bin, weights (16, bins of the block)).

    A block leaves out the bins that none of its filters touches, which is most of them.
    """
    if rate in MEL_RATES:
        bank = shipped_bank(f"mel-{rate}")
    else:
        from reclass_plex.features import recipe

        bank = recipe.mel_bank(rate)
    blocks = []
    for first_filter in range(0, MELS, MEL_BLOCK):
        block = bank[first_filter : first_filter + MEL_BLOCK]
        used = np.flatnonzero(block.any(axis=0))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        weights = np.ascontiguousarray(block[:, first : last + 1])
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
    return torch.from_numpy(shipped_bank("chroma")[tuning]).to(device)


@lru_cache(maxsize=32)
def early_halvings(rate: int) -> int:
    """Return how often librosa halves the rate before the highest octave of the constant-Q.

    librosa decides by the tuned filters, we by the untuned: between 32.0 and 33.9 kHz (and twice
    and four times that) one halving more or less, which changes no value that matters.
    """
    octaves_free = math.ceil(math.log2(rate / 2 / HIGHEST_FREQUENCY)) - 2
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
    if rate in CONSTANT_Q_RATES:
        parts = shipped_bank(f"constant-q-{rate:.0f}")[tuning]
    else:
        from reclass_plex.features import recipe

        parts = recipe.constant_q_spectra(rate, tuning)
    samples = 2 * (parts.shape[1] - 1)
    # response = sum_k spectra[k] sum_n frame[n] exp(-2 pi i k n / samples)
    kernels = np.fft.fft(parts[..., 0] + 1j * parts[..., 1].astype(np.float64), samples)
    stacked = np.concatenate([kernels.real, kernels.imag]).T
    return torch.from_numpy(np.ascontiguousarray(stacked, dtype=np.float32)).to(device)


@lru_cache(maxsize=16)
def shipped_bank(name: str) -> npt.NDArray[np.float32]:
    """Return a bank of the shipped file, for all tunings.

    They are chroma, mel-RATE, constant-q-RATE, and the encoders' (`ENCODER_MELS`).

    The file leaves out zeros: a bit a weight tells them from the weights that are there. Raises
    ModelError if it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(BANKS, "numpy") as file:
            shape, mask, weights = (
                file.get_tensor(f"{name}.{part}") for part in ("shape", "mask", "weights")
            )
    except (SafetensorError, OSError) as error:
        reason = f"cannot read the filter banks: {error}"
        raise ModelError(f"{printable(BANKS)}: {reason}; reinstall reclass-plex") from error
    bank = np.zeros(shape, np.float32)
    bank.ravel()[np.unpackbits(mask, count=bank.size).view(bool)] = weights
    return bank


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
