"""Putting a backup in the store's place: the one story of `reclass-plex restore`.

    alone? -> check the backup -> copy it -> bring its schema up to date -> take over what happened
    since from the store that is replaced -> check -> swap -> compare with the files

The replaced store is never changed and never deleted: it is kept as store.sqlite.replaced-TIME.
While files are swapped, store.sqlite.restoring says how far it is, so that a kill at any instant
leaves either the former store, or a swap that the next `restore` ends; nobody opens half of it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from reclass_plex.backups import Backup, Contents, explaining, list_backups, look_into
from reclass_plex.comparing import RUN
from reclass_plex.errors import ConfigError, StoreBusy, StoreError, StoreNewer, printable
from reclass_plex.files import SPACE_MARGIN, give_to_owner, open_lock, sync_folder, try_lock
from reclass_plex.schema import SCHEMA_VERSION, known_revisions
from reclass_plex.similarity import index_file
from reclass_plex.store import Store
from reclass_plex.store_guard import (
    damaged_marker,
    find_faults,
    restoring_marker,
)
from reclass_plex.taking_over import TakenOver, take_over

_PARTS = ("", "-wal", "-shm", "-journal")  # files of a database
_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Restored:
    """What was put in place: `backup`, and with it what `taken` says.

    `replaced` is where the former store is kept now (None: there was none).
    """

    backup: Path
    contents: Contents
    taken: TakenOver | None
    replaced: Path | None


@contextmanager
def hold_store(path: Path) -> Iterator[None]:
    """Hold a store alone, no command has it open; besides `hold_daemon_lock`. Raises StoreBusy."""
    with ExitStack() as stack:
        for name in ("lock", "plex-lock", "users"):
            lock = stack.enter_context(open_lock(path.with_name(f"{path.name}.{name}")))
            if not try_lock(lock):
                raise StoreBusy(
                    f"another reclass-plex uses the store {printable(path)}: wait until it ends,"
                    " or stop it"
                )
        yield


def choose_backup(path: Path, named: Path | None) -> Backup:
    """Return the backup that is meant: a file, the name of one in the list, or the newest whole.

    Raises ConfigError if there is none.
    """
    backups = list_backups(path)
    if named is None:
        for backup in backups:
            with suppress(StoreError):
                if look_into(backup.path).schema in known_revisions():
                    return backup
        raise ConfigError(
            f"{printable(path)}: there is no backup of it that is whole; name a file, if you have"
            " one elsewhere"
        )
    for backup in backups:
        if os.fspath(named) == backup.path.name:
            return backup
    if not named.is_file():
        raise ConfigError(f"{printable(named)}: there is no such backup; see restore --list")
    status = named.stat()
    return Backup(named.absolute(), status.st_mtime, status.st_size)


def check_backup(backup: Backup) -> Contents:
    """Return what is in a backup. Raises StoreDamaged, or StoreNewer for an unknown schema."""
    contents = look_into(backup.path)
    if contents.schema not in known_revisions():
        raise StoreNewer(
            f"{printable(backup.path)}: has the schema {contents.schema}, which this version does"
            f" not know (its own is {SCHEMA_VERSION}): choose another one, or upgrade reclass-plex"
        )
    return contents


def restore(path: Path, backup: Backup, *, now: float | None = None) -> Restored:
    """Put a backup in the place of the store at `path`, which somebody holds (`hold_store`).

    Raises StoreError: then the former store is where it was.
    """
    contents = check_backup(backup)
    work = path.with_name(path.name + ".restore")
    with explaining(path, "the restore"):
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed
        _check_space(path, backup)
        work.mkdir(mode=0o700)
        try:
            new = work / path.name
            for part in ("", "-wal"):  # a store that was replaced before has its log beside it
                source = backup.path.with_name(backup.path.name + part)
                if source.exists():
                    _copy(source, new.with_name(new.name + part))
            Store.open(new, keep_former=False).close()
            there = any(path.with_name(path.name + part).exists() for part in _PARTS[:2])
            if there and not path.exists():  # its log is all that is left of it
                path.touch(mode=0o600)
            taken = take_over(new, path, page_size=_page_size(new)) if there else None
            with Store.open(new, keep_former=False) as store:
                store.start_run(RUN)  # it ends when the files were compared, whoever does that
            if faults := find_faults(new, thorough=True):
                raise StoreError(f"{printable(new)}: is not whole: {'; '.join(faults)[:200]}")
            _make_plain(new, path.parent)
            stamp = datetime.fromtimestamp(time.time() if now is None else now, timezone.utc)
            aside = _free(path.with_name(f"{path.name}.replaced-{stamp.strftime(_TIME)}"))
            _mark(path, new, aside)
        except BaseException:
            if not restoring_marker(path).exists():
                shutil.rmtree(work, ignore_errors=True)
            raise
    finish_swap(path)
    return Restored(backup.path, contents, taken, aside if there else None)


def finish_swap(path: Path) -> bool:
    """End the swap that was begun, if there is one; return whether there was."""
    marker = restoring_marker(path)
    if not marker.exists():
        return False
    with explaining(path, "the restore"):
        said = json.loads(marker.read_text(encoding="utf-8"))
        work = path.with_name(path.name + ".restore")
        new, aside = work / path.name, path.with_name(said["aside"])
        if new.exists():  # else it is in place already
            for part in _PARTS:
                with suppress(FileNotFoundError):
                    os.rename(  # noqa: PTH104 - rename(2), named as such
                        path.with_name(path.name + part), aside.with_name(aside.name + part)
                    )
            # It knows vectors by numbers that may mean others now; it is made anew from the store.
            index_file(path).unlink(missing_ok=True)
            os.rename(new, path)  # noqa: PTH104
            sync_folder(path.parent)
        damaged_marker(path).unlink(missing_ok=True)
        marker.unlink()
        sync_folder(path.parent)
        shutil.rmtree(work, ignore_errors=True)
    return True


def _mark(path: Path, new: Path, aside: Path) -> None:
    """Say, durably, that from here on the swap is to be ended."""
    marker = restoring_marker(path)
    copy = marker.with_name(marker.name + ".tmp")
    with copy.open("w", encoding="utf-8") as file:
        json.dump({"aside": aside.name}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(copy, marker)  # noqa: PTH105 - rename(2), named as such
    sync_folder(new.parent)
    sync_folder(path.parent)


def _copy(source: Path, target: Path) -> None:
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with source.open("rb") as file, os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _make_plain(new: Path, folder: Path) -> None:
    """Bring what is in the log into the file, which is all that is moved; and that to disk."""
    with closing(sqlite3.connect(os.fspath(new), isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")  # the store makes it WAL again
    descriptor = os.open(new, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        give_to_owner(descriptor, folder)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _page_size(path: Path) -> int:
    with closing(sqlite3.connect(os.fspath(path))) as connection:
        return int(connection.execute("PRAGMA page_size").fetchone()[0])


def _check_space(path: Path, backup: Backup) -> None:
    """Refuse where there is no room for the copy, its log, and what is salvaged."""
    free = shutil.disk_usage(path.parent)
    former = sum(
        path.with_name(path.name + part).stat().st_size
        for part in _PARTS
        if path.with_name(path.name + part).exists()
    )
    needed = 2 * max(backup.size, former) + SPACE_MARGIN
    if free.total and free.free < needed:
        raise StoreError(
            f"{printable(path)}: a restore needs {needed >> 20} MiB of free space on its disk,"
            f" which has {free.free >> 20}: free some; nothing was changed"
        )


def _free(path: Path) -> Path:
    number, found = 1, path
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
