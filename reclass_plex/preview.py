"""What other settings of the policy would do to the whole library, without touching a file.

Everything comes from the store: nothing is decoded, no file is opened. Tracks are read album by
album, because the tracks of an album vote together, a page at a time.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from reclass_plex.batches import cut
from reclass_plex.config import PolicyOptions
from reclass_plex.decided import Decisions
from reclass_plex.errors import ConfigError
from reclass_plex.genres import Taxonomy, is_junk_genre, split_genres
from reclass_plex.policy import plan_tags
from reclass_plex.records import GenreScore, TagPlan, Track, Verdict
from reclass_plex.store import Store
from reclass_plex.tables import listing, tracks, verdicts

SAMPLE = 50  # tracks shown
_PAGE = 2000
_SEED = 0  # the same question has the same answer


@dataclass(frozen=True)
class Example:
    """A file that would be written, and why."""

    track_id: int
    path: Path
    before: tuple[str, ...]
    after: tuple[str, ...]
    confidence: float
    reason: str


@dataclass(frozen=True)
class Counts:
    """Files by what becomes of them: `written` had no genre that says something, `changed` had one,
    `moods` get moods alone; `review` wait for a person, `kept` stay for another reason.
    """

    written: int = 0
    changed: int = 0
    moods: int = 0
    review: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Preview:
    """What settings would do. `tracks` were looked at, `unheard` of them were never heard.

    `now` is what the settings in use would do, and `differs` in how many files that is something
    else. `genres` are those that would be written, `library` those that all files have afterwards,
    `reasons` why files stay; the most frequent first. `stopped`: not all was looked at.
    """

    tracks: int
    unheard: int
    then: Counts
    now: Counts
    differs: int
    genres: tuple[tuple[str, int], ...]
    library: tuple[tuple[str, int], ...]
    reasons: tuple[tuple[str, int], ...]
    sample: tuple[Example, ...]
    stopped: bool = False


def change_policy(policy: PolicyOptions, changes: Mapping[str, Any]) -> PolicyOptions:
    """Return the policy with some options changed. Raises ConfigError, naming the key."""
    try:
        return PolicyOptions.model_validate(policy.model_dump() | dict(changes))
    except ValidationError as error:
        one = error.errors()[0]
        key = ".".join(map(str, ("policy", *one["loc"])))
        raise ConfigError(f"{key}: {one['msg'].lower()}") from None


def preview(
    store: Store,
    models: str,
    taxonomy: Taxonomy,
    policy: PolicyOptions,
    current: PolicyOptions,
    *,
    sample: int = SAMPLE,
    on_progress: Callable[[int], object] = lambda count: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Preview:
    """Say what `policy` would do with what `models` heard (else, others), and `current` does.

    `on_progress` gets how many more tracks were looked at. Raises StoreError.
    """
    totals = _Totals(sample)
    for chunk in _albums(store, models, on_progress, should_stop):
        heard = [(one, verdict) for one, verdict in chunk if verdict is not None]
        totals.add_unheard([one for one, verdict in chunk if verdict is None])
        pairs = [(one.track, verdict) for one, verdict in heard]
        then = plan_tags(pairs, policy, taxonomy)
        now = then if policy == current else plan_tags(pairs, current, taxonomy)
        for (one, _), plan, other in zip(heard, then, now, strict=True):
            totals.add(one, plan, other)
    return totals.result(stopped=should_stop())


def unsure_tracks(
    store: Store, models: str, taxonomy: Taxonomy, policy: PolicyOptions
) -> Iterator[tuple[int, str]]:
    """Yield the ids of tracks that the policy leaves to a person, and why. Raises StoreError."""
    for chunk in _albums(store, models, lambda count: None, lambda: False):
        heard = [(one, verdict) for one, verdict in chunk if verdict is not None]
        plans = plan_tags([(one.track, verdict) for one, verdict in heard], policy, taxonomy)
        for (one, _), plan in zip(heard, plans, strict=True):
            if _kind(plan) == "review":
                yield one.id, plan.reason


@dataclass(frozen=True)
class _Row:
    id: int
    path: bytes
    track: Track


class _Totals:
    def __init__(self, sample: int) -> None:
        self._size = sample
        self._sample: list[Example] = []
        self._random = random.Random(_SEED)  # noqa: S311 - a sample, no secret
        self._tracks = self._unheard = self._differs = self._changes = 0
        self._then: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._genres: Counter[str] = Counter()
        self._library: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add_unheard(self, rows: Sequence[_Row]) -> None:
        self._tracks += len(rows)
        self._unheard += len(rows)
        for row in rows:
            self._library.update(row.track.genres)

    def add(self, row: _Row, plan: TagPlan, other: TagPlan) -> None:
        self._tracks += 1
        kind = _kind(plan)
        self._then[kind] += 1
        self._now[kind if plan is other else _kind(other)] += 1
        differs = (plan.after, plan.moods) != (other.after, other.moods)
        self._differs += differs
        self._library.update(plan.before if plan.after is None else plan.after)
        if plan.after is None:
            self._reasons[_group(plan.reason)] += 1
            return
        if plan.after != plan.before:
            self._genres.update(plan.after)
        self._changes += 1
        place = len(self._sample)
        if place >= self._size:  # each change has the same chance to be shown
            place = self._random.randrange(self._changes)
            if place >= self._size:
                return
        path = Path(os.fsdecode(row.path))
        example = Example(row.id, path, plan.before, plan.after, plan.confidence, plan.reason)
        self._sample[place : place + 1] = [example]

    def result(self, *, stopped: bool) -> Preview:
        return Preview(
            tracks=self._tracks,
            unheard=self._unheard,
            then=Counts(**self._then),
            now=Counts(**self._now),
            differs=self._differs,
            genres=_ranked(self._genres),
            library=_ranked(self._library),
            reasons=_ranked(self._reasons),
            sample=tuple(sorted(self._sample, key=lambda one: os.fsencode(one.path))),
            stopped=stopped,
        )


def _ranked(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _kind(plan: TagPlan) -> str:
    if plan.after is None:
        return "review" if plan.undecided else "kept"
    if plan.after == plan.before:
        return "moods"
    telling = (part for name in plan.before for part in split_genres(name) or (name,))
    return "changed" if any(not is_junk_genre(part) for part in telling) else "written"


def _group(reason: str) -> str:
    """Return a reason without what differs from file to file."""
    if reason.endswith(", as was decided"):
        return "as a person decided"
    return "already has a genre" if reason.startswith("already has") else reason.partition(" (")[0]


def _albums(
    store: Store,
    models: str,
    on_progress: Callable[[int], object],
    should_stop: Callable[[], bool],
) -> Iterator[list[tuple[_Row, Verdict | None]]]:
    """Yield tracks with their verdicts, those of an album together."""
    decided = {digest: one.genres for digest, one in Decisions(store).all_standing().items()}
    for album_known in (False, True):
        pending: list[tuple[_Row, Verdict | None]] = []
        last: tuple[str | None, int] = ("" if album_known else None, 0)
        while not should_stop():
            rows = _page(store, models, last)
            found = [_read(row, decided) for row in rows]
            on_progress(len(rows))
            pending += found
            if len(rows) < _PAGE:
                yield pending
                break
            last = rows[-1].album, rows[-1].id
            if not album_known:
                yield pending
                pending = []
                continue
            first = next(
                place for place, (one, _) in enumerate(pending) if one.track.album == last[0]
            )
            yield pending[:first]
            pending = pending[first:]


def _page(store: Store, models: str, last: tuple[str | None, int]) -> Sequence[sa.Row[Any]]:
    album, track_id = last
    columns = (
        *(tracks.c.id, sa.type_coerce(tracks.c.path, sa.LargeBinary).label("raw"), tracks.c.digest),
        *(tracks.c.genres, tracks.c.album, tracks.c.written, tracks.c.added, tracks.c.undone),
        *(tracks.c.moods, tracks.c.moods_written),
        *(verdicts.c.taxonomy, verdicts.c.genres.label("heard"), verdicts.c.unsure),
        *(verdicts.c.moods.label("heard_moods"), verdicts.c.styles),
    )
    same_audio = verdicts.c.digest == tracks.c.digest
    query = sa.select(*columns).select_from(
        tracks.outerjoin(verdicts, sa.and_(same_audio, verdicts.c.models == models))
    )
    if album is None:
        query = query.where(tracks.c.album.is_(None), tracks.c.id > track_id)
    else:
        query = query.where(sa.tuple_(tracks.c.album, tracks.c.id) > sa.tuple_(album, track_id))
    query = query.order_by(tracks.c.album, tracks.c.id).limit(_PAGE)
    with store.transaction(write=False) as connection:
        rows = connection.execute(query).all()
        missing = [row.id for row in rows if row.heard is None and row.digest is not None]
        if not missing:
            return rows
        newest = sa.select(*columns).select_from(
            tracks.join(listing, listing.c.track_id == tracks.c.id).join(
                verdicts, sa.and_(same_audio, verdicts.c.models == listing.c.models)
            )
        )
        others: dict[int, sa.Row[Any]] = {}
        for chunk in cut(missing):
            others |= {
                row.id: row for row in connection.execute(newest.where(tracks.c.id.in_(chunk)))
            }
    return [others.get(row.id, row) for row in rows]


def _read(row: sa.Row[Any], decided: Mapping[str, tuple[str, ...]]) -> tuple[_Row, Verdict | None]:
    track = Track(
        path=_NOWHERE,
        genres=row.genres,
        album=row.album,
        written=row.written,
        added=row.added or (),
        undone=row.undone,
        moods=row.moods or (),
        moods_written=row.moods_written,
        decided=decided.get(row.digest) if decided else None,
    )
    found = _Row(row.id, row.raw, track)
    if row.heard is None:
        return found, None
    scores = tuple(map(GenreScore._make, json.loads(row.heard)))
    moods, styles = row.heard_moods or (), row.styles or ()
    return found, Verdict(row.taxonomy, scores, "", (), 0.0, row.unsure, moods, styles)


_NOWHERE = Path()  # a path each would be dear, and is seldom shown
