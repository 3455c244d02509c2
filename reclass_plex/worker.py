"""The worker: claim -> listen -> album by album: policy, files, what Plex shall show -> finish.

It is the one writer: the daemon's (`service.work`), or that of `reclassify --cluster`, whose
machines only hear. Who hears makes no difference to what is decided, written and recorded.
"""

from __future__ import annotations

import logging
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from reclass_plex import pipeline
from reclass_plex.changes import remove_leftovers, repair
from reclass_plex.comparing import compare_if_due
from reclass_plex.config import Config
from reclass_plex.decoding import examine_file
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import FileError, Hardlinked, RetryLater, StoreBusy, StoreError, printable
from reclass_plex.files import FoundFile, find_leftovers, process_token
from reclass_plex.jobs import Job, Jobs
from reclass_plex.pipeline import Analysed, Examine, Hear, TrackResult
from reclass_plex.store import KnownTrack, Store
from reclass_plex.sync import Wanted, WantedGenres

log = logging.getLogger(__name__)

BATCH = 96  # tracks claimed at once: a few albums
LEASE = 120.0  # seconds that a claim holds without a sign of life
KEEP_SECONDS = LEASE / 4  # between signs of life
HANG_SECONDS = 900.0  # without any progress: then the leases are left to end
LOCK_SECONDS = 60.0  # to wait for a command that changes files
BUSY_SECONDS = 30.0  # until tracks are tried again that had to wait for it longer


