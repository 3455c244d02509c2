"""The store on real SQLite files: identity of tracks, the journal's states, migrations, damage."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from reclass_plex import store as store_module
from reclass_plex.browse_history import list_runs
from reclass_plex.errors import NotAudio, StoreError
from reclass_plex.records import Embedding, GenreScore, Verdict, Vote
from reclass_plex.schema import SCHEMA_VERSION
from reclass_plex.store import Store
from reclass_plex.tables import metadata

VERDICT = Verdict(
    taxonomy="default",
    genres=(GenreScore("Rock", 0.8), GenreScore("Metal", 0.1)),
    decided_by="musicnn",
    votes=(Vote("fma518", (GenreScore("Rock", 0.5),), 0.1),),
    seconds=0.2,
)


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


def begin(
    store: Store,
    track_id: int,
    path: Path,
    *,
    run_id: int | None = None,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = ("Rock",),
) -> int:
    return store.begin_change(
        store.start_run("tag") if run_id is None else run_id,
        track_id,
        path=path,
        temp_path=path.with_name(".temp"),
        digest="d",
        before=before,
        after=after,
        before_hash="old",
        after_hash="new",
        before_mtime_ns=3,
        delta=b"\x00delta",
    )


def test_tracks_come_back_as_saved_with_the_verdict_of_these_models_only(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "not utf-8 \udcff.mp3"
    store.save_track(path, 10, 20, digest="d1", genres=("Rock", "Röck"), album="key")
    store.save_verdict("d1", "models-1", VERDICT, [Embedding("msd", np.ones(3, np.float32))])
    (known,) = store.known_files([path, tmp_path / "other"], "models-1")
    assert (known.path, known.size, known.mtime_ns) == (path, 10, 20)
    assert (known.digest, known.genres, known.album) == ("d1", ("Rock", "Röck"), "key")
    assert known.verdict is not None
    assert known.verdict.genres == VERDICT.genres
    assert store.find_verdict("d1", "models-1") == VERDICT
    other = store.find_track(path, "models-2")
    assert other is not None
    assert other.verdict is None
    embedding = store.find_embedding("d1", "msd")
    assert embedding is not None
    assert embedding.vector.tolist() == [1, 1, 1]
    assert store.find_embedding("d1", "mtt") is None


def test_a_moved_file_keeps_what_was_written_and_a_look_alike_does_not(
    store: Store, tmp_path: Path
) -> None:
    old, new, other = (tmp_path / name for name in ("old.mp3", "new.mp3", "other.mp3"))
    entry = begin(store, store.save_track(old, 1, 1, digest="same"), old)
    store.finish_change(entry, 2, 20)
    store.save_track(other, 1, 1, digest="same")  # the same audio in other bytes
    store.save_track(new, 2, 20, digest="same", genres=("Rock",))
    known = {track.path: track.written for track in store.known_files([new, other], "m")}
    assert known == {new: ("Rock",), other: None}
    assert [change.path for change in store.changes()] == [old]  # its disk may only be away
    assert set(store.paths_of("same")) == {old, new, other}


def test_an_error_is_remembered_until_the_file_is_good_again(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    store.save_track(path, 1, 1, error=NotAudio(path, "is empty"))
    known = store.find_track(path, "m")
    assert known is not None
    assert known.error == ("not-audio", "is empty")
    store.save_track(path, 2, 2, digest="d")
    known = store.find_track(path, "m")
    assert known is not None
    assert known.error is None


def test_the_journal_goes_from_pending_to_done_to_undone(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    track = store.save_track(path, 1, 1, digest="d")
    run = store.start_run("tag", now=100)
    entry = begin(store, track, path, run_id=run)
    assert [change.id for change in store.pending_changes()] == [entry]
    assert store.changes() == []
    store.finish_change(entry, 5, 6)
    known = store.find_track(path, "m")
    assert known is not None
    assert (known.size, known.mtime_ns, known.genres, known.written, known.undone) == (
        5,
        6,
        ("Rock",),
        ("Rock",),
        False,
    )
    assert [change.id for change in store.changes(run_id=run)] == [entry]
    assert store.changes(since=4e9) == []
    assert store.read_delta(entry) == b"\x00delta"
    assert [(r.done, r.undone, r.finished) for r in list_runs(store).rows] == [(1, 0, None)]
    store.finish_undo(entry, path, 7, 8)
    store.finish_run(run, now=200)
    known = store.find_track(path, "m")
    assert known is not None
    assert (known.size, known.genres, known.undone) == (7, (), True)
    assert [(r.done, r.undone, r.finished) for r in list_runs(store).rows] == [(0, 1, 200)]


def test_what_was_taken_back_and_then_written_by_hand_is_theirs(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "x.mp3"
    track = store.save_track(path, 1, 1, digest="d")
    store.finish_change(begin(store, track, path), 5, 6)
    store.finish_undo(begin(store, track, path), path, 7, 8)
    store.save_track(path, 9, 9, digest="d", genres=("Rock",))
    entry = begin(store, track, path, before=("Rock",), after=("Rock", "Blues"))
    store.finish_change(entry, 10, 11)
    known = store.find_track(path, "m")
    assert known is not None
    assert (known.added, known.undone) == (("Blues",), False)


def test_an_abandoned_change_is_neither_pending_nor_standing(store: Store, tmp_path: Path) -> None:
    track = store.save_track(tmp_path / "x.mp3", 1, 1)
    store.abandon_change(begin(store, track, tmp_path / "x.mp3"))
    assert store.pending_changes() == []
    assert store.changes() == []


def test_migrations_build_exactly_the_tables_that_the_code_uses(
    store: Store, tmp_path: Path
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    folder = Path(store_module.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'state' / 'store.sqlite'}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert differences == []


def test_a_newer_a_damaged_and_an_impossible_store_are_named_and_left_alone(
    tmp_path: Path,
) -> None:
    newer = tmp_path / "newer.sqlite"
    Store.open(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="newer reclass-plex"):
        Store.open(newer)
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"this is no database, " * 1000)
    with pytest.raises(StoreError, match=r"damaged\.sqlite: the store is damaged"):
        Store.open(damaged)
    assert damaged.read_bytes().startswith(b"this is no database")
    with pytest.raises(StoreError, match=r"cannot be (created|used)"):
        Store.open(damaged / "below" / "store.sqlite")


def test_threads_and_processes_write_at_once_without_loss(store: Store, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "state" / "store.sqlite")

    def save(opened: Store, name: str) -> None:
        for number in range(50):
            opened.save_track(tmp_path / f"{name}-{number}", 1, 1, digest=f"{name}{number}")

    threads = [
        threading.Thread(target=save, args=(opened, f"{index}"))
        for index, opened in enumerate((store, store, other, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = [tmp_path / f"{name}-{number}" for name in range(4) for number in range(50)]
    assert len(store.known_files(paths, "m")) == 200
    other.close()


def test_only_one_process_changes_files_at_a_time(store: Store, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "state" / "store.sqlite")
    with store.writing_files(), pytest.raises(StoreError, match="another reclass-plex"):  # noqa: SIM117
        with other.writing_files():
            pass
    with other.writing_files():
        pass
    other.close()


def test_times_beyond_what_sqlite_holds_are_cut(store: Store, tmp_path: Path) -> None:
    store.save_track(tmp_path / "x.mp3", 1, 10_413_792_000_000_000_000)  # the year 2300
    known = store.find_track(tmp_path / "x.mp3", "m")
    assert known is not None
    assert known.mtime_ns == (1 << 63) - 1


def test_a_row_that_makes_no_sense_is_called_damage(store: Store, tmp_path: Path) -> None:
    store.save_track(tmp_path / "x.mp3", 1, 1, digest="d")
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE tracks SET genres = '[\"Ro'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="the store is damaged"):
        store.find_track(tmp_path / "x.mp3", "m")
