"""The soak: hours of arrivals, kills, a server that flaps, and people at the dashboard.

In the first part the main process is killed as well; then it lives to the end, so that its memory
can be seen over time, while its workers, its decoders and the commands go on being killed.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import requests

from faults.checker import Violation
from faults.injuries import PLEX_MODES, Killer
from faults.people import People
from faults.session import Outcome
from faults.world import World

USERS = 3  # people at the dashboard
KEPT = 400  # files in place
SAMPLE_SECONDS = 30.0
DEADLY_SHARE = 0.3  # of the time, at its begin, in which the main process is killed
TREND_SECONDS = 40 * 60.0  # at the end, of which the slope is told
ARRIVAL_SECONDS = 6.0  # between albums
PAGES = ("/", "/library", "/review", "/statistics", "/log", "/now/live", "/settings")


@dataclass(frozen=True)
class Sample:
    """One process at one time: seconds since the start, MB, open files, threads."""

    at: float
    name: str
    pid: int
    megabytes: float
    files: int
    threads: int


@dataclass
class User:
    """Somebody at the dashboard: signs in, looks at pages, corrects, takes back."""

    world: World
    people: People
    lock: threading.Lock
    number: int
    did: Counter[str] = field(default_factory=Counter)

    def run(self, stopping: threading.Event) -> None:
        """Do so until asked to end; whoever is thrown out signs in again."""
        session = requests.Session()
        while not stopping.wait(0.5 + self.number / 3):
            daemon = self.world.daemon
            try:
                client = daemon.find_client() if daemon else None
                if client is None:
                    continue
                if not self._look(session, client.url, "/"):
                    self._sign_in(session, client.url)
                    continue
                self._act(session, client.url)
            except (requests.RequestException, OSError, ValueError):
                self.did["no answer"] += 1

    def _sign_in(self, session: requests.Session, url: str) -> None:
        from reclass_plex.store import Store
        from reclass_plex.web_keys import WebKeys

        with Store.open(self.world.site.store) as store:  # as `reclass-plex dashboard` does
            key = WebKeys(store).make_link(time.time())
        answer = session.get(f"{url}/login/{key}", timeout=20, allow_redirects=False)
        self.did[f"sign-in {answer.status_code}"] += 1

    def _look(self, session: requests.Session, url: str, path: str) -> str:
        answer = session.get(
            url + path, headers={"Accept": "text/html"}, timeout=20, allow_redirects=False
        )
        self.did[f"page {answer.status_code}"] += 1
        return answer.text if answer.status_code == 200 else ""

    def _act(self, session: requests.Session, url: str) -> None:
        choose = self.world.random.random
        page = self._look(session, url, PAGES[int(choose() * len(PAGES))])
        with self.lock:
            record = self.people.pick()
        track = record and self.world.ask(
            "SELECT id FROM tracks WHERE path = ?", str(record.path).encode()
        )
        if not track or record is None:
            return
        page = self._look(session, url, f"/tracks/{track}") or page
        self._look(session, url, f"/tracks/{track}/similar")
        if choose() < 0.2:
            self._look(session, url, f"/tracks/{track}/spectrogram.png")
        token = re.search(r'name="csrf_token" value="([^"]+)"', page)
        what = choose()
        if token is None or what > 0.3:
            return
        form: dict[str, Any] = {"csrf_token": token[1]}
        if what < 0.15:
            with self.lock:
                self.world.ledger.decided(record)
            form |= {"kind": "correct", "genre": "Soul/R&B"}
            path = f"/tracks/{track}/decide"
        else:
            path = f"/tracks/{track}/undo"
        answer = session.post(url + path, form, timeout=30, allow_redirects=False)
        self.did[f"{path.rpartition('/')[2]} {answer.status_code}"] += 1


@dataclass
class Soak:
    """Its course, and what was counted."""

    world: World
    seconds: float
    samples: list[Sample] = field(default_factory=list)
    users: list[User] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    counted: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """Run it to its end."""
        world, began = self.world, time.monotonic()
        people = People(world, keep=KEPT)
        killer = Killer(world, people)
        world.start()
        stopping = threading.Event()
        self.users = [User(world, people, self.lock, number) for number in range(USERS)]
        threads = [threading.Thread(target=one.run, args=(stopping,)) for one in self.users]
        for thread in threads:
            thread.start()
        try:
            self._course(began, people, killer)
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        world.restarts = False
        world.calm(600)
        self.sample(began)
        self.counted = list(self.counts())
        for line in self.counted:
            world.say(line)
        world.undo_all()
        for one in self.users:
            world.did.update({f"user: {name}": count for name, count in one.did.items()})
        return Outcome(
            killer.kills,
            world.did,
            world.maker.count,
            time.monotonic() - began,
            1,
            world.violations,
        )

    def _course(self, began: float, people: People, killer: Killer) -> None:
        world, choose = self.world, self.world.random
        due: dict[Callable[[], object], tuple[float, float]] = {  # mean seconds between, next
            people.edit: (5.0, 0.0),
            people.edit_in_plex: (20.0, 0.0),
            people.undo: (15.0, 0.0),
            people.decide: (20.0, 0.0),
            people.reclassify: (60.0, 0.0),
            people.pause: (60.0, 0.0),
            people.organize_more: (60.0, 0.0),
            killer.command: (10.0, 0.0),
            killer.worker: (75.0, 60.0),
            killer.decoder: (75.0, 60.0),
            self._flap: (6.0, 0.0),
            world.scan: (4.0, 0.0),
        }
        deadly: dict[Callable[[], object], tuple[float, float]] = {
            killer.daemon: (45.0, 30.0),
            killer.group: (90.0, 60.0),
        }
        next_album = next_sample = 0.0
        while (now := time.monotonic() - began) < self.seconds:
            world.start()
            acts = due | deadly if now < DEADLY_SHARE * self.seconds else due
            for act, (mean, at) in acts.items():
                if now >= at:
                    (deadly if act in deadly else due)[act] = (
                        mean,
                        now + choose.uniform(0.5, 1.5) * mean,
                    )
                    if at:  # not all at the very start
                        with self.lock:
                            self._do(act)
            if (
                now >= next_album
                and world.ask("SELECT count(*) FROM jobs WHERE state IN ('ready','waiting')") < 60
            ):
                next_album = now + choose.uniform(0.5, 1.5) * ARRIVAL_SECONDS
                with self.lock:
                    self._do(people.arrive)
            if now >= next_sample:
                next_sample = now + SAMPLE_SECONDS
                self.sample(began)
            time.sleep(0.1)

    def _do(self, act: Callable[[], object]) -> None:
        """Act; what goes wrong in doing so is kept, and the hour goes on."""
        try:
            act()
        except Exception as error:  # whatever: an hour is not to be lost by it
            self.world.violations.append(Violation("harness", f"{act}: {error!r}"))
            self.world.say(f"VIOLATION harness: {act}: {error!r}")

    def _flap(self) -> None:
        """Plex is there half of the time, and misbehaves in each way in the other half."""
        plex, choose = self.world.plex, self.world.random
        plex.delay = 2.0
        plex.mode = "ok" if plex.mode != "ok" else choose.choice(PLEX_MODES)
        self.world.did[f"condition Plex {plex.mode}"] += plex.mode != "ok"

    def sample(self, began: float) -> None:
        """Look at the main process and its worker."""
        daemon = self.world.daemon
        if daemon is None or not self.world.alive:
            return
        now = time.monotonic() - began
        found: list[tuple[str, psutil.Process]] = []
        try:
            found.append(("main", psutil.Process(daemon.process.pid)))
            if worker := daemon.worker():
                found.append(("worker", worker))
            for name, process in found:
                with process.oneshot():
                    one = Sample(
                        now,
                        name,
                        process.pid,
                        process.memory_info().rss / 1e6,
                        process.num_fds(),
                        process.num_threads(),
                    )
                self.samples.append(one)
                self.world.say(
                    f"sample {now:.0f} s {name} {one.pid}: {one.megabytes:.1f} MB,"
                    f" {one.files} files, {one.threads} threads"
                )
        except psutil.Error:
            return

    def counts(self) -> Iterator[str]:
        """Yield what must be equal: files in place, known, decided, and shown by Plex."""
        world = self.world
        there = [record.path for record in world.ledger.present()]
        raw = [str(path).encode() for path in there]
        marks = ",".join("?" * len(raw))
        known = world.ask(f"SELECT count(*) FROM tracks WHERE path IN ({marks})", *raw)
        ended = world.ask(
            "SELECT count(*) FROM jobs WHERE state IN ('done','skipped','review','failed')"
            f" AND path IN ({marks})",
            *raw,
        )
        shown = sum(1 for _ in world.library.items("track"))
        came = len(world.ledger.files)
        yield (
            f"files that came {came}, removed {came - len(there)}, in place {len(there)},"
            f" known {known}, decided {ended}, shown by Plex {shown}"
        )

    def growth(self) -> Iterator[str]:
        """Yield first, last and most of each process' figures, and their slope at the end."""
        end = max((one.at for one in self.samples), default=0.0)
        for name in ("main", "worker"):
            of = [one for one in self.samples if one.name == name]
            late = [one for one in of if one.at >= end - TREND_SECONDS and one.at > 120]
            yield f"{name}: {len(of)} samples of {len({one.pid for one in of})} processes"
            if name == "main" and of:  # of the one that lived to the end
                late = [one for one in late if one.pid == of[-1].pid]
            for what in ("megabytes", "files", "threads"):
                values = [float(getattr(one, what)) for one in late]
                if values:
                    yield (
                        f"  {what}, from {late[0].at / 60:.0f} to {late[-1].at / 60:.0f} min: first"
                        f" {values[0]:.1f}, last {values[-1]:.1f}, least {min(values):.1f}, most"
                        f" {max(values):.1f}, {_slope([one.at for one in late], values)}"
                    )


def _slope(times: Sequence[float], values: Sequence[float]) -> str:
    if len(times) < 3:
        return "too few for a slope"
    return f"slope {statistics.linear_regression(times, values).slope * 3600:+.2f} an hour"
