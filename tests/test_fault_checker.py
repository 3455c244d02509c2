"""The checker of fault injection finds each kind of violation, planted in a real library."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.checker import Checker, hash_like_the_journal
from faults.evidence import look_at
from faults.ledger import Ledger, PlexRecord
from faults.music import FORMATS, Maker, change_tag

from reclass_plex.audio import audio_digest
from reclass_plex.changes import apply_tags, undo_changes
from reclass_plex.config import TagOptions
from reclass_plex.jobs import Jobs
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.store import Store

COPY = ".a.reclass-00000000-0000.tmp"
EDIT = """INSERT INTO plex_edits (server, rating_key, kind, field, library_key, before, after,
    was_locked, replaced, state, created)
    VALUES ('s', 5, 'album', 'genre', 1, '["Pop"]', '["Rock"]', 0, '[]', 'done', 1)"""


@dataclass
class Item:
    """An item of Plex."""

    key: int
    title: str
    genres: list[str]
    locked: set[str]


@dataclass
class Library:
    """A library that was tagged, except its last file."""

    checker: Checker
    ledger: Ledger
    paths: list[Path]
    items: dict[int, Item]

    def sql(self, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.checker.store)) as connection, connection:
            assert connection.execute(statement, values).rowcount > 0

    def rules(self) -> set[str]:
        return {one.rule for one in self.checker.check()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Library:
    root = tmp_path_factory.mktemp("original")
    return make_library(root)


def make_library(root: Path) -> Library:
    """Tag a file of every format as the product does, without listening."""
    music, maker, ledger = root / "music", Maker(root / "made", 7), Ledger()
    music.mkdir()
    paths = []
    for name in (*FORMATS, "flac"):
        made = maker.make("Album", name)
        change_tag(made, genre="")
        paths.append(made.rename(music / made.name))
        ledger.put(paths[-1], look_at(paths[-1]))
    verdict = Verdict("default", (GenreScore("Rock", 1.0),), "test", (), 0.1, None)
    with Store.open(root / "store.sqlite") as store, store.writing_files():
        jobs, run = Jobs(store), store.start_run("daemon")
        jobs.enqueue(paths, "test", 1.0)
        held = jobs.claim(100, 1.0, owner="me", lease=10.0)
        for path in paths:
            status, digest = path.stat(), audio_digest(path)
            store.save_track(path, status.st_size, status.st_mtime_ns, digest=digest)
            store.save_verdict(digest, "models", verdict, now=1.0)
            known = store.find_track(path, "models")
            assert known is not None
            if path is not paths[-1]:
                assert apply_tags(store, run, known, ("Rock",), TagOptions())
        jobs.finish([job.id for job in held], "me", "done", 2.0)
        store.finish_run(run)
    item = Item(5, "Album", ["Rock"], {"genre"})
    ledger.plex[5] = PlexRecord(("Pop",), locked=False)
    checker = Checker(ledger, music, root / "store.sqlite", {5: item})
    library = Library(checker, ledger, paths, {5: item})
    with closing(sqlite3.connect(checker.store)) as connection, connection:
        connection.execute(EDIT)
    return library


@pytest.fixture
def library(original: Library, tmp_path: Path) -> Iterator[Library]:
    """A copy of it to be damaged. Paths in the database are the original's: so is the place."""
    root = original.checker.store.parent
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)
    ledger = Ledger()
    for path, record in zip(original.paths, original.ledger.files, strict=True):
        ledger.files.append(type(record)(path, list(record.versions)))
    ledger.plex = dict(original.ledger.plex)
    items = {5: Item(5, "Album", ["Rock"], {"genre"})}
    checker = Checker(ledger, original.checker.music, original.checker.store, items)
    yield Library(checker, ledger, original.paths, items)
    shutil.rmtree(root)
    shutil.copytree(kept, root)


def test_a_library_that_is_well_has_no_violation(library: Library) -> None:
    assert library.checker.check() == []
    assert library.checker.check() == []  # a second look compares with the first


def damage_audio(library: Library) -> None:
    path = next(path for path in library.paths if path.suffix == ".flac")
    data = bytearray(path.read_bytes())
    data[-3000] ^= 0xFF
    path.write_bytes(data)


def lose_a_picture(library: Library) -> None:
    import mutagen

    file = mutagen.File(next(path for path in library.paths if path.suffix == ".mp3"))
    file.tags.delall("APIC")
    file.save()


def forget_a_change(library: Library) -> None:
    library.sql("DELETE FROM journal WHERE path = ?", os.fsencode(library.paths[0]))


def claim_what_is_not(library: Library) -> None:
    """The journal says done, and the file is the former one."""
    path, record = library.paths[-1], library.ledger.files[-1]
    assert record.knows(look_at(path).content)
    library.sql(
        "UPDATE journal SET path = ?, before_hash = ? WHERE id = 1",
        os.fsencode(path),
        hash_like_the_journal(path),
    )


