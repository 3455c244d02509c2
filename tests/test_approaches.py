from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid as SklearnCentroid
from sklearn.preprocessing import QuantileTransformer
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from training_tables import make_table

from reclass_plex.errors import ConfigError, ModelError
from reclass_plex.heads import Head, ModelCard, normal_scores
from reclass_plex.training.approaches import (
    APPROACHES,
    Settings,
    check_table,
    make_settings,
)
from reclass_plex.training.approaches import build as build_approach
from reclass_plex.training.approaches.base import (
    Approach,
    Examples,
    Fit,
    Round,
    State,
    layer_moments,
    plain_moments,
    plain_quantiles,
)
from reclass_plex.training.approaches.logistic import PATIENCE, strength
from reclass_plex.training.approaches.network import Network, NetworkOptions
from reclass_plex.training.checkpoints import load_state, save_state
from reclass_plex.training.runs import examples
from reclass_plex.training.table import FeatureTable


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


DESCENT = "fma-mlp by descent"  # --hidden 256
TREES_ALONE = "xgboost alone"  # --hidden 0


def build(name: str, settings: Settings, *, device: str, threads: int) -> Approach:
    name = {DESCENT: "fma-mlp", TREES_ALONE: "xgboost"}.get(name, name)
    return build_approach(name, settings, device=device, threads=threads)


class Memory:
    """Keeps every state as a run does, in a file, or fails at one, as a killed process would."""

    def __init__(self, state: State | None = None, die_at: int | None = None) -> None:
        self.state, self.die_at, self.lines = state, die_at, list[Round]()

    def load(self) -> State | None:
        return self.state

    def save(self, state: State, *, done: bool = False) -> None:
        with TemporaryDirectory() as folder:
            save_state(Path(folder) / "state", state)
            self.state = load_state(Path(folder) / "state")
        if self.die_at is not None and len(state.facts["log"]) >= self.die_at:
            raise KeyboardInterrupt

    def tell(self, line: Round) -> None:
        self.lines.append(line)


def parts(table: FeatureTable) -> tuple[Examples, Examples]:
    half = len(table) * 2 // 3
    everyone = np.arange(len(table))
    return examples(table, everyone[:half], False), examples(table, everyone[half:], False)


def accuracy(fit: Fit, held: Examples) -> float:
    logits = fit.model.logits(held.rows[held.index])
    if held.multi_label:
        return float(((logits > 0) == (held.targets > 0)).mean())
    return float((logits.argmax(1) == held.targets).mean())


def small(name: str, **given: object) -> Settings:
    chosen: dict[str, object] = {"epochs": 12, "batch": 16, "learning_rate": 0.02}
    if name == "xgboost":
        chosen = {"epochs": 60, "learning_rate": 0.3}
    if name == TREES_ALONE:
        name, chosen = "xgboost", {"epochs": 60, "learning_rate": 0.3, "hidden": ()}
    if name == DESCENT:
        name, chosen = "fma-mlp", {"hidden": (256,), **chosen}
    return make_settings(name, chosen | given)


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("name", ["baseline", "xgboost", TREES_ALONE, "fma-mlp", DESCENT, "mert"])
def test_every_approach_learns(name: str, tags: bool) -> None:
    layers = (3, 7) if name == "mert" else ()
    train, held = parts(make_table(windows=2, layers=layers, tags=tags, dims=12))
    approach = build(name, small(name), device="cpu", threads=1)
    fit = approach.fit(train, held, None, Memory())
    # Of tags each third is positive; the others' floor is what always saying no would reach.
    assert accuracy(fit, held) > (0.85 if tags else 0.9)
    assert fit.model.parameters > 0
    again = build(name, small(name), device="cpu", threads=1).fit(train, held, None, Memory())
    np.testing.assert_array_equal(
        fit.model.logits(held.rows[held.index]), again.model.logits(held.rows[held.index])
    )


@pytest.mark.parametrize("name", ["xgboost", TREES_ALONE, "fma-mlp", DESCENT, "mert"])
@pytest.mark.parametrize("die_at", [1, 4])
def test_a_fit_that_died_goes_on_to_the_same_bits(name: str, die_at: int) -> None:
    layers = (3, 7) if name == "mert" else ()
    train, held = parts(make_table(layers=layers))
    settings = small(
        name, **({"epochs": 300, "patience": 250} if name in {"xgboost", TREES_ALONE} else {})
    )
    approach = build(name, settings, device="cpu", threads=1)
    whole = approach.fit(train, held, None, Memory())
    first = Memory(die_at=die_at)
    with pytest.raises(KeyboardInterrupt):
        approach.fit(train, held, None, first)
    rest = Memory(first.state)
    resumed = approach.fit(train, held, None, rest)
    assert len(rest.lines) == len(whole.log) - die_at
    assert resumed.rounds == whole.rounds
    assert resumed.model.trees == whole.model.trees
    assert resumed.model.layer_weights == whole.model.layer_weights
    for key, tensor in whole.model.tensors.items():
        assert torch.equal(resumed.model.tensors[key], tensor), key
    untimed = [replace(line, seconds=0) for line in whole.log]
    assert [replace(line, seconds=0) for line in resumed.log] == untimed


