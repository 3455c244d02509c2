from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from reclass_plex.encoders.clap import PROMPT, RATE, WINDOW, Clap, load_clap
from reclass_plex.errors import ModelError

WEIGHTS = "pytorch_model.bin"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clap")
    return folder, tiny_models.write_tiny_clap(folder)


@pytest.fixture(scope="module")
def clap(tiny: tuple[Path, Any]) -> Clap:
    return load_clap(tiny[0], dtype=torch.float32)


def audio(windows: int, samples: int = WINDOW) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(windows, samples, generator=generator)
    tones = torch.arange(1, windows + 1)[:, None] * torch.arange(samples) * 0.02
    return noise + 0.3 * torch.sin(tones)


def witness(folder: Path, model: Any, samples: list[torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """Return the spectrograms and normalised embeddings, as transformers computes them."""
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor.from_pretrained(folder)
    inputs = extractor([each.numpy() for each in samples], sampling_rate=RATE, return_tensors="pt")
    output = model.get_audio_features(**inputs)  # a tensor before transformers 5
    embeddings: torch.Tensor = getattr(output, "pooler_output", output)
    return inputs["input_features"][:, 0], embeddings


def test_embeddings_equal_transformers(tiny: tuple[Path, Any], clap: Clap) -> None:
    windows = audio(2)
    spectrograms, expected = witness(*tiny, list(windows))
    torch.testing.assert_close(clap.log_mel(windows), spectrograms, rtol=0, atol=1e-3)  # decibels
    embeddings = clap.encode(windows)
    assert embeddings.shape == (2, 1, clap.dims)
    torch.testing.assert_close(embeddings[:, 0], expected, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-4
    half = load_clap(tiny[0], dtype=torch.bfloat16).encode(windows)
    assert torch.cosine_similarity(half, embeddings, dim=2).min() > 0.999


@pytest.mark.parametrize("samples", [1, 40_000, 200_001, 300_000])
def test_short_audio_is_repeated_as_in_training(
    tiny: tuple[Path, Any], clap: Clap, samples: int
) -> None:
    short = audio(1, samples)[0]
    spectrograms, expected = witness(*tiny, [short])
    window = clap.cut(short)
    assert window.shape == (1, WINDOW)
    torch.testing.assert_close(clap.log_mel(window), spectrograms, rtol=0, atol=1e-3)
    torch.testing.assert_close(clap.encode(window)[:, 0], expected, rtol=0, atol=1e-5)


def test_long_audio_is_cut(clap: Clap) -> None:
    assert clap.cut(torch.zeros(3 * WINDOW)).shape == (3, WINDOW)
    with pytest.raises(ValueError, match="mono samples"):
        clap.cut(torch.zeros(0))


def test_texts_score_as_transformers_would(tiny: tuple[Path, Any], clap: Clap) -> None:
    from transformers import RobertaTokenizerFast

    folder, model = tiny
    genres = ["rock", "drum and bass", "Neue Deutsche Härte", "演歌"]
    tokenizer = RobertaTokenizerFast.from_pretrained(folder)
    inputs = tokenizer([PROMPT.format(g) for g in genres], padding=True, return_tensors="pt")
    output = model.get_text_features(**inputs)
    texts = getattr(output, "pooler_output", output)
    _, heard = witness(folder, model, list(audio(2)))
    expected = (model.logit_scale_a.exp() * heard @ texts.T).softmax(1)
    probabilities = clap.score_texts(clap.encode(audio(2))[:, 0], genres)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert expected.std() > 1e-3
    other = clap.score_texts(clap.encode(audio(2))[:, 0], genres, prompt="{}")
    assert not torch.allclose(other, probabilities, atol=1e-4)


def test_what_cannot_be_scored_is_refused(clap: Clap) -> None:
    with pytest.raises(ValueError, match="no text"):
        clap.score_texts(torch.zeros(1, 16), [])
    with pytest.raises(ValueError, match=r"embeddings are \(n, 16\)"):
        clap.score_texts(torch.zeros(1, 1, 16), ["rock"])
    for windows in (torch.zeros(1, WINDOW - 1), torch.zeros(1, WINDOW + 1), torch.zeros(WINDOW)):
        with pytest.raises(ValueError, match="windows"):
            clap.encode(windows)
    with pytest.raises(ValueError, match="NaN"):
        clap.encode(torch.full((1, WINDOW), math.nan))


def test_silence_and_clipping_are_finite(clap: Clap) -> None:
    square = torch.where(torch.arange(WINDOW) // 40 % 2 == 0, 1.0, -1.0)
    embeddings = clap.encode(torch.stack([torch.zeros(WINDOW), square, 1e6 * square]))
    assert embeddings.isfinite().all()
    assert clap.score_texts(embeddings[:, 0], ["rock", "jazz"]).isfinite().all()


@pytest.fixture
def copy(tiny: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny[0], tmp_path / "copy"))


KEY = "text_projection.linear1.weight"


def drop(weights: dict[str, Any]) -> None:
    del weights[KEY]


def spoil(weights: dict[str, Any]) -> None:
    weights[KEY][0, 0] = math.nan


def transpose(weights: dict[str, Any]) -> None:
    weights[KEY] = weights[KEY].T.contiguous()


def add(weights: dict[str, Any]) -> None:
    weights["extra"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, f"missing {KEY}"),
        (spoil, f"{KEY} holds values that are not finite"),
        (transpose, f"{KEY} has the shape"),
        (add, "unknown extra"),
    ],
)
def test_damage_is_named(
    copy: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    weights = torch.load(copy / WEIGHTS, weights_only=True)
    damage(weights)
    torch.save(weights, copy / WEIGHTS)
    with pytest.raises(ModelError, match=message) as caught:
        load_clap(copy)
    assert WEIGHTS in str(caught.value)


def test_indices_may_be_saved_or_not(copy: Path, clap: Clap) -> None:
    weights = torch.load(copy / WEIGHTS, weights_only=True)
    floating = {name: t for name, t in weights.items() if t.is_floating_point()}
    assert len(floating) < len(weights)
    torch.save(floating, copy / WEIGHTS)
    loaded = load_clap(copy, dtype=torch.float32)
    assert torch.equal(loaded.encode(audio(1)), clap.encode(audio(1)))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("preprocessor_config.json", {"truncation": "fusion"}, "with fusion"),
        ("preprocessor_config.json", {"sampling_rate": 44_100}, "at 44100 Hz"),
        ("config.json", {"projection_dim": "wide"}, "copy"),
        ("config.json", {"text_config": {"num_attention_heads": 5}}, "copy"),
    ],
)
def test_another_configuration_is_refused(
    copy: Path, name: str, change: dict[str, Any], message: str
) -> None:
    content = json.loads((copy / name).read_text()) | change
    (copy / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message):
        load_clap(copy)


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", WEIGHTS],
)
def test_missing_or_damaged_parts_are_named(copy: Path, name: str) -> None:
    (copy / name).write_text("{")
    with pytest.raises(ModelError, match="copy"):
        load_clap(copy)
    (copy / name).unlink()
    if name == "tokenizer.json":  # vocab.json and merges.txt say the same
        (copy / "vocab.json").unlink()
    with pytest.raises(ModelError, match="copy"):
        load_clap(copy)
