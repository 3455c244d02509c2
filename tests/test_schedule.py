"""The schedule with the real scheduler: intervals, failures, a set clock, a quick end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from timing import timed

from reclass_plex.config import ScheduleOptions
from reclass_plex.errors import StoreError
from service.schedule import CATCH_UP_SECONDS, RETRY_SECONDS, Name, Schedule, Task

DAY = 86400.0
USUAL = ScheduleOptions()  # 24 hours, 15 minutes, 04:00


def often(seconds: float) -> ScheduleOptions:
    """Options with an interval that the configuration would not allow."""
    return ScheduleOptions.model_construct(
        reconcile_hours=seconds / 3600, plex_minutes=15.0, maintenance="04:00", keep_undo_days=None
    )


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def nothing_runs() -> bool:
    names = {f"schedule {name}" for name in ("reconcile", "plex", "maintenance")}
    return not any(thread.name in names for thread in threading.enumerate())


class Runs:
    """Tasks that count how often they ran."""

    def __init__(self, failing: Exception | None = None, work: Task | None = None) -> None:
        self.count = dict.fromkeys(("reconcile", "plex", "maintenance"), 0)
        self.threads: set[str] = set()
        self._failing = failing
        self._work = work

    def tasks(self) -> dict[Name, Task]:
        return {
            "reconcile": lambda stopping: self._ran("reconcile", stopping),
            "plex": lambda stopping: self._ran("plex", stopping),
            "maintenance": lambda stopping: self._ran("maintenance", stopping),
        }

    def _ran(self, name: Name, stopping: threading.Event) -> None:
        self.count[name] += 1
        self.threads.add(threading.current_thread().name)
        if name == "reconcile" and self._failing is not None:
            raise self._failing
        if name == "reconcile" and self._work is not None:
            self._work(stopping)


@pytest.fixture
def make() -> Iterator[Callable[..., Schedule]]:
    made: list[Schedule] = []
    before = set(threading.enumerate())

    def make(options: ScheduleOptions, runs: Runs, *, catch_up: bool = False) -> Schedule:
        schedule = Schedule(options, runs.tasks(), catch_up=catch_up)
        made.append(schedule)
        schedule.start()
        return schedule

    yield make
    for schedule in made:
        schedule.stop()
    assert wait_for(lambda: set(threading.enumerate()) <= before), "a thread leaked"


def test_at_the_start_folders_and_plex_are_looked_at_and_then_at_their_intervals(
    make: Callable[..., Schedule],
) -> None:
    runs = Runs()
    began = time.time()
    schedule = make(USUAL, runs)
    assert wait_for(lambda: runs.count == {"reconcile": 1, "plex": 1, "maintenance": 0})
    due = schedule.next_runs()
    assert due["reconcile"] - began == pytest.approx(DAY, abs=5)
    assert due["plex"] - began == pytest.approx(15 * 60, abs=5)
    assert time.strftime("%H:%M", time.localtime(due["maintenance"])) == "04:00"
    assert began < due["maintenance"] <= began + DAY + 3600
    assert runs.threads == {"schedule reconcile", "schedule plex"}


def test_it_goes_on_and_on(make: Callable[..., Schedule]) -> None:
    runs = Runs()
    make(often(0.1), runs)
    assert wait_for(lambda: runs.count["reconcile"] >= 5)
    assert runs.count["plex"] == 1


def test_maintenance_that_was_missed_is_made_up_for(make: Callable[..., Schedule]) -> None:
    began = time.time()
    schedule = make(USUAL, Runs(), catch_up=True)
    assert schedule.next_runs()["maintenance"] <= began + CATCH_UP_SECONDS + 5


def test_a_failure_is_told_with_its_cause_and_tried_again_soon(
    make: Callable[..., Schedule], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runs = Runs(failing=StoreError("the store: disk full: free some space"))
    schedule = make(USUAL, runs)
    soon = time.time() + RETRY_SECONDS + 5
    assert wait_for(lambda: schedule.next_runs()["reconcile"] < soon)
    assert "reconcile failed: the store: disk full: free some space" in caplog.messages
    assert not any(record.exc_info for record in caplog.records)  # it is no bug of ours
    assert runs.count["plex"] == 1


def test_a_bug_in_a_task_ends_neither_it_nor_the_others(
    make: Callable[..., Schedule], caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs(failing=ZeroDivisionError("here"))
    make(often(0.05), runs)
    assert wait_for(lambda: runs.count["reconcile"] >= 3)
    records = [record for record in caplog.records if record.exc_info]
    assert records
    assert records[0].getMessage() == "reconcile failed"
    assert "ZeroDivisionError: here" in caplog.text


def test_one_task_runs_once_at_a_time(make: Callable[..., Schedule]) -> None:
    at_once: list[int] = []
    inside: list[None] = []

    def work(stopping: threading.Event) -> None:
        inside.append(None)
        at_once.append(len(inside))
        time.sleep(0.2)
        inside.pop()

    runs = Runs(work=work)
    make(often(0.05), runs)
    assert wait_for(lambda: len(at_once) >= 3)
    assert set(at_once) == {1}


def test_what_is_asked_for_while_it_runs_runs_once_more(make: Callable[..., Schedule]) -> None:
    go_on = threading.Event()
    runs = Runs(work=lambda stopping: go_on.wait(5))
    schedule = make(USUAL, runs)
    assert wait_for(lambda: runs.count["reconcile"] == 1)
    schedule.run_soon("reconcile")
    schedule.run_soon("reconcile")
    go_on.set()
    assert wait_for(lambda: runs.count["reconcile"] == 2)
    schedule.run_soon("maintenance")
    assert wait_for(lambda: runs.count["maintenance"] == 1)
    assert runs.count["reconcile"] == 2
    assert schedule.next_runs()["maintenance"] > time.time()


@timed
def test_the_end_comes_at_once_while_a_task_heeds_it(make: Callable[..., Schedule]) -> None:
    runs = Runs(work=lambda stopping: stopping.wait(60))
    schedule = make(USUAL, runs)
    assert wait_for(lambda: runs.count["reconcile"] == 1)
    began = time.monotonic()
    schedule.stop()
    assert time.monotonic() - began < 1
    schedule.stop()  # twice is no error
    schedule.run_soon("plex")  # nor is this


@timed
def test_the_end_does_not_wait_for_a_task_that_hangs(
    make: Callable[..., Schedule], caplog: pytest.LogCaptureFixture
) -> None:
    hanging = threading.Event()
    runs = Runs(work=lambda stopping: hanging.wait(60))
    schedule = make(USUAL, runs)
    assert wait_for(lambda: runs.count["reconcile"] == 1)
    began = time.monotonic()
    schedule.stop(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert "schedule reconcile does not end and is left behind" in caplog.messages
    hanging.set()


def test_a_schedule_that_never_began_can_be_stopped() -> None:
    Schedule(USUAL, Runs().tasks()).stop()


def test_new_options_move_only_what_they_change(make: Callable[..., Schedule]) -> None:
    runs = Runs()
    schedule = make(USUAL, runs)
    assert wait_for(lambda: runs.count["plex"] == runs.count["reconcile"] == 1)
    before = schedule.next_runs()
    schedule.reload(USUAL.model_copy(update={"plex_minutes": 1.0, "maintenance": "05:30"}))
    after = schedule.next_runs()
    assert after["reconcile"] == before["reconcile"]
    assert after["plex"] - time.time() == pytest.approx(60, abs=5)
    assert time.strftime("%H:%M", time.localtime(after["maintenance"])) == "05:30"
    schedule.reload(often(0.05))
    assert wait_for(lambda: runs.count["reconcile"] >= 3)


def test_a_clock_that_is_set_back_delays_nothing(
    make: Callable[..., Schedule], caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs()
    schedule = make(USUAL, runs)
    assert wait_for(lambda: runs.count["plex"] == runs.count["reconcile"] == 1)
    assert wait_for(nothing_runs)  # what has counted may not have ended
    before = schedule.next_runs()
    now = time.time()
    schedule.step(now)
    assert schedule.next_runs() == before
    # Set back by ten minutes: what is due in 15 min by the old clock would come in 25.
    schedule.step(now - 600)
    after = schedule.next_runs()
    assert after["plex"] == pytest.approx(before["plex"] - 600, abs=5)
    assert after["reconcile"] == pytest.approx(before["reconcile"] - 600, abs=5)
    assert any("the clock was set back: plex is due at" in message for message in caplog.messages)
    schedule.step(now - 30 * DAY)  # due in the past, by the clock of this test: they run now
    assert wait_for(lambda: runs.count == {"reconcile": 2, "plex": 2, "maintenance": 1})


def test_a_clock_that_begins_in_1970_and_jumps_makes_up_for_it_once() -> None:
    from datetime import datetime, timezone

    from service.schedule import _Trigger

    epoch = datetime.fromtimestamp(100, timezone.utc)
    now = datetime.now(timezone.utc)
    assert _Trigger("plex", USUAL).get_next_fire_time(epoch, now) > now


def test_the_scheduler_itself_is_quiet(
    make: Callable[..., Schedule], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    runs = Runs()
    schedule = make(often(0.05), runs)
    assert wait_for(lambda: runs.count["reconcile"] >= 2)
    schedule.stop()
    assert [
        record
        for record in caplog.records
        if record.name.startswith("apscheduler") and record.levelno < logging.WARNING
    ] == []


def test_time_zones_that_only_the_c_library_knows_are_no_hindrance(
    make: Callable[..., Schedule], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TZ", "XYZ-3:30")
    time.tzset()
    try:
        schedule = make(USUAL, Runs())
        assert (schedule.next_runs()["maintenance"] + 3.5 * 3600) % DAY == 4 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
