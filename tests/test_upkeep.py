"""Nightly care on real stores: backups survive kills and full disks, old deltas are forgotten."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reclass_plex import backups
from reclass_plex.backups import DAY, list_backups, make_backup
from reclass_plex.browse_history import list_runs
from reclass_plex.errors import StoreDamaged, StoreError
from reclass_plex.files import SPACE_MARGIN
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store
from reclass_plex.store_guard import find_faults
from reclass_plex.upkeep import care_for, is_overdue

NOW = 1_800_000_000.0
KILLS = 8
SEED = 20261122


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


def change(store: Store, number: int, state: str, *, days_ago: float, size: int = 1000) -> int:
    """Journal a change whose delta has `size` bytes that do not compress."""
    path = Path(f"/music/{number}.mp3")
    track = store.save_track(path, 1, 1, digest="d")
    entry = store.begin_change(
        store.start_run("tag", now=NOW),
        track,
        path=path,
        temp_path=path,
        digest="d",
        before=("Pop",),
        after=("Rock",),
        before_hash="",
        after_hash="",
        before_mtime_ns=0,
        delta=random.Random(number).randbytes(size),
        now=NOW - days_ago * DAY,
    )
    if state in ("done", "undone"):
        store.finish_change(entry, 1, 1)
    if state == "undone":
        store.finish_undo(entry, path, 1, 1)
    if state == "abandoned":
        store.abandon_change(entry)
    return entry


def names(store: Store) -> list[str]:
    folder = store.path.parent / "backups"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def dump(path: Path) -> list[str]:
    """Return all that is in a database, which must be sound."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(connection.iterdump())


def test_others_write_meanwhile_and_the_backup_is_one_state_of_the_store(store: Store) -> None:
    for number in range(40):
        change(store, number, "done", days_ago=0, size=100_000)
    stopping = threading.Event()

    def write() -> None:
        number = 100
        while not stopping.is_set():
            run = store.start_run(f"{number}", now=NOW)
            store.finish_run(run, now=NOW)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            path = make_backup(store.path)
            assert path is not None
            dump(path)
    finally:
        stopping.set()
        thread.join()


def test_old_deltas_are_forgotten_and_the_history_stays(store: Store, jobs: Jobs) -> None:
    old = change(store, 1, "done", days_ago=100)
    young = change(store, 2, "done", days_ago=80)
    pending = change(store, 3, "pending", days_ago=100)
    undone, abandoned = (
        change(store, number, state, days_ago=0)
        for number, state in ((4, "undone"), (5, "abandoned"))
    )
    history = list_runs(store).rows
    assert care_for(store, jobs, NOW, keep_undo_days=None).forgotten == 0
    assert [len(store.read_delta(entry)) for entry in (old, young, pending)] == [1000] * 3
    assert [store.read_delta(entry) for entry in (undone, abandoned)] == [b"", b""]
    assert care_for(store, jobs, NOW, keep_undo_days=90).forgotten == 1
    assert [len(store.read_delta(entry)) for entry in (old, young, pending)] == [0, 1000, 1000]
    assert list_runs(store).rows == history
    assert [entry.before for entry in store.changes()] == [("Pop",), ("Pop",)]


def test_jobs_that_are_long_done_are_dropped(store: Store, jobs: Jobs) -> None:
    paths = [Path("/music/1.mp3"), Path("/music/2.mp3")]
    for path, days in zip(paths, (31, 29), strict=True):
        jobs.enqueue([path], "watch", NOW - days * DAY)
        (job,) = jobs.claim(1, NOW - days * DAY, owner="me", lease=60)
        jobs.finish([job.id], "me", "done", NOW - days * DAY)
    assert care_for(store, jobs, NOW).pruned == 1
    assert list(jobs.outcomes(paths)) == paths[1:]


def test_the_store_shrinks_when_much_of_it_is_free_and_its_log_is_emptied(
    store: Store, jobs: Jobs
) -> None:
    for number in range(20):
        change(store, number, "done", days_ago=100, size=1_000_000)
    wal = store.path.with_name(store.path.name + "-wal")
    assert wal.stat().st_size > 0
    assert care_for(store, jobs, NOW).freed == 0
    assert wal.stat().st_size == 0
    full = store.path.stat().st_size
    done = care_for(store, jobs, NOW, keep_undo_days=1)
    assert done.forgotten == 20
    assert done.freed > 19_000_000
    assert store.path.stat().st_size < full / 4
    assert find_faults(store.path) == []


