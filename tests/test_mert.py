from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from reclass_plex.encoders import Readout
from reclass_plex.encoders.mert import RATE, Mert, MertConfig, MertNetwork, load_mert
from reclass_plex.encoders.windows import equal_windows
from reclass_plex.errors import ModelError

WEIGHTS = "pytorch_model.bin"
EVERY = (0, 1, 2, 3)  # the tiny one's layers


def audio(windows: int, seconds: float, seed: int = 0) -> torch.Tensor:
    """Return coloured noise with an offset: not yet of mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(windows, int(seconds * RATE), generator=generator)
    return 0.05 + 0.02 * noise.cumsum(1) / 50 + 0.1 * noise


@torch.no_grad()
def witness(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Return the time-means of all hidden states, as transformers computes them."""
    deviation = torch.sqrt(windows.var(1, correction=0, keepdim=True) + 1e-7)
    normed = (windows - windows.mean(1, keepdim=True)) / deviation
    output = model(normed, output_hidden_states=True)
    # From transformers 5.16 on, the last hidden state of a stable norm is not the output.
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    return torch.stack([state.mean(1) for state in states], 1)


@pytest.mark.parametrize("stable", [False, True], ids=["post-norm", "stable-norm"])
def test_every_layer_equals_hubert(tmp_path: Path, stable: bool) -> None:
    model = tiny_models.write_tiny_mert(tmp_path, stable)
    windows = audio(3, 1.3)
    expected = witness(model, windows)
    states = load_mert(tmp_path, EVERY, dtype=torch.float32).encode(windows)
    assert states.shape == (3, 4, 32) and states.dtype == torch.float32
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1  # so that 1e-5 means something
    for layer in EVERY:  # each alone stops there, and must not differ
        encoder = load_mert(tmp_path, (layer,), dtype=torch.float32)
        assert isinstance(encoder.network, MertNetwork) and len(encoder.network.blocks) == layer
        torch.testing.assert_close(
            encoder.encode(windows)[:, 0], expected[:, layer], rtol=0, atol=1e-5
        )


def test_the_true_95m_equals_hubert() -> None:
    model = tiny_models.hubert(tiny_models.BASE_95M, stable=False)
    tensors = tiny_models.mert_tensors(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == MertConfig().tensor_shapes()
    assert len(tensors) == 211
    assert sum(tensor.numel() for tensor in tensors.values()) == 94_371_712
    windows = audio(1, 2)
    every = tuple(range(13))
    states = Mert(MertConfig(), tensors, every, dtype=torch.float32).encode(windows)
    assert states.shape == (1, 13, 768)
    torch.testing.assert_close(states, witness(model, windows), rtol=0, atol=1e-5)
    half = Mert(MertConfig(), tensors, every, dtype=torch.bfloat16).encode(windows)
    assert torch.cosine_similarity(states, half, dim=2).min() > 0.9999


def test_the_330m_has_the_published_count() -> None:
    config = MertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        do_stable_layer_norm=True,
    )
    shapes = config.tensor_shapes()
    assert len(shapes) == 403
    assert sum(math.prod(shape) for shape in shapes.values()) == 315_428_992


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stable", [False, True])
def test_half_precision_equals_autocast(tmp_path: Path, stable: bool, dtype: torch.dtype) -> None:
    model = tiny_models.write_tiny_mert(tmp_path, stable)
    windows = audio(2, 1)
    exact = witness(model, windows)
    with torch.autocast("cpu", dtype):
        expected = witness(model, windows).float()
    half = load_mert(tmp_path, EVERY, dtype=dtype).encode(windows)
    assert half.dtype == torch.float32
    # Weights as small as these lose much in rounding, and the same in both ways.
    assert torch.cosine_similarity(expected, half, dim=2).min() > 0.9995
    assert torch.dist(exact, half) < 1.1 * torch.dist(exact, expected)


def test_safetensors_give_the_same(tmp_path: Path) -> None:
    from reclass_plex.models.convert import convert

    tiny_models.write_tiny_mert(tmp_path)
    windows = audio(1, 1)
    before = load_mert(tmp_path, (2,), dtype=torch.float32).encode(windows)
    convert(tmp_path / WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / WEIGHTS).unlink()
    after = load_mert(tmp_path, (2,), dtype=torch.float32).encode(windows)
    assert torch.equal(before, after)


