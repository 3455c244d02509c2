"""What people said of recordings, on disk: the table `decisions`.

A decision belongs to the audio (its digest), so that it survives moves and retags. Of each digest
one `stands` at most; a newer one makes it `replaced`. Undo makes it `withdrawn`, and the newest
that was replaced stands again; `forget` withdraws them all. `open` are the tracks whose
files are yet to be written: it is durable before the first file is touched, so that kill -9 loses
no word of anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.store import Store, at_or_below, withdraw_decisions
from reclass_plex.tables import decisions, journal, tracks

Kind = Literal["accept", "correct"]
State = Literal["stands", "replaced", "withdrawn"]

_OPEN = decisions.c.open != sa.literal_column("'[]'")  # as its index has it, or it is not used


@dataclass(frozen=True)
class Decision:
    """A row of `decisions`. `previous` is what the models had said first, `by` who decided."""

    id: int
    digest: str
    genres: tuple[str, ...]
    kind: Kind
    previous: str | None
    created: float
    by: str | None
    run_id: int
    state: State
    open: tuple[int, ...]
    problem: str | None


@dataclass(frozen=True)
class Word:
    """What a person says of one track."""

    track_id: int
    digest: str
    genres: tuple[str, ...]
    kind: Kind
    previous: str | None


class Decisions:
    """The rows in `store`. Any number of threads and processes may use them at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(
        self, words: Iterable[Word], run_id: int, now: float, *, by: str | None = None
    ) -> int:
        """Keep what a person said, durably; return of how many recordings.

        The newest word on a recording counts, for all of its files that were still to be written.
        """
        of_digest: dict[str, list[Word]] = {}
        for word in words:
            of_digest.setdefault(word.digest, []).append(word)
        with self._store.transaction() as connection:
            for chunk in cut(of_digest):
                standing = decisions.c.digest.in_(chunk) & (decisions.c.state == "stands")
                rows = connection.execute(sa.select(decisions).where(standing)).all()
                left = {row.digest: row.open for row in rows}
                # What was never written leaves nothing behind that could stand again.
                idle = standing & _OPEN & ~_has_written()
                connection.execute(
                    decisions.update().where(idle).values(state="withdrawn", open=())
                )
                connection.execute(
                    decisions.update().where(standing).values(state="replaced", open=())
                )
                values = []
                for digest in chunk:
                    said = of_digest[digest]
                    ids = (str(word.track_id) for word in said)
                    values.append(
                        {
                            "digest": digest,
                            "genres": said[-1].genres,
                            "kind": said[-1].kind,
                            "previous": said[-1].previous,
                            "created": now,
                            "by": by,
                            "run_id": run_id,
                            "state": "stands",
                            "open": tuple(dict.fromkeys((*left.get(digest, ()), *ids))),
                        }
                    )
                connection.execute(decisions.insert(), values)
            for decided in cut(word.track_id for said in of_digest.values() for word in said):
                # What was taken back before is decided anew.
                connection.execute(
                    tracks.update().where(tracks.c.id.in_(decided)).values(undone=False)
                )
        return len(of_digest)

    def standing(self, digests: Collection[str]) -> dict[str, Decision]:
        """Return what people said of these recordings; those without a word are left out."""
        found: dict[str, Decision] = {}
        with self._store.transaction(write=False) as connection:
            for chunk in cut(digests):
                query = _stands().where(decisions.c.digest.in_(chunk))
                found.update((row.digest, _decision(row)) for row in connection.execute(query))
        return found

    def all_standing(self) -> dict[str, Decision]:
        """Return every decision that stands, by digest."""
        with self._store.transaction(write=False) as connection:
            return {row.digest: _decision(row) for row in connection.execute(_stands())}

    def of_digest(self, digest: str) -> list[Decision]:
        """Return all that was ever said of a recording, newest first."""
        query = sa.select(decisions).where(decisions.c.digest == digest)
        with self._store.transaction(write=False) as connection:
            return list(map(_decision, connection.execute(query.order_by(decisions.c.id.desc()))))

    def page(self, limit: int, before: int | None = None) -> list[Decision]:
        """Return decisions that stand, newest first, those with an id below `before`."""
        query = _stands().order_by(decisions.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(decisions.c.id < before)
        with self._store.transaction(write=False) as connection:
            return list(map(_decision, connection.execute(query)))

    def open_ones(self, run_id: int | None = None) -> list[Decision]:
        """Return the decisions that some file does not say yet, oldest first."""
        query = sa.select(decisions).where(_OPEN)
        if run_id is not None:
            query = query.where(decisions.c.run_id == run_id)
        with self._store.transaction(write=False) as connection:
            return list(map(_decision, connection.execute(query.order_by(decisions.c.id))))

    def any_open(self) -> bool:
        """Say whether there is one."""
        query = sa.select(sa.exists(sa.select(decisions.c.id).where(_OPEN)))
        with self._store.transaction(write=False) as connection:
            return bool(connection.execute(query).scalar())

    def find(self, decision_id: int) -> Decision | None:
        """Return one decision."""
        query = sa.select(decisions).where(decisions.c.id == decision_id)
        with self._store.transaction(write=False) as connection:
            row = connection.execute(query).first()
        return None if row is None else _decision(row)

    def note(self, decision_id: int, track_id: int, problem: str | None) -> None:
        """Say that a track's file says so now, or (`problem`) why it does not."""
        this = decisions.c.id == decision_id
        with self._store.transaction() as connection:
            left = connection.execute(sa.select(decisions.c.open).where(this)).scalar() or ()
            values: dict[str, Any] = {"problem": problem}
            if problem is None:
                values["open"] = tuple(one for one in left if one != str(track_id))
            connection.execute(decisions.update().where(this).values(**values))

    def withdraw_unwritten(
        self,
        *,
        run_id: int | None = None,
        since: float | None = None,
        below: Collection[Path] | None = None,
        dry_run: bool = False,
    ) -> int:
        """Withdraw what was decided but changed no file that is so still; return how many.

        Narrowed by run, time, and where their files are; what changed files is undone with them.
        """
        condition = (decisions.c.state == "stands") & ~_has_written()
        if run_id is not None:
            condition &= decisions.c.run_id == run_id
        if since is not None:
            condition &= decisions.c.created >= since
        if below is not None:
            here = sa.or_(sa.false(), *(at_or_below(tracks.c.path, path) for path in below))
            condition &= sa.exists().where(tracks.c.digest == decisions.c.digest, here)
        with self._store.transaction(write=not dry_run) as connection:
            if dry_run:
                query = sa.select(sa.func.count()).select_from(decisions).where(condition)
                return int(connection.execute(query).scalar_one())
            return withdraw_decisions(connection, condition)

    def forget(self, digests: Collection[str]) -> int:
        """Withdraw all that was said of recordings: the models decide again; return how many."""
        count = 0
        with self._store.transaction() as connection:
            for chunk in cut(digests):
                mine = decisions.c.digest.in_(chunk)
                stands = mine & (decisions.c.state == "stands")
                count += int(
                    connection.execute(
                        sa.select(sa.func.count()).select_from(decisions).where(stands)
                    ).scalar_one()
                )
                connection.execute(
                    decisions.update().where(mine).values(state="withdrawn", open=())
                )
        return count


def _has_written() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        journal.c.run_id == decisions.c.run_id,
        journal.c.digest == decisions.c.digest,
        journal.c.state.in_(("done", "pending")),
    )


def _stands() -> sa.Select[Any]:
    return sa.select(decisions).where(decisions.c.state == "stands")


def _decision(row: sa.Row[Any]) -> Decision:
    values = dict(row._mapping)
    return Decision(**values | {"open": tuple(map(int, row.open))})
