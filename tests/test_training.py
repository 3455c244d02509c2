from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from reclass_plex.encoders.musicnn import TAGS
from reclass_plex.evidence import align, pool_votes, pool_windows
from reclass_plex.heads import load_card, load_head
from reclass_plex.models import DATA
from reclass_plex.profiles import load_ensemble
from reclass_plex.training import metrics
from reclass_plex.training.datasets.gtzan import GENRES, NAMES, Clips, grouped_folds, read_clips
from reclass_plex.training.extract import DISTURBED, Table, extract_table, musicnn_features
from reclass_plex.training.fit import (
    fit_logistic,
    fit_pool,
    fit_temperature,
    pool,
    softmax,
)
from reclass_plex.training.held_out import track_weights
from reclass_plex.training.openset import TEST_VOICES, noises
from reclass_plex.training.pooling import widen
from reclass_plex.training.stages import DEFAULT_GENRES, Fitted, Stage, cards, final_head, fit_stage
from reclass_plex.training.study import Extension, TagEvidence, choose_rows, musicnn_recipe
from reclass_plex.training.tag_rules import FURTHER, KNOWN, tag_matrix

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many tiny products: a second thread would only be waited for, for long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def random_probabilities(n: int, k: int, seed: int = 0) -> metrics.Floats:
    return softmax(2 * np.random.default_rng(seed).standard_normal((n, k)))


# --- metrics


def test_metrics_agree_with_scikit_learn() -> None:
    probabilities = random_probabilities(200, 4)
    labels = RNG.integers(0, 4, 200)
    answer = probabilities.argmax(1)
    assert metrics.accuracy(probabilities, labels) == accuracy_score(labels, answer)
    assert metrics.balanced_accuracy(probabilities, labels) == pytest.approx(
        balanced_accuracy_score(labels, answer)
    )
    assert metrics.log_loss(probabilities, labels) == pytest.approx(
        sklearn_log_loss(labels, probabilities)
    )


def test_calibration_error_of_calibrated_and_of_boastful_answers() -> None:
    probabilities = random_probabilities(20_000, 3)
    labels = np.array([RNG.choice(3, p=p) for p in probabilities])
    assert metrics.calibration_error(probabilities, labels) < 0.02
    boastful = softmax(3 * np.log(probabilities))
    assert metrics.calibration_error(boastful, labels) > 0.1
    certain = np.eye(3)[labels]
    assert metrics.calibration_error(certain, labels) == 0


def test_intervals_agree_with_scipy() -> None:
    exact = stats.binomtest(41, 50)
    wilson = exact.proportion_ci(0.95, method="wilson")
    assert metrics.wilson_interval(41, 50) == pytest.approx((wilson.low, wilson.high), abs=1e-4)
    one_sided = stats.binomtest(41, 50, alternative="greater").proportion_ci(0.9, method="exact")
    assert metrics.lower_bound(41, 50, 0.9) == pytest.approx(one_sided.low)
    assert metrics.lower_bound(0, 50, 0.9) == 0
    assert metrics.lower_bound(50, 50, 0.9) == pytest.approx(0.1 ** (1 / 50))


# --- fitting


def test_fit_logistic_agrees_with_scikit_learn() -> None:
    x = RNG.standard_normal((150, 5)) * [1, 2, 3, 4, 5] + 1
    y = (x[:, 0] + RNG.standard_normal(150) > 1).astype(np.int64) + (x[:, 4] > 4)
    l2 = 0.01
    weights = np.full(150, 1 / 150)
    model = fit_logistic(x, y, weights, genres=3, prior=np.zeros((5, 3)), freedom=np.ones(5), l2=l2)
    oracle = LogisticRegression(C=1 / (2 * l2 * 150), max_iter=2000, tol=1e-8)
    oracle.fit(model.standardise(x), y)
    np.testing.assert_allclose(
        softmax(model.logits(x)), oracle.predict_proba(model.standardise(x)), atol=2e-3
    )


def test_without_freedom_the_prior_decides() -> None:
    x = RNG.standard_normal((90, 3))
    y = x.argmax(1)
    prior = np.eye(3)
    prior[2] = 0
    model = fit_logistic(
        x, y, np.full(90, 1 / 90), genres=3, prior=prior, freedom=np.zeros(3), l2=1.0
    )
    scale = model.weight[0, 0]
    assert scale > 1
    np.testing.assert_allclose(model.weight, scale * prior, atol=1e-12)


