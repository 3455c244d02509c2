"""What the user is told about, in the store: problems that need them, and messages on their way.

A problem is told when it has lasted a while, again only after the repeat time, and that all is
well once it has been gone a while. One that comes and goes is told at most every `QUIET_SECONDS`.
All of it is in two tables, so that a restart repeats nothing and loses nothing; a message is sent
once or, if the machine fails in that second, twice. Times are seconds since the epoch and given by
the caller; a clock that was wrong does not silence anything for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from reclass_plex.jobs import STATES, State
from reclass_plex.messages import Delivery
from reclass_plex.store import Store
from reclass_plex.tables import jobs, journal, notice_outbox, notice_problems

Kind = Literal["problem", "well", "daily"]

QUIET_SECONDS = 3600.0  # at least so long between two messages about the same problem
GONE_SECONDS = 300.0  # a problem must be away before it counts as solved
BACKOFF_SECONDS = 30.0  # before a message is tried again; doubled each time
MAX_BACKOFF_SECONDS = 3600.0
GIVE_UP_SECONDS = 2 * 86400.0  # then a message is old news
KEEP_SECONDS = 30 * 86400.0  # messages that were sent
MAX_GENRES = 12  # lines of a summary
CLOCK_TOLERANCE = 60.0  # seconds


@dataclass(frozen=True)
class Problem:
    """Something that the user must see to. `key` is the same as long as it is the same problem.

    It is told once it has lasted `patience` seconds.
    """

    key: str
    text: str
    patience: float = 60.0


@dataclass(frozen=True)
class Message:
    """A message on its way. `reached` are the destinations that took it (`address_key`)."""

    id: int
    kind: Kind
    title: str
    body: str
    attempts: int
    reached: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What happened in a span of time: tracks by the genre they got, jobs by their state."""

    genres: Mapping[str, int]
    states: Mapping[State, int]
    waiting: int  # for the user's decision, now

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to say."""
        return not self.genres and not self.states.get("failed") and not self.states.get("review")

    def text(self) -> str:
        """Return the body of the daily message."""
        total = sum(self.genres.values())
        ranked = sorted(self.genres.items(), key=lambda item: (-item[1], item[0]))
        lines = [f"{total} tracks got a genre."] if total else ["No track got a genre."]
        lines += [f"  {genre}: {count}" for genre, count in ranked[:MAX_GENRES]]
        if rest := sum(count for _, count in ranked[MAX_GENRES:]):
            lines.append(f"  others: {rest}")
        if failed := self.states.get("failed"):
            lines.append(f"{failed} failed (reclass-plex jobs --state failed).")
        if self.waiting:
            lines.append(f"{self.waiting} wait for your decision (reclass-plex jobs).")
        return "\n".join(lines)


class Notices:
    """Problems and messages in `store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def observe(self, found: Collection[Problem], now: float, *, repeat_seconds: float) -> None:
        """Take what is wrong now; put in line what is to be told of it.

        Writes only if something changed.
        """
        problems = {one.key: one for one in found}
        with self._store.transaction(write=False) as connection:
            known = {row.key: row for row in connection.execute(sa.select(notice_problems))}
        changes = [_seen(known.get(key), one, now) for key, one in problems.items()]
        changes += [_missed(row, now) for key, row in known.items() if key not in problems]
        repeat = max(repeat_seconds, QUIET_SECONDS)
        tell, well = [], []
        for row in changes:
            gone, told = row["gone"], _past(row["told"], now)
            if gone is None:
                lasts = now - row["since"] >= problems[row["key"]].patience
                silent = QUIET_SECONDS if not row["open"] else repeat
                if lasts and (told is None or now - told >= silent):
                    tell.append(row)
                    row |= {"open": True, "told": now}
            elif now - gone >= GONE_SECONDS and row["open"]:
                well.append(row)
                row["open"] = False
        kept = [row for row in changes if not _is_forgotten(row, now)]
        before = {key: dict(row._mapping) for key, row in known.items()}
        if before == {row["key"]: row for row in kept}:
            return
        with self._store.transaction() as connection:
            connection.execute(notice_problems.delete())
            if kept:
                connection.execute(notice_problems.insert(), kept)
            for message in _messages(tell, well, kept):
                _put(connection, *message, now)

    def put(self, kind: Kind, title: str, body: str, now: float) -> None:
        """Put a message in line. One without a body is only remembered as done."""
        with self._store.transaction() as connection:
            _put(connection, kind, title, body, now)

    def next_message(self, now: float) -> Message | None:
        """Return the message that is due longest, None if none is; drop what is old news."""
        table = notice_outbox
        waiting = table.c.state == "waiting"
        with self._store.transaction(write=False) as connection:
            rows = connection.execute(sa.select(table).where(waiting).order_by(table.c.due)).all()
        old = [row.id for row in rows if not -CLOCK_TOLERANCE < now - row.created < GIVE_UP_SECONDS]
        if old:
            with self._store.transaction() as connection:
                connection.execute(
                    table.update().where(table.c.id.in_(old)).values(state="given up")
                )
        for row in rows:
            if row.id not in old and row.due <= now:
                names = Message.__dataclass_fields__
                return Message(**{name: row._mapping[name] for name in names})
        return None

    def finish(self, message: Message, deliveries: Sequence[Delivery], now: float) -> None:
        """Note what became of a message: sent, or in line again for those who did not take it."""
        reached = tuple({*message.reached, *(one.key for one in deliveries if one.error is None)})
        failed = [one for one in deliveries if one.error is not None]
        values: dict[str, Any] = {"reached": reached, "attempts": message.attempts + 1}
        if failed:
            pause = min(BACKOFF_SECONDS * 2.0 ** min(message.attempts, 20), MAX_BACKOFF_SECONDS)
            values |= {"due": now + pause, "why": "; ".join(f"{o.name}: {o.error}" for o in failed)}
        else:
            values |= {"state": "sent", "why": None}
        table = notice_outbox
        with self._store.transaction() as connection:
            connection.execute(table.update().where(table.c.id == message.id).values(values))
            connection.execute(
                table.delete().where(
                    table.c.state != "waiting",
                    table.c.created < now - KEEP_SECONDS,
                    table.c.id != message.id,
                )
            )

    def last_daily(self, now: float) -> float | None:
        """Return until when summaries were made; None if none was, or the clock was wrong then."""
        newest = sa.select(sa.func.max(notice_outbox.c.created)).where(
            notice_outbox.c.kind == "daily", notice_outbox.c.created <= now + CLOCK_TOLERANCE
        )
        with self._store.transaction(write=False) as connection:
            found = connection.execute(newest).scalar()
        return None if found is None else float(found)

    def summarise(self, since: float, until: float) -> Summary:
        """Return what happened from `since` until `until`."""
        changes = sa.select(journal.c.before, journal.c.after, sa.func.count().label("n")).where(
            journal.c.state == "done", journal.c.created >= since, journal.c.created < until
        )
        genres: Counter[str] = Counter()
        with self._store.transaction(write=False) as connection:
            for row in connection.execute(changes.group_by(journal.c.before, journal.c.after)):
                genres.update(dict.fromkeys(set(row.after) - set(row.before), row.n))
            waiting = sa.select(sa.func.count()).where(jobs.c.state == "review")
            review = int(connection.execute(waiting).scalar_one())
        return Summary(genres, self.outcomes(since, until), review)

    def outcomes(self, since: float, until: float) -> dict[State, int]:
        """Return how many tracks came to each state in a span of time, and are still in it."""
        query = (
            sa.select(jobs.c.state, sa.func.count())
            .where(jobs.c.changed >= since, jobs.c.changed < until)
            .group_by(jobs.c.state)
        )
        with self._store.transaction(write=False) as connection:
            found = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {state: found[state] for state in STATES if state in found}

    def no_space(self) -> int:
        """Return how many tracks wait because their disk is full."""
        said = sa.or_(
            jobs.c.message.like("%free some space%"), jobs.c.message.like("%of free space for%")
        )
        query = sa.select(sa.func.count()).where(
            jobs.c.state == "waiting", jobs.c.attempts > 0, said
        )
        with self._store.transaction(write=False) as connection:
            return int(connection.execute(query).scalar_one())


def _seen(row: sa.Row[Any] | None, problem: Problem, now: float) -> dict[str, Any]:
    """Return the columns of a problem that is there."""
    if row is None:
        fresh = {"since": now, "told": None, "gone": None, "open": False}
        return {"key": problem.key, "text": problem.text, **fresh}
    columns = {**row._mapping, "text": problem.text, "gone": None}
    if row.gone is not None and not row.open:
        columns["since"] = now  # it had been solved: it is another one
    columns["since"] = min(columns["since"], now)
    return columns


def _missed(row: sa.Row[Any], now: float) -> dict[str, Any]:
    """Return the columns of a problem that is not there."""
    gone = _past(row.gone, now)
    return {**row._mapping, "gone": now if gone is None else gone}


def _past(moment: float | None, now: float) -> float | None:
    """Return a time that may have been taken from a wrong clock; what is yet to come is none."""
    return None if moment is None or moment > now + CLOCK_TOLERANCE else moment


def _is_forgotten(row: Mapping[str, Any], now: float) -> bool:
    told = _past(row["told"], now)
    quiet_over = told is None or now - told >= QUIET_SECONDS
    return row["gone"] is not None and not row["open"] and quiet_over


def _messages(
    tell: Sequence[Mapping[str, Any]],
    well: Sequence[Mapping[str, Any]],
    kept: Sequence[Mapping[str, Any]],
) -> list[tuple[Kind, str, str]]:
    """Return one message for all that is to be told of now."""
    found: list[tuple[Kind, str, str]] = []
    if tell:
        title = "reclass-plex needs you" if len(tell) == 1 else f"{len(tell)} things need you"
        found.append(("problem", title, "\n\n".join(row["text"] for row in tell)))
    if well:
        left = [row for row in kept if row["open"]]
        title = "One problem is solved" if left else "All is well again"
        body = "\n\n".join(f"No longer: {row['text']}" for row in well)
        found.append(("well", title, body))
    return found


def _put(connection: sa.Connection, kind: Kind, title: str, body: str, now: float) -> None:
    values = {"kind": kind, "title": title, "body": body, "created": now, "due": now}
    state = "waiting" if body else "sent"
    connection.execute(
        notice_outbox.insert().values(**values, attempts=0, reached=(), state=state, why=None)
    )
