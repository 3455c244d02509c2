"""Genres, moods and styles on the server: plan, apply, read back, repair, and take back.

A record of each edit is to be kept before it is applied; with it alone the edit can be taken back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from reclass_plex.batches import cut
from reclass_plex.errors import PlexError, PlexUnauthorized, PlexUnreachable
from reclass_plex.plex.client import Plex
from reclass_plex.plex.records import (
    EditOutcome,
    EditPlan,
    EditRecord,
    Field,
    PlexItem,
    Skipped,
    same_genres,
    without,
)

EDIT_CHUNK = 100  # items of one edit, as Kometa does
MAX_REMOVALS = 2000  # characters of the genres to remove in one edit: addresses have limits


@dataclass(frozen=True)
class _Change:
    """How the record's field shall be; `remove` is what it has and must lose."""

    record: EditRecord
    tags: tuple[str, ...]
    locked: bool
    remove: tuple[str, ...]


def plan_edits(
    plex: Plex,
    wanted: Mapping[int, Sequence[str]],
    former: Mapping[int, EditRecord] | None = None,
    items: Mapping[int, PlexItem] | None = None,
    *,
    field: Field = "genre",
) -> EditPlan:
    """Decide which items (rating key: tags of the field) must be written, and which must not.

    `former` are the records of our own edits by rating key: a lock that one of them set is
    ours. Keep the plan's records, each after the item's former one, before they are applied;
    without them our own lock would be taken for the user's. `items` are what was just read.
    """
    if items is None:
        items = plex.read_items(wanted)
    records: list[EditRecord] = []
    skipped: list[Skipped] = []
    for key, tags in wanted.items():
        decision = _decide(plex, key, items.get(key), field, tuple(tags), (former or {}).get(key))
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
    """Restore a field and its lock as they were before, where an item still has our tags."""
    kept = tuple(records)
    items = plex.read_items([record.rating_key for record in kept])
    changes = []
    outcomes = {}
    for record in kept:
        item = items.get(record.rating_key)
        if item is None:
            outcomes[record] = EditOutcome(record, "gone")
        elif not record.is_ours(item.tags(record.field)):
            now = ", ".join(item.tags(record.field)) or f"no {record.field}"
            outcomes[record] = EditOutcome(record, "changed", f"it has {now} by now")
        else:
            remove = without(item.tags(record.field), record.before)
            changes.append(_Change(record, record.before, record.was_locked, remove))
    outcomes |= {outcome.record: outcome for outcome in _write(plex, changes)}
    return tuple(outcomes[record] for record in kept)


def _decide(
    plex: Plex,
    key: int,
    item: PlexItem | None,
    field: Field,
    tags: tuple[str, ...],
    former: EditRecord | None,
) -> EditRecord | Skipped | None:
    """Return the edit of one item, why there is none, or None if it is as wanted.

    Moods and styles that someone locked stay, whatever the options say of genres.
    """
    options = plex.options
    if item is None:
        return Skipped(key, "it is no longer on the server")
    if not {"track": options.tracks, "album": options.albums, "artist": options.artists}[item.kind]:
        return Skipped(key, f"plex.{item.kind}s is off")
    if item.kind == "track" and field == "style":
        return Skipped(key, "Plex has no styles of tracks")
    if item.kind == "track" and field == "genre" and not plex.has_track_genres:
        return Skipped(key, f"Plex {plex.version} has no track genres; 1.40.0 has")
    if not tags:
        return Skipped(key, f"there is no {field} to write")
    now, locked = item.tags(field), item.is_locked(field)
    if same_genres(now, tags):
        return None
    if former is not None and former.is_ours(now):
        return replace(former, after=tags, replaced=now)
    if locked and not (options.overwrite_locked and field == "genre"):
        return Skipped(key, f"its {field} was edited in Plex, which locked it")
    where = (item.rating_key, item.kind, item.library_key)
    return EditRecord(*where, now, tags, locked, now, field)


def _write(plex: Plex, changes: Sequence[_Change]) -> tuple[EditOutcome, ...]:
    """Put changes in as few requests as can be, then read back, repair, and read again."""
    refusals: dict[int, str] = {}
    for chunk, remove in _cut_edits(changes):
        if reason := _put(plex, chunk, chunk[0].tags, remove):
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
            field = change.record.field
            kept = ", ".join(items[key].tags(field)) or f"no {field}"
            locked = items[key].is_locked(field)
            reason = refusals.get(key) or f"Plex kept {kept}, locked: {locked}"
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
        item, field = items[change.record.rating_key], change.record.field
        now = item.tags(field)
        group = (item.library_key, item.kind, field, change.tags, change.locked)
        if without(change.tags, now) or item.is_locked(field) != change.locked:
            adding[group].append(change)
        for tag in without(now, change.tags):
            removing[(group, tag)].append(change)
    for changes in adding.values():
        for chunk in cut(changes, EDIT_CHUNK):
            _put(plex, chunk, chunk[0].tags, ())
    for (_, tag), changes in removing.items():
        for chunk in cut(changes, EDIT_CHUNK):
            _put(plex, chunk, (), (tag,))


def _put(
    plex: Plex, chunk: Sequence[_Change], tags: tuple[str, ...], remove: tuple[str, ...]
) -> str:
    """Edit items of one library, kind, field and lock. Returns why it was refused, or nothing."""
    record = chunk[0].record
    try:
        plex.edit_tags(
            record.library_key,
            record.kind,
            [change.record.rating_key for change in chunk],
            record.field,
            add=tags,
            remove=remove,
            locked=chunk[0].locked,
        )
    except (PlexUnauthorized, PlexUnreachable):
        raise
    except PlexError as error:
        return str(error)
    return ""


def _reached(change: _Change, item: PlexItem) -> bool:
    field = change.record.field
    return same_genres(item.tags(field), change.tags) and item.is_locked(field) == change.locked


def _cut_edits(changes: Iterable[_Change]) -> Iterator[tuple[list[_Change], tuple[str, ...]]]:
    """Yield changes that one request can make, with all the genres that it must remove.

    They end alike, so that a removal for one of them cannot hurt another, and it does not
    matter whether the server adds the genres that are sent to the others or replaces them.
    Items with the same genres to lose are kept together, so that a request has few of them.
    """
    groups = defaultdict(list)
    for change in changes:
        where = (change.record.library_key, change.record.kind, change.record.field)
        groups[(where, change.tags, change.locked)].append(change)
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