def test_limit_holds_outliers() -> None:
    x = RNG.standard_normal((50, 2))
    model = fit_logistic(
        x, (x[:, 0] > 0).astype(np.int64), np.full(50, 0.02), genres=2,
        prior=np.zeros((2, 2)), freedom=np.ones(2), l2=0.1, limit=3.0,
    )  # fmt: skip
    np.testing.assert_allclose(model.logits(x + 1e6), model.logits(x + 1e9))


def test_temperature_is_found_again() -> None:
    probabilities = random_probabilities(20_000, 4)
    labels = np.array([RNG.choice(4, p=p) for p in probabilities])
    logits = np.log(probabilities)
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.05)


def test_pool_gives_nonsense_no_weight() -> None:
    good = random_probabilities(4000, 4)
    labels = np.array([RNG.choice(4, p=p) for p in good])
    weights = fit_pool([good, random_probabilities(4000, 4, seed=9)], labels, np.ones(4000))
    assert weights[0] == pytest.approx(1, abs=0.1)
    assert weights[1] < 0.1


# --- data


def make_clips(tracks: int = 30) -> Clips:
    label = np.repeat(np.arange(10), tracks)
    number = np.tile(np.arange(tracks), 10)
    return Clips((Path(),) * len(label), label, number, number % 3 == 0)


def test_folds_keep_neighbours_and_clips_of_a_track_together() -> None:
    clips = make_clips()
    doubled = Clips(clips.path * 2, np.tile(clips.label, 2), np.tile(clips.number, 2), clips.valid)
    for repeat in range(3):
        fold = grouped_folds(doubled, repeat)
        half = len(clips)
        assert (fold[:half] == fold[half:]).all()
        block = clips.label * 100 + (clips.number + repeat) // 10
        for name in np.unique(block):
            assert len(np.unique(fold[:half][block == name])) == 1
        assert set(fold) == set(range(5))
    assert (grouped_folds(clips, 0) != grouped_folds(clips, 1)).any()


def test_clips_and_tracks_of_all_genres_weigh_alike() -> None:
    weights = track_weights(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 2, 7, 8]))
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.5, 0.5, 0.5])


