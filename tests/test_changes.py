"""Changes on real files: what is journalled, repaired and taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from audio_files import make_audio
from daemon_tools import set_tags

from reclass_plex import changes, tags
from reclass_plex.audio import audio_digest
from reclass_plex.config import TagOptions
from reclass_plex.errors import FileChanged
from reclass_plex.files import find_leftovers, hash_file, process_token, temporary_name
from reclass_plex.store import JournalEntry, KnownTrack, Store

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


@pytest.mark.parametrize("then", ["edited", "gone"])
def test_what_happens_to_a_file_while_it_is_repaired_is_seen_later(
    store: Store, song: Path, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = know(store, song)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Store, "finish_change", die)
        with pytest.raises(KeyboardInterrupt):
            changes.apply_tags(store, store.start_run("tag"), known, ("Rock",), OPTIONS)
    assert len(store.pending_changes()) == 1
    written = song.stat()

    def interfere(file: BinaryIO) -> bytes:
        found = hash_file(file)
        song.unlink() if then == "gone" else set_genre(song, "Skiffle")
        return found

    monkeypatch.setattr(changes, "hash_file", interfere)
    assert len(list(changes.repair(store, OPTIONS))) == 1
    (entry,) = store.changes()
    assert entry.after == ("Rock",)
    track = store.find_track(song, "")
    assert track is not None
    assert (track.size, track.mtime_ns) == (written.st_size, written.st_mtime_ns)


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
    (line,) = changes.repair(store, OPTIONS)  # as the next process does
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


def tag(store: Store, song: Path) -> JournalEntry:
    run = store.start_run("tag")
    assert changes.apply_tags(store, run, know(store, song), ("Rock",), OPTIONS)
    store.finish_run(run)
    return store.changes()[0]


def test_a_file_that_is_open_for_writing_is_not_replaced(store: Store, song: Path) -> None:
    """A piece of an MP3 was lost: its writer had opened it before the rename, and wrote after."""
    run, known = store.start_run("tag"), know(store, song)
    before = song.read_bytes()
    with song.open("ab"), pytest.raises(FileChanged, match="open for writing"):
        changes.apply_tags(store, run, known, ("Rock",), OPTIONS)
    assert song.read_bytes() == before
    assert find_leftovers(song.parent) == []
    assert store.pending_changes() == store.changes() == []
    with song.open("rb"):  # as players do
        assert changes.apply_tags(store, run, known, ("Rock",), OPTIONS)
    (entry,) = store.changes()
    with song.open("ab"):
        result = changes.undo_change(store, entry, OPTIONS)
    assert (result.restored, store.changes()) == (False, [entry])
    assert changes.undo_change(store, entry, OPTIONS).restored
    assert song.read_bytes() == before


def test_an_undo_that_was_killed_before_it_said_so_is_seen(
    store: Store, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = song.read_bytes()
    entry = tag(store, song)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "finish_undo", killed)
        list(changes.undo_changes(store, [entry], OPTIONS))
    assert song.read_bytes() == before
    assert [one.id for one in store.changes()] == [entry.id]
    assert [line for line in changes.repair(store, OPTIONS) if "undo had taken place" in line]
    assert store.changes() == []
    known = store.find_track(song, "models")
    assert known is not None
    assert (known.undone, known.genres) == (True, ())
    assert list(changes.repair(store, OPTIONS)) == []


def test_an_undo_of_an_edited_file_that_was_killed_is_seen(
    store: Store, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by fault injection: the journal went on saying that the change stands."""
    entry = tag(store, song)
    set_tags(song, title="Edited since")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "finish_undo", killed)
        list(changes.undo_changes(store, [entry], OPTIONS))
    said = tags.read_tags(song, OPTIONS)
    assert (said.genres, said.title) == ((), "Edited since")
    assert [one.id for one in store.changes()] == [entry.id]
    assert [line for line in changes.repair(store, OPTIONS) if "undo had taken place" in line]
    assert store.changes() == []
    known = store.find_track(song, "models")
    assert known is not None
    assert (known.undone, known.genres) == (True, ())


def test_a_change_that_stands_is_not_taken_for_undone(store: Store, song: Path) -> None:
    tag(store, song)
    store.start_run("undo")  # and killed
    assert list(changes.repair(store, OPTIONS)) == []
    assert len(store.changes()) == 1
    assert not store.unfinished_runs("undo")


def test_what_is_on_a_disk_that_is_away_is_settled_when_it_is_back(
    store: Store, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a change that never took place would stand in the journal."""
    known = know(store, song)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tags.PreparedWrite, "commit", killed)
        changes.apply_tags(store, store.start_run("tag"), known, ("Rock",), OPTIONS)
    away = song.parent.rename(song.parent.with_name("away"))
    assert [line for line in changes.repair(store, OPTIONS) if "is seen later" in line]
    assert len(store.pending_changes()) == 1
    away.rename(song.parent)
    assert [line for line in changes.repair(store, OPTIONS) if "had not taken place" in line]
    assert store.pending_changes() == store.changes() == []
