"""What the worker's process tells the daemon: lines of JSON on a pipe, its report and its log.

The log goes to standard error as well, where systemd keeps it; these copies are for the dashboard.
So they may be lost: while the daemon does not read, none is waited for.
"""

from __future__ import annotations

import logging
import os
import select
import threading

from pydantic import BaseModel, ValidationError

from reclass_plex.redaction import hide_secrets

MAX_LINE = select.PIPE_BUF  # bytes that a pipe takes whole, or not at all
_LONGEST = 2000  # characters of an event; cut shorter if they take more bytes
_SHORT = 500


class Report(BaseModel):
    """What a worker says once its models are loaded.

    `models` is their fingerprint; `left_out` is what was asked for and cannot be used, and why.
    """

    models: str
    left_out: tuple[str, ...]


class LogLine(BaseModel):
    """One event of the worker's log: when (seconds since the epoch), how grave, what."""

    at: float
    level: int
    text: str


class ToDaemon(logging.Handler):
    """The worker's end of the pipe `descriptor`, which nobody else may write to."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._writing = threading.Lock()
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)

    def report(self, report: Report) -> None:
        """Say which models are loaded. Waits until it is taken; the daemon may be gone."""
        line = report.model_dump_json().encode() + b"\n"
        with self._writing:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BrokenPipeError:  # the daemon was killed; the end of our input says so too
                return

    def emit(self, record: logging.LogRecord) -> None:
        """Pass an event on, if there is room; never raises, never waits."""
        try:
            text = hide_secrets(self.format(record)[:_LONGEST])
            line = _line(record, text)
            if len(line) > MAX_LINE:
                line = _line(record, text[:_SHORT])
            with self._writing:
                if self._room.poll(0):  # then a line of MAX_LINE bytes does not wait
                    os.write(self._descriptor, line)
        except BrokenPipeError:
            return
        except Exception:
            self.handleError(record)


def _line(record: logging.LogRecord, text: str) -> bytes:
    plain = text.encode("utf-8", "backslashreplace").decode()
    line = LogLine(at=record.created, level=record.levelno, text=plain)
    return line.model_dump_json().encode() + b"\n"


class FromWorker:
    """The daemon's end: puts together what comes in pieces."""

    def __init__(self) -> None:
        self._begun = b""

    def take(self, piece: bytes) -> list[Report | LogLine]:
        """Return what is whole by now; lines that make no sense are left out."""
        *lines, self._begun = (self._begun + piece).split(b"\n")
        found = (_parse(line) for line in lines)
        return [one for one in found if one is not None]


def _parse(line: bytes) -> Report | LogLine | None:
    for kind in (Report, LogLine):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    return None
