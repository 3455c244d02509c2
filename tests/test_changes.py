"""Changes on real files: what is journalled, repaired and taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from audio_files import make_audio

from reclass_plex import changes, tags
from reclass_plex.audio import audio_digest
from reclass_plex.config import TagOptions
from reclass_plex.errors import FileChanged
from reclass_plex.files import find_leftovers, process_token, temporary_name
from reclass_plex.store import KnownTrack, Store

OPTIONS = TagOptions()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def song(tmp_path: Path) -> Path:
    (tmp_path / "music").mkdir()
    return make_audio(tmp_path / "music", "mp3", seconds=1)


def know(store: Store, path: Path) -> KnownTrack:
    status = path.stat()
    store.save_track(
        path,
        status.st_size,
        status.st_mtime_ns,
        digest=audio_digest(path),
        genres=tags.read_tags(path).genres,
    )
    known = store.find_track(path, "models")
    assert known is not None
    return known


def set_genre(path: Path, *genres: str) -> None:
    prepared = tags.prepare_write(path, genres, OPTIONS)
    assert prepared is not None
    prepared.commit()


def test_a_genre_set_since_the_plan_was_made_is_kept(store: Store, song: Path) -> None:
    known = know(store, song)
    set_genre(song, "Skiffle")
    with pytest.raises(FileChanged, match="got another genre meanwhile"):
        changes.apply_tags(store, store.start_run("tag"), known, ("Rock",), OPTIONS)
    assert tags.read_tags(song).genres == ("Skiffle",)
    assert find_leftovers(song.parent) == []
    assert store.pending_changes() == store.changes() == []


@pytest.mark.parametrize("replaced", [True, False])
def test_repair_tells_by_the_bytes_whether_a_change_took_place(
    store: Store, song: Path, replaced: bool
) -> None:
    before = song.read_bytes()
    prepared = tags.prepare_write(song, ("Rock",), OPTIONS)
    assert prepared is not None
    store.begin_change(
        store.start_run("tag"),
        know(store, song).id,
        path=prepared.path,
        temp_path=prepared.temp_path,
        digest=prepared.digest,
        before=prepared.before,
        after=prepared.after,
        before_hash=prepared.before_hash,
        after_hash=prepared.after_hash,
        before_mtime_ns=prepared.before_stamp.mtime_ns,
        delta=prepared.delta,
    )
    if replaced:
        prepared.commit()
    (line,) = changes.repair(store)  # as the next process does
    assert ("had taken place" in line) == replaced
    assert store.pending_changes() == []
    assert find_leftovers(song.parent) == []
    entries = changes.find_changes(store)
    assert len(entries) == replaced
    for _, result in changes.undo_changes(store, entries, OPTIONS):
        assert result.how == "restored byte for byte"
    assert song.read_bytes() == before


def test_only_copies_of_dead_processes_of_this_store_are_removed(
    store: Store, tmp_path: Path
) -> None:
    store.start_run("tag")
    mine = tmp_path / temporary_name("a.mp3")
    foreign = tmp_path / mine.name.replace(process_token(), "0123abcd")
    for path in (mine, foreign):
        path.touch()
    changes.remove_leftovers(store, [mine, foreign])
    assert mine.exists(), "this process is at work"
    assert foreign.exists(), "no process of this store made it"
    with store.transaction() as connection:  # a run of another process, long ended
        connection.exec_driver_sql("UPDATE runs SET token = '0123abcd'")
    changes.remove_leftovers(store, [mine, foreign])
    assert mine.exists()
    assert not foreign.exists()
