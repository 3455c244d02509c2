from __future__ import annotations

import builtins
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xgboost
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reclass_plex import genres as taxonomies
from reclass_plex.encoders.musicnn import RATE, load_musicnn, log_mel_patches, spread_indices
from reclass_plex.errors import ModelError
from reclass_plex.evidence import (
    OpenSet,
    align,
    cut_windows,
    is_silent,
    load_open_set,
    pool_votes,
    pool_windows,
)
from reclass_plex.heads import CARD, TENSORS, TREES, Head, Measured, ModelCard, load_card, load_head
from reclass_plex.models import DATA, list_models, load_tensors, read_sums, write_sums
from reclass_plex.profiles import exit_threshold, load_ensemble

SHIPPED = sorted((DATA / "heads").iterdir())
GENRES = ("Blues", "Jazz", "Rock")
DIMS = 4


def make_card(**changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "name": "small",
        "kind": "logistic",
        "taxonomy": "gtzan",
        "genres": GENRES,
        "features": "musicnn",
        "dims": DIMS,
        "excerpt": "middle30",
        "rate": 16_000,
        "window_seconds": 3.0,
        "training_data": "none",
        "licence": "none",
        "split": "none",
        "measured": (Measured(accuracy=0.5, low=0.4, high=0.6, clips=10, protocol="by hand"),),
        "rests_on": dict.fromkeys(changes.get("genres", GENRES), "nothing"),
        "date": "2026-01-01",
        "command": "none",
    }
    return ModelCard(**(fields | changes))


def make_tensors(card: ModelCard) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in card.tensor_shapes().items()
    }
    return tensors | {"deviation": tensors["deviation"].abs() + 0.5}


FEATURES = torch.randn(5, DIMS, generator=torch.Generator().manual_seed(2))


def make_trees() -> str:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, DIMS))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    parameters = {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "nthread": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(x, y), num_boost_round=4)
    return bytes(booster.save_raw("json")).decode()


def make_head(kind: str) -> Head:
    if kind == "mlp":
        card = make_card(kind="mlp", hidden=(6, 3), temperature=1.5, limit=2.0)
    elif kind == "kernel":
        card = make_card(kind="kernel", centres=4, temperature=0.8)
    elif kind in {"xgboost", "xgboost on kernel"}:
        centres = None if kind == "xgboost" else 4
        card = make_card(kind="xgboost", temperature=2.0, centres=centres)
        return Head(card, make_tensors(card), make_trees())
    elif kind == "tags":
        card = make_card(kind="tags", known=2, temperature=1.3)
    else:
        card = make_card(temperature=0.7)
    return Head(card, make_tensors(card))


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def numpy_kernel(x: np.ndarray[Any, Any], centres: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    a, b = (np.hstack([one / DIMS**0.5, np.ones((len(one), 1))]) for one in (x, centres))
    lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    angle = np.arccos(a @ b.T / lengths)
    arc_cosine_0 = 1 - angle / np.pi
    arc_cosine_1 = lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    return np.asarray(arc_cosine_1 + a @ b.T * arc_cosine_0 + 1)


def expected(kind: str) -> np.ndarray[Any, Any]:
    """The same in NumPy, from the module's description."""
    head = make_head(kind)
    t = {name: tensor.numpy().astype(float) for name, tensor in make_tensors(head.card).items()}
    z = (FEATURES.numpy() - t["mean"]) / t["deviation"]
    if kind == "logistic":
        return softmax((z @ t["weight"] + t["bias"]) / 0.7)
    if kind == "mlp":
        z = np.clip(z, -2, 2)
        z = np.maximum(z @ t["weight0"] + t["bias0"], 0)
        z = np.maximum(z @ t["weight1"] + t["bias1"], 0)
        return softmax((z @ t["weight2"] + t["bias2"]) / 1.5)
    if kind == "kernel":
        return softmax(numpy_kernel(z, t["centres"]) @ t["weight"] / 0.8)
    if kind == "tags":
        known = softmax((z @ t["weight"] + t["bias"]) / 1.3)
        further = z @ t["tag_weight"] + t["tag_bias"] - known @ t["tag_usual"]
        return softmax(np.concatenate([np.log(known), further], 1))
    booster = xgboost.Booster()
    booster.load_model(bytearray(make_trees(), "utf-8"))
    margins = booster.inplace_predict(z.astype(np.float32), predict_type="margin")
    if kind == "xgboost on kernel":  # trees are added; what they begin at alone is not
        nothing = xgboost.DMatrix(z.astype(np.float32), base_margin=np.zeros((5, 3), np.float32))
        margins = booster.predict(nothing, output_margin=True)
        margins = margins + numpy_kernel(z, t["centres"]) @ t["weight"]
    return softmax(margins / 2.0)


KINDS = ("logistic", "mlp", "kernel", "xgboost", "xgboost on kernel", "tags")


@pytest.mark.parametrize("kind", KINDS)
def test_predict_is_what_the_module_describes(kind: str) -> None:
    probabilities = make_head(kind).predict(FEATURES)
    assert probabilities.shape == (5, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities, expected(kind), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_save_then_load_predicts_the_same(kind: str, tmp_path: Path) -> None:
    head = make_head(kind)
    head.save(tmp_path / "head")
    loaded = load_head(tmp_path / "head")
    assert loaded.card == head.card
    assert torch.equal(loaded.predict(FEATURES), head.predict(FEATURES))
    names = {path.name for path in (tmp_path / "head").iterdir()}
    assert names == {CARD, TENSORS} | ({TREES} if kind.startswith("xgboost") else set())


def test_predict_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match="4"):
        make_head("logistic").predict(torch.zeros(2, 5))


def damage_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / TENSORS)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / TENSORS)


