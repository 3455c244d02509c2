"""Listening to a live stream on request, for the dashboard: one at a time, in a process of its own.

The process is the command `listen`, whose lines are kept (the last `KEPT`) and told to the hub of
events as kind "radio". It ends when it is stopped, when another stream is asked for, with the
daemon, and when nobody has asked for `UNWATCHED_SECONDS` how it is. It is told the address on its
standard input: in a list of processes anybody could read the password in it. From here only http,
https and input devices are listened to: a page must not open files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from reclass_plex.errors import ConfigError, StreamError
from reclass_plex.http_stream import shown
from reclass_plex.remote import RadioLine, RadioStatus
from reclass_plex.stream_source import read_source
from service.events import Events

KEPT = 120  # lines, two minutes
UNWATCHED_SECONDS = 600.0
STOP_SECONDS = 3.0  # for the process to end by itself
MAX_ADDRESS = 2000  # characters
_LOOK_SECONDS = 5.0
_COMMAND = (sys.executable, "-m", "reclass_plex", "listen", "--json", "--from-input")


class Radio:
    """The stream that is listened to, if any. Any thread may call."""

    def __init__(
        self, events: Events, config_file: Path | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._events = events
        self._config_file = config_file
        self._clock = clock
        self._lock = threading.Lock()
        self._changing = threading.Lock()  # one start or stop at a time
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[RadioLine] = deque(maxlen=KEPT)
        self._name: str | None = None
        self._error: str | None = None
        self._asked = 0.0

    def start(self, address: str, window: float = 15.0) -> RadioStatus:
        """Listen to an address, instead of what is listened to. Raises StreamError, ConfigError."""
        if not 1 <= window <= 3600:
            raise ConfigError(f"window: has value {window}; it must be 1 to 3600 seconds")
        if len(address) > MAX_ADDRESS or not address.isprintable():
            raise StreamError("this is no address of a stream")
        source = read_source(address)
        if source.kind not in {"http", "device"}:
            raise StreamError("only http, https and input devices can be listened to from here")
        command = [*_COMMAND, "--window", str(window)]
        if self._config_file is not None:
            command += ["--config", str(self._config_file)]
        with self._changing:
            self._stop()
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            assert process.stdin is not None  # noqa: S101 - it was asked for
            with suppress(OSError), process.stdin:  # one that died at once is seen below
                process.stdin.write(f"{address}\n")
            with self._lock:
                self._process = process
                self._lines.clear()
                self._name = shown(address) if source.kind == "http" else address
                self._error = None
                self._asked = self._clock()
        for work in (self._follow, self._mind):
            threading.Thread(target=work, args=(process,), name="radio", daemon=True).start()
        return self.status()

    def stop(self) -> None:
        """End it; returns when it has ended."""
        with self._changing:
            if self._stop():
                self._tell_end()

    def _stop(self) -> bool:
        """End it, and say whether there was anything."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            _end(process)
        return process is not None

    def _tell_end(self, error: str | None = None) -> None:
        self._events.publish("radio", {"ended": True, "error": error})

    def status(self) -> RadioStatus:
        """Return what is listened to, and what was heard last."""
        with self._lock:
            self._asked = self._clock()
            return self._status()

    def _status(self) -> RadioStatus:
        running = self._process is not None and self._process.poll() is None
        lost = bool(self._lines) and self._lines[-1].notice is not None
        state: Any = "failed" if self._error else "off"
        if running:
            state = "lost" if lost else "playing" if self._lines else "starting"
        return RadioStatus(
            state=state, source=self._name, error=self._error, lines=tuple(self._lines)
        )

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Take what the process says, until it ends."""
        assert process.stdout is not None  # noqa: S101 - it was asked for
        assert process.stderr is not None  # noqa: S101 - it was asked for
        with process.stdout, process.stderr:
            for text in process.stdout:
                with suppress(ValueError):
                    line = RadioLine.model_validate(json.loads(text))
                    with self._lock:
                        if self._process is not process:
                            continue
                        self._lines.append(line)
                    self._events.publish("radio", line.model_dump(mode="json"))
            said = process.stderr.read(4000).strip()
        status = process.wait()
        error = said.removeprefix("error: ") if status else None
        with self._lock:
            if self._process is not process:  # it was stopped, which is told there
                return
            self._process, self._error = None, error
        self._tell_end(error)

    def _mind(self, process: subprocess.Popen[str]) -> None:
        """End the process when nobody asks any more."""
        while process.poll() is None:
            with self._lock:
                mine = self._process is process
                forgotten = self._clock() - self._asked > UNWATCHED_SECONDS
            if mine and forgotten and not self._events.listeners:
                with self._changing:
                    if self._process is process:  # and not another stream by now
                        self._stop()
                        self._tell_end()
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
