"""What people do to tracks through the daemon: decide, undo, and ask what settings would change.

It runs in the daemon's main process, paused or not, and loads no model. Files are changed in one
thread, under the right that the worker and the commands need as well.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from reclass_plex import decisions, undoing
from reclass_plex.changes import repair
from reclass_plex.comparing import compare_if_due
from reclass_plex.config import Config
from reclass_plex.decided import Decisions
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import StoreBusy, printable
from reclass_plex.jobs import Jobs
from reclass_plex.placements import Placements
from reclass_plex.placing import repair as settle
from reclass_plex.preview import Preview, change_policy, preview
from reclass_plex.remote import (
    DecideResult,
    Operation,
    PreviewRequest,
    RefusedTrack,
    UndoCount,
    UndoRequest,
)
from reclass_plex.selection import REASON
from reclass_plex.store import Store
from service.alike import Alike
from service.events import Events
from service.operations import Operations, Progress
from service.radio import Radio

log = logging.getLogger(__name__)

LOCK_SECONDS = 60.0  # to wait for who changes files
RESUME_SECONDS = 60.0  # between attempts at what was decided and could not be written


class Actions:
    """The daemon's hands for people. Any thread may call it.

    `config` returns the configuration as it is now, `connect` a connection to Plex; `poke` and
    `wake_plex` are called when there is work for the worker, or for Plex.
    """

    def __init__(
        self,
        store: Store,
        config: Callable[[], Config],
        connect: undoing.Connect,
        *,
        events: Events,
        poke: Callable[[], object] = lambda: None,
        wake_plex: Callable[[], object] = lambda: None,
        config_file: Path | None = None,
    ) -> None:
        self.events = events
        self.operations = Operations(events)
        self.alike = Alike(store, connect, self.operations, config_file)
        self.radio = Radio(events, config_file)
        self._store = store
        self._config = config
        self._connect = connect
        self._poke = poke
        self._wake_plex = wake_plex
        self._next_resume = 0.0
        self._resuming: str | None = None

    def close(self) -> None:
        """Let what is under way end after the file in hand."""
        self.radio.stop()
        self.operations.close()
        self.events.close()

    # Decisions

    def decide(
        self,
        track_ids: Collection[int],
        kind: Literal["accept", "correct"],
        genres: Collection[str] = (),
        *,
        albums: bool = False,
        by: str | None = None,
    ) -> DecideResult:
        """Keep a person's word on tracks, durably, and begin to write it.

        Raises ConfigError for genres that are none, and ModelError.
        """
        config = self._config()
        ensemble = Ensemble.from_config(config)
        ids = decisions.whole_albums(self._store, track_ids) if albums else track_ids
        if kind == "accept":
            said = decisions.accept(self._store, ids, config, ensemble, by=by)
        else:
            said = decisions.correct(self._store, ids, tuple(genres), config, ensemble, by=by)
        refused = tuple(
            RefusedTrack(track_id=one.track_id, path=one.path, reason=one.reason)
            for one in said.refused
        )
        if said.run_id is None:
            return DecideResult(refused=refused)
        operation = self._write(said.run_id, len(said.track_ids))
        return DecideResult(
            run_id=said.run_id, track_ids=said.track_ids, refused=refused, operation=operation
        )

    def forget(self, track_ids: Collection[int]) -> int:
        """Withdraw what was decided on tracks, and let the models decide again; return on how many.

        Files stay as they are until then.
        """
        count = decisions.forget(self._store, track_ids)
        if count:
            known = self._store.find_tracks(list(track_ids), "")
            Jobs(self._store).enqueue([track.path for track in known], REASON, time.time())
            self._poke()
        return count

    def resume(self, now: float) -> None:
        """Write now and then what was decided and could not be written, or a kill left behind.

        `now` is of a steady clock.
        """
        if now < self._next_resume:
            return
        self._next_resume = now + RESUME_SECONDS
        last = self.operations.find(self._resuming) if self._resuming else None
        if (last is None or last.finished is not None) and Decisions(self._store).any_open():
            self._resuming = self._write(None, None).id

    def _write(self, run_id: int | None, total: int | None) -> Operation:
        def work(progress: Progress) -> dict[str, object]:
            progress.begin(total)
            counts: Counter[str] = Counter()
            for one in decisions.write_decisions(
                self._store,
                self._config(),
                run_id=run_id,
                wait_seconds=LOCK_SECONDS,
                should_stop=progress.should_stop,
            ):
                counts[one.state] += 1
                if one.state == "failed":
                    log.warning("%s: decided, but %s", printable(one.path), one.reason)
                elif one.state == "written":
                    log.info("%s: %s, as decided", printable(one.path), ", ".join(one.genres))
                if one.reason is not None:
                    progress.fail(os.fspath(one.path), one.reason)
                progress.advance()
                self._wake_plex()
            return dict(counts)

        return self.operations.start("decide", work, writes=True, run_id=run_id)

    # Undo

    def count_undo(self, wanted: UndoRequest) -> UndoCount:
        """Return what an undo would take back. Raises ConfigError if there is no such run."""
        plan = self._plan(wanted)
        return UndoCount(files=plan.files, edits=plan.edits, decisions=plan.decisions)

    def undo(self, wanted: UndoRequest) -> Operation:
        """Begin to take back a run, or what was done to tracks, or since a time: files and Plex.

        Raises ConfigError if there is no such run, or nothing is named.
        """
        self._plan(wanted)

        def work(progress: Progress) -> dict[str, object]:
            counts: Counter[str] = Counter()
            with self._store.writing_files(LOCK_SECONDS, progress.should_stop):
                tags = self._config().tags
                for file in compare_if_due(self._store, tags, progress.should_stop):
                    log.warning("%s: %s", printable(file.path), file.text)
                for line in (*repair(self._store, tags), *settle(Placements(self._store))):
                    log.warning("%s", line)
                plan = self._plan(wanted)
                progress.begin(plan.files)
                for one in undoing.take_back(
                    self._store,
                    plan,
                    self._config().tags,
                    self._connect,
                    progress.should_stop,
                ):
                    _count(one, counts, progress)
            self._wake_plex()
            return {name: counts[name] for name in ("restored", "kept", "edits", "edits_kept")}

        return self.operations.start("undo", work, writes=True, run_id=wanted.run_id)

    # Settings

    def preview(self, wanted: PreviewRequest) -> Operation:
        """Begin to find out what other settings of the policy would do to the library.

        The operation's result is a `preview.Preview`. Raises ConfigError, naming what is wrong.
        """
        config = self._config()
        policy = change_policy(config.policy, wanted.policy)
        ensemble = Ensemble.from_config(config)

        def work(progress: Progress) -> dict[str, object]:
            progress.begin(self._store.count_tracks())
            found = preview(
                self._store,
                ensemble.fingerprint,
                ensemble.taxonomy,
                policy,
                config.policy,
                sample=wanted.sample,
                on_progress=progress.advance,
                should_stop=progress.should_stop,
            )
            return _plain(found)

        return self.operations.start("preview", work, writes=False)

    def _plan(self, wanted: UndoRequest) -> undoing.UndoPlan:
        return undoing.plan_undo(
            self._store,
            run_id=wanted.run_id,
            track_ids=wanted.track_ids,
            since=wanted.since,
        )


def _plain(found: Preview) -> dict[str, object]:
    """Return a preview as plain values for JSON. Paths are text as the browser shows it."""
    plain = asdict(found)
    plain["sample"] = [{**asdict(one), "path": printable(one.path)} for one in found.sample]
    return plain


def _count(one: undoing.Undone, counts: Counter[str], progress: Progress) -> None:
    if isinstance(one, undoing.FileUndone):
        counts["restored" if one.result.restored else "kept"] += 1
        if not one.result.restored:
            progress.fail(os.fspath(one.entry.path), one.result.how)
        progress.advance()
    elif isinstance(one, undoing.TakenBack):
        counts["restored" if one.restored else "kept"] += 1
        if not one.restored:
            progress.fail(os.fspath(one.placement.target), one.how)
        progress.advance()
    elif isinstance(one, undoing.EditUndone):
        done = one.outcome.status in ("done", "gone")
        counts["edits" if done else "edits_kept"] += 1
        if not done:
            record = one.outcome.record
            name = os.fspath(one.edit.path or f"{record.kind} {record.rating_key}")
            progress.fail(f"{name} in Plex", one.how)
    elif isinstance(one.error, StoreBusy):
        progress.fail("Plex", str(one.error))
    else:
        progress.fail("Plex", str(one))