def damage_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: damage_tensors(f, bias=None), "bias"),
        (lambda f: damage_tensors(f, bias=torch.zeros(4)), "bias has the shape"),
        (lambda f: damage_tensors(f, extra=torch.zeros(1)), "extra"),
        (lambda f: damage_tensors(f, weight=torch.full((4, 3), math.nan)), "not finite"),
        (lambda f: damage_tensors(f, deviation=torch.zeros(4)), "not positive"),
        (lambda f: (f / TENSORS).write_bytes(b"no tensors"), TENSORS),
        (lambda f: (f / TENSORS).unlink(), TENSORS),
        (lambda f: (f / CARD).unlink(), CARD),
        (lambda f: (f / CARD).write_text("{"), CARD),
        (lambda f: damage_card(f, dims=0), "dims"),
        (lambda f: damage_card(f, kind="oracle"), "kind"),
        (lambda f: damage_card(f, surprise=1), "surprise"),
        (lambda f: damage_card(f, genres=["A", "A", "B"]), "distinct"),
        (lambda f: damage_card(f, genres=["A", "B", "C"]), "rests_on"),
        (lambda f: damage_card(f, known=2), "known"),
    ],
)
def test_what_does_not_fit_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "broken-head"
    make_head("logistic").save(folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_head(folder)
    assert "broken-head" in str(caught.value)


@pytest.mark.parametrize("trees", ["", "{}", "not JSON", None])
def test_damaged_trees_are_named(trees: str | None, tmp_path: Path) -> None:
    make_head("xgboost").save(tmp_path)
    if trees is None:
        (tmp_path / TREES).unlink()
    else:
        (tmp_path / TREES).write_text(trees)
    with pytest.raises(ModelError, match=TREES):
        load_head(tmp_path)


def test_trees_without_a_digest_are_refused(tmp_path: Path) -> None:
    make_head("xgboost").save(tmp_path)
    damage_card(tmp_path, trees_sha256=None)
    with pytest.raises(ModelError, match="trees_sha256"):
        load_head(tmp_path)


def test_trees_for_other_genres_are_refused(tmp_path: Path) -> None:
    make_head("xgboost").save(tmp_path)
    genres = ["Blues", "Jazz"]
    damage_card(tmp_path, genres=genres, rests_on=dict.fromkeys(genres, "x"))
    with pytest.raises(ModelError, match="knows 3 genres, not 2"):
        load_head(tmp_path)


def test_missing_xgboost_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_head("xgboost").save(tmp_path)
    real_import = builtins.__import__

    def without_xgboost(name: str, *rest: Any) -> Any:
        if name == "xgboost":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_xgboost)
    with pytest.raises(ModelError, match=r"pip install 'reclass-plex\[xgboost\]'"):
        load_head(tmp_path)


