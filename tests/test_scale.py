"""How the work on a store grows with the library, counted in SQLite's steps: the same every time.

`benchmarks/scale.py` measures time and memory up to a million tracks; the nightly form of this
counts there, too. What concerns one track may not take more in a larger library (but for the depth
of the indexes), and what concerns all no more than n log n.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from large_library import Library
from many_tracks import digest_of, path_of

from reclass_plex.browse import TrackFilter, find_track, list_albums, list_tracks
from reclass_plex.browse_history import list_journal, list_runs
from reclass_plex.browse_jobs import list_jobs
from reclass_plex.browse_statistics import facets, recent_seconds, statistics
from reclass_plex.decided import Decisions
from reclass_plex.jobs import Jobs, State
from reclass_plex.reconcile import reconcile
from reclass_plex.records import Embedding, GenreScore, Verdict
from reclass_plex.similarity import SimilarMusic
from reclass_plex.store import Store

GRAIN = 100  # steps between two counts
DEEPER = 1.6  # times as many steps, where the indexes are deeper and their rows lie otherwise
NOW = 2e9
_WALKS = {
    f"SCAN {table}"
    for table in ("tracks", "verdicts", "embeddings", "listing", "jobs", "journal", "decisions")
}


class Steps:
    """What a store is asked, and how many steps of its virtual machine SQLite takes for that."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs = Jobs(store)
        self.decisions = Decisions(store)
        self._grains = 0
        self._asked: dict[str, object] = {}
        sa.event.listen(store._engine, "checkout", self._watch)
        sa.event.listen(store._engine, "before_cursor_execute", self._note)

    def _watch(self, connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(self._count, GRAIN)

    def _count(self) -> int:
        self._grains += 1
        return 0  # go on

    def _note(self, *given: object) -> None:
        _, _, statement, parameters, _, several = given
        self._asked[str(statement)] = parameters[0] if several else parameters  # type: ignore[index]

    def of(self, work: Callable[[], object]) -> int:
        """Return how many steps a piece of work takes, at least one grain."""
        self._asked.clear()
        self._grains = 0
        work()
        return GRAIN * max(1, self._grains)

    def whole_tables(self) -> list[str]:
        """Return which of the last work's statements walk through a whole large table.

        A page in the order of the rows ends with the page, and is none of them.
        """
        found = []
        with self.store.transaction(write=False) as connection:
            for statement, parameters in list(self._asked.items()):
                if not statement.startswith(("SELECT", "UPDATE", "DELETE")):
                    continue
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
                details = [str(row.detail) for row in plan]
                if "LIMIT" in statement and not any("TEMP B-TREE" in one for one in details):
                    continue
                found += [f"{one}: {statement}" for one in details if one in _WALKS]
        return found


@contextmanager
def opened(library: Library) -> Iterator[Steps]:
    library.make()
    with Store.open(library.store) as store:
        yield Steps(store)


def one_track(library: Library, steps: Steps) -> dict[str, Callable[[], object]]:
    """Return what is done for one track, one page, or one batch of the worker's."""
    store, jobs, decisions = steps.store, steps.jobs, steps.decisions
    where = str(library.music)
    middle = library.tracks // 2
    path, digest = path_of(middle, where), digest_of(middle)
    several = [path_of(middle + n, where) for n in range(50)]
    scores = (GenreScore("Jazz", 0.9), GenreScore("Rock", 0.1))
    import numpy as np

    heard = Embedding("musicnn-msd", np.ones(200, np.float32))
    album = store.find_track(path, "")
    assert album is not None
    assert album.album is not None
    names = {album.album}
    failed: tuple[State, ...] = ("failed",)
    ticks = count(1)

    def record() -> None:
        verdict = Verdict("default", scores, "fma518", (), 0.1, None)
        store.save_verdict(digest, "new models", verdict, (heard,), now=NOW)
        store.save_track(path, 64, 1, digest=digest, genres=("Jazz",), album=album.album)

    def work_through() -> None:
        now = NOW + next(ticks)
        ids = [job.id for job in jobs.claim(32, now, owner="me", lease=600)]
        assert len(ids) == 32
        jobs.extend("me", now, lease=600)
        jobs.start_writing(ids, "me", now)
        jobs.finish(ids, "me", "done", now)

    return {
        "a file is looked up": lambda: store.find_track(path, "m"),
        "50 files are looked up": lambda: store.known_files(several, "m"),
        "a verdict is looked up": lambda: store.find_verdict(digest, "m"),
        "a track is recorded": record,
        "the tracks of an album": lambda: store.album_mates(names, [path], "m"),
        "what people decided": lambda: decisions.standing([digest]),
        "whether something is open": decisions.any_open,
        "a file comes": lambda: jobs.enqueue([path], "watch", NOW),
        "32 tracks are worked through": work_through,
        "when to go on": lambda: jobs.next_due(NOW + 1e6),
        "who holds tracks": jobs.owners,
        "a page of tracks": lambda: list_tracks(store),
        "the least sure": lambda: list_tracks(store, sort="confidence"),
        "the last heard": lambda: list_tracks(store, sort="-heard"),
        "of a genre": lambda: list_tracks(store, TrackFilter(genre="Jazz"), sort="confidence"),
        "of a folder": lambda: list_tracks(store, TrackFilter(folder=path.parent)),
        "that failed": lambda: list_tracks(store, TrackFilter(state="failed")),
        "a page of albums": lambda: list_albums(store),
        "a track": lambda: find_track(store, middle),
        "a page of jobs": lambda: list_jobs(store, failed),
        "the journal": lambda: list_journal(store),
        "runs": lambda: list_runs(store),
        "seconds of the last": lambda: recent_seconds(store),
    }


def all_tracks(library: Library, steps: Steps) -> dict[str, Callable[[], object]]:
    """Return what is done for all tracks at once."""
    store, jobs = steps.store, steps.jobs

    def compare() -> None:
        done = reconcile([library.music], store, jobs, is_healthy=lambda folder: True)
        assert (done.found, done.queued) == (library.tracks, 0)

    return {
        "jobs are counted": jobs.counts,
        "statistics": lambda: statistics(store),
        "facets": lambda: facets(store),
        "a word is searched": lambda: list_tracks(store, TrackFilter(text="nothing")),
        "folders are compared": compare,
        "whether much is new": SimilarMusic.open(store).needs_update,
    }


@pytest.mark.parametrize(
    ("small", "large"),
    [
        pytest.param(1_000, 10_000, id="10000"),
        pytest.param(100_000, 1_000_000, id="1000000", marks=pytest.mark.nightly),
    ],
)
def test_work_grows_no_faster_than_it_must(tmp_path: Path, small: int, large: int) -> None:
    taken: list[dict[str, int]] = []
    for size in (small, large):
        library = Library(tmp_path / str(size), size)
        with opened(library) as steps:
            figures = {name: steps.of(work) for name, work in all_tracks(library, steps).items()}
            enqueue_all(library, steps.jobs)  # the line is as full as it can be
            steps.jobs.next_due(NOW)  # the first look of a process minds all times in the line
            for name, work in one_track(library, steps).items():
                figures[name] = steps.of(work)
                assert not steps.whole_tables(), name
            every = set(all_tracks(library, steps))
            taken.append(figures)
    faults = []
    for name, few in taken[0].items():
        many = taken[1][name]
        most = DEEPER
        if name in every:
            most *= large * math.log(large) / (small * math.log(small))
        if many > few * most + 2 * GRAIN:
            faults.append(f"{name}: {few} steps, and of {large // small} times as many {many}")
    assert not faults, "\n".join(faults)


def enqueue_all(library: Library, jobs: Jobs) -> None:
    where = str(library.music)
    for first in range(0, library.tracks, 10_000):
        numbers = range(first, min(first + 10_000, library.tracks))
        jobs.enqueue((path_of(n, where) for n in numbers), "by hand", NOW, bulk=True)
