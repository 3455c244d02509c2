"""The worker's process is kept as it should be: real processes that behave, die and hang."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from timing import timed

from reclass_plex.config import Config
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store
from service import supervisor as module
from service.recent_lines import recent_lines
from service.supervisor import Supervisor

WAIT_SECONDS = 20.0


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield Jobs(store)


@pytest.fixture
def make(tmp_path: Path, jobs: Jobs) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make_one(script: str, **worker: object) -> Supervisor:
        config = Config.model_validate({"worker": worker})
        # Each life leaves a line in `lives`: its order's device.
        path = tmp_path / f"worker{len(made)}.py"
        path.write_text(
            "import json, os, signal, sys, time\n"
            "order = json.loads(sys.stdin.readline())\n"
            f"with open({str(tmp_path / 'lives')!r}, 'a') as lives:\n"
            "    print(order['device'], file=lives)\n" + script
        )
        made.append(
            Supervisor(jobs, config, tmp_path / "store.sqlite", command=[sys.executable, str(path)])
        )
        return made[-1]

    yield make_one
    for one in made:
        one.stop()


def lives(tmp_path: Path) -> list[str]:
    try:
        return (tmp_path / "lives").read_text().split()
    except FileNotFoundError:
        return []


def step_until(one: Supervisor, condition: Callable[[], bool], *, wanted: bool = True) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        one.step(time.monotonic(), wanted=wanted)
        time.sleep(0.01)


def test_it_runs_only_while_there_is_work(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    one = make("sys.stdin.readline()")  # ends when it is woken
    one.step(time.monotonic(), wanted=False)
    assert not one.running
    step_until(one, lambda: len(lives(tmp_path)) == 1)
    assert one.running
    one.wake()
    step_until(one, lambda: not one.running, wanted=False)
    assert lives(tmp_path) == ["auto"]
    assert one.problem is None


def test_one_that_dies_is_started_again_and_its_tracks_come_back(
    make: Callable[..., Supervisor],
    jobs: Jobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.2)
    jobs.enqueue([tmp_path / "a.flac"], "test", time.time())
    jobs.claim(1, time.time(), owner="somebody", lease=1000)
    one = make("os.kill(os.getpid(), signal.SIGKILL)")
    one._pause = 0.2
    step_until(one, lambda: len(lives(tmp_path)) == 3)
    assert jobs.counts()["ready"] == 1
    job = jobs.find(tmp_path / "a.flac")
    assert job is not None
    assert job.deaths == 1


def test_pauses_between_deaths_grow(make: Callable[..., Supervisor], tmp_path: Path) -> None:
    one = make("sys.exit(3)")
    now = 1000.0
    starts: list[float] = []
    while len(starts) < 4:
        one.step(now, wanted=True)
        if one.running:
            starts.append(now)
            assert one._process is not None
            one._process.wait(WAIT_SECONDS)
        now += 0.5
    gaps = [starts[n + 1] - starts[n] for n in range(3)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 4


def test_one_that_cannot_be_started_is_tried_again(jobs: Jobs, tmp_path: Path) -> None:
    """A process that the system refuses (no memory) was the daemon's end."""
    program = tmp_path / "worker"
    one = Supervisor(jobs, Config(), tmp_path / "store.sqlite", command=[str(program)])
    one.step(1000.0, wanted=True)
    assert not one.running
    assert one.deaths == 1
    program.write_text("#!/bin/sh\nread order\nread line\n")
    program.chmod(0o755)
    one.step(1000.1, wanted=True)
    assert not one.running  # not at once
    one.step(1000.0 + module.LONGEST_PAUSE, wanted=True)
    assert one.running
    one.stop()


def test_it_is_ended_politely_when_not_allowed(
    make: Callable[..., Supervisor], tmp_path: Path
) -> None:
    mark = tmp_path / "ended"
    one = make(
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(mark)!r}, 'w'), sys.exit(0)))\n"
        "time.sleep(60)"
    )
    step_until(one, lambda: len(lives(tmp_path)) == 1)
    time.sleep(0.3)  # until it has its handler
    one.step(time.monotonic(), wanted=True, allowed=False)
    deadline = time.monotonic() + WAIT_SECONDS
    while one.running:
        assert time.monotonic() < deadline
        one.step(time.monotonic(), wanted=True, allowed=False)
        time.sleep(0.01)
    assert mark.exists()


@timed
def test_one_that_does_not_end_is_killed(
    make: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.5)
    one = make("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)")
    step_until(one, lambda: len(lives(tmp_path)) == 1)
    time.sleep(0.3)
    began = time.monotonic()
    one.stop()
    assert not one.running
    assert time.monotonic() - began < 5


def test_one_whose_leases_end_is_killed(
    make: Callable[..., Supervisor], jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.1)
    one = make("time.sleep(600)")
    step_until(one, lambda: len(lives(tmp_path)) == 1)
    first = one._process
    jobs.enqueue([tmp_path / "a.flac"], "test", time.time())
    jobs.claim(1, time.time(), owner="it", lease=0.1)
    step_until(one, lambda: one._process is not first)
    assert jobs.counts()["ready"] == 1


