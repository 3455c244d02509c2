"""What goes wrong: processes are killed, disks fail, Plex misbehaves, the clock is set, and so on.

Each takes a World. Kills are over at once; conditions begin, and end some seconds later.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil
from daemon_tools import Daemon, is_alive
from plex_server import Mode

from faults.people import People
from faults.world import World

HOUR = 3600
CLOCKS = (-30 * 24 * HOUR, -2 * HOUR, -90, 90, HOUR, 40 * 24 * HOUR)
PLEX_MODES: tuple[Mode, ...] = (
    *("slow", "failing", "broken", "refusing", "garbage", "cut", "lost", "down"),
)


class Killer:
    """SIGKILL, at whatever instant it is called."""

    def __init__(self, world: World, people: People) -> None:
        self._world = world
        self._people = people
        self.kills = 0

    def daemon(self) -> None:
        """Kill the main process; its worker is an orphan for a moment."""
        daemon = self._world.daemon
        if daemon is not None and self._world.alive:
            daemon.kill()
            self._count("daemon")

    def group(self) -> None:
        """Kill all of its processes at once, as the kernel does when memory is short."""
        daemon = self._world.daemon
        if daemon is None or not self._world.alive:
            return
        daemon.children()
        for one in daemon.survivors():
            with contextlib.suppress(psutil.Error):
                one.send_signal(signal.SIGKILL)
        daemon.process.wait()
        self._count("group")

    def worker(self) -> None:
        daemon = self._world.daemon
        worker = daemon.worker() if daemon is not None and self._world.alive else None
        self._strike(worker, "worker")

    def decoder(self) -> None:
        """Kill a process that decodes, if there is one."""
        daemon = self._world.daemon
        worker = daemon.worker() if daemon is not None and self._world.alive else None
        with contextlib.suppress(psutil.Error):
            for one in worker.children() if worker is not None else ():
                if any("spawn_main" in word for word in one.cmdline()):
                    self._strike(one, "decoder")
                    return

    def command(self) -> None:
        """Begin a command and kill it anywhere in its course."""
        world, people = self._world, self._people
        name = world.random.choice(("tag", "tag", "tag", "undo", "undo", "organize", "review"))
        after = world.random.uniform(0, 1.1 * world.commands.seconds.get(name, 1.0))
        status = 0
        if name == "tag":
            status = people.tag(kill_after=after)
        elif name == "organize":
            how = world.random.choice(("--copy", "--move", "--hardlink"))
            status = people.command(
                *("organize", str(world.inbox), "--into", str(world.tree), how, "--yes"),
                kill_after=after,
            )
        elif record := people.pick():
            if name == "review":
                world.ledger.decided(record)
                more = (str(record.path), "--correct", "Jazz")
            else:
                path = world.random.choice((record.path.parent, world.site.music, world.tree))
                more = ("--path", str(path), "--yes")
            status = people.command(name, *more, kill_after=after)
        self.kills += status == -signal.SIGKILL

    def _strike(self, process: psutil.Process | None, name: str) -> None:
        if process is not None and is_alive(process):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
                self._count(name)

    def _count(self, name: str) -> None:
        self.kills += 1
        self._world.note(f"kill {name}")

    def acts(self) -> dict[Callable[[], None], float]:
        """Return ways to kill, and how often each."""
        return {
            self.command: 12,
            self.daemon: 1.5,
            self.group: 1,
            self.worker: 1,
            self.decoder: 0.5,
        }


@dataclass(frozen=True)
class Condition:
    """Something that is wrong for a while. `begin` returns False where it cannot be begun."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]


def conditions(world: World) -> list[Condition]:
    """Return all that can be brought about on this machine."""
    well = partial(_set_mode, world, "ok")
    found = [Condition(f"Plex {one}", partial(_set_mode, world, one), well) for one in PLEX_MODES]
    disks, shim = world.disks, world.shim
    if disks is not None:
        found += [
            Condition("music disk full", partial(disks.fill, "music"), disks.empty),
            Condition("store disk full", partial(disks.fill, "state"), disks.empty),
            Condition(
                "music disk read-only",
                partial(disks.set_readonly, True),
                partial(disks.set_readonly, False),
            ),
            Condition("music mount gone", partial(_take_away, world), partial(_bring_back, world)),
        ]
    if shim is not None:
        music, store = world.site.music, world.site.store
        for operations in ("read", "write sync", "rename", "open", "read write sync rename open"):
            for place, permille in ((music, 100), (music, 900), (store, 20)):
                what = "store" if place == store else "music"
                name = f"EIO {what} {operations.replace(' ', '+')} {permille / 10:g} %"
                found.append(
                    Condition(name, partial(shim.fail, operations, place, permille), shim.heal)
                )
        full = partial(shim.fail, "write", music, 500, errno.ENOSPC)
        found.append(Condition("no space, by the shim", full, shim.heal))
        readonly = partial(shim.fail, "write rename", music, 1000, errno.EROFS)
        found.append(Condition("read-only, by the shim", readonly, shim.heal))
        for seconds in CLOCKS:
            found.append(
                Condition(
                    f"clock {seconds / HOUR:+.3g} h",
                    partial(shim.set_clock, seconds),
                    partial(shim.set_clock, 0),
                )
            )
    return found


def two_daemons(world: World) -> bool:
    """Start a second daemon: it must refuse, and say why, and the first must live on."""
    if not world.alive or world.daemon is None or world.daemon.find_client() is None:
        return True
    first = world.daemon.process
    size = world.site.log.stat().st_size
    second = Daemon(world.site)
    try:
        status = second.process.wait(60)
    except subprocess.TimeoutExpired:
        status = 0
    second.end()
    with world.site.log.open("rb") as log:
        log.seek(size)
        said = b"runs already" in log.read()
    world.note("second daemon", f"exit status {status}")
    return status != 0 and said and first.poll() is None


def _set_mode(world: World, mode: Mode) -> None:
    world.plex.delay = 2.0
    world.plex.mode = mode


def _take_away(world: World) -> None:
    assert world.disks is not None
    world.disks.take_away()
    world.away = True


def _bring_back(world: World) -> None:
    assert world.disks is not None
    if world.away:
        world.disks.bring_back()
        world.away = False
