"""What the stages cost: measured on real files, kept, and found again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from audio_files import make_audio
from typer.testing import CliRunner

from reclass_plex import costs
from reclass_plex.cli_evaluate import app
from reclass_plex.config import Config, EnsembleOptions, StoreOptions
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, FileError, ModelError, StoreError
from reclass_plex.profiles import load_ensemble
from reclass_plex.store import Store

STAGES = [stage.name for stage in load_ensemble("gtzan").stages]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path / "state" / "reclass-plex"


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    for number in range(3):
        make_audio(folder, "flac", seconds=3.5, rate=22050, name=f"{number}.flac", seed=number)
    return folder


def config(tmp_path: Path) -> Config:
    store = StoreOptions(path=tmp_path / "state" / "reclass-plex" / "store.sqlite")
    return costs.patient(Config(ensemble=EnsembleOptions(taxonomy="gtzan"), store=store))


def measured(fingerprint: str) -> costs.Costs:
    return costs.Costs(
        taxonomy="gtzan",
        profile="cpu",
        fingerprint=fingerprint,
        decode=0.5,
        stages=dict.fromkeys(STAGES, 0.25),
        tracks=2,
        device="cpu",
        machine="a test",
        torch="2",
        date="2026-11-22",
    )


def test_the_command_measures_every_stage_and_keeps_it(music: Path, state: Path) -> None:
    (music / "broken.flac").write_bytes(b"fLaC and nothing else")
    arguments = ["calibrate", str(music), "--tracks", "4", "--taxonomy", "gtzan", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, "one file could not be heard"
    assert "broken.flac" in result.stderr
    printed = json.loads(result.stdout)
    assert printed["tracks"] == 3
    assert list(printed["stages"]) == STAGES
    assert all(0 < seconds < 60 for seconds in (printed["decode"], *printed["stages"].values()))
    kept = json.loads((state / "costs-gtzan-cpu.json").read_text())
    assert printed == kept | {"path": str(state / "costs-gtzan-cpu.json")}
    assert [file.name for file in state.iterdir()] == ["costs-gtzan-cpu.json"], "no leftovers"
    shown = CliRunner().invoke(app, ["evaluate", "--progressive", "--taxonomy", "gtzan", "--json"])
    assert json.loads(shown.stdout)["costs"] == kept, "measured here, so not what is shipped"
    other = CliRunner().invoke(app, ["evaluate", "--progressive", "--json"])
    assert (
        json.loads(other.stdout)["costs"]["machine"]
        == costs.shipped_costs("default", "cpu").machine
    )


def test_a_file_that_brings_its_reader_down_is_named_and_the_others_are_measured(
    music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{root / 'tests' / 'hostile_site'}{os.pathsep}{root}")
    shutil.copy(music / "0.flac", music / "crash.flac")
    arguments = ["calibrate", str(music), "--tracks", "4", "--taxonomy", "gtzan", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "crash.flac: brings down what decodes it (SIGSEGV)" in result.stderr
    assert json.loads(result.stdout)["tracks"] == 3


def test_the_fastest_round_counts_and_silence_does_not(music: Path, tmp_path: Path) -> None:
    options = config(tmp_path)
    ensemble = Ensemble.from_config(options)
    silent = make_audio(music, "ape", seconds=3, name="silent.ape")
    ticks = iter(range(1000))
    errors: list[FileError] = []
    found = list(
        costs.measure_costs(
            [silent, music / "0.flac", music / "gone.flac", music / "1.flac"],
            options,
            ensemble,
            on_error=errors.append,
            clock=lambda: float(next(ticks)),
        )
    )
    assert [each.tracks for each in found] == [1, 2]
    assert found[-1].decode == 1.0  # two readings of the clock
    assert [error.path.name for error in errors] == ["gone.flac"]
    assert found[-1].fingerprint == ensemble.fingerprint
    stopped = costs.measure_costs(
        [music / "0.flac"], options, ensemble, on_error=errors.append, should_stop=lambda: True
    )
    assert list(stopped) == []


def test_tracks_are_spread_over_what_is_there(music: Path, tmp_path: Path) -> None:
    errors: list[FileError] = []
    chosen = costs.choose_tracks([music, tmp_path / "nowhere"], 2, errors.append)
    assert [path.name for path in chosen] == ["0.flac", "1.flac"]
    assert [error.path.name for error in errors] == ["nowhere"]
    assert len(costs.choose_tracks([music], 100, errors.append)) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: no music is there"):
        costs.choose_tracks([tmp_path / "empty"], 2, errors.append)


def test_without_a_path_the_newest_known_tracks_that_are_there(music: Path, state: Path) -> None:
    path = state / "store.sqlite"
    with pytest.raises(ConfigError, match="name some music"):
        costs.newest_tracks(path, 2)
    assert not path.exists(), "looking makes no store"
    with Store.open(path) as store:
        for name in ("0.flac", "1.flac", "gone.flac", "2.flac"):
            store.save_track(music / name, 1, 1, digest=name)
    assert costs.newest_tracks(path, 2) == [music / "2.flac", music / "1.flac"]
    with pytest.raises(ConfigError, match="nothing could be measured"):
        raise_from(["calibrate", str(make_audio(music, "ape", name="silent.ape"))])


def raise_from(arguments: list[str]) -> None:
    error = CliRunner().invoke(app, arguments).exception
    assert error is not None
    raise error


def test_costs_of_other_models_give_way_to_those_that_are_shipped(tmp_path: Path) -> None:
    options = config(tmp_path)
    path = costs.costs_path(options)
    shipped = costs.shipped_costs("gtzan", "cpu")
    assert shipped.seconds(STAGES) == [shipped.stages[name] for name in STAGES]
    assert costs.load_costs(options, "mine") == (shipped, False)
    costs.save_costs(path, measured("mine"))
    assert costs.load_costs(options, "mine") == (measured("mine"), True)
    assert costs.load_costs(options, "newer") == (shipped, False)
    with pytest.raises(ModelError, match="no costs of mert are known"):
        shipped.seconds(["mert"])
    with pytest.raises(ModelError, match=r"profile deep, are not known; run"):
        costs.shipped_costs("gtzan", "deep")


@pytest.mark.parametrize("content", ["", "[]", '{"decode": 1}', "NaN", "decode"])
def test_a_damaged_file_of_costs_is_named(tmp_path: Path, content: str) -> None:
    options = config(tmp_path)
    path = costs.costs_path(options)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(StoreError, match=r"costs-gtzan-cpu.json: cannot be read"):
        costs.load_costs(options, "mine")
    shipped = tmp_path / "shipped.json"
    shipped.write_text(content if content != "[]" else "[1]")
    with pytest.raises(ModelError, match=r"shipped.json: cannot be read"):
        costs.shipped_costs("gtzan", "cpu", shipped)


def test_costs_that_cannot_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "file" / "costs.json"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"costs.json: cannot be written"):
        costs.save_costs(path, measured("mine"))
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
