"""Ensembles that are installed, replaced, taken back, damaged: what is in use stays sound."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_ensemble import GENRES, install_ensemble, make_head, make_stage
from typer.testing import CliRunner

from reclass_plex.audio import decode_excerpt
from reclass_plex.cli import app
from reclass_plex.config import Config, EnsembleOptions
from reclass_plex.encoders.opening import open_encoder
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, ModelError, NoSpace, ReclassError
from reclass_plex.heads import Head
from reclass_plex.models import SUMS, write_sums
from reclass_plex.models.swap import FORMER, FRESH
from reclass_plex.profiles import (
    SPEC,
    EnsembleSpec,
    ensemble_folder,
    find_profile,
    load_ensemble,
    read_spec,
)
from reclass_plex.records import Excerpt
from reclass_plex.training import cascade
from reclass_plex.training.cascade import roll_back
from reclass_plex.training.checkpoints import write_whole

MUSIC = Path(__file__).parent.parent / "demo" / "HSR - Rock.mp3"
OTHERS = ("Zydeco", *GENRES[1:])
OPTIONS = EnsembleOptions(taxonomy="gtzan", profile="mine")
PLAIN = EnsembleOptions(taxonomy="gtzan")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", os.fspath(tmp_path / name.lower()))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path / "data" / "reclass-plex" / "models"


def own_head(**changes: Any) -> Head:
    """Return a head that hears what is in the package."""
    features = changes.pop("features", "musicnn-msd")
    return make_head("own", features, changes.pop("dims", 250), None, **changes)


def write_own(models: Path, head: Head | None = None) -> Path:
    """Install `musicnn-few` and a head of one's own as profile `mine`; return the folder."""
    stages = [make_stage("own", "musicnn-msd", "own", (0.1, 2.0))]
    install_ensemble(models, "mine", [head or own_head()], stages)
    return ensemble_folder("gtzan", "mine", models)


@pytest.fixture
def place(models: Path) -> Path:
    return write_own(models)


@pytest.fixture
def source(place: Path, tmp_path: Path) -> Path:
    """The same, somewhere else, as `train` writes it."""
    return Path(shutil.copytree(place, tmp_path / "ensemble"))


def stages(models: Path) -> list[str]:
    return [stage.name for stage in find_profile("gtzan", "mine", models).spec.stages]


# Damage


def cut_a_head(folder: Path) -> None:
    path = folder / "heads" / "own" / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def lose_a_head(folder: Path) -> None:
    shutil.rmtree(folder / "heads" / "own")


def lose_the_list(folder: Path) -> None:
    (folder / SUMS.name).unlink()


def spoil_the_list(folder: Path) -> None:
    (folder / SUMS.name).write_bytes(b"\xff\xfe\x00")


def empty_the_list(folder: Path) -> None:
    (folder / SUMS.name).write_bytes(b"")


def change_the_spec(folder: Path) -> None:
    path = folder / SPEC
    path.write_text(path.read_text().replace("0.1", "0.2"))


