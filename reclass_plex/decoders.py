"""Files are read and decoded in processes of their own, each file within limits.

A damaged or malicious file that brings FFmpeg down, holds it up, or makes it ask for all memory
then costs one process and is named; what is read beside it does not notice. Each process has one
file at a time, so whose fault it was is never a guess. And the models' threads are not held up by
decoding, half of which holds Python's lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import TYPE_CHECKING, Any

from reclass_plex.config import TagOptions, WorkerOptions
from reclass_plex.errors import Harmful, RetryLater, printable
from reclass_plex.records import Excerpt, Waveform

if TYPE_CHECKING:
    from reclass_plex.tags import FileTags

log = logging.getLogger(__name__)

TRIES = 2  # processes that a file may bring down: the first may have died of something else
SECONDS_A_MEBIBYTE = 1.0  # more for large files: so slow a network drive may be
_START_SECONDS = 60.0  # for a process to be there, on a machine that is busy
_END_SECONDS = 2.0  # for a process that was killed to go
_OF_THE_FILE = 0.1  # share of the time that was spent computing: above, no disk is at fault

# sys.path is ours to the letter: a module in the folder where a command is run shall not be loaded
_CODE = "import sys; sys.path[:] = {path!r}; from reclass_plex.decoding import serve; serve({args})"


@dataclass(frozen=True)
class Limits:
    """What reading one file may take: seconds (see `SECONDS_A_MEBIBYTE`), and bytes of memory."""

    seconds: float = 120.0
    memory: int = 1 << 30

    @classmethod
    def of(cls, options: WorkerOptions) -> Limits:
        """Return those that the configuration sets."""
        return cls(options.file_seconds, round(options.file_memory_gib * (1 << 30)))


class _Ended(Exception):
    """The process ended before it had an answer; `status` is how."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Cell:
    """One process, and the line to it."""

    def __init__(self, limits: Limits) -> None:
        ours, theirs = socketpair()
        args = f"{theirs.fileno()}, {os.getpid()}, {limits.memory}"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(path=sys.path, args=args)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._line = Connection(ours.detach())
        self._started = False

    def ask(self, question: tuple[object, ...], seconds: float) -> Any:  # noqa: ANN401 - pickled
        """Return the answer. Raises _Ended, or TimeoutError with the share it spent computing."""
        try:
            if not self._started:
                if not self._line.poll(_START_SECONDS):
                    raise TimeoutError(0.0)  # no file's fault, whatever it computed to be there
                self._started = self._line.recv()
            self._line.send((*question, seconds))
            self._wait(seconds)
            return self._line.recv()
        except (EOFError, ConnectionError):
            raise _Ended(self._end_status()) from None

    def _wait(self, seconds: float) -> None:
        before = self._computed()
        if not self._line.poll(seconds):
            raise TimeoutError((self._computed() - before) / seconds)

    def _end_status(self) -> int:
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # to give much memory back takes a while
            return -signal.SIGKILL  # as `end` does now

    def _computed(self) -> float:
        """Return the seconds that the process computed; 0 where the system does not tell."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._line.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in a disk: it goes with it
            self._process.wait(_END_SECONDS)


class Decoders:
    """At most `count` processes, each started when it is needed. Close it after use.

    Its methods may be called from any number of threads.
    """

    def __init__(self, count: int, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._closed = False
        self._count = count
        self._free: queue.LifoQueue[_Cell | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def examine(self, path: Path, options: TagOptions) -> tuple[FileTags, str]:
        """Return what a file says of itself, and its audio digest.

        Raises FileError as `tags.read_tags` and `audio.audio_digest` do, Harmful if the file was
        too much for the process, RetryLater if its disk was too slow.
        """
        found: tuple[FileTags, str] = self._ask("examine", path, options)
        return found

    def digest(self, path: Path) -> str:
        """Return the audio digest alone. Raises as `examine` does."""
        found: str = self._ask("digest", path, None)
        return found

    def seconds(self, path: Path) -> float:
        """Return how long a track is. Raises as `examine` does."""
        found: float = self._ask("seconds", path, None)
        return found

    def decode(self, path: Path, excerpt: Excerpt) -> Waveform:
        """Decode as `audio.decode_excerpt` does. Raises FileError as that and `examine` do."""
        found: Waveform = self._ask("decode", path, excerpt)
        return found

    def close(self) -> None:
        """End the processes, once those that are asked now have answered."""
        self._closed = True
        cells = [self._free.get() for _ in range(self._count)]
        for cell in cells:
            if cell is not None:
                cell.end()
            self._free.put(None)  # for those who wait, and will be told

    def _ask(self, what: str, path: Path, argument: object) -> Any:  # noqa: ANN401 - pickled
        for attempt in range(TRIES):
            cell = self._free.get()
            kept: _Cell | None = None
            try:
                if self._closed:
                    raise RetryLater(path, "was not read: the program ends")
                cell = cell or _Cell(self._limits)
                error, answer = cell.ask((what, path, argument), self._seconds(path))
                kept = None if isinstance(error, Harmful) else cell  # its memory may be in pieces
            except _Ended as ended:
                log.warning("%s: brought its process down (%s)", printable(path), ended.status)
                if attempt + 1 == TRIES:
                    raise _fault(path, ended.status) from None
                continue
            except TimeoutError as late:
                raise self._too_slow(path, late.args[0]) from None
            finally:
                if cell is not None and kept is None:
                    cell.end()
                self._free.put(kept)
            if error is not None:
                raise error
            return answer
        raise AssertionError("TRIES is at least 1")

    def _seconds(self, path: Path) -> float:
        try:
            size = path.stat().st_size
        except OSError:  # the process will name it
            size = 0
        return self._limits.seconds + size / (1 << 20) * SECONDS_A_MEBIBYTE

    def _too_slow(self, path: Path, computing: float) -> RetryLater | Harmful:
        took = f"was not read within {self._seconds(path):.0f} s (worker.file_seconds)"
        if computing >= _OF_THE_FILE:
            return Harmful(path, f"{took}: damaged, or made to hold us up; its process was ended")
        return RetryLater(path, f"{took}: is its disk slow?")


def _fault(path: Path, status: int) -> RetryLater | Harmful:
    if status == -signal.SIGKILL:
        return RetryLater(path, "was not read: its process was killed; is the memory full?")
    if status == -signal.SIGXCPU:
        return Harmful(path, "takes too long to read: damaged, or made to hold us up")
    how = f"signal {-status}" if status < 0 else f"status {status}"
    with contextlib.suppress(ValueError):
        how = signal.Signals(-status).name
    return Harmful(path, f"brings down what decodes it ({how}): damaged, or made to do that")
