"""Taking changes back, in files and in Plex together: the one story of the command and the daemon.

    plan_undo: what would be taken back -> take_back: files, newest first; where `organize` put
    them; a person's decisions that changed no file; then our edits in Plex

All of it needs the right to change files (`Store.writing_files`). When Plex cannot be reached the
files are as they were said to be, and the same undo later takes the rest back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from reclass_plex import changes, placing, sync
from reclass_plex.browse_history import find_run
from reclass_plex.changes import UndoResult
from reclass_plex.config import TagOptions
from reclass_plex.decided import Decisions
from reclass_plex.decisions import RUN
from reclass_plex.errors import ConfigError, PlexError, StoreBusy
from reclass_plex.jobs import Jobs
from reclass_plex.placements import Placement, Placements
from reclass_plex.placing import TakenBack as TakenBack  # noqa: PLC0414 - for those who count
from reclass_plex.plex import EditOutcome, Plex
from reclass_plex.store import JournalEntry, Store
from reclass_plex.sync import PlexEdit

MAX_TRACKS = 10_000  # named at once


@dataclass(frozen=True)
class UndoPlan:
    """What is to be taken back. `edits` are those in Plex, at most; `decisions` a person's word
    that changed no file.
    """

    entries: tuple[JournalEntry, ...]
    edits: int
    decisions: int
    run_id: int | None
    paths: frozenset[Path] | None
    since: float | None
    placements: tuple[Placement, ...] = ()

    @property
    def files(self) -> int:
        """How many changes of files, what was put into a tree among them."""
        return len(self.entries) + len(self.placements)

    @property
    def empty(self) -> bool:
        """Say whether there is nothing to do."""
        return not (self.files or self.edits or self.decisions)


@dataclass(frozen=True)
class FileUndone:
    """What became of one change of a file."""

    entry: JournalEntry
    result: UndoResult


@dataclass(frozen=True)
class EditUndone:
    """What became of one of our edits in Plex."""

    edit: PlexEdit
    outcome: EditOutcome

    @property
    def how(self) -> str:
        """Say it to people."""
        said = _HOW[self.outcome.status]
        return f"{said}: {self.outcome.reason}" if self.outcome.reason else said


@dataclass(frozen=True)
class PlexKept:
    """Plex could not be asked, so that it keeps our genres; `error` says why."""

    error: ConfigError | PlexError | StoreBusy

    def __str__(self) -> str:
        return (
            f"Plex keeps our genres: {self.error}. Files are as said above; give the same undo"
            " again when Plex can be reached"
        )


Undone = FileUndone | TakenBack | EditUndone | PlexKept
Connect = Callable[[], AbstractContextManager[Plex]]  # may raise ConfigError and PlexError

_HOW = {"done": "restored", "gone": "no longer there", "changed": "kept", "failed": "not restored"}


def last_run(store: Store) -> int | None:
    """Return the newest run of which something stands; None if nothing does."""
    decided = {one.run_id for one in Decisions(store).page(1)}
    return max(store.newest_run() or 0, *sync.standing_edits(store), *decided, 0) or None


class NoSuchRun(ConfigError):
    """The history has no run of this number."""


def plan_undo(
    store: Store,
    *,
    run_id: int | None = None,
    path: Path | None = None,
    track_ids: Collection[int] | None = None,
    since: float | None = None,
) -> UndoPlan:
    """Return what belongs to a run, a file or folder, some tracks, or the time since.

    All that is named must hold. Raises ConfigError if there is no such run or nothing is named.
    """
    if run_id is None and path is None and since is None and track_ids is None:
        raise ConfigError("say what is to be taken back: a run, tracks, or since when")
    if run_id is not None and find_run(store, run_id) is None:
        raise NoSuchRun(f"--run {run_id}: there is no such run; see reclass-plex history")
    if track_ids is not None and not 0 < len(track_ids) <= MAX_TRACKS:
        raise ConfigError(f"{len(track_ids)} tracks: name 1 to {MAX_TRACKS} at once")
    paths: set[Path] | None = None
    if path is not None:
        paths = changes.with_real([path])
    elif track_ids is not None:
        paths = changes.with_real(track.path for track in store.find_tracks(track_ids, ""))
    entries = changes.find_changes(
        store, run_id=run_id, path=path, since=since, track_ids=track_ids
    )
    in_plex = sync.standing_edits(store)
    return UndoPlan(
        tuple(entries),
        in_plex.get(run_id, 0) if run_id is not None else sum(in_plex.values()),
        Decisions(store).withdraw_unwritten(run_id=run_id, since=since, below=paths, dry_run=True),
        run_id,
        None if paths is None else frozenset(paths),
        since,
        () if track_ids is not None else _find_placements(store, run_id, path, since),
    )


def _find_placements(
    store: Store, run_id: int | None, path: Path | None, since: float | None
) -> tuple[Placement, ...]:
    return tuple(Placements(store).standing(run_id=run_id, path=path, since=since))


def take_back(
    store: Store,
    plan: UndoPlan,
    options: TagOptions,
    connect: Connect,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Undone]:
    """Carry a plan out; yield what became of each change and edit. Raises StoreError."""
    decided = store.runs_of(RUN)
    jobs = Jobs(store)
    if plan.entries:
        for entry, result in changes.undo_changes(store, plan.entries, options, should_stop):
            if result.restored and entry.run_id in decided:
                said = "the decision was taken back"
                jobs.settle([entry.path], said, time.time(), state="review")
            yield FileUndone(entry, result)
    if should_stop():
        return
    if plan.placements:  # after the tags, which are where the files are now
        run_id = store.start_run("undo")
        yield from placing.take_back(Placements(store), plan.placements, run_id, should_stop)
        store.finish_run(run_id)
        if should_stop():
            return
    if plan.decisions:
        Decisions(store).withdraw_unwritten(run_id=plan.run_id, since=plan.since, below=plan.paths)
    if not plan.edits:
        return
    try:
        with connect() as plex:
            for edit, outcome in sync.undo_plex(
                plex,
                store,
                run_id=plan.run_id,
                paths=plan.paths,
                since=plan.since,
                should_stop=should_stop,
            ):
                yield EditUndone(edit, outcome)
    except (ConfigError, PlexError, StoreBusy) as error:
        yield PlexKept(error)
