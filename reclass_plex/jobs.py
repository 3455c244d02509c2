"""What is to be done: one durable row a track, in the store's database.

States: `waiting` (settling, or until a retry is due), `ready`, `running` and `writing` (held by a
process under a lease), `done`, `skipped`, `review` (below the confidence), and `failed` (parked
with its reason until it is revived or asked for again). Triggers coalesce: one for a track that is
in line is merged into its row, one for a track that is held makes it run once more afterwards.

Every method is one transaction and the table is the only truth, so kill -9 at any instant loses
nothing: what a dead process held comes back when its lease ends, or at once through `release`.
Times are seconds since the epoch and always given by the caller.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.store import Store, at_or_below
from reclass_plex.tables import jobs

State = Literal["waiting", "ready", "running", "writing", "done", "skipped", "review", "failed"]
STATES: tuple[State, ...] = get_args(State)
HELD: tuple[State, ...] = ("running", "writing")
IN_LINE: tuple[State, ...] = ("waiting", "ready")
ENDED: tuple[State, ...] = ("done", "skipped", "review", "failed")

BACKOFF_SECONDS = 30.0  # before the first retry; doubled for each further one
MAX_BACKOFF_SECONDS = 6 * 3600.0
MAX_ATTEMPTS = 12  # with these pauses about 14 hours: a full disk or a lost mount is often met then
ALONE_DEATHS = 2  # a job that was held in so many deaths is handed out alone, to find the guilty
MAX_DEATHS = 10  # and after so many it is parked: it would kill every process to come
CLOCK_TOLERANCE = 60.0  # seconds: by less a clock is set back without any harm


@dataclass(frozen=True)
class Job:
    """A row of `jobs`. `reasons` are what asked for it, `message` why it is where it is."""

    id: int
    path: Path
    state: State
    reasons: tuple[str, ...]
    bulk: bool
    due: float
    attempts: int
    deaths: int
    owner: str | None
    lease_until: float | None
    message: str | None
    changed: float


class Jobs:
    """The queue in `store`. Any number of threads and processes may use it at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = math.inf  # the time when the queue was last looked at

    # Triggers

    def enqueue(
        self,
        paths: Iterable[Path],
        reason: str,
        now: float,
        *,
        settle: float = 0.0,
        bulk: bool = False,
    ) -> int:
        """Ask for tracks; return how many were not in line before.

        They are ready after `settle` seconds; asking again while they wait prolongs that. Tracks
        that are being retried keep their count of attempts. `bulk` ones come after all others.
        """
        due = now + settle
        fresh = _fresh(reason, now, due)
        added = 0
        with self._store.transaction() as connection:
            for chunk in cut(dict.fromkeys(paths)):
                query = sa.select(jobs).where(jobs.c.path.in_(chunk))
                rows = {row.path: row for row in connection.execute(query)}
                new = [path for path in chunk if path not in rows]
                if new:
                    connection.execute(
                        jobs.insert(),
                        [
                            {"path": path, "folder": path.parent, "bulk": bulk, **fresh}
                            for path in new
                        ],
                    )
                again = [row for row in rows.values() if row.state not in (*HELD, *IN_LINE)]
                added += len(new) + len(again)
                _update(
                    connection,
                    [_asked_again(row, reason, now, due, bulk=bulk) for row in rows.values()],
                )
        return added

    def forget(self, path: Path) -> int:
        """Drop the jobs of a file, or of all below a folder, that is gone; return how many.

        What is held stays: its owner finds out, and says what became of it.
        """
        with self._store.transaction() as connection:
            result = connection.execute(
                jobs.delete().where(jobs.c.state.not_in(HELD), at_or_below(jobs.c.path, path))
            )
        return int(result.rowcount)

    def forget_files(self, paths: Iterable[Path]) -> int:
        """Drop the jobs of files that are gone, but not of what is held; return how many."""
        forgotten = 0
        with self._store.transaction() as connection:
            for chunk in cut(paths):
                result = connection.execute(
                    jobs.delete().where(jobs.c.state.not_in(HELD), jobs.c.path.in_(chunk))
                )
                forgotten += int(result.rowcount)
        return forgotten

    # The worker's side

    def claim(self, limit: int, now: float, *, owner: str, lease: float) -> list[Job]:
        """Hand out up to `limit` ready tracks to `owner` for `lease` seconds, folder by folder.

        The track that is due longest comes first and brings its folder along, so that albums
        finish together. What waited long enough becomes ready, and leases that ended come back.
        """
        self._mind_clock(now)
        with self._store.transaction() as connection:
            # Who claims lives: its leases end only because it slept, or the clock was set.
            connection.execute(
                jobs.update()
                .where(jobs.c.state.in_(HELD), jobs.c.owner == owner, jobs.c.lease_until <= now)
                .values(lease_until=now + lease)
            )
            _take_back(connection, now, jobs.c.lease_until <= now)
            connection.execute(
                jobs.update()
                .where(jobs.c.state == "waiting", jobs.c.bulk.in_((False, True)))
                .where(jobs.c.due <= now)
                .values(state="ready", changed=now)
            )
            ids = _next_in_line(connection, limit)
            mine = jobs.c.id.in_(ids)
            connection.execute(
                jobs.update()
                .where(mine)
                .values(state="running", owner=owner, lease_until=now + lease, changed=now)
            )
            rows = connection.execute(sa.select(jobs).where(mine)).all()
        order = {job_id: place for place, job_id in enumerate(ids)}
        return sorted((_job(row) for row in rows), key=lambda job: order[job.id])

    def extend(self, owner: str, now: float, *, lease: float) -> int:
        """Prolong all leases of `owner`, which is alive; return how many tracks it holds."""
        with self._store.transaction() as connection:
            result = connection.execute(
                jobs.update()
                .where(jobs.c.state.in_(HELD), jobs.c.owner == owner)
                .values(lease_until=now + lease)
            )
        return int(result.rowcount)

    def start_writing(self, ids: Collection[int], owner: str, now: float) -> list[int]:
        """Say that files and server are about to be changed; return which of `ids` are still held.

        What is not returned was lost with its lease, and must be left to the one that has it now.
        """
        with self._store.transaction() as connection:
            held = {row.id for row in _held(connection, ids, owner)}
            connection.execute(
                jobs.update().where(jobs.c.id.in_(held)).values(state="writing", changed=now)
            )
        return [job_id for job_id in ids if job_id in held]

    def finish(
        self,
        ids: Collection[int],
        owner: str,
        state: Literal["done", "skipped", "review"],
        now: float,
        *,
        message: str | None = None,
    ) -> int:
        """Close tracks that `owner` holds; return how many it still held."""
        return self._let_go(ids, owner, now, lambda row: {"state": state, "message": message})

    def give_back(self, ids: Collection[int], owner: str, now: float, *, delay: float = 0.0) -> int:
        """Put tracks back in line with nothing held against them; return how many were held.

        For a clean stop, or something that is no fault of the track (a GPU that is away).
        """
        if delay > 0:
            return self._let_go(ids, owner, now, lambda _: {"state": "waiting", "due": now + delay})
        return self._let_go(ids, owner, now, lambda _: {"state": "ready"})  # at its old place

    def retry(self, ids: Collection[int], owner: str, now: float, *, message: str) -> int:
        """Try tracks again later; return how many were held.

        Pauses double from half a minute to six hours; after `MAX_ATTEMPTS` a track is parked.
        """

        def end(row: sa.Row[Any]) -> dict[str, Any]:
            attempts = row.attempts + 1
            if attempts >= MAX_ATTEMPTS:
                given_up = f"{message} (given up after {attempts} attempts)"
                return {"state": "failed", "message": given_up}
            pause = min(BACKOFF_SECONDS * 2.0**row.attempts, MAX_BACKOFF_SECONDS)
            columns = {"state": "waiting", "due": now + pause, "attempts": attempts}
            return {**columns, "message": message}

        return self._let_go(ids, owner, now, end)

    def park(self, ids: Collection[int], owner: str, now: float, *, message: str) -> int:
        """Set tracks aside as failed; return how many were held."""
        return self._let_go(ids, owner, now, lambda _: {"state": "failed", "message": message})

    def _let_go(
        self,
        ids: Collection[int],
        owner: str,
        now: float,
        end: Callable[[sa.Row[Any]], dict[str, Any]],
    ) -> int:
        """End the hold on those of `ids` that `owner` still holds, as `end` says."""
        with self._store.transaction() as connection:
            rows = _held(connection, ids, owner)
            _update(connection, [_ended(row, now, end(row)) for row in rows])
        return len(rows)

    def release(self, owners: Collection[str], now: float) -> int:
        """Take back at once what processes hold that are known to be dead; return how many."""
        with self._store.transaction() as connection:
            return _take_back(connection, now, jobs.c.owner.in_(owners))

    def owners(self) -> set[str]:
        """Return who holds tracks."""
        query = sa.select(jobs.c.owner).where(jobs.c.state.in_(HELD)).distinct()
        with self._store.transaction(write=False) as connection:
            return set(connection.execute(query).scalars())

    def overdue(self, now: float) -> int:
        """Count the tracks that are held beyond their lease: their owner gives no sign of life."""
        query = sa.select(sa.func.count()).where(jobs.c.state.in_(HELD), jobs.c.lease_until < now)
        with self._store.transaction(write=False) as connection:
            return int(connection.execute(query).scalar_one())

    def count_since(self, since: float) -> int:
        """Count the tracks that were done, skipped or set aside for review since a time."""
        ended = jobs.c.state.in_(("done", "skipped", "review"))
        query = sa.select(sa.func.count()).where(ended, jobs.c.changed >= since)
        with self._store.transaction(write=False) as connection:
            return int(connection.execute(query).scalar_one())

    def next_due(self, now: float) -> float | None:
        """Return when a `claim` can next find something: `now` if at once, None if never."""
        self._mind_clock(now)
        waiting = (
            sa.select(sa.func.min(jobs.c.due))
            .where(jobs.c.state == "waiting", jobs.c.bulk == bulk)
            .scalar_subquery()
            for bulk in (False, True)
        )
        held = sa.select(sa.func.min(jobs.c.lease_until)).where(jobs.c.state.in_(HELD))
        ready = sa.select(sa.exists().where(jobs.c.state == "ready")).scalar_subquery()
        with self._store.transaction(write=False) as connection:
            row = connection.execute(sa.select(ready, *waiting, held.scalar_subquery())).one()
        if row[0]:
            return now
        times = [float(value) for value in row[1:] if value is not None]
        return max(now, min(times)) if times else None

    def _mind_clock(self, now: float) -> None:
        """Bring times that lie ahead back, at the first look and whenever the clock was set back.

        Else what waits for a minute would wait for as long as the clock was wrong.
        """
        former, self._seen = self._seen, now
        if now >= former - CLOCK_TOLERANCE:
            return
        ahead = sa.func.max(jobs.c.changed - now, 0.0)  # SQLite's: the greater of the two
        latest = now + MAX_BACKOFF_SECONDS
        times = (jobs.c.due, jobs.c.lease_until, jobs.c.again_due)
        with self._store.transaction() as connection:
            connection.execute(
                jobs.update()
                .where(jobs.c.state.in_((*IN_LINE, *HELD)))
                .where((jobs.c.changed > now) | sa.or_(*(column > latest for column in times)))
                .values({column.name: sa.func.min(column - ahead, latest) for column in times})
                .values(changed=jobs.c.changed - ahead)
            )

    # People's side

    def counts(self) -> dict[State, int]:
        """Return how many tracks are in each state; every state is there."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._store.transaction(write=False) as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def find(self, path: Path) -> Job | None:
        """Return the job of a track, whatever its state."""
        with self._store.transaction(write=False) as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.path == path)).first()
        return None if row is None else _job(row)

    def outcomes(self, paths: Collection[Path]) -> dict[Path, tuple[State, float]]:
        """Return the states of the tracks that have a job, at most some hundred, and since when."""
        asked = {os.fsencode(path): path for path in paths}
        query = sa.select(_raw_path, jobs.c.state, jobs.c.changed).where(_raw_path.in_(asked))
        with self._store.transaction(write=False) as connection:
            rows = connection.execute(query)
            return {asked[row[0]]: (row.state, row.changed) for row in rows}

    def changed_since(self, since: float, limit: int) -> list[Job]:
        """Return the jobs whose state changed since a time, the latest first."""
        query = sa.select(jobs).where(jobs.c.changed >= since)
        query = query.order_by(jobs.c.changed.desc()).limit(limit)
        with self._store.transaction(write=False) as connection:
            return [_job(row) for row in connection.execute(query)]

    def in_hand(self, limit: int) -> list[Path]:
        """Return tracks that are worked on, those that are written first, then by path."""
        query = sa.select(jobs.c.path).where(jobs.c.state.in_(HELD))
        query = query.order_by(jobs.c.state.desc(), jobs.c.path).limit(limit)
        with self._store.transaction(write=False) as connection:
            return list(connection.execute(query).scalars())

    def paths_below(self, folder: Path, after: bytes | None, limit: int) -> list[bytes]:
        """Return a page of the paths with jobs at and below a folder, those after `after`.

        As the system knows them: to make Paths of a million takes longer than to find them.
        """
        query = sa.select(_raw_path).where(at_or_below(jobs.c.path, folder))
        if after is not None:
            query = query.where(_raw_path > after)
        with self._store.transaction(write=False) as connection:
            return list(connection.execute(query.order_by(jobs.c.path).limit(limit)).scalars())

    def list_jobs(self, *states: State, limit: int = 100, offset: int = 0) -> list[Job]:
        """Return jobs in these states, the latest change first. `failed` are the dead letters."""
        query = (
            sa.select(jobs)
            .where(jobs.c.state.in_(states))
            .order_by(jobs.c.changed.desc(), jobs.c.id.desc())
            .limit(limit)
            .offset(offset)
        )
        with self._store.transaction(write=False) as connection:
            return [_job(row) for row in connection.execute(query)]

    def revive(self, now: float, ids: Collection[int] | None = None) -> int:
        """Put dead letters back in line, all of them without `ids`; return how many."""
        condition = jobs.c.state == "failed"
        if ids is not None:
            condition &= jobs.c.id.in_(ids)
        with self._store.transaction() as connection:
            result = connection.execute(
                jobs.update()
                .where(condition)
                .values(state="ready", due=now, attempts=0, deaths=0, changed=now)
            )
        return int(result.rowcount)

    def settle(
        self,
        paths: Iterable[Path],
        message: str,
        now: float,
        *,
        state: Literal["done", "failed", "review"] = "done",
    ) -> int:
        """Close tracks that nobody works on, and that are not in line, by a person's word."""
        settled = 0
        with self._store.transaction() as connection:
            for chunk in cut(paths):
                result = connection.execute(
                    jobs.update()
                    .where(jobs.c.path.in_(chunk), jobs.c.state.not_in((*HELD, *IN_LINE)))
                    .values(state=state, message=message, changed=now)
                )
                settled += int(result.rowcount)
        return settled

    def prune(self, before: float) -> int:
        """Drop the rows of tracks that were done before a time; return how many.

        What was skipped stays: its row says that a decision was taken (see `reconcile`).
        """
        with self._store.transaction() as connection:
            result = connection.execute(
                jobs.delete().where(jobs.c.state == "done", jobs.c.changed < before)
            )
        return int(result.rowcount)


