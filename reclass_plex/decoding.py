"""The process that reads files for `reclass_plex.decoders`: one after another, within limits."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclass_plex.errors import FileError, Harmful, Unreadable

if TYPE_CHECKING:
    from reclass_plex.config import TagOptions
    from reclass_plex.records import Excerpt, Waveform
    from reclass_plex.tags import FileTags

PARENT_SECONDS = 1.0  # between looks whether the parent is alive


def serve(descriptor: int, parent: int, memory: int) -> None:
    """Answer what comes in on the socket `descriptor`, until it is closed.

    A question is (what, path, argument, seconds); the answer (error, None) or (None, result).
    `memory`: bytes that may be had beyond what the process needs for itself.
    """
    _prepare(parent)
    line = Connection(descriptor)
    from reclass_plex import audio, tags  # noqa: F401 - before the memory is counted

    forgo_core()
    limit_memory(memory)
    with suppress(EOFError, ConnectionError):
        line.send(True)
        while True:
            what, path, argument, seconds = line.recv()
            _limit_time(seconds)
            answer: tuple[FileError | None, object]
            try:
                answer = None, _FUNCTIONS[what](path, argument)
            except FileError as error:
                answer = error, None
            except MemoryError:
                text = f"needs over {memory / (1 << 30):g} GiB of memory (worker.file_memory_gib)"
                answer = Harmful(path, f"{text}: damaged, or made to take it"), None
            except Exception as error:  # as the worker's loop: no file may stop those behind it
                traceback.print_exc(file=sys.stderr)
                text = f"cannot be read: {type(error).__name__}: {error}"
                answer = Unreadable(path, f"{text}; please report it as a bug"), None
            line.send(answer)
            del answer


def examine_file(path: Path, options: TagOptions) -> tuple[FileTags, str]:
    """Return what a file says of itself, and its audio digest. Raises FileError."""
    from reclass_plex import audio, tags

    return tags.read_tags(path, options), audio.audio_digest(path)


def digest_file(path: Path, _: None) -> str:
    """Return the audio digest alone. Raises FileError."""
    from reclass_plex.audio import audio_digest

    return audio_digest(path)


def file_seconds(path: Path, _: None) -> float:
    """Return how long a track is, as `audio.audio_seconds` does."""
    from reclass_plex.audio import audio_seconds

    return audio_seconds(path)


def decode_file(path: Path, excerpt: Excerpt) -> Waveform:
    """Decode as `audio.decode_excerpt` does."""
    from reclass_plex.audio import decode_excerpt

    return decode_excerpt(path, excerpt)


_FUNCTIONS: dict[str, Callable[[Path, Any], object]] = {
    "examine": examine_file,
    "digest": digest_file,
    "seconds": file_seconds,
    "decode": decode_file,
}


def _prepare(parent: int) -> None:
    """Leave Ctrl-C to the parent, and die with it: kill -9 gives it no time to tell.

    Not by prctl's PR_SET_PDEATHSIG: that goes by the thread that started this process, which may
    end before the parent does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def mind_parent() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=mind_parent, name="parent", daemon=True).start()


def limit_memory(memory: int) -> None:
    """Let allocations fail beyond `memory` bytes more than there are now."""
    used = 0
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                used = int(line.split()[1]) << 10
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = used + memory if hard == resource.RLIM_INFINITY else min(used + memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def forgo_core() -> None:
    """Leave no core, which may be large, on a crash."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """Let the system end this process where the parent does not: it may have died meanwhile."""
    with suppress(OSError, ValueError):
        soft = int(time.process_time() + 2 * seconds) + 2
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
