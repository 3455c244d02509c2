"""Nightly care for the store: forget what is no longer needed, back up, check, compact.

Where backups lie and how long they are kept, see `backups`; `reclass-plex restore` puts one back.

No statistics are gathered (ANALYZE, PRAGMA optimize): taken at night, when every job is done, they
would make SQLite read the whole queue at each claim of the day.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from reclass_plex.backups import (
    DAY,
    KEEP_DAYS,
    KEEP_WEEKS,
    Stopped,
    explaining,
    make_backup,
    newest_age,
    remove_expired,
)
from reclass_plex.errors import printable
from reclass_plex.files import SPACE_MARGIN
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store
from reclass_plex.store_guard import BUSY_SECONDS

log = logging.getLogger(__name__)

KEEP_DONE_DAYS = 30  # jobs that are done
OVERDUE_DAYS = 1.5  # since the last backup
SPARE_BYTES = 16 << 20  # free pages in the store that are worth a rewrite of all of it,
SPARE_SHARE = 0.25  # if they are this part of it
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
    backup_days: int = KEEP_DAYS,
    backup_weeks: int = KEEP_WEEKS,
    should_stop: Callable[[], bool] = lambda: False,
) -> Upkeep:
    """Do all that is to be done each night; it may be stopped or killed at any time.

    Others go on reading and writing, but while the store is compacted, which is rare. Raises
    StoreError when there is no space for a backup, StoreDamaged when the store is damaged.
    """
    began = time.perf_counter()
    pruned = jobs.prune(now - KEEP_DONE_DAYS * DAY)
    before = -1.0 if keep_undo_days is None else now - keep_undo_days * DAY
    with closing(_connect(store.path)) as connection:
        forgotten = freed = 0
        backup = None
        connection.set_progress_handler(lambda: int(should_stop()), _INSTRUCTIONS)
        try:
            with explaining(store.path, "the nightly care"):
                forgotten = _forget_deltas(connection, before, should_stop)
                backup = make_backup(store.path, should_stop=should_stop)
                if backup is None:
                    raise Stopped
                remove_expired(store.path, days=backup_days, weeks=backup_weeks)
                freed = _compact(connection, store.path)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or as far as it can now
        except Stopped:
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
    age = newest_age(store_path, now)
    return store_path.exists() if age is None else age > OVERDUE_DAYS * DAY


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
            raise Stopped
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


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(os.fspath(path), timeout=BUSY_SECONDS, isolation_level=None)
