from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from reclass_plex.training import metrics

GOLDEN = Path(__file__).parent / "data" / "metrics.json"  # scikit-learn 1.9.1, SciPy 1.17.1


def read_golden() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    return golden


def random_answers(n: int, k: int, seed: int) -> tuple[metrics.Floats, metrics.Labels]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, k, n)
    probabilities = generator.dirichlet(np.ones(k), n)
    return probabilities, labels


def test_golden_values() -> None:
    golden = read_golden()
    p, labels = np.array(golden["probabilities"]), np.array(golden["labels"])
    scores, truth = np.array(golden["scores"]), np.array(golden["truth"], bool)
    each = metrics.class_scores(metrics.confusion_matrix(p, labels))
    found: dict[str, Any] = {
        "accuracy": metrics.accuracy(p, labels),
        "macro_f1": metrics.macro_f1(p, labels),
        "top3": metrics.top_accuracy(p, labels, 3),
        "confusion": metrics.confusion_matrix(p, labels),
        "precision": each.precision,
        "recall": each.recall,
        "f1": each.f1,
        "roc_auc": metrics.roc_auc(scores, truth),
        "average_precision": metrics.average_precision(scores, truth),
        "mcnemar_7_19": metrics.mcnemar(np.arange(26) < 7, np.arange(26) >= 7).exact,
    }
    assert found.keys() == golden["expected"].keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, golden["expected"][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_one_label_agrees_with_scikit_learn(seed: int) -> None:
    p, labels = random_answers(80, 6, seed)
    labels[labels == 5] = 4  # a label that never occurs, but is answered
    answer = p.argmax(1)
    seen = np.union1d(labels, answer)
    assert metrics.macro_f1(p, labels) == pytest.approx(
        oracle.f1_score(labels, answer, average="macro", labels=seen, zero_division=0)
    )
    for top in (1, 3):
        expected = oracle.top_k_accuracy_score(labels, p, k=top, labels=range(6))
        assert metrics.top_accuracy(p, labels, top) == pytest.approx(expected)
    expected = oracle.confusion_matrix(labels, answer, labels=range(6))
    assert (metrics.confusion_matrix(p, labels) == expected).all()


@pytest.mark.parametrize("seed", range(5))
def test_tags_agree_with_scikit_learn_also_where_scores_tie(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.random((70, 5)) < 0.3
    scores = np.round(generator.random((70, 5)), 1)
    np.testing.assert_allclose(
        metrics.roc_auc(scores, truth), oracle.roc_auc_score(truth, scores, average=None)
    )
    np.testing.assert_allclose(
        metrics.average_precision(scores, truth),
        oracle.average_precision_score(truth, scores, average=None),
    )


def test_tags_that_cannot_be_measured_are_left_out_of_the_mean() -> None:
    truth = np.array([[True, False, True], [True, False, False]])
    scores = np.array([[0.2, 0.3, 0.9], [0.4, 0.1, 0.1]])
    area = metrics.roc_auc(scores, truth)
    assert np.isnan(area[:2]).all()
    assert metrics.mean_over_tags(area) == 1
    precision = metrics.average_precision(scores, truth)
    assert precision[0] == 1
    assert math.isnan(precision[1])
    assert math.isnan(metrics.mean_over_tags(np.array([np.nan])))


def test_right_answers_score_one() -> None:
    labels = np.array([0, 1, 2, 2])
    sure = np.eye(3)[labels]
    assert metrics.macro_f1(sure, labels) == metrics.top_accuracy(sure, labels, 1) == 1
    truth = sure.astype(bool)
    assert (metrics.roc_auc(sure, truth) == 1).all()
    assert (metrics.average_precision(sure, truth) == 1).all()
    assert metrics.tag_calibration_error(sure, truth) == 0


def test_equal_answers_are_not_among_the_top() -> None:
    undecided = np.full((4, 5), 0.2)
    assert metrics.top_accuracy(undecided, np.arange(4), 3) == 0


def test_calibration_of_tags() -> None:
    generator = np.random.default_rng(1)
    p = generator.random((20_000, 3))
    truth = generator.random(p.shape) < p
    assert metrics.tag_calibration_error(p, truth) < 0.02
    assert metrics.tag_calibration_error(np.clip(2 * p - 0.5, 0, 1), truth) > 0.1


def test_bootstrap_agrees_with_scipy_where_rows_are_independent() -> None:
    right = (np.random.default_rng(2).random(300) < 0.8).astype(float)
    low, high = metrics.bootstrap_interval(lambda rows: right[rows].mean(), np.arange(300))
    expected = stats.bootstrap(
        (right,), np.mean, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.012)


def test_bootstrap_over_groups_knows_that_songs_of_one_artist_are_alike() -> None:
    # 30 artists with 10 songs, and all songs of an artist are right or none is.
    groups = np.repeat(np.arange(30), 10)
    right = (np.random.default_rng(4).random(30) < 0.7).astype(float)[groups]
    alone = metrics.bootstrap_interval(lambda rows: right[rows].mean(), np.arange(300))
    grouped = metrics.bootstrap_interval(lambda rows: right[rows].mean(), groups)
    assert grouped[1] - grouped[0] > 2.5 * (alone[1] - alone[0])
    shuffled = np.random.default_rng(5).permutation(300)
    again = metrics.bootstrap_interval(lambda rows: right[shuffled][rows].mean(), groups[shuffled])
    assert again == pytest.approx(grouped)


@pytest.mark.parametrize(("b", "c"), [(0, 5), (5, 0), (7, 19), (10, 10), (1, 1), (120, 90)])
def test_mcnemar_agrees_with_the_binomial_test(b: int, c: int) -> None:
    first = np.array([True] * b + [False] * c + [True] * 4 + [False] * 3)
    second = np.array([False] * b + [True] * c + [True] * 4 + [False] * 3)
    found = metrics.mcnemar(first, second)
    assert (found.only_first, found.only_second) == (b, c)
    assert found.exact == pytest.approx(stats.binomtest(b, b + c).pvalue)
    # Fagerland et al. (2013): mid-p is the exact p-value less the probability of what was seen.
    seen = stats.binom.pmf(min(b, c), b + c, 0.5)
    expected = 1.0 if b == c else found.exact - seen
    assert found.mid == pytest.approx(expected, abs=1e-12)
    assert 0 < found.mid <= found.exact <= 1


def test_models_that_agree_are_not_different() -> None:
    right = np.array([True, False, True])
    assert metrics.mcnemar(right, right) == metrics.McNemar(0, 0, 1.0, 1.0)
