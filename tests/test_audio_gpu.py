"""Resampling on the GPU: as good as soxr where torchaudio is, soxr itself where it is not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from reclass_plex import audio_gpu
from reclass_plex.audio import resample
from reclass_plex.audio_gpu import resample_to
from reclass_plex.records import FloatArray, Waveform

needs_torchaudio = pytest.mark.skipif(
    not torch.cuda.is_available() or audio_gpu._transforms() is None,
    reason="needs a GPU, and torchaudio built for the same torch",
)


def sweep(rate: int, seconds: float = 2.0, top: float = 0.45) -> Waveform:
    """A sine that rises from 20 Hz to `top` of the rate."""
    time = np.arange(int(rate * seconds)) / rate
    phase = 20 * time + (top * rate - 20) * time**2 / (2 * seconds)
    samples: FloatArray = (0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)
    return Waveform(samples, rate, 0.0, seconds)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_on_a_cpu_it_is_soxr(rate: int) -> None:
    music = sweep(44_100)
    samples = resample_to(music, rate, "cpu")
    assert samples.dtype == torch.float32
    assert np.array_equal(samples.numpy(), resample(music, rate).samples)


def test_on_a_cpu_torchaudio_is_never_imported() -> None:
    """Beside a torch for the CPU it fails, and takes transformers with it."""
    code = (
        "import sys, numpy as np; from reclass_plex.audio_gpu import resample_to, _transforms;"
        "from reclass_plex.records import Waveform;"
        "resample_to(Waveform(np.zeros(44100, np.float32), 44100, 0.0, 1.0), 16000, 'cpu');"
        "import torch; torch.cuda.is_available() or _transforms();"
        "sys.exit('torchaudio' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        (44_100, 24_000, True),
        (48_000, 16_000, True),
        (96_000, 48_000, True),
        (44_099, 24_000, False),
    ],
)
def test_rates_with_a_huge_filter_stay_with_soxr(source: int, target: int, fits: bool) -> None:
    assert (audio_gpu._filter_taps(source, target) is not None) == fits


@needs_torchaudio
@pytest.mark.parametrize("source", [44_100, 48_000, 22_050, 96_000])
@pytest.mark.parametrize("target", [16_000, 24_000, 48_000])
def test_the_gpu_is_as_good_as_soxr(source: int, target: int) -> None:
    """Below 0.85 of the lower Nyquist frequency both pass all, so they may differ by little."""
    music = sweep(source, top=0.425 * min(1.0, target / source))
    ours = resample_to(music, target, "cuda")
    assert ours.is_cuda
    assert ours.dtype == torch.float32
    theirs = resample(music, target).samples
    assert abs(len(ours) - len(theirs)) <= 1
    middle = slice(target // 10, len(theirs) - target // 10)  # the ends are cut off differently
    noise = ours.cpu().numpy()[middle] - theirs[middle]
    level = 10 * np.log10(np.mean(noise**2) / np.mean(theirs[middle] ** 2))
    print(f"{source} -> {target} Hz: {level:.1f} dB")  # shown by pytest -rP
    assert level < -80


@needs_torchaudio
def test_on_the_gpu_what_is_above_is_removed() -> None:
    time = np.arange(96_000) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 11_000 * time)).astype(np.float32)
    aliased = resample_to(Waveform(tone, 48_000, 0.0, 2.0), 16_000, "cuda").cpu().numpy()
    assert np.abs(aliased[1600:-1600]).max() < 0.5 * 10 ** (-80 / 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_samples_lie_on_the_gpu_with_or_without_transforms() -> None:
    music = sweep(44_099)
    assert resample_to(music, 24_000, "cuda").is_cuda
    assert resample_to(music, music.rate, "cuda").cpu().numpy().tolist() == music.samples.tolist()
