"""Changing files so that every change is known, and can be taken back.

A change goes: checked copy beside the file -> journal row "pending", durable -> rename -> row
"done". Killed before the row: only a copy is left over. Killed after: the row is pending, and the
file's hash tells whether it is the old or the new one. `repair` settles both at the next start.
All of this needs the right to change files (`Store.writing_files`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reclass_plex import tags
from reclass_plex.config import TagOptions
from reclass_plex.errors import EditedSince, FileChanged, FileError, printable
from reclass_plex.files import find_leftovers, hash_file, leftover_token, open_regular
from reclass_plex.store import JournalEntry, KnownTrack, Store


@dataclass(frozen=True)
class UndoResult:
    """What became of one change that was to be taken back; `how` says it to people."""

    restored: bool
    how: str


def apply_genres(
    store: Store, run_id: int, track: KnownTrack, genres: tuple[str, ...], options: TagOptions
) -> bool:
    """Write `genres` into a file; return False if it says so already.

    Raises FileError (see `tags.prepare_write`); the file is then as it was.
    """
    known = tags.KnownAudio(track.digest, track.size, track.mtime_ns) if track.digest else None
    prepared = tags.prepare_write(track.path, genres, options, known=known)
    if prepared is None:
        return False
    try:
        entry_id = store.begin_change(
            run_id,
            track.id,
            path=prepared.path,
            temp_path=prepared.temp_path,
            before=prepared.before,
            after=prepared.after,
            before_hash=prepared.before_hash,
            after_hash=prepared.after_hash,
            before_mtime_ns=prepared.before_stamp.mtime_ns,
            delta=prepared.delta,
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


def repair(store: Store) -> Iterator[str]:
    """Settle the changes of a process that was killed; yield a line for people about each."""
    for entry in store.pending_changes():
        name = printable(entry.path)
        try:
            current = _hash(entry.path)
        except (FileError, OSError) as error:
            reason = getattr(error, "reason", error)
            yield f"{name}: whether an interrupted change took place is not known yet: {reason}"
            continue
        # Neither old nor new: edited by someone since. As long as the copy is there, the rename
        # did not take place.
        replaced = current == entry.after_hash or (
            current not in (None, entry.before_hash) and not entry.temp_path.exists()
        )
        with suppress(OSError):
            entry.temp_path.unlink()
        if replaced:
            status = entry.path.stat()
            store.finish_change(entry.id, status.st_size, status.st_mtime_ns)
            yield f"{name}: an interrupted change had taken place; it can be undone"
        else:
            store.abandon_change(entry.id)
            yield f"{name}: an interrupted change had not taken place"


def remove_leftovers(store: Store, paths: Iterable[Path]) -> None:
    """Remove the temporary copies among `paths` whose writer was killed before it could journal.

    Only those of processes that worked with this store: another one's may still be in use.
    """
    dead = store.dead_tokens()
    for path in paths:
        if leftover_token(path.name) in dead:
            with suppress(OSError):
                path.unlink()


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
    for entry in entries:
        if should_stop():
            break
        yield entry, undo_change(store, entry, options)
    store.finish_run(run_id)


def undo_change(store: Store, entry: JournalEntry, options: TagOptions) -> UndoResult:
    """Take one change back: the exact former bytes, or where the file was edited since, the genre.

    A genre that was edited since stays. Never raises FileError: the result says what is wrong.
    """
    path = entry.path
    try:
        status = tags.restore_bytes(
            path,
            store.read_delta(entry.id),
            entry.before_hash,
            entry.after_hash,
            mtime_ns=entry.before_mtime_ns,
            options=options,
        )
        how = "restored byte for byte"
    except EditedSince:
        try:
            prepared = tags.restore_genre(path, entry.before, entry.after, options)
            status = path.stat() if prepared is None else prepared.commit()
            how = "edited since, so only its genre was restored"
        except EditedSince as error:
            return UndoResult(False, f"kept: {error.reason}")
        except (FileError, OSError) as error:
            return UndoResult(False, f"not restored: {getattr(error, 'reason', error)}")
    except FileError as error:
        return UndoResult(False, f"not restored: {error.reason}")
    store.finish_undo(entry.id, status.st_size, status.st_mtime_ns)
    return UndoResult(True, how)


def _hash(path: Path) -> str | None:
    """Return the hash of a whole file, None if it was deleted.

    A missing folder may be a mount that comes back, so it is an error like any other.
    """
    try:
        with open_regular(path) as file:
            return hash_file(file).hex()
    except FileChanged:
        if path.parent.is_dir():
            return None
        raise
