"""The filter banks as librosa supplies them: what is shipped was made here, once.

`python -m reclass_plex.features.recipe` writes `data/filters/banks.safetensors`; the digest in
`data/SHA256SUMS` follows by `reclass_plex.models.write_sums()`. A track at a rate that is not
shipped gets its banks from here too, while the program runs. That imports librosa, whose compiler
(numba) takes 15 s and more where it has no cache yet: the reason why banks are shipped.
"""

from __future__ import annotations

import threading
import warnings

import numpy as np
import numpy.typing as npt
from librosa import cqt_frequencies, note_to_hz
from librosa.filters import chroma, mel, wavelet
from librosa.util import sparsify_rows
from safetensors.numpy import save_file

from reclass_plex.features.filters import (
    BANKS,
    CONSTANT_Q_RATES,
    ENCODER_MELS,
    FRAME_SAMPLES,
    LIBROSA_RATE,
    MEL_RATES,
    MELS,
    NOTES,
    OCTAVES,
    TUNINGS,
)

CHROMA_FLOOR = 1e-6  # of the largest weight of a bin: smaller ones are not shipped

_warnings_lock = threading.Lock()  # catch_warnings is global, and extraction runs in threads


def mel_bank(rate: int) -> npt.NDArray[np.float32]:
    """Return the mel bank (128, 1025) of `rate` Hz."""
    with _warnings_lock, warnings.catch_warnings():
        # Above about 120 kHz the lowest filters fall between two bins. The published script
        # would use them as they are, so do we.
        warnings.simplefilter("ignore")
        bank: npt.NDArray[np.float32] = mel(sr=rate, n_fft=FRAME_SAMPLES, n_mels=MELS)
    return bank


def encoder_mel_bank(rate: int, size: int, mels: int, low: float) -> npt.NDArray[np.float32]:
    """Return an encoder's mel bank (mels, size // 2 + 1): Slaney scale and norm, up to rate / 2.

    `size` is that of a frame in samples, `low` the lowest frequency in Hz.
    """
    bank: npt.NDArray[np.float32] = mel(sr=rate, n_fft=size, n_mels=mels, fmin=low)
    return bank


def chroma_bank(tuning: int) -> npt.NDArray[np.float32]:
    """Return the pitch-class bank (12, 1025) at 22,050 Hz, tuned."""
    bank: npt.NDArray[np.float32] = chroma(
        sr=LIBROSA_RATE, n_fft=FRAME_SAMPLES, n_chroma=NOTES, tuning=TUNINGS[tuning]
    )
    return bank


def constant_q_spectra(rate: float, tuning: int) -> npt.NDArray[np.float32]:
    """Return the spectra of the top octave's kernels: (12, bins, real and imaginary part).

    They are librosa's sparse filters for a signal at `rate` Hz, and scaled as it scales its
    response, by the root of each kernel's length.
    """
    frequencies, alpha = constant_q_frequencies(tuning)
    basis, lengths = wavelet(freqs=frequencies[-NOTES:], sr=rate, alpha=alpha[-NOTES:])
    samples = basis.shape[1]
    basis *= lengths[:, None] / samples
    spectra = np.fft.fft(basis)[:, : samples // 2 + 1].astype(np.complex64)
    spectra = sparsify_rows(spectra, quantile=0.01).toarray() / np.sqrt(lengths)[:, None]
    return np.stack([spectra.real, spectra.imag], axis=-1).astype(np.float32)


def constant_q_frequencies(
    tuning: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the 84 centre frequencies in Hz, from a tuned C1, and their relative bandwidths."""
    lowest = float(note_to_hz("C1")) * 2 ** (TUNINGS[tuning] / NOTES)
    frequencies = cqt_frequencies(OCTAVES * NOTES, fmin=lowest, bins_per_octave=NOTES)
    squared_ratio = 2 ** (2 / NOTES)
    alpha = np.full(len(frequencies), (squared_ratio - 1) / (squared_ratio + 1))
    return frequencies, alpha


def shipped_banks() -> dict[str, npt.NDArray[np.float32]]:
    """Return every bank that is shipped, by its name in the file."""
    tunings = range(len(TUNINGS))
    pitch_classes = np.stack([chroma_bank(tuning) for tuning in tunings])
    floor = CHROMA_FLOOR * pitch_classes.max(axis=1, keepdims=True)
    banks = {"chroma": np.where(pitch_classes < floor, np.float32(0), pitch_classes)}
    for rate in MEL_RATES:
        banks[f"mel-{rate}"] = mel_bank(rate)
    for name, (rate, size, mels, low) in ENCODER_MELS.items():
        banks[name] = encoder_mel_bank(rate, size, mels, low)
    for rate in CONSTANT_Q_RATES:
        spectra = [constant_q_spectra(rate, tuning) for tuning in tunings]
        banks[f"constant-q-{rate}"] = np.stack(spectra)
    return banks


def pack_banks(banks: dict[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the banks without their zeros: shape, a bit a weight, and the weights not zero."""
    packed: dict[str, npt.NDArray[np.generic]] = {}
    for name, bank in banks.items():
        packed[f"{name}.shape"] = np.array(bank.shape)
        packed[f"{name}.mask"] = np.packbits(bank.ravel() != 0)
        packed[f"{name}.weights"] = bank[bank != 0]
    return packed


if __name__ == "__main__":
    BANKS.parent.mkdir(exist_ok=True)
    save_file(pack_banks(shipped_banks()), BANKS)
