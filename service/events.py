"""What happens, told to whoever listens: a hub of events for the dashboard.

`publish` never waits: a listener that is slow loses its oldest events, and is told that it did, so
that it can ask for the whole state again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAX_LISTENERS = 64  # pages that are open at once
MAX_WAITING = 256  # events that a listener may be behind
LOST = "lost"


@dataclass(frozen=True)
class Event:
    """Something that happened. `number` grows by one from event to event; `data` is for JSON.

    Kind `lost` says that events before it were dropped for this listener: ask for all anew.
    """

    number: int
    kind: str
    data: Mapping[str, Any]
    at: float  # seconds since the epoch


class TooManyListeners(Exception):
    """There are `MAX_LISTENERS` already; one has to go first."""


class Listener:
    """One who listens: `take` gives what came since."""

    def __init__(self, lock: threading.Lock) -> None:
        self._wake = threading.Condition(lock)
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._closed = False

    def take(self, timeout: float) -> list[Event]:
        """Return the events that came, after `timeout` seconds at the latest; [] if none did."""
        with self._wake:
            if not self._waiting and not self._closed:
                self._wake.wait(timeout)
            events = list(self._waiting)
            self._waiting.clear()
            lost, self._lost = self._lost, 0
        if lost:
            first = events[0]
            events.insert(0, Event(first.number, LOST, {"count": lost}, first.at))
        return events

    @property
    def closed(self) -> bool:
        """Say whether there will be no more."""
        return self._closed

    def _put(self, event: Event) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        self._wake.notify_all()

    def _close(self) -> None:
        self._closed = True
        self._wake.notify_all()


class Events:
    """The hub. Any thread may publish and listen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._number = 0
        self._closed = False

    @property
    def listeners(self) -> int:
        """Count those who listen: without any there is no need to look what could be told."""
        return len(self._listeners)

    def publish(self, kind: str, data: Mapping[str, Any] | None = None) -> None:
        """Tell everyone who listens. Never waits, and never fails."""
        with self._lock:
            self._number += 1
            event = Event(self._number, kind, data or {}, time.time())
            for listener in self._listeners:
                listener._put(event)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Hear all that is published from now on. Raises TooManyListeners."""
        listener = Listener(self._lock)
        with self._lock:
            if len(self._listeners) >= MAX_LISTENERS:
                raise TooManyListeners
            self._listeners.add(listener)
            if self._closed:
                listener._close()
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)

    def close(self) -> None:
        """Tell everyone that there will be no more, so that the server can end."""
        with self._lock:
            self._closed = True
            for listener in self._listeners:
                listener._close()