@pytest.mark.parametrize(
    "damage",
    [
        cut_a_head,
        lose_a_head,
        lose_the_list,
        spoil_the_list,
        empty_the_list,
        change_the_spec,
    ],
)
def test_what_is_not_as_it_was_installed_gives_way_to_the_cpu_s(
    place: Path, models: Path, damage: Callable[[Path], None]
) -> None:
    sound = Ensemble(OPTIONS, models=models).fingerprint
    damage(place)
    ensemble = Ensemble(OPTIONS, models=models)
    assert ensemble.spec == load_ensemble("gtzan")
    (note,) = ensemble.notes
    assert str(place) in note
    assert "models install FOLDER --profile mine" in note
    # These verdicts are the same as those of `cpu`, and are not to be made again.
    assert ensemble.fingerprint == Ensemble(PLAIN, models=models).fingerprint != sound


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dims": 20}, "takes 20 features"),
        ({"features": "musicnn"}, "reads musicnn, and the stage musicnn-msd"),
        ({"excerpt": "full"}, "hears full, not middle30"),
        ({"genres": OTHERS, "rests_on": dict.fromkeys(OTHERS, "")}, "['Zydeco']"),
    ],
)
def test_a_head_that_does_not_fit_leaves_its_stage_out(
    models: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    folder = write_own(models, own_head(**changes))
    ensemble = Ensemble(OPTIONS, models=models)
    ensemble.load()
    assert why in ensemble.notes[0]
    assert "no stage left" in ensemble.notes[1]
    heard, _ = Ensemble(OPTIONS, models=models).classify(decode_excerpt(MUSIC, Excerpt(30.0)))
    assert heard.votes[0].stage == "musicnn-few"
    with pytest.raises(ConfigError) as caught:
        cascade.install_ensemble(folder, "other", models)
    assert why in str(caught.value)
    assert not list(models.glob("ensembles/gtzan-other*"))


def test_a_head_with_nan_is_refused(models: Path, place: Path) -> None:
    path = place / "heads" / "own" / "head.safetensors"
    tensors = load_file(path)
    tensors["bias"] = torch.full_like(tensors["bias"], torch.nan)
    save_file(tensors, path)
    write_sums(place)
    ensemble = Ensemble(OPTIONS, models=models)
    assert ensemble.excerpt == Excerpt(30.0)
    assert "bias holds values that are not finite" in ensemble.notes[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("taxonomy", "../../elsewhere"),
        ("genres", ["Rock"]),
        ("genres", ["Rock", "Rock"]),
        ("stages.0.head", "../../../heads/own"),
        ("stages.0.features", "../clap"),
        ("stages.0.name", "own"),
        ("stages.1.weights", [1.0]),
        ("stages.1.weights", [1.0, float("nan")]),
        ("stages.1.exits", {"often": 0.9}),
        ("stages.1.exits", {"0.90": float("inf")}),
    ],
)
def test_an_ensemble_that_cannot_be_meant_is_refused(place: Path, key: str, value: object) -> None:
    content = json.loads((place / SPEC).read_text())
    at = content
    *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
    for part in path:
        at = at[part]
    at[last] = value
    (place / SPEC).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=SPEC):
        read_spec(place / SPEC)


def test_a_stage_of_one_s_own_goes_on_without_fetched_models(models: Path) -> None:
    """What knows the user's genres may not give way to what does not."""
    genres = ("K-Pop", "Anime")
    card = {"taxonomy": "own", "genres": genres, "rests_on": dict.fromkeys(genres, "")}
    tensors = {
        "mean": torch.zeros(250), "deviation": torch.ones(250),
        "weight": torch.ones(250, 2) * 0.01, "bias": torch.tensor([1.0, 0.0]),
    }  # fmt: skip
    head = Head(own_head().card.model_copy(update=card), tensors)
    folder = ensemble_folder("own", "mine", models)
    head.save(folder / "heads" / "own")
    spec = EnsembleSpec(
        taxonomy="own", genres=genres, protocol="none: tests",
        stages=(
            make_stage("own", "musicnn-msd", "own", (1.0,)),
            make_stage("jmla", "jmla", "jmla", (0.5, 0.5)),
        ),
    )  # fmt: skip
    (folder / SPEC).write_text(spec.model_dump_json())
    write_sums(folder)
    ensemble = Ensemble(EnsembleOptions(taxonomy="own", profile="mine"), models=models)
    (note,) = ensemble.notes
    assert "jmla is not fetched" in note
    verdict, _ = ensemble.classify(decode_excerpt(MUSIC, Excerpt(30.0)))
    assert {score.name for score in verdict.genres} == set(genres)
    assert ensemble.taxonomy.genres == genres


def test_threads_that_race_for_the_first_track_agree(models: Path) -> None:
    write_own(models, own_head(dims=20))
    ensemble = Ensemble(OPTIONS, models=models)
    waveform = decode_excerpt(MUSIC, Excerpt(30.0))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: ensemble.classify(waveform)[0].genres, range(3)))
    assert found[0] == found[1] == found[2]
    assert len(ensemble.notes) == 2


def test_a_profile_that_is_not_there_changes_no_verdict(models: Path) -> None:
    ensemble = Ensemble(EnsembleOptions(profile="nobody-s"), models=models)
    assert "train --approach progressive --install nobody-s" in ensemble.notes[0]
    assert ensemble.fingerprint == Ensemble(EnsembleOptions(), models=models).fingerprint
    strange = Ensemble(EnsembleOptions(taxonomy="own", profile="nobody-s"), models=models)
    assert strange.taxonomy.name == "default"


def test_a_model_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ["clap"]}')
    with pytest.raises(ModelError, match="no encoder here reads"):
        open_encoder(tmp_path)


