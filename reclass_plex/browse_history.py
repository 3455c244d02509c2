"""What was done, for people to read: runs, the files that they changed, and edits in Plex.

Reading only; `changes` and `sync` take back. Lists are newest first, in pages (see `cursors`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reclass_plex.cursors import Page, cut_page, make_cursor, read_cursor
from reclass_plex.store import Store
from reclass_plex.tables import journal, placements, plex_edits, runs, tracks


@dataclass(frozen=True)
class RunRow:
    """A run, and how many of its changes stand, were taken back, or are open, in files and Plex.

    Files that it put into a tree count as changed.
    """

    id: int
    command: str
    started: float
    finished: float | None
    done: int
    undone: int
    pending: int
    plex_done: int
    plex_undone: int


@dataclass(frozen=True)
class ChangeRow:
    """One file changed in one run. `exact`: what restores its former bytes is still kept.

    `path` is the file as the track is known now. `moods` were written where there were none.
    """

    id: int
    run_id: int
    track_id: int
    path: Path
    state: str  # done, undone, pending, abandoned
    before: tuple[str, ...]
    after: tuple[str, ...]
    moods: tuple[str, ...] | None
    created: float
    exact: bool


@dataclass(frozen=True)
class PlexEditRow:
    """One item changed in Plex. `path` is None for an album or artist."""

    id: int
    run_id: int | None
    kind: str
    field: str
    rating_key: int
    path: Path | None
    state: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    created: float


def list_runs(store: Store, *, cursor: str | None = None, limit: int = 50) -> Page[RunRow]:
    """Return runs, newest first. Raises BadCursor."""
    query: sa.Select[Any] = sa.select(runs.c.id, runs.c.command, runs.c.started, runs.c.finished)
    if cursor is not None:
        query = query.where(runs.c.id < read_cursor(cursor, "runs", int)[0])
    query = query.order_by(runs.c.id.desc()).limit(limit + 1)
    with store.transaction(write=False) as connection:
        found = connection.execute(query).all()
        rows = _run_rows(connection, found[:limit])
    return Page(rows, make_cursor("runs", rows[-1].id) if len(found) > limit else None)


def find_run(store: Store, run_id: int) -> RunRow | None:
    """Return one run."""
    query: sa.Select[Any] = sa.select(runs.c.id, runs.c.command, runs.c.started, runs.c.finished)
    with store.transaction(write=False) as connection:
        rows = _run_rows(connection, connection.execute(query.where(runs.c.id == run_id)).all())
    return rows[0] if rows else None


def list_journal(
    store: Store, run_id: int | None = None, *, cursor: str | None = None, limit: int = 50
) -> Page[ChangeRow]:
    """Return the files that a run (None: any run) changed, newest first. Raises BadCursor."""
    found = _page_of_run(store, _changes(), journal, run_id, "journal", cursor, limit)
    rows = [ChangeRow(**row._mapping) for row in found]
    return cut_page(rows, limit, "journal", lambda row: (row.id,))


def track_changes(store: Store, track_id: int, limit: int = 100) -> tuple[ChangeRow, ...]:
    """Return the latest changes of one file, newest first."""
    query = _changes().where(journal.c.track_id == track_id)
    with store.transaction(write=False) as connection:
        rows = connection.execute(query.order_by(journal.c.id.desc()).limit(limit))
        return tuple(ChangeRow(**row._mapping) for row in rows)


def list_plex_edits(
    store: Store, run_id: int | None = None, *, cursor: str | None = None, limit: int = 50
) -> Page[PlexEditRow]:
    """Return what a run (None: any run) changed in Plex, newest first. Raises BadCursor."""
    query = sa.select(*(plex_edits.c[name] for name in PlexEditRow.__dataclass_fields__))
    found = _page_of_run(store, query, plex_edits, run_id, "plex-edits", cursor, limit)
    rows = [PlexEditRow(**row._mapping) for row in found]
    return cut_page(rows, limit, "plex-edits", lambda row: (row.id,))


def _page_of_run(
    store: Store,
    query: sa.Select[Any],
    table: sa.Table,
    run_id: int | None,
    listed: str,
    cursor: str | None,
    limit: int,
) -> Sequence[sa.Row[Any]]:
    """Return the rows of a page and one more, newest first. Raises BadCursor."""
    if run_id is not None:
        query = query.where(table.c.run_id == run_id)
    if cursor is not None:
        query = query.where(table.c.id < read_cursor(cursor, listed, int)[0])
    with store.transaction(write=False) as connection:
        return connection.execute(query.order_by(table.c.id.desc()).limit(limit + 1)).all()


def _changes() -> sa.Select[Any]:
    return sa.select(
        *(journal.c.id, journal.c.run_id, journal.c.track_id, tracks.c.path, journal.c.state),
        *(journal.c.before, journal.c.after, journal.c.moods, journal.c.created),
        (sa.func.length(journal.c.delta) > 0).label("exact"),
    ).join(tracks)


def _run_rows(connection: sa.Connection, found: Sequence[sa.Row[Any]]) -> tuple[RunRow, ...]:
    ids = [row.id for row in found]

    def count(table: sa.Table) -> Counter[tuple[int, str]]:
        query = sa.select(table.c.run_id, table.c.state, sa.func.count())
        query = query.where(table.c.run_id.in_(ids)).group_by(table.c.run_id, table.c.state)
        return Counter({(row[0], row[1]): row[2] for row in connection.execute(query)})

    files, edits = count(journal) + count(placements), count(plex_edits)
    return tuple(
        RunRow(
            *(row.id, row.command, row.started, row.finished),
            done=files[row.id, "done"],
            undone=files[row.id, "undone"],
            pending=files[row.id, "pending"],
            plex_done=edits[row.id, "done"],
            plex_undone=edits[row.id, "undone"],
        )
        for row in found
    )
