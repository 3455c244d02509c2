"""The queue on real SQLite files: triggers coalesce, leases return, kill -9 loses nothing."""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from timing import timed

from reclass_plex import jobs as jobs_module
from reclass_plex.jobs import ALONE_DEATHS, MAX_ATTEMPTS, MAX_DEATHS, STATES, Jobs
from reclass_plex.store import Store
from reclass_plex.store_guard import find_faults

NOW = 1_000_000.0
ME, OTHER = "0000aaaa", "0000bbbb"
MUSIC = Path("/music")
KILLS = 40
SEED = 20261122


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield Jobs(store)


def claim(jobs: Jobs, now: float = NOW, limit: int = 100, owner: str = ME) -> list[Path]:
    return [job.path for job in jobs.claim(limit, now, owner=owner, lease=60)]


def state(jobs: Jobs, path: Path) -> str:
    job = jobs.find(path)
    assert job is not None
    return job.state


def held(jobs: Jobs, path: Path) -> list[int]:
    job = jobs.find(path)
    assert job is not None
    return [job.id]


def test_a_track_goes_from_waiting_to_done(jobs: Jobs) -> None:
    path = MUSIC / "not utf-8 \udcff.mp3"
    assert jobs.enqueue([path], "watch", NOW, settle=10) == 1
    assert state(jobs, path) == "waiting"
    assert jobs.next_due(NOW) == NOW + 10
    assert claim(jobs, NOW + 9) == []
    assert claim(jobs, NOW + 10) == [path]
    job = jobs.find(path)
    assert job is not None
    assert (job.state, job.owner, job.lease_until) == ("running", ME, NOW + 70)
    assert jobs.next_due(NOW + 11) == NOW + 70
    assert jobs.start_writing([job.id], ME, NOW + 11) == [job.id]
    assert state(jobs, path) == "writing"
    assert jobs.owners() == {ME}
    assert jobs.finish([job.id], ME, "done", NOW + 12) == 1
    assert jobs.counts() == {name: int(name == "done") for name in STATES}
    assert jobs.next_due(NOW + 12) is None
    assert jobs.owners() == set()


