"""The last lines of the log, in memory, for the dashboard; without what looks like a secret.

Those of the worker come too (`service.worker_lines`), up to a second later.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

from reclass_plex.redaction import hide_secrets

KEPT = 1000  # lines
_LONGEST = 2000  # characters of one


@dataclass(frozen=True)
class Line:
    """One event: when (seconds since the epoch), how grave (logging's number), what."""

    number: int
    at: float
    level: int
    text: str


class RecentLines(logging.Handler):
    """Keeps what is logged. Put it on the root logger once."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._kept = threading.Lock()
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; never raises."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self.keep(record.created, record.levelno, text)

    def keep(self, at: float, level: int, text: str) -> None:
        """Keep a line, also one of another process."""
        hidden = hide_secrets(text[:_LONGEST])
        with self._kept:
            self._count += 1
            self._lines.append(Line(self._count, at, level, hidden))

    def newest(self, count: int, at_least: int = logging.NOTSET) -> list[Line]:
        """Return the newest lines of at least a level, newest first."""
        with self._kept:
            lines = list(self._lines)
        return [line for line in reversed(lines) if line.level >= at_least][:count]


recent_lines = RecentLines()
