"""Where a run of the command spends its time: `python parts.py OUT.json tag FOLDER --yes --json`.

Runs `reclass-plex` in this process with the functions of `PARTS` wrapped by clocks, and writes what
they took to OUT.json. So it does in the processes that read files for it. What runs inside a part's
function and is a part itself counts there alone. The product knows nothing of this.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

# part: functions, as module:name or module:class.name. A name that a module imported is its own.
PARTS: dict[str, tuple[str, ...]] = {
    "wait for a reader": ("decoders:Decoders.examine", "decoders:Decoders.decode"),
    "open": (
        "audio:opened_file",
        "audio:span_between_tags",
        "audio:find_audio_chunks",
        "audio:_open_container",
        "audio:_choose_stream",
    ),
    "read tags": ("tags:read_tags",),
    "digest": ("audio:audio_digest",),
    "decode": ("audio:decode_excerpt",),
    "resample": ("listening:resample",),
    "features: log-mel": ("listening:log_mel_patches",),
    "features: FMA 518": ("listening:extract_fma_features",),
    "encoder: MusiCNN": ("listening:Listening._encode",),
    "heads": ("heads:Head.predict", "moods:hear", "evidence:OpenSet.judge"),
    "vote": ("ensemble:Ensemble.classify",),
    "policy": ("pipeline:plan_tags",),
    "write: edit, checks": ("tags:prepare_write",),
    "write: copy": ("tags:copy_range",),
    "write: hash": ("tags:hash_file",),
    "write: digest": ("tags:audio_digest",),
    "write: mutagen": ("tags:second_opinion",),
    "write: delta": ("tags:make_delta",),
    "write: fsync": ("files:os.fsync", "files:sync_folder"),
    "write: rename": ("files:os.replace",),
    "database": (
        *(f"store:Store.{name}" for name in ("known_files", "find_verdict", "save_verdict")),
        *(f"store:Store.{name}" for name in ("save_track", "find_track", "begin_change")),
        *("store:Store.finish_change", "decided:Decisions.standing"),
    ),
}

LOOK_SECONDS = 0.5  # to look takes some ms itself
# Of a process that reads, as `decoders` starts it, but with clocks.
_READER = "import sys; sys.path[:] = {{path!r}} + [{here!r}]; import parts; parts.read({{args}})"
_READ = "RECLASS_PARTS"  # the variable that names the folder into which readers write


@dataclass
class Took:
    """What one part took: calls, seconds that passed, and of them the processor's."""

    calls: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    def add(self, calls: int, wall: float, cpu: float) -> None:
        """Count what another process took."""
        self.calls += calls
        self.wall += wall
        self.cpu += cpu


class Clocks:
    """One clock a part, each thread on its own, without what parts inside it take."""

    def __init__(self) -> None:
        self.took: dict[str, Took] = defaultdict(Took)
        self._lock = threading.Lock()
        self._thread = threading.local()

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            inside = self._inside()
            inside.append([0.0, 0.0])
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
                theirs = inside.pop()
                if inside:
                    inside[-1][0] += wall
                    inside[-1][1] += cpu
                with self._lock:
                    took = self.took[part]
                    took.calls += 1
                    took.wall += wall - theirs[0]
                    took.cpu += cpu - theirs[1]

        return timed

    def _inside(self) -> list[list[float]]:
        found: list[list[float]] | None = getattr(self._thread, "inside", None)
        if found is None:
            found = self._thread.inside = []
        return found


def install(clocks: Clocks) -> None:
    """Wrap what `PARTS` names. A name that is gone fails: the table is to be mended then."""
    for part, names in PARTS.items():
        for name in names:
            module, _, attributes = name.partition(":")
            holder: Any = importlib.import_module(f"reclass_plex.{module}")
            *path, last = attributes.split(".")
            for step in path:
                holder = getattr(holder, step)
            setattr(holder, last, clocks.wrap(part, getattr(holder, last)))


def read(*arguments: int) -> None:
    """Serve as a process that reads files, and keep on disk what its parts took: it is killed."""
    clocks = Clocks()
    install(clocks)
    from reclass_plex import decoding

    out = Path(os.environ[_READ], f"{os.getpid()}.json")

    def kept(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:  # noqa: ANN401
            try:
                return function(*given)
            finally:
                took = {part: asdict(one) for part, one in clocks.took.items()}
                out.write_text(json.dumps(took))

        return call

    for what, function in decoding._FUNCTIONS.items():
        decoding._FUNCTIONS[what] = kept(function)
    decoding.serve(*arguments)


class Wanted(threading.Thread):
    """How long threads of this process and its children ran or waited for a core, in all.

    Read from /proc again and again, as a thread leaves nothing there when it ends. On a machine
    that others use, too, this tells waiting for a core from waiting for something else.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seconds: dict[str, float] = {}

    def run(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            time.sleep(LOOK_SECONDS)

    def look(self) -> float:
        """Return the seconds until now."""
        mine = psutil.Process()
        for process in (mine, *mine.children(recursive=True)):
            with suppress(OSError):
                for task in Path(f"/proc/{process.pid}/task").iterdir():
                    ran, waited, _ = (task / "schedstat").read_text().split()
                    self._seconds[task.name] = (int(ran) + int(waited)) / 1e9
        return sum(self._seconds.values())


def main() -> None:
    """Run the command that the arguments say."""
    began = time.perf_counter()
    wanted = Wanted()
    wanted.start()
    out, *arguments = sys.argv[1:]
    from reclass_plex import cli, decoders

    here = str(Path(__file__).parent)
    decoders._CODE = _READER.format(here=here)
    folder = tempfile.mkdtemp()
    os.environ[_READ] = folder
    clocks = Clocks()
    install(clocks)
    started = time.process_time()
    sys.argv = ["reclass-plex", *arguments]
    with suppress(SystemExit):
        cli.app()
    for path in Path(folder).iterdir():
        for part, took in json.loads(path.read_text()).items():
            clocks.took[part].add(**took)
    shutil.rmtree(folder)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "parts": {part: asdict(clocks.took[part]) for part in PARTS},
        "start": started,  # imports, which the command itself does later and in part
        "seconds": time.perf_counter() - began,
        "wanted": wanted.look(),
        "cpu": usage.ru_utime + usage.ru_stime,
        "children": children.ru_utime + children.ru_stime,
        "peak": usage.ru_maxrss * 1024,
    }
    Path(out).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