def test_triggers_for_a_track_in_line_become_one(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    assert jobs.enqueue([path, path], "watch", NOW, settle=10) == 1
    assert jobs.enqueue([path], "webhook", NOW + 8, settle=10) == 0
    assert claim(jobs, NOW + 17) == []  # the second prolonged the settling
    jobs.enqueue([path], "watch", NOW + 17, settle=0.5)
    job = jobs.claim(9, NOW + 18, owner=ME, lease=60)[0]
    assert job.reasons == ("watch", "webhook")
    assert sum(jobs.counts().values()) == 1


def test_a_trigger_during_the_work_makes_it_run_once_more(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    assert claim(jobs) == [path]
    jobs.enqueue([path], "webhook", NOW + 1)
    jobs.enqueue([path], "alert", NOW + 1)
    assert claim(jobs, NOW + 1) == []
    assert jobs.finish(held(jobs, path), ME, "done", NOW + 2) == 1
    (job,) = jobs.claim(9, NOW + 2, owner=ME, lease=60)
    assert job.reasons == ("webhook", "alert")
    jobs.finish([job.id], ME, "done", NOW + 3)
    assert claim(jobs, NOW + 1e6) == []
    assert state(jobs, path) == "done"


@pytest.mark.parametrize("end", ["give back", "retry", "park", "lease"])
def test_a_trigger_during_the_work_outlives_every_other_end(jobs: Jobs, end: str) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    claim(jobs)
    jobs.enqueue([path], "webhook", NOW + 1, settle=5)
    (job_id,) = held(jobs, path)
    if end == "give back":
        assert jobs.give_back([job_id], ME, NOW + 2) == 1
    elif end == "retry":
        assert jobs.retry([job_id], ME, NOW + 2, message="busy")
    elif end == "park":
        assert jobs.park([job_id], ME, NOW + 2, message="broken")
    (job,) = jobs.claim(9, NOW + 1000, owner=OTHER, lease=60)
    assert "webhook" in job.reasons
    jobs.finish([job.id], OTHER, "done", NOW + 1001)
    assert claim(jobs, NOW + 1e6) == []


def test_a_finished_track_can_be_asked_for_again(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    for number, end in enumerate(("done", "skipped", "review")):
        now = NOW + number
        assert claim(jobs, now) == [path]
        assert jobs.finish(held(jobs, path), ME, end, now, message="why") == 1  # type: ignore[arg-type]
        job = jobs.find(path)
        assert job is not None
        assert (job.state, job.message) == (end, "why")
        assert jobs.enqueue([path], "by hand", now) == 1
        job = jobs.find(path)
        assert job is not None
        assert (job.state, job.reasons, job.message) == ("ready", ("by hand",), None)


def test_retries_back_off_and_end_among_the_dead_letters(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    now, pauses = NOW, []
    while True:
        assert claim(jobs, now) == [path]
        assert jobs.retry(held(jobs, path), ME, now, message="disk full")
        due = jobs.next_due(now)
        if due is None:
            break
        assert claim(jobs, due - 0.1) == []
        pauses.append(due - now)
        now = due
    assert pauses[:4] == [30, 60, 120, 240]
    assert max(pauses) == pauses[-1] == 6 * 3600
    assert len(pauses) == MAX_ATTEMPTS - 1
    (letter,) = jobs.list_jobs("failed")
    assert letter.message == f"disk full (given up after {MAX_ATTEMPTS} attempts)"
    assert jobs.revive(now, [letter.id + 1]) == 0
    assert jobs.revive(now, [letter.id]) == 1
    (job,) = jobs.claim(9, now, owner=ME, lease=60)
    assert (job.path, job.attempts) == (path, 0)


def test_a_trigger_brings_a_retry_forward_but_does_not_clear_its_count(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    for _ in range(3):
        claim(jobs)
        jobs.retry(held(jobs, path), ME, NOW, message="busy")
        jobs.enqueue([path], "webhook", NOW)
    job = jobs.find(path)
    assert job is not None
    assert (job.state, job.attempts, job.due) == ("waiting", 3, NOW)


def test_what_is_parked_stays_until_it_is_revived(jobs: Jobs) -> None:
    paths = [MUSIC / f"{number}.mp3" for number in range(3)]
    jobs.enqueue(paths, "watch", NOW)
    claim(jobs)
    for number, path in enumerate(paths):
        jobs.park(held(jobs, path), ME, NOW + number, message="not audio")
    assert claim(jobs, NOW + 1e9) == []
    assert [job.path for job in jobs.list_jobs("failed", limit=2)] == [paths[2], paths[1]]
    assert [job.path for job in jobs.list_jobs("failed", offset=2)] == [paths[0]]
    assert jobs.revive(NOW + 5) == 3
    assert jobs.counts()["ready"] == 3


def test_a_lease_that_ends_comes_back_and_its_owner_is_refused(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    claim(jobs)
    assert jobs.extend(ME, NOW + 50, lease=60) == 1
    assert claim(jobs, NOW + 109, owner=OTHER) == []
    assert claim(jobs, NOW + 110, owner=OTHER) == [path]
    ids = held(jobs, path)
    assert jobs.start_writing(ids, ME, NOW + 111) == []
    assert jobs.finish(ids, ME, "done", NOW + 111) == 0
    assert jobs.give_back(ids, ME, NOW + 111) == 0
    assert jobs.retry(ids, ME, NOW + 111, message="x") == 0
    assert jobs.park(ids, ME, NOW + 111, message="x") == 0
    assert jobs.extend(ME, NOW + 111, lease=60) == 0
    assert jobs.finish(ids, OTHER, "done", NOW + 111) == 1


def test_what_dead_processes_held_returns_at_once_and_goes_to_the_end(jobs: Jobs) -> None:
    first, second = MUSIC / "a" / "1.mp3", MUSIC / "b" / "2.mp3"
    jobs.enqueue([first], "watch", NOW - 2)
    jobs.enqueue([second], "watch", NOW - 1)
    assert claim(jobs, limit=1) == [first]
    assert jobs.release(["another"], NOW) == 0
    assert jobs.release([ME], NOW + 1) == 1
    assert claim(jobs, NOW + 1, owner=OTHER) == [second, first]


def test_a_job_that_kills_its_process_is_found_and_parked(jobs: Jobs) -> None:
    good = [MUSIC / f"{number}.mp3" for number in range(3)]
    deadly = MUSIC / "deadly.mp3"
    jobs.enqueue([*good, deadly], "watch", NOW)
    deaths = 0
    while True:
        batch = jobs.claim(100, NOW + deaths, owner=ME, lease=60)
        if not batch:
            break
        if deadly in {job.path for job in batch}:
            deaths += 1
            assert len(batch) == (1 if deaths > ALONE_DEATHS else 4)
            jobs.release([ME], NOW + deaths)
        else:
            jobs.finish([job.id for job in batch], ME, "done", NOW + deaths)
    assert deaths == MAX_DEATHS
    assert [job.path for job in jobs.list_jobs("failed")] == [deadly]
    assert jobs.counts()["done"] == 3


def test_giving_back_keeps_the_place_in_line_and_counts_nothing(jobs: Jobs) -> None:
    first, second = MUSIC / "a" / "1.mp3", MUSIC / "b" / "2.mp3"
    jobs.enqueue([first], "watch", NOW - 2)
    jobs.enqueue([second], "watch", NOW - 1)
    for _ in range(MAX_ATTEMPTS + MAX_DEATHS):
        assert claim(jobs, limit=1) == [first]
        assert jobs.give_back(held(jobs, first), ME, NOW) == 1
    claim(jobs, limit=1)
    jobs.give_back(held(jobs, first), ME, NOW, delay=5)
    assert claim(jobs, NOW + 4) == [second]
    assert claim(jobs, NOW + 5) == [first]


def test_albums_are_handed_out_together_and_new_music_before_bulk(jobs: Jobs) -> None:
    albums = [[MUSIC / name / f"{track}.mp3" for track in range(5)] for name in "ab"]
    for track in range(5):  # they come in turn
        jobs.enqueue([albums[0][track]], "watch", NOW + track)
        jobs.enqueue([albums[1][track]], "watch", NOW + track + 0.5)
    bulk = [MUSIC / "old" / "1.mp3", MUSIC / "old" / "2.mp3"]
    jobs.enqueue(bulk, "by hand", NOW - 100, bulk=True)
    jobs.enqueue([bulk[1]], "watch", NOW + 50)  # a new trigger lifts it out of the bulk
    assert claim(jobs, NOW + 60, limit=4) == albums[0][:4]
    assert claim(jobs, NOW + 60, limit=4) == [albums[0][4], *albums[1][:3]]
    assert claim(jobs, NOW + 60, limit=2) == albums[1][3:]
    assert set(claim(jobs, NOW + 60)) == set(bulk)


def test_what_is_gone_is_dropped_with_all_below_it(jobs: Jobs) -> None:
    names = ("a/1.mp3", "a/b/2.mp3", "a", "a.mp3", "a0/3.mp3", "ab/4.mp3", "b/5.mp3")
    jobs.enqueue([MUSIC / name for name in names], "watch", NOW)
    assert jobs.forget(MUSIC / "a") == 3
    assert jobs.forget(MUSIC / "b" / "5.mp3") == 1
    claim(jobs)
    assert jobs.forget(MUSIC / "ab") == 0  # held
    left = {job.path.relative_to(MUSIC).as_posix() for job in jobs.list_jobs("running")}
    assert left == {"a.mp3", "a0/3.mp3", "ab/4.mp3"}


def test_old_finished_rows_are_pruned_and_no_others(jobs: Jobs) -> None:
    paths = [MUSIC / f"{number}.mp3" for number in range(4)]
    jobs.enqueue(paths, "watch", NOW)
    claim(jobs)
    jobs.finish(held(jobs, paths[0]), ME, "done", NOW)
    jobs.finish(held(jobs, paths[1]), ME, "review", NOW)
    jobs.park(held(jobs, paths[2]), ME, NOW, message="x")
    jobs.finish(held(jobs, paths[3]), ME, "skipped", NOW)
    assert jobs.prune(NOW) == 0
    assert jobs.prune(NOW + 50) == 1
    assert jobs.find(paths[0]) is None


@timed
@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_many_jobs_are_quick_to_enter_and_to_claim(jobs: Jobs, count: int) -> None:
    paths = [MUSIC / f"{number // 12:05}" / f"{number % 12:02}.flac" for number in range(count)]
    slowest = 0.0  # of the processor's time: the rest is the disk's, and others'
    for start in range(0, len(paths), 10_000):
        began = time.process_time()
        jobs.enqueue(paths[start : start + 10_000], "watch", NOW + start)
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 2
    began = time.process_time()
    assert jobs.enqueue(paths[:10_000], "webhook", NOW) == 0
    assert time.process_time() - began < 2
    seconds = []
    for number in range(50):
        began = time.process_time()
        assert len(claim(jobs, NOW + 1e6 + number, limit=12)) == 12
        seconds.append(time.process_time() - began)
    assert sorted(seconds)[25] < 0.010
    began = time.perf_counter()
    assert sum(jobs.counts().values()) == count
    assert time.perf_counter() - began < 0.1
    assert jobs.next_due(NOW) == NOW


def test_a_claim_uses_the_indexes(jobs: Jobs, tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "store.sqlite")
    for query, index in (
        ("WHERE state = 'ready' ORDER BY bulk, due LIMIT 9", "ix_jobs_line"),
        ("WHERE state = 'waiting' AND bulk IN (0, 1) AND due <= 5", "ix_jobs_line"),
        ("WHERE folder = x'00' AND state = 'ready' ORDER BY due, id LIMIT 9", "ix_jobs_folder"),
    ):
        plan = connection.execute(f"EXPLAIN QUERY PLAN SELECT id FROM jobs {query}").fetchall()
        text = " ".join(str(row) for row in plan)
        assert index in text, text
        assert "TEMP B-TREE" not in text, text
    connection.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_is_set_back_stops_nothing(
    jobs: Jobs, tmp_path: Path, restarted: bool
) -> None:
    waits, retried, again, lost = (MUSIC / name / "x.mp3" for name in "abcd")
    ahead = NOW + 86400  # by the wrong clock
    jobs.enqueue([retried, again], "watch", ahead)
    assert claim(jobs, ahead) == [retried, again]
    jobs.retry(held(jobs, retried), ME, ahead + 5, message="busy")
    jobs.enqueue([again], "webhook", ahead + 5, settle=10)
    jobs.enqueue([lost], "watch", ahead + 5)
    assert claim(jobs, ahead + 5, owner=OTHER) == [lost]
    jobs.enqueue([waits], "watch", ahead + 6, settle=10)
    with Store.open(tmp_path / "store.sqlite") as store:
        if restarted:
            jobs = Jobs(store)
        assert jobs.next_due(NOW) == NOW + 10
        assert claim(jobs, NOW + 9.9) == []
        assert claim(jobs, NOW + 10) == [waits]
        assert claim(jobs, NOW + 30) == [retried]
        assert claim(jobs, NOW + 60) == [lost]  # its owner died
        jobs.give_back(held(jobs, again), ME, NOW + 60)
        assert claim(jobs, NOW + 60) == [again]


def test_a_retry_is_not_hastened_by_a_clock_that_is_right(jobs: Jobs, tmp_path: Path) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    now = NOW
    while now - NOW < 12 * 3600:
        assert claim(jobs, now) == [path]
        jobs.retry(held(jobs, path), ME, now, message="busy")
        due = jobs.next_due(now)
        assert due is not None
        assert jobs.next_due(now - 30) == due  # set back by what does no harm
        with Store.open(tmp_path / "store.sqlite") as store:
            assert Jobs(store).next_due(now) == due
        now = due


def test_who_slept_and_lives_keeps_what_it_holds(jobs: Jobs) -> None:
    path = MUSIC / "x.mp3"
    jobs.enqueue([path], "watch", NOW)
    claim(jobs)
    late = NOW + 86400
    assert claim(jobs, late) == []
    assert jobs.next_due(late) == late + 60
    job = jobs.find(path)
    assert job is not None
    assert (job.state, job.deaths) == ("running", 0)
    assert claim(jobs, late + 59, owner=OTHER) == []
    assert claim(jobs, late + 60, owner=OTHER) == [path]


def test_what_came_of_tracks_is_told_for_many_at_once(jobs: Jobs) -> None:
    paths = [MUSIC / "a" / "1.mp3", MUSIC / "a" / "b" / "2.mp3", MUSIC / "ab" / "\udcff.mp3"]
    jobs.enqueue(paths, "watch", NOW)
    claim(jobs, limit=1)
    outcomes = jobs.outcomes([*paths, MUSIC / "other.mp3"])
    assert outcomes == {
        paths[0]: ("running", NOW),
        paths[1]: ("ready", NOW),
        paths[2]: ("ready", NOW),
    }
    assert jobs.paths_below(MUSIC / "a", None, 9) == list(map(os.fsencode, paths[:2]))
    assert jobs.paths_below(Path("/"), None, 2) == list(map(os.fsencode, paths[:2]))
    assert jobs.paths_below(Path("/"), os.fsencode(paths[1]), 2) == list(
        map(os.fsencode, paths[2:])
    )
    assert jobs.forget_files(paths) == 2  # the first is held
    assert list(jobs.outcomes(paths)) == paths[:1]


CLAIMER = """
import sys, time
from pathlib import Path
from reclass_plex.files import process_token
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store

with Store.open(Path(sys.argv[1])) as store:
    jobs = Jobs(store)
    print("ready", flush=True)
    sys.stdin.readline()
    first = True
    while batch := jobs.claim(7, time.time(), owner=process_token(), lease=60):
        print(*(job.id for job in batch), flush=first)
        if first:  # else one may have them all while SQLite lets the other sleep
            sys.stdin.readline()
            first = False
        assert jobs.finish([job.id for job in batch], process_token(), "done", time.time())
"""


def test_processes_that_claim_at_once_never_get_the_same(jobs: Jobs, tmp_path: Path) -> None:
    count = 1000
    jobs.enqueue([MUSIC / f"{number // 9}/{number}.mp3" for number in range(count)], "watch", NOW)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(tmp_path / "store.sqlite")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def go() -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    go()
    ids = [process.stdout.readline().split() for process in processes if process.stdout]
    go()
    for held, process in zip(ids, processes, strict=True):
        held.extend(process.communicate(timeout=60)[0].split())
    assert [process.returncode for process in processes] == [0, 0]
    assert all(ids)
    assert len(set(ids[0]) | set(ids[1])) == len(ids[0]) + len(ids[1]) == count


# Enters tracks and works on them, and says on standard output what has surely happened. Every
# line on standard input forks such a worker, so that many kills fit into a test.
WORKER = """
import os, sys, time
from pathlib import Path
from reclass_plex.files import process_token
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store

def work(first):
    say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
    with Store.open(Path(sys.argv[1])) as store:
        jobs, me = Jobs(store), process_token()
        jobs.release(jobs.owners() - {me}, time.time())
        for turn in range(first, first + 1000):
            paths = [Path(f"/m/{turn}/{track}") for track in range(3)]
            jobs.enqueue(paths, "watch", time.time())
            say("entered", turn)
            batch = jobs.claim(4, time.time(), owner=me, lease=3600)
            say("claimed", me, *(job.id for job in batch))
            ids = [job.id for job in batch]
            assert jobs.start_writing(ids, me, time.time()) == ids
            for job in batch[1:]:
                say("finishing", job.id)
                assert jobs.finish([job.id], me, "done", time.time()) == 1
                say("finished", job.id)
            if turn % 2:
                jobs.retry([batch[0].id], me, time.time() - 1e6, message="again")
            else:
                jobs.give_back([batch[0].id], me, time.time())

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        work(int(line))
        os._exit(0)
    os.write(1, f"pid {pid}\\n".encode())
    os.write(1, f"ended {os.waitpid(pid, 0)[1]}\\n".encode())
"""


def test_kill_9_loses_no_job_and_gives_none_out_twice(tmp_path: Path) -> None:
    database = tmp_path / "store.sqlite"
    Store.open(database).close()
    generator = random.Random(SEED)
    entered: set[int] = set()
    finishing: collections.Counter[int] = collections.Counter()
    finished: set[int] = set()
    killed = 0
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for trial in range(KILLS):
        print(trial * 1000, file=process.stdin, flush=True)
        pending: set[int] = set()
        kill_after = generator.randrange(1, 60)  # so many lines
        pid = None
        while (line := process.stdout.readline().split())[0] != "ended":
            word, values = line[0], line[1:]
            if word == "pid":
                pid = int(values[0])
            elif word == "entered":
                entered.add(int(values[0]))
            elif word == "finishing":
                finishing[int(values[0])] += 1
                pending = {int(values[0])}
            elif word == "finished":
                finished.add(int(values[0]))
                pending = set()
            kill_after -= 1
            if kill_after <= 0 and pid is not None:
                time.sleep(generator.uniform(0, 0.003))
                os.kill(pid, signal.SIGKILL)
                kill_after = 1 << 30
        killed += line[1] == str(int(signal.SIGKILL))
        for job_id in pending:  # whether that one took place is not known
            finishing[job_id] -= 1
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()

    assert killed == KILLS
    assert finished
    assert max(finishing.values()) == 1, "a finished job was handed out again"
    with Store.open(database) as store:
        jobs = Jobs(store)
        assert find_faults(store.path) == []
        for turn in entered:
            for track in range(3):
                assert jobs.find(Path(f"/m/{turn}/{track}")) is not None
        done = {job.id for job in jobs.list_jobs("done", limit=10**6)}
        assert finished <= done
        now = time.time()
        jobs.release(jobs.owners(), now)
        jobs.revive(now)  # those that the worker retried too often
        while batch := jobs.claim(100, now + 1e6, owner=ME, lease=60):
            jobs.finish([job.id for job in batch], ME, "done", now)
        counts = jobs.counts()
        assert counts["done"] == sum(counts.values()) >= 3 * len(entered)


def test_every_state_is_documented() -> None:
    assert jobs_module.__doc__ is not None
    assert all(f"`{name}`" in jobs_module.__doc__ for name in STATES)
