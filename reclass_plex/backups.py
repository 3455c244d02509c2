"""Copies of the store that are whole: made while others write, checked, rotated, looked into.

They lie in the folder `backups` beside the store, and their names say when they were made (UTC):
store.sqlite-20261126T040000Z; store.sqlite-20261126T040000Z.before-0002 was made by the release
that brought the schema from another one to 0002. Each is a plain SQLite file, and appears under
its name only when it is whole, checked and on disk: a kill, a full disk or a damaged store costs
none of those before. `restoring` puts one back.

Not in them, on purpose: the index of similar music (derived, made anew), the configuration and its
secrets, the password and the webhook's key (files of their own, which no restored store may turn
back), and models (docs/backup.md).
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote

from reclass_plex.errors import StoreDamaged, StoreError, printable
from reclass_plex.files import SPACE_MARGIN, give_to_owner, hold_lock
from reclass_plex.store_guard import BUSY_SECONDS, damage, is_damage

DAY = 86400.0  # seconds
FOLDER = "backups"
KEEP_DAYS = 7  # newest days of which the newest backup is kept,
KEEP_WEEKS = 4  # and weeks before these
KEEP_BEFORE = 2  # newest ones that were made before the schema changed
_AHEAD = DAY  # a name that lies so far in the future is of a clock that was wrong
_PAGES = 1000  # copied at a time
_INSTRUCTIONS = 100_000  # of SQLite, some ms, between questions whether to stop
_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Backup:
    """A copy of the store. `made` is in seconds since the epoch, `size` in bytes.

    `before` is the schema that the store had not reached yet when it was made (None: of any day).
    """

    path: Path
    made: float
    size: int
    before: str | None = None


@dataclass(frozen=True)
class Contents:
    """What is in a store: its schema, and counts of rows. `undoable` changes stand."""

    schema: str | None
    tracks: int
    runs: int
    undoable: int


class Stopped(Exception):
    """It was asked to stop."""


def list_backups(store_path: Path) -> list[Backup]:
    """Return the backups of a store, newest first."""
    name = re.compile(re.escape(store_path.name) + r"-(\d{8}T\d{6}Z)(?:\.before-(\w+))?")
    found = []
    try:
        entries = list(_folder(store_path).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{printable(_folder(store_path))}: cannot be read: {error}") from error
    for path in entries:
        if match := name.fullmatch(path.name):
            with suppress(ValueError, OSError):
                made = datetime.strptime(match[1], _TIME).replace(tzinfo=timezone.utc)
                found.append(Backup(path, made.timestamp(), path.stat().st_size, match[2]))
    return sorted(found, key=lambda one: one.made, reverse=True)


def newest_age(store_path: Path, now: float) -> float | None:
    """Return the age of the newest backup in seconds; None if there is none.

    One from the future does not count: the clock was wrong then, or is now.
    """
    ages = [now - one.made for one in list_backups(store_path) if one.made <= now + _AHEAD]
    return max(0.0, min(ages)) if ages else None


def describe_age(seconds: float) -> str:
    """Say an age to people: 5 minutes, 7 hours, 3 days."""
    for unit, name in ((DAY, "days"), (3600.0, "hours")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0.0, seconds) / 60:.0f} minutes"


def make_backup(
    store_path: Path,
    *,
    before: str | None = None,
    to: Path | None = None,
    now: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Copy the store as it is now; return the copy's path, None if it was stopped.

    `to` is a file that is not there yet. Raises StoreError when there is no space for it, and
    StoreDamaged when the copy, and so the store, is not whole.
    """
    if not store_path.exists():
        raise StoreError(f"{printable(store_path)}: there is no store yet, so nothing to back up")
    folder = _folder(store_path) if to is None else to.parent
    with explaining(store_path, "the backup"):
        if to is None:
            _make_folder(folder)
        with hold_lock(store_path.with_name(store_path.name + ".backup-lock")):
            if to is not None and os.path.lexists(to):
                raise StoreError(f"{printable(to)}: is there already; name another file")
            target = to or _free_name(store_path, before, time.time() if now is None else now)
            copy = folder / f".{(store_path if to is None else to).name[:200]}.tmp"
            _check_space(store_path, folder)
            try:
                remove_store(copy)  # of one that was killed
                _copy(store_path, copy, should_stop)
                os.replace(copy, target)  # noqa: PTH105 - rename(2), named as such
                _sync(folder)
            except Stopped:
                return None
            finally:
                with suppress(OSError):
                    remove_store(copy)
    return target


def remove_expired(
    store_path: Path, *, days: int = KEEP_DAYS, weeks: int = KEEP_WEEKS, now: float | None = None
) -> list[Path]:
    """Remove the backups that `find_expired` names; return them."""
    now = time.time() if now is None else now
    gone = []
    for one in find_expired(list_backups(store_path), days=days, weeks=weeks, now=now):
        with explaining(store_path, "the rotation of backups"), suppress(FileNotFoundError):
            one.path.unlink()
            gone.append(one.path)
    return gone


