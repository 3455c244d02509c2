"""Runs commands in forks, and kills them anywhere in their course (see `faults.cli_child`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from daemon_tools import TOKEN, is_alive


class Commands:
    """Real commands in forks of one process that has imported all (`faults.cli_child`)."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self.log = config.with_name("commands.log")
        script = Path(__file__).with_name("cli_child.py")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RECLASS_PLEX")}
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self.log)],
            env=clean | {"RECLASS_PLEX_TOKEN": TOKEN},
            cwd=config.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: dict[str, float] = {}  # how long each command takes

    def run(self, *arguments: str, kill_after: float | None = None) -> int:
        """Run a command; return its exit status, or minus the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps([*arguments, "--config", str(self._config)])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        began = time.monotonic()
        pid = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            # Its parent reaps it: where it has ended already, its number is that of nobody yet.
            child = psutil.Process(pid) if psutil.pid_exists(pid) else None
            if child is not None and is_alive(child):
                child.send_signal(signal.SIGKILL)
        status = int(self._process.stdout.readline())
        if kill_after is None or status == 0:
            self.seconds[arguments[0]] = time.monotonic() - began
        return -(status & 0x7F) if status & 0x7F else status >> 8

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
