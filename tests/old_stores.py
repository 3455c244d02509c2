"""A small store of every schema that ever was, kept as SQL beside the music that it speaks of.

    python tests/old_stores.py        makes that of the newest schema, with the code as it is now

Do that once, when a schema is new, and commit tests/data/stores/REVISION; what was committed for
an earlier one never changes, as users have such stores. Paths in them begin with `PLACE`.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from audio_files import make_audio

from reclass_plex import changes, tags
from reclass_plex.audio import audio_digest
from reclass_plex.config import TagOptions
from reclass_plex.decided import Decisions, Word
from reclass_plex.jobs import Jobs
from reclass_plex.records import Embedding, GenreScore, Verdict, Vote
from reclass_plex.schema import SCHEMA_VERSION
from reclass_plex.store import Store

STORES = Path(__file__).parent / "data" / "stores"
PLACE = "/where-music-is"
NOW = 1_795_000_000.0  # 2026-11-18
KINDS = ("mp3", "flac", "ogg-vorbis", "m4a-aac", "opus")
OPTIONS = TagOptions()


def load(revision: str, root: Path) -> Path:
    """Make the store of a schema at `root`, with its music in root/music; return its path."""
    kept = STORES / revision
    shutil.copytree(kept / "music", root / "music")
    sql = gzip.decompress((kept / "store.sql.gz").read_bytes()).decode()
    place = str(root / "music")
    sql = sql.replace(PLACE.encode().hex().upper(), place.encode().hex().upper())
    path = root / "store.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(sql.replace(PLACE, place))
    return path


def schema_of(connection: sqlite3.Connection) -> dict[str, str]:
    """Return what makes each table, index and trigger, by name, whatever its white space."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: " ".join(sql.split()) for name, sql in rows}


def make(revision: str = SCHEMA_VERSION) -> Path:
    """Make the store of the schema that the code has now; return its folder."""
    with tempfile.TemporaryDirectory() as folder:
        music = Path(folder) / "music"
        music.mkdir()
        store_path = Path(folder) / "store.sqlite"
        with Store.open(store_path) as store:
            _fill(store, music)
        target = STORES / revision
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(music, target / "music")
        with closing(sqlite3.connect(store_path)) as connection:
            sql = "\n".join(connection.iterdump())
        sql = sql.replace(str(music).encode().hex().upper(), PLACE.encode().hex().upper())
        sql = sql.replace(str(music).encode().hex(), PLACE.encode().hex().upper())
        sql = sql.replace(str(music), PLACE)
        (target / "store.sql.gz").write_bytes(gzip.compress(sql.encode(), mtime=0))
    return target


def _fill(store: Store, music: Path) -> None:
    """Put a row of every kind and state into the store, by the code that does so for users."""
    songs = [make_audio(music, kind, seconds=0.3, seed=at) for at, kind in enumerate(KINDS)]
    ids = {}
    for at, song in enumerate(songs):
        status = song.stat()
        digest = audio_digest(song)
        genres = tags.read_tags(song).genres
        stamp = (status.st_size, status.st_mtime_ns)
        ids[song] = store.save_track(song, *stamp, digest=digest, genres=genres, album="An Album")
        scores = (GenreScore("Rock", 0.7 - at / 100), GenreScore("Jazz", 0.2))
        verdict = Verdict(
            *("default", scores, "musicnn-few", (Vote("musicnn-few", scores, 0.1),), 0.1),
            moods=(GenreScore("Happy", 0.5),),
        )
        vector = Embedding("musicnn-msd", _vector(at))
        store.save_verdict(digest, "models-1", verdict, [vector], now=NOW + at)
    first = store.start_run("tag", now=NOW)
    for song in songs[:4]:
        _write(store, first, song, "Rock", moods=("Happy",))
    store.finish_run(first, now=NOW + 5)
    second = store.start_run("daemon", now=NOW + 60)
    _write(store, second, songs[1], "Metal")  # one over the other
    store.finish_run(second, now=NOW + 65)
    entry = next(one for one in store.changes() if one.path == songs[2])
    assert changes.undo_change(store, entry, OPTIONS).restored
    run = store.start_run("decide", now=NOW + 100)
    known = store.find_track(songs[3], "models-1")
    assert known is not None
    assert known.digest is not None
    word = Word(known.id, known.digest, ("Blues",), "correct", "Rock")
    Decisions(store).record([word], run, NOW + 100, by="home")
    store.finish_run(run, now=NOW + 101)
    jobs = Jobs(store)
    jobs.enqueue(songs, "watch", NOW)
    for job in jobs.claim(2, NOW, owner="0123abcd", lease=60):
        jobs.finish([job.id], "0123abcd", "done", NOW + 1, message="Rock 0.70")
    _fill_others(store, music, run)


def _write(
    store: Store, run: int, song: Path, genre: str, moods: tuple[str, ...] | None = None
) -> None:
    known = store.find_track(song, "models-1")
    assert known is not None
    assert changes.apply_tags(store, run, known, (genre,), OPTIONS, moods=moods)


def _vector(seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - arrays are imported late
    import numpy as np

    return np.random.default_rng(seed).standard_normal(200).astype(np.float32)


def _fill_others(store: Store, music: Path, run: int) -> None:
    """What needs Plex, a browser or much time to come about."""
    song = bytes(music / "mp3.mp3")
    rows: dict[str, dict[str, object]] = {
        "placements": {
            **{"run_id": run, "source": song, "target": bytes(music / "tree" / "mp3.mp3")},
            **{"how": "copy", "size": 1, "hash": "00" * 16, "state": "undone", "created": NOW},
        },
        "plex_wanted": {
            **{"path": song, "genres": json.dumps([["Rock", 0.7]]), "run_id": run},
            **{"state": "done", "asked": NOW, "due": NOW, "attempts": 0},
            **{"moods": "[]", "styles": "[]"},
        },
        "plex_libraries": {
            **{"server": "s", "library_key": 1, "path_map": "[]", "listed": NOW, "newest": 1},
        },
        "plex_items": {
            **{"server": "s", "rating_key": 10, "path": song, "library_key": 1},
            **{"album_key": 9, "artist_key": 8, "seen": NOW},
        },
        "plex_edits": {
            **{"run_id": run, "server": "s", "rating_key": 10, "kind": "track"},
            **{"library_key": 1, "path": song, "before": '["Pop"]', "after": '["Rock"]'},
            **{"was_locked": 0, "replaced": '["Pop"]', "state": "done", "created": NOW},
        },
        "web_keys": {
            **{"hash": "ab" * 32, "kind": "token", "name": "home", "scope": "read"},
            **{"created": NOW, "used": NOW},
        },
        "notice_problems": {"key": "plex:token", "text": "Plex refuses", "since": NOW, "open": 0},
        "notice_outbox": {
            **{"kind": "daily", "title": "tagged", "body": "", "created": NOW, "state": "sent"},
            **{"due": NOW, "attempts": 1, "reached": "[]"},
        },
    }
    with store.transaction() as connection:
        for table, row in rows.items():
            names = ", ".join(f'"{name}"' for name in row)
            marks = ", ".join("?" * len(row))
            statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"
            connection.exec_driver_sql(statement, tuple(row.values()))


if __name__ == "__main__":
    print(make())