def find_expired(
    backups: Collection[Backup], *, days: int, weeks: int, now: float
) -> Sequence[Backup]:
    """Return the backups that are not needed any more.

    Kept are: the newest of each of the `days` newest days that have one; of those older than
    these, the newest of each of the `weeks` newest weeks; and the `KEEP_BEFORE` newest that were
    made before the schema changed. Days and weeks are local. Those from the future come last.
    """
    order = sorted(backups, key=lambda one: (one.made <= now + _AHEAD, one.made), reverse=True)
    kept = {one.path for one in [one for one in order if one.before][:KEEP_BEFORE]}
    dates: list[object] = []
    newest: list[object] = []
    for one in order:
        date = datetime.fromtimestamp(one.made).date()
        if date in dates:
            continue
        if len(dates) < days:
            dates.append(date)
            kept.add(one.path)
            continue
        week = date.isocalendar()[:2]
        if week not in newest and len(newest) < weeks:
            newest.append(week)
            kept.add(one.path)
    return [one for one in order if one.path not in kept]


def look_into(path: Path) -> Contents:
    """Return what is in a backup, which nobody writes to.

    Raises StoreDamaged if it is no whole store. Nothing is made beside it.
    """
    try:
        with closing(connect_unchanging(path)) as connection:
            faults = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
            if faults != ["ok"]:
                raise StoreDamaged(f"{printable(path)}: is damaged: {'; '.join(faults)[:200]}")
            return count_contents(connection)
    except sqlite3.Error as error:
        raise StoreDamaged(f"{printable(path)}: is no whole store: {error}") from error


def count_contents(connection: sqlite3.Connection) -> Contents:
    """Return what is in a database. Raises sqlite3.Error if it is no store."""

    def ask(query: str) -> int:
        return int(connection.execute(query).fetchone()[0])

    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return Contents(
        None if row is None else str(row[0]),
        ask("SELECT count(*) FROM tracks"),
        ask("SELECT count(*) FROM runs"),
        ask("SELECT count(*) FROM journal WHERE state IN ('done', 'pending')"),
    )


def connect_unchanging(path: Path) -> sqlite3.Connection:
    """Open a database that nobody writes to, with its log if it has one.

    Without one no file is made beside it.
    """
    how = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"
    uri = f"file:{quote(os.fsencode(path.absolute()))}?{how}"
    return sqlite3.connect(uri, uri=True)


def remove_store(path: Path) -> None:
    """Remove a database that is our own copy, with what SQLite put beside it."""
    for name in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)


def _folder(store_path: Path) -> Path:
    return store_path.with_name(FOLDER)


def _free_name(store_path: Path, before: str | None, now: float) -> Path:
    moment = datetime.fromtimestamp(now, timezone.utc)
    taken = {one.path.name.partition(".before-")[0] for one in list_backups(store_path)}
    while (name := f"{store_path.name}-{moment.strftime(_TIME)}") in taken:
        moment += timedelta(seconds=1)
    return _folder(store_path) / (f"{name}.before-{before}" if before else name)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    give_to_owner(folder, folder.parent)


def _copy(store_path: Path, copy: Path, should_stop: Callable[[], bool]) -> None:
    """Copy page by page, while others write; check the copy, and bring it to disk."""

    def ask(_status: int, _remaining: int, _total: int) -> None:
        if should_stop():
            raise Stopped

    descriptor = os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        give_to_owner(descriptor, copy.parent)
    finally:
        os.close(descriptor)
    with closing(_connect(store_path)) as source, closing(_connect(copy)) as target:
        # The copy is worth nothing until it is whole: it needs no journal, and one sync at the end.
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")
        # A read that stays open holds one state of the store; without it SQLite begins the copy
        # anew after every write of another connection.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        source.backup(target, pages=_PAGES, progress=ask, sleep=0.0)
        source.execute("ROLLBACK")
        target.set_progress_handler(lambda: int(should_stop()), _INSTRUCTIONS)
        found = [str(row[0]) for row in target.execute("PRAGMA integrity_check(5)")]
        if found != ["ok"]:
            raise damage(store_path, "; ".join(found))
        count_contents(target)
    _sync(copy)


def _check_space(store_path: Path, folder: Path) -> None:
    disk = shutil.disk_usage(folder)
    log_path = store_path.with_name(store_path.name + "-wal")
    needed = store_path.stat().st_size + SPACE_MARGIN
    if log_path.exists():
        needed += log_path.stat().st_size
    if disk.total and disk.free < needed:  # some network file systems report no blocks at all
        raise StoreError(
            f"{printable(store_path)}: a backup needs {needed >> 20} MiB of free space in"
            f" {printable(folder)}, which has {disk.free >> 20}: free some; the store and its"
            " former backups are whole"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(os.fspath(path), timeout=BUSY_SECONDS, isolation_level=None)


@contextmanager
def explaining(path: Path, what: str) -> Iterator[None]:
    """Turn what SQLite and the disk refuse into StoreError, and an interrupt into Stopped."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        if isinstance(error, sqlite3.Error) and "interrupt" in text:
            raise Stopped from error
        if is_damage(error):
            raise damage(path, text) from error
        hint = ""
        if "full" in text or "No space" in text:
            hint = ": free some space on its disk; the store and its former backups are whole"
        raise StoreError(f"{printable(path)}: {what} failed: {text}{hint}") from error
