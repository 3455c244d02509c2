from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnRidge
from test_approaches import Memory, accuracy, parts
from training_tables import make_table

from reclass_plex.kernels import tangent_kernel
from reclass_plex.training.approaches import build, kernel_ridge, make_settings
from reclass_plex.training.approaches.base import Examples, mean_layers
from reclass_plex.training.approaches.boosted import _begin
from reclass_plex.training.approaches.infinite import PATIENCE, STRONGEST, strength
from reclass_plex.training.approaches.kernel_ridge import KernelRidge
from reclass_plex.training.importance import gain
from reclass_plex.training.runs import examples


def test_the_tangent_kernel_is_the_product_of_a_wide_networks_gradients() -> None:
    torch.manual_seed(0)
    d, width = 3, 200_000
    x = torch.randn(4, d, dtype=torch.float64)
    inner = torch.randn(d + 1, width, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(width, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    gradients = []
    for one in torch.cat([x / d**0.5, torch.ones(4, 1)], 1).double():
        said = (2 / width) ** 0.5 * torch.relu(one @ inner) @ outer + bias
        found = torch.autograd.grad(said, (inner, outer, bias))
        gradients.append(torch.cat([part.reshape(-1) for part in found]))
    stacked = torch.stack(gradients)
    torch.testing.assert_close(tangent_kernel(x, x), stacked @ stacked.T, rtol=0.02, atol=0.02)


def made(recordings: int = 60, *, tags: bool = False) -> Examples:
    table = make_table(recordings, windows=2, tags=tags, dims=9, seed=4)
    noise = np.random.default_rng(1).standard_normal(table.rows.shape) * table.rows.std(0) * 2
    table = replace(table, rows=(table.rows + noise).astype(np.float32))
    return examples(table, np.arange(recordings), balanced=not tags)


def without(train: Examples, left_out: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Examples:
    kept = ~left_out
    return replace(
        train, index=train.index[kept], targets=train.targets[kept], weights=train.weights[kept],
        groups=train.groups[kept],
    )  # fmt: skip


@pytest.mark.parametrize("tags", [False, True])
def test_it_is_the_ridge_regression_that_scikit_learn_finds(tags: bool) -> None:
    train = made(tags=tags)
    ridge = KernelRidge(train, 50, 0)
    z = ridge.enter(train, np.arange(len(train.index)))
    kernel = tangent_kernel(z, z).numpy()
    wanted = 2 * ridge.target.numpy() - 1
    there = SklearnRidge(alpha=0.3, kernel="precomputed").fit(kernel, wanted, train.weights)
    said = ridge.ask(train, 0.3).answers.numpy()
    np.testing.assert_allclose(said, there.predict(kernel), atol=1e-5)
    np.testing.assert_allclose(ridge.fitted(0.3).answers.numpy(), said, atol=1e-4)


@pytest.mark.parametrize("centres", [1000, 25])
def test_leaving_a_group_out_is_learning_without_it(
    centres: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_ridge, "CENTRES", centres)
    train = made()
    train = replace(train, groups=np.minimum(train.groups, 7))  # ten artists of six songs, or one
    ridge = KernelRidge(train, 50, 0)
    held_out = ridge.held_out(0.5).answers.numpy()
    everyone = ridge.enter(train, np.arange(len(train.index)))
    features = torch.linalg.solve_triangular(
        ridge._factor, tangent_kernel(ridge.centres, everyone), upper=False
    ).T.numpy()
    wanted = 2 * ridge.target.numpy() - 1
    for group in np.unique(train.groups):
        asked = train.groups == group
        a, w = features[~asked], train.weights[~asked, None]
        normal = a.T @ (w * a) + 0.5 * np.eye(a.shape[1])
        said = features[asked] @ np.linalg.solve(normal, a.T @ (w * wanted[~asked]))
        np.testing.assert_allclose(held_out[asked], said, atol=1e-4)


def test_where_examples_are_many_some_span_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_ridge, "CENTRES", 20)
    train, held = parts(make_table(150, dims=12))
    approach = build("fma-mlp", make_settings("fma-mlp", {}), device="cpu", threads=1)
    fit = approach.fit(train, held, None, Memory())
    assert fit.model.tensors["centres"].shape == (20, 12)
    assert accuracy(fit, held) > 0.9
    assert fit.model.parameters == 20 * 3


def test_the_penalty_is_what_asks_others_best() -> None:
    train = made(120)
    third = train.groups % 3 == 0
    tune, rest = without(train, ~third), without(train, third)
    approach = build("fma-mlp", make_settings("fma-mlp", {}), device="cpu", threads=1)
    fit = approach.fit(rest, tune, None, Memory())
    losses = [line.tune_loss for line in fit.log if line.tune_loss is not None]
    assert fit.rounds == int(np.argmin(losses)) + 1 == len(losses) - PATIENCE
    assert fit.log[0].l2 == strength(1) == STRONGEST
    assert fit.log[-1].l2 == pytest.approx(STRONGEST * 10 ** (-(len(losses) - 1) / 4))
    again = approach.fit(rest, None, fit.rounds, Memory())
    rows = mean_layers(tune.take(np.arange(len(tune.index))))
    np.testing.assert_array_equal(again.model.logits(rows), fit.model.logits(rows))


def test_recordings_that_are_alike_are_no_error() -> None:
    table = make_table(60)
    table = replace(table, rows=np.concatenate([table.rows[:30], table.rows[:30]]))
    train = examples(table, np.arange(60), False)
    approach = build("fma-mlp", make_settings("fma-mlp", {}), device="cpu", threads=1)
    fit = approach.fit(train, None, 9, Memory())
    assert np.isfinite(fit.model.logits(table.rows)).all()


def test_what_two_classes_of_a_cross_need_no_linear_head_has() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((400, 4)).astype(np.float32)
    table = make_table(400, dims=4)
    table = replace(table, rows=x, labels=(x[:, 0] * x[:, 1] > 0).astype(np.int64))
    train, held = parts(table)
    found = {}
    for hidden in (None, ()):
        given = {} if hidden is None else {"hidden": hidden}
        approach = build("fma-mlp", make_settings("fma-mlp", given), device="cpu", threads=1)
        found[hidden] = accuracy(approach.fit(train, held, None, Memory()), held)
    assert found[None] > 0.85
    assert found[()] < 0.7


@pytest.mark.parametrize("tags", [False, True])
def test_trees_begin_at_the_kernel_and_add_to_it(tags: bool) -> None:
    train, held = parts(make_table(90, windows=2, tags=tags, dims=8))
    rows = held.rows[held.index]
    given = {"learning_rate": 1e-9, "epochs": 1}
    trees = build("xgboost", make_settings("xgboost", given), device="cpu", threads=1)
    fit = trees.fit(train, held, None, Memory())
    kernel = build("fma-mlp", make_settings("fma-mlp", {}), device="cpu", threads=1)
    alone = kernel.fit(train, held, None, Memory())
    assert torch.equal(fit.model.tensors["weight"], alone.model.tensors["weight"])
    np.testing.assert_allclose(fit.model.logits(rows), alone.model.logits(rows), atol=1e-5)
    more = build("xgboost", make_settings("xgboost", {"epochs": 50}), device="cpu", threads=1)
    grown = more.fit(train, None, 50, Memory())
    assert np.abs(grown.model.logits(rows) - alone.model.logits(rows)).max() > 0.1
    assert accuracy(grown, held) > 0.9
    assert gain(grown.model, 8) is None  # of the whole, trees tell too little


def test_trees_add_to_answers_about_recordings_that_were_not_learned_from() -> None:
    generator = np.random.default_rng(3)
    table = make_table(300, dims=20, groups=False)
    noise = generator.standard_normal(table.rows.shape).astype(np.float32)
    table = replace(table, rows=noise, labels=generator.permutation(table.labels))
    train = examples(table, np.arange(300), False)
    margins = _begin(train, None, 50, 0)["margins.train"].numpy()
    assert (margins.argmax(1) == train.targets).mean() < 0.45  # there is nothing to learn
    by_heart = KernelRidge(train, 50, 0).fitted(0.1).answers.numpy()
    assert (by_heart.argmax(1) == train.targets).mean() > 0.9