def test_it_can_be_stopped(store: Store, jobs: Jobs) -> None:
    for number in range(10):
        change(store, number, "done", days_ago=100, size=1_000_000)
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    done = care_for(store, jobs, NOW, should_stop=should_stop)
    assert done.backup is None
    assert names(store) == []
    assert care_for(store, jobs, NOW, should_stop=lambda: True).backup is None
    assert find_faults(store.path) == []


def test_a_damaged_store_pushes_no_good_backup_out(store: Store, jobs: Jobs) -> None:
    for number in range(20):
        change(store, number, "done", days_ago=1, size=100_000)
    assert care_for(store, jobs, NOW).backup is not None
    (good,) = list_backups(store.path)
    kept = dump(good.path)
    store.close()
    with store.path.open("r+b") as file:
        file.seek(store.path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096 * 300)
    for _ in range(3):
        with pytest.raises(StoreDamaged, match=r"store\.sqlite: .*damaged.*reclass-plex restore"):
            care_for(store, jobs, NOW)
    assert names(store) == [good.path.name]
    assert dump(good.path) == kept
    assert store.path.with_name("store.sqlite.damaged").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("seen_before", [True, False])
def test_a_full_disk_is_told_and_costs_nothing(
    small_disk: Path, seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not seen_before:  # somebody else fills it while the copy is being written
        monkeypatch.setattr(backups, "SPACE_MARGIN", -100 * SPACE_MARGIN)
    with Store.open(small_disk / "store.sqlite") as store:
        jobs = Jobs(store)
        change(store, 0, "done", days_ago=0, size=100_000)
        first = care_for(store, jobs, NOW).backup
        assert first is not None
        for number in range(1, 5):
            change(store, number, "done", days_ago=0, size=800_000)
        with pytest.raises(StoreError, match=r"(?s)store\.sqlite: .*free some.* are whole"):
            care_for(store, jobs, NOW)
        assert names(store) == [first.name]
        dump(first)
        assert find_faults(store.path) == []


# Every line on standard input forks a process that backs up until it is killed.
CHILD = """
import os, sys
from pathlib import Path
from reclass_plex.store import Store
from reclass_plex.backups import make_backup, remove_expired

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        with Store.open(Path(sys.argv[1])) as store:
            while True:
                make_backup(store.path)
                remove_expired(store.path)
                os.write(1, b"done\\n")
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"ended\\n")
"""


def test_kill_9_leaves_whole_backups(store: Store) -> None:
    for number in range(20):
        change(store, number, "done", days_ago=0, size=200_000)
    expected = dump(store.path)
    generator = random.Random(SEED)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(KILLS):
        print(file=process.stdin, flush=True)
        pid = None
        done = 0
        while pid is None or not done:
            words = process.stdout.readline().split()
            pid = int(words[1]) if words[0] == "pid" else pid
            done += words[0] == "done"
        time.sleep(generator.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        while process.stdout.readline() != "ended\n":
            pass
        whole = list_backups(store.path)
        assert 1 <= len(whole) <= 2
        for one in whole:
            assert dump(one.path) == expected
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()
    make_backup(store.path)
    assert not any(name.endswith("tmp") for name in names(store))


def test_old_backups_go_once_the_new_one_is_there(store: Store, jobs: Jobs) -> None:
    for days in range(1, 6):
        make_backup(store.path, now=time.time() - days * DAY)
    done = care_for(store, jobs, NOW, backup_days=2, backup_weeks=0)
    kept = [one.path for one in list_backups(store.path)]
    assert (len(kept), kept[0]) == (2, done.backup)


def test_maintenance_that_was_missed_for_a_night_is_overdue(store: Store) -> None:
    assert not is_overdue(store.path.with_name("none"), time.time())
    assert is_overdue(store.path, time.time())
    make_backup(store.path)
    assert not is_overdue(store.path, time.time() + DAY)
    assert is_overdue(store.path, time.time() + 2 * DAY)
