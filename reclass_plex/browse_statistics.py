"""Figures about the whole library: genres, confidence, stages, agreement with former tags, errors.

Each figure is counted over an index of `listing`, so that 100,000 tracks take well under 200 ms.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from reclass_plex.genres import TAXONOMIES, canonical_genre, genre_key, is_junk_genre, split_genres
from reclass_plex.store import Store
from reclass_plex.tables import jobs, listing, tracks, verdicts

BINS = 20  # of the histogram of confidence, each 0.05 wide
_SLACK = 1e-9  # 0.15 / 0.05 is a little less than 3


@dataclass(frozen=True)
class NameCount:
    """How many tracks have something."""

    name: str
    count: int


@dataclass(frozen=True)
class GenreFigures:
    """A genre that verdicts put first: in how many tracks, how surely in the mean."""

    name: str
    count: int
    confidence: float


@dataclass(frozen=True)
class Agreement:
    """Of the tracks that came with a genre of this name: how many verdicts put the same first."""

    genre: str
    compared: int
    agreed: int


@dataclass(frozen=True)
class Statistics:
    """Figures of all tracks. `confidence` has `BINS` counts, from 0 to 1.

    `agreement` compares what files said before we wrote with what was heard, unsure verdicts left
    out; a tag counts as the nearest genre that is told apart (Death Metal as Metal).
    """

    tracks: int
    heard: int
    written: int
    genres: tuple[GenreFigures, ...]
    confidence: tuple[int, ...]
    stages: tuple[NameCount, ...]
    unsure: tuple[NameCount, ...]
    errors: tuple[NameCount, ...]  # of files, by kind
    states: tuple[NameCount, ...]  # of the tracks' jobs
    failures: int  # jobs that were given up
    agreement: tuple[Agreement, ...]

    @property
    def compared(self) -> int:
        """How many tracks came with a genre and have a verdict."""
        return sum(one.compared for one in self.agreement)

    @property
    def agreed(self) -> int:
        """Of how many of them the verdict says the same."""
        return sum(one.agreed for one in self.agreement)


@dataclass(frozen=True)
class Facets:
    """By what a list of tracks can be narrowed, and how many tracks each choice has."""

    genres: tuple[NameCount, ...]
    stages: tuple[NameCount, ...]
    states: tuple[NameCount, ...]
    unsure: tuple[NameCount, ...]
    errors: tuple[NameCount, ...]


def statistics(store: Store) -> Statistics:
    """Count everything."""
    bin_of = sa.cast(listing.c.confidence * BINS + _SLACK, sa.Integer)
    heard = listing.c.confidence >= 0
    with store.transaction(write=False) as connection:
        facets = _facets(connection)
        rows = connection.execute(sa.select(bin_of, sa.func.count()).where(heard).group_by(bin_of))
        bins = Counter[int]()
        for where, count in rows:
            bins[max(0, min(where, BINS - 1))] += count
        mean = sa.func.avg(listing.c.confidence)
        genres = tuple(
            GenreFigures(*row)
            for row in connection.execute(
                sa.select(listing.c.genre, sa.func.count(), mean)
                .where(listing.c.genre != "")
                .group_by(listing.c.genre)
                .order_by(sa.func.count().desc(), listing.c.genre)
            )
        )
        tags = connection.execute(
            sa.select(listing.c.former, listing.c.genre, sa.func.count())
            .where(listing.c.genre != "", listing.c.former != "[]")
            .where(sa.func.coalesce(listing.c.unsure, "") == "")  # not by the index of the unsure
            .group_by(listing.c.former, listing.c.genre)
        ).all()
        every = sa.select(sa.func.count()).select_from(listing)
        count_all = connection.execute(every).scalar_one()
        written = connection.execute(every.where(listing.c.written)).scalar_one()
        failures = connection.execute(
            sa.select(sa.func.count()).where(jobs.c.state == "failed")
        ).scalar_one()
    return Statistics(
        tracks=count_all,
        heard=sum(bins.values()),
        written=written,
        genres=genres,
        confidence=tuple(bins[number] for number in range(BINS)),
        stages=facets.stages,
        unsure=facets.unsure,
        errors=facets.errors,
        states=facets.states,
        failures=failures,
        agreement=_agreement([(row[0], row[1], row[2]) for row in tags]),
    )


def facets(store: Store) -> Facets:
    """Return by what tracks can be narrowed."""
    with store.transaction(write=False) as connection:
        return _facets(connection)


def recent_seconds(store: Store, count: int = 200) -> dict[str, float]:
    """Return the mean seconds that each stage took, of the newest `count` verdicts."""
    newest = sa.select(listing.c.track_id, listing.c.models).where(listing.c.heard > 0)
    chosen = newest.order_by(listing.c.heard.desc()).limit(count).subquery()
    query = (
        sa.select(verdicts.c.votes)
        .select_from(chosen.join(tracks, tracks.c.id == chosen.c.track_id))
        .join(
            verdicts,
            sa.and_(verdicts.c.digest == tracks.c.digest, verdicts.c.models == chosen.c.models),
        )
    )
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    with store.transaction(write=False) as connection:
        for text in connection.execute(query).scalars():
            for stage, taken, _ in json.loads(text):
                seconds[stage].append(taken)
    return {stage: sum(taken) / len(taken) for stage, taken in sorted(seconds.items())}


def _facets(connection: sa.Connection) -> Facets:
    def count(column: sa.Column[Any], nothing: str | None) -> tuple[NameCount, ...]:
        number = sa.func.count()
        query = sa.select(column, number).where(column.is_not(None), column != (nothing or ""))
        query = query.group_by(column).order_by(number.desc(), column)
        return tuple(NameCount(*row) for row in connection.execute(query))

    return Facets(
        genres=count(listing.c.genre, ""),
        stages=count(listing.c.decided_by, ""),
        states=count(listing.c.state, None),
        unsure=count(listing.c.unsure, None),
        errors=count(listing.c.error_kind, None),
    )


def _agreement(found: list[tuple[str, str, int]]) -> tuple[Agreement, ...]:
    compared: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    known = tuple(sorted({genre for _, genre, _ in found}))
    for tags, genre, count in found:
        if name := _tagged(tags, known):
            compared[name] += count
            agreed[name] += count * (genre_key(name) == genre_key(genre))
    return tuple(
        Agreement(name, number, agreed[name])
        for name, number in sorted(compared.items(), key=lambda one: (-one[1], one[0]))
    )


@lru_cache(maxsize=4096)  # a library has few genres, many times
def _tagged(tags: str, known: tuple[str, ...]) -> str | None:
    """Return the first genre of a file's tag that says something, among those told apart."""
    for text in json.loads(tags):
        for name in split_genres(str(text)):
            if is_junk_genre(name):
                continue
            keys = {genre_key(genre): genre for genre in known}  # genres of one's own, too
            return keys.get(genre_key(name)) or canonical_genre(name, TAXONOMIES["default"])
    return None