def test_extraction_of_a_small_collection(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    time = np.arange(int(6.1 * 22_050)) / 22_050
    rows = []
    for genre, seconds in (("blues", 2.5), ("hiphop", 6.1)):
        samples = 0.2 * np.sin(2 * np.pi * 220 * time[: int(seconds * 22_050)])
        soundfile.write(tmp_path / "audio" / f"{genre}.flac", samples, 22_050)
        rows.append([f"{genre}.flac", genre, "3", "valid"])
    with (tmp_path / "labels.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "genre", "gtzan_id", "split"], *rows])
    clips = read_clips(tmp_path)
    assert [NAMES[i] for i in clips.label] == ["Blues", "Hip-Hop"]
    assert clips.valid.all()
    cache = tmp_path / "cache" / "musicnn.npz"
    table = extract_table(clips.path, musicnn_features, cache)
    assert table.features.shape == (1 + 2 + 2 * DISTURBED, 500)
    assert np.bincount(table.real.clip).tolist() == [1, 2]
    again = extract_table((), musicnn_features, cache)
    np.testing.assert_array_equal(table.features, again.features)
    assert len(set(GENRES.values())) == 10


def test_tag_rules_name_real_tags_and_sum_to_one() -> None:
    known = {f"{c}:{tag}" for c, tags in TAGS.items() for tag in tags}
    for genre, rule in {**KNOWN, **FURTHER}.items():
        assert set(rule) <= known, genre
        assert not rule or sum(rule.values()) == pytest.approx(1), genre
    matrix = tag_matrix(("Metal", "Reggae", "Classical"), "musicnn-msd", 250)
    np.testing.assert_allclose(matrix.sum(0), [1, 0, 0])
    assert matrix[TAGS["msd"].index("metal"), 0] == pytest.approx(0.5)
    assert tag_matrix(("Classical",), "musicnn", 500)[250:].sum() == pytest.approx(1)


def test_noises_are_finite_and_differ() -> None:
    made = dict(noises(np.random.default_rng(3)))
    assert len(made) == 11
    assert all(np.isfinite(n).all() and n.std() > 0 for n in made.values())
    assert len(set(TEST_VOICES)) == len(TEST_VOICES)


# --- the whole of a stage, on made-up features


def make_stage(clips: Clips) -> Stage:
    """Five windows a clip, and a disturbed one; genres differ in tags and elsewhere."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((10, 250))
    for genre, name in enumerate(NAMES):
        centres[genre, :50] += 3 * tag_matrix([name], "musicnn-msd", 250)[:50, 0]
    clip = np.repeat(np.arange(len(clips)), 6)
    features = centres[clips.label[clip]] + 2.5 * rng.standard_normal((len(clip), 250))
    disturbed = np.tile([False] * 5 + [True], len(clips))
    table = Table(features, clip, disturbed)
    return Stage("made-up", musicnn_recipe("musicnn-msd"), table, 16_000, 2.992, 3)


@pytest.fixture(scope="module")
def fitted(one_thread: None) -> tuple[Fitted, Clips]:
    clips = make_clips(12)
    return fit_stage(make_stage(clips), clips, repeats=1), clips


def test_a_stage_learns_calibrates_and_finds_hidden_genres(fitted: tuple[Fitted, Clips]) -> None:
    stage, clips = fitted
    votes = np.concatenate(stage.votes)
    labels = np.tile(clips.label, len(stage.votes))
    assert metrics.accuracy(votes, labels) > 0.5
    assert metrics.calibration_error(votes, labels) < 0.1
    assert {trial.genre for trial in stage.trials[-1]} == {name for name in NAMES if KNOWN[name]}
    assert stage.extension is not None and stage.extension.slope > 0


def test_its_heads_are_the_same_arithmetic(fitted: tuple[Fitted, Clips], tmp_path: Path) -> None:
    stage, clips = fitted
    ten, wide = (final_head(stage, clips, card) for card in cards(stage, clips))
    assert wide.card.genres == DEFAULT_GENRES
    features = torch.from_numpy(stage.stage.table.real.features[:7]).float()
    narrow, broad = ten.predict(features), wide.predict(features)
    np.testing.assert_allclose(
        broad[:, :10] / broad[:, :10].sum(1, keepdim=True), narrow, atol=1e-5
    )
    wide.save(tmp_path)
    assert torch.equal(load_head(tmp_path).predict(features), broad)


def test_extension_is_what_the_head_computes(fitted: tuple[Fitted, Clips]) -> None:
    stage, clips = fitted
    head = final_head(stage, clips, cards(stage, clips)[1])
    features = stage.stage.table.real.features[:4]
    t = {name: tensor.double().numpy() for name, tensor in head._tensors.items()}
    z = (features - t["mean"]) / t["deviation"]
    known = softmax((z @ t["weight"] + t["bias"]) / head.card.temperature)
    extension = stage.extension
    assert extension is not None
    rule = tag_matrix(tuple(FURTHER), "musicnn-msd", 250)
    usual = known @ (t["tag_usual"] / extension.usual)
    evidence = TagEvidence(np.log(known), z @ rule, usual)
    expected = np.exp(extension.log_probabilities(evidence))
    np.testing.assert_allclose(head.predict(torch.from_numpy(features)), expected, atol=1e-4)
    flat = Extension(0.0, 0.0, 0.0).log_probabilities(evidence)
    np.testing.assert_allclose(flat[:, 10:], flat[:, 10:11].repeat(len(FURTHER), 1))


def test_training_and_ensemble_pool_alike() -> None:
    a, b = random_probabilities(6, 10), random_probabilities(6, 10, seed=2)
    wide = widen(a, 8, 2.0)
    for i in range(6):
        np.testing.assert_allclose(wide[i], align(a[i], NAMES, DEFAULT_GENRES, 2.0))
        np.testing.assert_allclose(
            pool([a, b], (0.7, 0.4))[i], pool_votes([a[i], b[i]], (0.7, 0.4))
        )
    np.testing.assert_allclose(pool_windows(torch.from_numpy(a[:1]), 3.0), a[0], atol=1e-6)


def test_windows_are_chosen_as_the_ensemble_does() -> None:
    clip = np.repeat([0, 1], [10, 2])
    table = Table(np.zeros((12, 1)), clip, np.zeros(12, bool))
    assert choose_rows(table, 3).tolist() == [1, 5, 8, 10, 11]


# --- what is shipped is what was measured


def test_shipped_figures_follow_from_the_shipped_votes() -> None:
    stored = load_file(DATA / "ensemble" / "out_of_fold.safetensors")
    labels = stored["label"].astype(np.int64)
    for stage in load_ensemble("gtzan").stages:
        votes = stored[stage.name].astype(float)
        measured = load_card(DATA / "heads" / stage.head).measured[0]
        accuracy = np.mean([metrics.accuracy(vote, labels) for vote in votes])
        assert accuracy == pytest.approx(measured.accuracy, abs=0.003)
    for stage in load_ensemble("default").stages:
        card = load_card(DATA / "heads" / stage.head)
        if card.taxonomy == "default":
            vote = stored[f"{stage.name}-default"][0].astype(float)  # of the first repeat
            assert metrics.accuracy(vote, labels) == pytest.approx(
                card.measured[0].accuracy, abs=0.003
            )
