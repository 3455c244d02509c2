from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import tiny_models
import torch

from reclass_plex.encoders import Pooling
from reclass_plex.encoders.jmla import FRAMES, RATE, VitConfig, load_jmla, log_mel
from reclass_plex.errors import ModelError

WEIGHTS = "epoch_20.pth"


def audio(windows: int, seconds: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(windows, int(seconds * RATE), generator=generator)
    return 0.05 * noise + 0.2 * torch.sin(torch.arange(noise.shape[1]) * 0.3)


def documented_image(samples: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the log-mel image (80, frames) of one window by librosa, all frames."""
    power = librosa.feature.melspectrogram(
        y=samples.numpy(),
        sr=RATE,
        n_fft=400,
        hop_length=160,
        n_mels=80,
        fmin=50,
        fmax=8000,
        pad_mode="reflect",
    )
    image: np.ndarray[Any, Any] = (np.log(power + 1.1920929e-07) + 4.5) / 4.5
    return image


def test_the_image_equals_librosa() -> None:
    samples = audio(1, 30)[0]
    expected = documented_image(samples)
    assert expected.shape == (80, 3001)
    image = log_mel(samples[None])
    assert image.shape == (1, 80, FRAMES)
    np.testing.assert_allclose(image[0].numpy(), expected[:, :FRAMES], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", [1.0, 11.3, 29.9])
def test_a_short_image_is_repeated_in_a_circle(seconds: float) -> None:
    samples = audio(1, seconds)[0]
    short = documented_image(samples)
    missing = FRAMES - short.shape[1]
    before = missing // 2
    expected = np.pad(short, ((0, 0), (before, missing - before)), mode="wrap")
    np.testing.assert_allclose(log_mel(samples[None])[0].numpy(), expected, rtol=0, atol=1e-4)


def vit(tensors: dict[str, torch.Tensor], sizes: dict[str, int]) -> Any:
    """Return transformers' ViT, three channels and all, with JMLA's weights."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["feedforward"],
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        image_size=(80, 2992),
        patch_size=16,
    )
    config._attn_implementation = "eager"
    model: Any = ViTModel(config, add_pooling_layer=False)
    model.eval()
    older = {  # names before transformers 5
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    theirs = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.projection",
        "layernorm_before": "ln1",
        "layernorm_after": "ln2",
        "layernorm": "ln1",
        "attention.o_proj": "attn.proj",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        published = name
        for one, other in (*older.items(), *theirs.items()):
            published = published.replace(one, other)
        for row, part in enumerate(("q_proj", "k_proj", "v_proj")):
            if f"attention.{part}" in published:
                qkv = tensors[published.replace(f"attention.{part}", "attn.qkv")]
                state[name] = qkv.chunk(3)[row]
                break
        else:
            state[name] = tensors[published]
        assert state[name].shape == tensor.shape
    model.load_state_dict(state)
    return model


@torch.no_grad()
def witness(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Return all tokens (n, 936, width) after the final norm."""
    images = log_mel(windows)[:, None].expand(-1, 3, -1, -1)
    tokens: torch.Tensor = model(images).last_hidden_state
    return tokens


def test_embeddings_equal_an_independent_vit(tmp_path: Path) -> None:
    tensors = tiny_models.write_tiny_jmla(tmp_path)
    windows = torch.stack([*audio(1, 30), *audio(1, 30, seed=1)])
    tokens = witness(vit(tensors, tiny_models.TINY_JMLA), windows)
    mean, cls = tokens[:, 1:].mean(1), tokens[:, 0]
    poolings: dict[Pooling, torch.Tensor] = {
        "mean": mean,
        "cls": cls,
        "cls+mean": torch.cat([cls, mean], 1),
    }
    for pooling, expected in poolings.items():
        encoder = load_jmla(tmp_path, pooling, dtype=torch.float32)
        embeddings = encoder.encode(windows)
        assert embeddings.shape == (2, 1, encoder.dims)
        torch.testing.assert_close(embeddings[:, 0], expected, rtol=0, atol=1e-5)
    assert (mean[0] - mean[1]).abs().max() > 1e-3  # so that 1e-5 means something
    assert (mean - cls).abs().max() > 0.1
    half = load_jmla(tmp_path, dtype=torch.bfloat16).encode(windows)
    assert torch.cosine_similarity(half[:, 0], mean).min() > 0.999


def test_every_token_equals_an_independent_vit(tmp_path: Path) -> None:
    tensors = tiny_models.write_tiny_jmla(tmp_path)
    windows = audio(1, 3)
    encoder = load_jmla(tmp_path, dtype=torch.float32)
    tokens = encoder.network(log_mel(windows))
    expected = witness(vit(tensors, tiny_models.TINY_JMLA), windows)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_the_published_sizes_have_the_published_count() -> None:
    shapes = VitConfig().tensor_shapes()
    assert len(shapes) == 150
    assert sum(math.prod(shape) for shape in shapes.values()) == 86_366_208
    sizes = {"width": 768, "depth": 12, "heads": 12, "feedforward": 3072}
    made = tiny_models.jmla_tensors(sizes | {"depth": 1})
    assert all(shapes[name] == tuple(tensor.shape) for name, tensor in made.items())


def test_containers_hold_the_same(tmp_path: Path) -> None:
    from reclass_plex.models.convert import convert

    windows = audio(1, 2)
    found = []
    containers: tuple[tiny_models.Container, ...] = ("wrapped", "bare", "backbone")
    for container in containers:
        folder = tmp_path / container
        tiny_models.write_tiny_jmla(folder, container)
        found.append(load_jmla(folder, dtype=torch.float32).encode(windows))
        convert(folder / WEIGHTS, folder / "epoch_20.safetensors")
        (folder / WEIGHTS).unlink()
        found.append(load_jmla(folder, dtype=torch.float32).encode(windows))
    assert all(torch.equal(embeddings, found[0]) for embeddings in found)


def test_what_was_trained_beside_the_backbone_is_left_out(tmp_path: Path) -> None:
    tiny_models.write_tiny_jmla(tmp_path, "backbone")
    content = torch.load(tmp_path / WEIGHTS, weights_only=True)
    content["state_dict"]["neck.decoder_embed.weight"] = torch.zeros(3)
    torch.save(content, tmp_path / WEIGHTS)
    assert load_jmla(tmp_path).dims == 64


def test_without_a_configuration_the_published_sizes_hold(tmp_path: Path) -> None:
    tiny_models.write_tiny_jmla(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"epoch_20\.pth: 30 tensors where 150 are expected"):
        load_jmla(tmp_path)


def test_cut_and_encode_fit_each_other(tmp_path: Path) -> None:
    tiny_models.write_tiny_jmla(tmp_path)
    encoder = load_jmla(tmp_path, dtype=torch.float32)
    for seconds, count, length in ((0.001, 1, 400), (4.0, 1, 64_000), (58.0, 2, 480_000)):
        windows = encoder.cut(audio(1, seconds)[0])
        assert windows.shape == (count, length)
        assert encoder.encode(windows).shape == (count, 1, 64)
    with pytest.raises(ValueError, match="mono samples"):
        encoder.cut(torch.zeros(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silence_and_clipping_are_finite(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_models.write_tiny_jmla(tmp_path)
    square = torch.where(torch.arange(RATE) // 40 % 2 == 0, 1.0, -1.0)
    windows = torch.stack([torch.zeros(RATE), square, 1e6 * square])
    assert load_jmla(tmp_path, dtype=dtype).encode(windows).isfinite().all()


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (torch.zeros(16_000), "windows are"),
        (torch.zeros(1, 200), "samples >= 201"),
        (torch.full((1, 16_000), math.nan), "NaN"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, windows: torch.Tensor, message: str) -> None:
    tiny_models.write_tiny_jmla(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_jmla(tmp_path).encode(windows)


KEY = "layers.1.ffn.layers.1.weight"


def drop_a_block(weights: dict[str, Any]) -> None:
    for name in [name for name in weights if name.startswith("layers.1.")]:
        del weights[name]


def take_one_channel(weights: dict[str, Any]) -> None:
    weights["patch_embed.projection.weight"] = weights["patch_embed.projection.weight"][:, :1]


def spoil(weights: dict[str, Any]) -> None:
    weights[KEY][0, 0] = math.inf


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_block, r"18 tensors where 30 are expected: missing layers\.1\..* and 8 more"),
        (take_one_channel, r"patch_embed\.projection\.weight has the shape \(64, 1, 16, 16\)"),
        (spoil, f"{KEY} holds values that are not finite"),
        (dict.clear, r"epoch_20\.pth"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    tiny_models.write_tiny_jmla(tmp_path)
    content = torch.load(tmp_path / WEIGHTS, weights_only=True)
    damage(content["state_dict"])
    torch.save(content, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=message) as caught:
        load_jmla(tmp_path)
    assert WEIGHTS in str(caught.value)


def test_a_truncated_or_swapped_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_models.write_tiny_jmla(tmp_path / "jmla")
    path = tmp_path / "jmla" / WEIGHTS
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"epoch_20\.pth"):
            load_jmla(tmp_path / "jmla")
    tiny_models.write_tiny_mert(tmp_path / "mert")
    path.write_bytes((tmp_path / "mert" / "pytorch_model.bin").read_bytes())
    with pytest.raises(ModelError, match=r"missing cls_token.*unknown encoder\."):
        load_jmla(tmp_path / "jmla")


@pytest.mark.parametrize("change", [{"width": 0}, {"depth": "two"}, {"heads": 5}])
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    tiny_models.write_tiny_jmla(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.TINY_JMLA | change))
    with pytest.raises(ModelError, match=rf"config\.json: {next(iter(change))} is"):
        load_jmla(tmp_path)
