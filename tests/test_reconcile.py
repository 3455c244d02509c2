"""Comparing real folders with a real store: what is missed, what is left alone, how fast."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from timing import timed

from reclass_plex.errors import NotAudio
from reclass_plex.jobs import Jobs
from reclass_plex.reconcile import Reconciled, reconcile
from reclass_plex.store import Store
from service.watch import Anchor

ME = "0000aaaa"
NOT_UTF8 = os.fsdecode(b"caf\xe9.mp3")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def jobs(store: Store) -> Jobs:
    return Jobs(store)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    for name in ("a/1.mp3", "a/2.mp3", "a/b/3.flac", NOT_UTF8):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "a" / "cover.jpg").write_bytes(b"x")
    return folder


def run(
    folder: Path,
    store: Store,
    jobs: Jobs,
    *,
    is_healthy: Callable[[Path], bool] = lambda folder: True,
    settle_seconds: float = 0.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_gone: Callable[[Collection[Path]], object] = lambda paths: None,
) -> Reconciled:
    return reconcile(
        [folder],
        store,
        jobs,
        is_healthy=is_healthy,
        settle_seconds=settle_seconds,
        should_stop=should_stop,
        on_gone=on_gone,
    )


def know(store: Store, path: Path, *, written: tuple[str, ...] | None = None) -> None:
    """Let the store know a file, as it is after it was tagged if `written` is given."""
    status = path.stat()
    digest = f"digest of {path.name!r}"
    track = store.save_track(path, status.st_size, status.st_mtime_ns, digest=digest)
    if written is not None:
        entry = store.begin_change(
            store.start_run("tag"),
            track,
            path=path,
            temp_path=path,
            digest=digest,
            before=(),
            after=written,
            before_hash="",
            after_hash="",
            before_mtime_ns=0,
            delta=b"",
        )
        store.finish_change(entry, status.st_size, status.st_mtime_ns)


def settle(jobs: Jobs, path: Path, end: str) -> None:
    """Let the track's job end in this state."""
    now = time.time()
    jobs.enqueue([path], "watch", now - 3600)
    while (batch := jobs.claim(1, now, owner=ME, lease=60)) and batch[0].path != path:
        pass
    ids = [batch[0].id]
    if end == "failed":
        jobs.park(ids, ME, now, message="cannot be read")
    elif end != "running":
        jobs.finish(ids, ME, end, now)  # type: ignore[arg-type]


def in_line(jobs: Jobs) -> set[str]:
    waiting = jobs.list_jobs("waiting", "ready", limit=10**6)
    return {job.path.name for job in waiting if job.reasons == ("reconcile",) and job.bulk}


def test_what_is_new_or_changed_is_put_in_line_and_what_is_known_is_not(
    music: Path, store: Store, jobs: Jobs
) -> None:
    know(store, music / "a" / "1.mp3", written=("Rock",))
    know(store, music / "a" / "2.mp3", written=("Rock",))
    os.utime(music / "a" / "2.mp3", ns=(1, 1))
    done = run(music, store, jobs)
    assert in_line(jobs) == {"2.mp3", "3.flac", NOT_UTF8}
    assert done == Reconciled(found=4, queued=3, forgotten=0, unreadable=0, finished=True)
    assert run(music, store, jobs).queued == 0  # what is in line stays as it is


def test_what_is_broken_is_left_until_it_changes(music: Path, store: Store, jobs: Jobs) -> None:
    path = music / "a" / "1.mp3"
    status = path.stat()
    store.save_track(path, status.st_size, status.st_mtime_ns, error=NotAudio(path, "is empty"))
    run(music, store, jobs)
    assert "1.mp3" not in in_line(jobs)
    path.write_bytes(b"better")
    run(music, store, jobs)
    assert "1.mp3" in in_line(jobs)


def test_what_a_dry_run_heard_is_tagged_all_the_same(music: Path, store: Store, jobs: Jobs) -> None:
    for path in (music / "a").glob("*.mp3"):
        know(store, path)
    settle(jobs, music / "a" / "2.mp3", "skipped")  # a decision was taken
    jobs.prune(time.time() + 1)
    run(music, store, jobs)
    assert in_line(jobs) == {"1.mp3", "3.flac", NOT_UTF8}


@pytest.mark.parametrize("end", ["running", "failed", "done", "review", "skipped"])
def test_a_job_that_ended_is_asked_for_again_only_when_its_file_changed(
    music: Path, store: Store, jobs: Jobs, end: str
) -> None:
    path = music / "a" / "1.mp3"
    settle(jobs, path, end)
    if end not in ("running", "failed"):
        know(store, path)
    run(music, store, jobs)
    assert "1.mp3" not in in_line(jobs)
    time.sleep(0.02)  # the kernel's clock for files is coarse
    path.write_bytes(b"changed")
    run(music, store, jobs)
    assert ("1.mp3" in in_line(jobs)) == (end != "running")


