"""Every schema's store comes forward with nothing lost; what is newer is refused; kills, too."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import old_stores
import pytest
import sqlalchemy as sa

from reclass_plex import backups, changes, restoring, schema
from reclass_plex.backups import list_backups, look_into
from reclass_plex.config import TagOptions
from reclass_plex.doctor.storage import check_store
from reclass_plex.errors import StoreBusy, StoreError, StoreNewer
from reclass_plex.files import hash_file
from reclass_plex.schema import SCHEMA_VERSION, known_revisions
from reclass_plex.store import Store
from reclass_plex.store_guard import hold_daemon_lock
from reclass_plex.tables import metadata

OPTIONS = TagOptions()
REVISIONS = known_revisions()
NEXT = f"{int(SCHEMA_VERSION) + 1:04d}"

# A migration as a later version may bring it: a column, a table, rows rewritten, a trigger anew.
NEXT_MIGRATION = f'''
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{SCHEMA_VERSION}"


def upgrade():
    op.add_column("journal", sa.Column("why", sa.Text))
    op.create_table("extra", sa.Column("id", sa.Integer, primary_key=True), sa.Column("a", sa.Text))
    connection = op.get_bind()
    for number in range(300):
        connection.exec_driver_sql("INSERT INTO extra (a) VALUES (?)", (str(number),))
    connection.exec_driver_sql("UPDATE journal SET why = state")
    connection.exec_driver_sql("DROP TRIGGER listing_track_gone")
    connection.exec_driver_sql(
        "CREATE TRIGGER listing_track_gone AFTER DELETE ON tracks"
        " BEGIN DELETE FROM listing WHERE track_id = OLD.id; END"
    )
'''


def rows(path: Path) -> dict[str, list[dict[str, object]]]:
    """Return every row of every table but what says the schema."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        names = [
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if row[0] not in ("alembic_version", "sqlite_sequence")
        ]
        return {
            name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')]
            for name in names
        }


def version(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_every_schema_has_its_store() -> None:
    """A migration that comes without one cannot be tested: run tests/old_stores.py."""
    kept = sorted(path.name for path in old_stores.STORES.iterdir())
    assert kept == REVISIONS
    assert REVISIONS[-1] == SCHEMA_VERSION


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_schema_stays_what_it_was(revision: str, tmp_path: Path) -> None:
    """Users have such stores: what is to be other comes as a new migration, never in an old one."""
    from alembic import command
    from alembic.config import Config

    old = old_stores.load(revision, tmp_path)
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'new.sqlite'}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    with (
        closing(sqlite3.connect(old)) as first,
        closing(sqlite3.connect(tmp_path / "new.sqlite")) as second,
    ):
        assert old_stores.schema_of(first) == old_stores.schema_of(second)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_store_of_every_schema_comes_forward_with_all_its_rows(
    revision: str, tmp_path: Path
) -> None:
    path = old_stores.load(revision, tmp_path)
    before = rows(path)
    assert all(before[name] for name in before if name in metadata.tables), "a row of every kind"
    Store.open(path).close()
    assert version(path) == SCHEMA_VERSION
    after = rows(path)
    for name, old in before.items():
        assert len(after[name]) == len(old), name
        for one, other in zip(old, after[name], strict=True):
            assert {key: other[key] for key in one if key in other} == one, name
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_was_written_long_ago_can_be_undone(revision: str, tmp_path: Path) -> None:
    path = old_stores.load(revision, tmp_path)
    with Store.open(path) as store, store.writing_files():
        entries = store.changes()
        assert entries
        first = {entry.path: entry.before_hash for entry in entries}  # newest first: the oldest's
        for _, result in changes.undo_changes(store, changes.find_changes(store), OPTIONS):
            assert result.how == "restored byte for byte"
        for song, wanted in first.items():
            with song.open("rb") as file:
                assert hash_file(file).hex() == wanted
        assert store.changes() == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_triggers_of_a_store_that_came_forward_work(revision: str, tmp_path: Path) -> None:
    path = old_stores.load(revision, tmp_path)
    with Store.open(path) as store:
        listed = rows(path)["listing"]
        with store.transaction() as connection:
            connection.exec_driver_sql("UPDATE tracks SET album = album")
        assert rows(path)["listing"] == listed
        store.save_track(Path("/music/new.mp3"), 1, 1)
        assert len(rows(path)["listing"]) == len(listed) + 1


# What a later version does to a store, and this one to a store of a later version.


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """Return a folder of migrations with one more."""
    folder = tmp_path / "later"
    shutil.copytree(
        schema.MIGRATIONS, folder, ignore=lambda _, names: [n for n in names if "pycache" in n]
    )
    (folder / "versions" / f"v{NEXT}_next.py").write_text(NEXT_MIGRATION)
    return folder


@pytest.fixture
def upgraded(later: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use(later, patch)
        yield


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schema, "MIGRATIONS", folder)
    patch.setattr(schema, "SCHEMA_VERSION", NEXT)


