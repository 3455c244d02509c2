"""From labelled files to an ensemble that is in use, and back."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audio_files import synthesize
from model_server import ModelServer
from safetensors.numpy import load_file
from scipy.io import wavfile
from test_deep import make_mel
from test_training_runs import Child
from tiny_ensemble import publish
from tiny_models import write_tiny_jmla
from training_tables import make_table, write_folder
from typer.testing import CliRunner, Result

from reclass_plex.cli import app
from reclass_plex.errors import ReclassError
from reclass_plex.models import list_models
from reclass_plex.profiles import SPEC, read_spec
from reclass_plex.training.cascade import HELD_OUT
from reclass_plex.training.progressive_run import (
    PROGRESSIVE,
    ProgressiveConfig,
    finish_progressive,
    start_progressive,
)
from reclass_plex.training.runs import Voice

GENRES = ("Ambient", "Jazz", "Metal")
CLIPS = 11  # a genre


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", os.fspath(tmp_path / name.lower()))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def run(home: Path) -> Callable[..., Result]:
    def invoke(*args: object) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    return invoke


def refuse(*args: object) -> str:
    """Return why a command refused."""
    with pytest.raises(ReclassError) as caught:
        CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    return str(caught.value)


def write_music(folder: Path) -> Path:
    """Write three kinds of sound that anything can tell apart, a folder each."""
    generator = np.random.default_rng(0)
    for genre in GENRES:
        (folder / genre).mkdir(parents=True)
        for number in range(CLIPS):
            sound = synthesize(5.0, 16_000, channels=1, seed=number)[0]
            if genre == "Ambient":
                sound = np.convolve(sound, np.ones(40) / 40, "same") * 0.3
            elif genre == "Metal":
                sound = np.tanh(sound * 9) * 0.8 + generator.normal(0, 0.05, len(sound))
            wavfile.write(folder / genre / f"{number}.wav", 16_000, sound.astype(np.float32))
    return folder


def fetch_tiny_jmla(home: Path, run: Callable[..., Result]) -> None:
    write_tiny_jmla(home / "jmla")
    with ModelServer() as server:
        publish("jmla", home / "jmla", server, home / "data" / "reclass-plex" / "models")
        run("models", "fetch", "jmla", "--mirror", server.url, "--accept-licence")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_labelled_files_become_an_ensemble_that_decides_and_goes_again(
    home: Path, run: Callable[..., Result]
) -> None:
    music = write_music(home / "music")
    fetch_tiny_jmla(home, run)
    run("extract", music, "--features", "musicnn,jmla", "--out", home / "features", "--jobs", 1)
    tables = [home / "features" / name for name in ("musicnn", "jmla")]
    options = [part for table in tables for part in ("--table", table)]
    made = run(
        "train", "--approach", "progressive", *options, "--out", home / "run", "--folds", 3,
        "--install", "mine", "--json",
    )  # fmt: skip
    figures = json.loads(made.stdout.splitlines()[-1])
    assert (figures["taxonomy"], figures["recordings"]) == ("default", 3 * CLIPS)
    assert [stage["name"] for stage in figures["stages"]] == ["musicnn", "jmla"]
    assert figures["stages"][-1]["accuracy"] > 0.8

    ensemble = home / "run" / "ensemble"
    assert not [file.name for file in list_models(ensemble / "SHA256SUMS") if file.problem]
    held = load_file(ensemble / HELD_OUT)
    pooled = np.log(held["votes 0"][0]) * read_spec(ensemble / SPEC).stages[1].weights[0]
    pooled += np.log(held["votes 1"][0]) * read_spec(ensemble / SPEC).stages[1].weights[1]
    right = (pooled.argmax(1) == held["labels"]).mean()
    assert right == pytest.approx(figures["stages"][-1]["accuracy"])

    song = music / "Metal" / "3.wav"
    said = json.loads(run("classify", song, "--profile", "mine", "--json").stdout)
    assert said["genres"][0]["name"] == "Metal"
    assert {stage["name"] for stage in said["stages"]} <= {"musicnn", "jmla"}
    run("calibrate", song, "--profile", "mine")
    judged = run(
        "evaluate", "--progressive", "--profile", "mine", "--json", "--out", home / "plots"
    )
    assert json.loads(judged.stdout.splitlines()[0])["clips"] == 3 * CLIPS
    assert (home / "plots" / "accuracy-cost.svg").stat().st_size > 1000

    # Interrupted and resumed: the same bytes.
    before = contents(ensemble)
    shutil.rmtree(ensemble)
    shutil.rmtree(home / "run" / "stages" / "2-jmla")
    (home / "run" / "stages" / "2-jmla").mkdir()  # killed in its very first moment
    (home / "run" / "stages" / "2-jmla" / ".run.json.part").write_text("{")
    run("train", "--resume", home / "run")
    assert contents(ensemble) == before

    # In use twice over, then back step by step.
    place = home / "data" / "reclass-plex" / "models" / "ensembles" / "default-mine"
    first = contents(place)
    assert first == before
    (ensemble / SPEC).write_text("{}")
    assert SPEC in refuse("models", "install", ensemble, "--profile", "mine")
    (ensemble / SPEC).write_bytes(before[SPEC])
    run("models", "install", ensemble, "--profile", "mine")
    assert "counts again" in run("models", "rollback", "mine", "--yes").output
    assert contents(place) == first
    assert "cpu decides" in run("models", "rollback", "mine", "--yes").output
    assert [path.name for path in place.parent.iterdir()] == [".default-mine.lock"]
    assert "no ensemble to take back" in refuse("models", "rollback", "mine", "--yes")


def test_what_does_not_go_together_is_refused(home: Path) -> None:
    native = write_folder(make_table(60, name="fma518"), home / "tables" / "a")
    manifest = native / "manifest.json"
    text = json.loads(manifest.read_text())
    text["plan"]["rate"] = "native"
    manifest.write_text(json.dumps(text))
    good = write_folder(make_table(60, name="musicnn"), home / "tables" / "b")
    few = write_folder(make_table(18, name="jmla"), home / "tables" / "c")
    start = ["train", "--approach", "progressive", "--out", home / "run"]
    assert "two or more" in refuse(*start, "--table", good)
    assert "--folds and --seed only" in refuse(*start, "--table", good, "--batch", 8)
    assert "fma-windows" in refuse(*start, "--table", good, "--table", native)
    assert not (home / "run").exists()
    assert "the same features" in refuse(*start, "--table", good, "--table", good)
    assert not (home / "run").exists()
    assert "at least 30" in refuse(*start, "--table", good, "--table", few, "--folds", 3)


def test_the_published_test_part_is_left_out(home: Path, run: Callable[..., Result]) -> None:
    for name in ("musicnn", "jmla"):
        write_folder(make_table(90, name=name, split=True), home / name)
    made = run(
        "train", "--approach", "progressive", "--table", home / "musicnn", "--table",
        home / "jmla", "--out", home / "run", "--folds", 3, "--json",
    )  # fmt: skip
    kept = make_table(90, split=True).splits
    figures = json.loads(made.stdout.splitlines()[-1])
    assert figures["recordings"] == 90 - kept.count("test")


@pytest.mark.parametrize("second", ["jmla", pytest.param("mel", marks=pytest.mark.nightly)])
def test_a_progressive_run_that_is_killed_over_and_over_ends_in_the_same_bytes(
    tmp_path: Path, second: str
) -> None:
    """Of mel, MusiCNN itself learns on: minutes, where a head takes a second."""
    last = make_mel(36) if second == "mel" else make_table(36, name=second)
    tables = tuple(
        write_folder(table, tmp_path / table.name)
        for table in (make_table(36, name="musicnn"), last)
    )
    config = ProgressiveConfig(
        tables=tables, folds=2, device="cpu", threads=1, started="2026-11-26", command="",
        versions={},
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        start_progressive(folder, config)
    quiet = Voice(lambda text: None, lambda text: None, lambda fit, line: None)
    finish_progressive(whole, quiet)

    def checkpoints() -> int:
        """Fits that are kept: those of a stage go when it is finished, and leave their plots."""
        return sum(1 for path in killed.rglob("*") if path.suffix in {".safetensors", ".svg"})

    def epochs() -> int:
        """Of the network that is being fitted: the time when the last one was kept."""
        kept = killed / "stages" / "2-mel" / "checkpoint" / "in-hand.safetensors"
        return kept.stat().st_mtime_ns if kept.exists() else 0

    count, wait = (epochs, 120) if second == "mel" else (checkpoints, 30)
    generator = random.Random(20261126)
    child = Child()
    try:
        for _ in range(3):
            before = count()
            pid = child.start(killed)
            deadline = time.monotonic() + wait
            while count() < before + generator.randint(1, 3) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            assert child.read() == -signal.SIGKILL, "the kill came too late"
    finally:
        child.close()
    assert (killed / "stages" / "1-musicnn").exists()
    assert not (killed / "ensemble").exists()
    finish_progressive(killed, quiet)
    assert contents(killed / "ensemble") == contents(whole / "ensemble")
    for name in ("head.safetensors", "card.json", "metrics.json", "predictions.csv"):
        for stage in ("1-musicnn", f"2-{second}"):
            path = Path("stages") / stage / name
            assert (killed / path).read_bytes() == (whole / path).read_bytes(), path
    assert (killed / PROGRESSIVE).exists()