def test_a_gpu_that_fails_twice_gives_way_to_the_cpu_and_is_tried_again_later(
    make: Callable[..., Supervisor], tmp_path: Path
) -> None:
    one = make("sys.exit(os.EX_TEMPFAIL if order['device'] != 'cpu' else 0)")
    now = 1000.0

    def live_once(at: float) -> float:
        before = len(lives(tmp_path))
        while len(lives(tmp_path)) == before or one.running:
            one.step(at, wanted=len(lives(tmp_path)) == before)
            at += 0.05
            time.sleep(0.005)
        return at

    for _ in range(3):
        now = live_once(now)
    assert lives(tmp_path) == ["auto", "auto", "cpu"]
    now += module.CPU_SECONDS
    live_once(now)
    assert lives(tmp_path)[3] == "auto"


def test_without_leave_the_cpu_does_not_take_over(
    make: Callable[..., Supervisor], tmp_path: Path
) -> None:
    one = make("sys.exit(os.EX_TEMPFAIL)", cpu_fallback=False)
    one._gpu_failures = module.FRESH_CONTEXTS - 1
    step_until(one, lambda: one.problem is not None)
    assert "cpu_fallback" in str(one.problem)
    one.step(time.monotonic() + 60, wanted=True)
    assert not one.running


def test_what_was_wrong_is_over_once_a_worker_lives(
    make: Callable[..., Supervisor], tmp_path: Path
) -> None:
    """Not only when it ends, which may be weeks later: the user would be told of it until then."""
    one = make("time.sleep(60)")
    one.deaths, one.problem, one._pause = 3, "the GPU failed", 8.0
    began = time.monotonic()
    one.step(began, wanted=True)
    one.step(began + module.LOOK_SECONDS, wanted=True)
    assert (one.deaths, one.problem) == (3, "the GPU failed")
    one.step(began + module.STEADY_SECONDS, wanted=True)
    assert vars(one) == vars(one) | {"deaths": 0, "problem": None, "_pause": module.FIRST_PAUSE}
    assert one.running


def test_what_only_the_user_can_mend_waits_for_a_reload(
    make: Callable[..., Supervisor], tmp_path: Path
) -> None:
    one = make("sys.exit(os.EX_CONFIG)")
    step_until(one, lambda: one.problem is not None)
    one.step(time.monotonic() + 1e6, wanted=True)
    assert not one.running
    one.reload(Config())
    step_until(one, lambda: len(lives(tmp_path)) == 2)


def test_the_real_worker_says_what_is_wrong(tmp_path: Path, jobs: Jobs) -> None:
    """`python -m service --worker`, asked for a GPU that is not there."""
    import subprocess

    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    order = {
        "config": Config().model_dump(mode="json"),
        "store": str(tmp_path / "store.sqlite"),
        "device": "cuda",
    }
    done = subprocess.run(
        [sys.executable, "-m", "service", "--worker"],
        input=json.dumps(order) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert "worker.device is cuda" in done.stderr


def test_the_real_worker_ends_with_the_daemon(tmp_path: Path, jobs: Jobs) -> None:
    import subprocess

    order = {
        "config": Config().model_dump(mode="json"),
        "store": str(tmp_path / "store.sqlite"),
        "device": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "service", "--worker"],
        input=json.dumps(order) + "\n",  # and then standard input ends
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("told", [True, False], ids=["while it loads", "before its order"])
def test_the_real_worker_of_a_daemon_that_was_killed_ends_quietly(
    tmp_path: Path, jobs: Jobs, told: bool
) -> None:
    import subprocess

    order = {
        "config": Config().model_dump(mode="json"),
        "store": str(tmp_path / "store.sqlite"),
        "device": "cpu",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "service", "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.close()  # nobody hears its report
        _, said = worker.communicate(json.dumps(order).encode() + b"\n" if told else b"", 60)
    assert (worker.returncode, said) == (0, b"")


def test_the_real_worker_names_a_store_that_it_cannot_use(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "damaged.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    order = {"config": Config().model_dump(mode="json"), "store": str(path), "device": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-m", "service", "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stderr is not None
        worker.stdin.write(json.dumps(order) + "\n")
        worker.stdin.flush()  # and it stays open
        said = worker.stderr.read()
        worker.wait(60)
    assert worker.returncode == 1
    assert f"{path}: the store is damaged" in said
    assert "Traceback" not in said


def test_the_log_of_the_real_worker_is_shown_with_the_daemons(tmp_path: Path, jobs: Jobs) -> None:
    """Its last words, too: they say why it ended."""
    path = tmp_path / "damaged.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    one = Supervisor(jobs, Config(), path)
    began = time.time()
    step_until(one, lambda: one.deaths > 0)
    one.stop()
    ours = [line for line in recent_lines.newest(100) if line.at >= began]
    (line,) = [line for line in ours if f"{path}: the store is damaged" in line.text]
    assert line.level == logging.ERROR
    assert one.report is not None  # which came over the same pipe
