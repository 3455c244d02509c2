"""Changing files so that every change is known, and can be taken back.

A change goes: checked copy beside the file -> journal row "pending", durable -> rename -> row
"done". Killed before the row: only a copy is left over. Killed after: the row is pending, and the
file's hash tells whether it is the old or the new one. `repair` settles both at the next start.
All of this needs the right to change files (`Store.writing_files`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.config import TagOptions
from reclass_plex.decoders import Decoders
from reclass_plex.errors import EditedSince, FileChanged, FileError, printable
from reclass_plex.files import find_leftovers, hash_file, leftover_token, open_regular
from reclass_plex.store import JournalEntry, KnownTrack, Store

if TYPE_CHECKING:
    from reclass_plex.tags import FileTags

MTIME_STEP_NS = 2_000_000_000  # of the coarsest file system (FAT)


@dataclass(frozen=True)
class UndoResult:
    """What became of one change that was to be taken back; `how` says it to people."""

    restored: bool
    how: str


@dataclass(frozen=True)
class _Restored:
    """What a file is and says after a change was taken back (`moods` None: as before)."""

    status: os.stat_result
    how: str
    genres: tuple[str, ...]
    moods: tuple[str, ...] | None


def apply_tags(
    store: Store,
    run_id: int,
    track: KnownTrack,
    genres: tuple[str, ...],
    options: TagOptions,
    *,
    moods: tuple[str, ...] | None = None,
) -> bool:
    """Write `genres` into a file, and `moods` if it has none; return False if it says so already.

    Raises FileError (see `tags.prepare_write`), FileChanged if it does not say what was planned
    for; the file is then as it was.
    """
    from reclass_plex import tags

    known = tags.KnownAudio(track.digest, track.size, track.mtime_ns) if track.digest else None
    prepared = tags.prepare_write(track.path, genres, options, moods=moods, known=known)
    if prepared is None:
        return False
    try:
        if prepared.before != track.genres:
            raise FileChanged(track.path, "got another genre meanwhile; run again")
        if moods is not None and prepared.moods_before:
            raise FileChanged(track.path, "got a mood meanwhile; run again")
        entry_id = store.begin_change(
            run_id,
            track.id,
            path=prepared.path,
            temp_path=prepared.temp_path,
            digest=prepared.digest,
            before=prepared.before,
            after=prepared.after,
            before_hash=prepared.before_hash,
            after_hash=prepared.after_hash,
            before_mtime_ns=prepared.before_stamp.mtime_ns,
            delta=prepared.delta,
            moods=moods,
        )
    except BaseException:
        prepared.abandon()
        raise
    try:
        status = prepared.commit()
    except FileError:
        store.abandon_change(entry_id)
        raise
    store.finish_change(entry_id, status.st_size, status.st_mtime_ns)
    return True


def repair(store: Store, options: TagOptions) -> Iterator[str]:
    """Settle what killed processes left open; yield a line for people about each change."""
    for entry in store.pending_changes():
        name = printable(entry.path)
        try:
            with open_regular(entry.path) as file:
                status = os.fstat(file.fileno())  # first: what changes it later is then noticed
                current = hash_file(file).hex()
        except (FileError, OSError):
            if entry.path.parent.is_dir() and not os.path.lexists(entry.path):  # moved or deleted
                store.assume_change(entry.id)
                yield f"{name}: a change was interrupted, and the file is not there now"
            else:  # on a disk that is away, or fails: it may be old or new
                yield f"{name}: a change was interrupted; whether it took place is seen later"
            continue
        # Neither old nor new: edited by someone since. As long as the copy is there, the rename
        # did not take place.
        replaced = current == entry.after_hash or (
            current != entry.before_hash and not entry.temp_path.exists()
        )
        with suppress(OSError):
            entry.temp_path.unlink()
        if replaced:
            store.finish_change(entry.id, status.st_size, status.st_mtime_ns)
            yield f"{name}: an interrupted change had taken place; it can be undone"
        else:
            store.abandon_change(entry.id)
            yield f"{name}: an interrupted change had not taken place"
    yield from _settle_undone(store, options)


def _settle_undone(store: Store, options: TagOptions) -> Iterator[str]:
    """Close the changes of files that have what they had: an undo had no time to say so."""
    cut_off = store.unfinished_runs("undo")
    if not cut_off:
        return
    since = min(cut_off.values())
    for entry in store.changes():
        try:
            done = _undone_since(entry, since, options)
        except (FileError, OSError):
            continue
        if done is None:
            continue
        store.finish_undo(
            entry.id,
            entry.path,
            done.status.st_size,
            done.status.st_mtime_ns,
            genres=done.genres,
            moods=done.moods,
        )
        yield f"{printable(entry.path)}: an interrupted undo had taken place"
    for run_id in cut_off:
        store.finish_run(run_id)


def _undone_since(entry: JournalEntry, since: float, options: TagOptions) -> _Restored | None:
    """Return what a file says from which an undo that began at `since` took a change back.

    Its former bytes came with their former time. Where its owner had edited it, only what we wrote
    was taken back: then it says what it said before us, and the system saw it change since. None if
    neither is so.
    """
    from reclass_plex import tags

    status = entry.path.stat()
    moods = None if entry.moods is None else ()
    if abs(status.st_mtime_ns - entry.before_mtime_ns) <= MTIME_STEP_NS:
        with open_regular(entry.path) as file:
            if hash_file(file).hex() == entry.before_hash:
                return _Restored(status, "", entry.before, moods)
    if status.st_ctime < since - MTIME_STEP_NS / 1e9:
        return None
    found = tags.read_tags(entry.path, options)
    genre_is_back = entry.before in (entry.after, found.genres)
    if genre_is_back and (entry.moods is None or not found.moods):
        return _Restored(status, "", found.genres, moods)
    return None


def remove_leftovers(store: Store, paths: Iterable[Path]) -> None:
    """Remove the temporary copies among `paths` whose writer was killed before it could journal.

    Only those of processes that worked with this store: another one's may still be in use.
    """
    dead = store.dead_tokens()
    for path in paths:
        if leftover_token(path.name) in dead:
            with suppress(OSError):
                path.unlink()


def find_changes(
    store: Store,
    *,
    run_id: int | None = None,
    path: Path | None = None,
    since: float | None = None,
    track_ids: Collection[int] | None = None,
) -> list[JournalEntry]:
    """Return the changes that stand, newest first, each with the path where its file is now.

    A file that moved is found by its audio and its bytes. `path` is a file or a folder,
    `track_ids` are of at most some hundred tracks.
    """
    taken: set[Path] = set()
    entries = [
        replace(entry, path=_locate(store, entry, taken))
        for entry in store.changes(run_id=run_id, since=since, track_ids=track_ids)
    ]
    wanted: set[Path] = set()
    if path is not None:
        wanted = with_real([path])
    elif track_ids is not None:
        wanted = with_real([track.path for track in store.find_tracks(track_ids, "")])
    else:
        return entries
    return [
        entry
        for entry in entries
        if any(
            not wanted.isdisjoint((place, *place.parents)) for place in (entry.path, entry.named)
        )
    ]


def with_real(paths: Iterable[Path]) -> set[Path]:
    """Return paths, and what they are when links are followed."""
    return {one for path in paths for one in (path, Path(os.path.realpath(path)))}


def _locate(store: Store, entry: JournalEntry, taken: set[Path]) -> Path:
    """Return where the changed file is: where it was, or where it is known to have moved.

    Of several that moved and are the same each is a place of its own: those `taken` are left out.
    """
    if not os.path.lexists(entry.path):
        for path in store.places_of(entry):
            if path in taken:
                continue
            with suppress(FileError, OSError), open_regular(path) as file:
                if hash_file(file).hex() == entry.after_hash:
                    taken.add(path)
                    return path
    return entry.path


def undo_changes(
    store: Store,
    entries: Sequence[JournalEntry],
    options: TagOptions,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[JournalEntry, UndoResult]]:
    """Take changes back, in the given order (newest first), as a run of its own."""
    for folder in {entry.path.parent for entry in entries}:
        remove_leftovers(store, find_leftovers(folder))
    run_id = store.start_run("undo")
    with Decoders(1) as apart:
        for entry in entries:
            if should_stop():
                break
            yield entry, undo_change(store, entry, options, apart)
    store.finish_run(run_id)


def undo_change(
    store: Store, entry: JournalEntry, options: TagOptions, apart: Decoders | None = None
) -> UndoResult:
    """Take one change back: the exact former bytes, or where the file was edited since, the genre
    and the moods that we wrote.

    What was edited of these since stays. What is there now is first read in a process of `apart`:
    it may be anything. Never raises FileError: the result says what is wrong.
    """
    if apart is None:
        with Decoders(1) as one:
            return undo_change(store, entry, options, one)
    try:
        now = _restore(store, entry, options, apart)
    except FileError as error:
        verb = "kept" if isinstance(error, EditedSince) else "not restored"
        return UndoResult(False, f"{verb}: {error.reason}")
    except OSError as error:
        return UndoResult(False, f"not restored: {error.strerror or error}")
    store.finish_undo(
        entry.id,
        entry.path,
        now.status.st_size,
        now.status.st_mtime_ns,
        genres=now.genres,
        moods=now.moods,
    )
    return UndoResult(True, now.how)


def _restore(store: Store, entry: JournalEntry, options: TagOptions, apart: Decoders) -> _Restored:
    from reclass_plex import tags

    path = entry.path
    delta = store.read_delta(entry.id)
    why = "edited since"
    try:
        if not delta:  # forgotten, see schedule.keep_undo_days
            why = "too long ago for its former bytes"
            raise EditedSince(path, "its former bytes were forgotten")
        status = tags.restore_bytes(
            path,
            delta,
            entry.before_hash,
            entry.after_hash,
            mtime_ns=entry.before_mtime_ns,
            options=options,
        )
        moods = None if entry.moods is None else ()
        return _Restored(status, "restored byte for byte", entry.before, moods)
    except EditedSince:
        if apart.digest(path) != entry.digest:
            raise EditedSince(path, "another recording is there now") from None
        found, prepared = tags.restore_names(
            path, entry.before, entry.after, options, moods=entry.moods
        )
        how = f"{why}, so only {_taken(entry, found)}"
        if prepared is None:
            return _Restored(path.stat(), how, found.genres, found.moods)
        return _Restored(prepared.commit(), how, prepared.after, prepared.moods_after)


def _taken(entry: JournalEntry, found: FileTags) -> str:
    """Say what of a change could be taken back from a file that says `found`."""
    if entry.before == entry.after:
        return "its mood was restored"
    if found.genres not in (entry.before, entry.after):
        return "its mood was restored; the genre is yours"
    return "its genre was restored"
