"""Decoding ahead of the models, in processes of their own.

A damaged file that brings FFmpeg down then takes only its process along, and is named; and the
models' threads are not held up by decoding, half of which holds Python's lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from reclass_plex.errors import NotAudio
from reclass_plex.records import Excerpt, Waveform

PARENT_SECONDS = 1.0  # between looks whether the parent is alive


class Decoders:
    """A pool of `count` processes, started with the first track; close it after use.

    `decode` may be called from any number of threads.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._alone = threading.Lock()  # held while a suspect is tried by itself

    def decode(self, path: Path, excerpt: Excerpt) -> Waveform:
        """Decode as `audio.decode_excerpt` does, elsewhere. Raises FileError as that does.

        When a process dies, all that were in the pool are suspects: each is tried again by
        itself, and the one that does it again raises NotAudio.
        """
        pool = self._current()
        try:
            return pool.submit(_decode, path, excerpt).result()
        except BrokenProcessPool:
            self._drop(pool)
        with self._alone, ProcessPoolExecutor(1, _context(), _prepare, (os.getpid(),)) as cell:
            try:
                return cell.submit(_decode, path, excerpt).result()
            except BrokenProcessPool:
                raise NotAudio(path, "is so damaged that decoding it crashes FFmpeg") from None

    def close(self) -> None:
        """End the processes; what they work on is dropped."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _current(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(self._count, _context(), _prepare, (os.getpid(),))
            return self._pool

    def _drop(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken:
                self._pool = None
        broken.shutdown(wait=False)


def _context() -> multiprocessing.context.BaseContext:
    # Not forked: the parent has threads, and a GPU's context that no child may inherit.
    return multiprocessing.get_context("spawn")


def _prepare(parent: int) -> None:
    """Leave Ctrl-C to the parent, and die with it: kill -9 gives it no time to tell.

    Not by prctl's PR_SET_PDEATHSIG: that goes by the thread that started this process, which is
    one of the pool's callers and ends before the parent does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def mind_parent() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=mind_parent, name="parent", daemon=True).start()


def _decode(path: Path, excerpt: Excerpt) -> Waveform:
    from reclass_plex.audio import decode_excerpt

    return decode_excerpt(path, excerpt)
