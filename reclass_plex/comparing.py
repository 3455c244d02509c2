"""After a restore: what files say, against what the restored journal says of them.

The journal may end before what was last written. So each known file whose size or time is another
is looked at, and
1. has the bytes that a change wrote: the change took place, and can be undone;
2. has the bytes from before some changes: these were taken back since;
3. has other bytes, but the genre that is known: somebody edited other tags;
4. or is as it is known, but the change that made it so is lost: it cannot be undone. It is named;
5. else its genre is one that the journal knows nothing of: it stays, it is not claimed as ours, and
   nobody can undo it. It is named, too.
Nothing is written to any file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reclass_plex import changes, placing
from reclass_plex.config import TagOptions
from reclass_plex.decoders import Decoders
from reclass_plex.errors import FileError
from reclass_plex.files import hash_file, open_regular
from reclass_plex.placements import Placements
from reclass_plex.store import JournalEntry, KnownTrack, Store

RUN = "restore"  # command of the run that stands for a restore in the history
Kind = Literal["written", "taken back", "edited", "unknown", "other", "unreadable"]


@dataclass(frozen=True)
class Difference:
    """A file that is not as the restored store had it; `text` says it to people."""

    path: Path
    kind: Kind
    text: str


def compare_if_due(
    store: Store, options: TagOptions, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Difference]:
    """Settle and compare if the store was restored and nobody did so to the end yet.

    Needs `Store.writing_files`. Killed or stopped, the next one begins anew.
    """
    due = store.unfinished_runs(RUN)
    if not due:
        return
    _settle(store, options)
    yield from _compare_files(store, options, should_stop)
    if not should_stop():
        for run in due:
            store.finish_run(run)


def _settle(store: Store, options: TagOptions) -> None:
    """Settle what had been begun when the backup was made."""
    for _ in changes.repair(store, options):
        pass
    # `placing.repair` would go on with moves; these are long over, one way or the other.
    placements = Placements(store)
    for one in placements.pending():
        placements.settle("done" if placing.holds(one.target, one.hash) else "abandoned", one.id)


def _compare_files(
    store: Store, options: TagOptions, should_stop: Callable[[], bool]
) -> Iterator[Difference]:
    """Bring the journal in line with the files, and yield each file that differs."""
    journaled = store.standing_writes()
    with Decoders(1) as apart:
        for track in store.iter_known():
            if should_stop():
                return
            try:
                status = track.path.stat()
            except OSError:  # moved, deleted, or its disk is away: found again by its audio
                continue
            if track.digest is None:
                continue
            if (status.st_size, status.st_mtime_ns) == (track.size, track.mtime_ns):
                written = track.written if not track.undone else None
                if written is not None and (track.digest, written) not in journaled:
                    said = ", ".join(written)
                    text = f"we wrote {said}, but what it takes to undo that is lost"
                    yield Difference(track.path, "unknown", text)
                continue
            try:
                yield _compare(store, track, status, options, apart)
            except FileError as error:
                yield Difference(track.path, "unreadable", error.reason)
            except OSError as error:
                yield Difference(track.path, "unreadable", error.strerror or str(error))


def _compare(
    store: Store,
    track: KnownTrack,
    status: os.stat_result,
    options: TagOptions,
    apart: Decoders,
) -> Difference:
    path, stamp = track.path, (status.st_size, status.st_mtime_ns)
    entries = [one for one in store.changes(track_ids=[track.id]) if one.track_id == track.id]
    with open_regular(path) as file:
        current = hash_file(file).hex()
    if entries and current == entries[0].after_hash:
        if track.genres != entries[0].after or track.written is None:
            store.finish_change(entries[0].id, *stamp)
        else:
            _note_stamp(store, track, stamp)
        return Difference(path, "written", "is as the journal says; it can be undone")
    if taken := _taken_back(entries, current):
        for entry in taken:
            store.finish_undo(entry.id, path, *stamp)
        return Difference(path, "taken back", "was taken back since the backup")
    tags, digest = apart.examine(path, options)  # it may be anything
    if digest != track.digest:
        return Difference(path, "other", "another recording is there now")
    if tags.genres == track.genres:
        _note_stamp(store, track, stamp)
        return Difference(path, "edited", "other tags than its genre were edited")
    said, known = (", ".join(names) or "no genre" for names in (tags.genres, track.genres))
    return Difference(
        path,
        "unknown",
        f"says {said}, and {known} when it was last known: taken for yours, and not to be undone",
    )


def _taken_back(entries: list[JournalEntry], current: str) -> list[JournalEntry]:
    """Return the newest changes, down to the one from before which a file has its bytes."""
    for at, entry in enumerate(entries):
        if entry.before_hash == current:
            return entries[: at + 1]
    return []


def _note_stamp(store: Store, track: KnownTrack, stamp: tuple[int, int]) -> None:
    store.save_track(
        track.path,
        *stamp,
        digest=track.digest,
        genres=track.genres,
        album=track.album,
        moods=track.moods,
    )