@pytest.mark.parametrize(
    "name", ["", " ", "???", "Other", "17", "Rock; Pop", "Jazz, Blues", "a\nb", "a\0b", "x" * 61]
)
def test_text_genres_that_name_no_genre_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"ensemble": {"text_genres": [name]}})


def test_text_genres_count_once_each(models: Path) -> None:
    names = (" K-Pop", "k-pop", "{}", "rap", "Hip-Hop", "ROCK", "{0.__class__}")
    with pytest.raises(ValidationError):  # "{}" has neither letter nor digit
        EnsembleOptions(text_genres=names)
    options = EnsembleOptions(text_genres=tuple(name for name in names if name != "{}"))
    assert Ensemble(options, models=models)._wanted_texts == ("K-Pop", "{0.__class__}")


# Installing


def test_killed_between_two_renames_the_former_one_counts(
    place: Path, source: Path, models: Path
) -> None:
    cascade.install_ensemble(source, "mine", models)
    former, fresh = (place.with_name(place.name + ending) for ending in (FORMER, FRESH))
    shutil.rmtree(former)
    place.rename(former)
    shutil.copytree(source, fresh)
    assert stages(models) == ["musicnn-few", "own"]
    cascade.install_ensemble(source, "mine", models)
    assert stages(models) == ["musicnn-few", "own"]
    assert not fresh.exists()
    shutil.rmtree(place)
    assert roll_back("gtzan", "mine", models)  # ended within a rollback: it is finished
    assert place.is_dir()
    assert not roll_back("gtzan", "mine", models)
    assert stages(models) == [stage.name for stage in load_ensemble("gtzan").stages]


def test_a_full_disk_changes_nothing(
    place: Path, source: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Ensemble(OPTIONS, models=models).fingerprint
    count = iter(range(100))

    def fill(path: Path, data: bytes) -> None:
        if next(count) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, data)

    monkeypatch.setattr("reclass_plex.training.cascade.write_whole", fill)
    with pytest.raises(NoSpace, match="free some space"):
        cascade.install_ensemble(source, "mine", models)
    assert Ensemble(OPTIONS, models=models).fingerprint == before
    assert not place.with_name(place.name + FRESH).exists()


def test_several_install_at_once(source: Path, models: Path) -> None:
    def install(number: int) -> Mapping[str, object]:
        return {"place": cascade.install_ensemble(source, "mine", models)}

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(install, range(8)))) == 8
    assert stages(models) == ["musicnn-few", "own"]
    assert sorted(path.name for path in (models / "ensembles").iterdir()) == [
        ".gtzan-mine.lock", "gtzan-mine", "gtzan-mine.former",
    ]  # fmt: skip


def test_only_an_ensemble_s_own_files_are_installed(
    source: Path, models: Path, tmp_path: Path
) -> None:
    (source / "notes.txt").write_text("not of it")
    assert not (cascade.install_ensemble(source, "mine", models) / "notes.txt").exists()
    digest = "0" * 64
    with (source / SUMS.name).open("a") as sums:
        sums.write(f"{digest}  ../../stolen\n")
    (tmp_path.parent / "stolen").write_text("x")
    with pytest.raises(ConfigError, match="no file of the ensemble"):
        cascade.install_ensemble(source, "mine", models)
    with pytest.raises(ConfigError, match="another name"):
        cascade.install_ensemble(source, "cpu", models)
    with pytest.raises(ReclassError, match=SPEC):
        cascade.install_ensemble(tmp_path / "nowhere", "mine", models)


def test_installed_ensembles_are_listed(place: Path, models: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("ensemble: {taxonomy: gtzan, profile: mine}\n")
    listed = ["models", "list", "--config", str(config)]

    def find() -> dict[str, Any]:
        result = CliRunner().invoke(app, [*listed, "--json"])
        assert result.exit_code == 0, result.output
        lines = map(json.loads, result.stdout.splitlines())
        (found,) = [line for line in lines if "ensemble" in line]
        return dict(found)

    assert find() == {
        "ensemble": "gtzan-mine", "taxonomy": "gtzan", "profile": "mine", "path": str(place),
        "stages": ["musicnn-few", "own"], "models": [], "genres": list(GENRES),
        "protocol": "none: tests", "in_use": True, "problems": [],
    }  # fmt: skip
    assert "gtzan-mine" in CliRunner().invoke(app, listed).output
    lose_the_list(place)
    assert "cpu decides" in find()["problems"][0]