_raw_path = sa.type_coerce(jobs.c.path, sa.LargeBinary)  # a Path at hand is not made again

# One statement for many rows: of those that a trigger meets, each may change in another way.
_UPDATE = (
    jobs.update()
    .where(jobs.c.id == sa.bindparam("row_id"))
    .values(
        {
            name: sa.bindparam(name)
            for name in (
                *("state", "reasons", "bulk", "due", "attempts", "deaths"),
                *("owner", "lease_until", "again", "again_due", "message", "changed"),
            )
        }
    )
)


def _update(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write whole rows back."""
    if rows:
        connection.execute(_UPDATE, [{**row, "row_id": row["id"]} for row in rows])


def _fresh(reason: str, now: float, due: float) -> dict[str, Any]:
    """Return the columns of a job that begins."""
    return {
        "state": "waiting" if due > now else "ready",
        "reasons": (reason,),
        "due": due,
        "attempts": 0,
        "deaths": 0,
        "message": None,
        "changed": now,
    }


def _asked_again(
    row: sa.Row[Any], reason: str, now: float, due: float, *, bulk: bool
) -> dict[str, Any]:
    """Return the columns of a known job after one more trigger."""
    columns = dict(row._mapping)
    if row.state not in (*HELD, *IN_LINE):
        return {**columns, **_fresh(reason, now, due), "bulk": bulk}
    columns["bulk"] = row.bulk and bulk
    if row.state in HELD:
        columns["again"] = _merged(row.again or (), reason)
        columns["again_due"] = max(due, row.again_due or due)
        return columns
    columns["reasons"] = _merged(row.reasons, reason)
    if row.state == "waiting":
        # Settling goes on; a retry that was far off comes sooner.
        columns["due"] = (min if row.attempts else max)(row.due, due)
        columns["changed"] = now
    elif row.bulk and not bulk:
        columns["due"] = due  # its place among the new ones
    return columns


def _next_in_line(connection: sa.Connection, limit: int) -> list[int]:
    """Return the ids to hand out: the folders of those due longest, until there are `limit`."""
    ready = jobs.c.state == "ready"
    heads = connection.execute(
        sa.select(jobs.c.id, jobs.c.folder, jobs.c.deaths, jobs.c.due, jobs.c.bulk)
        .where(ready)
        .order_by(jobs.c.bulk, jobs.c.due)
        .limit(limit)
    ).all()
    ids: list[int] = []
    folders = set()
    for head in heads:
        if head.deaths >= ALONE_DEATHS:
            if not ids:
                return [head.id]
            continue
        if head.folder in folders:
            continue
        folders.add(head.folder)
        together = (ready, jobs.c.folder == head.folder, jobs.c.deaths < ALONE_DEATHS)
        # One more than can be handed out tells whether the folder is cut.
        mates = connection.execute(
            sa.select(jobs.c.id)
            .where(*together)
            .order_by(jobs.c.due, jobs.c.id)
            .limit(limit - len(ids) + 1)
        )
        ids += mates.scalars()
        if len(ids) > limit:
            # What is left over comes next, before folders that began to arrive in between.
            connection.execute(
                jobs.update()
                .where(*together, jobs.c.due > head.due)
                .values(due=head.due, bulk=head.bulk)
            )
            return ids[:limit]
        if len(ids) == limit:
            break
    return ids


def _held(connection: sa.Connection, ids: Collection[int], owner: str) -> Sequence[sa.Row[Any]]:
    query = sa.select(jobs).where(jobs.c.id.in_(ids), jobs.c.owner == owner, jobs.c.state.in_(HELD))
    return connection.execute(query).all()


def _take_back(connection: sa.Connection, now: float, condition: sa.ColumnElement[bool]) -> int:
    """Return the held jobs of dead processes to the end of the line, or park the deadly ones."""
    rows = connection.execute(sa.select(jobs).where(jobs.c.state.in_(HELD), condition)).all()
    _update(connection, [_ended(row, now, _died(row, now)) for row in rows])
    return len(rows)


def _died(row: sa.Row[Any], now: float) -> dict[str, Any]:
    deaths = row.deaths + 1
    if deaths >= MAX_DEATHS:
        return {"state": "failed", "message": f"{deaths} processes died while they worked on it"}
    return {"state": "ready", "due": now, "deaths": deaths}


def _ended(row: sa.Row[Any], now: float, end: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a job after its hold; asked for meanwhile, it is in line again."""
    columns = {**row._mapping, "owner": None, "lease_until": None, "changed": now, **end}
    if row.again:
        if end["state"] in IN_LINE:
            columns["reasons"] = _merged(row.reasons, *row.again)
        else:
            columns |= _fresh(row.again[0], now, row.again_due)
            columns["reasons"] = row.again
    return {**columns, "again": None, "again_due": None}


def _merged(reasons: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*reasons, *more)))


def _job(row: sa.Row[Any]) -> Job:
    names = Job.__dataclass_fields__
    return Job(**{name: row._mapping[name] for name in names})
