"""What is known, on disk: SQLite in WAL mode through SQLAlchemy.

Some tables have a module of their own, which asks in SQL too: `jobs`, `decided`, `placements`,
`notices`, `web_keys`, `sync`. So do those that only read: `browse*`, `heard`, `preview`.

Tables: `tracks` (one row a file), `verdicts` and `embeddings` (one row an audio digest, so that a
moved, copied or retagged file is known again), `runs` and `journal` (what was changed, and what it
takes to restore the exact former bytes). See `tables`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from reclass_plex.errors import FileError, StoreBusy, StoreDamaged, StoreError, printable
from reclass_plex.files import give_to_owner, open_lock, process_token, try_lock
from reclass_plex.records import Embedding, GenreScore, Verdict, Vote
from reclass_plex.schema import bring_up_to_date
from reclass_plex.store_guard import (
    BUSY_SECONDS,
    LOCK_PAUSE,
    admit,
    damage,
    is_damage,
    refuse_damaged,
)
from reclass_plex.tables import (
    decisions,
    embeddings,
    journal,
    metadata,
    placements,
    runs,
    tracks,
    verdicts,
)

_PAGE = 1000  # tracks of a list that are in memory at once


@dataclass(frozen=True)
class KnownTrack:
    """A row of `tracks`, with its verdict where one by the current models exists."""

    id: int
    path: Path
    size: int
    mtime_ns: int
    digest: str | None
    genres: tuple[str, ...]
    album: str | None
    written: tuple[str, ...] | None
    added: tuple[str, ...]
    undone: bool
    error: tuple[str, str] | None  # kind, message
    verdict: Verdict | None
    moods: tuple[str, ...] = ()
    moods_written: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ListedTrack:
    """What a selection among all tracks goes by. `models` said `top`; None: never heard."""

    path: Path
    digest: str | None
    genres: tuple[str, ...]
    album: str | None
    written: tuple[str, ...] | None
    models: str | None
    top: GenreScore | None
    unsure: str | None


@dataclass(frozen=True)
class JournalEntry:
    """A row of `journal`: one file changed in one run.

    `path` is the file that was replaced, `named` how the user named it (through a link, perhaps),
    `digest` stands for its audio. `moods` were written where there had been none (None: untouched).
    """

    id: int
    run_id: int
    track_id: int
    path: Path
    named: Path
    temp_path: Path
    digest: str
    state: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_hash: str
    after_hash: str
    before_mtime_ns: int
    created: float
    moods: tuple[str, ...] | None = None


class Store:
    """The database. Open it with `Store.open`; use one instance a process, from any thread."""

    def __init__(self, engine: sa.Engine, path: Path, users: IO[str]) -> None:
        self._engine = engine
        self._users = users
        self.path = path

    @classmethod
    def open(cls, path: Path, *, keep_former: bool = True, check: bool = False) -> Store:
        """Open or create the database at `path`, and bring its schema up to date.

        A backup is made before an older schema is changed (`keep_former`); with `check` the file is
        looked through, also after a clean end (see `store_guard.admit`). Raises StoreError when
        it cannot be opened, StoreDamaged, and StoreNewer for one that a newer version wrote.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{printable(path.parent)}: cannot be created: {error}") from error
        try:
            users = admit(path, check=check)
        except OSError as error:
            raise _refusal(path, error) from error
        engine = sa.create_engine(
            "sqlite+pysqlite://",
            creator=lambda: _connect(path),
            poolclass=sa.pool.QueuePool,
            pool_use_lifo=True,  # each connection has a cache of its own: use few, these often
        )
        sa.event.listen(engine, "begin", _begin_transaction)
        try:
            if not path.exists():
                with path.open("ab") as file:  # SQLite takes an empty one for new
                    give_to_owner(file.fileno(), path.parent)
            bring_up_to_date(engine, path, keep_former=keep_former)
        except (sa.exc.DatabaseError, sqlite3.Error, OSError, ValueError) as error:
            engine.dispose()
            users.close()
            raise _refusal(path, error) from error
        except StoreError:
            engine.dispose()
            users.close()
            raise
        return cls(engine, path, users)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()
        self._users.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def writing_files(
        self, wait_seconds: float = 0.0, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Hold the right to change files: one process at a time, given back even by kill -9.

        Raises StoreBusy when another process holds it, and still does after `wait_seconds`.
        """
        with self._holding("lock", "changing files", wait_seconds, should_stop):
            refuse_damaged(self.path)
            yield

    @contextmanager
    def writing_plex(
        self, wait_seconds: float = 0.0, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Hold the right to change Plex, as `writing_files` does for files. Raises StoreBusy.

        A round of edits and an undo at once would each decide by what the other is changing.
        """
        with self._holding("plex-lock", "changing Plex", wait_seconds, should_stop):
            refuse_damaged(self.path)
            yield

    @contextmanager
    def _holding(
        self, name: str, does: str, wait_seconds: float, should_stop: Callable[[], bool]
    ) -> Iterator[None]:
        until = time.monotonic() + wait_seconds
        try:
            lock = open_lock(self.path.with_name(f"{self.path.name}.{name}"))
        except OSError as error:
            raise _refusal(self.path, error) from error
        with lock:
            while not try_lock(lock):
                if time.monotonic() >= until or should_stop():
                    raise StoreBusy(
                        f"another reclass-plex is {does} with the store"
                        f" {printable(self.path)}: wait until it ends, or stop it"
                    )
                time.sleep(LOCK_PAUSE)
            yield

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[sa.Connection]:
        """Run one transaction; turn what SQLite refuses (disk full, locked) into StoreError.

        Also for the modules with tables of their own, in the same database.
        """
        try:
            connection = self._engine.connect().execution_options(reclass_write=write)
            with connection, connection.begin():
                yield connection
        except (sa.exc.DatabaseError, json.JSONDecodeError) as error:
            raise _refusal(self.path, error) from error

    # Tracks and verdicts

    def known_files(self, paths: Sequence[Path], models: str) -> list[KnownTrack]:
        """Return what is known of these files, at most some thousands."""
        asked = {os.fsencode(path): path for path in paths}
        query = _track_query(models).where(_raw_path.in_(asked))
        with self.transaction(write=False) as connection:
            rows = connection.execute(query)
            return [_known_track(row, asked[row.raw_path]) for row in rows]

    def find_track(self, path: Path, models: str) -> KnownTrack | None:
        """Return what is known of one file."""
        with self.transaction(write=False) as connection:
            row = connection.execute(_track_query(models).where(tracks.c.path == path)).first()
        return None if row is None else _known_track(row, path)

    def find_tracks(self, ids: Collection[int], models: str) -> list[KnownTrack]:
        """Return what is known of tracks, by their ids, at most some hundred."""
        query = _track_query(models).add_columns(tracks.c.path).where(tracks.c.id.in_(ids))
        with self.transaction(write=False) as connection:
            return [_known_track(row, row.path) for row in connection.execute(query)]

    def iter_known(self, models: str = "") -> Iterator[KnownTrack]:
        """Yield what is known of every file, with no transaction open meanwhile."""
        query = _track_query(models).add_columns(tracks.c.path).order_by(tracks.c.id).limit(_PAGE)
        last = 0
        while True:
            with self.transaction(write=False) as connection:
                rows = connection.execute(query.where(tracks.c.id > last)).all()
            yield from (_known_track(row, row.path) for row in rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1].id

    def tracks_below(self, paths: Collection[Path]) -> list[int]:
        """Return the ids of the tracks that could be read, at and below paths, by path."""
        places = (at_or_below(tracks.c.path, path) for path in paths)
        query = sa.select(tracks.c.id).where(sa.or_(*places), tracks.c.digest.is_not(None))
        with self.transaction(write=False) as connection:
            return list(connection.execute(query.order_by(tracks.c.path)).scalars())

    def count_tracks(self) -> int:
        """Count all tracks that were ever seen."""
        with self.transaction(write=False) as connection:
            query = sa.select(sa.func.count()).select_from(tracks)
            return int(connection.execute(query).scalar_one())

    def album_of(self, track_id: int) -> list[int]:
        """Return the ids of the tracks of a track's album, itself among them, by path."""
        album = sa.select(tracks.c.album).where(tracks.c.id == track_id).scalar_subquery()
        query = sa.select(tracks.c.id).where(
            sa.or_(tracks.c.id == track_id, tracks.c.album == album)
        )
        with self.transaction(write=False) as connection:
            return list(connection.execute(query.order_by(tracks.c.path)).scalars())

    def newest_verdict(self, digest: str) -> Verdict | None:
        """Return what whichever models heard this audio last said of it."""
        query = sa.select(*verdicts.c).where(verdicts.c.digest == digest)
        with self.transaction(write=False) as connection:
            row = connection.execute(query.order_by(verdicts.c.created.desc())).first()
        return None if row is None else _verdict(row)

    def album_mates(
        self, albums: Collection[str], without: Collection[Path], models: str
    ) -> list[KnownTrack]:
        """Return the tracks of these albums that have a verdict, except those at `without`."""
        query = _track_query(models).add_columns(tracks.c.path).where(tracks.c.album.in_(albums))
        with self.transaction(write=False) as connection:
            known = [_known_track(row, row.path) for row in connection.execute(query)]
        left_out = set(without)
        return [track for track in known if track.verdict and track.path not in left_out]

    def save_track(
        self,
        path: Path,
        size: int,
        mtime_ns: int,
        *,
        digest: str | None = None,
        genres: tuple[str, ...] = (),
        album: str | None = None,
        moods: tuple[str, ...] = (),
        error: FileError | None = None,
    ) -> int:
        """Record what a file is now, and return the row's id.

        A file that is new here, but is in all that can be seen the one that was known at a path
        that no longer exists, has moved: what was written and undone there holds here too. (The
        old row stays, as its disk may only be away.)
        """
        values: dict[str, Any] = {
            "path": path,
            "size": size,
            "mtime_ns": mtime_ns,
            "digest": digest,
            "genres": genres,
            "album": album,
            "moods": moods or None,
            "error_kind": error.kind if error else None,
            "error_message": error.reason if error else None,
        }
        with self.transaction() as connection:
            row = connection.execute(sa.select(tracks.c.id).where(tracks.c.path == path)).first()
            if row is not None:
                connection.execute(tracks.update().where(tracks.c.id == row.id).values(**values))
                return int(row.id)
            former = _moved_from(connection, digest, size, mtime_ns)
            result = connection.execute(tracks.insert().values(**former, **values))
            assert result.inserted_primary_key is not None  # noqa: S101 - SQLite always gives one
            return int(result.inserted_primary_key[0])

    def find_verdict(self, digest: str, models: str) -> Verdict | None:
        """Return what these models said of this audio."""
        query = sa.select(*verdicts.c).where(
            verdicts.c.digest == digest, verdicts.c.models == models
        )
        with self.transaction(write=False) as connection:
            row = connection.execute(query).first()
        return None if row is None else _verdict(row)

    def save_verdict(
        self,
        digest: str,
        models: str,
        verdict: Verdict,
        vectors: Sequence[Embedding] = (),
        *,
        now: float | None = None,
    ) -> None:
        """Record what these models said of this audio, and what the encoders heard in it."""
        values = {
            "taxonomy": verdict.taxonomy,
            "genres": json.dumps(_scores_out(verdict.genres)),
            "unsure": verdict.unsure,
            "decided_by": verdict.decided_by,
            "votes": json.dumps(
                [[vote.stage, vote.seconds, _scores_out(vote.genres)] for vote in verdict.votes]
            ),
            "seconds": verdict.seconds,
            "moods": verdict.moods or None,
            "styles": verdict.styles or None,
            "created": time.time() if now is None else now,
        }
        with self.transaction() as connection:
            statement = insert(verdicts).values(digest=digest, models=models, **values)
            connection.execute(statement.on_conflict_do_update(set_=values))
            for vector in vectors:
                blob = vector.vector.astype("<f2").tobytes()
                whose = {"digest": digest, "encoder": vector.encoder}
                differs = embeddings.c.vector != blob
                connection.execute(embeddings.delete().filter_by(**whose).where(differs))
                row = insert(embeddings).values(**whose, vector=blob)
                connection.execute(row.on_conflict_do_nothing())

    def find_embedding(self, digest: str, encoder: str) -> Embedding | None:
        """Return what an encoder heard in this audio."""
        query = sa.select(embeddings.c.vector).where(
            embeddings.c.digest == digest, embeddings.c.encoder == encoder
        )
        with self.transaction(write=False) as connection:
            blob = connection.execute(query).scalar()
        if blob is None:
            return None
        import numpy as np

        return Embedding(encoder, np.frombuffer(blob, dtype="<f2").astype(np.float32))

    def iter_tracks(
        self, models: str, below: Collection[Path] | None = None
    ) -> Iterator[ListedTrack]:
        """Yield all tracks, or those at and below some paths, with no transaction open meanwhile.

        Each comes with the verdict of `models`, or where there is none with the newest of others.
        """
        other = verdicts.alias()
        best = (
            sa.select(other.c.models)
            .where(other.c.digest == tracks.c.digest)
            .order_by(other.c.models != models, other.c.created.desc())
            .limit(1)
            .scalar_subquery()
        )
        heard = sa.and_(verdicts.c.digest == tracks.c.digest, verdicts.c.models == best)
        query: sa.Select[Any] = (
            sa.select(
                *(tracks.c.id, tracks.c.path, tracks.c.digest, tracks.c.genres, tracks.c.album),
                *(tracks.c.written, verdicts.c.models, verdicts.c.genres.label("heard")),
                verdicts.c.unsure,
            )
            .select_from(tracks.outerjoin(verdicts, heard))
            .order_by(tracks.c.id)
            .limit(_PAGE)
        )
        if below is not None:
            places = (at_or_below(tracks.c.path, path) for path in below)
            query = query.where(sa.or_(sa.false(), *places))
        last = 0
        while True:
            with self.transaction(write=False) as connection:
                rows = connection.execute(query.where(tracks.c.id > last)).all()
            yield from map(_listed_track, rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1].id

    # Runs and the journal

    def start_run(self, command: str, *, now: float | None = None) -> int:
        """Open a run: a set of changes that can be undone together."""
        with self.transaction() as connection:
            result = connection.execute(
                runs.insert().values(
                    command=command,
                    token=process_token(),
                    started=time.time() if now is None else now,
                )
            )
            assert result.inserted_primary_key is not None  # noqa: S101 - SQLite always gives one
            return int(result.inserted_primary_key[0])

    def join_run(self, run_id: int) -> None:
        """Go on with a run that perhaps another process began: see `dead_tokens`."""
        with self.transaction() as connection:
            this = runs.c.id == run_id
            token = connection.execute(sa.select(runs.c.token).where(this)).scalar_one()
            if process_token() not in token.split():
                joined = f"{token} {process_token()}"
                connection.execute(runs.update().where(this).values(token=joined))

    def finish_run(self, run_id: int, *, now: float | None = None, keep_empty: bool = True) -> None:
        """Close a run; without `keep_empty` drop it if nothing came of it."""
        with self.transaction() as connection:
            if not keep_empty:
                used = [
                    sa.exists().where(table.c.run_id == run_id)
                    for table in metadata.tables.values()
                    if "run_id" in table.c
                ]
                connection.execute(runs.delete().where(runs.c.id == run_id, ~sa.or_(*used)))
            connection.execute(
                runs.update()
                .where(runs.c.id == run_id)
                .values(finished=time.time() if now is None else now)
            )

    def unfinished_runs(self, command: str) -> dict[int, float]:
        """Return the runs of a command that did not end, each with its start (Unix time)."""
        query = sa.select(runs.c.id, runs.c.started).where(
            runs.c.command == command, runs.c.finished.is_(None)
        )
        with self.transaction(write=False) as connection:
            return {int(row.id): float(row.started) for row in connection.execute(query)}

    def dead_tokens(self) -> set[str]:
        """Return the tokens of the other processes that ever changed files with this store.

        For the one that holds `writing_files`: all of them have ended.
        """
        with self.transaction(write=False) as connection:
            tokens = connection.execute(sa.select(runs.c.token)).scalars().all()
        return {one for held in tokens for one in held.split()} - {process_token()}

    def runs_of(self, command: str) -> set[int]:
        """Return the runs of a command."""
        with self.transaction(write=False) as connection:
            found = connection.execute(sa.select(runs.c.id).where(runs.c.command == command))
            return set(found.scalars())

    def newest_run(self) -> int | None:
        """Return the newest run that changed or placed a file, which stands; None if none does."""
        with self.transaction(write=False) as connection:
            found = [
                connection.execute(
                    sa.select(sa.func.max(table.c.run_id)).where(table.c.state == "done")
                ).scalar()
                for table in (journal, placements)
            ]
        return max((int(run) for run in found if run is not None), default=None)

    def begin_change(
        self,
        run_id: int,
        track_id: int,
        *,
        path: Path,
        temp_path: Path,
        digest: str,
        before: tuple[str, ...],
        after: tuple[str, ...],
        before_hash: str,
        after_hash: str,
        before_mtime_ns: int,
        delta: bytes,
        moods: tuple[str, ...] | None = None,
        now: float | None = None,
    ) -> int:
        """Journal a change *before* the file is replaced; durable when this returns.

        Raises StoreDamaged if any process found the store so: then no file is to be written.
        """
        refuse_damaged(self.path)
        with self.transaction() as connection:
            result = connection.execute(
                journal.insert().values(
                    run_id=run_id,
                    track_id=track_id,
                    path=path,
                    temp_path=temp_path,
                    digest=digest,
                    state="pending",
                    before=before,
                    after=after,
                    before_hash=before_hash,
                    after_hash=after_hash,
                    before_mtime_ns=before_mtime_ns,
                    delta=delta,
                    moods=moods,
                    created=time.time() if now is None else now,
                )
            )
            assert result.inserted_primary_key is not None  # noqa: S101 - SQLite always gives one
            return int(result.inserted_primary_key[0])

    def finish_change(self, entry_id: int, size: int, mtime_ns: int) -> None:
        """The file is the new one, with this size and mtime."""
        with self.transaction() as connection:
            entry = connection.execute(
                sa.select(
                    *(journal.c.track_id, journal.c.before, journal.c.after, journal.c.moods),
                    *(tracks.c.written, tracks.c.added, tracks.c.undone),
                )
                .join(tracks)
                .where(journal.c.id == entry_id)
            ).one()
            untouched = entry.before == entry.written and not entry.undone
            ours = entry.added or () if untouched else ()
            theirs = set(entry.before) - set(ours)
            values: dict[str, Any] = {"size": size, "mtime_ns": mtime_ns, "genres": entry.after}
            if entry.after != entry.before:  # a genre that stayed is not ours for that
                added = tuple(name for name in entry.after if name not in theirs)
                values |= {"written": entry.after, "added": added, "undone": False}
            if entry.moods is not None:
                values |= {"moods": entry.moods, "moods_written": entry.moods}
            _set_state(connection, entry_id, "done")
            connection.execute(
                tracks.update().where(tracks.c.id == entry.track_id).values(**values)
            )

    def assume_change(self, entry_id: int) -> None:
        """Whether the file is the new one cannot be seen now; undo will see, so keep the row."""
        with self.transaction() as connection:
            _set_state(connection, entry_id, "done")

    def abandon_change(self, entry_id: int) -> None:
        """The file stayed the old one."""
        with self.transaction() as connection:
            _set_state(connection, entry_id, "abandoned")

    def finish_undo(
        self,
        entry_id: int,
        path: Path,
        size: int,
        mtime_ns: int,
        *,
        genres: tuple[str, ...] | None = None,
        moods: tuple[str, ...] | None = None,
    ) -> None:
        """The change was taken back; the file, now at `path`, has this size and mtime.

        `genres` and `moods` are what it says now: for None the genres of before the change, and
        the moods that were known.
        """
        values: dict[str, Any] = {"size": size, "mtime_ns": mtime_ns}
        if moods is not None:
            values["moods"] = moods
        with self.transaction() as connection:
            entry = connection.execute(
                sa.select(journal.c.track_id, journal.c.before).where(journal.c.id == entry_id)
            ).one()
            values["genres"] = entry.before if genres is None else genres
            _set_state(connection, entry_id, "undone")
            _withdraw_with(connection, entry_id)
            connection.execute(
                tracks.update()
                .where(sa.or_(tracks.c.id == entry.track_id, tracks.c.path == path))
                .values(undone=True, **values)
            )

    def pending_changes(self) -> list[JournalEntry]:
        """Return the changes of which it is not known whether they took place."""
        return self._entries(journal.c.state == "pending")

    def changes(
        self,
        *,
        run_id: int | None = None,
        since: float | None = None,
        track_ids: Collection[int] | None = None,
    ) -> list[JournalEntry]:
        """Return the changes that stand, newest first; narrowed by run, time and tracks.

        To tracks belongs what was changed in the same recording, wherever it was then.
        """
        conditions: list[sa.ColumnElement[bool]] = [journal.c.state == "done"]
        if run_id is not None:
            conditions.append(journal.c.run_id == run_id)
        if since is not None:
            conditions.append(journal.c.created >= since)
        if track_ids is not None:
            asked, other = tracks.alias(), tracks.alias()
            same = sa.select(other.c.id).where(
                sa.or_(other.c.id == asked.c.id, other.c.digest == asked.c.digest),
                asked.c.id.in_(track_ids),
            )
            conditions.append(journal.c.track_id.in_(same))
        return self._entries(*conditions)

    def standing_writes(self) -> set[tuple[str, tuple[str, ...]]]:
        """Return of all changes that stand: the digest of the audio, and the genres written."""
        query = sa.select(journal.c.digest, journal.c.after).distinct()
        query = query.where(journal.c.state.in_(("done", "pending")))
        with self.transaction(write=False) as connection:
            return {(row.digest, row.after) for row in connection.execute(query)}

    def paths_of(self, digest: str) -> list[Path]:
        """Return where this audio was last seen, existing or not."""
        with self.transaction(write=False) as connection:
            query = sa.select(tracks.c.path).where(tracks.c.digest == digest)
            return list(connection.execute(query).scalars())

    def places_of(self, entry: JournalEntry) -> list[Path]:
        """Return where the file of a change may have moved, existing or not.

        That is no place of a file that was changed in the same way itself: a copy of this one.
        """
        own = tracks.c.id == entry.track_id
        copies = sa.exists().where(
            journal.c.track_id == tracks.c.id,
            journal.c.state == "done",
            journal.c.after_hash == entry.after_hash,
        )
        query = sa.select(tracks.c.path).where(tracks.c.digest == entry.digest, own | ~copies)
        with self.transaction(write=False) as connection:
            return list(connection.execute(query.order_by(~own, tracks.c.id)).scalars())

    def _entries(self, *conditions: sa.ColumnElement[bool]) -> list[JournalEntry]:
        query = (
            sa.select(
                *(column for column in journal.c if column.name != "delta"),
                tracks.c.path.label("named"),
            )
            .join(tracks)
            .where(*conditions)
            .order_by(journal.c.id.desc())
        )
        with self.transaction(write=False) as connection:
            return [JournalEntry(**row._mapping) for row in connection.execute(query)]

    def read_delta(self, entry_id: int) -> bytes:
        """Return what restores the former bytes of one change."""
        with self.transaction(write=False) as connection:
            blob = connection.execute(
                sa.select(journal.c.delta).where(journal.c.id == entry_id)
            ).scalar_one()
        return bytes(blob)


def at_or_below(column: sa.Column[Any], path: Path) -> sa.ColumnElement[bool]:
    """Return the condition that a path is `path`, or lies below it. The column's index is used."""
    below = os.fsencode(path).rstrip(b"/") + b"/"
    end = below[:-1] + b"0"  # "0" follows "/": the first name that is not below the folder
    return sa.or_(
        column == path,
        sa.and_(
            column >= sa.literal(below, sa.LargeBinary), column < sa.literal(end, sa.LargeBinary)
        ),
    )


def _refusal(path: Path, error: Exception) -> StoreError:
    """Say why the database cannot be used, and what to do about it."""
    cause = getattr(error, "orig", None) or error
    text = str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
    name = printable(path)
    if "full" in text or "No space" in text:
        return StoreError(f"{name}: {text}: free some space on its disk; nothing is lost")
    if is_damage(cause):
        return damage(path, text)
    if isinstance(error, json.JSONDecodeError) or "utf-8" in text:
        return StoreDamaged.of(path, text)
    return StoreError(f"{name}: cannot be used as the store: {text}: check path and permissions")


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread: SQLAlchemy's pool hands a connection to one thread at a time.
    # cached_statements: each takes 30 kB, and lists of every length make statements of their own;
    # with the usual 128 a connection the daemon would grow for hours.
    connection = sqlite3.connect(
        os.fspath(path),
        timeout=BUSY_SECONDS,
        check_same_thread=False,
        isolation_level=None,
        cached_statements=16,
    )
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: a journal row must be on disk before the file it speaks of is replaced.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.create_function("has_text", 3, _has_text, deterministic=True)
    connection.execute("PRAGMA cache_size = -512")  # KiB of pages; the system caches the file, too
    return connection


def _has_text(path: bytes, album: str | None, words: str) -> bool:
    """Tell whether all words (folded, a line each) occur in path or album: `browse` asks in SQL."""
    text = fold(f"{path.decode('utf-8', 'replace')}\n{album or ''}")
    return all(word in text for word in words.split("\n"))


def fold(text: str) -> str:
    """Return what equals for texts that differ in case, or in how an accent is encoded."""
    return unicodedata.normalize("NFC", text.casefold())


def _begin_transaction(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock at once and waits for it; a transaction that begins as a
    # reader and then writes fails without waiting when another process wrote in between.
    write = connection.get_execution_options().get("reclass_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


# A path that the caller has at hand is not made again: that is dear, 10,000 times.
_raw_path = sa.type_coerce(tracks.c.path, sa.LargeBinary)


def _track_query(models: str) -> sa.Select[Any]:
    """Select tracks with the verdict of these models. Votes stay behind: they are long."""
    return sa.select(
        _raw_path.label("raw_path"),
        *(column for column in tracks.c if column is not tracks.c.path),
        verdicts.c.taxonomy,
        verdicts.c.genres.label("verdict_genres"),
        verdicts.c.unsure,
        verdicts.c.decided_by,
        verdicts.c.seconds,
        verdicts.c.moods.label("verdict_moods"),
        verdicts.c.styles,
    ).select_from(
        tracks.outerjoin(
            verdicts,
            sa.and_(verdicts.c.digest == tracks.c.digest, verdicts.c.models == models),
        )
    )


def _known_track(row: sa.Row[Any], path: Path) -> KnownTrack:
    verdict = None
    if row.verdict_genres is not None:
        verdict = Verdict(
            taxonomy=row.taxonomy,
            genres=_scores_in(json.loads(row.verdict_genres)),
            decided_by=row.decided_by,
            votes=(),
            seconds=row.seconds,
            unsure=row.unsure,
            moods=row.verdict_moods or (),
            styles=row.styles or (),
        )
    return KnownTrack(
        id=row.id,
        path=path,
        size=row.size,
        mtime_ns=row.mtime_ns,
        digest=row.digest,
        genres=row.genres,
        album=row.album,
        written=row.written,
        added=row.added or (),
        undone=row.undone,
        error=(row.error_kind, row.error_message) if row.error_kind else None,
        verdict=verdict,
        moods=row.moods or (),
        moods_written=row.moods_written,
    )


def _listed_track(row: sa.Row[Any]) -> ListedTrack:
    scores = _scores_in(json.loads(row.heard)[:1]) if row.heard is not None else ()
    return ListedTrack(
        path=row.path,
        digest=row.digest,
        genres=row.genres,
        album=row.album,
        written=row.written,
        models=row.models,
        top=scores[0] if scores else None,
        unsure=row.unsure,
    )


def _verdict(row: sa.Row[Any]) -> Verdict:
    return Verdict(
        taxonomy=row.taxonomy,
        genres=_scores_in(json.loads(row.genres)),
        decided_by=row.decided_by,
        votes=tuple(
            Vote(stage, _scores_in(scores), seconds)
            for stage, seconds, scores in json.loads(row.votes)
        ),
        seconds=row.seconds,
        unsure=row.unsure,
        moods=row.moods or (),
        styles=row.styles or (),
    )


def _moved_from(
    connection: sa.Connection, digest: str | None, size: int, mtime_ns: int
) -> dict[str, Any]:
    """Return what was written and undone to the file that is no longer where it was."""
    if digest is not None:
        kept = (tracks.c.written, tracks.c.added, tracks.c.undone, tracks.c.moods_written)
        query = sa.select(tracks.c.path, *kept).where(
            tracks.c.digest == digest, tracks.c.size == size, tracks.c.mtime_ns == mtime_ns
        )
        for row in connection.execute(query):
            if not os.path.lexists(row.path):
                return {column.name: row._mapping[column] for column in kept}
    return {}


def _set_state(connection: sa.Connection, entry_id: int, state: str) -> None:
    connection.execute(journal.update().where(journal.c.id == entry_id).values(state=state))


def withdraw_decisions(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
    """Withdraw the decisions that meet a condition; what they had replaced stands again."""
    rows = connection.execute(
        sa.select(decisions.c.id, decisions.c.digest, decisions.c.state).where(
            condition, decisions.c.state != "withdrawn"
        )
    ).all()
    for row in rows:
        this = decisions.update().where(decisions.c.id == row.id)
        connection.execute(this.values(state="withdrawn", open=()))
    for digest in {row.digest for row in rows if row.state == "stands"}:
        former = (
            sa.select(sa.func.max(decisions.c.id))
            .where(decisions.c.digest == digest, decisions.c.state == "replaced")
            .scalar_subquery()
        )
        again = decisions.update().where(decisions.c.id == former)
        connection.execute(again.values(state="stands"))
    return len(rows)


def _withdraw_with(connection: sa.Connection, entry_id: int) -> None:
    """Withdraw what a person said, once nothing of what it changed stands any more."""
    entry = connection.execute(
        sa.select(journal.c.run_id, journal.c.digest).where(journal.c.id == entry_id)
    ).one()
    standing = sa.exists().where(
        journal.c.run_id == entry.run_id,
        journal.c.digest == entry.digest,
        journal.c.state.in_(("done", "pending")),
    )
    withdraw_decisions(
        connection,
        sa.and_(decisions.c.run_id == entry.run_id, decisions.c.digest == entry.digest, ~standing),
    )


def _scores_out(genres: Iterable[GenreScore]) -> list[tuple[str, float]]:
    return [(genre.name, round(genre.confidence, 6)) for genre in genres]


def _scores_in(pairs: Iterable[tuple[str, float]]) -> tuple[GenreScore, ...]:
    return tuple(map(GenreScore._make, pairs))
