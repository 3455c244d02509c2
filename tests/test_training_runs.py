from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from timing import timed
from training_tables import GENRES, make_table, write_csv, write_folder
from typer.testing import CliRunner

from reclass_plex import cli_train
from reclass_plex.errors import ConfigError, FileError, ModelError, ReclassError
from reclass_plex.heads import load_head
from reclass_plex.training import runs
from reclass_plex.training.approaches import make_settings
from reclass_plex.training.approaches.base import State
from reclass_plex.training.checkpoints import load_state, save_state
from reclass_plex.training.comparison import compare, read_predictions
from reclass_plex.training.evaluating import evaluate_model, load_trained, write_evaluation
from reclass_plex.training.extraction import read_table
from reclass_plex.training.inspection import inspect_model
from reclass_plex.training.judging import Answers, Calibration, calibrate, judge, pool
from reclass_plex.training.report import write_report
from reclass_plex.training.report_plots import draw_labels
from reclass_plex.training.run_config import RunConfig, Source, read_tables
from reclass_plex.training.run_outputs import write_predictions
from reclass_plex.training.splits import LEAK, divide
from reclass_plex.training.table import (
    FeatureTable,
    check_finite,
    fingerprint,
    join_tables,
)
from reclass_plex.training.table_csv import CsvSource, read_csv_table

RESULTS = ("head.safetensors", "card.json", "metrics.json", "predictions.csv", "recordings.csv")
KILLS = 2
SILENT = runs.Voice(lambda text: None, lambda text: None, lambda fit, line: None)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def begin(folder: Path, csv: Path, approach: str = "baseline", **given: Any) -> Path:
    settings: dict[str, Any] = {"epochs": 4, "batch": 16, "learning_rate": 0.02}
    if approach == "xgboost":
        settings = {"epochs": 60, "learning_rate": 0.3}
    folds = given.pop("folds", 3)
    sources = (Source(features=csv, name="fma518"),)
    config = RunConfig(
        approach=approach,
        settings=make_settings(approach, settings | given),
        sources=sources,
        fingerprint=fingerprint(read_tables(approach, sources)[0]),
        device="cpu",
        threads=1,
        licence="CC0-1.0",
        started="2026-11-22",
        command="reclass-plex train",
        versions={"torch": "2"},
        folds=folds,
    )
    runs.start_run(folder, config)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    names = [*RESULTS, "trees.json"] if (folder / "trees.json").exists() else RESULTS
    return {name: (folder / name).read_bytes() for name in names}


# --- a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    csv = write_csv(make_table(), folder / "table.csv")
    run = begin(folder / "run", csv, "fma-mlp", hidden=(256,))
    runs.finish_run(run, SILENT)
    return run


def test_a_run_writes_a_head_that_answers_as_it_was_measured(finished: Path) -> None:
    head = load_head(finished)
    table = make_table()
    with torch.no_grad():
        answers = head.predict(torch.from_numpy(table.rows)).numpy().argmax(1)
    assert (answers == table.labels).mean() > 0.9
    figures = json.loads((finished / "metrics.json").read_text())
    (measured,) = head.card.measured
    assert measured.accuracy == figures["accuracy"]["value"] > 0.9
    assert measured.clips == figures["recordings"] == len(table)
    assert figures["groups"] == 15
    assert head.card.taxonomy == "default"
    assert head.card.genres == GENRES
    assert not (finished / "checkpoint").exists()


