"""Where `organize` put files, in the store: written before each file is put there.

So that what a killed process began can be settled, and all of it be taken back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.store import Store
from reclass_plex.tables import placements

How = Literal["copy", "hardlink", "move"]
State = Literal["pending", "done", "abandoned", "undone"]


@dataclass(frozen=True)
class Placement:
    """A row of `placements`: one file that was put at `target`, or is about to be.

    `hash` is of the whole file (`files.hash_file`, in hexadecimal), `temp_path` the copy that is
    renamed to `target`, `made` the topmost folder that was made for it.
    """

    id: int
    run_id: int
    source: Path
    target: Path
    temp_path: Path | None
    made: Path | None
    how: How
    size: int
    hash: str
    state: State
    created: float


class Placements:
    """The table in `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(
        self,
        run_id: int,
        source: Path,
        target: Path,
        how: How,
        *,
        size: int,
        hash: str,
        temp_path: Path | None,
        made: Path | None,
    ) -> int:
        """Note that a file is about to be put in its place; durable when this returns."""
        row = placements.insert().values(
            run_id=run_id,
            source=source,
            target=target,
            temp_path=temp_path,
            made=made,
            how=how,
            size=size,
            hash=hash,
            state="pending",
            created=time.time(),
        )
        with self._store.transaction() as connection:
            result = connection.execute(row)
            assert result.inserted_primary_key is not None  # noqa: S101 - SQLite always gives one
            return int(result.inserted_primary_key[0])

    def settle(self, state: State, *ids: int) -> None:
        """Note what became of some placements, of all of them at once."""
        with self._store.transaction() as connection:
            connection.execute(
                placements.update().where(placements.c.id.in_(ids)).values(state=state)
            )

    def pending(self) -> list[Placement]:
        """Return those of which it is not known whether they took place."""
        return self._select(placements.c.state == "pending")

    def undone_by(self, move: Placement) -> int | None:
        """Return the id of the placement that a move took back, if it did that."""
        conditions = (placements.c.state == "done", placements.c.how == "move")
        same = (placements.c.hash == move.hash, placements.c.id != move.id)
        places = (placements.c.source == move.target, placements.c.target == move.source)
        found = self._select(*conditions, *same, *places)
        return found[0].id if found else None

    def standing(
        self, *, run_id: int | None = None, path: Path | None = None, since: float | None = None
    ) -> list[Placement]:
        """Return those that took place and were not taken back, the newest first.

        `path` is a file or folder that they came from, or went to.
        """
        conditions: list[sa.ColumnElement[bool]] = [placements.c.state == "done"]
        if run_id is not None:
            conditions.append(placements.c.run_id == run_id)
        if since is not None:
            conditions.append(placements.c.created >= since)
        found = self._select(*conditions)
        if path is None:
            return found
        wanted = {path, Path(os.path.realpath(path))}
        return [
            one
            for one in found
            if not wanted.isdisjoint(
                (one.source, *one.source.parents, one.target, *one.target.parents)
            )
        ]

    def of_sources(self, sources: Collection[Path]) -> dict[Path, list[Placement]]:
        """Return what stands of these files, the newest first."""
        found: dict[Path, list[Placement]] = {}
        for some in cut(sources):
            here = placements.c.source.in_(some)
            for one in self._select(placements.c.state == "done", here):
                found.setdefault(one.source, []).append(one)
        return found

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Placement]:
        query = sa.select(placements).where(*conditions).order_by(placements.c.id.desc())
        with self._store.transaction(write=False) as connection:
            rows: list[Any] = list(connection.execute(query))
        return [Placement(**row._mapping) for row in rows]