def test_windows_do_not_depend_on_their_neighbours_or_level(tmp_path: Path) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    encoder = load_mert(tmp_path, EVERY, dtype=torch.float32)
    windows = audio(3, 1)
    together = encoder.encode(windows)
    alone = torch.cat([encoder.encode(window[None]) for window in windows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    louder = encoder.encode(4 * windows + 0.5)  # clipped files are loud, some have an offset
    torch.testing.assert_close(together, louder, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 0.25, 1e-30, 1e-4, 1e6])
def test_silence_and_extremes_are_finite(tmp_path: Path, level: float, dtype: torch.dtype) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    encoder = load_mert(tmp_path, EVERY, dtype=dtype)
    square = torch.where(torch.arange(RATE) // 40 % 2 == 0, 1.0, -1.0)  # as clipped as can be
    windows = torch.stack([torch.full((RATE,), level), level * square])
    assert encoder.encode(windows).isfinite().all()


def test_equal_windows_cover_the_audio() -> None:
    length = 5 * RATE
    samples = torch.arange(30 * RATE, dtype=torch.float32)
    windows = equal_windows(samples, length)
    assert torch.equal(windows.flatten(), samples)  # thirty seconds: six, side by side
    nearly = equal_windows(samples[:-700], length)  # a resampler dropped the end: shifted
    assert nearly.shape == (6, length)
    assert nearly[0, 0] == 0 and nearly[-1, -1] == len(samples) - 701
    assert (nearly[1:, 0] - nearly[:-1, 0]).diff().abs().max() <= 1
    assert equal_windows(samples[: int(1.4 * length)], length)[0, 0] == round(0.2 * length)
    assert equal_windows(samples[: int(1.6 * length)], length).shape == (2, length)


def test_short_audio_is_repeated() -> None:
    samples = torch.randn(7, generator=torch.Generator().manual_seed(0))
    (window,) = equal_windows(samples, 17)
    assert torch.equal(window, torch.cat([samples, samples, samples[:3]]))


def test_cut_and_encode_fit_each_other(tmp_path: Path) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    encoder = load_mert(tmp_path, (1,), dtype=torch.float32)
    for seconds, count in ((0.2, 1), (12.4, 2)):
        windows = encoder.cut(audio(1, seconds)[0])
        assert windows.shape == (count, 120_000)
        assert encoder.encode(windows).shape == (count, 1, 32)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (torch.zeros(0, 24_000), "windows are"),
        (torch.zeros(24_000), "windows are"),
        (torch.zeros(1, 399), "samples >= 400"),
        (torch.zeros(1, 24_000, dtype=torch.float64), "float32"),
        (torch.full((1, 24_000), math.nan), "NaN"),
        (torch.full((1, 24_000), math.inf), "NaN"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, windows: torch.Tensor, message: str) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_mert(tmp_path, (1,), dtype=torch.float32).encode(windows)
    with pytest.raises(ValueError, match="mono samples"):
        equal_windows(torch.zeros(0), 5)


KEY = "encoder.layers.1.attention.q_proj.weight"


def drop(weights: dict[str, Any]) -> None:
    del weights[KEY]


def spoil(weights: dict[str, Any]) -> None:
    weights[KEY][3, 3] = math.nan


def reshape(weights: dict[str, Any]) -> None:
    weights[KEY] = weights[KEY][:, :-1]


def count(weights: dict[str, Any]) -> None:
    weights[KEY] = weights[KEY].to(torch.int64)


def modernise(weights: dict[str, Any]) -> None:
    """As transformers would save it today: not what was published."""
    gain = weights.pop("encoder.pos_conv_embed.conv.weight_g")
    weights["encoder.pos_conv_embed.conv.parametrizations.weight.original0"] = gain


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, rf"66 tensors where 67 are expected: missing {KEY}"),
        (spoil, f"{KEY} holds values that are not finite"),
        (reshape, rf"{KEY} has the shape \(32, 31\), not \(32, 32\)"),
        (count, f"{KEY} holds torch.int64"),
        (modernise, r"missing encoder\S+weight_g; unknown encoder\S+original0"),
    ],
)
def test_damage_is_named(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    weights = torch.load(tmp_path / WEIGHTS, weights_only=True)
    damage(weights)
    torch.save(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=message) as caught:
        load_mert(tmp_path)
    assert WEIGHTS in str(caught.value)


def test_a_truncated_or_swapped_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_models.write_tiny_mert(tmp_path / "mert")
    path = tmp_path / "mert" / WEIGHTS
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
            load_mert(tmp_path / "mert")
    tiny_models.write_tiny_jmla(tmp_path / "jmla")
    path.write_bytes((tmp_path / "jmla" / "epoch_20.pth").read_bytes())
    with pytest.raises(ModelError, match=r"missing .* and \d+ more; unknown cls_token"):
        load_mert(tmp_path / "mert")
    path.unlink()
    with pytest.raises(ModelError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        load_mert(tmp_path / "mert")


class _Payload:
    """What an evil checkpoint would do while it is being read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(_Payload(trace)))
    assert trace.exists()  # the payload works
    trace.unlink()
    torch.save({"masked_spec_embed": _Payload(trace)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        load_mert(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("deepnorm", True, "deepnorm is True"),
        ("feature_extractor_cqt", True, "feature_extractor_cqt"),
        ("feat_extract_norm", "layer", "feat_extract_norm is 'layer'"),
        ("sample_rate", 16_000, "sample_rate"),
        ("hidden_size", "768", "hidden_size is '768'"),
        ("num_attention_heads", 5, "num_attention_heads is 5"),
        ("conv_kernel", [10, 3], "differ in length"),
        ("num_hidden_layers", 2, r"unknown encoder\.layers\.2\."),
    ],
)
def test_another_configuration_is_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_mert(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", None])
def test_an_unreadable_configuration_is_named(tmp_path: Path, content: str | None) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    path = tmp_path / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_mert(tmp_path)


def test_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    with pytest.raises(ModelError, match="layers 0 to 3"):
        load_mert(tmp_path, (1, 4))
    for layers in ((), (2, 1), (1, 1)):
        with pytest.raises(ValueError, match="layers"):
            load_mert(tmp_path, layers)


def test_weights_that_overflow_are_no_embedding(tmp_path: Path) -> None:
    tiny_models.write_tiny_mert(tmp_path)
    weights = torch.load(tmp_path / WEIGHTS, weights_only=True)
    weights["encoder.layers.0.feed_forward.output_dense.bias"].fill_(3e38)
    weights["encoder.layers.1.feed_forward.output_dense.bias"].fill_(3e38)
    torch.save(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match="not finite in float16: float16 is too narrow"):
        load_mert(tmp_path, (2,), dtype=torch.float16).encode(audio(1, 1))


def test_a_readout_weighs_the_layers_it_names() -> None:
    states = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    one = Readout(layers=(7,)).combine(states, (4, 7, 9))
    assert torch.equal(one, states[:, 1])
    both = Readout(layers=(4, 9), weights=(0.25, 0.75)).combine(states, (4, 7, 9))
    torch.testing.assert_close(both, 0.25 * states[:, 0] + 0.75 * states[:, 2])
    assert torch.equal(Readout().combine(states[:, :1], ()), states[:, 0])
    with pytest.raises(ValueError, match=r"not loaded with the layers \[3\]"):
        Readout(layers=(3,)).combine(states, (4, 7, 9))
    with pytest.raises(ValueError, match="do not hold"):
        Readout(layers=(7,)).combine(states, (7,))
    with pytest.raises(ValueError, match="which one is not said"):
        Readout().combine(states, (4, 7, 9))


@pytest.mark.parametrize(
    "values",
    [
        {"layers": (2, 1), "weights": (0.5, 0.5)},
        {"layers": (-1,)},
        {"layers": (1, 2)},
        {"layers": (1, 2), "weights": (1.0,)},
        {"layers": (1, 2), "weights": (0.5, 0.6)},
        {"layers": (1,), "weights": (math.nan,)},
        {"pooling": "max"},
    ],
)
def test_an_inconsistent_readout_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Readout(**values)