def test_tensors_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    path = tmp_path / TENSORS
    with pytest.raises(ModelError, match="No such file"):
        load_tensors(path)
    save_file({"weight": torch.zeros(1)}, path)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # whom no permission stops
        os.seteuid(65534)
    try:
        with pytest.raises(ModelError, match=f"{TENSORS}: .*: Permission denied"):
            load_tensors(path)
    finally:
        if root:
            os.seteuid(0)
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelError, match="Is a directory"):
        load_tensors(path)


# --- what is shipped


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_heads_load_and_know_their_taxonomy(folder: Path) -> None:
    head = load_head(folder)
    card = head.card
    assert card.name == folder.name
    assert set(card.genres) <= set(taxonomies.TAXONOMIES[card.taxonomy].genres)
    assert all(m.low <= m.accuracy <= m.high for m in card.measured)
    probabilities = head.predict(torch.zeros(2, card.dims))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("taxonomy", ["default", "gtzan"])
def test_shipped_ensembles_fit_their_heads(taxonomy: str) -> None:
    spec = load_ensemble(taxonomy)
    assert set(spec.genres) <= set(taxonomies.TAXONOMIES[taxonomy].genres)
    for stage in spec.stages:
        card = load_card(DATA / "heads" / stage.head)
        assert set(card.genres) <= set(spec.genres)
        assert (card.features, card.rate) == (stage.features, stage.rate)
        assert all(0 < threshold <= 1 for threshold in stage.exits.values())


def test_every_bundled_file_is_whole() -> None:
    problems = [model for model in list_models() if model.problem]
    assert not problems
    on_disk = {
        path.relative_to(DATA).as_posix()
        for folder in ("musicnn", "heads", "ensemble", "openset")
        for path in (DATA / folder).rglob("*")
        if path.is_file()
    }
    assert on_disk <= set(read_sums())


def test_a_changed_or_missing_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", "sub/c"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    (tmp_path / "sub/b").write_text("changed")
    (tmp_path / "sub/c").unlink()
    found = {model.name: model.problem for model in list_models(tmp_path / "SHA256SUMS")}
    assert found["a"] is None
    assert "differs" in (found["sub/b"] or "")
    assert "cannot be read" in (found["sub/c"] or "")
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(ModelError, match="line 1"):
        read_sums(tmp_path / "SHA256SUMS")


def test_no_ensemble_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_ensemble("nowhere")
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "bad.json").write_text("{}")
    with pytest.raises(ModelError, match=r"bad\.json"):
        load_ensemble("bad", tmp_path)


# --- the arithmetic of votes

vote_lists = st.lists(st.floats(0.001, 1), min_size=3, max_size=3).map(
    lambda values: np.array(values) / sum(values)
)


@given(vote_lists, vote_lists)
def test_pooled_votes_are_probabilities_and_agreement_sharpens(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]
) -> None:
    pooled = pool_votes([a, b], [0.5, 0.5])
    assert math.isclose(pooled.sum(), 1, abs_tol=1e-9)
    np.testing.assert_allclose(pooled, pool_votes([b, a], [0.5, 0.5]))
    np.testing.assert_allclose(pool_votes([a, b], [1, 0]), a, atol=1e-9)
    assert pool_votes([a, a], [1, 1]).max() >= a.max() - 1e-9


def test_pool_votes_by_hand() -> None:
    a, b = np.array([0.8, 0.2]), np.array([0.5, 0.5])
    np.testing.assert_allclose(pool_votes([a, b], [0.5, 1.0]), [2 / 3, 1 / 3])


def test_a_vote_that_says_nothing_changes_nothing() -> None:
    a, uniform = np.array([0.7, 0.2, 0.1]), np.full(3, 1 / 3)
    np.testing.assert_allclose(pool_votes([a, uniform], [1, 0.4]), a)


def test_zero_probabilities_do_not_break_the_pool() -> None:
    pooled = pool_votes([np.array([1.0, 0.0]), np.array([0.0, 1.0])], [1, 1])
    np.testing.assert_allclose(pooled, 0.5)


