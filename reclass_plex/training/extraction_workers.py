"""Recordings are heard in processes of their own, one thread each.

A damaged file that brings FFmpeg down, sends it in circles, or makes it ask for all memory, takes
at most its process along, and is named. An encoder on a GPU stays in the caller's process: then the
others only decode for it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from reclass_plex.decoding import forgo_core, limit_memory
from reclass_plex.errors import FileError, Harmful, ModelError, RetryLater
from reclass_plex.records import Excerpt, FloatArray, Waveform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reclass_plex.training.extraction_sets import Extract, FeatureSet

AHEAD = 4  # tasks a process that are handed out before their results are wanted

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Failure:
    """Why a recording has no rows. `later`: nothing is wrong with it, only with the moment."""

    kind: str
    reason: str
    later: bool = False


@dataclass(frozen=True)
class Heard:
    """A recording's audio at a set's rate, and the digest of what is in its file."""

    waveform: Waveform
    digest: str


@dataclass(frozen=True)
class Features:
    """A recording's rows, as they go to disk, and the digest of its audio."""

    rows: npt.NDArray[np.float16] | FloatArray
    digest: str


@dataclass(frozen=True)
class Crashed(Generic[T]):
    """A task that ended its process."""

    task: T


class Workers(AbstractContextManager["Workers"]):
    """A pool of `count` processes, started with the first task, while it is entered."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, *raised: object) -> None:
        """End the processes; what they work on is dropped."""
        self._drop()

    def map(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[R | Crashed[T]]:
        """Yield function(task) of every task in order, or Crashed.

        When a process dies, every task that was in the pool is a suspect: each is tried again by
        itself. After `should_stop` no task is begun; those in hand are finished.
        """
        todo = iter(tasks)
        waiting: deque[tuple[T, Future[R]]] = deque()
        while True:
            while len(waiting) < AHEAD * self.count and not should_stop():
                try:
                    task = next(todo)
                except StopIteration:
                    break
                waiting.append((task, self._submit(function, task)))
            if should_stop():
                while waiting and waiting[-1][1].cancel():
                    waiting.pop()
            if not waiting:
                return
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool:
                self._drop()
                yield from self._try_alone(function, waiting, should_stop)
                waiting.clear()
            else:
                waiting.popleft()
                yield result

    def _submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        if self._pool is None:
            self._pool = _new_pool(self.count)
        try:
            return self._pool.submit(function, task)
        except BrokenProcessPool as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed

    def _try_alone(
        self,
        function: Callable[[T], R],
        suspects: Iterable[tuple[T, Future[R]]],
        should_stop: Callable[[], bool],
    ) -> Iterator[R | Crashed[T]]:
        cell: ProcessPoolExecutor | None = None
        try:
            for task, former in suspects:
                with suppress(BrokenProcessPool):
                    yield former.result()
                    continue
                if should_stop():
                    return
                cell = cell or _new_pool(1)
                try:
                    result = cell.submit(function, task).result()
                except BrokenProcessPool:
                    cell.shutdown()
                    cell = None
                    yield Crashed(task)
                else:
                    yield result
        finally:
            if cell is not None:
                cell.shutdown()

    def _drop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _new_pool(count: int) -> ProcessPoolExecutor:
    # Not forked: the parent has threads, and a GPU's context that no child may inherit.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _prepare)


def _prepare() -> None:
    """Leave Ctrl-C to the parent, and die with it: kill -9 gives it no time to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    forgo_core()
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, name="parent", daemon=True).start()


@dataclass(frozen=True)
class Task:
    """One recording to hear, and what for.

    `seconds` of the processor to decode it, and one more for each MiB of its file: beyond, its
    process is ended. Waiting for a disk does not count, which is no fault of the file. `memory`:
    bytes that this may take beyond what there is.
    """

    path: Path
    excerpt: Excerpt
    features: FeatureSet
    seconds: float = 120.0
    memory: int = 1 << 30


def hear(task: Task) -> Heard | Failure:
    """Decode and resample. Silence, and less than a second, are refused as the ensemble does."""
    from reclass_plex.audio import audio_digest, decode_excerpt, resample
    from reclass_plex.ensemble import SHORTEST
    from reclass_plex.evidence import is_silent

    try:
        with _within(task):
            waveform = decode_excerpt(task.path, task.excerpt)
            digest = audio_digest(task.path)
    except FileError as error:
        return Failure(error.kind, error.reason, isinstance(error, RetryLater))
    except MemoryError:
        return Failure(Harmful.kind, f"needs over {task.memory / (1 << 30):g} GiB of memory")
    if waveform.seconds < SHORTEST:
        return Failure("too-short", f"lasts {waveform.seconds:.2f} s, less than {SHORTEST:g} s")
    if is_silent(waveform.samples, waveform.rate):
        return Failure("silence", "is silent")
    if task.features.rate != "native":
        waveform = resample(waveform, task.features.rate)
    return Heard(_aligned(waveform), digest)


@contextmanager
def _within(task: Task) -> Iterator[None]:
    """End this process (SIGPROF does) where what is inside computes for too long; bound memory."""
    with suppress(OSError):  # who opens it will name it
        size = task.path.stat().st_size
        signal.setitimer(signal.ITIMER_PROF, task.seconds + size / (1 << 20))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(task.memory)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)  # an encoder may take what it needs
        signal.setitimer(signal.ITIMER_PROF, 0)


def compute(heard: Heard, features: FeatureSet, extract: Extract) -> Features | Failure:
    """Return the rows of a set in its dtype; never one that is not finite."""
    import numpy as np

    try:
        rows = extract(heard.waveform)
    except (ValueError, ModelError) as error:  # what an encoder says of odd audio
        return Failure("features", str(error))
    if not np.isfinite(rows).all():
        return Failure("features", f"gives values of {features.name} that are not finite")
    with np.errstate(over="ignore"):  # found and told below
        stored = rows.astype(f"<f{2 if features.dtype == 'float16' else 4}")
    if not np.isfinite(stored).all():
        largest = float(np.abs(rows).max())
        reason = f"has a value of {largest:.3g}, which {features.dtype} cannot hold: use float32"
        return Failure("features", reason)
    return Features(stored, heard.digest)


def hear_and_compute(task: Task) -> Features | Failure:
    """Do all of it, in a worker process. Raises ModelError if the weights cannot be loaded."""
    import torch

    torch.set_num_threads(1)  # more processes instead: sums do not depend on how they are split
    extract = _loaded(task.features)
    heard = hear(task)
    return heard if isinstance(heard, Failure) else compute(heard, task.features, extract)


@functools.lru_cache(maxsize=1)
def _loaded(features: FeatureSet) -> Extract:
    from reclass_plex.training.extraction_sets import load_extractor

    return load_extractor(features)


def _aligned(waveform: Waveform) -> Waveform:
    """Return a copy where torch would put it: sums over other addresses may end in other bits."""
    import torch

    samples = torch.from_numpy(waveform.samples).clone().numpy()
    return Waveform(samples, waveform.rate, waveform.start, waveform.track_seconds)
