"""Genres of one's own, taught from real music: learned, previewed, used, taken back."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from audio_files import encode
from mutagen.flac import FLAC
from typer.testing import CliRunner

from reclass_plex.cli import app
from reclass_plex.config import Config, EnsembleOptions
from reclass_plex.costs import measure_costs, patient
from reclass_plex.decided import Decisions, Word
from reclass_plex.ensemble import LEARNED_STAGE, Ensemble
from reclass_plex.errors import ConfigError, FileError, ModelError, NoSpace
from reclass_plex.evidence import share_out
from reclass_plex.genres import DEFAULT
from reclass_plex.heads import Head
from reclass_plex.learned_genres import FOLDER, OTHER, find_learned
from reclass_plex.records import Embedding, GenreScore, Verdict
from reclass_plex.store import Store
from reclass_plex.training import learn_examples
from reclass_plex.training.datasets.library import LabelledTrack, tracks_of_store
from reclass_plex.training.learn import install, learn, roll_back
from reclass_plex.training.learn_examples import parse_genres, read_lesson
from reclass_plex.training.learn_preview import preview

DEMO = Path(__file__).parent.parent / "demo"
RATE, PIECE = 16000, 3.2  # Hz, seconds
PIECES = 10  # of a song
INVENTED = {
    "Bogwave": ("Scottish Bagpipes.ogg", "Traveling Minstrels.wv"),
    "Skycore": ("Space-Atmo.opus", "Sky Vibe.m4a"),
    "Gravel Step": ("HSR - Rock.mp3", "Mutilated Mime.mp3"),
    "Classical": ("Morning.flac", "Underwater.wma"),  # what else the library has
}


def decode(path: Path) -> npt.NDArray[np.float32]:
    """Return a song as (1, n) at `RATE`."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    with av.open(os.fspath(path)) as container:
        frames = [one for frame in container.decode(audio=0) for one in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray() for frame in frames], 1)


def cut_songs(root: Path) -> None:
    """Write a folder for each genre with pieces of its songs, a third of a song an artist's."""
    for genre, endings in INVENTED.items():
        (root / genre).mkdir(parents=True)
        for ending in endings:
            (song,) = (path for path in DEMO.iterdir() if path.name.endswith(ending))
            samples = decode(song)
            length = round(PIECE * RATE)
            for i, start in enumerate(np.linspace(0, samples.shape[1] - length, PIECES, dtype=int)):
                path = root / genre / f"{song.stem} {i}.flac"
                encode(path, "flac", "flac", samples[:, start : start + length], RATE)
                tags = FLAC(path)
                tags["artist"], tags["genre"] = f"{song.stem} {i * 3 // PIECES}", genre
                tags.save()


