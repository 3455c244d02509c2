"""What shall stand in Plex: one durable row a file, with the genres that the file has.

States: `waiting` (to be looked after when it is due), `done` (Plex was made to agree, or is left
as it is for the reason in `message`), `stuck` (given up after `PATIENCE_SECONDS`; asking again, or
`hasten`, revives it). A row stays when it is done: the votes of albums and artists need it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from reclass_plex.batches import cut
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.tables import plex_wanted

State = Literal["waiting", "done", "stuck"]
STATES: tuple[State, ...] = get_args(State)

BACKOFF_SECONDS = 60.0  # before the first retry, doubled for each further one: Plex scans soon
MAX_BACKOFF_SECONDS = 6 * 3600.0
PATIENCE_SECONDS = 14 * 86400.0  # since it was asked for: a folder that no library has
_TAGS = ("genres", "moods", "styles")


@dataclass(frozen=True)
class WantedGenres:
    """The genres that a file has now, ranked, each with its confidence (1.0: the user's own).

    `run_id` is the run that wrote them, to be taken back with it; None if nobody wrote. `moods`
    and `styles` are what Plex shall show besides.
    """

    path: Path
    genres: tuple[GenreScore, ...]
    run_id: int | None = None
    moods: tuple[GenreScore, ...] = ()
    styles: tuple[GenreScore, ...] = ()


@dataclass(frozen=True)
class WantedRow:
    """A row of `plex_wanted`. `message` says why it waits, or what was left as it was."""

    path: Path
    genres: tuple[GenreScore, ...]
    run_id: int | None
    state: State
    asked: float
    due: float
    attempts: int
    message: str | None
    moods: tuple[GenreScore, ...] = ()
    styles: tuple[GenreScore, ...] = ()


class Wanted:
    """The rows in `store`. Any number of threads and processes may use them at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def want(self, items: Iterable[WantedGenres], now: float) -> None:
        """Ask for genres, moods and styles; the newest word on a file counts.

        Without any of them nothing is wanted.
        """
        rows = {
            item.path: {
                "path": item.path,
                "genres": item.genres,
                "run_id": item.run_id,
                "state": "waiting",
                "asked": now,
                "due": now,
                "attempts": 0,
                "message": None,
                "moods": item.moods,
                "styles": item.styles,
            }
            for item in items
        }
        wanted = [row for row in rows.values() if _wants(row)]
        upsert = insert(plex_wanted)
        upsert = upsert.on_conflict_do_update(
            index_elements=["path"],
            set_={
                one.name: upsert.excluded[one.name] for one in plex_wanted.c if not one.primary_key
            },
        )
        with self._store.transaction() as connection:
            if wanted:
                connection.execute(upsert, wanted)
            _delete(connection, [path for path, row in rows.items() if not _wants(row)])

    def forget(self, paths: Collection[Path]) -> None:
        """Drop what is wanted for files, because it was taken back."""
        with self._store.transaction() as connection:
            _delete(connection, paths)

    def forget_below(self, path: Path) -> int:
        """Drop what is wanted for a file, or all below a folder, that is gone; return how many."""
        below = os.fsencode(path) + b"/"
        end = below[:-1] + b"0"  # "0" follows "/": the first name that is not below the folder
        with self._store.transaction() as connection:
            result = connection.execute(
                plex_wanted.delete().where(
                    (plex_wanted.c.path == path)
                    | sa.and_(
                        plex_wanted.c.path >= sa.literal(below, sa.LargeBinary),
                        plex_wanted.c.path < sa.literal(end, sa.LargeBinary),
                    )
                )
            )
        return int(result.rowcount)

    def due(self, now: float, limit: int) -> list[WantedRow]:
        """Return up to `limit` rows that are due, those that wait longest first."""
        query = (
            sa.select(plex_wanted)
            .where(plex_wanted.c.state == "waiting", plex_wanted.c.due <= now)
            .order_by(plex_wanted.c.due)
            .limit(limit)
        )
        with self._store.transaction(write=False) as connection:
            return [WantedRow(**row._mapping) for row in connection.execute(query)]

    def next_due(self) -> float | None:
        """Return when the next row is due; None if none waits."""
        query = sa.select(sa.func.min(plex_wanted.c.due)).where(plex_wanted.c.state == "waiting")
        with self._store.transaction(write=False) as connection:
            due = connection.execute(query).scalar()
        return None if due is None else float(due)

    def mind_clock(self, now: float) -> None:
        """Make due what waits longer than anything may: a clock that ran ahead was set back."""
        waits = (plex_wanted.c.state == "waiting") & (plex_wanted.c.due > now + MAX_BACKOFF_SECONDS)
        with self._store.transaction() as connection:
            connection.execute(plex_wanted.update().where(waits).values(due=now))

    def done(self, rows: Iterable[WantedRow], messages: dict[Path, str] | None = None) -> None:
        """Close rows, unless something else was wanted for a file since it was read."""
        said = messages or {}
        self._close([(row, {"state": "done", "message": said.get(row.path)}) for row in rows])

    def later(self, rows: Iterable[WantedRow], now: float, message: str) -> None:
        """Look again after a pause: a minute, doubling to six hours; given up after 14 days.

        What is given up for a file that does not exist any more is dropped.
        """
        waiting = list(rows)
        given_up = {row.path for row in waiting if now - row.asked >= PATIENCE_SECONDS}
        self.forget([path for path in given_up if not os.path.lexists(path)])

        def columns(row: WantedRow) -> dict[str, Any]:
            state = "stuck" if row.path in given_up else "waiting"
            pause = min(BACKOFF_SECONDS * 2.0**row.attempts, MAX_BACKOFF_SECONDS)
            attempts = {"attempts": row.attempts + 1, "due": now + pause}
            return {"state": state, "message": message, **attempts}

        self._close([(row, columns(row)) for row in waiting])

    def hasten(self, now: float, paths: Collection[Path] | None = None) -> int:
        """Make what waits, or is stuck, due at once (of all files without `paths`)."""
        change = (
            plex_wanted.update()
            .where(plex_wanted.c.state != "done")
            .values(state="waiting", due=now, asked=now, attempts=0)
        )
        with self._store.transaction() as connection:
            if paths is None:
                return int(connection.execute(change).rowcount)
            return sum(
                connection.execute(change.where(plex_wanted.c.path.in_(chunk))).rowcount
                for chunk in cut(paths)
            )

    def counts(self) -> dict[State, int]:
        """Return how many files are in each state; every state is there."""
        query = sa.select(plex_wanted.c.state, sa.func.count()).group_by(plex_wanted.c.state)
        with self._store.transaction(write=False) as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def _close(self, changes: Sequence[tuple[WantedRow, dict[str, Any]]]) -> None:
        """Change rows that still say what they said when they were read."""
        if not changes:
            return
        statement = (
            plex_wanted.update()
            .where(
                plex_wanted.c.path == sa.bindparam("row_path"),
                plex_wanted.c.asked == sa.bindparam("row_asked"),
                *(plex_wanted.c[name] == sa.bindparam(f"row_{name}") for name in _TAGS),
            )
            .values({name: sa.bindparam(name) for name in changes[0][1]})
        )
        with self._store.transaction() as connection:
            connection.execute(
                statement,
                [
                    {
                        "row_path": row.path,
                        "row_asked": row.asked,
                        **{f"row_{name}": getattr(row, name) for name in _TAGS},
                        **columns,
                    }
                    for row, columns in changes
                ],
            )


def _wants(row: dict[str, Any]) -> bool:
    return any(row[name] for name in _TAGS)


def _delete(connection: sa.Connection, paths: Collection[Path]) -> None:
    for chunk in cut(paths):
        connection.execute(plex_wanted.delete().where(plex_wanted.c.path.in_(chunk)))