def test_the_layer_that_tells_gets_the_weight() -> None:
    train, held = parts(make_table(240, layers=(0, 5, 9), name="mert-95m"))
    approach = build("mert", small("mert", epochs=40), device="cpu", threads=1)
    weights = approach.fit(train, held, None, Memory()).model.layer_weights
    assert weights[2] > 0.6
    assert sum(weights) == pytest.approx(1, abs=1e-6)


def test_early_stopping_keeps_the_best_epoch() -> None:
    train, held = parts(make_table(60, dims=30, seed=3))
    # A network that may learn the training examples by heart.
    settings = small(
        "fma-mlp", hidden=(256,), epochs=200, dropout=0, input_dropout=0, mixup=0, weight_decay=0
    )
    fit = build("fma-mlp", settings, device="cpu", threads=1).fit(train, held, None, Memory())
    losses = [line.tune_loss for line in fit.log if line.tune_loss is not None]
    assert len(losses) == len(fit.log) == fit.rounds + settings.patience
    assert fit.rounds == int(np.argmin(losses)) + 1
    logits = fit.model.logits(held.rows[held.index])
    chosen = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
    loss = -chosen[np.arange(len(logits)), held.targets].mean()
    assert loss == pytest.approx(min(losses), abs=1e-4)


def test_without_held_out_examples_it_takes_just_so_many_rounds() -> None:
    train, _ = parts(make_table(60))
    for name in ("xgboost", "fma-mlp", DESCENT):
        approach = build(name, small(name), device="cpu", threads=1)
        assert approach.fit(train, None, 7, Memory()).rounds == 7


def noisy(table: FeatureTable, seed: int, scale: float = 1) -> FeatureTable:
    noise = (
        scale * np.random.default_rng(seed).standard_normal(table.rows.shape) * table.rows.std(0)
    )
    return replace(table, rows=(table.rows + noise).astype(np.float32))


def test_a_logistic_head_is_what_scikit_learn_finds() -> None:
    table = noisy(make_table(240, dims=8, windows=2, seed=5), 6)
    train = examples(table, np.arange(0, 170), balanced=True)
    approach = build("musicnn", make_settings("musicnn", {"limit": 100}), device="cpu", threads=1)
    fit = approach.fit(train, None, 9, Memory())
    mean, deviation = plain_moments(train)
    z = (table.rows[train.index] - mean) / deviation
    inverse = 1 / (2 * len(z) * strength(9))
    expected = LogisticRegression(C=inverse, max_iter=2000, tol=1e-8)
    expected.fit(z, train.targets, train.weights)
    np.testing.assert_allclose(fit.model.tensors["weight"].T, expected.coef_, atol=2e-4)
    assert fit.log[-1].l2 == strength(9) == pytest.approx(0.01)


def test_a_logistic_head_is_drawn_as_strongly_as_the_tuned_part_likes() -> None:
    train, held = parts(noisy(make_table(60, dims=40, name="musicnn", seed=2), 3, 3))
    approach = build("musicnn", make_settings("musicnn", {}), device="cpu", threads=1)
    fit = approach.fit(train, held, None, Memory())
    losses = [line.tune_loss for line in fit.log if line.tune_loss is not None]
    assert fit.rounds == int(np.argmin(losses)) + 1 == len(losses) - PATIENCE
    assert 1 < fit.rounds < 20
    rows = held.rows[held.index]
    again = approach.fit(train, None, fit.rounds, Memory())
    np.testing.assert_array_equal(again.model.logits(rows), fit.model.logits(rows))


def test_the_baseline_is_the_nearest_centroid() -> None:
    train, held = parts(make_table(150, seed=8))
    fit = build("baseline", Settings(), device="cpu", threads=1).fit(train, None, None, Memory())
    mean, deviation = plain_moments(train)

    def standard(part: Examples) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.asarray((part.rows[part.index] - mean) / deviation).clip(-5, 5)

    expected = SklearnCentroid().fit(standard(train), train.targets).predict(standard(held))
    assert (fit.model.logits(held.rows[held.index]).argmax(1) == expected).all()


def test_moments_of_a_combination_are_exact() -> None:
    table = make_table(50, windows=3, layers=(1, 2, 4))
    train = examples(table, np.arange(50), False)
    weights = np.array([0.2, 0.5, 0.3])
    mean, covariance = layer_moments(train)
    combined = (table.rows * weights[:, None].astype(np.float32)).sum(1)
    np.testing.assert_allclose(weights @ mean, combined.mean(0), rtol=1e-4)
    variance = np.einsum("l,dlm,m->d", weights, covariance, weights)
    np.testing.assert_allclose(np.sqrt(variance), combined.std(0), rtol=1e-4)


def test_a_feature_that_is_always_the_same_does_no_harm() -> None:
    table = make_table(60)
    rows = table.rows.copy()
    rows[:, 2] = 1234.5
    train, held = parts(replace(table, rows=rows))
    for name in ("baseline", "fma-mlp", DESCENT):
        fit = build(name, small(name), device="cpu", threads=1).fit(train, held, None, Memory())
        assert np.isfinite(fit.model.logits(held.rows[held.index])).all()
        assert float(fit.model.tensors["deviation"][2]) == 1