@dataclass(frozen=True)
class Home:
    music: Path
    models: Path
    store: Path

    def run(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """Run a command with --json; return what it printed."""
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == code, (result.output, result.exception)
        return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose library of three invented genres, and one other, was heard."""
    root = tmp_path_factory.mktemp("home")
    cut_songs(root / "music")
    with pytest.MonkeyPatch.context() as patch:
        set_home(patch, root)
        result = CliRunner().invoke(app, ["tag", "--dry-run", os.fspath(root / "music")])
        assert result.exit_code == 0, result.output
    yield root
    shutil.rmtree(root)


@pytest.fixture
def home(heard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The heard library, with a store and models of the test's own."""
    shutil.copytree(heard / "state", tmp_path / "state")
    set_home(monkeypatch, tmp_path)
    app_folder = "reclass-plex"
    store = tmp_path / "state" / app_folder / "store.sqlite"
    return Home(heard / "music", tmp_path / "data" / app_folder / "models", store)


def set_home(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("DATA", "CONFIG", "STATE"):
        patch.setenv(f"XDG_{name}_HOME", os.fspath(root / name.lower()))
    patch.delenv("RECLASS_PLEX_CONFIG", raising=False)


LEARN = ("learn", "--from-library", "--genres", "Bogwave,Skycore,Gravel Step")


def test_learned_used_and_taken_back(home: Home, head: Head) -> None:
    plain = fingerprint(home)
    lines = home.run(*LEARN, "--preview", "500", "--install")
    figures = {one["genre"]: one for one in lines if "genre" in one}
    assert list(figures) == ["Bogwave", "Skycore", "Gravel Step", OTHER]
    assert all(one["tracks"] == 2 * PIECES and one["groups"] == 6 for one in figures.values())
    assert all(one["precision"] > 0.8 and one["recall"] > 0.8 for one in figures.values())
    changes = {Path(one["path"]): one for one in lines if "would_be" in one}
    total = lines[-1]
    assert total["tracks"] == 8 * PIECES
    assert len(changes) == total["changes"] > PIECES
    right = [one["would_be"] == path.parent.name for path, one in changes.items()]
    assert np.mean(right) > 0.9
    assert Path(total["installed"]) == home.models / FOLDER

    # It is heard, as the preview said, and could be written.
    path = next(path for path, one in changes.items() if one["would_be"] == "Skycore")
    (result,) = home.run("classify", os.fspath(path))
    assert result["decided_by"] == result["stages"][-1]["name"] == LEARNED_STAGE
    assert result["genres"][0]["name"] == "Skycore"
    assert result["genres"][0]["confidence"] == pytest.approx(changes[path]["confidence"], abs=0.01)
    assert sum(one["confidence"] for one in result["genres"]) == pytest.approx(1, abs=0.02)
    (plan,) = home.run("tag", "--dry-run", "--mode", "append", os.fspath(path))
    assert plan["after"] is None
    assert plan["reason"] == "already has Skycore"

    # Other models decide now: all tracks but that one are to be heard again.
    (again,) = home.run("reclassify", "--older-model", "--dry-run")
    assert again["count"] == 8 * PIECES - 1
    (status,) = home.run("learn", "--status")
    assert status["in_use"]
    assert not status["former"]
    one_head = fingerprint(home)
    assert one_head != plain

    # What it would change is still seen from the verdicts that it has not replaced yet.
    last = home.run(*LEARN[:-1], "Bogwave,Skycore")[-1]
    assert last["tracks"] == 8 * PIECES
    assert last["unknown"] == 0

    # A second one takes its place; one step back brings the first, another none.
    install(head, home.models)
    assert len({plain, one_head, fingerprint(home)}) == 3
    (back,) = home.run("learn", "--rollback", "--yes")
    assert back["learned"] == ["Bogwave", "Skycore", "Gravel Step", OTHER]
    assert fingerprint(home) == one_head
    (back,) = home.run("learn", "--rollback", "--yes")
    assert back["learned"] is None
    assert fingerprint(home) == plain
    assert not (home.models / FOLDER).exists()
    home.run("learn", "--rollback", "--yes", code=1)


def test_only_looked_at_where_nobody_can_be_asked(home: Home) -> None:
    result = CliRunner().invoke(app, [*LEARN[:-1], "Bogwave,Nothing", "--preview", "0", "--json"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert "Nothing: no track of it" in result.stderr
    assert "ARTISTS" not in result.stderr  # all are known
    assert "not installed" in result.stderr
    assert [one["genre"] for one in lines if "genre" in one] == ["Bogwave", OTHER]
    assert lines[-1]["installed"] is None
    assert find_learned(home.models) is None


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--from-library",),
        ("--status", "--rollback"),
        (*LEARN[1:3], "K-Pop,rap"),
        (*LEARN[1:3], "K-Pop"),
        (*LEARN[1:], "--minimum", "500"),
    ],
)
def test_wrong_use_changes_nothing(home: Home, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["learn", *arguments, "--yes"])
    assert isinstance(result.exception, ConfigError), result.output
    assert not (home.models / FOLDER).exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (" , ", "names no genre"),
        ("K-Pop,Unknown", "Unknown: names no genre"),
        ("Other", "names no genre"),
        ("Hip Hop", "is heard already, as Hip-Hop"),
        ("K-Pop,\x1b[2J", "one line"),
        ("x" * 61, "at most 60"),
    ],
)
def test_genres_that_cannot_be_taught(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_genres(text, DEFAULT)


def test_genres_that_can_be_taught() -> None:
    assert parse_genres("K-Pop, Anime ,k-pop;Lo-Fi", DEFAULT) == ("K-Pop", "Anime", "Lo-Fi")


# A store without files: each genre is a cloud of embeddings, each album a part of it.


def add_tracks(
    store: Store, genre: str, count: int, *, albums: int = 5, heard: bool = True, spread: float = 1
) -> list[LabelledTrack]:
    centre = np.random.default_rng(len(genre) * 1000 + ord(genre[0])).standard_normal(200)
    random = np.random.default_rng(count)
    found = []
    for i in range(count):
        path, digest = Path(f"/nowhere/{genre}/{i}.flac"), f"{genre} {i}"
        album = f"/nowhere\n{genre} {i % albums}"
        store.save_track(path, 1, 1, digest=digest, genres=(genre,), album=album)
        vector = (centre + spread * random.standard_normal(200)).astype(np.float32)
        verdict = Verdict("default", (GenreScore("Pop", 0.7), GenreScore("Rock", 0.3)), "x", (), 0)
        vectors = (Embedding("musicnn-msd", vector),) if heard else ()
        store.save_verdict(digest, "models", verdict, vectors)
        found.append(LabelledTrack(path, (genre,), album))
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    """A head that knows Anime, Zouk and the rest."""
    with Store.open(tmp_path_factory.mktemp("head") / "store.sqlite") as store:
        tracks = [
            one for genre in ("Anime", "Zouk", "Polka") for one in add_tracks(store, genre, 21)
        ]
        return learn(read_lesson(store, tracks, ("Anime", "Zouk"), 20), "default", "test").head


def test_what_counts_as_an_example(store: Store) -> None:
    tracks = add_tracks(store, "K-Pop", 24) + add_tracks(store, "Rock", 30)
    first, second, third, fourth, *rest = tracks
    told = read_lesson(
        store,
        [
            LabelledTrack(first.path, ("K-Pop; Anime",), "a"),  # two of the user's
            LabelledTrack(second.path, ("k pop", "Pop"), None, ours=("K-Pop",)),  # one is ours
            LabelledTrack(third.path, ("Misc",), None),
            LabelledTrack(fourth.path, ("KPop", "Ballad"), None),
            *rest,
        ],
        ("K-Pop", "Anime"),
        20,
    )
    assert told.genres == ("K-Pop",)
    assert told.table.label_names == ("K-Pop", OTHER)
    assert np.bincount(told.table.labels).tolist() == [21, 31]
    assert told.warnings == ("left out: Anime: no track of it, save what we wrote",)
    assert len(told.remarks) == 2


def test_a_persons_word_counts_before_all_that_files_say(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = add_tracks(store, "K-Pop", 18) + add_tracks(store, "Rock", 30)
    copy, silent = tracks[20].path.with_suffix(".mp3"), Path("/nowhere/silent.flac")
    store.save_track(copy, 1, 1, digest="Rock 2", genres=("Rock",), album="/nowhere\nCopies")
    store.save_track(silent, 1, 1, digest="Rock 3", album="/nowhere\nOther")
    words = [Word(1, f"Rock {n}", ("k pop",), "correct", "Rock") for n in (2, 3, 4)]
    words.append(Word(1, "K-Pop 0", ("Trot",), "correct", "Rock"))
    Decisions(store).record(words, store.start_run("review"), 1.0)
    monkeypatch.setattr(learn_examples, "MOST_OTHERS", 20)  # of 28
    told = read_lesson(store, tracks_of_store(store, lambda path: None), ("K-Pop",), 20)
    labels = dict(zip(told.table.keys, told.table.labels.tolist(), strict=True))
    assert [labels[f"Rock {n}"] for n in (2, 3, 4)] == [0, 0, 0]  # copies do not contradict
    assert labels["K-Pop 0"] == 1  # another genre, and not left out for there being enough
    assert np.bincount(told.table.labels).tolist() == [20, 20]
    assert not any("copies" in remark for remark in told.remarks)
    Decisions(store).forget(["Rock 2", "Rock 3", "Rock 4", "K-Pop 0"])
    with pytest.raises(ConfigError, match="18 tracks"):
        read_lesson(store, tracks_of_store(store, lambda path: None), ("K-Pop",), 20)


def test_a_store_that_knows_nothing_says_what_to_do(store: Store) -> None:
    with pytest.raises(ConfigError, match="tag --dry-run FOLDER"):
        read_lesson(store, (), ("Anime",), 20)


@pytest.mark.parametrize(
    ("count", "albums", "heard", "fault"),
    [
        (19, 5, True, "19 tracks of it, and 20 are needed"),
        (24, 2, True, "of 2 artists or albums, and 3 are needed"),
        (24, 5, False, "24 more were not heard yet"),
    ],
)
def test_too_little_to_learn_from(
    store: Store, count: int, albums: int, heard: bool, fault: str
) -> None:
    tracks = add_tracks(store, "Anime", count, albums=albums, heard=heard)
    tracks += add_tracks(store, "Rock", 40)
    with pytest.raises(ConfigError, match=fault):
        read_lesson(store, tracks, ("Anime",), 20)


def test_without_other_tracks_it_warns_loudly(store: Store) -> None:
    tracks = add_tracks(store, "Anime", 20)
    with pytest.raises(ConfigError, match="Anime alone cannot be told from anything"):
        read_lesson(store, tracks, ("Anime",), 20)
    told = read_lesson(store, tracks + add_tracks(store, "K-Pop", 20), ("Anime", "K-Pop"), 20)
    assert told.table.label_names == ("Anime", "K-Pop")
    assert "EVERY TRACK" in told.warnings[-1]
    assert learn(told, "default", "test").head.card.genres == ("Anime", "K-Pop")


def test_a_rare_genre_is_neither_drowned_nor_overdone(store: Store) -> None:
    tracks = add_tracks(store, "Anime", 20, spread=2) + add_tracks(store, "Rock", 150, spread=2)
    found = learn(read_lesson(store, tracks, ("Anime",), 20), "default", "test")
    anime, other = found.genres
    assert (anime.name, other.name) == ("Anime", OTHER)
    assert anime.recall > 0.7
    assert anime.precision > 0.7
    assert found.calibration_error < 0.05
    assert any("ARTISTS MAY BE ON BOTH SIDES" in warning for warning in found.warnings)


def test_the_preview_sees_through_a_former_head(store: Store, head: Head) -> None:
    add_tracks(store, "Anime", 20)
    add_tracks(store, "Polka", 20)
    seen = preview(store, head, ["models"], (), ())
    assert (seen.tracks, seen.unknown) == (40, 0)
    assert {(one.now.name, one.then.name) for one in seen.changes} == {("Pop", "Anime")}
    assert {one.path.parent.name for one in seen.changes} == {"Anime"}
    # Where a head that goes had said Dub, the vote below it counts again.
    said = (GenreScore("Dub", 0.9), GenreScore("Rock", 0.06), GenreScore("Pop", 0.04))
    store.save_verdict("Polka 0", "models", Verdict("default", said, "learned", (), 0))
    seen = preview(store, head, ["models"], ("Dub",), ())
    (changed,) = (one for one in seen.changes if one.path.parent.name == "Polka")
    assert (changed.now.name, changed.then.name) == ("Dub", "Rock")
    assert preview(store, head, ["other models"], (), ()).unknown == 40
    assert preview(store, head, ["other models", "models"], (), ()).unknown == 0


def test_shares_stay_a_distribution() -> None:
    wide = share_out(np.array([0.75, 0.25]), np.array([0.5, 0.3]))
    assert wide == pytest.approx([0.15, 0.05, 0.5, 0.3])
    assert share_out(np.array([1.0]), np.array([0.6, 0.4 + 1e-9])).min() >= 0


# The ensemble


def test_a_damaged_head_is_left_out_and_said(home: Home, head: Head) -> None:
    plain = fingerprint(home)
    install(head, home.models)
    taught = fingerprint(home)
    off = Ensemble(EnsembleOptions(learned_genres=False), models=home.models)
    assert (off.fingerprint, off.notes) == (plain, ())
    weights = home.models / FOLDER / "head.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    damaged = Ensemble(EnsembleOptions(), models=home.models)
    assert damaged.fingerprint == plain != taught
    (note,) = damaged.notes
    assert "stage learned is left out" in note
    assert os.fspath(weights) in note
    assert CliRunner().invoke(app, ["learn", "--status"]).exit_code == 1
    (path, *_) = sorted(home.music.rglob("*.flac"))
    (result,) = home.run("classify", os.fspath(path))
    assert LEARNED_STAGE not in {stage["name"] for stage in result["stages"]}


def test_what_the_vote_knows_is_not_taught(home: Home, head: Head) -> None:
    install(head, home.models)
    learned = find_learned(home.models)
    assert learned is not None
    assert learned.names == ("Anime", "Zouk")
    assert learned.without(["ZOUK", "Rock"]) == ("Anime",)
    options = EnsembleOptions(text_genres=("anime", "Fado"))
    assert Ensemble(options, models=home.models)._wanted_texts == ("Fado",)
    # Replaced behind the back of a running process, it is not taken for the one that was known.
    shutil.rmtree(home.models / FOLDER)
    with pytest.raises(ModelError):
        learned.load()


def test_killed_between_two_renames_the_former_one_counts(home: Home, head: Head) -> None:
    place = home.models / FOLDER
    install(head, home.models)
    taught = fingerprint(home)
    place.rename(place.with_name(place.name + ".former"))
    assert fingerprint(home) == taught
    assert roll_back(home.models) == ("Anime", "Zouk", OTHER)
    assert roll_back(home.models) is None


def fingerprint(home: Home) -> str:
    return Ensemble(EnsembleOptions(), models=home.models).fingerprint


def test_costs_are_those_of_the_ensemble_alone(home: Home, head: Head) -> None:
    options = {"models": {"folder": home.models}}
    config = patient(Config.model_validate(options))
    stages = [stage.name for stage in Ensemble.from_config(config).spec.stages]
    install(head, home.models)
    tracks = sorted(home.music.rglob("*.flac"))[:1]
    ensemble = Ensemble.from_config(config)
    (costs,) = measure_costs(tracks, config, ensemble, on_error=str)
    assert list(costs.stages) == stages


def test_a_place_that_cannot_be_written_is_named(home: Home, head: Head) -> None:
    home.models.parent.mkdir(parents=True)
    home.models.write_text("no folder")
    with pytest.raises(FileError, match=str(home.models)):
        install(head, home.models)
    assert Ensemble(EnsembleOptions(), models=home.models).notes == ()


def test_a_full_disk_leaves_the_one_in_use(
    home: Home, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = install(head, home.models)
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(NoSpace):
            install(head, home.models)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert [path.name for path in home.models.iterdir() if path.is_dir()] == [FOLDER]
