"""What keeps a process from a store that must not be used: damage, a restore that did not end.

Beside the store lie, while they are needed: store.sqlite.damaged, which says what was found wrong
and by that stops every other process from writing music with it; store.sqlite.restoring, while
`restoring` puts another one in its place; store.sqlite.daemon, which the daemon holds locked.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

from reclass_plex.errors import StoreBusy, StoreDamaged, StoreError, printable
from reclass_plex.files import open_lock, try_lock
from reclass_plex.wal import log_path, read_log

log = logging.getLogger(__name__)

BUSY_SECONDS = 30  # how long to wait for another process's write
LOCK_PAUSE = 0.05  # seconds between looks whether a lock is free
QUICK_BYTES = 1 << 30  # of a store whose check costs a start some seconds at most


def damaged_marker(path: Path) -> Path:
    """Return the file that says that the store at `path` is damaged."""
    return path.with_name(path.name + ".damaged")


def restoring_marker(path: Path) -> Path:
    """Return the file that says that another store is being put in the place of that at `path`."""
    return path.with_name(path.name + ".restoring")


def users_lock(path: Path) -> Path:
    """Return the file that each process which has the store open holds locked with others."""
    return path.with_name(path.name + ".users")


def daemon_lock(path: Path) -> Path:
    """Return the file that the daemon of a store holds locked."""
    return path.with_name(path.name + ".daemon")


def is_damage(error: BaseException) -> bool:
    """Tell whether SQLite says that the file itself is broken."""
    text = str(error)
    return isinstance(error, sqlite3.DatabaseError) and (
        "malformed" in text or "not a database" in text
    )


def damage(path: Path, text: str) -> StoreDamaged:
    """Note that a store is damaged, for every process; return the error to raise."""
    with suppress(OSError):
        damaged_marker(path).write_text(text[:1000] + "\n", encoding="utf-8")
    return StoreDamaged.of(path, text)


def refuse_damaged(path: Path) -> None:
    """Raise StoreDamaged if that was noted: a look at one name, for each change of a file."""
    marker = damaged_marker(path)
    if os.path.lexists(marker):
        try:
            text = marker.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            text = "it was found so before"
        raise StoreDamaged.of(path, text)


def admit(path: Path, *, check: bool = False) -> IO[str]:
    """Let this process use a store until what is returned is closed, or raise StoreError.

    Who comes after an unclean end, and so alone, checks the store: first its log, as SQLite would
    drop without a word what it cannot read of it. With `check` one that is no larger than
    `QUICK_BYTES` is checked in any case. What was noted as damaged is checked as a whole
    once more: a disk that gave wrong bytes for a moment is no reason for ever.

    Whoever checks the store, or restores it, is waited for: what is written meanwhile would go to
    a store that is found damaged, or replaced. Raises StoreBusy if that takes too long.
    """
    _refuse_half_restored(path)
    users = open_lock(users_lock(path))
    try:
        alone = try_lock(users)
        if not alone:
            _share(users, path)
        if is_log_alone(path):
            raise StoreError(
                f"{printable(path)}: is gone, but its log, {log_path(path).name}, is there: put the"
                " file back, or give: reclass-plex restore, which takes over what is in the log"
                " (or move the log away to begin anew)"
            )
        unclean = alone and ended_uncleanly(path)
        if unclean and read_log(log_path(path)).damaged:
            raise damage(path, "pages in its log, the file -wal, are wrong")
        looks = unclean or (check and path.exists() and path.stat().st_size <= QUICK_BYTES)
        if looks and (faults := find_faults(path)):
            raise damage(path, "; ".join(faults))
        if os.path.lexists(damaged_marker(path)):
            if faults := find_faults(path, thorough=True):
                raise StoreDamaged.of(path, "; ".join(faults))
            log.warning("%s: was found damaged before, and is whole now", printable(path))
            damaged_marker(path).unlink(missing_ok=True)
        if alone:
            _share(users, path)
        _refuse_half_restored(path)  # one may have begun, and been killed, while it was waited for
    except BaseException:
        users.close()
        raise
    return users


def _refuse_half_restored(path: Path) -> None:
    if os.path.lexists(restoring_marker(path)):
        raise StoreError(
            f"{printable(path)}: a restore of it did not end: give reclass-plex restore again,"
            " which goes on from there"
        )


def _share(users: IO[str], path: Path) -> None:
    """Hold the lock of a store's users with others, once nobody holds it alone."""
    until = time.monotonic() + BUSY_SECONDS
    while not try_lock(users, shared=True):
        if time.monotonic() >= until:
            raise StoreBusy(
                f"another reclass-plex checks or restores the store {printable(path)}: wait until"
                " it ends"
            )
        time.sleep(LOCK_PAUSE)


def is_log_alone(path: Path) -> bool:
    """Tell whether of a store only the log is left: SQLite would drop that without a word."""
    try:
        there = path.exists() and path.stat().st_size > 0
        return not there and log_path(path).stat().st_size > 0
    except OSError:
        return False


def ended_uncleanly(path: Path) -> bool:
    """Tell whether who used the store last was killed, or uses it now: its log is still there."""
    try:
        return path.exists() and log_path(path).stat().st_size > 0
    except OSError:
        return False


def find_faults(path: Path, *, thorough: bool = False) -> list[str]:
    """Return what SQLite finds wrong with a store that is there; nothing when it is whole.

    `thorough` also compares every index with its table. Raises StoreError if it cannot be read.
    """
    check = "integrity_check" if thorough else "quick_check"
    try:
        uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro"  # leaves its log alone
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
            rows = [str(row[0]) for row in connection.execute(f"PRAGMA {check}(5)")]
    except sqlite3.Error as error:
        if is_damage(error):
            return [str(error)]
        raise StoreError(f"{printable(path)}: cannot be checked: {error}") from error
    return [row for row in rows if row != "ok"]


@contextmanager
def hold_daemon_lock(path: Path) -> Iterator[None]:
    """Hold the right to be the daemon of a store. Raises StoreBusy if there is one."""
    with open_lock(daemon_lock(path)) as lock:
        if not try_lock(lock):
            raise StoreBusy(
                f"a reclass-plexd runs already with the store {printable(path)}: stop it"
                " first (systemctl stop reclass-plex), or use another store"
            )
        yield
