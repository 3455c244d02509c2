"""Restoring on real stores and real files: damaged in every way, nothing that was done is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from audio_files import make_audio
from many_tracks import fill_store

from reclass_plex import changes, comparing, restoring, tags
from reclass_plex.audio import audio_digest
from reclass_plex.backups import Backup, list_backups, look_into, make_backup
from reclass_plex.browse_history import list_runs
from reclass_plex.config import TagOptions
from reclass_plex.decided import Decisions, Word
from reclass_plex.errors import ConfigError, StoreBusy, StoreDamaged, StoreError, StoreNewer
from reclass_plex.store import KnownTrack, Store
from reclass_plex.store_guard import find_faults, hold_daemon_lock

OPTIONS = TagOptions()
SONGS = 30
FILLING = 1500  # other tracks, so that the store has pages enough to damage
PAGE = 4096


@dataclass
class Site:
    """A store with music: songs 0 to 9 are written before the backup, 10 to 19 after it.

    After it, too, 0 to 2 are taken back, 3 to 5 written once more, and one is decided on.
    """

    root: Path
    originals: dict[Path, bytes] = field(default_factory=dict)
    files: dict[Path, bytes] = field(default_factory=dict)  # as they were when it broke

    @property
    def store(self) -> Path:
        return self.root / "state" / "store.sqlite"

    @property
    def log(self) -> Path:
        return self.store.with_name("store.sqlite-wal")

    def songs(self) -> list[Path]:
        return sorted((self.root / "music").iterdir())


def know(store: Store, path: Path) -> KnownTrack:
    status = path.stat()
    genres = tags.read_tags(path).genres
    stamp = (status.st_size, status.st_mtime_ns)
    store.save_track(path, *stamp, digest=audio_digest(path), genres=genres)
    known = store.find_track(path, "models")
    assert known is not None
    return known


def write(store: Store, paths: list[Path], genre: str) -> int:
    run = store.start_run("tag")
    for path in paths:
        assert changes.apply_tags(store, run, know(store, path), (genre,), OPTIONS)
    store.finish_run(run)
    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Path]:
    """Return a site that broke, and where a copy of it is kept: its store names its paths."""
    root = tmp_path_factory.mktemp("restore")
    site = Site(root / "site")
    music = site.root / "music"
    music.mkdir(parents=True)
    for number in range(SONGS):
        kind = ("mp3", "flac", "ogg-vorbis")[number % 3]
        made = make_audio(root, kind, seconds=0.3 + number / 100)
        made.rename(music / f"{number:02d}{made.suffix}")
    songs = site.songs()
    site.originals = {path: path.read_bytes() for path in songs}
    with Store.open(site.store) as store:
        fill_store(store, FILLING)
        for path in songs:
            know(store, path)
        write(store, songs[:10], "Rock")
    make_backup(site.store)
    # A process that is killed: its store is never closed, so its log stays.
    child = os.fork()
    if child == 0:
        store = Store.open(site.store)
        for number in range(3):
            write(store, songs[10 + 3 * number : 13 + 3 * number], "Jazz")
        write(store, songs[19:20], "Jazz")
        for entry in [one for one in store.changes() if one.path in songs[:3]]:
            assert changes.undo_change(store, entry, OPTIONS).restored
        write(store, songs[3:6], "Pop")
        known = know(store, songs[7])
        word = Word(known.id, known.digest or "", ("Blues",), "correct", None)
        Decisions(store).record([word], store.start_run("decide"), 1.0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert site.log.stat().st_size > 0
    site.files = {path: path.read_bytes() for path in songs}
    shutil.copytree(site.root, root / "kept")
    return site, root / "kept"


@pytest.fixture
def site(template: tuple[Site, Path]) -> Site:
    """The same for each test, with the log as a kill leaves it."""
    site, kept = template
    shutil.rmtree(site.root)
    shutil.copytree(kept, site.root)
    return Site(site.root, site.originals, dict(site.files))


def restore(site: Site, named: Path | None = None) -> restoring.Restored:
    with hold_daemon_lock(site.store), restoring.hold_store(site.store):
        return restoring.restore(site.store, restoring.choose_backup(site.store, named))


def compare(site: Site) -> dict[Path, str]:
    with Store.open(site.store) as store, store.writing_files():
        return {one.path: one.kind for one in comparing.compare_if_due(store, OPTIONS)}


def undo_all(site: Site) -> None:
    """Take everything back that stands, as a person would."""
    with Store.open(site.store) as store, store.writing_files():
        assert find_faults(store.path) == []
        with store.transaction(write=False) as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        for _ in changes.undo_changes(store, changes.find_changes(store), OPTIONS):
            pass


def check(site: Site, found: dict[Path, str]) -> list[Path]:
    """Nothing was written by restoring; undo gives back all but what was named. Return that."""
    assert site.files == {path: path.read_bytes() for path in site.songs()}
    undo_all(site)
    named = [path for path, kind in found.items() if kind == "unknown"]
    for path, original in site.originals.items():
        assert path in named or path.read_bytes() == original, path
    return named


def cut(path: Path, part: float) -> None:
    os.truncate(path, int(path.stat().st_size * part))


def overwrite(path: Path, first: int, count: int, filling: bytes = b"\xa5") -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(filling * count)


def settle_log(site: Site) -> None:
    """Bring the log into the file, as a clean end does."""
    with closing(sqlite3.connect(site.store)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def of_a_log(site: Site) -> None:
    """A frame in the middle of the log: SQLite would lose the rest of it without a word."""
    frames = (site.log.stat().st_size - 32) // (PAGE + 24)
    overwrite(site.log, 32 + frames // 3 * (PAGE + 24) + 24 + 100, 2000)


def of_a_logs_header(site: Site) -> None:
    overwrite(site.log, 0, 32, b"\0")


def of_the_header(site: Site) -> None:
    settle_log(site)
    overwrite(site.store, 0, 100, b"\0")


def of_the_first_page(site: Site) -> None:
    settle_log(site)
    overwrite(site.store, 0, PAGE, b"\0")


def of_inner_pages(site: Site) -> None:
    """Every inner page of a tree: SQLite then finds next to nothing."""
    settle_log(site)
    data = bytearray(site.store.read_bytes())
    for start in range(PAGE, len(data), PAGE):
        if data[start] in (2, 5):
            data[start : start + PAGE] = b"\xa5" * PAGE
    site.store.write_bytes(data)


DAMAGES = [of_a_log, of_a_logs_header, of_the_header, of_the_first_page, of_inner_pages]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_damage_that_leaves_the_rows_costs_nothing(
    site: Site, damage: Callable[[Site], None]
) -> None:
    damage(site)
    with pytest.raises(StoreDamaged, match=r"store\.sqlite: .*give: reclass-plex restore"):
        Store.open(site.store, check=True)
    with pytest.raises(StoreDamaged):  # and again, when SQLite has had a look
        Store.open(site.store)
    restored = restore(site)
    assert restored.taken is not None
    assert not restored.taken.whole
    found = compare(site)
    lost = check(site, found)
    if damage is of_a_log:  # what the page held is older by one frame
        assert len(lost) <= 3
    else:
        assert lost == []


def test_a_whole_store_gives_all_that_happened_since(site: Site) -> None:
    restored = restore(site)
    taken = restored.taken
    assert taken is not None
    assert (taken.whole, taken.changes, taken.updated, taken.bare) == (True, 13, 3, 0)
    assert taken.others == 1
    found = compare(site)
    assert found == {}
    with Store.open(site.store) as store:
        assert [one.genres for one in Decisions(store).all_standing().values()] == [("Blues",)]
        known = store.find_track(site.songs()[12], "")
        assert known is not None
        assert known.written == ("Jazz",)
    assert check(site, found) == []


def test_a_store_of_which_only_the_log_is_left_gives_what_is_in_it(site: Site) -> None:
    log = site.log.read_bytes()
    site.store.unlink()
    restored = restore(site)
    assert restored.taken is not None
    assert (restored.taken.whole, restored.taken.changes) == (False, 13)
    assert restored.replaced is not None
    assert restored.replaced.with_name(restored.replaced.name + "-wal").read_bytes() == log
    assert check(site, compare(site)) == []


@pytest.mark.parametrize("seed", range(6))
def test_pages_anywhere_and_a_file_cut_short_lose_only_what_was_there(
    site: Site, seed: int
) -> None:
    damage_and_restore(site, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(6, 150))
def test_the_same_for_many_damages(site: Site, seed: int) -> None:
    damage_and_restore(site, seed)


def damage_and_restore(site: Site, seed: int) -> None:
    settle_log(site)
    chance = random.Random(seed)
    pages = site.store.stat().st_size // PAGE
    if seed % 4 == 3:
        cut(site.store, chance.uniform(0.3, 0.9))
    else:
        for _ in range(chance.choice((1, 3, pages // 20))):
            start = chance.randrange(pages)
            overwrite(site.store, start * PAGE, PAGE * chance.randrange(1, 4))
    os.truncate(site.store, min(site.store.stat().st_size, pages * PAGE))
    restore(site)
    check(site, compare(site))


def test_nothing_but_the_backup_is_left(site: Site) -> None:
    """Then the journal ends with the backup, and files that it does not know of are named."""
    for path in (site.store, site.log, site.log.with_name("store.sqlite-shm")):
        path.unlink(missing_ok=True)
    restored = restore(site)
    assert (restored.taken, restored.replaced) == (None, None)
    found = compare(site)
    songs = site.songs()
    assert {found[path] for path in songs[:3]} == {"taken back"}
    assert {found[path] for path in songs[3:6]} == {"unknown"}
    assert {found[path] for path in songs[10:20]} == {"unknown"}
    assert set(found) == {*songs[:6], *songs[10:20]}
    assert check(site, found) == [*songs[3:6], *songs[10:20]]


def test_what_somebody_edited_since_is_told_from_what_we_wrote(site: Site) -> None:
    songs = site.songs()
    site.store.unlink()
    site.log.unlink()
    os.utime(songs[6])
    shutil.copy(songs[25], songs[24])
    restore(site)
    found = compare(site)
    assert found[songs[6]] == "written"
    assert found[songs[24]] == "other" or songs[24].suffix != songs[25].suffix
    assert compare(site) == {}  # it was done


def test_the_replaced_store_is_kept_whole_with_its_log(site: Site) -> None:
    former, log = site.store.read_bytes(), site.log.read_bytes()
    restored = restore(site)
    assert restored.replaced is not None
    assert restored.replaced.read_bytes() == former
    assert restored.replaced.with_name(restored.replaced.name + "-wal").read_bytes() == log
    again = restore(site)
    assert again.replaced not in (None, restored.replaced)
    mode = site.store.stat().st_mode & 0o777
    assert mode == 0o600
    left = {path.name for path in site.store.parent.iterdir()}
    assert not [name for name in left if "restor" in name or name.endswith("tmp")]


def test_restoring_twice_and_an_older_one_changes_no_count(site: Site) -> None:
    restore(site)
    with Store.open(site.store) as store:
        first = store.changes()
        runs = [one for one in list_runs(store).rows if one.command != comparing.RUN]
    make_backup(site.store)
    oldest = list_backups(site.store)[-1]
    restore(site, Path(oldest.path.name))
    with Store.open(site.store) as store:
        assert store.changes() == first
        assert [one for one in list_runs(store).rows if one.command != comparing.RUN] == runs
    assert check(site, compare(site)) == []


def test_a_store_that_was_begun_anew_is_taken_over_under_new_numbers(site: Site) -> None:
    """Its ids mean other runs and other tracks than those of the backup."""
    settle_log(site)
    songs = site.songs()
    for path in (site.store, site.log):
        path.unlink(missing_ok=True)
    with Store.open(site.store) as store:
        write(store, [songs[21], songs[20]], "Metal")
    site.files = {path: path.read_bytes() for path in songs}
    restored = restore(site)
    assert restored.taken is not None
    assert restored.taken.changes == 2
    found = compare(site)
    assert songs[20] not in found
    with Store.open(site.store) as store:
        assert {entry.path for entry in store.changes()} >= {songs[20], songs[21], songs[9]}
        (mine,) = (one for one in store.changes() if one.path == songs[20])
        assert mine.named == songs[20]
    check(site, found)


def test_a_restore_can_be_taken_back_by_restoring_what_it_replaced(site: Site) -> None:
    """With its log, which has most of what happened."""
    index = site.store.with_name("store.sqlite.similar")
    index.write_bytes(b"numbers of another store")
    former = restore(site).replaced
    assert former is not None
    assert not index.exists()
    site.store.unlink()
    restore(site, former)
    with Store.open(site.store) as store:
        assert len(store.changes()) == 20
    assert former.exists()
    assert check(site, compare(site)) == []


def test_edits_in_plex_keep_what_they_replaced(site: Site) -> None:
    columns = "run_id, over, server, rating_key, kind, library_key, before, after, was_locked"
    columns += ", replaced, state, created"
    insert = (
        f"INSERT INTO plex_edits ({columns}) VALUES (1, ?, 's', 7, 'track', 1, ?, ?, 0, ?, ?, ?)"
    )
    with Store.open(site.store) as store, store.transaction() as connection:
        connection.exec_driver_sql(insert, (None, '["Pop"]', '["Rock"]', '["Pop"]', "done", 1.0))
    made = make_backup(site.store)
    assert made is not None
    with Store.open(site.store) as store, store.transaction() as connection:
        connection.exec_driver_sql(insert, (1, '["Rock"]', '["Jazz"]', '["Pop"]', "planned", 2.0))
        connection.exec_driver_sql("UPDATE plex_edits SET state = 'undone' WHERE id = 1")
    restore(site)
    with closing(sqlite3.connect(site.store)) as opened:
        found = opened.execute("SELECT id, over, state FROM plex_edits ORDER BY id").fetchall()
    assert found == [(1, None, "undone"), (2, 1, "planned")]


def test_tokens_and_sessions_are_never_revived(site: Site) -> None:
    with Store.open(site.store) as store, store.transaction() as connection:
        connection.exec_driver_sql(
            "INSERT INTO web_keys (hash, kind, name, scope, created, used)"
            " VALUES ('revoked', 'token', 'old', 'write', 0, 0)"
        )
    made = make_backup(site.store)
    assert made is not None
    with Store.open(site.store) as store, store.transaction() as connection:
        connection.exec_driver_sql("UPDATE web_keys SET hash = 'new'")

    def hashes() -> list[str]:
        with closing(sqlite3.connect(site.store)) as connection:
            return [row[0] for row in connection.execute("SELECT hash FROM web_keys")]

    restored = restore(site)
    assert restored.taken is not None
    assert restored.taken.tokens
    assert hashes() == ["new"]
    of_the_header(site)
    restored = restore(site)
    assert restored.taken is not None
    assert not restored.taken.tokens
    assert hashes() == []


def test_whoever_uses_the_store_keeps_it(site: Site) -> None:
    backup = restoring.choose_backup(site.store, None)
    with (
        hold_daemon_lock(site.store),
        pytest.raises(StoreBusy, match="a reclass-plexd runs already"),
        hold_daemon_lock(site.store),
    ):
        pass
    with (
        Store.open(site.store),
        pytest.raises(StoreBusy, match="another reclass-plex uses the store"),
        restoring.hold_store(site.store),
    ):
        restoring.restore(site.store, backup)


def test_a_backup_that_cannot_serve_is_refused_and_nothing_changes(site: Site) -> None:
    (good,) = list_backups(site.store)
    newer = good.path.with_name("store.sqlite-20301126T000000Z")
    shutil.copy(good.path, newer)
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")
    broken = good.path.with_name("store.sqlite-20291126T000000Z")
    broken.write_bytes(good.path.read_bytes()[:50_000])
    before = {path: path.read_bytes() for path in site.store.parent.glob("store.sqlite*")}
    assert restoring.choose_backup(site.store, None) == good
    for path, error in ((newer, StoreNewer), (broken, StoreDamaged)):
        with pytest.raises(error, match=path.name):
            restore(site, Path(path.name))
    with pytest.raises(ConfigError, match="no such backup"):
        restore(site, Path("store.sqlite-20000101T000000Z"))
    good.path.unlink()
    with pytest.raises(ConfigError, match="there is no backup of it that is whole"):
        restore(site)
    after = {path: path.read_bytes() for path in site.store.parent.glob("store.sqlite*")}
    assert {path: data for path, data in after.items() if path in before} == before


def test_too_little_space_is_said_before_anything(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.store.read_bytes()
    monkeypatch.setattr(restoring, "SPACE_MARGIN", 1 << 60)
    with pytest.raises(StoreError, match=r"needs .* free some; nothing was changed"):
        restore(site)
    assert site.store.read_bytes() == before


# Kills: each forked child restores until it is killed.


def test_kill_9_while_restoring_leaves_one_store_or_the_other(site: Site) -> None:
    chance = random.Random(20261126)
    for _ in range(12):
        child = os.fork()
        if child == 0:
            with hold_daemon_lock(site.store), restoring.hold_store(site.store):
                while True:
                    restoring.finish_swap(site.store)
                    found = restoring.choose_backup(site.store, None)
                    restoring.restore(site.store, found)
        timer = chance.uniform(0.01, 0.4)
        subprocess.run(["sleep", f"{timer:.3f}"], check=True)
        os.kill(child, 9)
        os.waitpid(child, 0)
        if site.store.with_name("store.sqlite.restoring").exists():
            with pytest.raises(StoreError, match="did not end: give reclass-plex restore again"):
                Store.open(site.store)
            with hold_daemon_lock(site.store), restoring.hold_store(site.store):
                assert restoring.finish_swap(site.store)
        with Store.open(site.store) as store:
            assert find_faults(store.path) == []
            assert len(store.changes()) == 20
    assert check(site, compare(site)) == []


def run(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = site.root / "config.yaml"
    config.write_text(f"store: {{path: {site.store}}}\n")
    command = [sys.executable, "-m", "reclass_plex", *arguments, "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_commands(site: Site) -> None:
    of_the_header(site)
    refused = run(site, "history")
    assert refused.returncode == 1
    assert "the store is damaged" in refused.stderr
    (line,) = map(json.loads, run(site, "restore", "--list", "--json").stdout.splitlines())
    assert (line["undoable"], line["problem"]) == (10, "")
    assert line["path"] == str(list_backups(site.store)[0].path)
    asked = run(site, "restore")
    assert asked.returncode == 2
    assert "--yes" in asked.stderr
    done = run(site, "restore", "--yes")
    assert done.returncode == 0, done.stderr
    assert "is the store now" in done.stdout
    assert "13 changes of files" in done.stdout
    assert "None was changed, none is lost" in done.stdout
    listed = run(site, "restore", "--list")
    assert "can be undone" in listed.stdout
    assert list_backups(site.store)[0].path.name in listed.stdout
    undone = run(site, "undo", "--since", "1d", "--yes")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert all(path.read_bytes() == data for path, data in site.originals.items())


def test_a_comparison_that_was_killed_is_made_up_for_by_the_next_command(site: Site) -> None:
    site.store.unlink()
    site.log.unlink()
    restore(site)  # and killed before the files were compared
    done = run(site, "undo", "--run", "1", "--yes")
    assert f"{site.songs()[3]}: says Pop" in done.stderr
    assert f"{site.songs()[0]}: was taken back since the backup" in done.stderr
    assert "05" not in done.stdout.partition("restored byte for byte")[0]
    assert compare(site) == {}


def test_looking_into_a_backup(site: Site) -> None:
    (backup,) = list_backups(site.store)
    assert isinstance(backup, Backup)
    assert look_into(backup.path).tracks == FILLING + SONGS
    assert look_into(backup.path).undoable == 10
