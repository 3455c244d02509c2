"""What the tests and the benchmark of the whole daemon share: real processes, and real music.

A `Site` is a folder with a configuration, a store and music; `running` starts reclass-plexd on it
and sees to it that none of its processes is left. `cut_track` makes many pieces of music of one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import psutil
import yaml

from reclass_plex.jobs import HELD, IN_LINE
from reclass_plex.remote import DaemonClient, Status, find_daemon

DEMO = Path(__file__).parent.parent / "demo"
MUXERS = {
    ".mp3": "mp3",
    ".m4a": "ipod",
    ".opus": "ogg",
    ".ogg": "ogg",
    ".flac": "flac",
    ".wma": "asf",
    ".wv": "wv",
}
PATIENCE = 90.0  # seconds: the machine may be slow, and shared
TOKEN = "stand-in-token"
NOTHING_MORE = 2.5  # seconds without work after which there is none: the daemon looks every 2


@dataclass(frozen=True)
class Site:
    """Where one daemon lives. `options` are its configuration's groups."""

    root: Path
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def music(self) -> Path:
        return self.root / "music"

    @property
    def store(self) -> Path:
        return self.root / "state" / "store.sqlite"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def configure(self, **groups: dict[str, Any]) -> None:
        """Write the configuration; `groups` are merged over `options`."""
        self.music.mkdir(parents=True, exist_ok=True)
        config: dict[str, dict[str, Any]] = {
            "watch": {"folders": [str(self.music)], "settle_seconds": 0.3},
            "web": {"port": 0},
            "store": {"path": str(self.store)},
        }
        for more in (self.options, groups):
            for name, values in more.items():
                config[name] = config.get(name, {}) | values
        copy = self.config.with_suffix(".new")
        copy.write_text(yaml.safe_dump(config))
        copy.replace(self.config)


class Daemon:
    """A running reclass-plexd."""

    def __init__(self, site: Site, environment: dict[str, str] | None = None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RECLASS_PLEX")}
        with site.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "--config", str(site.config)],
                env=clean | {"RECLASS_PLEX_TOKEN": TOKEN} | (environment or {}),
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=site.root,
            )
        self.attach(site, process)

    def attach(self, site: Site, process: subprocess.Popen[bytes]) -> None:
        """Take charge of a daemon that was started."""
        self.site = site
        self.process = process
        self._psutil = psutil.Process(process.pid)
        self._seen: set[psutil.Process] = {self._psutil}

    def find_client(self) -> DaemonClient | None:
        """Return what talks to it, once it answers."""
        found = find_daemon(self.site.store)
        return found if found and found.process_id() == self.process.pid else None

    def wait_ready(self) -> DaemonClient:
        found: list[DaemonClient] = []

        def ready() -> bool:
            assert self.process.poll() is None, self.site.log_text()[-2000:]
            client = self.find_client()
            if client is not None:
                found.append(client)
            return client is not None

        wait_until(ready, "the daemon is ready")
        return found[0]

    def status(self) -> Status:
        return self.wait_ready().status()

    def children(self) -> list[psutil.Process]:
        """Return the processes that it started, and those that they did."""
        try:
            found: list[psutil.Process] = self._psutil.children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._seen.update(found)
        return found

    def worker(self) -> psutil.Process | None:
        for child in self.children():
            try:
                if "--worker" in child.cmdline():
                    return child
            except psutil.Error:
                continue
        return None

    def survivors(self) -> list[psutil.Process]:
        """Return those of its processes that live, itself included, wherever they hang now."""
        for one in list(self._seen):  # an orphan's children are still its own
            try:
                self._seen.update(one.children(recursive=True))
            except psutil.Error:
                continue
        return [one for one in self._seen if is_alive(one)]

    def kill(self) -> None:
        """Kill the main process, and nothing else."""
        self.children()
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = PATIENCE) -> float:
        """Ask it to stop; return how long that took."""
        self.children()
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(seconds)
        return time.monotonic() - began

    def end(self) -> None:
        """Make sure that nothing of it runs any more."""
        self.children()
        for one in self.survivors():
            try:
                one.kill()
            except psutil.Error:
                continue
        self.process.wait()


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


@contextmanager
def running(site: Site, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """Run a daemon; whatever happens, none of its processes stays."""
    daemon = Daemon(site, environment)
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.end()


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = PATIENCE, pause: float = 0.05
) -> float:
    """Wait; return for how long. Fails if it does not come to that."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)
    return time.monotonic() - began


def command(site: Site, *arguments: str, status: int | None = 0) -> list[dict[str, Any]]:
    """Run `reclass-plex ... --json`; return its lines. `status` is its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "reclass_plex", *arguments, "--config", str(site.config), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd=site.root,
    )
    assert status is None or done.returncode == status, (done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def say(site: Site, *arguments: str, status: int = 0) -> str:
    """Run a command that has no --json; return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "reclass_plex", *arguments, "--config", str(site.config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def in_line(status: Status) -> int:
    return sum(status.jobs[state] for state in (*IN_LINE, *HELD))


def hang_up(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGHUP)


# Music


def cut_track(source: Path, target: Path, first: int, seconds: float) -> Path:
    """Write `seconds` of the packets of `source` from packet `first` on, repeated at its end.

    Another `first` is another piece of audio, of the same kind of music.
    """
    with av.open(str(source)) as reader:
        stream = reader.streams.audio[0]
        packets = [packet for packet in reader.demux(stream) if packet.size]
        with av.open(str(target), "w", format=MUXERS[target.suffix]) as writer:
            copy = writer.add_stream_from_template(stream)
            at, index = 0, first
            while at * float(stream.time_base or 1) < seconds:
                packet = packets[index % len(packets)]
                packet.stream = copy
                packet.pts = packet.dts = at
                packet.time_base = stream.time_base
                at += packet.duration or 1
                writer.mux(packet)
                index += 1
    return target


def set_tags(path: Path, **tags: str) -> None:
    """Give a file tags (title, album), so that it is another file with the same audio."""
    from mutagen import File

    file = File(path, easy=True)
    assert file is not None
    if file.tags is None:
        file.add_tags()
    for name, value in tags.items():
        file[name] = [value]
    file.save()


def leftovers(folders: Collection[Path]) -> list[Path]:
    from reclass_plex.files import is_leftover

    return [path for folder in folders for path in folder.rglob("*") if is_leftover(path.name)]
