from __future__ import annotations

from pathlib import Path
from typing import get_args

import librosa
import numpy as np
import pytest
import torch
from torch.nn import functional

from reclass_plex.encoders.musicnn import (
    HOP_LENGTH,
    N_MELS,
    PATCH_FRAMES,
    RATE,
    TAGS,
    Checkpoint,
    Musicnn,
    choose_windows,
    load_musicnn,
    log_mel,
    log_mel_patches,
)
from reclass_plex.errors import ModelError
from reclass_plex.models import DATA, load_tensors

REFERENCE = np.load(Path(__file__).parent / "data" / "musicnn_reference.npz")
CHECKPOINTS: tuple[Checkpoint, ...] = get_args(Checkpoint)


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_encode_equals_the_original_graph(checkpoint: Checkpoint) -> None:
    output = load_musicnn(checkpoint).encode(torch.from_numpy(REFERENCE["log_mel"]))
    for name, value in (
        ("tags", output.tags),
        ("mean_pool", output.mean_pool),
        ("max_pool", output.max_pool),
    ):
        expected = REFERENCE[f"{checkpoint}_{name}"]
        assert value.shape == expected.shape
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-4)
    assert np.abs(output.tags.numpy() - REFERENCE[f"{checkpoint}_tags"]).max() < 1e-5
    assert output.penultimate.shape == (3, 200)


def plain_front_end(weights: dict[str, torch.Tensor], patches: torch.Tensor) -> torch.Tensor:
    """The front end as the paper writes it: convolution, ReLU, batch norm, maximum."""

    def norm(x: torch.Tensor, index: int) -> torch.Tensor:
        key = "batch_normalization" + (f"_{index}" if index else "")
        mean, variance = weights[f"{key}/moving_mean"], weights[f"{key}/moving_variance"]
        gamma, beta = weights[f"{key}/gamma"], weights[f"{key}/beta"]
        return functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)

    x = norm(patches[:, None], 0)
    branches = []
    for index, taps in enumerate((None, None, 128, 64, 32)):
        key = "conv2d" + (f"_{index}" if index else "")
        kernel = weights[f"{key}/kernel"].permute(3, 2, 0, 1)
        pad = (3, 3) if taps is None else ((taps - 1) // 2, taps - 1 - (taps - 1) // 2)
        y = functional.conv2d(functional.pad(x, (0, 0, *pad)), kernel, weights[f"{key}/bias"])
        branches.append(norm(torch.relu(y), index + 1).amax(3))
    return torch.cat(branches, 1)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_encode_equals_plain_convolutions_on_any_input(checkpoint: Checkpoint) -> None:
    weights = load_tensors(DATA / "musicnn" / f"{checkpoint}.safetensors")
    patches = log_mel_patches(noise(6))
    front = plain_front_end(weights, patches)
    output = load_musicnn(checkpoint).encode(patches)
    np.testing.assert_allclose(output.max_pool[:, :561], front.amax(2), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.mean_pool[:, :561], front.mean(2), rtol=1e-4, atol=1e-4)


def test_negative_batch_norm_scale_takes_the_minimum() -> None:
    weights = load_tensors(DATA / "musicnn" / "msd.safetensors")
    for index in range(1, 6):
        weights[f"batch_normalization_{index}/gamma"][::2] *= -1
    patches = torch.from_numpy(REFERENCE["log_mel"])
    front = plain_front_end(weights, patches)
    output = Musicnn(weights).encode(patches)
    np.testing.assert_allclose(output.max_pool[:, :561], front.amax(2), rtol=1e-4, atol=1e-4)


def test_log_mel_equals_librosa() -> None:
    samples = noise(4) + 0.3 * torch.sin(torch.arange(4 * RATE) * 0.2)
    power = librosa.feature.melspectrogram(
        y=samples.numpy(), sr=RATE, n_fft=512, hop_length=HOP_LENGTH, n_mels=96, pad_mode="reflect"
    )
    expected = np.log10(10_000 * power.T + 1)
    np.testing.assert_allclose(log_mel(samples).numpy(), expected, atol=1e-4)


def test_log_mel_of_the_loudest_signal_is_finite() -> None:
    square = torch.where(torch.arange(RATE) // 80 % 2 == 0, 1.0, -1.0)
    assert log_mel(8 * square).isfinite().all()


def test_windows_are_spread_from_start_to_end() -> None:
    frames = 30 * RATE // HOP_LENGTH + 1
    starts = choose_windows(frames, 10)
    assert len(starts) == 10
    assert starts[0] == 0
    assert starts[-1] == frames - PATCH_FRAMES
    steps = np.diff(starts)
    assert steps.min() >= PATCH_FRAMES and np.ptp(steps) <= 1
    assert len(choose_windows(frames, 3)) == 3
    assert choose_windows(frames, 1) == ((frames - PATCH_FRAMES) // 2,)
    assert choose_windows(PATCH_FRAMES, 10) == (0,)
    assert len(choose_windows(3 * PATCH_FRAMES - 1, 10)) == 2


def test_short_audio_is_repeated_to_one_patch() -> None:
    spectrogram = log_mel(noise(1))
    patches = log_mel_patches(noise(1))
    assert patches.shape == (1, PATCH_FRAMES, N_MELS)
    frames = len(spectrogram)
    assert torch.equal(patches[0, :frames], spectrogram)
    assert torch.equal(patches[0, frames : 2 * frames], spectrogram)
    assert torch.equal(patches[0, 2 * frames :], spectrogram[: PATCH_FRAMES - 2 * frames])


@pytest.mark.parametrize("samples", [torch.zeros(0), torch.zeros(256), torch.zeros(2, 16_000)])
def test_log_mel_refuses_what_is_no_waveform(samples: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="samples"):
        log_mel(samples)


@pytest.mark.parametrize("shape", [(0, 187, 96), (187, 96), (1, 96, 187)])
def test_encode_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="patches"):
        load_musicnn("msd").encode(torch.zeros(shape))


def test_patches_do_not_depend_on_their_neighbours() -> None:
    patches = torch.from_numpy(REFERENCE["log_mel"])
    together = load_musicnn("mtt").encode(patches).logits
    alone = torch.cat([load_musicnn("mtt").encode(p[None]).logits for p in patches])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_tag_names_are_fifty_and_distinct() -> None:
    for names in TAGS.values():
        assert len(names) == len(set(names)) == 50


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("dense/bias"), "dense/bias"),
        (lambda w: w.update({"dense/bias": torch.zeros(3)}), "dense/bias has the shape"),
        (lambda w: w["dense/kernel"].fill_(float("nan")), "dense/kernel holds values"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
    ],
)
def test_damaged_weights_are_named(damage: object, message: str) -> None:
    weights = load_tensors(DATA / "musicnn" / "msd.safetensors")
    assert callable(damage)
    damage(weights)
    with pytest.raises(ModelError, match=message):
        Musicnn(weights)


def test_unreadable_weights_name_the_file(tmp_path: Path) -> None:
    truncated = tmp_path / "half.safetensors"
    truncated.write_bytes((DATA / "musicnn" / "msd.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match=r"half\.safetensors"):
        load_tensors(truncated)
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        load_tensors(tmp_path / "missing.safetensors")
