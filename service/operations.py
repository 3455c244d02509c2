"""Long work that somebody asked for: it runs in a thread, and can be followed and stopped.

What changes files runs one after the other; what only looks runs beside it. An operation can be
asked about for an hour after its end. It is not kept over a restart: what it did is in the store.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from reclass_plex.errors import ConfigError, ReclassError, visible
from reclass_plex.remote import Failure, Operation
from service.events import Events

log = logging.getLogger(__name__)

KEEP_SECONDS = 3600.0  # after its end
MAX_KEPT = 200
MAX_RUNNING = 50  # in line or at work: somebody clicks too fast
MAX_FAILURES = 100  # named; the others are counted
TELL_SECONDS = 0.25  # between events about one operation
LOOKERS = 2  # at once
STOP_SECONDS = 4.5


class Progress:
    """What the work itself says of how far it is, and hears: whether to stop."""

    def __init__(self, operations: Operations, operation: Operation) -> None:
        self._operations = operations
        self.operation = operation
        self._asked = threading.Event()
        self._next_word = 0.0

    def should_stop(self) -> bool:
        """Say whether somebody asked to stop."""
        return self._asked.is_set()

    def begin(self, total: int | None, message: str | None = None) -> None:
        """Say how much there is to do."""
        self._change(total=total, message=message)

    def advance(self, count: int = 1) -> None:
        """Say that some of it is done."""
        self._change(done=self.operation.done + count)

    def fail(self, name: str, reason: str) -> None:
        """Say what could not be done."""
        known = self.operation.failures
        if len(known) < MAX_FAILURES:
            known = (*known, Failure(name=visible(name), reason=visible(reason)))
        self._change(failed=self.operation.failed + 1, failures=known)

    def stop(self) -> None:
        """Ask to stop; also what did not begin yet."""
        self._asked.set()

    def _change(self, **values: object) -> None:
        self.operation = self.operation.model_copy(update=values)
        now = time.monotonic()
        if "state" in values or now >= self._next_word:
            self._next_word = now + TELL_SECONDS
            self._operations.tell(self.operation)


Work = Callable[[Progress], "Mapping[str, Any] | None"]


class Operations:
    """All of them. Any thread may ask."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._known: dict[str, Progress] = {}
        self._queues: dict[bool, queue.SimpleQueue[tuple[Progress, Work] | None]] = {
            writes: queue.SimpleQueue() for writes in (True, False)
        }
        self._threads: list[threading.Thread] = []  # begun with the first operation
        self._stopping = False

    def start(self, kind: str, work: Work, *, writes: bool, run_id: int | None = None) -> Operation:
        """Begin work; what it returns is the operation's result. Raises ConfigError if too many.

        `writes`: it changes files, and waits for what else does.
        """
        now = time.time()
        operation = Operation(id=secrets.token_hex(8), kind=kind, started=now, run_id=run_id)
        progress = Progress(self, operation)
        with self._lock:
            self._forget(now)
            if self._stopping or self.unfinished >= MAX_RUNNING:
                raise ConfigError("too much is asked for at once: wait until some of it is done")
            self._known[operation.id] = progress
            self._queues[writes].put((progress, work))
            if not self._threads:
                self._start_threads()
        return progress.operation

    @property
    def unfinished(self) -> int:
        """Count those that are not done."""
        return sum(one.operation.finished is None for one in list(self._known.values()))

    def find(self, operation_id: str) -> Operation | None:
        """Return how far an operation is; None if it is not known (any more)."""
        progress = self._known.get(operation_id)
        return None if progress is None else progress.operation

    def all(self) -> list[Operation]:
        """Return the operations that are known, the newest first."""
        with self._lock:
            found = [progress.operation for progress in self._known.values()]
        return found[::-1]

    def ask_to_stop(self, operation_id: str) -> bool:
        """Ask an operation to stop after what it has in hand; say whether it is known."""
        progress = self._known.get(operation_id)
        if progress is not None:
            progress.stop()
        return progress is not None

    def wait(self, operation_id: str, timeout: float) -> Operation | None:
        """Return an operation once it has ended, or after `timeout` seconds as it is then."""
        until = time.monotonic() + timeout
        while True:
            operation = self.find(operation_id)
            if operation is None or operation.finished is not None or time.monotonic() >= until:
                return operation
            time.sleep(0.01)

    def tell(self, operation: Operation) -> None:
        """Tell those who listen how far it is."""
        self._events.publish("operation", operation.model_dump(mode="json"))

    def close(self) -> None:
        """Let all end after what they have in hand; returns when they have, or a server hangs."""
        with self._lock:
            self._stopping = True
            for progress in self._known.values():
                progress.stop()
        for writes in (True, *[False] * LOOKERS):
            self._queues[writes].put(None)
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _start_threads(self) -> None:
        for writes in (True, *[False] * LOOKERS):
            thread = threading.Thread(
                target=self._work, args=[self._queues[writes]], name="operation", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _work(self, line: queue.SimpleQueue[tuple[Progress, Work] | None]) -> None:
        while (one := line.get()) is not None:
            self._run(*one)

    def _run(self, progress: Progress, work: Work) -> None:
        end: dict[str, object]
        try:
            if progress.should_stop():
                end = {"state": "stopped"}
            else:
                progress._change(state="running")
                result = work(progress)
                stopped = progress.should_stop()
                end = {"state": "stopped" if stopped else "done", "result": result}
        except ReclassError as error:
            log.warning("%s: %s", progress.operation.kind, error)
            end = {"state": "failed", "message": str(error), "error": error.kind}
        except Exception:
            log.exception("%s failed", progress.operation.kind)
            end = {
                "state": "failed",
                "message": "an error of the daemon; its log says which",
                "error": "internal",
            }
        progress._change(**end, finished=time.time())

    def _forget(self, now: float) -> None:
        """Drop what ended long ago, or is too much."""
        ended = [one for one in self._known.values() if one.operation.finished is not None]
        many = len(self._known) - MAX_KEPT
        for number, one in enumerate(ended):
            if number < many or now - (one.operation.finished or now) > KEEP_SECONDS:
                del self._known[one.operation.id]