@pytest.mark.usefixtures("upgraded")
def test_a_backup_is_made_before_the_schema_changes(tmp_path: Path) -> None:
    path = old_stores.load(SCHEMA_VERSION, tmp_path)
    before = rows(path)
    Store.open(path).close()
    assert version(path) == NEXT
    (made,) = list_backups(path)
    assert (made.before, look_into(made.path).schema) == (NEXT, SCHEMA_VERSION)
    assert rows(made.path) == before
    assert [row["why"] for row in rows(path)["journal"]] == [
        row["state"] for row in before["journal"]
    ]
    Store.open(path).close()
    assert len(list_backups(path)) == 1


@pytest.mark.usefixtures("upgraded")
def test_nothing_is_changed_without_a_backup_or_under_a_running_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_stores.load(SCHEMA_VERSION, tmp_path)
    before = rows(path)
    with (
        hold_daemon_lock(path),
        pytest.raises(StoreBusy, match=r"of another version, whose daemon runs: restart"),
    ):
        Store.open(path)
    monkeypatch.setattr(backups, "SPACE_MARGIN", 1 << 60)
    with pytest.raises(StoreError, match=r"a backup needs .* free some"):
        Store.open(path)
    assert (version(path), rows(path)) == (SCHEMA_VERSION, before)
    monkeypatch.undo()


def test_a_store_of_a_later_version_is_refused_with_advice_and_left_alone(
    tmp_path: Path, later: Path
) -> None:
    path = old_stores.load(SCHEMA_VERSION, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        use(later, patch)
        Store.open(path).close()
    (made,) = list_backups(path)
    data = path.read_bytes()
    advice = (
        rf"(?s)its schema is {NEXT}, this version knows up to {SCHEMA_VERSION}\). Nothing was"
        rf" changed. Upgrade reclass-plex again; .*reclass-plex restore {made.path.name} "
    )
    with pytest.raises(StoreNewer, match=advice):
        Store.open(path)
    check = next(one for one in check_store(path) if one.name == "store")
    assert (check.level, made.path.name in check.advice) == ("error", True)
    config = tmp_path / "config.yaml"
    config.write_text(f"store: {{path: {path}}}\nwatch: {{folders: [{tmp_path / 'music'}]}}\n")
    for module, arguments, status in (
        ("reclass_plex", ["tag", "--yes", str(tmp_path / "music")], 1),
        ("reclass_plex", ["status"], 1),
        ("service", [], os.EX_DATAERR),
    ):
        command = [sys.executable, "-m", module, *arguments, "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        said = " ".join((done.stdout + done.stderr).split())
        assert f"restore {made.path.name}" in said
        assert "Traceback" not in said
    assert path.read_bytes() == data


def test_going_back_keeps_what_was_done_since(tmp_path: Path, later: Path) -> None:
    path = old_stores.load(SCHEMA_VERSION, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        use(later, patch)
        with Store.open(path) as store, store.writing_files():
            run = store.start_run("tag")
            song = tmp_path / "music" / "opus.opus"
            original = song.read_bytes()
            known = store.find_track(song, "")
            assert known is not None
            changes.apply_tags(store, run, known, ("Folk",), OPTIONS)
            store.finish_run(run)
    (made,) = list_backups(path)
    with hold_daemon_lock(path), restoring.hold_store(path):
        restored = restoring.restore(path, made)
    assert restored.taken is not None
    assert (restored.taken.whole, restored.taken.changes) == (True, 1)
    with Store.open(path) as store, store.writing_files():
        for _, result in changes.undo_changes(store, store.changes(run_id=run), OPTIONS):
            assert result.how == "restored byte for byte"
    assert song.read_bytes() == original
    assert version(path) == SCHEMA_VERSION


KILLS = 40


def test_kill_9_in_a_migration_leaves_the_old_or_the_new_one(tmp_path: Path, later: Path) -> None:
    """At instants spread over all of it; and the next start ends what was begun."""
    chance = random.Random(20261126)
    old = old_stores.load(SCHEMA_VERSION, tmp_path)
    before = rows(old)
    path = tmp_path / "state" / "store.sqlite"
    seconds = 0.0
    found = []
    for number in range(KILLS + 2):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        shutil.copy(old, path)
        began = time.perf_counter()
        child = os.fork()  # of a process that has imported all: only the migration takes time
        if child == 0:
            schema.MIGRATIONS, schema.SCHEMA_VERSION = later, NEXT
            Store.open(path).close()
            os._exit(0)
        if number > 1:
            time.sleep(chance.uniform(0.0, 1.1 * seconds))
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if number == 1:  # how long it takes, once all is warm
            seconds = time.perf_counter() - began
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found.append(version(path))
        after = rows(path)
        if found[-1] == SCHEMA_VERSION:
            assert after == before
        else:
            assert len(after["extra"]) == 300
            assert [row["why"] for row in after["journal"]] == [
                row["state"] for row in before["journal"]
            ]
        with pytest.MonkeyPatch.context() as patch:
            use(later, patch)
            Store.open(path).close()
        assert version(path) == NEXT
        for backup in list_backups(path):
            assert rows(backup.path) == before
    assert set(found) == {SCHEMA_VERSION, NEXT}