def test_pool_windows_by_hand() -> None:
    windows = torch.tensor([[0.8, 0.2], [0.2, 0.8], [0.8, 0.2]])
    np.testing.assert_allclose(pool_windows(windows[:1], 1.0), [0.8, 0.2], atol=1e-6)
    odds = 4 ** (1 / 3)
    np.testing.assert_allclose(pool_windows(windows, 1.0)[0], odds / (1 + odds), atol=1e-6)
    assert pool_windows(windows, 3.0)[0] == pytest.approx(0.8, abs=1e-6)


def test_align_gives_strangers_an_even_share() -> None:
    aligned = align(np.array([0.9, 0.1]), ("B", "D"), ("A", "B", "C", "D"))
    np.testing.assert_allclose(aligned, [0.25, 0.45, 0.25, 0.05])
    wary = align(np.array([0.9, 0.1]), ("B", "D"), ("A", "B", "C", "D"), strangers=2)
    np.testing.assert_allclose(wary, np.array([1, 0.9, 1, 0.1]) / 3)


def test_exit_threshold_promises_at_least_what_was_asked() -> None:
    stage = (
        load_ensemble("gtzan").stages[0].model_copy(update={"exits": {"0.80": 0.6, "0.90": 0.85}})
    )
    assert exit_threshold(stage, 0.9) == 0.85
    assert exit_threshold(stage, 0.85) == 0.85
    assert exit_threshold(stage, 0.5) == 0.6
    assert exit_threshold(stage, 0.95) == math.inf


@pytest.mark.parametrize(("length", "count"), [(3, 1), (7, 2), (9, 3), (100, 10)])
def test_cut_windows_are_spread_from_end_to_end(length: int, count: int) -> None:
    samples = np.arange(length, dtype=np.float32)
    pieces = cut_windows(samples, 3, 10)
    assert pieces.shape == (count, 3)
    assert (np.diff(pieces, axis=1) == 1).all()
    if count > 1:
        assert pieces[0, 0] == 0 and pieces[-1, -1] == length - 1
    assert cut_windows(samples[:2], 3, 10).shape == (1, 2)


def test_spread_indices() -> None:
    assert spread_indices(10, 3) == (1, 5, 8)
    assert spread_indices(2, 3) == (0, 1)
    assert spread_indices(1, 3) == (0,)


# --- no music


def test_silence_is_a_matter_of_level() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(3 * RATE).astype(np.float32)
    assert is_silent(np.zeros(RATE, np.float32), RATE)
    assert is_silent(np.zeros(0, np.float32), RATE)
    assert is_silent(1e-4 * noise, RATE)
    assert not is_silent(1e-2 * noise, RATE)
    one_knock = np.zeros(3 * RATE, np.float32)
    one_knock[RATE : RATE + RATE // 5] = 0.1
    assert not is_silent(one_knock, RATE)


def musicnn_features(samples: np.ndarray[Any, Any]) -> torch.Tensor:
    patches = log_mel_patches(torch.from_numpy(samples.astype(np.float32)))
    return torch.cat([load_musicnn(c).encode(patches).features for c in ("msd", "mtt")], 1)


@pytest.mark.parametrize("width", [250, 500])
def test_noise_and_tones_are_no_music(width: int) -> None:
    judge = load_open_set("musicnn" if width == 500 else "musicnn-msd")
    rng = np.random.default_rng(7)
    time = np.arange(6 * RATE) / RATE
    brown = np.cumsum(rng.standard_normal(len(time)))
    for samples in (
        0.1 * rng.standard_normal(len(time)),
        0.3 * np.sin(2 * np.pi * 987 * time),
        0.2 * brown / np.abs(brown).max(),
    ):
        assert judge.judge(musicnn_features(samples)[:, :width]) is not None


def test_real_music_is_music() -> None:
    reference = np.load(Path(__file__).parent / "data" / "musicnn_reference.npz")
    patches = torch.from_numpy(reference["log_mel"])
    features = torch.cat([load_musicnn(c).encode(patches).features for c in ("msd", "mtt")], 1)
    assert load_open_set("musicnn").judge(features) is None


def test_damaged_open_set_is_named() -> None:
    with pytest.raises(ModelError, match="axes"):
        OpenSet({})