def test_a_report_is_one_file_that_needs_nothing(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert text.count("<svg") == 5
    assert "<script" not in text
    assert "src=" not in text
    assert "<?xml" not in text
    for name in GENRES:
        assert name in text
    names = {path.name for path in (finished / "plots").iterdir()}
    assert names == {"confusion.svg", "labels.svg", "reliability.svg", "curves.svg", "cost.svg"}
    log = (finished / "log.csv").read_text().splitlines()
    assert log[0].startswith("fit,number,train_loss,tune_loss")
    assert len(log) == 1 + 3 * 4 + 4


def test_a_label_is_drawn_as_it_is_called(tmp_path: Path) -> None:
    names = ("$#1 & $2", r"$\frac", "Metal")
    told = [{"label": name, "f1": 0.5, "recordings": 3} for name in names]
    draw_labels({"multi_label": False, "labels": told}, tmp_path / "labels.svg")
    drawn = ElementTree.parse(tmp_path / "labels.svg").getroot()
    assert set(names) <= {text.strip() for text in drawn.itertext()}


def test_a_report_looks_only_at_neighbours_that_it_may_see(finished: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        beside = Path(name)
        beside.chmod(0o777)
        run = shutil.copytree(finished, beside / "run")
        (beside / "private").mkdir(mode=0)
        for path in (run, *run.rglob("*")):
            path.chmod(0o777)
        root = os.geteuid() == 0
        if root:  # whom no permission stops
            os.seteuid(65534)
        try:
            write_report(run)
        finally:
            if root:
                os.seteuid(0)
        assert "Accuracy against cost" in (run / "report.html").read_text()


def test_a_checkpoint_lies_in_memory_as_what_it_was_made_of(tmp_path: Path) -> None:
    tensors = {name: torch.ones(count) for name, count in (("a", 3), ("b", 501), ("c", 7))}
    save_state(tmp_path / "state", State(tensors))
    kept = load_state(tmp_path / "state")
    assert kept is not None
    assert {tensor.data_ptr() % 64 for tensor in kept.tensors.values()} == {0}


def test_predictions_read_back_give_the_same_figures(finished: Path) -> None:
    figures = json.loads((finished / "metrics.json").read_text())
    again = judge(read_predictions(finished))
    assert again["accuracy"] == figures["accuracy"]
    assert again["log_loss"] == pytest.approx(figures["log_loss"], rel=1e-4)
    assert again["confusion"] == figures["confusion"]


@pytest.mark.parametrize("tags", [False, True])
def test_labels_of_any_name_read_back(tmp_path: Path, tags: bool) -> None:
    table = make_table(4, tags=tags)
    names = ("Pop|Rock", 'the "80s", live', "Metal")
    told = Answers(
        table.keys, names, table.labels, np.full((4, 3), 0.25), table.groups, np.ones(4, np.int64)
    )
    write_predictions(tmp_path / "predictions.csv", told)
    again = read_predictions(tmp_path)
    assert (again.label_names, again.keys, again.groups) == (names, told.keys, told.groups)
    np.testing.assert_array_equal(again.labels, told.labels)


def test_what_a_resumed_run_would_not_heed_is_refused(finished: Path) -> None:
    for option in (("--epochs", "9"), ("--class-weights", "balanced"), ("--approach", "cnn")):
        with pytest.raises(ConfigError, match="takes everything from the run"):
            call("train", "--resume", finished, *option)


def test_a_run_is_not_begun_in_a_folder_in_use_and_not_finished_twice(finished: Path) -> None:
    with pytest.raises(FileError, match="is not empty"):
        begin(finished, finished.parent / "table.csv")
    with pytest.raises(ConfigError, match="this run is finished"):
        runs.finish_run(finished, SILENT)


def test_a_run_that_was_killed_before_it_was_begun_is_begun_again(tmp_path: Path) -> None:
    csv = write_csv(make_table(), tmp_path / "table.csv")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.part").write_text("{")
    begin(tmp_path / "run", csv)
    assert runs.finish_run(tmp_path / "run", SILENT)["recordings"] == 90


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", write_csv(make_table(), tmp_path / "table.csv"))
    with (
        runs.alone(run),
        pytest.raises(ConfigError, match="another process is at work"),
    ):
        runs.finish_run(run, SILENT)


def test_a_table_that_changed_is_not_trained_on_further(tmp_path: Path) -> None:
    csv = write_csv(make_table(), tmp_path / "table.csv")
    run = begin(tmp_path / "run", csv)
    write_csv(make_table(seed=1), csv)
    with pytest.raises(ConfigError, match="the table has changed"):
        runs.finish_run(run, SILENT)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", write_csv(make_table(), tmp_path / "table.csv"))
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "fold-1.safetensors").write_bytes(b"half")
    with pytest.raises(FileError, match=r"fold-1\.safetensors: is damaged.*delete it"):
        runs.finish_run(run, SILENT)


def test_a_run_of_tags(tmp_path: Path) -> None:
    table = make_table(tags=True)
    csv = write_csv(table, tmp_path / "table.csv")
    figures = {}
    for approach in ("baseline", "xgboost", "fma-mlp"):
        run = begin(tmp_path / approach, csv, approach)
        figures[approach] = runs.finish_run(run, SILENT)
        assert figures[approach]["roc_auc"]["value"] > 0.85
        assert figures[approach]["mean_average_precision"]["value"] > 0.8
        assert not (run / "card.json").exists()
    trained = load_trained(tmp_path / "fma-mlp")
    answers, asked = evaluate_model(trained, replace(table, name="fma518"))
    assert asked["roc_auc"]["value"] > 0.9
    assert (answers.probabilities > 0).all() and (answers.probabilities < 1).all()
    assert inspect_model(tmp_path / "fma-mlp").facts["kind"] == "tags, kernel"
    first, second = (read_predictions(tmp_path / name) for name in ("baseline", "fma-mlp"))
    found = compare(first, second)
    assert found.test is None
    assert found.measure == "mean average precision"


def test_a_published_split_is_kept(tmp_path: Path) -> None:
    table = make_table(120, split=True)
    run = begin(tmp_path / "run", write_csv(table, tmp_path / "table.csv"), "fma-mlp")
    figures = runs.finish_run(run, SILENT)
    test = {key for key, split in zip(table.keys, table.splits, strict=True) if split == "test"}
    assert set(read_predictions(run).keys) == test
    assert figures["recordings"] == len(test)
    assert figures["warnings"] == []
    assert "tuned on valid, asked about test" in figures["protocol"]
    roles = (run / "recordings.csv").read_text()
    assert all(f"{key},artist" in roles for key in test)
    assert roles.count(",asked") == len(test)


# --- killed


class Child:
    def __init__(self) -> None:
        script = Path(__file__).with_name("training_child.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, run: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run}\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.mark.parametrize("infinite", [False, True])
def test_a_run_that_is_killed_over_and_over_ends_in_the_same_bytes(
    infinite: bool, finished: Path, tmp_path: Path
) -> None:
    if infinite:  # large enough that a kill falls amid its few steps
        csv = write_csv(make_table(500, dims=20, seed=1), tmp_path / "table.csv")
        finished = begin(tmp_path / "run", csv, "fma-mlp", epochs=9)
        runs.finish_run(finished, SILENT)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(finished / "run.json", killed)
    generator = random.Random(20261122)
    child = Child()
    try:
        for _ in range(KILLS):
            pid = child.start(killed)
            wait_for_checkpoints(killed / "checkpoint", generator.randint(1, 5))
            time.sleep(generator.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            assert child.read() == -signal.SIGKILL, "the kill came too late"
    finally:
        child.close()
    assert list(killed.glob("checkpoint/*.safetensors"))
    runs.finish_run(killed, SILENT)
    assert results(killed) == results(finished)
    assert not (killed / "checkpoint").exists()


def wait_for_checkpoints(folder: Path, count: int) -> None:
    """Return when `count` states were written since now, so that a kill falls amid the work."""
    seen = set(states(folder))
    target = len(seen) + count
    deadline = time.monotonic() + 30
    while len(seen) < target and time.monotonic() < deadline:
        seen |= set(states(folder))
        time.sleep(0.005)


def states(folder: Path) -> list[tuple[str, int]]:
    found = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # it went while we looked
            found.append((path.name, path.stat().st_mtime_ns))
    return found


# --- who is asked


def test_folds_keep_artists_apart_and_ask_everyone_once() -> None:
    table = make_table()
    division = divide(table, "auto", 5, 0)
    groups = np.array(table.groups)
    assert sorted(np.concatenate([fold.ask for fold in division.folds])) == list(range(90))
    for fold in division.folds:
        sides = [set(groups[part]) for part in (fold.train, fold.tune, fold.ask)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert division.warnings == ()


def test_unknown_artists_are_a_loud_warning() -> None:
    assert divide(make_table(groups=False), "auto", 5, 0).warnings[0].startswith(LEAK)
    some = replace(make_table(), groups=("A",) * 6 + ("B",) * 30 + (None,) * 54)
    assert "of 54 of 90 recordings nobody is named" in divide(some, "folds", 2, 0).warnings[0]
    albums = replace(make_table(), groups_are_artists=False)
    assert "not known to be artists" in divide(albums, "folds", 2, 0).warnings[0]


def test_a_published_split_that_leaks_is_a_loud_warning() -> None:
    table = make_table(120, split=True)
    (fold,) = divide(table, "auto", 5, 0).folds
    groups = list(table.groups)
    groups[fold.ask[0]] = groups[fold.train[0]]
    warnings = divide(replace(table, groups=tuple(groups)), "auto", 5, 0).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{LEAK}: 1 of the {len(fold.ask)} recordings")


def test_a_split_without_a_test_part_asks_valid_and_tunes_on_train() -> None:
    table = make_table(120, split=True)
    splits = tuple("train" if split == "test" else split for split in table.splits)
    (fold,) = divide(replace(table, splits=splits), "auto", 5, 0).folds
    assert {splits[i] for i in fold.ask} == {"valid"}
    assert {splits[i] for i in np.concatenate([fold.train, fold.tune])} == {"train"}
    assert set(np.array(table.groups)[fold.tune]).isdisjoint(np.array(table.groups)[fold.train])


def test_tables_that_cannot_be_divided_say_why() -> None:
    table = make_table(90)
    with pytest.raises(ConfigError, match="--protocol split: the table names no recordings"):
        divide(table, "split", 5, 0)
    with pytest.raises(ConfigError, match="of 2 groups are too few to be parted in 5"):
        divide(replace(table, groups=("A", "B") * 45), "folds", 5, 0)
    few = replace(table, labels=np.array([2] * 2 + [0] * 50 + [1] * 38))
    with pytest.raises(ConfigError, match="2 recordings of Metal are too few"):
        divide(few, "folds", 5, 0)


# --- figures


def test_calibration_undoes_what_was_overstated() -> None:
    generator = np.random.default_rng(0)
    recording = np.repeat(np.arange(3000), 2)
    logits = 1.5 * generator.standard_normal((3000, 3))
    labels = np.array([generator.choice(3, p=np.exp(z) / np.exp(z).sum()) for z in logits])
    found = calibrate(4 * logits[recording], labels, recording)
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.sharpness == pytest.approx(1, rel=0.1)  # both windows said the same
    truth = generator.random((3000, 3)) < 1 / (1 + np.exp(-logits))
    tags = calibrate(4 * logits[recording], truth, recording)
    assert tags.temperature == pytest.approx(4, rel=0.1)


def test_windows_are_pooled_as_the_ensemble_pools_them() -> None:
    logits = np.log([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    pooled = pool(logits, np.array([1, 0, 1]), Calibration(1.0, 2.0), tags=False)
    both = np.array([0.5 * 0.6, 0.3 * 0.3, 0.2 * 0.1])
    np.testing.assert_allclose(pooled[1], both / both.sum())
    np.testing.assert_allclose(pooled[0], [0.2, 0.7, 0.1])


def answers(right: list[bool], keys: str = "abcdefgh", groups: str = "xxyyzzww") -> Answers:
    labels = np.zeros(len(right), np.int64)
    p = np.array([[0.9, 0.1] if one else [0.2, 0.8] for one in right])
    ones = np.ones(len(right), np.int64)
    return Answers(tuple(keys), ("Jazz", "Rock"), labels, p, tuple(groups), ones)


def test_compare_pairs_recordings_by_their_keys() -> None:
    first = answers([True] * 4 + [False] * 4)
    second = answers([True] * 8, keys="hgfedcba")
    found = compare(first, second)
    assert (found.first, found.second, found.recordings) == (0.5, 1.0, 8)
    assert found.test is not None
    assert (found.test.only_first, found.test.only_second) == (0, 4)
    assert found.low <= 0.5 <= found.high
    fewer = answers([True] * 8, keys="abcdefXY")
    assert compare(first, fewer).only_one == 4
    with pytest.raises(ConfigError, match="no common recording"):
        compare(first, answers([True] * 8, keys="12345678"))
    other = replace(second, labels=np.ones(8, np.int64))
    with pytest.raises(ConfigError, match="disagree about the true label of 8"):
        compare(first, other)


# --- evaluation


def test_what_a_model_was_trained_on_is_a_loud_warning(finished: Path, tmp_path: Path) -> None:
    trained = load_trained(finished)
    _, figures = evaluate_model(trained, make_table())
    assert figures["warnings"][0].startswith("TRAINED ON: 90 of 90")
    fresh = make_table(seed=2)
    fresh = replace(
        fresh,
        keys=tuple(f"new {key}" for key in fresh.keys),
        groups=tuple(f"new {group}" for group in fresh.groups),
    )
    said, figures = evaluate_model(trained, fresh)
    assert figures["warnings"] == []
    assert figures["accuracy"]["value"] > 0.9
    write_evaluation(tmp_path / "out", said, figures)
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert compare(read_predictions(tmp_path / "out"), said).recordings == 90


def test_labels_are_matched_by_name_and_strange_ones_left_out(finished: Path) -> None:
    trained = load_trained(finished)
    table = replace(make_table(), label_names=("Metal", "metal music of others", "blues"))
    said, figures = evaluate_model(trained, table)
    assert set(said.labels) == {GENRES.index("Metal"), GENRES.index("Blues")}
    assert "30 recordings have only labels that" in figures["warnings"][0]
    with pytest.raises(ConfigError, match="nothing to compare"):
        evaluate_model(trained, replace(make_table(), label_names=("Folk", "Pop", "Soul")))
    with pytest.raises(ConfigError, match=r"hears fma518 \(6 numbers\), but the table has mert"):
        evaluate_model(trained, make_table(name="mert-95m"))
    with pytest.raises(ConfigError, match="--split test: no recording"):
        evaluate_model(trained, make_table(), "test")
    split = make_table(split=True)
    strange = np.where([one == "valid" for one in split.splits], 3, split.labels)
    names = (*split.label_names, "Polka")
    with pytest.raises(ConfigError, match=r"none of the labels .* in --split valid"):
        evaluate_model(trained, replace(split, labels=strange, label_names=names), "valid")


def test_layers_are_read_by_their_numbers(tmp_path: Path) -> None:
    table = make_table(layers=(2, 5), name="mert-95m", windows=2)
    division = divide(table, "folds", 3, 0)
    config = RunConfig(
        approach="mert",
        settings=make_settings("mert", {"epochs": 10, "batch": 16, "learning_rate": 0.02}),
        sources=(Source(folder=tmp_path),), fingerprint="", folds=3, device="cpu", threads=1,
        started="2026-11-22", command="", versions={},
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    work = runs._Work(tmp_path / "run", config, table, division, SILENT, 15.0)
    figures = work.finish()
    assert figures["accuracy"]["value"] > 0.9
    readout = load_head(tmp_path / "run").card.readout
    assert readout is not None
    assert readout.layers == (2, 5)
    assert readout.weights[1] > 0.5
    wider = np.concatenate([table.rows[:, :1] * 0 - 1e6, table.rows], 1)
    wide = replace(table, rows=wider, layers=(0, 2, 5))
    trained = load_trained(tmp_path / "run")
    a, _ = evaluate_model(trained, table)
    b, _ = evaluate_model(trained, wide)
    np.testing.assert_allclose(a.probabilities, b.probabilities)
    with pytest.raises(ConfigError, match=r"the table lacks \[5\]"):
        evaluate_model(trained, replace(table, rows=table.rows[:, :1], layers=(2,)))


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    for look in (load_trained, inspect_model):
        with pytest.raises(ModelError, match="holds no model"):
            look(tmp_path)
    with pytest.raises(ModelError, match="no run that is finished"):
        read_predictions(tmp_path)


def test_inspect_tells_whether_it_works_here(finished: Path, tmp_path: Path) -> None:
    found = inspect_model(finished)
    assert found.problems == ()
    assert found.facts["parameters"] == str(6 * 256 + 256 + 256 * 3 + 3)
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    (broken / "head.safetensors").write_bytes(b"")
    assert "cannot be read" in inspect_model(broken).problems[0]


# --- tables


@timed
def test_large_tables_are_joined_in_time() -> None:
    first = make_table(20_000, dims=2)
    began = time.monotonic()
    joined = join_tables([first, replace(first, name="other")])
    assert len(joined) == 20_000
    assert time.monotonic() - began < 5  # a set of all keys for each key took minutes


def test_fusion_joins_tables_by_recording() -> None:
    first = make_table(windows=3)
    second = make_table(name="mert-95m", layers=(1, 2), dims=4, seed=4)
    chosen = list(range(89, 9, -1))
    second = replace(
        second,
        rows=second.rows[chosen],
        recording=np.arange(80),
        keys=tuple(second.keys[i] for i in chosen),
        labels=second.labels[chosen],
        groups=tuple(second.groups[i] for i in chosen),
        splits=second.splits[:80],
    )
    joined = join_tables([first, second])
    assert joined.name == "fma518+mert-95m"
    assert joined.rows.shape == (80, 10)
    assert joined.keys == first.keys[10:]
    np.testing.assert_allclose(joined.rows[0, :6], first.rows[30:33].mean(0), rtol=1e-5)
    np.testing.assert_allclose(joined.rows[0, 6:], second.rows[79].mean(0), rtol=1e-5)
    wrong = replace(second, labels=(second.labels + 1) % 3)
    with pytest.raises(ConfigError, match="contradict each other"):
        join_tables([first, wrong])


def test_tables_whose_parts_do_not_fit_are_refused() -> None:
    table = make_table(windows=2)
    for change, reason in (
        ({"keys": table.keys[:-1]}, "every recording needs a row"),
        ({"layers": (1,)}, "rows have shape"),
        ({"labels": table.labels + 1}, "labels must be between 0 and 2"),
        ({"recording": table.recording[1:]}, "180 rows, but 179"),
        ({"label_names": ("Jazz",)}, "at least two distinct labels"),
    ):
        with pytest.raises(ConfigError, match=f"table made/fma518: .*{reason}"):
            replace(table, **change)
    rows = table.rows.copy()
    rows[7, 3] = np.nan
    with pytest.raises(ConfigError, match=r"a feature of 'song 3' \(row 7\) is not a number"):
        check_finite(replace(table, rows=rows))


FMA = """features,mfcc,mfcc
statistics,mean,std
number,01,01
track_id,,
2,1.5,2
5,,
10,3,4
20,5,6
"""


def test_fma_tables_are_read_with_their_genre_tree(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("features.csv", "tracks.csv", "genres.csv")]
    files[0].write_text(FMA)
    files[1].write_text("track_id,genre,set\n2,25,training\n5,0,\n10,21,test\n99,12,\n20,12,test\n")
    files[2].write_text(
        "genre_id,#tracks,parent,title,top_level\n12,9,0,Rock,12\n25,9,12,Punk,12\n21,9,0,Rap,21\n"
    )
    table, remarks = read_csv_table(CsvSource(files[0], files[1], files[2]))
    assert table.keys == ("2", "10", "20")
    assert table.label_names == ("Hip-Hop", "Rock")
    assert table.labels.tolist() == [1, 0, 1]
    assert table.splits == ("train", "test", "test")
    assert table.rows.tolist() == [[1.5, 2], [3, 4], [5, 6]]
    assert remarks == ("1 recordings without features are left out",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rows below its header"),
        ("key,label,f\n", "no rows below its header"),
        ("key,f\na,1\n", "no column of labels"),
        ("key,label,f\na,Jazz,x\nb,Rock,2\n", "a: a feature is no number"),
        ("key,label,f\na,Jazz,nan\nb,Rock,2\n", "a: a feature is NaN"),
        ("key,label,f\na,Jazz,1\na,Rock,2\n", "same key"),
        ("key,label,f\na,Jazz\nb,Rock,2\n", "row 2 has 2 columns, not 3"),
        ("key,label,split,f\na,Jazz,dev,1\nb,Rock,,2\n", "split 'dev' is none of"),
        ("key,label,f\na,,1\n", "no recording has both"),
        ("key,label,f\na,\udcff,1\n", "is no CSV text"),
    ],
)
def test_wrong_tables_name_file_and_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(FileError, match=f"table.csv: .*{reason}"):
        read_csv_table(CsvSource(path))
    with pytest.raises(FileError, match="vanished"):
        read_csv_table(CsvSource(tmp_path / "nothing.csv"))


# --- the commands


def call(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(cli_train.app, [str(one) for one in arguments])
    if isinstance(result.exception, ReclassError):
        raise result.exception
    return result


def test_train_resume_compare_and_inspect(tmp_path: Path) -> None:
    csv = write_csv(make_table(), tmp_path / "table.csv")
    arguments = ("train", "--csv", csv, "--features-name", "fma518", "--folds", "3")
    first = call(*arguments, "--approach", "baseline", "--out", tmp_path / "a", "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told["accuracy"]["value"] > 0.9
    assert told["path"] == str(tmp_path / "a")
    assert call(*arguments, "--approach", "fma-mlp", "--epochs", "3", "--out", tmp_path / "b")
    found = call("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert json.loads(found.stdout)["recordings"] == 90
    assert "p = " in call("compare", tmp_path / "a", tmp_path / "b").stdout
    assert "works with this installation" in call("inspect", tmp_path / "b").stdout
    with pytest.raises(ConfigError, match="this run is finished"):
        call("train", "--resume", tmp_path / "a")
    begin(tmp_path / "c", csv)
    assert call("train", "--resume", tmp_path / "c").exit_code == 0
    assert (tmp_path / "c" / "report.html").exists()


def test_evaluate_on_a_table(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = write_csv(make_table(), tmp_path / "table.csv")
    cli_train.evaluate_on_table(finished, None, csv=csv, out=tmp_path / "out", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["recordings"] == 90
    assert (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "say --approach and --out"),
        (("--approach", "baseline", "--out", "OUT"), "say where the features are"),
        (("--approach", "fusion", "--csv", "CSV", "--out", "OUT"), "two tables or more, not 1"),
        (("--approach", "mert", "--csv", "CSV", "--out", "OUT"), "reads features of mert"),
        (("--resume", "OUT", "--approach", "baseline"), "give nothing else"),
        (("--resume", "EMPTY"), "is no training run"),
        (("--approach", "fma-mlp", "--csv", "CSV", "--out", "OUT", "--hidden", "x"), "--hidden x"),
    ],
)
def test_wrong_use_is_told_before_anything_is_made(
    tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    csv = write_csv(make_table(), tmp_path / "CSV")
    (tmp_path / "EMPTY").mkdir()
    given = [str(tmp_path / one) if one.isupper() else one for one in arguments]
    with pytest.raises(ReclassError, match=reason):
        call("train", *given)
    assert not (tmp_path / "OUT").exists()
    assert csv.exists()


def test_fusion_of_extracted_folders(tmp_path: Path) -> None:
    folders = [
        write_folder(make_table(windows=2), tmp_path / "tables" / "fma518"),
        write_folder(make_table(name="mert-95m", layers=(1, 2)), tmp_path / "tables" / "mert"),
    ]
    out = tmp_path / "runs" / "fusion"
    tables = [word for folder in folders for word in ("--table", folder)]
    common = (
        "--folds",
        "3",
        "--epochs",
        "15",
        "--batch",
        "16",
        "--learning-rate",
        "0.02",
        "--json",
    )
    found = call("train", "--approach", "fusion", *tables, "--out", out, *common)
    assert json.loads(found.stdout)["accuracy"]["value"] > 0.9
    card = load_head(out).card
    assert (card.features, card.dims, card.licence) == ("fma518+mert-95m", 12, "CC0-1.0")
    with pytest.raises(ConfigError, match="baseline reads one table, not 2"):
        call("train", "--approach", "baseline", *tables, "--out", tmp_path / "other")
    call("train", "--approach", "mert", *tables[2:], "--out", tmp_path / "runs" / "mert", *common)
    assert load_head(tmp_path / "runs" / "mert").card.readout is not None
    again = load_trained(tmp_path / "runs" / "mert")
    assert evaluate_model(again, read_table(folders[1]))[1]["accuracy"]["value"] > 0.9


def test_tables_are_told_apart_by_all_they_hold() -> None:
    table: FeatureTable = make_table()
    rows = table.rows.copy()
    rows[0, 0] += 1
    others = [
        replace(table, rows=rows),
        replace(table, labels=(table.labels + 1) % 3),
        replace(table, groups=(None,) * 90),
        make_table(split=True),
    ]
    assert len({fingerprint(one) for one in (table, *others)}) == 5
    assert fingerprint(table) == fingerprint(make_table())
