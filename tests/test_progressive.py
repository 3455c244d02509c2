"""Early exits: the promise of their thresholds, and what they are worth."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from reclass_plex import evidence
from reclass_plex.cli_evaluate import app
from reclass_plex.errors import ConfigError, ModelError
from reclass_plex.models import DATA
from reclass_plex.profiles import EnsembleSpec, StageSpec, exit_threshold, load_ensemble
from reclass_plex.training import metrics
from reclass_plex.training.exits import (
    GRID,
    KINSHIP,
    Answers,
    HeldOut,
    draw_blocks,
    effective_count,
    exit_thresholds,
    leave_early,
    tally,
)
from reclass_plex.training.fit import softmax
from reclass_plex.training.held_out import FILE, read_held_out
from reclass_plex.training.plots import draw_accuracy_against_cost, draw_all
from reclass_plex.training.progressive import Judgement, judge, labelled_votes, reliability
from reclass_plex.training.promise import draw_anew, half_to_half, tally_early_exits
from reclass_plex.training.shipped import fit_exits

COSTS = [0.07, 0.14, 0.35]


# --- thresholds


def artists(generator: np.random.Generator, count: int) -> tuple[Answers, HeldOut]:
    """Answers of three stages on the music of `count` artists, some easier than others.

    The first stage is as sure as it should be; the second is too sure of what the first finds hard.
    """
    sizes = generator.integers(2, 14, count)
    block = np.repeat(np.arange(count), sizes)
    ease = generator.normal(0, 0.6, count)[block] + generator.normal(0, 1.6, len(block))
    first = 1 / (1 + np.exp(-1.2 - ease))
    confidence = np.stack([first, np.minimum(first + 0.1, 0.999), first])[:, None]
    chance = 1 / (1 + np.exp(-1.2 - ease - generator.normal(0, 0.5, count)[block]))
    right = (generator.random((3, 1, len(block))) < chance).astype(float)
    alone = np.arange(len(block))
    no_votes = (np.zeros((1, len(block), 2)),)
    held = HeldOut(no_votes, np.zeros(len(block), int), np.ones(len(block)), alone, block)
    return Answers(confidence, right), held


@pytest.mark.parametrize("wanted", [0.8, 0.9])
def test_the_promise_holds_for_all_early_exits_together(wanted: float) -> None:
    everybody, _ = artists(np.random.default_rng(1), 20_000)
    broken = given = 0
    for seed in range(80):
        answers, held = artists(np.random.default_rng(1000 + seed), 60)
        first, second, last = exit_thresholds(answers, held, [True] * 3, wanted=(wanted,))
        assert first == second and last == {}
        if not first:
            continue
        given += 1
        (threshold,) = first.values()
        stage, right = leave_early(everybody, [threshold, threshold])
        broken += right[stage < 2].mean() < wanted
    assert given > 40
    assert broken / 80 <= 0.10 + 0.07  # promised: 10 %, and 80 trials have a spread of 3.4 %


def test_what_nothing_supports_is_not_promised() -> None:
    few, held = artists(np.random.default_rng(2), 3)
    assert exit_thresholds(few, held, [True] * 3) == [{}, {}, {}]
    answers, held = artists(np.random.default_rng(3), 60)
    wrong = Answers(answers.confidence, np.zeros_like(answers.right))
    assert exit_thresholds(wrong, held, [True] * 3) == [{}, {}, {}]


def test_a_higher_accuracy_takes_a_higher_threshold_and_some_stages_may_not_decide() -> None:
    answers, held = artists(np.random.default_rng(4), 300)
    first, second, last = exit_thresholds(answers, held, [True, False, True])
    assert list(first) == sorted(first) and len(first) >= 4
    assert list(first.values()) == sorted(first.values())
    assert second == {} and last == {}
    longer = exit_thresholds(answers, held, [True] * 3, ends=(1, 2, 3))
    assert longer[0] == longer[1] == longer[2] != {}
    alone = exit_thresholds(answers, held, [True] * 3, ends=(2,))[0]
    for name, threshold in longer[0].items():  # a promise for more cascades is no cheaper,
        assert threshold >= alone[name] - 0.02  # save that other steps of the walk are tested


def test_who_leaves_where() -> None:
    confidence = np.array([[[0.9, 0.5, 0.5, 0.7]], [[0.2, 0.8, 0.3, 0.9]], [[1.0, 1.0, 1.0, 1.0]]])
    right = np.array([[[1.0, 0, 0, 0]], [[0.0, 1, 0, 1]], [[0.0, 0, 1, 1]]])
    stage, is_right = leave_early(Answers(confidence, right), [0.7, 0.8])
    assert stage.tolist() == [[0, 1, 2, 0]]
    assert is_right.tolist() == [[1, 1, 1, 0]]
    stage, is_right = leave_early(Answers(confidence, right), [math.inf, math.inf])
    assert stage.tolist() == [[2, 2, 2, 2]]
    assert is_right.tolist() == right[2].tolist()


def test_kin_count_less() -> None:
    six, alone = np.ones(6), np.arange(6)
    assert effective_count(six, alone, alone, KINSHIP) == pytest.approx(6)
    assert effective_count(six, np.zeros(6, int), alone * 0, KINSHIP) == pytest.approx(1)
    pairs = np.array([0, 0, 1, 1, 2, 2])
    assert effective_count(six, alone, pairs, 1.0) == pytest.approx(3)
    # The variance of the mean of m clips with correlation r is (1 + (m - 1) r) / m.
    assert effective_count(six, alone, alone * 0, 0.1) == pytest.approx(6 / 1.5)
    # Two clips that share a track's vote are one track.
    shared = np.array([0.5, 0.5, 1, 1])
    assert effective_count(shared, np.array([0, 0, 1, 2]), np.arange(4), 0.0) == pytest.approx(3)


def test_blocks_are_drawn_stratum_by_stratum() -> None:
    stratum = np.array([0, 0, 0, 1, 1, 2])
    for seed in range(20):
        copies = draw_blocks(stratum, np.random.default_rng(seed))
        assert [copies[stratum == each].sum() for each in range(3)] == [3, 2, 1]


def test_tallies_are_what_leaves() -> None:
    answers, held = artists(np.random.default_rng(5), 40)
    tallies = tally(answers, held.weights, held.track, held.block, [True] * 3, [2])
    step = int(np.flatnonzero(GRID == 0.8)[0])
    stage, right = leave_early(answers, [0.8, 0.8])
    early = stage < 2
    assert tallies.weight[0, step].sum() == early.sum()
    assert tallies.right[0, step].sum() == right[early].sum()
    copies = np.zeros(40)
    copies[[3, 5]] = 2, 1
    of_block = [(early & (held.block == block)).sum() for block in (3, 5)]
    assert tallies.weight[0, step] @ copies == 2 * of_block[0] + of_block[1]


# --- what is shipped


@pytest.mark.parametrize("taxonomy", ["gtzan", "default"])
def test_shipped_exits_follow_from_the_shipped_votes(taxonomy: str) -> None:
    spec = load_ensemble(taxonomy)
    assert fit_exits(spec, read_held_out(spec), DATA / "heads") == spec
    assert spec.stages[0].exits, "nobody could leave early"
    assert all(stage.exits == {} for stage in spec.stages if stage.strangers != 1.0)


@pytest.mark.parametrize(("taxonomy", "wanted"), [("gtzan", 0.9), ("default", 0.8)])
def test_shipped_exits_keep_their_promise_on_music_drawn_anew(taxonomy: str, wanted: float) -> None:
    spec = load_ensemble(taxonomy)
    tallies = tally_early_exits(spec, read_held_out(spec))
    kept = draw_anew(tallies, wanted, 100)
    assert kept.given > 0.9 and kept.leaving > 0.2
    assert kept.broken <= 0.10
    halves = half_to_half(tallies, wanted, 50)
    assert 0 < halves.leaving < kept.leaving  # half of the clips promise less


@pytest.fixture(scope="module")
def gtzan() -> Judgement:
    spec = load_ensemble("gtzan")
    return judge(read_held_out(spec), spec, COSTS, 0.1)


def test_leaving_early_is_as_accurate_as_the_best_stage_and_costs_less(gtzan: Judgement) -> None:
    by_wanted = {gain.wanted: gain for gain in gtzan.gains}
    for wanted in (0.75, 0.80, 0.85, 0.90):
        assert by_wanted[wanted].accuracy.value >= 0
        assert by_wanted[wanted].seconds > 0
        assert by_wanted[wanted].accuracy.low < by_wanted[wanted].accuracy.value
    for point in gtzan.exits:
        assert point.early is not None and point.wanted is not None
        assert point.early.low < point.early.value < point.early.high
        assert point.early.value >= point.wanted
        assert sum(point.decided) == pytest.approx(1)
    assert gtzan.effective < gtzan.clips


def test_the_judgement_is_what_the_ensemble_does(gtzan: Judgement) -> None:
    """Every clip of every repeat goes through the stages as `ensemble.Ensemble` lets it."""
    spec = load_ensemble("gtzan")
    held = read_held_out(spec)
    accuracy = cost = 0.0
    repeats, clips = held.votes[0].shape[:2]
    for repeat in range(repeats):
        for clip in range(clips):
            heard: list[evidence.Probabilities] = []
            seconds = 0.1
            for stage, votes, own in zip(spec.stages, held.votes, COSTS, strict=True):
                heard.append(votes[repeat, clip])
                seconds += own
                pooled = evidence.pool_votes(heard, stage.weights)
                if pooled.max() >= exit_threshold(stage, 0.87):
                    break
            accuracy += held.weights[clip] * (pooled.argmax() == held.labels[clip])
            cost += held.weights[clip] * seconds
    total = repeats * held.weights.sum()
    (point,) = judge(held, spec, COSTS, 0.1, wanted=(0.87,)).exits
    assert point.thresholds == (0.85, 0.85)  # those of 0.90, the next that was fitted
    assert point.accuracy.value == pytest.approx(accuracy / total)
    assert point.seconds == pytest.approx(cost / total)


def test_the_curve_goes_from_the_first_stage_to_the_full_vote(gtzan: Judgement) -> None:
    seconds = [point.seconds for point in gtzan.curve]
    assert seconds == sorted(seconds, reverse=True)
    assert gtzan.singles[0].seconds <= seconds[-1] <= gtzan.singles[0].seconds + 0.001
    full = next(way for way in gtzan.pools if way.name == "full vote, fitted weights")
    assert gtzan.curve[0].accuracy.value == pytest.approx(full.accuracy.value, abs=0.005)
    assert seconds[0] <= full.seconds == pytest.approx(0.1 + sum(COSTS))
    assert sum("0.25/0.35/0.40" in way.name for way in gtzan.pools) == 2
    former = [way for way in gtzan.pools if "0.40/0.60" in way.name]
    assert [way.seconds for way in former] == pytest.approx([0.1 + sum(COSTS[:2])] * 2)


def test_nobody_leaves_early_where_nothing_is_promised() -> None:
    spec = load_ensemble("default")
    judged = judge(read_held_out(spec), spec, COSTS, wanted=(0.95, 0.90))
    never, rarely = judged.exits
    assert never.early is None and never.decided == pytest.approx((0, 0, 1))
    assert never.seconds == pytest.approx(sum(COSTS))
    assert 0.05 < rarely.decided[0] < 0.2 and rarely.decided[1] == 0


# --- any labelled music


def two_stages(exits: dict[str, float]) -> EnsembleSpec:
    shared = {"head": "h", "features": "fma518", "rate": 16000, "windows": 1, "sharpness": 1.0}
    stages = [
        StageSpec(name="a", weights=(1.0,), exits=exits, window_seconds=3, **shared),  # type: ignore[arg-type]
        StageSpec(name="b", weights=(0.0, 1.0), exits={}, window_seconds=3, **shared),  # type: ignore[arg-type]
    ]
    return EnsembleSpec(taxonomy="gtzan", genres=("x", "y"), stages=tuple(stages), protocol="")


def test_four_recordings_by_hand() -> None:
    a = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4]])
    b = np.array([[0.1, 0.9], [0.1, 0.9], [0.3, 0.7], [0.7, 0.3]])
    held = labelled_votes([a, b], np.array([0, 0, 1, 1]), ["p", "p", None, None])
    assert held.block[0] == held.block[1] != held.block[2] != held.block[3]
    judged = judge(held, two_stages({"0.80": 0.8}), [1.0, 10.0], 0.5, wanted=(0.8,))
    (point,) = judged.exits
    assert point.decided == (0.5, 0.5)
    assert point.seconds == pytest.approx(0.5 + 1 + 5)
    assert point.accuracy.value == 0.5 and point.early is not None and point.early.value == 0.5
    assert [way.accuracy.value for way in judged.singles] == [0.25, 0.25]
    assert judged.effective < 4
    with pytest.raises(ValueError, match="2 votes, 2 stages, 1 costs"):
        judge(held, two_stages({}), [1.0])


def test_reliability_agrees_with_the_usual_measure() -> None:
    probabilities = softmax(np.random.default_rng(6).standard_normal((500, 4)))
    labels = np.random.default_rng(7).integers(0, 4, 500)
    right = (probabilities.argmax(1) == labels).astype(float)
    diagram = reliability("x", probabilities.max(1)[None], right[None], np.ones(500))
    assert diagram.error == pytest.approx(metrics.calibration_error(probabilities, labels))
    assert len(diagram.confidence) == len(diagram.accuracy) == 10
    assert list(diagram.confidence) == sorted(diagram.confidence)


def test_votes_of_other_stages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ensemble").mkdir()
    arrays = load_file(DATA / FILE)
    arrays.pop("fma518")
    save_file(arrays, tmp_path / FILE)
    with pytest.raises(ModelError, match=r"out_of_fold.safetensors: has no 'fma518'"):
        read_held_out(load_ensemble("gtzan"), tmp_path)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"out_of_fold.safetensors"):
        read_held_out(load_ensemble("gtzan"), tmp_path)


# --- plots and commands


def test_plots_are_drawn_and_say_what_they_show(gtzan: Judgement, tmp_path: Path) -> None:
    files = draw_all(gtzan, tmp_path / "new" / "folder")
    texts = {file.name: "".join(ElementTree.parse(file).getroot().itertext()) for file in files}
    assert {"0.80", "0.95"} <= set(texts["accuracy-cost.svg"].split())
    assert "musicnn-full" in texts["accuracy-cost.svg"] and "musicnn-few" in texts["stages.svg"]
    assert "expected error" in texts["reliability.svg"]
    assert all(file.stat().st_size < 100_000 for file in files)
    again = tmp_path / "again.svg"
    draw_accuracy_against_cost(gtzan, again)
    assert again.read_bytes() == files[0].read_bytes()
    png = tmp_path / "plot.png"
    draw_accuracy_against_cost(gtzan, png)
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"plot.png.*cannot be written"):
        draw_accuracy_against_cost(gtzan, png / "below-a-file.svg")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)


def test_the_command_prints_and_writes_the_same_figures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "--progressive", "--taxonomy", "gtzan", "--json", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.splitlines()[0])
    assert printed == json.loads((out / "figures.json").read_text())
    assert printed["stages"] == ["musicnn-few", "fma518", "musicnn-full"]
    assert len(printed["curve"]) == len(GRID) and printed["costs"]["machine"]
    shutil.rmtree(out)
    for_people = CliRunner().invoke(app, ["evaluate", "--progressive"])
    assert for_people.exit_code == 0
    assert (
        "none leaves early" in for_people.stdout and "reclass-plex calibrate" in for_people.stdout
    )


def test_what_to_evaluate_has_to_be_said() -> None:
    result = CliRunner().invoke(app, ["evaluate"])
    assert isinstance(result.exception, ConfigError)
    result = CliRunner().invoke(app, ["evaluate", "--progressive", "--taxonomy", "nonsense"])
    assert isinstance(result.exception, ConfigError)
