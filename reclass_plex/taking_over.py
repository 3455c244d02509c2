"""Taking what happened since a backup was made over into it, from the store that it replaces.

What was done to files and to Plex is a fact, whatever store is in use: above all the journal, as
nothing else can give files their former bytes back. So every row of the replaced store that can be
read, and that the backup does not have or has in an earlier state, goes into the backup's copy:
runs, tracks, journal, decisions, placements, edits in Plex; verdicts and vectors only where the
backup has none. A store that is whole is asked with SQL; from one that is damaged the rows are
salvaged, and what else they refer to and cannot be read is stood in for.

Two stores need not have one history (one was begun anew, say), so rows are not known by their ids
but by what they say; an id that is taken by another row becomes a new one.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from reclass_plex.backups import remove_store
from reclass_plex.errors import StoreError
from reclass_plex.salvage import salvage_rows
from reclass_plex.store_guard import find_faults, is_log_alone
from reclass_plex.tables import (
    decisions,
    embeddings,
    journal,
    placements,
    plex_edits,
    plex_wanted,
    runs,
    tracks,
    verdicts,
    web_keys,
)
from reclass_plex.wal import log_path, read_log

Row = dict[str, Any]

STAND_IN = "unreadable"  # command of a run that stands in for one that could not be read
_SALVAGED = (
    *(runs, tracks, journal, decisions, placements, plex_edits, plex_wanted),
    *(verdicts, embeddings),
)
_RANKS = {"pending": 0, "planned": 0}  # of states; those that end something come after
_LAST = {"undone": 2, "gone": 2, "withdrawn": 2, "replaced": 1}


@dataclass(frozen=True)
class TakenOver:
    """What came from the replaced store.

    `whole`: it could be read as a whole. `changes` were not in the backup, `updated` had another
    state there; `bare` of them have lost the former bytes, so that undo gives the genre alone.
    `tokens`: API tokens and sessions are as they were last (else none is left).
    """

    whole: bool
    changes: int = 0
    updated: int = 0
    bare: int = 0
    tracks: int = 0
    others: int = 0
    tokens: bool = False


def take_over(target: Path, replaced: Path, *, page_size: int) -> TakenOver:
    """Bring the rows of the store at `replaced`, which stays as it is, into that at `target`.

    Raises StoreError if `target` cannot be written. One transaction: all of it or nothing.
    """
    with (
        _reading(replaced, target.with_name(target.name + ".salvage"), page_size) as (
            source,
            whole,
        ),
        closing(sqlite3.connect(os.fspath(target), isolation_level=None)) as connection,
    ):
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("PRAGMA defer_foreign_keys = ON")
        merge = _Merge(source, connection)
        try:
            found = merge.run(whole=whole)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise StoreError(
                f"{target.name}: cannot take over what happened since: {error}"
            ) from error
        return found


@contextmanager
def _reading(
    replaced: Path, scratch: Path, page_size: int
) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """Yield a connection that reads the replaced store's rows, and whether it is whole.

    Of a damaged one it reads what was salvaged, from a scratch database.
    """
    if not _is_damaged(replaced):
        uri = f"file:{quote(os.fsencode(replaced.absolute()))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection, True
        return
    remove_store(scratch)
    try:
        with closing(sqlite3.connect(os.fspath(scratch), isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            _salvage_into(connection, replaced, page_size)
            yield connection, False
    finally:
        remove_store(scratch)


def _is_damaged(path: Path) -> bool:
    """Tell whether SQL cannot read all of a store. Its log may be damaged and nobody told."""
    try:
        return is_log_alone(path) or read_log(log_path(path)).damaged or bool(find_faults(path))
    except StoreError:
        return True


def _salvage_into(connection: sqlite3.Connection, replaced: Path, page_size: int) -> None:
    connection.execute("BEGIN")
    statements = {}
    for table in _SALVAGED:
        names = [column.name for column in table.c]
        columns = ", ".join(f'"{name}"' for name in names)
        connection.execute(f"CREATE TABLE {table.name} (found INTEGER, {columns})")
        connection.execute(f"CREATE INDEX found_{table.name} ON {table.name} (found)")
        marks = ", ".join("?" * (len(names) + 1))
        statements[table.name] = (f"INSERT INTO {table.name} VALUES ({marks})", names)  # noqa: S608
    for row in salvage_rows(replaced, _SALVAGED, page_size=page_size):
        insert, names = statements[row.table]
        if "state" in names:
            former = connection.execute(
                f"SELECT state FROM {row.table} WHERE found = ?",  # noqa: S608 - a table of ours
                (row.rowid,),
            ).fetchone()
            if former is not None and _rank(former[0]) > _rank(row.values.get("state")):
                continue
        connection.execute(f"DELETE FROM {row.table} WHERE found = ?", (row.rowid,))  # noqa: S608
        connection.execute(insert, (row.rowid, *(row.values.get(name) for name in names)))
    connection.execute("COMMIT")


def _rank(state: object) -> int:
    return _RANKS.get(str(state), _LAST.get(str(state), 1))


class _Merge:
    """One taking over: rows of `source` into `target`, whose ids the maps translate into."""

    def __init__(self, source: sqlite3.Connection, target: sqlite3.Connection) -> None:
        self._source = source
        self._target = target
        self._runs: dict[int, int] = {}
        self._tracks: dict[int, int] = {}
        self._edits: dict[int, int] = {}
        self._changed_tracks: set[int] = set()

    def run(self, *, whole: bool) -> TakenOver:
        """Take everything over. A row that the target refuses is left out: it is no true one."""
        self._target.execute("CREATE INDEX taking_over ON journal (created)")
        for row in self._rows(runs):
            self._runs[row["id"]] = self._merge_row(runs, row, ("command", "started"))[0]
        tracks_new = sum(map(self._merge_track, self._rows(tracks)))
        changes = updated = bare = 0
        for row in self._rows(journal):
            self._refer(row)
            _, new, differs = self._merge_row(journal, row, ("path", "after_hash", "created"))
            changes += new
            updated += differs
            bare += new and row["state"] == "done" and not row["delta"]
        others = self._merge_others()
        for row in self._rows(verdicts):
            self._insert(verdicts, row, "OR IGNORE")
        for row in self._rows(embeddings):
            self._insert(embeddings, {**row, "id": None}, "OR IGNORE")
        self._target.execute("DROP INDEX taking_over")
        # `listing` follows the journal when the track is touched.
        self._target.executemany(
            "UPDATE tracks SET album = album WHERE id = ?", [(one,) for one in self._changed_tracks]
        )
        tokens = self._take_tokens(whole)
        return TakenOver(
            whole, int(changes), int(updated), int(bare), tracks_new, others, tokens=tokens
        )

    def _rows(self, table: sa.Table) -> Iterator[Row]:
        """Yield the source's rows with the columns that the target's table has, by id."""
        has = self._source.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
        ).fetchone()
        if has is None:
            return
        there = {row[1] for row in self._source.execute(f"PRAGMA table_info({table.name})")}
        names = [column.name for column in table.c if column.name in there]
        columns = ", ".join(f'"{name}"' for name in names)
        query = f"SELECT {columns} FROM {table.name} ORDER BY rowid"  # noqa: S608 - names of ours
        may_be_null = {c.name for c in table.c if c.nullable or c.primary_key}
        for row in self._source.execute(query):
            yield {k: row[k] for k in names if row[k] is not None or k in may_be_null}

    def _find(self, table: sa.Table, row: Row, names: Sequence[str]) -> Row | None:
        same = " AND ".join(f'"{name}" IS ?' for name in names)
        query = f"SELECT * FROM {table.name} WHERE {same}"  # noqa: S608 - names of ours
        found = self._target.execute(query, [row[name] for name in names]).fetchone()
        return None if found is None else dict(found)

    def _insert(self, table: sa.Table, row: Row, how: str = "") -> int:
        columns = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" * len(row))
        query = f"INSERT {how} INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608
        return int(self._target.execute(query, list(row.values())).lastrowid or 0)

    def _update(self, table: sa.Table, number: int, values: Row) -> None:
        changes = ", ".join(f'"{name}" = ?' for name in values)
        query = f"UPDATE {table.name} SET {changes} WHERE id = ?"  # noqa: S608 - names of ours
        self._target.execute(query, [*values.values(), number])

    def _merge_row(
        self, table: sa.Table, row: Row, identity: Sequence[str]
    ) -> tuple[int, bool, bool]:
        """Bring a row in; return its id in the target, whether it is new, whether it differed.

        `identity` are the columns that make it this row. An earlier state gives way to a later.
        """
        there = self._find(table, row, ("id",))
        if there is None or any(there[name] != row[name] for name in identity):
            free = there is None
            there = self._find(table, row, identity)
            if there is None:
                return self._insert(table, row if free else {**row, "id": None}), True, False
        values = {name: value for name, value in row.items() if name not in ("id", "delta")}
        if _rank(values.get("state")) < _rank(there.get("state")):
            return int(there["id"]), False, False
        if row.get("delta") and not there["delta"]:
            values["delta"] = row["delta"]
        differs = {name: value for name, value in values.items() if there[name] != value}
        if differs:
            self._update(table, there["id"], differs)
        return int(there["id"]), False, bool(differs)

    def _merge_track(self, row: Row) -> bool:
        """Bring a track in; the replaced store knew its file last. Return whether it is new."""
        there = self._find(tracks, row, ("path",))
        if there is not None:
            self._tracks[row["id"]] = there["id"]
            differs = {k: v for k, v in row.items() if k != "id" and there[k] != v}
            if differs:
                self._update(tracks, there["id"], differs)
            return False
        taken = self._find(tracks, row, ("id",)) is not None
        self._tracks[row["id"]] = self._insert(tracks, {**row, "id": None} if taken else row)
        return True

    def _refer(self, row: Row) -> None:
        """Let a journal row refer to its run and its track in the target."""
        self._refer_to_run(row)
        track = self._tracks.get(row["track_id"])
        if track is None:
            found = self._find(tracks, row, ("path",))
            track = found["id"] if found else self._stand_in_track(row)
            self._tracks[row["track_id"]] = track
        row["track_id"] = track
        self._changed_tracks.add(track)

    def _refer_to_run(self, row: Row) -> None:
        number = row["run_id"]
        if number is None:
            return
        if number not in self._runs:
            taken = self._target.execute("SELECT 1 FROM runs WHERE id = ?", (number,)).fetchone()
            started = row.get("created") or row.get("asked") or 0.0
            self._runs[number] = self._insert(
                runs,
                {
                    "id": None if taken else number,
                    "command": STAND_IN,
                    "token": "",
                    "started": started,
                    "finished": started,
                },
            )
        row["run_id"] = self._runs[number]

    def _stand_in_track(self, row: Row) -> int:
        """Make a row for a file whose own could not be read, from the last change of it.

        Size and time are none, so that the file is looked at again.
        """
        stands = row["state"] in ("done", "pending")
        written = row["after"] if row["after"] != row["before"] else None
        return self._insert(
            tracks,
            {
                "path": row["path"],
                "size": 0,
                "mtime_ns": 0,
                "digest": row["digest"],
                "genres": row["after"] if stands else row["before"],
                "written": written,
                "added": written,
                "undone": int(row["state"] == "undone"),
            },
        )

    def _merge_others(self) -> int:
        """Take over decisions, placements, and what concerns Plex; return how many were new."""
        count = 0
        for row in self._rows(decisions):
            self._refer_to_run(row)
            ids = [self._tracks.get(int(one), int(one)) for one in json.loads(row["open"])]
            row["open"] = json.dumps([str(one) for one in ids])
            if row["state"] == "stands":  # one of each recording: the latest
                self._target.execute(
                    "UPDATE decisions SET state = 'replaced', open = '[]'"
                    " WHERE digest = ? AND state = 'stands' AND created <> ?",
                    (row["digest"], row["created"]),
                )
            count += self._merge_row(decisions, row, ("digest", "created"))[1]
        for row in self._rows(placements):
            self._refer_to_run(row)
            count += self._merge_row(placements, row, ("source", "target", "created"))[1]
        for row in self._rows(plex_edits):
            self._refer_to_run(row)
            row["over"] = self._edits.get(row["over"]) or self._same_item(row)
            same = ("server", "rating_key", "field", "created")
            self._edits[row["id"]], new, _ = self._merge_row(plex_edits, row, same)
            count += new
        for row in self._rows(plex_wanted):
            self._refer_to_run(row)
            self._insert(plex_wanted, row, "OR REPLACE")
        return count

    def _same_item(self, row: Row) -> int | None:
        """Return the edit that this one replaced, if only the target has that."""
        query = "SELECT id FROM plex_edits WHERE id = ? AND server = ? AND rating_key = ?"
        asked = (row["over"], row["server"], row["rating_key"])
        found = self._target.execute(query, asked).fetchone()
        return None if found is None else int(found[0])

    def _take_tokens(self, whole: bool) -> bool:
        """Let exactly those be known who were last: a restore must not revive a revoked token."""
        self._target.execute("DELETE FROM web_keys")
        if not whole:
            return False
        for row in self._rows(web_keys):
            self._insert(web_keys, row)
        return True
