"""Nightly care for the store: forget what is no longer needed, back up, check, compact.

Backups lie beside the store as store.sqlite.backup-1 (the newest) to -3. One takes its place only
when it is whole, checked and on disk, so that a kill, a full disk or a damaged store costs none of
those before. To restore one: stop the daemon, remove store.sqlite-wal and store.sqlite-shm, and
copy the backup over store.sqlite.

No statistics are gathered (ANALYZE, PRAGMA optimize): taken at night, when every job is done, they
would make SQLite read the whole queue at each claim of the day.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reclass_plex.errors import StoreError, printable
from reclass_plex.files import SPACE_MARGIN
from reclass_plex.jobs import Jobs
from reclass_plex.store import BUSY_SECONDS, Store

log = logging.getLogger(__name__)

DAY = 86400.0  # seconds
KEEP_BACKUPS = 3
KEEP_DONE_DAYS = 30  # jobs that are done
OVERDUE_DAYS = 1.5  # since the last backup
SPARE_BYTES = 16 << 20  # free pages in the store that are worth a rewrite of all of it,
SPARE_SHARE = 0.25  # if they are this part of it
_PAGES = 1000  # copied at a time
_ROWS = 500  # changed in one transaction
_INSTRUCTIONS = 100_000  # of SQLite, some ms, between questions whether to stop


@dataclass(frozen=True)
class Upkeep:
    """What was done: jobs dropped, deltas forgotten, bytes given back, the backup's path.

    `backup` is None if it was stopped before it was done.
    """

    pruned: int = 0
    forgotten: int = 0
    freed: int = 0
    backup: Path | None = None


def care_for(
    store: Store,
    jobs: Jobs,
    now: float,
    *,
    keep_undo_days: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Upkeep:
    """Do all that is to be done each night; it may be stopped or killed at any time.

    Others go on reading and writing, but while the store is compacted, which is rare. Raises
    StoreError when there is no space for a backup, or the store is damaged.
    """
    began = time.perf_counter()
    pruned = jobs.prune(now - KEEP_DONE_DAYS * DAY)
    before = -1.0 if keep_undo_days is None else now - keep_undo_days * DAY
    with closing(_connect(store.path)) as connection:
        forgotten = freed = 0
        backup = None
        connection.set_progress_handler(lambda: int(should_stop()), _INSTRUCTIONS)
        try:
            with _explaining(store.path):
                forgotten = _forget_deltas(connection, before, should_stop)
                backup = back_up(store, should_stop)
                freed = _compact(connection, store.path)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or as far as it can now
        except _Stopped:
            pass
    log.info(
        "cared for the store in %.1f s: %d old jobs dropped, %d changes can no longer be undone"
        " byte for byte, %.0f MiB freed, %s",
        *(time.perf_counter() - began, pruned, forgotten, freed / (1 << 20)),
        "stopped before the end" if backup is None else f"backup in {printable(backup)}",
    )
    return Upkeep(pruned, forgotten, freed, backup)


def is_overdue(store_path: Path, now: float) -> bool:
    """Tell whether the last backup is old, or there is none: the machine is off at night."""
    try:
        made = _backup_path(store_path, 1).stat().st_mtime
    except OSError:
        return store_path.exists()
    return now - made > OVERDUE_DAYS * DAY


class _Stopped(Exception):
    """It was asked to stop."""


def back_up(store: Store, should_stop: Callable[[], bool] = lambda: False) -> Path | None:
    """Copy the store as it is now, beside it; return the copy's path, None if it was stopped.

    Raises StoreError when there is no space for it, or the copy, as the store, is damaged.
    """
    path = store.path
    copy = path.with_name(path.name + ".backup.tmp")
    _check_space(path)
    try:
        with _explaining(path):
            _remove(copy)  # of one that was killed
            os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            with closing(_connect(path)) as source, closing(_connect(copy)) as target:
                _copy(source, target, should_stop)
                target.set_progress_handler(lambda: int(should_stop()), _INSTRUCTIONS)
                found = [row[0] for row in target.execute("PRAGMA quick_check(5)")]
            if found != ["ok"]:
                raise StoreError(
                    f"{printable(path)}: the store is damaged ({'; '.join(found)[:200]}): the"
                    f" backups {_backup_path(path, 1).name} and older are kept; stop the daemon,"
                    " keep a copy of the store, and restore the newest backup that is whole"
                )
            _sync(copy)
            _make_room(path)
            os.replace(copy, _backup_path(path, 1))  # noqa: PTH105 - rename(2), named as such
            _sync(path.parent)
    except _Stopped:
        return None
    finally:
        with suppress(OSError):
            _remove(copy)
    return _backup_path(path, 1)


def _copy(
    source: sqlite3.Connection, target: sqlite3.Connection, should_stop: Callable[[], bool]
) -> None:
    """Copy page by page, while others write."""

    def ask(_status: int, _remaining: int, _total: int) -> None:
        if should_stop():
            raise _Stopped

    # The copy is worth nothing until it is whole: it needs no journal, and one sync at the end.
    target.execute("PRAGMA journal_mode = OFF")
    target.execute("PRAGMA synchronous = OFF")
    # A read that stays open holds one state of the store; without it SQLite begins the copy anew
    # after every write of another connection.
    source.execute("BEGIN")
    source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    source.backup(target, pages=_PAGES, progress=ask, sleep=0.0)
    source.execute("ROLLBACK")


def _forget_deltas(
    connection: sqlite3.Connection, before: float, should_stop: Callable[[], bool]
) -> int:
    """Empty the deltas of old changes, and of those that do not stand; return how many stood.

    The rows stay: they are the history, and hold the former genre.
    """
    rows = connection.execute(
        "SELECT id, state = 'done' FROM journal WHERE length(delta) > 0"
        " AND (state IN ('undone', 'abandoned') OR (state = 'done' AND created < ?))",
        (before,),
    ).fetchall()
    forgotten = 0
    for first in range(0, len(rows), _ROWS):
        if should_stop():
            raise _Stopped
        chunk = rows[first : first + _ROWS]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "UPDATE journal SET delta = x'' WHERE id = ?", [(row[0],) for row in chunk]
        )
        connection.execute("COMMIT")
        forgotten += sum(row[1] for row in chunk)
    return forgotten


def _compact(connection: sqlite3.Connection, path: Path) -> int:
    """Rewrite the store if much of it is free; return how many bytes that gave back."""
    size, total, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    if free * size < SPARE_BYTES or free < SPARE_SHARE * total:
        return 0
    # VACUUM writes a copy, and then all of it into the write-ahead log.
    if shutil.disk_usage(path.parent).free < 2 * (total - free) * size + SPACE_MARGIN:
        log.warning("%s: too little space on its disk to compact it", printable(path))
        return 0
    connection.execute("VACUUM")
    return int(free * size)


def _check_space(path: Path) -> None:
    with _explaining(path):
        disk = shutil.disk_usage(path.parent)
        log_path = path.with_name(path.name + "-wal")
        needed = path.stat().st_size + SPACE_MARGIN
        if log_path.exists():
            needed += log_path.stat().st_size
    if disk.total and disk.free < needed:  # some network file systems report no blocks at all
        raise StoreError(
            f"{printable(path)}: a backup needs {needed >> 20} MiB of free space on its disk, which"
            f" has {disk.free >> 20}: free some; the store and its former backups are whole"
        )


def _make_room(path: Path) -> None:
    """Move the backups on, up to a gap that a kill has left, so that the newest has no file."""
    gap = 1
    while gap < KEEP_BACKUPS and _backup_path(path, gap).exists():
        gap += 1
    for number in range(gap, 1, -1):
        os.replace(_backup_path(path, number - 1), _backup_path(path, number))  # noqa: PTH105


def _backup_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.backup-{number}")


def _remove(copy: Path) -> None:
    for name in ("", "-journal", "-wal", "-shm"):
        copy.with_name(copy.name + name).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(os.fspath(path), timeout=BUSY_SECONDS, isolation_level=None)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk refuse into StoreError, and an interrupt into _Stopped."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if isinstance(error, sqlite3.Error) and "interrupt" in text:
            raise _Stopped from error
        hint = ""
        if "full" in text or "No space" in text:
            hint = ": free some space on its disk; the store and its former backups are whole"
        raise StoreError(f"{printable(path)}: the nightly care failed: {text}{hint}") from error
