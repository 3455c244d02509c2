"""Keeps the worker's process: starts it when there is work, ends it politely, starts it again.

A worker that dies is started again after a pause that doubles from a second to five minutes, and
what it held goes back in line at once. One whose GPU failed is started anew, which gives it a fresh
context; if that does not help, with the CPU where the user allows it, and the GPU is tried again
after an hour.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from reclass_plex.config import Config
from reclass_plex.jobs import Jobs
from service.recent_lines import recent_lines
from service.work import Order
from service.worker_lines import FromWorker, LogLine, Report

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "service", "--worker")
STOP_SECONDS = 8.0  # for the track in hand; then it is killed, which is safe as well
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
STEADY_SECONDS = 60.0  # a worker that lived so long was well: the next pause is the first again
FRESH_CONTEXTS = 2  # processes in which the GPU may fail before the CPU takes over
CPU_SECONDS = 3600.0  # before the GPU is tried again
GPU_PAUSE = 300.0  # between attempts where the CPU may not take over
_PIPE_BYTES = 1 << 16  # all that a pipe holds
LOOK_SECONDS = 30.0  # between looks whether it still makes progress

Device = Literal["auto", "cpu", "cuda"]


class Supervisor:
    """The worker's process, or none. One thread calls `step` often, with a steady clock's time."""

    def __init__(
        self, jobs: Jobs, config: Config, store: Path, *, command: Sequence[str] = COMMAND
    ) -> None:
        self._jobs = jobs
        self._config = config
        self._store = store
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._kill_at: float | None = None  # it was asked to stop, and has until then
        self._not_before = 0.0
        self._pause = FIRST_PAUSE
        self._gpu_failures = 0
        self._cpu_until = 0.0
        self._next_look = 0.0
        self._unreleased = False  # jobs of a process that ended are still held
        self._lines = FromWorker()
        self.deaths = 0  # of workers in a row, none of which lived long
        self.report: Report | None = None  # of the last one, if it is with the same configuration
        self.problem: str | None = None  # why there is no worker although there is work

    @property
    def running(self) -> bool:
        """Say whether there is a process: models are loaded, or are about to be."""
        return self._process is not None

    def reload(self, config: Config) -> None:
        """Use another configuration, or other models, from the next process on.

        The one there is ends.
        """
        self._config = config
        self.report = None
        self._not_before = 0.0
        self._gpu_failures = 0
        self.problem = None
        self._ask_to_stop(time.monotonic())

    def wake(self) -> None:
        """Tell the process that there is work."""
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()
            except OSError:
                return  # it is ending; `step` sees that

    def step(self, now: float, *, wanted: bool, allowed: bool = True) -> None:
        """Bring the process in line: start one if `wanted`, end it if not `allowed`.

        Raises StoreError while what a dead process held cannot be given back; call it again.
        """
        if self._unreleased:
            self._release()
        if self._process is not None:
            status = self._process.poll()
            self._hear()  # also the last words of one that ended
            if status is not None:
                self._ended(status, now)
                self._release()
            elif not allowed:
                self._ask_to_stop(now)
                if self._kill_at is not None and now >= self._kill_at:
                    log.warning("the worker does not end and is killed; its tracks go back in line")
                    self._process.kill()
            elif now >= self._next_look:
                self._look_after(now)
        if self._process is None and wanted and allowed and now >= self._not_before:
            self._start(now)

    def stop(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """End the process; returns when it has, after `STOP_SECONDS` at the latest."""
        while self._process is not None:
            self.step(time.monotonic(), wanted=False, allowed=False)
            if self._process is not None:
                sleep(0.02)

    def _start(self, now: float) -> None:
        device: Device = "cpu" if now < self._cpu_until else self._config.worker.device
        order = Order(
            config=self._config,
            store=self._store,
            device=device,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        try:
            self._process = subprocess.Popen(
                list(self._command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:  # no memory, too many processes: that passes
            log.error("the worker cannot be started: %s", error.strerror or error)
            self._retry_later(now)
            return
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        os.set_blocking(self._process.stdout.fileno(), False)
        self._lines = FromWorker()
        self.report = None
        self._started = now
        self._next_look = now + LOOK_SECONDS
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        try:
            self._process.stdin.write(order.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return  # it died at once; `step` sees that

    def _hear(self) -> None:
        """Take the process' report, and its log for the dashboard. Waits for nothing."""
        assert self._process is not None  # noqa: S101 - see step
        assert self._process.stdout is not None  # noqa: S101 - see _start
        with contextlib.suppress(BlockingIOError):
            for said in self._lines.take(os.read(self._process.stdout.fileno(), _PIPE_BYTES)):
                if isinstance(said, LogLine):
                    recent_lines.keep(said.at, said.level, said.text)
                elif self._kill_at is None and self.report is None:  # ending, it has none to give
                    self.report = said

    def _ask_to_stop(self, now: float) -> None:
        if self._process is not None and self._kill_at is None:
            self._process.terminate()
            self.wake()  # so that it looks
            self._kill_at = now + STOP_SECONDS

    def _look_after(self, now: float) -> None:
        """Kill a worker whose leases ended: it gives no sign of life any more.

        One that has lived for long is well, which may be so for weeks until it ends.
        """
        self._next_look = now + LOOK_SECONDS
        if now - self._started >= STEADY_SECONDS:
            self._was_well()
        if self._process is not None and self._jobs.overdue(time.time()):
            log.error("the worker makes no progress and is killed; its tracks go back in line")
            self._process.kill()

    def _was_well(self) -> None:
        """What was wrong before is over."""
        self._pause = FIRST_PAUSE
        self.deaths = 0
        self.problem = None

    def _ended(self, status: int, now: float) -> None:
        process, self._process = self._process, None
        asked, self._kill_at = self._kill_at is not None, None
        for pipe in (process.stdin, process.stdout) if process is not None else ():
            if pipe is not None:
                with contextlib.suppress(OSError):  # there may be something left to tell it
                    pipe.close()
        self._unreleased = True
        if now - self._started >= STEADY_SECONDS or status == 0 or asked:
            self._was_well()
        if status == 0 or asked:
            self._gpu_failures = 0
        elif status == os.EX_TEMPFAIL:
            self._gpu_failed(now)
        elif status == os.EX_CONFIG:
            self.problem = "the worker cannot start: see the log, mend it, then reload"
            self._not_before = float("inf")
        else:
            cause = f"signal {-status}" if status < 0 else f"status {status}"
            log.error("the worker died (%s); a new one starts in %.0f s", cause, self._pause)
            self._retry_later(now)

    def _retry_later(self, now: float) -> None:
        self.deaths += 1
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _release(self) -> None:
        """Give back what the process held that ended: there is one, so whoever holds is dead."""
        self._jobs.release(self._jobs.owners(), time.time())
        self._unreleased = False

    def _gpu_failed(self, now: float) -> None:
        self._gpu_failures += 1
        if self._gpu_failures < FRESH_CONTEXTS:
            self._not_before = now + FIRST_PAUSE
        elif self._config.worker.cpu_fallback:
            log.warning("the GPU failed again: the CPU takes over for an hour")
            self._cpu_until = now + CPU_SECONDS
            self._gpu_failures = 0
        else:
            self.problem = "the GPU failed, and worker.cpu_fallback is off"
            log.warning("%s: trying again every %.0f minutes", self.problem, GPU_PAUSE / 60)
            self._not_before = now + GPU_PAUSE
