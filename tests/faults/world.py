"""One world to be hurt: daemon, Plex stand-in, disks, music, and the ledger of what was done to it.

`calm` heals everything, waits until nothing is left to be done, and lets the checker judge.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from daemon_tools import TOKEN, Daemon, Site
from plex_server import PlexStandIn

from faults.checker import Checker, Violation
from faults.commands import Commands
from faults.disks import Disks
from faults.ledger import Ledger, PlexRecord
from faults.music import Maker
from faults.shim import Shim

SEEN_AS = "/data/music"  # the folder's name on the server
CALM_SECONDS = 240.0  # to wait for all to be done
STOP_SECONDS = 30.0  # for a daemon that is asked to end
AHEAD_SECONDS = 6 * 3600 + 600  # beyond the longest pause before a retry


class World:
    """All that runs. Close it after use."""

    def __init__(self, root: Path, seed: int, say: Callable[[str], None]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        root = root.resolve()
        self.root, self.random, self.say = root, random.Random(seed), say
        self.disks = Disks(root, megabytes=512) if Disks.possible() else None
        try:
            (root / "shim").mkdir()
            self.shim: Shim | None = Shim(root / "shim")
        except FileNotFoundError:
            self.shim = None
        self.site = Site(root)
        self.site.music.mkdir(exist_ok=True)
        self.inbox, self.tree = root / "disk" / "inbox", root / "disk" / "tree"
        for folder in (self.inbox, self.tree):
            folder.mkdir(parents=True)
        self.maker = Maker(root / "made", seed)
        self.ledger = Ledger()
        self.plex = PlexStandIn(token=TOKEN)
        self.library = self.plex.add_library(location=SEEN_AS, root=self.site.music)
        self.checker = Checker(
            self.ledger, self.site.music, self.site.store, trees=(self.inbox, self.tree)
        )
        self.did: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.daemon: Daemon | None = None
        self.away = False  # the music's mount
        self.gone: list[Daemon] = []
        self.restarts = True  # whether a calm moment begins with a new daemon
        self.configure()
        self.commands = Commands(self.site.config)

    def configure(self) -> None:
        self.site.configure(
            watch={"settle_seconds": 0.3},
            worker={"decoders": 1, "idle_minutes": 0.5},
            policy={"min_confidence": 0.0},
            plex={
                "url": self.plex.url,
                "timeout_seconds": 5,
                "path_map": [{"plex": SEEN_AS, "local": str(self.site.music)}],
            },
        )

    def note(self, kind: str, text: str = "") -> None:
        """Count something that happened, and log it."""
        self.did[kind] += 1
        self.say(f"{kind} {text}".rstrip())

    # The daemon

    def start(self) -> Daemon:
        """Start a daemon where none lives; it need not be ready."""
        if self.daemon is None or self.daemon.process.poll() is not None:
            if self.daemon is not None:
                self.gone.append(self.daemon)
            self.daemon = Daemon(self.site, self.shim.environment if self.shim else None)
            self.did["daemons started"] += 1
        return self.daemon

    @property
    def alive(self) -> bool:
        return self.daemon is not None and self.daemon.process.poll() is None

    def stop(self) -> None:
        """Ask the daemon to end, and see that it does."""
        if self.daemon is None:
            return
        if self.alive:
            try:
                self.daemon.terminate(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.violations.append(Violation("stop", f"not within {STOP_SECONDS:.0f} s"))
        self.daemon.end()

    def scan(self) -> None:
        """Let Plex look for files; new items may have genres of the agent."""
        if self.away or self.plex.mode != "ok":
            return
        with self.plex.lock:
            before = set(self.plex.items)
            try:
                self.plex.scan(self.library)
            except OSError:
                return
            for key in sorted(set(self.plex.items) - before):
                item = self.plex.items[key]
                if self.random.random() < 0.5:
                    item.agent_genres = ("Pop/Rock",)
                    item.genres[:] = item.agent_genres
                self.ledger.plex[key] = PlexRecord(tuple(item.genres))

    # Calm

    def heal(self) -> None:
        """End every fault."""
        if self.shim is not None:
            self.shim.heal()
            self.shim.set_clock(0)
        if self.disks is not None:
            self.disks.empty()
            if self.away:
                self.disks.bring_back()
                self.away = False
            self.disks.set_readonly(False)
        self.plex.mode = "ok"

    def calm(self, seconds: float = CALM_SECONDS) -> list[Violation]:
        """Heal, wait until all is done, and judge; return what is wrong, which is kept as well."""
        self.heal()
        began = time.monotonic()
        if self.restarts:
            self.stop()
        self.commands.run("undo", "--path", str(self.tree), "--yes")
        self.start()
        assert self.daemon is not None
        self.daemon.wait_ready()
        self.scan()
        self.api("POST", "/resume")
        found = [] if self._rest(began + seconds) else [Violation("not calm", self.open_work())]
        self._keep(found)
        if self.shim is not None:
            self.shim.set_clock(0)
        found += self.judge()
        self.say(f"calm after {time.monotonic() - began:.1f} s: {len(found)} violations")
        return found

    def judge(self) -> list[Violation]:
        with self.plex.lock:
            self.checker.items = dict(self.plex.items)
            found = self.checker.check()
            found += [Violation("Plex protocol", error) for error in self.plex.errors]
            self.plex.errors.clear()
        self._keep(found)
        return found

    def undo_all(self) -> list[Violation]:
        """Take everything back by the command; judge, and once more after a daemon ran again."""
        self.heal()
        self.stop()
        status = self.commands.run("undo", "--since", "2000-01-01", "--yes", "--json")
        found = self._judge_undone("the command")
        self.say(f"undo of everything: exit status {status}, {len(found)} violations")
        self.start().wait_ready()
        self._rest(time.monotonic() + CALM_SECONDS)
        if self.shim is not None:
            self.shim.set_clock(0)
        found += self._judge_undone("a daemon that ran again")
        self.stop()
        return found

    def _judge_undone(self, after: str) -> list[Violation]:
        with self.plex.lock:
            self.checker.items = dict(self.plex.items)
            found = [Violation(one.rule, f"{one.what} (after {after})")
                     for one in self.checker.check_undone()]  # fmt: skip
        self._keep(found)
        return found

    def _keep(self, found: list[Violation]) -> None:
        self.violations += found
        for one in found:
            self.say(f"VIOLATION {one}")

    def _rest(self, until: float) -> bool:
        """Wait until nothing is in line; what waits for a time gets it by a clock set ahead."""
        revived = rested = 0
        while time.monotonic() < until:
            if not self.alive:
                self.start().wait_ready()
            waiting, moving, failed = self.counts()
            if failed and revived < 3 and not moving:
                revived += 1
                self.api("POST", "/jobs/revive", {})
                rested = 0
            elif moving:
                rested = 0
            elif waiting and self.shim is not None and self.shim.clock == 0:
                self.note("clock set ahead", "for what waits")
                self.shim.set_clock(AHEAD_SECONDS)
                rested = 0
            elif not waiting or self.shim is None:  # without a clock to set it may take hours
                rested += 1
                if rested >= 4:
                    return True
            time.sleep(0.25)
        return False

    def counts(self) -> tuple[int, int, int]:
        """Count what waits for a time, what is being done, and what failed."""
        waiting = self.ask("SELECT count(*) FROM jobs WHERE state = 'waiting'")
        # What was wanted of a file that is gone waits for two weeks, in case its disk is away.
        there = [os.fsencode(record.path) for record in self.ledger.present()]
        marks = ",".join("?" * len(there))
        waiting += self.ask(
            f"SELECT count(*) FROM plex_wanted WHERE state = 'waiting' AND path IN ({marks})",
            *there,
        )
        moving = self.ask("SELECT count(*) FROM jobs WHERE state IN ('ready','running','writing')")
        moving += self.ask("SELECT count(*) FROM journal WHERE state = 'pending'")
        moving += self.ask("SELECT count(*) FROM decisions WHERE open <> '[]' AND problem IS NULL")
        moving += self.unseen()
        return waiting, moving, self.ask("SELECT count(*) FROM jobs WHERE state = 'failed'")

    def unseen(self) -> int:
        """Count the files that nobody has heard of yet."""
        known = self.ask("SELECT count(*) FROM tracks")
        jobs = self.ask("SELECT count(*) FROM jobs")
        return max(0, sum(1 for _ in self.ledger.present()) - max(known, jobs))

    def open_work(self) -> str:
        return f"waiting, in hand, failed: {self.counts()}; {self.unseen()} files not seen"

    def ask(self, query: str, *values: object) -> int:
        """Return a number from the database, without the product; 0 if there is none."""
        try:
            connection = sqlite3.connect(f"file:{self.site.store}?mode=ro", uri=True, timeout=30)
            with closing(connection):
                row = connection.execute(query, values).fetchone()
                return int(row[0]) if row else 0
        except sqlite3.Error:
            return 0

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the daemon as a program does; None if it does not answer."""
        from reclass_plex.remote import DaemonClient

        client = self.daemon.find_client() if self.daemon else None
        if not isinstance(client, DaemonClient):
            return None
        import requests

        try:
            answer = requests.request(
                method,
                f"{client.url}/api/v1{path}",
                json=body,
                headers={"Authorization": f"Bearer {client._token}"},
                timeout=20,
            )
        except requests.RequestException:
            return None
        self.did[f"API {answer.status_code}"] += 1
        return answer.json() if answer.content and answer.ok else None

    def close(self) -> None:
        """End all processes, unmount all."""
        with ExitStack() as stack:
            if self.disks is not None:
                stack.callback(self.disks.close)
            if self.shim is not None:
                stack.callback(self.shim.close)
            stack.callback(self.heal)
            stack.callback(self.plex.close)
            for one in (*self.gone, *([self.daemon] if self.daemon else [])):
                stack.callback(one.end)
            stack.callback(self.commands.close)
