"""Taking our edits in Plex back: the genres (moods, styles) and the lock that each item had before.

What stands in a field of an item is a pile of edits (see `ledger`). Of those that are asked for,
the ones on top are taken back together; below the newest edit of another run nothing can be: that
one would have to be undone first. An album, or an artist, belongs to the newest run among the
files that it was written for. Where paths are named, it is taken back when all of its tracks are
below them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.plex import (
    EditOutcome,
    EditRecord,
    Plex,
    PlexItem,
    same_genres,
    spellings,
    undo_edits,
)
from reclass_plex.plex.records import FIELDS
from reclass_plex.store import Store
from reclass_plex.sync.ledger import EditState, Ledger, PlexEdit
from reclass_plex.sync.places import Places
from reclass_plex.sync.wanted import Wanted
from reclass_plex.tables import plex_wanted

LOCK_SECONDS = 120.0  # to wait for a round of edits
UNDO_CHUNK = 2000  # items read and written together
_STATES: tuple[tuple[str, EditState], ...] = (("done", "undone"), ("gone", "gone"))


def undo_plex(
    plex: Plex,
    store: Store,
    *,
    run_id: int | None = None,
    paths: Collection[Path] | None = None,
    since: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[PlexEdit, EditOutcome]]:
    """Take back what stands of our edits, and yield what became of each.

    Narrowed by run, by files or folders, and by time; all of it without. What was still wanted of
    the same is forgotten first. done: taken back. gone: the item is. changed: someone, or a later
    run, edited it since, so it is left. failed: Plex did something else. Raises PlexError: what
    was yielded until then is taken back; call again for the rest. Raises StoreBusy if a round of
    edits takes very long.
    """
    with store.writing_plex(LOCK_SECONDS, should_stop):
        yield from _undo_plex(plex, store, run_id, paths, since, should_stop)


def _undo_plex(
    plex: Plex,
    store: Store,
    run_id: int | None,
    paths: Collection[Path] | None,
    since: float | None,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[PlexEdit, EditOutcome]]:
    spelled = None if paths is None else {one for path in paths for one in spellings(path)}
    _forget_wanted(store, run_id, spelled, since)
    places = None if spelled is None else Places(store, plex)
    for field in FIELDS:
        ledger = Ledger(store, plex.uuid, field)
        piles = ledger.all_piles()
        if places is not None and spelled is not None:
            concerned = _concerned(places, piles, spelled)
        asked = {
            edit.id
            for key, pile in piles.items()
            for edit in pile
            if (run_id is None or edit.run_id == run_id)
            and (since is None or edit.created >= since)
            and (spelled is None or key in concerned)
        }
        keys = [key for key, pile in piles.items() if any(edit.id in asked for edit in pile)]
        for chunk in cut(keys, UNDO_CHUNK):
            if should_stop():
                return
            yield from _undo(plex, ledger, {key: piles[key] for key in chunk}, asked)


def _undo(
    plex: Plex, ledger: Ledger, piles: dict[int, list[PlexEdit]], asked: Collection[int]
) -> Iterator[tuple[PlexEdit, EditOutcome]]:
    settled, items = ledger.settle(plex, piles, plex.read_items(piles))
    taken = {key: _take(pile, asked) for key, pile in settled.items()}
    records = []
    already = []
    for key, edits in taken.items():
        if edits:
            record = _record_back(edits)
            item = items.get(key)
            if item is not None and _is_back(item, record):
                already.append(EditOutcome(record, "done"))  # the process was killed after it
            else:
                records.append(record)
    outcomes = (*already, *undo_edits(plex, records))
    became = {outcome.record.rating_key: outcome for outcome in outcomes}
    for status, state in _STATES:
        keys = [key for key, outcome in became.items() if outcome.status == status]
        ledger.mark([edit.id for key in keys for edit in taken[key]], state)
    for key, pile in settled.items():
        for edit in reversed(pile):
            if edit in taken[key]:
                yield edit, replace(became[key], record=edit.record)
            elif edit.id in asked:
                yield edit, EditOutcome(edit.record, "changed", _why_not(pile, edit))


def _is_back(item: PlexItem, record: EditRecord) -> bool:
    same = same_genres(item.tags(record.field), record.before)
    return same and item.is_locked(record.field) == record.was_locked


def _take(pile: Sequence[PlexEdit], asked: Collection[int]) -> list[PlexEdit]:
    """Return the edits to take back at once, newest first: down to one that has to stay."""
    taken: list[PlexEdit] = []
    for edit in reversed(pile):
        if edit.id not in asked:
            break
        taken.append(edit)
        if edit.over is None:  # below it are edits that someone else wrote over
            break
    return taken


def _record_back(taken: Sequence[PlexEdit]) -> EditRecord:
    """Return the one edit that is to be undone for all of them, newest first."""
    newest, oldest = taken[0].record, taken[-1]
    if oldest.over is not None:  # another of ours is below, and so is our lock
        return replace(newest, before=oldest.record.replaced, was_locked=True)
    return replace(newest, before=oldest.record.before, was_locked=oldest.record.was_locked)


def _why_not(pile: Sequence[PlexEdit], edit: PlexEdit) -> str:
    newer = pile[pile.index(edit) + 1]
    if newer.over is None:
        return "someone edited it since"
    return f"edited again in run {newer.run_id}: undo that first"


def _concerned(
    places: Places, piles: Mapping[int, Sequence[PlexEdit]], paths: AbstractSet[Path]
) -> set[int]:
    """Return the items that files below `paths` are, and those all of whose tracks are below."""
    concerned = {
        key for key, pile in piles.items() if (path := pile[-1].path) and _below(path, paths)
    }
    kinds: tuple[Literal["album", "artist"], ...] = ("album", "artist")
    for kind in kinds:
        keys = [key for key, pile in piles.items() if pile[-1].record.kind == kind]
        for key, tracks in places.below(kind, keys).items():
            if all(any(_below(path, paths) for path in track) for track in tracks):
                concerned.add(key)
    return concerned


def _below(path: Path, paths: AbstractSet[Path]) -> bool:
    return not paths.isdisjoint((path, *path.parents))


def _forget_wanted(
    store: Store, run_id: int | None, paths: AbstractSet[Path] | None, since: float | None
) -> None:
    """Want no longer what is being taken back."""
    query = sa.select(plex_wanted.c.path)
    if run_id is not None:
        query = query.where(plex_wanted.c.run_id == run_id)
    if since is not None:
        query = query.where(plex_wanted.c.asked >= since)
    with store.transaction(write=False) as connection:
        found = list(connection.execute(query).scalars())
    Wanted(store).forget([path for path in found if paths is None or _below(path, paths)])
