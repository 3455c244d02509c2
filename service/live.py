"""What the daemon does at this moment: tracks in hand, how many a minute, and what just changed.

The main process looks into the queue, where every process keeps what it does, for rows that
changed since its last look. That costs an index lookup, and tells all that happened together.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from reclass_plex.errors import printable
from reclass_plex.jobs import ENDED, HELD, IN_LINE, Jobs, State
from service.events import Events

LOOK_SECONDS = 0.5  # between looks while somebody listens,
IDLE_SECONDS = 5.0  # and while nobody does
OVERLAP_SECONDS = 3.0  # rows may come to light later than the time that they bear
WINDOW_SECONDS = 300.0  # of the rate
SHORTEST_SECONDS = 10.0  # of work, before it tells a rate
MAX_ROWS = 500  # of a look; the newest
MAX_TOLD = 50  # rows in an event
IN_HAND = 5  # paths that are said


class Live:
    """The counters. `look` is called by one thread, the rest by any."""

    def __init__(self, jobs: Jobs, events: Events) -> None:
        self._jobs = jobs
        self._events = events
        self._next_look = 0.0
        self._since = time.time()
        self._seen: dict[tuple[int, State], float] = {}
        # By the steady clock, as that of the day may be set: when, and how many tracks ended.
        self._ended: deque[tuple[float, int]] = deque()
        self._looked: float | None = None
        self._busy_since: float | None = None

    def look(self, clock: float, now: float) -> None:
        """Take note of what changed, if it is time to, and tell it. `clock` is a steady one."""
        if clock < self._next_look:
            return
        self._next_look = clock + (LOOK_SECONDS if self._events.listeners else IDLE_SECONDS)
        since = min(self._since, now) - OVERLAP_SECONDS
        rows = [
            row
            for row in self._jobs.changed_since(since, MAX_ROWS)
            if self._seen.get((row.id, row.state)) != row.changed
        ]
        self._seen = {key: at for key, at in self._seen.items() if at >= since}
        self._seen |= {(row.id, row.state): row.changed for row in rows}
        first, self._since = self._since, now
        looked, self._looked = self._looked, clock
        ended = sum(row.state in ENDED and row.changed > first - OVERLAP_SECONDS for row in rows)
        if ended:
            if self._busy_since is None:
                self._busy_since = clock if looked is None else looked
            self._ended.append((clock, ended))
        while self._ended and self._ended[0][0] < clock - WINDOW_SECONDS:
            self._ended.popleft()
        if not self._ended:
            self._busy_since = None
        if rows and self._events.listeners:
            self._events.publish(
                "jobs",
                {
                    "counts": self._jobs.counts(),
                    "changed": [
                        {
                            "path": printable(row.path),
                            "state": row.state,
                            "message": row.message,
                            "changed": row.changed,
                        }
                        for row in rows[:MAX_TOLD]
                    ],
                    "more": max(0, len(rows) - MAX_TOLD),
                },
            )

    def per_minute(self, clock: float) -> float | None:
        """Return how many tracks ended a minute of late; None if that cannot be told yet."""
        ended, since = list(self._ended), self._busy_since
        if not ended or since is None:
            return None
        seconds = min(clock - since, WINDOW_SECONDS)
        if seconds < SHORTEST_SECONDS:
            return None
        return 60.0 * sum(count for at, count in ended if at >= clock - WINDOW_SECONDS) / seconds

    def seconds_left(self, clock: float, counts: dict[State, int]) -> float | None:
        """Return how long what is in line takes at that rate; None if that cannot be told."""
        rate = self.per_minute(clock)
        left = sum(counts[state] for state in (*IN_LINE, *HELD))
        return None if not rate else 60.0 * left / rate

    def in_hand(self) -> tuple[Path, ...]:
        """Return some of the tracks that are worked on, those that are written first."""
        return tuple(self._jobs.in_hand(IN_HAND))
