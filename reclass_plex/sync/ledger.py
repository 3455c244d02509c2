"""Our edits in Plex, kept before they are applied, so that each can be taken back.

States: `planned` (perhaps applied: the process may have been killed, or the server refused),
`done`, `undone`, `gone` (the item was deleted). Planned and done ones stand. The standing edits of
an item are a pile: an edit names in `over` the one of ours that it replaced, so that taking it
back gives that one's genres, with the lock still ours; without `over` it gives what was there
before us, and the former lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.plex import EditRecord, Field, Plex, PlexItem, apply_edits, same_genres
from reclass_plex.plex.records import without
from reclass_plex.store import Store
from reclass_plex.tables import plex_edits

EditState = Literal["planned", "done", "undone", "gone"]
STANDING: tuple[EditState, ...] = ("planned", "done")


@dataclass(frozen=True)
class PlexEdit:
    """A row of `plex_edits`. `path` is the file of a track, None for an album or artist."""

    id: int
    run_id: int | None
    over: int | None
    path: Path | None
    state: EditState
    created: float
    record: EditRecord


@dataclass(frozen=True)
class NewEdit:
    """An edit that is about to be made, and what it is for."""

    record: EditRecord
    run_id: int | None
    over: int | None
    path: Path | None


def standing_edits(store: Store) -> dict[int, int]:
    """Return the runs of which edits stand, on any server, and how many."""
    query = (
        sa.select(plex_edits.c.run_id, sa.func.count())
        .where(plex_edits.c.state.in_(STANDING), plex_edits.c.run_id.is_not(None))
        .group_by(plex_edits.c.run_id)
    )
    with store.transaction(write=False) as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


class Ledger:
    """The edits of one field of one server's items."""

    def __init__(self, store: Store, server: str, field: Field = "genre") -> None:
        self._store = store
        self._server = server
        self._field = field

    def piles(self, rating_keys: Collection[int]) -> dict[int, list[PlexEdit]]:
        """Return the standing edits of items, oldest first; items without any are left out."""
        edits: list[PlexEdit] = []
        with self._store.transaction(write=False) as connection:
            for chunk in cut(rating_keys):
                query = self._standing().where(plex_edits.c.rating_key.in_(chunk))
                edits += map(_edit, connection.execute(query))
        return _piles(edits)

    def all_piles(self) -> dict[int, list[PlexEdit]]:
        """Return all standing edits by item, oldest first."""
        with self._store.transaction(write=False) as connection:
            return _piles(map(_edit, connection.execute(self._standing())))

    def plan(self, edits: Sequence[NewEdit], now: float) -> list[PlexEdit]:
        """Keep edits that are about to be made; durable when this returns."""
        if not edits:
            return []
        with self._store.transaction() as connection:  # which nobody else can write in
            last = connection.execute(sa.select(sa.func.max(plex_edits.c.id))).scalar() or 0
            kept = [
                PlexEdit(last + number, new.run_id, new.over, new.path, "planned", now, new.record)
                for number, new in enumerate(edits, 1)
            ]
            connection.execute(
                plex_edits.insert(),
                [
                    {
                        "id": edit.id,
                        "run_id": edit.run_id,
                        "over": edit.over,
                        "path": edit.path,
                        "state": edit.state,
                        "created": edit.created,
                        "server": self._server,
                        **{name: getattr(edit.record, name) for name in _RECORD},
                    }
                    for edit in kept
                ],
            )
        return kept

    def mark(self, ids: Iterable[int], state: EditState) -> None:
        """Say what became of edits."""
        with self._store.transaction() as connection:
            for chunk in cut(ids):
                change = plex_edits.update().where(plex_edits.c.id.in_(chunk))
                connection.execute(change.values(state=state))

    def drop(self, ids: Iterable[int]) -> None:
        """Forget edits that were planned and never made."""
        with self._store.transaction() as connection:
            for chunk in cut(ids):
                connection.execute(plex_edits.delete().where(plex_edits.c.id.in_(chunk)))

    def settle(
        self, plex: Plex, piles: Mapping[int, list[PlexEdit]], items: Mapping[int, PlexItem]
    ) -> tuple[dict[int, list[PlexEdit]], dict[int, PlexItem]]:
        """Find out which planned edits were made, and finish those that were made by half.

        `items` are what was just read. Returns piles and items as they are then; an edit that
        the server still refuses stays planned.
        """
        settled: dict[EditState, list[int]] = defaultdict(list)
        never: list[int] = []
        half: list[PlexEdit] = []
        left: dict[int, list[PlexEdit]] = {}
        now = dict(items)
        for key, pile in piles.items():
            left[key] = []
            for edit in pile:
                verdict = "done" if edit.state == "done" else _look(edit, items.get(key))
                if verdict == "never":
                    never.append(edit.id)
                elif verdict == "gone":
                    settled["gone"].append(edit.id)
                else:
                    left[key].append(
                        replace(edit, state="planned" if verdict == "half" else "done")
                    )
                    if verdict == "half":
                        half.append(edit)
                    elif edit.state == "planned":
                        settled["done"].append(edit.id)
        for edit, outcome in zip(half, apply_edits(plex, [e.record for e in half]), strict=True):
            key = edit.record.rating_key
            if outcome.status == "done":
                settled["done"].append(edit.id)
                left[key] = [replace(e, state="done") if e.id == edit.id else e for e in left[key]]
                now[key] = items[key].edited(self._field, edit.record.after)
        self.drop(never)
        for state, ids in settled.items():
            self.mark(ids, state)
        return {key: pile for key, pile in left.items() if pile}, now

    def _standing(self) -> sa.Select[Any]:
        return (
            sa.select(plex_edits)
            .where(
                plex_edits.c.server == self._server,
                plex_edits.c.field == self._field,
                plex_edits.c.state.in_(STANDING),
            )
            .order_by(plex_edits.c.id)
        )


def _look(edit: PlexEdit, item: PlexItem | None) -> Literal["done", "never", "half", "gone"]:
    """Tell from what an item has whether a planned edit was made."""
    record = edit.record
    if item is None:
        return "gone"
    tags, locked = item.tags(record.field), item.is_locked(record.field)
    if same_genres(tags, record.after) and locked:
        return "done"
    locked_before = edit.over is not None or record.was_locked
    if same_genres(tags, record.replaced) and locked == locked_before:
        return "never"
    if without(tags, (*record.after, *record.replaced)):
        return "never"  # someone edited it since: it is theirs, whatever we did before
    return "half"


def _piles(edits: Iterable[PlexEdit]) -> dict[int, list[PlexEdit]]:
    piles: dict[int, list[PlexEdit]] = defaultdict(list)
    for edit in edits:
        piles[edit.record.rating_key].append(edit)
    return piles


_RECORD = tuple(EditRecord.__dataclass_fields__)


def _edit(row: sa.Row[Any]) -> PlexEdit:
    values = row._mapping
    record = EditRecord(**{name: values[name] for name in _RECORD})
    return PlexEdit(row.id, row.run_id, row.over, row.path, row.state, row.created, record)