def write_twice(library: Library) -> None:
    library.sql(
        "INSERT INTO journal (run_id, track_id, path, temp_path, digest, state, before, after,"
        " before_hash, after_hash, before_mtime_ns, delta, created) SELECT run_id, track_id, path,"
        " temp_path, digest, state, before, after, before_hash, after_hash, before_mtime_ns, delta,"
        " created FROM journal WHERE id = 1"
    )


def leave_pending(library: Library) -> None:
    library.sql("UPDATE journal SET state = 'pending' WHERE id = 2")


def hear_again(library: Library) -> None:
    library.checker.check()
    library.sql(
        "UPDATE verdicts SET created = 99 WHERE digest IN (SELECT min(digest) FROM verdicts)"
    )


def damage_database(library: Library) -> None:
    library.sql("UPDATE journal SET track_id = 99999 WHERE id = 3")


def mix_up_genres(library: Library) -> None:
    library.sql("UPDATE journal SET after = ? WHERE id = 1", json.dumps(["Jazz"]))


def forget_a_job(library: Library) -> None:
    library.sql("DELETE FROM jobs WHERE path NOT IN (SELECT path FROM journal)")


def lose_in_plex(library: Library) -> None:
    """What was written there is not there any more, and nobody wrote."""
    library.items[5].genres[:] = ["Pop"]
    library.items[5].locked.clear()


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (damage_audio, "audio"),
        (lose_a_picture, "tags"),
        (lambda library: change_tag(library.paths[3], title="Lost"), "tags"),
        (lambda library: library.paths[2].unlink(), "lost"),
        (lambda library: library.paths[2].write_bytes(b""), "damaged"),
        (lambda library: change_tag(library.paths[-1], genre="Rock"), "journal"),
        (forget_a_change, "journal"),
        (claim_what_is_not, "journal"),
        (mix_up_genres, "journal"),
        (leave_pending, "journal"),
        (write_twice, "written again"),
        (hear_again, "heard again"),
        (damage_database, "database"),
        (lambda library: library.sql("UPDATE jobs SET state='ready' WHERE id=1"), "lost"),
        (lambda library: library.sql("UPDATE jobs SET state='failed' WHERE id=1"), "failed"),
        (lambda library: library.sql("UPDATE jobs SET state='waiting' WHERE id=1"), "lost"),
        (forget_a_job, "lost"),
        (lambda library: library.sql("DELETE FROM verdicts"), "lost"),
        (lambda library: (library.checker.music / COPY).touch(), "left over"),
        (lambda library: (library.checker.music / "b.mp3").touch(), "unknown file"),
        (lambda library: library.items[5].genres.append("Jazz"), "Plex"),
        (lose_in_plex, "Plex"),
        (lambda library: library.sql("DELETE FROM plex_edits"), "Plex"),
        (lambda library: library.ledger.organized.update({"0": Path("/inbox/a")}), "lost"),
    ],
)
def test_each_violation_that_is_planted_is_found(
    library: Library, plant: Callable[[Library], object], rule: str
) -> None:
    plant(library)
    assert rule in library.rules()


def undo(library: Library) -> None:
    with Store.open(library.checker.store) as store, store.writing_files():
        for _ in undo_changes(store, store.changes(), TagOptions()):
            pass
    library.items[5].genres[:] = ["Pop"]
    library.items[5].locked.clear()


def test_after_undo_of_everything_former_bytes_and_locks_are_asked_for(library: Library) -> None:
    assert {one.rule for one in library.checker.check_undone()} == {"undo", "undo in Plex"}
    undo(library)
    assert library.checker.check_undone() == []
    library.items[5].locked.add("genre")
    assert {one.rule for one in library.checker.check_undone()} == {"undo in Plex"}
    library.items[5].locked.clear()
    change_tag(library.paths[0], genre="Rock")
    assert {one.rule for one in library.checker.check_undone()} == {"undo"}


def test_a_file_that_was_edited_after_it_was_tagged_keeps_the_edit(library: Library) -> None:
    path, record = library.paths[0], library.ledger.files[0]
    was = look_at(path).content
    change_tag(path, title="Mine")
    library.ledger.edited(record, was, look_at(path))
    assert not record.newest.clean
    undo(library)
    assert look_at(path).genres == ()
    assert library.checker.check_undone() == []
    assert not [one for one in library.checker.check() if str(path) in one.what]


def test_an_owner_may_remove_our_genre(library: Library) -> None:
    path, record = next(
        (path, record)
        for path, record in zip(library.paths, library.ledger.files, strict=True)
        if path.suffix == ".dsf"
    )
    was = look_at(path).content
    change_tag(path, genre="")
    library.ledger.edited(record, was, look_at(path))
    assert library.checker.check() == []
