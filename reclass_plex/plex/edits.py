"""Genres on the server: plan, apply, read back, repair, and take back.

A record of each edit is to be kept before it is applied; with it alone the edit can be taken back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from reclass_plex.errors import PlexError, PlexUnauthorized, PlexUnreachable
from reclass_plex.plex.client import Plex, cut
from reclass_plex.plex.records import (
    EditOutcome,
    EditPlan,
    EditRecord,
    PlexItem,
    Skipped,
    same_genres,
    without,
)

EDIT_CHUNK = 100  # items of one edit, as Kometa does
MAX_REMOVALS = 2000  # characters of the genres to remove in one edit: addresses have limits


@dataclass(frozen=True)
class _Change:
    """How the item of a record shall be; `remove` is what it has and must lose."""

    record: EditRecord
    genres: tuple[str, ...]
    locked: bool
    remove: tuple[str, ...]


def plan_edits(
    plex: Plex,
    wanted: Mapping[int, Sequence[str]],
    former: Mapping[int, EditRecord] | None = None,
    items: Mapping[int, PlexItem] | None = None,
) -> EditPlan:
    """Decide which items (rating key: genres) must be written, and which must not.

    `former` are the records of our own edits by rating key: a lock that one of them set is
    ours. Keep the plan's records, each after the item's former one, before they are applied;
    without them our own lock would be taken for the user's. `items` are what was just read.
    """
    if items is None:
        items = plex.read_items(wanted)
    records: list[EditRecord] = []
    skipped: list[Skipped] = []
    for key, genres in wanted.items():
        decision = _decide(plex, key, items.get(key), tuple(genres), (former or {}).get(key))
        if isinstance(decision, EditRecord):
            records.append(decision)
        elif decision is not None:
            skipped.append(decision)
    return EditPlan(tuple(records), tuple(skipped))


def apply_edits(plex: Plex, records: Iterable[EditRecord]) -> tuple[EditOutcome, ...]:
    """Write planned edits, lock them, read them back, and repair what is not as intended.

    Locked, because a refresh of the metadata takes back what is not. If the connection is
    lost, PlexUnreachable is raised with some edits written: plan again, then apply.
    """
    return _write(
        plex,
        [
            _Change(record, record.after, True, without(record.replaced, record.after))
            for record in records
        ],
    )


def undo_edits(plex: Plex, records: Iterable[EditRecord]) -> tuple[EditOutcome, ...]:
    """Restore genres and lock as they were before, where an item still has our genres."""
    kept = tuple(records)
    items = plex.read_items([record.rating_key for record in kept])
    changes = []
    outcomes = {}
    for record in kept:
        item = items.get(record.rating_key)
        if item is None:
            outcomes[record] = EditOutcome(record, "gone")
        elif not record.is_ours(item.genres):
            now = ", ".join(item.genres) or "no genre"
            outcomes[record] = EditOutcome(record, "changed", f"it has {now} by now")
        else:
            remove = without(item.genres, record.before)
            changes.append(_Change(record, record.before, record.was_locked, remove))
    outcomes |= {outcome.record: outcome for outcome in _write(plex, changes)}
    return tuple(outcomes[record] for record in kept)


def _decide(
    plex: Plex, key: int, item: PlexItem | None, genres: tuple[str, ...], former: EditRecord | None
) -> EditRecord | Skipped | None:
    """Return the edit of one item, why there is none, or None if it is as wanted."""
    options = plex.options
    if item is None:
        return Skipped(key, "it is no longer on the server")
    if not {"track": options.tracks, "album": options.albums, "artist": options.artists}[item.kind]:
        return Skipped(key, f"plex.{item.kind}s is off")
    if item.kind == "track" and not plex.has_track_genres:
        return Skipped(key, f"Plex {plex.version} has no track genres; 1.40.0 has")
    if not genres:
        return Skipped(key, "there is no genre to write")
    if same_genres(item.genres, genres):
        return None
    if former is not None and former.is_ours(item.genres):
        return replace(former, after=genres, replaced=item.genres)
    if item.locked and not options.overwrite_locked:
        return Skipped(key, "its genre was edited in Plex, which locked it")
    where = (item.rating_key, item.kind, item.library_key)
    return EditRecord(*where, item.genres, genres, item.locked, item.genres)


def _write(plex: Plex, changes: Sequence[_Change]) -> tuple[EditOutcome, ...]:
    """Put changes in as few requests as can be, then read back, repair, and read again."""
    refusals: dict[int, str] = {}
    for chunk, remove in _cut_edits(changes):
        if reason := _put(plex, chunk, chunk[0].genres, remove):
            refusals |= {change.record.rating_key: reason for change in chunk}
    items = plex.read_items([change.record.rating_key for change in changes])
    wrong = [
        change
        for change in changes
        if (item := items.get(change.record.rating_key)) and not _reached(change, item)
    ]
    if wrong:
        _repair(plex, wrong, items)
        for change in wrong:
            items.pop(change.record.rating_key, None)
        items |= plex.read_items([change.record.rating_key for change in wrong])
    outcomes = []
    for change in changes:
        key = change.record.rating_key
        if key not in items:
            outcomes.append(EditOutcome(change.record, "gone"))
        elif _reached(change, items[key]):
            outcomes.append(EditOutcome(change.record, "done"))
        else:
            kept = ", ".join(items[key].genres) or "no genre"
            reason = refusals.get(key) or f"Plex kept {kept}, locked: {items[key].locked}"
            outcomes.append(EditOutcome(change.record, "failed", reason))
    return tuple(outcomes)


def _repair(plex: Plex, wrong: Sequence[_Change], items: Mapping[int, PlexItem]) -> None:
    """Write again what did not come out right, one thing a request.

    It is said of some servers that of several removals in one request only one counts, and
    one item that is gone may have its whole chunk refused.
    """
    adding = defaultdict(list)
    removing = defaultdict(list)
    for change in wrong:
        item = items[change.record.rating_key]
        group = (item.library_key, item.kind, change.genres, change.locked)
        if without(change.genres, item.genres) or item.locked != change.locked:
            adding[group].append(change)
        for genre in without(item.genres, change.genres):
            removing[(group, genre)].append(change)
    for group, changes in adding.items():
        for chunk in cut(changes, EDIT_CHUNK):
            _put(plex, chunk, group[2], ())
    for (_, genre), changes in removing.items():
        for chunk in cut(changes, EDIT_CHUNK):
            _put(plex, chunk, (), (genre,))


def _put(
    plex: Plex, chunk: Sequence[_Change], genres: tuple[str, ...], remove: tuple[str, ...]
) -> str:
    """Edit items of one library, kind and lock. Returns why it was refused, or nothing."""
    record = chunk[0].record
    try:
        plex.edit_genres(
            record.library_key,
            record.kind,
            [change.record.rating_key for change in chunk],
            add=genres,
            remove=remove,
            locked=chunk[0].locked,
        )
    except (PlexUnauthorized, PlexUnreachable):
        raise
    except PlexError as error:
        return str(error)
    return ""


def _reached(change: _Change, item: PlexItem) -> bool:
    return same_genres(item.genres, change.genres) and item.locked == change.locked


def _cut_edits(changes: Iterable[_Change]) -> Iterator[tuple[list[_Change], tuple[str, ...]]]:
    """Yield changes that one request can make, with all the genres that it must remove.

    They end alike, so that a removal for one of them cannot hurt another, and it does not
    matter whether the server adds the genres that are sent to the others or replaces them.
    Items with the same genres to lose are kept together, so that a request has few of them.
    """
    groups = defaultdict(list)
    for change in changes:
        where = (change.record.library_key, change.record.kind)
        groups[(where, change.genres, change.locked)].append(change)
    for group in groups.values():
        chunk: list[_Change] = []
        remove: dict[str, None] = {}
        for change in sorted(group, key=lambda change: change.remove):
            more = remove | dict.fromkeys(change.remove)
            length = sum(len(quote(quote(genre), safe="")) for genre in more)
            if chunk and (len(chunk) == EDIT_CHUNK or length > MAX_REMOVALS):
                yield chunk, tuple(remove)
                chunk, more = [], dict.fromkeys(change.remove)
            chunk.append(change)
            remove = more
        yield chunk, tuple(remove)
