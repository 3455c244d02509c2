"""Who may use a store, and that none writes music with one that any process found damaged."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from audio_files import make_audio

from reclass_plex import changes, store_guard, tags
from reclass_plex.audio import audio_digest
from reclass_plex.backups import make_backup
from reclass_plex.browse_history import list_runs
from reclass_plex.config import TagOptions
from reclass_plex.doctor.storage import check_store
from reclass_plex.errors import StoreBusy, StoreDamaged, StoreError
from reclass_plex.restoring import hold_store
from reclass_plex.store import Store
from reclass_plex.store_guard import damage, damaged_marker, ended_uncleanly, restoring_marker
from reclass_plex.wal import log_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "store.sqlite"
    with Store.open(path) as store:
        for number in range(200):
            store.save_track(Path(f"/music/{number}.mp3"), 1, 1, digest=f"{number:032x}")
    return path


def test_no_process_writes_music_once_one_found_damage(path: Path, tmp_path: Path) -> None:
    song = make_audio(tmp_path, "mp3", seconds=0.3)
    before = song.read_bytes()
    with Store.open(path) as store, store.writing_files():
        status = song.stat()
        store.save_track(song, status.st_size, status.st_mtime_ns, digest=audio_digest(song))
        known = store.find_track(song, "")
        assert known is not None
        run = store.start_run("tag")
        assert "give: reclass-plex restore" in str(damage(path, "by another process"))
        with pytest.raises(StoreDamaged, match="by another process"):
            changes.apply_tags(store, run, known, ("Rock",), TagOptions())
        assert song.read_bytes() == before
        assert tags.read_tags(song).genres == ()
        assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    with Store.open(path) as store:  # it is whole: a disk gave wrong bytes for a moment, say
        assert not damaged_marker(path).exists()
        damage(path, "again")
        for right in (store.writing_files, store.writing_plex):
            with pytest.raises(StoreDamaged, match="again"), right():
                pass


def test_damage_that_a_query_meets_is_noted_for_all(path: Path) -> None:
    with path.open("r+b") as file:
        for start in range(4096, path.stat().st_size, 4096):
            file.seek(start)
            file.write(b"\xa5" * 4096)
    with pytest.raises(StoreDamaged), Store.open(path) as store:
        list_runs(store)
    assert damaged_marker(path).exists()
    with pytest.raises(StoreDamaged):
        Store.open(path)
    assert damaged_marker(path).exists()


def test_a_start_checks_after_an_unclean_end_and_the_daemon_always(path: Path) -> None:
    log = log_path(path)
    child = os.fork()
    if child == 0:
        store = Store.open(path)
        store.start_run("killed")
        os._exit(0)
    os.waitpid(child, 0)
    assert ended_uncleanly(path)
    killed = {one: one.read_bytes() for one in (path, log)}
    with Store.open(path) as store:
        assert [one.command for one in list_runs(store).rows] == ["killed"]
    assert not ended_uncleanly(path)
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        if data[start] == 0x0A:  # leaves of indexes, which few questions look at
            data[start + 100 : start + 4096] = b"\xa5" * 3996
    path.write_bytes(data)
    Store.open(path).close()  # a command looks at nothing that it does not need
    with pytest.raises(StoreDamaged):
        Store.open(path, check=True)
    damaged_marker(path).unlink()
    for one, content in killed.items():
        one.write_bytes(content)
    damaged = bytearray(killed[path])
    damaged[:] = data[: len(damaged)]
    path.write_bytes(damaged)
    with pytest.raises(StoreDamaged):
        Store.open(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_command_of_root_before_the_first_start_does_not_lock_the_service_out(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "reclass-plex"
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    with Store.open(folder / "store.sqlite") as store, store.writing_files():
        store.start_run("tag")
        made = {one.name: one.stat() for one in folder.iterdir()}
    assert {"store.sqlite", "store.sqlite-wal", "store.sqlite.users"} <= set(made)
    assert {(one.st_uid, one.st_gid) for one in made.values()} == {(1234, 1235)}


def test_a_restore_that_did_not_end_keeps_everybody_out(path: Path) -> None:
    restoring_marker(path).write_text("{}")
    with pytest.raises(StoreError, match="did not end: give reclass-plex restore again"):
        Store.open(path)
    restoring_marker(path).unlink()
    Store.open(path).close()


def test_a_store_that_is_gone_is_begun_anew_and_its_backups_are_named(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_backup(path)
    path.unlink()
    (check,) = check_store(path)
    assert (check.level, "reclass-plex restore" in check.advice) == ("warning", True)
    with Store.open(path) as store:
        assert store.count_tracks() == 0
    assert "there are 1 backups of it" in caplog.text


@pytest.mark.parametrize("emptied", [False, True])
def test_a_log_whose_store_is_gone_is_not_dropped(path: Path, emptied: bool) -> None:
    with Store.open(path) as store:
        store.save_track(Path("/music/new.mp3"), 1, 1, digest="d")
        log = log_path(path).read_bytes()
    path.unlink()
    if emptied:
        path.touch()
    log_path(path).write_bytes(log)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is gone, but its log, store\.sqlite-wal, is there"):
            Store.open(path)
    assert log_path(path).read_bytes() == log


def test_who_comes_while_a_store_is_checked_or_restored_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = path.with_name("other.sqlite")
    with Store.open(other) as store:
        store.save_track(Path("/music/other.mp3"), 1, 1)
    held, free = threading.Event(), threading.Event()

    def restore() -> None:
        with hold_store(path):
            held.set()
            free.wait(10)
            os.replace(other, path)

    with monkeypatch.context() as impatient:
        impatient.setattr(store_guard, "BUSY_SECONDS", 0.1)
        with hold_store(path), pytest.raises(StoreBusy, match="checks or restores the store"):
            Store.open(path)
    restoring = threading.Thread(target=restore)
    restoring.start()
    assert held.wait(10)
    threading.Timer(0.3, free.set).start()
    with Store.open(path) as store:  # it would have written to the one that goes
        assert free.is_set()
        assert store.count_tracks() == 1
        with pytest.raises(StoreBusy), hold_store(path):
            pass
    restoring.join()
