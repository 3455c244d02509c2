"""The daemon: builds everything once, keeps the worker in step, and ends cleanly.

    folders, webhook, alerts, clock, command line  ->  jobs in the store  ->  worker process
                                                                       \\->  Plex, in a thread

This process stays light: it loads no model and decodes nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Literal

from reclass_plex import upkeep
from reclass_plex.backups import newest_age
from reclass_plex.changes import remove_leftovers, repair
from reclass_plex.config import Config, load_config
from reclass_plex.credentials import read_notify_urls, read_plex_token, webhook_key
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, ModelError, StoreBusy, StoreDamaged, StoreError
from reclass_plex.hours import quiet_until
from reclass_plex.jobs import Job, Jobs, State
from reclass_plex.notices import Notices, Problem
from reclass_plex.password import has_password
from reclass_plex.plex import Plex
from reclass_plex.reconcile import reconcile
from reclass_plex.redaction import remember
from reclass_plex.remote import (
    FolderStatus,
    ReclassifyResult,
    Status,
    remove_daemon_file,
    write_daemon_file,
)
from reclass_plex.selection import Selection, queue_tracks, select_tracks
from reclass_plex.store import Store
from reclass_plex.store_guard import hold_daemon_lock, refuse_damaged
from reclass_plex.sync import Wanted
from service import heap
from service.actions import Actions
from service.alerts import AlertListener
from service.events import Events
from service.hints import Hint
from service.live import Live
from service.notices import Notifier
from service.plex_worker import PlexWorker
from service.problems import FAILURE_SECONDS, FIRST_LOOK, find_problems, free_bytes
from service.schedule import Schedule
from service.sd_notify import notify, watchdog_seconds
from service.similar_index import update_index
from service.supervisor import Supervisor
from service.watch import Anchor, FolderWatch, wait_armed
from service.web.app import create_app
from service.web.pages import build_dashboard
from service.web.server import WebServer

log = logging.getLogger(__name__)

TICK_SECONDS = 0.1
MODELS_SECONDS = 2.0  # to wait until models that changed are taken up
LOOK_SECONDS = 2.0  # between looks into the queue for what other processes put there
STATUS_SECONDS = 5.0  # between lines of status to systemd
TIDY_SECONDS = 60.0  # between returns of unused memory to the system
ARMING_SECONDS = 10.0  # until a folder is watched, before the others are compared without it,
LATE_SECONDS = 3600.0  # and before it is left for the next time: a million files take a minute
CLEAN_SECONDS = 60.0  # to wait for who changes files
SAMPLE = 20  # paths shown of a selection


class Daemon:
    """Everything that runs. `run` returns when asked to stop, by signal or by `stop`."""

    def __init__(self, config: Config, config_file: Path | None) -> None:
        self._config = config
        self._config_file = config_file
        self._started = time.time()
        self._stopping = threading.Event()
        self._reload_asked = False
        self._poked = threading.Event()  # something was put in line
        self._paused = False
        self._ready = False
        self._next_look = self._next_status = self._next_tidy = 0.0
        self._work_due = False
        self._models: tuple[str, tuple[str, ...]] | None = None  # fingerprint, what is left out
        self._done = 0
        self._anchors: dict[Path, Anchor] = {}  # of the reconcile; each watch has its own

    def run(self) -> None:
        """Build everything, work until asked to stop, and end it all.

        Raises ConfigError and StoreError when it cannot start, StoreDamaged at any time.
        """
        store_path = self._config.store.resolve()
        with ExitStack() as stack:
            self._store = stack.enter_context(Store.open(store_path, check=True))
            stack.enter_context(hold_daemon_lock(store_path))
            self._jobs = Jobs(self._store)
            self._wanted = Wanted(self._store)
            # There is one daemon and it has no worker yet: whoever holds a job is dead.
            self._jobs.release(self._jobs.owners(), time.time())
            self._supervisor = Supervisor(self._jobs, self._config, store_path)
            stack.callback(self._supervisor.stop)
            self._plex = PlexWorker(
                self._store, self._jobs, self._config, self._read_token, self._poke
            )
            self._plex.start()
            stack.callback(self._plex.stop)
            self.events = Events()
            self._live = Live(self._jobs, self.events)
            self.actions = Actions(
                self._store,
                lambda: self._config,
                lambda: Plex(self._config.plex, self._read_token()),
                events=self.events,
                poke=self._poke,
                wake_plex=self._plex.wake,
                config_file=self._config_file,
            )
            stack.callback(self.actions.close)
            self._watches: list[FolderWatch] = []
            stack.callback(self._stop_watches)
            self._start_watches()
            self._alerts: AlertListener | None = None
            self._alerts_token = ""  # the one that they listen with
            self._refused_token: str | None = None
            stack.callback(self._stop_alerts)
            self._serve(stack, store_path)
            self._schedule = Schedule(
                self._config.schedule,
                {
                    "reconcile": self._reconcile,
                    "plex": lambda stopping: self._plex.ask_recent(time.time()),
                    "maintenance": self._maintain,
                    "similar": self._look_after_similar,
                },
                catch_up=upkeep.is_overdue(store_path, time.time()),
            )
            self._schedule.start()
            stack.callback(self._schedule.stop)
            self._book = Notices(self._store)
            self._notifier = Notifier(
                self._book, self._config.notify, self._read_urls, self._find_problems
            )
            self._notifier.start()
            stack.callback(self._notifier.stop)
            self._ready = True
            notify("READY=1", f"STATUS={self._describe()}")
            log.info("reclass-plexd %s is ready", version("reclass-plex"))
            try:
                self._loop()
            finally:
                notify("STOPPING=1")
                log.info("stopping")
                self._ready = False
                self.events.close()  # who listens would hold the web server up
                # It ends while the others do: it may need all of its seconds for the track in hand.
                self._supervisor.step(time.monotonic(), wanted=False, allowed=False)

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Ask it to end; also a signal's handler, so it sets nothing that the loop waits for.

        The handler interrupts the loop's thread, which may hold that lock just then.
        """
        self._stopping.set()

    def ask_reload(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Ask it to read its configuration again; also a signal's handler."""
        self._reload_asked = True

    # The loop

    def _loop(self) -> None:
        alive = watchdog_seconds()
        next_alive = 0.0
        said = ""
        while not self._stopping.is_set():
            now = time.monotonic()
            if self._reload_asked:
                self._reload_asked = False
                self._reload()
            try:
                self.step(now)
                said = ""
            except StoreDamaged:
                raise
            except StoreError as error:  # a full disk, say: what is to be done waits in the store
                if str(error) != said:
                    log.error("%s", error)
                said = str(error)
            if alive is not None and now >= next_alive:
                notify("WATCHDOG=1")
                next_alive = now + alive / 3
            self._poked.wait(TICK_SECONDS)

    def step(self, now: float) -> None:
        """Keep the worker in step with what is to be done; `now` is of a steady clock."""
        if self._poked.is_set() or now >= self._next_look:
            poked = self._poked.is_set()
            self._poked.clear()
            self._next_look = now + LOOK_SECONDS
            refuse_damaged(self._store.path)  # as any of our processes may have found it
            due = self._jobs.next_due(time.time())
            self._work_due = due is not None and due <= time.time()
            if poked or self._work_due:
                self._supervisor.wake()
            if self._alerts is not None and self._refused_token == self._alerts_token:
                self._stop_alerts()  # the Plex worker says so, and sees when there is another
            self._mind_alerts()
            self._mind_models()
            self.actions.resume(now)
        self._live.look(now, time.time())
        # Files that settle will be work in a moment: the models may load meanwhile.
        wanted = self._work_due or any(watch.settling for watch in self._watches)
        self._supervisor.step(now, wanted=wanted, allowed=self._why_not() is None)
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            notify(f"STATUS={self._describe()}")
        if now >= self._next_tidy:
            self._next_tidy = now + TIDY_SECONDS
            heap.give_back()

    def _mind_models(self) -> None:
        """Let a new worker take up models that were installed, fetched, damaged or removed."""
        found = self._find_models()
        if self._models not in {None, found}:
            log.info("the models are others now")
            self._supervisor.reload(self._config)
        self._models = found

    def _find_models(self) -> tuple[str, tuple[str, ...]]:
        """Return the models' fingerprint, and what is left out; "" if none can be used, and why."""
        try:
            ensemble = Ensemble.from_config(self._config)
        except ModelError as error:
            return "", (str(error),)
        return ensemble.fingerprint, ensemble.notes

    def _why_not(self) -> Literal["paused", "quiet"] | None:
        if self._paused:
            return "paused"
        if quiet_until(time.time(), self._config.worker.quiet_hours) is not None:
            return "quiet"
        return None

    def _describe(self) -> str:
        """Return a line for systemctl status."""
        counts = self._jobs.counts()
        in_line = counts["waiting"] + counts["ready"] + counts["running"] + counts["writing"]
        state = self._why_not() or ("working" if in_line else "idle")
        return f"{state}; {in_line} in line, {counts['failed']} failed"

    # Sources of jobs

    def _start_watches(self) -> None:
        options = self._config.watch
        for folder in options.folders:
            watch = FolderWatch(
                folder,
                self._take_news,
                self._is_known,
                settle_seconds=options.settle_seconds,
                poll_seconds=options.poll_seconds,
                always_poll=options.always_poll,
            )
            watch.start()
            self._watches.append(watch)
        if not options.folders:
            log.warning("watch.folders is empty: only Plex tells of new music")

    def _stop_watches(self) -> None:
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.stop(timeout=2)

    def _take_news(self, path: Path, reason: str) -> None:
        if reason == "gone":
            self._jobs.forget(path)
            self._wanted.forget_below(path)
        else:
            self._jobs.enqueue([path], reason, time.time())
            self._poke()

    def _is_known(self, path: Path, size: int, mtime_ns: int) -> bool:
        known = self._store.known_files([path], models="")
        return any(
            (track.size, track.mtime_ns) == (size, mtime_ns)
            and (track.digest is not None or track.error is not None)
            for track in known
        )

    def _mind_alerts(self) -> None:
        """Listen to the server's notices once it is known to be there and to accept the token."""
        options = self._config.plex
        if self._alerts is not None or not options.url or not options.alerts:
            return
        if self._plex.status().state != "connected":
            return
        token = self._read_token()
        if token == self._refused_token:
            return

        def refused() -> None:
            self._refused_token = token

        self._alerts_token = token
        self._alerts = AlertListener(
            options.url,
            token,
            self.hint,
            on_connect=lambda: self._plex.ask_recent(time.time()),
            on_unauthorized=refused,
        )
        self._alerts.start()

    def _stop_alerts(self) -> None:
        alerts, self._alerts = self._alerts, None
        if alerts is not None:
            alerts.stop()

    def _reconcile(self, stopping: threading.Event) -> None:
        """Compare all folders with the store. One thread at a time: the schedule sees to that."""
        for watch in self._watches:
            self._anchors.setdefault(watch.root, Anchor(watch.root))
        leftovers: list[Path] = []
        waiting = list(self._watches)
        # What changes while we look is heard. A large folder takes its time until it is, and a
        # mount that hangs holds up no other.
        for patience in (ARMING_SECONDS, LATE_SECONDS):
            late = wait_armed(waiting, patience, stopping.is_set)
            if folders := [watch.root for watch in waiting if watch not in late]:
                reconcile(
                    folders,
                    self._store,
                    self._jobs,
                    is_healthy=self._is_healthy,
                    settle_seconds=self._config.watch.settle_seconds,
                    should_stop=stopping.is_set,
                    on_gone=self._wanted.forget,
                    on_leftover=leftovers.append,
                )
                self._poke()
            if not late or stopping.is_set():
                break
            waiting = late
        self._clean_up(leftovers, stopping)

    def _clean_up(self, leftovers: Collection[Path], stopping: threading.Event) -> None:
        """Remove the copies of killed processes in folders to which no job leads any more."""
        if not leftovers or stopping.is_set():
            return
        try:
            with self._store.writing_files(CLEAN_SECONDS, stopping.is_set):
                for line in repair(self._store, self._config.tags):  # which goes by copies
                    log.warning("%s", line)
                remove_leftovers(self._store, leftovers)
        except StoreBusy as error:
            log.debug("%s", error)  # there is a next time

    def _is_healthy(self, folder: Path) -> bool:
        """Tell whether a folder is all there at this moment, so that what is not there is gone."""
        return any(
            watch.root == folder
            and watch.paused is None
            and watch.armed.is_set()
            and self._anchors[folder].look()[0] is None
            for watch in self._watches
        )

    def _maintain(self, stopping: threading.Event) -> None:
        upkeep.care_for(
            self._store,
            self._jobs,
            time.time(),
            keep_undo_days=self._config.schedule.keep_undo_days,
            backup_days=self._config.schedule.backup_days,
            backup_weeks=self._config.schedule.backup_weeks,
            should_stop=stopping.is_set,
        )
        update_index(self._store.path, stopping.is_set)

    def _look_after_similar(self, stopping: threading.Event) -> None:
        """Take new tracks into the index of similar music, if they are many: else at night."""
        if self.actions.alike.music.needs_update():
            update_index(self._store.path, stopping.is_set)

    def _poke(self) -> None:
        self._poked.set()

    def _read_token(self) -> str:
        return read_plex_token(self._config.plex, self._config_file)

    def _read_urls(self) -> tuple[str, ...]:
        return read_notify_urls(self._config.notify, self._config_file, log.debug)

    def _find_problems(self) -> list[Problem]:
        """Return what needs the user. In the notices' thread."""
        now = time.time()
        return find_problems(
            self.status(),
            outcomes=self._book.outcomes(now - FAILURE_SECONDS, now + 1),
            no_space=self._book.no_space(),
            deaths=self._supervisor.deaths,
            store=self._store.path,
            free=free_bytes(self._store.path.parent),
            now=now,
        )

    # The interface for webhooks and commands (service.web.app.Control)

    def _serve(self, stack: ExitStack, store_path: Path) -> None:
        token = secrets.token_urlsafe(24)
        remember(token)
        key = webhook_key(store_path)
        options = self._config.web
        app = create_app(self, self._store, webhook_key=key, api_token=token, options=options)
        if not options.is_local and not app.state.access.is_locked():
            log.error(
                "web.host is %s and there is no password: no dashboard and no API until"
                " reclass-plex password sets one",
                options.host,
            )
        elif not has_password(store_path):
            log.warning("no password is set for the dashboard: reclass-plex password sets one")
        app.include_router(build_dashboard(self, self._store, self._music_folders))
        server = WebServer(app, self._config.web)
        server.start()
        stack.callback(server.stop)
        write_daemon_file(store_path, server.url, token)
        stack.callback(remove_daemon_file, store_path)

    def config(self) -> Config:
        """Return the configuration as it is now."""
        return self._config

    def config_file(self) -> Path | None:
        """Return where it was read from."""
        return self._config_file

    def _music_folders(self) -> tuple[Path, ...]:
        """Return below which folders music may be played to people."""
        mapped = (Path(one.local) for one in self._config.plex.path_map)
        return (*self._config.watch.folders, *mapped)

    def status(self) -> Status:
        """Return what the daemon does."""
        counts = self._jobs.counts()
        why = self._why_not()
        busy = counts["running"] + counts["writing"] + counts["ready"]
        state: Literal["working", "idle", "paused", "quiet", "waiting"]
        if why is not None:
            state = why
        elif self._supervisor.problem is not None:
            state = "waiting"
        else:
            state = "working" if busy else "idle"
        return Status(
            version=version("reclass-plex"),
            state=state,
            why=self._supervisor.problem,
            jobs=counts,
            plex=self._plex.status(),
            folders=tuple(_folder_status(watch) for watch in self._watches),
            models_loaded=self._supervisor.running,
            left_out=self._models_in_use()[1],
            tracks_done=self._count_done(),
            in_hand=self._live.in_hand(),
            per_minute=self._live.per_minute(time.monotonic()),
            seconds_left=self._live.seconds_left(time.monotonic(), counts),
            operations=self.actions.operations.unfinished,
            since=self._started,
            backup=self._newest_backup(),
        )

    def _newest_backup(self) -> float | None:
        now = time.time()
        age = newest_age(self._store.path, now)
        return None if age is None else now - age

    def _models_in_use(self) -> tuple[str, tuple[str, ...]]:
        """Return the models' fingerprint, and what is left out: as the worker says, once it does.

        Models that just changed are taken up first.
        """
        found = self._find_models()
        until = time.monotonic() + MODELS_SECONDS
        while self._models != found and time.monotonic() < until and not self._stopping.is_set():
            self._poke()
            time.sleep(TICK_SECONDS)
        report = self._supervisor.report
        return found if report is None else (report.models, report.left_out)

    def _count_done(self) -> int:
        """Return at least how many tracks ended since the start: some are gone, or in line anew."""
        self._done = max(self._done, self._jobs.count_since(self._started))
        return self._done

    def pause(self) -> None:
        """Stop after the tracks in hand."""
        log.info("paused")
        self._paused = True
        self.events.publish("state", {"state": "paused"})
        self._poke()

    def resume(self) -> None:
        """Go on."""
        log.info("going on")
        self._paused = False
        self.events.publish("state", {"state": "resumed"})
        self._poke()

    def reclassify(self, selection: Selection, dry_run: bool) -> ReclassifyResult:
        """Put tracks in line again, or only count them. Raises ModelError if none can be heard."""
        models, left_out = self._models_in_use()
        if not models:
            raise ModelError("; ".join(left_out))
        tracks = select_tracks(
            self._store,
            selection,
            models,
            self._plex.library_folders if self._config.plex.url else None,
            self._stopping.is_set,
        )
        count, sample = queue_tracks(
            tracks, self._jobs, sample=SAMPLE, dry_run=dry_run, on_queued=self._poke
        )
        if not dry_run:
            log.info("%d tracks were put in line to be classified again", count)
        return ReclassifyResult(count=count, sample=sample)

    def list_jobs(self, states: Collection[State], limit: int, offset: int) -> list[Job]:
        """Return jobs in these states, the latest change first."""
        return self._jobs.list_jobs(*states, limit=limit, offset=offset)

    def revive(self, ids: Collection[int] | None) -> int:
        """Put dead letters back in line, all of them without `ids`; return how many."""
        count = self._jobs.revive(time.time(), ids)
        self._poke()
        return count

    def hint(self, hint: Hint) -> None:
        """Take a hint: where in Plex something may be new."""
        self._plex.hint(hint)

    def server_uuid(self) -> str | None:
        """Return our Plex server's machineIdentifier, if known."""
        return self._plex.server_uuid

    def ready(self) -> bool:
        """Tell whether the daemon has started."""
        return self._ready

    # The configuration

    def _reload(self) -> None:
        """Read the configuration again; one that is wrong changes nothing."""
        try:
            config = load_config(self._config_file)
        except ConfigError as error:
            log.error("not reloaded, the former configuration holds: %s", error)
            return
        former, self._config = self._config, config
        for name in ("store", "web"):
            if getattr(former, name) != getattr(config, name):
                log.warning("%s: what changed here counts from the next restart on", name)
                config = config.model_copy(update={name: getattr(former, name)})
        self._config = config
        if former != config:
            self._models = None
            self._supervisor.reload(config)
        self._schedule.reload(config.schedule)
        self._notifier.reload(config.notify)
        if (former.plex, former.policy) != (config.plex, config.policy):
            self._stop_alerts()
            self._plex.reload(config)
        self._plex.wake()  # the token may be another
        if former.watch.folders != config.watch.folders and "INVOCATION_ID" in os.environ:
            log.warning("watch.folders: the service may write there from its next restart on")
        if former.watch != config.watch:
            self._stop_watches()
            self._start_watches()
            self._schedule.run_soon("reconcile")
        log.info("the configuration was read again")


def _folder_status(watch: FolderWatch) -> FolderStatus:
    if watch.paused is not None:
        return FolderStatus(path=watch.root, state="paused", why=watch.paused)
    if not watch.armed.is_set():
        return FolderStatus(path=watch.root, state="paused", why=FIRST_LOOK)
    return FolderStatus(path=watch.root, state="polling" if watch.polling else "watching")