def test_a_file_that_changed_just_now_settles_first(music: Path, store: Store, jobs: Jobs) -> None:
    os.utime(music / "a" / "1.mp3", (0, time.time() - 100))
    run(music, store, jobs, settle_seconds=30)
    states = {job.path.name: job.state for job in jobs.list_jobs("waiting", "ready") if job.due > 0}
    assert states == {
        "1.mp3": "ready",
        "2.mp3": "waiting",
        "3.flac": "waiting",
        NOT_UTF8: "waiting",
    }


def test_jobs_of_files_that_are_gone_are_dropped(music: Path, store: Store, jobs: Jobs) -> None:
    odd = music / "named by hand.mp4"
    odd.write_bytes(b"x")
    outside = music.parent / "outside.mp3"
    jobs.enqueue([odd, outside], "by hand", time.time())
    run(music, store, jobs)
    shutil.rmtree(music / "a" / "b")
    (music / "a" / "1.mp3").unlink()
    settle(jobs, music / "a" / "2.mp3", "running")
    (music / "a" / "2.mp3").unlink()
    told: list[str] = []
    done = run(music, store, jobs, on_gone=lambda paths: told.extend(path.name for path in paths))
    assert done.forgotten == 2
    assert len(told) == 3  # what is held is gone, too
    assert "2.mp3" in told
    left = {job.path.name for job in jobs.list_jobs("waiting", "ready", "running")}
    assert left == {"2.mp3", NOT_UTF8, "named by hand.mp4", "outside.mp3"}


def test_an_empty_mount_point_is_no_deletion(music: Path, store: Store, jobs: Jobs) -> None:
    anchor = Anchor(music)
    run(music, store, jobs, is_healthy=lambda folder: anchor.look()[0] is None)
    away = music.with_name("away")
    music.rename(away)
    for present in (False, True):
        if present:
            music.mkdir()
        done = run(music, store, jobs, is_healthy=lambda folder: anchor.look()[0] is None)
        assert done == Reconciled(0, 0, 0, 0, finished=False)
    assert sum(jobs.counts().values()) == 4


def test_a_mount_that_goes_away_meanwhile_is_no_deletion(
    music: Path, store: Store, jobs: Jobs
) -> None:
    run(music, store, jobs)
    looks: list[bool] = []

    def is_healthy(folder: Path) -> bool:
        looks.append(True)
        if len(looks) == 1:
            shutil.rmtree(music / "a")  # after the first look
            return True
        return False

    assert run(music, store, jobs, is_healthy=is_healthy).forgotten == 0
    assert len(looks) == 2


def test_what_cannot_be_read_is_counted_and_not_taken_for_gone(
    music: Path, store: Store, jobs: Jobs
) -> None:
    broken, loop = music / "broken.mp3", music / "loop"
    broken.symlink_to(music / "nowhere")
    loop.symlink_to(loop)
    jobs.enqueue([broken, loop / "1.mp3"], "watch", time.time())
    done = run(music, store, jobs)
    assert (done.found, done.forgotten, done.unreadable) == (4, 0, 1)


def test_it_ends_when_it_is_told_to(music: Path, store: Store, jobs: Jobs) -> None:
    assert run(music, store, jobs, should_stop=lambda: True) == Reconciled(
        0, 0, 0, 0, finished=False
    )


@timed
def test_ten_thousand_known_files_take_less_than_two_seconds(
    tmp_path: Path, store: Store, jobs: Jobs
) -> None:
    music = tmp_path / "music"
    rows = []
    for number in range(10_000):
        path = music / f"{number // 12:05}" / f"{number:05}.mp3"
        if number % 12 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
        status = path.stat()
        rows.append((os.fsencode(path), status.st_size, status.st_mtime_ns, str(number)))
    with store.transaction() as connection:
        connection.connection.executemany(
            "INSERT INTO tracks (path, size, mtime_ns, digest, genres, undone)"
            " VALUES (?, ?, ?, ?, '[]', 0)",
            rows,
        )
    assert run(music, store, jobs).queued == 10_000  # a dry run heard them
    while batch := jobs.claim(1000, time.time(), owner=ME, lease=60):
        jobs.finish([job.id for job in batch], ME, "skipped", time.time())
    began = time.process_time()
    assert run(music, store, jobs).queued == 0
    assert time.process_time() - began < 2