class Worker:
    """One process's share of the work. `step` does one batch; `close` when done."""

    def __init__(
        self,
        store: Store,
        config: Config,
        ensemble: Ensemble,
        *,
        threads: int,
        hear: Hear,
        examine: Examine = examine_file,
        batch: int = BATCH,
        command: str = "daemon",
        wanted: Wanted | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], object] = time.sleep,
        settled: Callable[[int], object] = lambda count: None,
    ) -> None:
        """`threads` call `examine` and `hear`; `settled` is told how many tracks were, each time.

        `command` names its runs in the history.
        """
        self._store = store
        self._jobs = Jobs(store)
        self._config = config
        self._ensemble = ensemble
        self._threads = threads
        self._hear = hear
        self._batch = batch
        self._command = command
        self._settled = settled
        self._examine = examine
        self._wanted = wanted
        self._should_stop = should_stop
        self._sleep = sleep
        self._owner = process_token()
        self._run: int | None = None
        self._progress = time.monotonic()
        self._sound = False  # nothing is left open: by a killed process, or by a step that failed
        self._unclean: set[Path] = set()  # folders of the batch that may have leftovers of the dead

    def step(self, now: float) -> bool:
        """Work on what is in line, at most one batch; return False if there was nothing.

        Raises DeviceError when the GPU fails, with all tracks given back.
        """
        if not self._sound:
            self._repair()
        try:
            return self._work(now)
        except BaseException:
            self._sound = False
            raise

    def _work(self, now: float) -> bool:
        batch = self._jobs.claim(self._batch, now, owner=self._owner, lease=LEASE)
        if not batch:
            self._end_run()
            return False
        self._progress = time.monotonic()
        waiting = {job.path: job for job in batch}
        self._unclean = {job.path.parent for job in batch}
        try:
            with self._keeping_leases():
                began = time.monotonic()
                albums = pipeline.analyse_albums(
                    self._look(batch, waiting),
                    store=self._store,
                    ensemble=self._ensemble,
                    config=self._config,
                    workers=self._threads,
                    should_stop=self._should_stop,
                    examine=self._examine,
                    hear=self._hear,
                )
                for album in albums:
                    self._progress = time.monotonic()
                    jobs = [waiting.pop(item.path) for item in album]
                    self._write(album, jobs)
                    self._settled(len(jobs))
                    began = self._throttle(began)
        finally:
            # Stopped, or the GPU failed: nothing is held against them.
            self._give_back(waiting.values())
        return True

    def resize(self, threads: int, batch: int) -> None:
        """Let the next batches have other sizes: those who hear came or went."""
        self._threads = max(1, threads)
        self._batch = batch

    def close(self) -> None:
        """Close the run."""
        self._end_run()

    def _look(self, batch: Sequence[Job], waiting: dict[Path, Job]) -> Iterator[FoundFile]:
        """Yield the files of the batch that are there, albums together; settle the others."""
        for job in sorted(batch, key=lambda job: job.path):
            try:
                status = job.path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise FileNotFoundError
            except OSError as error:
                del waiting[job.path]
                if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                    self._finish(job, "skipped", "the file is gone")
                else:
                    why = (error.strerror or str(error)).lower()
                    self._jobs.retry([job.id], self._owner, time.time(), message=why)
                continue
            if 0 <= time.time() - status.st_ctime < self._config.watch.settle_seconds:
                # Asked for before it rested: it may still be growing.
                self._give_back([waiting.pop(job.path)], self._config.watch.settle_seconds)
                continue
            yield FoundFile(job.path, status.st_size, status.st_mtime_ns)

    def _write(self, album: Sequence[Analysed], jobs: Sequence[Job]) -> None:
        """Write one album's tracks, ask for the same in Plex, and settle the jobs."""
        by_path = {job.path: job for job in jobs}
        try:
            ids = [job.id for job in jobs]
            held = set(self._jobs.start_writing(ids, self._owner, time.time()))
            by_path = {path: job for path, job in by_path.items() if job.id in held}
            items = [item for item in album if item.path in by_path]
            with self._store.writing_files(LOCK_SECONDS, self._should_stop):
                self._clean_up()
                for result in pipeline.write_album(
                    items,
                    store=self._store,
                    config=self._config,
                    ensemble=self._ensemble,
                    run_id=self._start_run(),
                    should_stop=self._should_stop,
                    mates=self._mates(items),
                ):
                    self._progress = time.monotonic()
                    self._want(result)
                    self._settle(by_path.pop(result.path), result)
        except StoreBusy as error:
            log.info("%s; going on in %.0f s", error, BUSY_SECONDS)
            self._give_back(by_path.values(), BUSY_SECONDS)
            return
        except StoreError:  # its disk is full, say: no fault of theirs
            with suppress(StoreError):
                self._give_back(by_path.values(), BUSY_SECONDS)
            raise
        self._give_back(by_path.values())  # stopped

    def _clean_up(self) -> None:
        """Remove the copies of killed processes: what they worked on comes again, to its folder."""
        for folder in self._unclean:
            remove_leftovers(self._store, find_leftovers(folder))
        self._unclean.clear()

    def _mates(self, items: Sequence[Analysed]) -> Sequence[KnownTrack]:
        albums = {item.known.album for item in items if item.known and item.known.album}
        if not albums or not self._config.policy.album_consensus:
            return ()
        paths = [item.path for item in items]
        return self._store.album_mates(albums, paths, self._ensemble.fingerprint)

    def _want(self, result: TrackResult) -> None:
        genres, labels = pipeline.genres_for_plex(result), pipeline.labels_for_plex(result)
        if self._wanted is not None and (genres or any(labels)):
            wish = WantedGenres(result.path, genres, self._start_run(), *labels)
            self._wanted.want([wish], time.time())

    def _settle(self, job: Job, result: TrackResult) -> None:
        plan, error = result.plan, result.error
        if error is None and plan is not None:
            if result.written:
                before, after = ", ".join(plan.before) or "none", ", ".join(plan.after or ())
                log.info("%s: %s -> %s (%s)", printable(job.path), before, after, plan.reason)
                self._finish(job, "done", plan.reason)
            else:
                self._finish(job, "review" if plan.undecided else "skipped", plan.reason)
        elif isinstance(error, Hardlinked):
            self._finish(job, "skipped", error.reason)
        elif isinstance(error, RetryLater):
            log.warning("%s; tried again later", error)
            self._jobs.retry([job.id], self._owner, time.time(), message=error.reason)
        elif isinstance(error, FileError):
            log.warning("%s", error)
            self._jobs.park([job.id], self._owner, time.time(), message=error.reason)

    def _finish(self, job: Job, state: Literal["done", "skipped", "review"], message: str) -> None:
        self._jobs.finish([job.id], self._owner, state, time.time(), message=message)

    def _give_back(self, jobs: Collection[Job], delay: float = 0.0) -> None:
        if jobs:
            ids = [job.id for job in jobs]
            self._jobs.give_back(ids, self._owner, time.time(), delay=delay)

    def _repair(self) -> None:
        """Settle what a killed process, or a step of ours that failed, left behind.

        Raises StoreBusy while a command runs.
        """
        # Their leases would not end: we live. What makes each step fail is found as the deadly are.
        self._jobs.release([self._owner], time.time())
        with self._store.writing_files(LOCK_SECONDS, self._should_stop):
            for one in compare_if_due(self._store, self._config.tags, self._should_stop):
                log.warning("%s: %s", printable(one.path), one.text)
            for line in repair(self._store, self._config.tags):
                log.warning("%s", line)
        self._sound = True

    def _start_run(self) -> int:
        if self._run is None:
            self._run = self._store.start_run(self._command)
        return self._run

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._store.finish_run(run, keep_empty=False)

    def _throttle(self, began: float) -> float:
        """Rest so long that work takes only its share of the time; return when it goes on."""
        share = self._config.worker.share
        if share < 1:
            self._sleep((time.monotonic() - began) * (1 / share - 1))
        return time.monotonic()

    @contextmanager
    def _keeping_leases(self) -> Iterator[None]:
        """Give signs of life while there is progress: a decoder may take a while for one track."""
        done = threading.Event()

        def keep() -> None:
            while not done.wait(KEEP_SECONDS):
                if time.monotonic() - self._progress > HANG_SECONDS:
                    log.error("no progress for %.0f s", HANG_SECONDS)
                    return
                self._jobs.extend(self._owner, time.time(), lease=LEASE)

        thread = threading.Thread(target=keep, name="leases", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
