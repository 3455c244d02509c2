"""The daemon's side of Plex: follows its hints, and brings it up to what the files say.

One thread owns the connection. While Plex is away files go on being tagged; what they want in Plex
waits in the store.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from reclass_plex.config import Config
from reclass_plex.errors import ConfigError, PlexError, ReclassError, StoreBusy
from reclass_plex.hours import quiet_until
from reclass_plex.jobs import CLOCK_TOLERANCE, Jobs
from reclass_plex.plex import Plex, library_folders
from reclass_plex.remote import PlexStatus
from reclass_plex.store import Store
from reclass_plex.sync import Places, SyncResult, Wanted, sync_once
from service.hints import Hint
from service.plex_link import PlexLink
from service.plex_news import News, take_up

log = logging.getLogger(__name__)

GROUP_SECONDS = 20.0  # after the first hint, for the others of an album to come in
MAX_HINTS = 10_000  # more are dropped: what was recently added is asked for anyway
IDLE_SECONDS = 5.0  # between looks at what is wanted, if nobody wakes us
FIRST_PAUSE_SECONDS = 5.0  # after a round of edits; doubled while there is more to do: the more
MAX_PAUSE_SECONDS = 300.0  # files a round has, the fewer requests each of them costs
LOOK_BACK_SECONDS = 7 * 86400.0  # what was added so long before the start; folders tell the rest
OVERLAP_SECONDS = 3600.0  # between two looks at what was added: clocks differ, scans take long
TROUBLE_SECONDS = 60.0  # after something went wrong that is not Plex's
STOP_SECONDS = 4.5


class PlexWorker:
    """Does by itself what concerns Plex. `step` is its whole work; `start` runs it in a thread.

    `read_token` may raise ConfigError; `poke` is called when there are new jobs. In quiet hours
    nothing is written. `server_uuid` is the server's, once it is known.
    """

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        config: Config,
        read_token: Callable[[], str],
        poke: Callable[[], object] = lambda: None,
        *,
        group_seconds: float = GROUP_SECONDS,
    ) -> None:
        self.server_uuid: str | None = None
        self._store = store
        self._jobs = jobs
        self._config = config
        self._read_token = read_token
        self._poke = poke
        self._group_seconds = group_seconds
        self._wanted = Wanted(store)
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._link = PlexLink(config.plex, read_token)
        self._hints_since: float | None = None
        self._last_look: float | None = None  # at what was recently added
        self._worked_with: Plex | None = None  # the connection of the last round
        self._pause = 0.0  # after the last round
        self._next_round = 0.0
        self._seen = math.inf  # the clock at the last step
        self._lock = threading.Lock()  # guards what other threads leave here:
        self._hints: dict[int, Hint] = {}
        self._asked_recent = False
        self._new_config: Config | None = None

    # For other threads

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._run, name="plex", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End within 5 s; a request that is under way is broken off. Nothing is lost by that."""
        with self._lock:
            self._stopping.set()
            self._link.break_off()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
            if self._thread.is_alive():  # in the resolver of names, which nothing can break off
                return
        self._link.close()

    def wake(self) -> None:
        """Look at once at what is wanted, and at the token if one was refused."""
        self._wake.set()

    def hint(self, hint: Hint) -> None:
        """Take note that something is new at Plex. Never waits."""
        with self._lock:
            if len(self._hints) < MAX_HINTS:
                self._hints[hint.rating_key] = hint
            else:
                self._asked_recent = True
        self._wake.set()

    def ask_recent(self, now: float) -> None:
        """Ask Plex soon what was recently added."""
        with self._lock:
            self._asked_recent = True
        self._wake.set()

    def reload(self, config: Config) -> None:
        """Go on with other options; over a new connection, if they concern it."""
        with self._lock:
            self._new_config = config
        self._wake.set()

    def status(self) -> PlexStatus:
        """Say how things are."""
        counts = self._wanted.counts()
        message = self._link.message
        if counts["stuck"]:
            message = message or f"{counts['stuck']} files were not found in Plex for two weeks"
        return PlexStatus(
            state=self._link.state,
            message=message or None,
            pending=counts["waiting"] + counts["stuck"],
        )

    def library_folders(self, title: str) -> tuple[Path, ...]:
        """Return the local folders of a library, over a connection of its own, in any thread.

        Raises ConfigError and PlexError.
        """
        with Plex(self._config.plex, self._read_token()) as plex:
            return library_folders(plex, title)

    # The work

    def _run(self) -> None:
        said = ""
        while not self._stopping.is_set():
            try:
                pause, said = self.step(time.time()), ""
            except Exception as error:  # the thread must outlive whatever happens
                expected = isinstance(error, ReclassError)
                text = str(error) if expected else repr(error)
                if text != said:
                    log.error("Plex: %s. It is tried again", text, exc_info=not expected)
                pause, said = TROUBLE_SECONDS, text
            self._wake.wait(pause)
            self._wake.clear()

    def step(self, now: float) -> float:
        """Do what there is to do; return after how many seconds there may be more.

        Raises StoreError. What Plex raises is met here.
        """
        self._take_configuration()
        self._mind_clock(now)
        try:
            plex = self._link.connect(now)
            if plex is not None:
                self.server_uuid = plex.uuid
                self._follow_hints(plex, now)
                self._look_for_recent(plex, now)
                self._sync(plex, now)
                self._link.keep()
        except (ConfigError, PlexError) as error:
            self._link.lose(error, now)
        return self._until_next(now)

    def _mind_clock(self, now: float) -> None:
        """Wait for no time that a clock which ran ahead has put far away."""
        if now < self._seen - CLOCK_TOLERANCE:
            self._wanted.mind_clock(now)
            self._next_round = self._link.next_attempt = now
            if self._hints_since is not None:
                self._hints_since = now
        self._seen = now

    def _take_configuration(self) -> None:
        with self._lock:
            config, self._new_config = self._new_config, None
            if config is None or self._stopping.is_set():
                return
            former, self._config = self._config, config
            if former.plex != config.plex:
                self._link.close()
                self._link = PlexLink(config.plex, self._read_token)
        self._next_round = 0.0

    def _follow_hints(self, plex: Plex, now: float) -> None:
        """Look where something is said to be new, once its companions had time to come in."""
        with self._lock:
            keys = tuple(self._hints)
        if keys and self._hints_since is None:
            self._hints_since = now
        if self._hints_since is None or now < self._hints_since + self._group_seconds:
            return
        places = Places(self._store, plex)
        self._tell(take_up(plex.expand(keys), plex, places, self._store, self._jobs, now))
        with self._lock:
            for key in keys:
                del self._hints[key]
            self._asked_recent = True  # one event may stand for several items
        self._hints_since = None

    def _look_for_recent(self, plex: Plex, now: float) -> None:
        """Ask what was added since the last look, if somebody asked for that."""
        with self._lock:
            if not self._asked_recent:
                return
        last = self._last_look
        since = now - LOOK_BACK_SECONDS if last is None else min(last, now) - OVERLAP_SECONDS
        places = Places(self._store, plex)
        for key in places.libraries:
            recent = plex.recently_added(key, since)
            self._tell(take_up(recent, plex, places, self._store, self._jobs, now))
        self._last_look = now
        with self._lock:
            self._asked_recent = False

    def _tell(self, news: News) -> None:
        if news.new:
            log.info("Plex: told of %d tracks, of which %d are new here", news.tracks, news.new)
            self._poke()

    def _sync(self, plex: Plex, now: float) -> None:
        """Bring Plex up to what is wanted; the more often in a row, the longer apart."""
        if now < self._next_round:
            return
        if quiet_until(now, self._config.worker.quiet_hours) is not None:
            return
        if plex is self._worked_with:  # a new connection may be to a server that is new here
            due = self._wanted.next_due()
            if due is None or due > now:
                self._pause = 0.0
                return
        try:
            result = sync_once(plex, self._store, self._config.policy, now)
        except StoreBusy:  # an undo is at work there
            self._next_round = now + FIRST_PAUSE_SECONDS
            return
        self._worked_with = plex
        if result == SyncResult():
            return
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
        self._next_round = now + self._pause
        if result.done or result.failed:
            log.info("Plex: %s", _describe(result))

    def _until_next(self, now: float) -> float:
        """Return how long nothing needs to be done, at most `IDLE_SECONDS`."""
        times = [self._link.next_attempt if self._link.plex is None else self._next_round]
        if self._hints_since is not None:
            times.append(self._hints_since + self._group_seconds)
        return min([time - now for time in times if time > now] + [IDLE_SECONDS])


def _describe(result: SyncResult) -> str:
    written = [f"{count} {kind}{'s' * (count != 1)}" for kind, count in result.written.items()]
    parts = [f"genres written: {', '.join(written)}" if written else "nothing had to be written"]
    if result.unknown:
        parts.append(f"{result.unknown} files are not known there yet")
    if result.failed:
        parts.append(f"{result.failed} were refused, and are tried again")
    return "; ".join(parts)
