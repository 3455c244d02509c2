"""Selections: criteria and their refusals, JSON, and the tracks of a real store that they mean."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from timing import timed

from reclass_plex.errors import ConfigError
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.selection import Selection, select_tracks
from reclass_plex.store import Store

NOW, OLD, OLDER = "models of now", "models of then", "models of long ago"
CREATED = {NOW: 30.0, OLD: 20.0, OLDER: 10.0}
NOT_UTF8 = os.fsdecode(b"caf\xe9.mp3")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def music(tmp_path: Path, store: Store) -> Path:
    """Six files: four of them heard, one known to be broken, one new."""
    root = tmp_path / "music"

    def add(name: str, *genres: str, album: str | None = None) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        # As in pipeline._album_key; the folder of a disc is that of its album.
        key = None if album is None else f"{root / 'Kind of Blue'}\n{album}"
        store.save_track(path, 1, 1, digest=f"{name!r}", genres=genres, album=key)

    def hear(name: str, models: str, confidence: float, unsure: str | None = None) -> None:
        genres = (GenreScore("Jazz", confidence), GenreScore("Blues", 0.0))
        verdict = Verdict("default", genres, "musicnn", (), 0.1, unsure)
        store.save_verdict(f"{name!r}", models, verdict, now=CREATED[models])

    add("Kind of Blue/CD1/so what.mp3", "Jazz", album="Kind Of Blue (Deluxe)")
    hear("Kind of Blue/CD1/so what.mp3", NOW, 0.9)
    hear("Kind of Blue/CD1/so what.mp3", OLD, 0.2)
    add("Kind of Blue/2.mp3", album="Kind Of Blue (Deluxe)")
    hear("Kind of Blue/2.mp3", OLD, 0.7)
    hear("Kind of Blue/2.mp3", OLDER, 0.1)
    add(f"rap/{NOT_UTF8}", "Hip Hop")
    hear(f"rap/{NOT_UTF8}", NOW, 0.55)
    add("rap/quiet.mp3")
    hear("rap/quiet.mp3", NOW, 0.95, "silence")
    add("rap/broken.mp3")
    (root / "rap" / "new.MP3").write_bytes(b"x")
    return root


SO_WHAT, TWO, CAFE, QUIET = "so what.mp3", "2.mp3", NOT_UTF8, "quiet.mp3"
BROKEN, NEW = "broken.mp3", "new.MP3"


def names(store: Store, **criteria: object) -> set[str]:
    found = list(select_tracks(store, Selection.of(**criteria), NOW))
    assert len(found) == len(set(found))
    return {path.name for path in found}


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({"everything": True}, {SO_WHAT, TWO, CAFE, QUIET, BROKEN}),
        ({"album": "kind of blue (DELUXE)"}, {SO_WHAT, TWO}),
        ({"album": "Kind of Blue"}, {SO_WHAT, TWO}),
        ({"album": "Kind"}, set()),
        ({"album": "RAP"}, {CAFE, QUIET, BROKEN}),
        ({"genre": "jazz"}, {SO_WHAT}),
        ({"genre": "Rap"}, {CAFE}),
        ({"genre": "Polka"}, set()),
        ({"below": 0.6}, {CAFE, QUIET}),
        ({"below": 0.71}, {CAFE, QUIET, TWO}),
        ({"below": 0.55}, {QUIET}),
        ({"older_model": True}, {TWO}),
        ({"older_model": True, "below": 0.6}, set()),
        ({"below": 0.6, "genre": "hip-hop", "everything": True}, {CAFE}),
    ],
)
def test_criteria_narrow_one_another(
    store: Store, music: Path, criteria: dict[str, object], expected: set[str]
) -> None:
    assert names(store, **criteria) == expected


def test_paths_bring_what_is_not_known_yet(store: Store, music: Path) -> None:
    folder = music / "rap"
    assert names(store, paths=(folder,)) == {CAFE, QUIET, BROKEN, NEW}
    assert names(store, paths=(folder / NOT_UTF8,)) == {CAFE}
    assert names(store, paths=(folder / "new.MP3",)) == {NEW}
    assert names(store, paths=(folder, music)) == {SO_WHAT, TWO, CAFE, QUIET, BROKEN, NEW}
    assert names(store, paths=(Path("/"),), below=0.6) == {CAFE, QUIET}  # never heard: not meant
    assert names(store, paths=(folder,), album="rap") == {CAFE, QUIET, BROKEN, NEW}
    assert names(store, paths=(folder,), album="Kind of Blue") == set()
    assert names(store, paths=(music / "ra",)) == set()
    assert names(store, paths=(music / "nowhere",)) == set()


def test_a_file_is_one_under_whatever_name_it_is_asked_for(store: Store, music: Path) -> None:
    (music.parent / "link").symlink_to(music / "rap")
    found = list(select_tracks(store, Selection(paths=(music.parent / "link",)), NOW))
    assert {path for path in found if path.name != NEW} == {
        music / "rap" / name for name in (CAFE, QUIET, BROKEN)
    }
    assert sorted(path.name for path in found) == sorted([CAFE, QUIET, BROKEN, NEW])


def test_what_is_no_longer_there_is_left_out(store: Store, music: Path) -> None:
    (music / "rap" / NOT_UTF8).unlink()
    assert names(store, genre="rap") == set()


def test_what_we_wrote_counts_as_a_genre(store: Store, music: Path) -> None:
    path = music / "rap" / QUIET
    track = store.save_track(path, 1, 1, digest="d", genres=())
    entry = store.begin_change(
        store.start_run("tag"),
        track,
        path=path,
        temp_path=path,
        digest="d",
        before=(),
        after=("Ambient",),
        before_hash="",
        after_hash="",
        before_mtime_ns=0,
        delta=b"",
    )
    store.finish_change(entry, 1, 1)
    store.save_track(path, 1, 2, digest="d", genres=("Schlager",))  # edited since
    assert names(store, genre="ambient") == {QUIET}
    assert names(store, genre="schlager") == {QUIET}


def test_a_library_is_its_folders(store: Store, music: Path) -> None:
    asked: list[str] = []

    def plex_paths(library: str) -> list[Path]:
        asked.append(library)
        return [music / "rap"] if library == "Music" else []

    def found(**criteria: object) -> set[str]:
        selection = Selection.of(**criteria)
        return {path.name for path in select_tracks(store, selection, NOW, plex_paths)}

    assert found(library="Music") == {CAFE, QUIET, BROKEN, NEW}
    assert found(library="Music", genre="rap") == {CAFE}
    assert found(library="Music", paths=(music / "Kind of Blue",)) == set()
    assert found(library="Music", paths=(music,)) == {CAFE, QUIET, BROKEN, NEW}
    assert found(library="Empty") == set()
    assert asked == ["Music"] * 4 + ["Empty"]
    with pytest.raises(ConfigError, match=r"there is no Plex server; set plex\.url"):
        names(store, library="Music")


def test_a_selection_can_be_ended(store: Store, music: Path) -> None:
    everything = Selection(paths=(music,))
    assert list(select_tracks(store, everything, NOW, should_stop=lambda: True)) == []


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({}, "name what to classify again: files or folders, --library, --album, --genre"),
        ({"older_model": False, "paths": ()}, "name what to classify again"),
        ({"below": 1.5}, "below: has value 1.5, Input should be less than or equal to 1"),
        ({"paths": ["music"]}, "paths: has value 'music', must be a full path"),
        ({"paths": ["/a\0b"]}, "holds a NUL"),
        ({"paths": ["/\ud800"]}, "is no path"),
        ({"album": "  "}, "album: has value '  ', String should have at least 1 character"),
        ({"artist": "x"}, "artist: has value 'x', Extra inputs are not permitted"),
    ],
)
def test_a_refusal_says_what_is_wrong(criteria: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Selection.of(**criteria)
    assert message in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_below_zero_is_a_criterion() -> None:
    assert Selection(below=0.0).below == 0  # none but the unsure


def test_it_never_changes() -> None:
    selection = Selection(everything=True)
    with pytest.raises(ValidationError):
        selection.everything = False


def test_it_comes_back_from_json_with_paths_that_are_no_utf_8() -> None:
    selection = Selection(paths=(Path("/music") / NOT_UTF8, Path("/ä")), below=0.5, genre="Rock")
    text = json.dumps(selection.model_dump(mode="json"))
    text.encode("ascii")
    assert Selection.model_validate(json.loads(text)) == selection


@timed
@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_many_tracks_stream(store: Store, music: Path, count: int) -> None:
    rows = [(os.fsencode(music / f"{n}.mp3"), str(n)) for n in range(count)]
    genres = json.dumps([["Rock", 0.4], *(["Pop", 0.01] for _ in range(18))])
    with store.transaction() as connection:
        connection.connection.executemany(
            "INSERT INTO tracks (path, size, mtime_ns, digest, genres, undone)"
            " VALUES (?, 1, 1, ?, '[\"Rock\"]', 0)",
            rows,
        )
        connection.connection.executemany(
            "INSERT INTO verdicts (digest, models, taxonomy, genres, decided_by, votes, seconds,"
            f" created) VALUES (?, '{NOW}', 'default', '{genres}', 'musicnn', '[]', 0, 0)",
            [(digest,) for _, digest in rows],
        )
    began = time.process_time()
    assert names(store, genre="Rock", below=0.5) == set()  # none of the files is there
    assert time.process_time() - began < count / 10_000
    began = time.process_time()
    assert names(store, paths=(music / "rap",), below=0.6) == {CAFE, QUIET}
    assert time.process_time() - began < 0.1  # by the index
