"""The store and the disks, looked at without changing them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from reclass_plex.backups import DAY, describe_age, list_backups, newest_age
from reclass_plex.doctor.checks import Check
from reclass_plex.errors import StoreError, printable
from reclass_plex.schema import describe_newer, known_revisions
from reclass_plex.store_guard import damaged_marker, is_log_alone, restoring_marker

LOW_SPACE = 1 << 30  # bytes free on a disk under which a warning is due
CHECK_SECONDS = 60.0  # for SQLite's own check of the whole file
BUSY_SECONDS = 5.0
_PROGRESS_STEPS = 10_000  # of SQLite's machine between looks at the clock
OLD_BACKUP = 3 * DAY  # seconds
NAMED = 3  # of the files that are not in Plex
_DAMAGED = "Stop the daemon (systemctl stop reclass-plex), then give: reclass-plex restore"


@dataclass(frozen=True)
class _Found:
    """`schema` is None before the first migration; `absent` are files that Plex did not show."""

    faults: tuple[str, ...]
    schema: str | None
    pending: int
    began: float | None  # when the first run was
    absent: int
    some_absent: tuple[Path, ...]


def check_store(path: Path) -> Iterator[Check]:
    """Say whether the database is there, whole, of this version, and ours to write."""
    name = printable(path)
    folder = next(one for one in path.parents if os.path.lexists(one))
    if is_log_alone(path):
        advice = f"Put the file back, or give: {_DAMAGED.rpartition(': ')[2]}"
        yield Check("store", "error", f"{name}: is gone, but its log is there", advice)
        return
    if not os.path.lexists(path):
        if os.path.isdir(path.parent) and list_backups(path):  # noqa: PTH112 - never raises
            advice = "To have it back: reclass-plex restore. Else the next run begins anew."
            yield Check("store", "warning", f"{name}: is gone, but there are backups", advice)
            return
        if os.access(folder, os.W_OK | os.X_OK):
            yield Check("store", "ok", f"{name}: is made by the first run")
        else:
            advice = f"Let this user write {printable(folder)}, or set store.path."
            yield Check("store", "error", f"{name}: is not there and cannot be made", advice)
        return
    wrong = [
        word
        for word, place, way in (
            ("read", path, os.R_OK),
            ("written", path, os.W_OK),
            ("written in its folder", path.parent, os.W_OK | os.X_OK),
        )
        if not os.access(place, way)
    ]
    if wrong:
        advice = "Give the command as the user that the daemon runs as."
        yield Check("store", "error", f"{name}: may not be {' nor '.join(wrong)}", advice)
        if "read" in wrong:
            return
    try:
        found = _inspect(path)
    except sqlite3.Error as error:
        if str(error) == "interrupted":
            advice = "Try it when nothing else runs, or let the nightly care do it."
            text = f"{name}: its check takes more than {CHECK_SECONDS:g} s"
            yield Check("store", "warning", text, advice)
        elif "locked" in str(error):
            yield Check("store", "warning", f"{name}: is busy", "Try again later.")
        else:
            yield Check("store", "error", f"{name}: is damaged ({error})", _DAMAGED)
        return
    yield _judge(name, path, found)
    if not found.faults:
        yield _check_backups(path, found.began, time.time())
    if found.absent:
        names = ", ".join(printable(one) for one in found.some_absent)
        rest = found.absent - len(found.some_absent)
        more = f" and {rest} more" if rest else ""
        text = f"{found.absent} files were not found in Plex for two weeks: {names}{more}"
        advice = (
            "Does a library of plex.libraries have them, by the path that plex.path_map gives? They"
            " are asked for again when Plex scans them, or after: reclass-plex reclassify FOLDER"
        )
        yield Check("plex", "warning", text, advice)


def _check_backups(path: Path, began: float | None, now: float) -> Check:
    try:
        age = newest_age(path, now)
        count = len(list_backups(path))
    except StoreError as error:
        return Check("backup", "warning", str(error), "Give the command as the daemon's user.")
    if age is None:
        advice = "The daemon makes one each night; by hand: reclass-plex backup"
        late = began is not None and now - began > OLD_BACKUP
        return Check("backup", "warning" if late else "ok", "there is none yet", advice)
    text = f"{count} backups, the newest {describe_age(age)} old"
    if age > OLD_BACKUP:
        advice = "Is the disk full, or the daemon off at night? By hand: reclass-plex backup"
        return Check("backup", "warning", text, advice)
    return Check("backup", "ok", text)


def check_disks(store: Path, folders: Sequence[Path]) -> Iterator[Check]:
    """Say how much space is left beside the store and on each disk of the music."""
    seen: set[int] = set()
    for path in (store.parent, *folders):
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        device = there.stat().st_dev
        if device in seen or (path in folders and there != path):
            continue
        seen.add(device)
        usage = shutil.disk_usage(there)
        name = printable(path)
        if not usage.total:
            yield Check("disk", "ok", f"{name}: its file system does not say what is free")
        elif usage.free < LOW_SPACE:
            advice = "Free some space: nothing is written when the disk is nearly full."
            yield Check("disk", "warning", f"{usage.free / 1e6:.0f} MB free at {name}", advice)
        else:
            yield Check("disk", "ok", f"{usage.free / 1e9:.0f} GB free at {name}")


def _judge(name: str, path: Path, found: _Found) -> Check:
    if found.faults:
        return Check("store", "error", f"{name}: {'; '.join(found.faults)}", _DAMAGED)
    if damaged_marker(path).exists():
        text = f"{name}: was found damaged, and no music file is written until it is restored"
        return Check("store", "error", text, _DAMAGED)
    if restoring_marker(path).exists():
        text = f"{name}: a restore of it did not end"
        return Check("store", "error", text, "Give reclass-plex restore again, which ends it.")
    if found.schema is not None and found.schema not in known_revisions():
        text, _, advice = describe_newer(path, found.schema).partition(" Nothing was changed. ")
        return Check("store", "error", text, advice)
    if found.pending:
        advice = "If nothing is at work, the next `reclass-plex tag` or `undo` puts this right."
        text = f"{name}: {found.pending} changes are not finished"
        return Check("store", "warning", text, advice)
    return Check("store", "ok", f"{name}: sound, {path.stat().st_size / 1e6:.1f} MB")


def _inspect(path: Path) -> _Found:
    """Check the database. Raises sqlite3.Error.

    With nobody at work there is no -wal file, and the database is opened as unchanging: so SQLite
    makes no files beside it. Should someone begin meanwhile, the answer may be wrong: once more.
    """
    wal = path.with_name(path.name + "-wal")
    quiet = not wal.exists()
    try:
        found = _inspect_as(path, "immutable=1" if quiet else "mode=ro")
    except sqlite3.DatabaseError:
        if not quiet or not wal.exists():
            raise
    else:
        if not found.faults or not quiet or not wal.exists():
            return found
    return _inspect_as(path, "mode=ro")


def _inspect_as(path: Path, how: str) -> _Found:
    uri = f"file:{quote(os.fsencode(path.absolute()))}?{how}"
    end = time.monotonic() + CHECK_SECONDS
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as database:
        database.set_progress_handler(lambda: time.monotonic() > end, _PROGRESS_STEPS)
        rows = [str(row[0]) for row in database.execute("PRAGMA quick_check(10)")]
        faults = tuple(row for row in rows if row != "ok")
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        schema = None
        if "alembic_version" in tables:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
            schema = None if row is None else str(row[0])
        pending, began = 0, None
        stuck: list[tuple[bytes, int]] = []
        if "journal" in tables:
            count = "SELECT count(*) FROM journal WHERE state = 'pending'"
            pending = int(database.execute(count).fetchone()[0])
            began = database.execute("SELECT min(started) FROM runs").fetchone()[0]
        if "plex_wanted" in tables:
            query = (
                "SELECT path, count(*) OVER () FROM plex_wanted WHERE state = 'stuck'"
                " ORDER BY path LIMIT ?"
            )
            stuck = database.execute(query, [NAMED]).fetchall()
    some_absent = tuple(Path(os.fsdecode(row[0])) for row in stuck)
    return _Found(faults, schema, pending, began, stuck[0][1] if stuck else 0, some_absent)
