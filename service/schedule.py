"""What the daemon does by the clock: compare folders with the store, ask Plex, care for the store,
and look whether the index of similar music lacks too much.

Intervals are reckoned from one start to the next. What is running when its time comes again is
not run twice, what was missed (a machine that slept) is made up for once, and what failed is tried
again soon. No state is kept: all but the care for the store also run when the daemon starts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Literal

from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from reclass_plex.config import ScheduleOptions
from reclass_plex.errors import ReclassError
from reclass_plex.hours import next_time

log = logging.getLogger(__name__)

Name = Literal["reconcile", "plex", "maintenance", "similar"]
Task = Callable[[threading.Event], object]  # the event says that it shall end soon

RETRY_SECONDS = 600.0  # after a failure, if that is earlier than the next time
CATCH_UP_SECONDS = 600.0  # after the start, when the last nights' maintenance was missed
SIMILAR_SECONDS = 600.0  # between looks whether the index of similar music lacks too much
CLOCK_SECONDS = 30.0  # between looks whether the clock was set
STOP_SECONDS = 3.0


class Schedule:
    """Runs tasks by the clock, each in a thread of its own. `start`, `reload` and `stop` it."""

    def __init__(
        self,
        options: ScheduleOptions,
        tasks: Mapping[Name, Task],
        *,
        catch_up: bool = False,
    ) -> None:
        """`catch_up`: maintenance is overdue (the machine is off at night), so do it soon."""
        self._options = options
        self._tasks = tasks
        self._catch_up = catch_up
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._running: set[Name] = set()
        self._again: set[Name] = set()  # asked for while they run
        self._threads = _Threads()
        self._scheduler = BackgroundScheduler(
            timezone=timezone.utc,  # the triggers know local time
            executors={"default": self._threads},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        self._clock = threading.Thread(target=self._mind_clock, name="schedule clock", daemon=True)
        logging.getLogger("apscheduler").setLevel(logging.WARNING)

    def start(self) -> None:
        """Begin."""
        now = time.time()
        for name in self._tasks:
            first = _next_run(name, self._options, now)
            if name != "maintenance":
                first = now
            elif self._catch_up:
                first = min(first, now + CATCH_UP_SECONDS)
            self._scheduler.add_job(
                self._run,
                _Trigger(name, self._options),
                args=(name,),
                id=name,
                name=name,
                next_run_time=_instant(first),
            )
        self._scheduler.start()
        self._clock.start()

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End, with what is running; what hangs longer than `timeout` seconds is left behind."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._scheduler.running:
            self._clock.join()
            self._scheduler.shutdown(wait=False)
        for thread in self._threads.join(timeout):
            log.warning("%s does not end and is left behind", thread)

    def reload(self, options: ScheduleOptions) -> None:
        """Take new options. Times that did not change stay."""
        former, self._options = self._options, options
        now = time.time()
        for name in self._tasks:
            if _next_run(name, options, now) != _next_run(name, former, now):
                self._scheduler.reschedule_job(name, trigger=_Trigger(name, options))

    def run_soon(self, name: Name, delay: float = 0.0) -> None:
        """Run a task in `delay` seconds, or once more after it if it runs now; then as usual.

        Nothing happens after `stop`.
        """
        with self._lock:
            if name in self._running:
                self._again.add(name)
                return
        with contextlib.suppress(JobLookupError):
            self._scheduler.modify_job(name, next_run_time=_instant(time.time() + delay))

    def next_runs(self) -> dict[Name, float]:
        """Return when each task runs next, in seconds since the epoch."""
        return {job.id: job.next_run_time.timestamp() for job in self._scheduler.get_jobs()}

    def step(self, now: float) -> None:
        """Look whether the clock was set: nothing waits longer than it would from `now` on."""
        for job in self._scheduler.get_jobs():
            due = job.trigger.next_run(now)
            if job.next_run_time > due:
                log.warning(
                    "the clock was set back: %s is due at %s", job.id, f"{due.astimezone()}"
                )
                self._scheduler.modify_job(job.id, next_run_time=due)
        self._scheduler.wakeup()  # it may have been set forward, too

    def _mind_clock(self) -> None:
        while not self._stopping.wait(CLOCK_SECONDS):
            self.step(time.time())

    def _run(self, name: Name) -> None:
        with self._lock:
            self._running.add(name)
        done = again = True
        while again and not self._stopping.is_set():
            done = self._attempt(name)
            with self._lock:
                again = name in self._again
                self._again.discard(name)
                if not again:
                    self._running.discard(name)
        if not done and self.next_runs().get(name, 0.0) > time.time() + RETRY_SECONDS:
            log.info("%s is tried again in %.0f minutes", name, RETRY_SECONDS / 60)
            self.run_soon(name, RETRY_SECONDS)

    def _attempt(self, name: Name) -> bool:
        """Run a task; return whether it did not fail."""
        try:
            self._tasks[name](self._stopping)
        except ReclassError as error:
            log.error("%s failed: %s", name, error)
            return False
        except Exception:
            log.exception("%s failed", name)
            return False
        return True


def _next_run(name: Name, options: ScheduleOptions, now: float) -> float:
    """Return when a task is due that is not overdue, in seconds since the epoch."""
    if name == "reconcile":
        return now + options.reconcile_hours * 3600
    if name == "plex":
        return now + options.plex_minutes * 60
    if name == "similar":
        return now + SIMILAR_SECONDS
    return next_time(now, options.maintenance)


class _Trigger(BaseTrigger):  # type: ignore[misc]
    """Tells APScheduler when a task is due.

    Its own triggers list what was missed, one by one: where the clock begins in 1970, as it does
    without a battery, millions.
    """

    def __init__(self, name: Name, options: ScheduleOptions) -> None:
        self._name: Name = name
        self._options = options

    def next_run(self, now: float) -> datetime:
        """Return the next time after `now`."""
        return _instant(_next_run(self._name, self._options, now))

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        """Return the same, for APScheduler."""
        return self.next_run(now.timestamp())


class _Threads(BaseExecutor):  # type: ignore[misc]
    """Runs each task in a thread of its own that does not keep the process from ending.

    (A thread of APScheduler's pool would: one that hangs in a dead mount, for ever.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: list[threading.Thread] = []

    def join(self, timeout: float) -> list[str]:
        """Wait for what runs; return the names of the threads that did not end."""
        until = time.monotonic() + timeout
        for thread in self._alive:
            thread.join(max(0.0, until - time.monotonic()))
        return [thread.name for thread in self._alive if thread.is_alive()]

    def _do_submit_job(self, job: Job, run_times: list[datetime]) -> None:
        def run() -> None:
            self._run_job_success(
                job.id, run_job(job, job._jobstore_alias, run_times, self._logger.name)
            )

        self._alive = [thread for thread in self._alive if thread.is_alive()]
        thread = threading.Thread(target=run, name=f"schedule {job.id}", daemon=True)
        self._alive.append(thread)
        thread.start()


def _instant(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, timezone.utc)