@pytest.mark.parametrize("quantiles", [None, 9])
def test_an_exported_network_is_the_network(quantiles: int | None) -> None:
    train, held = parts(make_table(60, layers=(0, 6)))
    options = NetworkOptions(
        hidden=(8, 5), epochs=3, patience=3, batch=16, learning_rate=0.01, weight_decay=0,
        dropout=0.5, input_dropout=0.2, mixup=0.4, limit=3, quantiles=quantiles, seed=1,
        device="cpu", amp=True,
    )  # fmt: skip
    torch.manual_seed(0)
    network = Network(options, train).eval()
    x = held.rows[held.index]
    with torch.no_grad():
        expected = network(network.enter(torch.from_numpy(x)))
    model = network.export(2)
    np.testing.assert_allclose(model.logits(x), expected.numpy(), atol=1e-4)
    assert ("quantiles" in model.tensors) == (quantiles is not None)


# --- normal scores


def test_normal_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    x = np.stack([generator.exponential(size=4000), generator.standard_cauchy(4000)], 1)
    table = replace(make_table(4000, dims=2), rows=x.astype(np.float32))
    train = examples(table, np.arange(4000), False)
    quantiles = torch.from_numpy(plain_quantiles(train, 200)).float()
    found = normal_scores(torch.from_numpy(table.rows), quantiles).numpy()
    there = QuantileTransformer(n_quantiles=4000, output_distribution="normal").fit_transform(x)
    middle = np.abs(there) < 2.3
    np.testing.assert_allclose(found[middle], there[middle], atol=0.1)
    assert np.abs(found).max() == pytest.approx(2.807, abs=1e-3)  # a share of 1 / 400 lies beyond
    assert found.std(0) == pytest.approx(1, abs=0.02)


def test_normal_scores_of_what_many_share_stand_in_the_middle() -> None:
    values = torch.tensor([[0.0] * 6 + [1.0, 2.0], [5.0] * 8])
    x = torch.tensor([[0.0, 5.0], [-9.0, 4.0], [9.0, 6.0], [1.0, 5.0]])
    scores = normal_scores(x, values)
    levels = torch.special.ndtr(scores)
    expected = torch.tensor([[0.375, 0.5], [0.0625, 0.0625], [0.9375, 0.9375], [0.8125, 0.5]])
    torch.testing.assert_close(levels, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["fma-mlp", "xgboost", DESCENT])
def test_a_head_with_quantiles_answers_as_its_model_and_refuses_damaged_ones(name: str) -> None:
    train, held = parts(make_table(90))
    model = build(name, small(name), device="cpu", threads=1)
    fitted = model.fit(train, held, None, Memory()).model
    names = ("Blues", "Jazz", "Metal")
    card = ModelCard(
        name="made", kind=fitted.kind, taxonomy="own", genres=names, features="fma518", dims=6,
        excerpt="full", rate="native", window_seconds=30, limit=fitted.limit, hidden=fitted.hidden,
        training_data="", licence="", split="", measured=(), date="", command="",
        rests_on=dict.fromkeys(names, ""),
    )  # fmt: skip
    trees = fitted.trees
    head = Head(card, dict(fitted.tensors), trees)
    assert head.card.quantiles == 200
    rows = held.rows[held.index]
    logits = torch.from_numpy(fitted.logits(rows))
    found = head.predict(torch.from_numpy(rows))
    torch.testing.assert_close(found.double(), torch.softmax(logits, 1), atol=1e-5, rtol=0)
    damaged = fitted.tensors["quantiles"].flip(1)
    with pytest.raises(ModelError, match="quantiles do not ascend"):
        Head(card, {**fitted.tensors, "quantiles": damaged}, trees)
    with pytest.raises(ModelError, match="quantiles"):
        Head(head.card, {n: t for n, t in fitted.tensors.items() if n != "quantiles"}, trees)


def test_balanced_weights_let_labels_count_alike() -> None:
    table = make_table(90, windows=2)
    chosen = np.array([i for i in range(90) if i % 3 != 2 or i < 15])
    train = examples(table, chosen, balanced=True)
    sums = np.bincount(train.targets, train.weights)
    np.testing.assert_allclose(sums, sums[0])
    plain = examples(table, chosen, balanced=False)
    np.testing.assert_allclose(plain.weights, 1)


def test_an_approach_refuses_features_that_it_is_not_for() -> None:
    with pytest.raises(ConfigError, match="--approach mert reads features of mert, not fma518"):
        check_table("mert", make_table())
    check_table("mert", make_table(name="mert-95m", layers=(1, 2)))
    for name in APPROACHES:
        if not APPROACHES[name].reads:
            check_table(name, make_table())


def test_wrong_settings_name_the_option() -> None:
    with pytest.raises(ConfigError, match=r"--learning-rate: .* not -1"):
        make_settings("mert", {"learning_rate": -1})
    with pytest.raises(ConfigError, match="--approach nothing: is none of baseline"):
        make_settings("nothing", {})
