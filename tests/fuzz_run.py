"""Runs hostile files in children with limits; says what came of each, whatever happens to them.

Case `number` of a `seed` is the same file on every machine with the same libraries.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_corpus import Base
from fuzz_mutators import mutate
from fuzz_targets import SELDOM, TARGETS, Outcome, run_target

from reclass_plex import audio

CASES_A_CHILD = 400
CASE_SECONDS = 20.0  # without a word of the child: it hangs
HANGS = "BUG hangs"
PATIENCE = 2.0  # instead of audio's 30 s, after which FFmpeg is stopped that reads in circles
MEMORY = 1 << 30  # bytes of data that a child may have beyond what it has at its start
SLOW_SECONDS = 3.0  # of a file of a few kilobytes


@dataclass(frozen=True)
class Case:
    """A hostile file, how it was made, and what came of it; `grown` is in bytes of memory."""

    number: int
    base: Base
    names: list[str]
    outcomes: list[Outcome]
    grown: int

    @property
    def bugs(self) -> list[Outcome]:
        """What may not be."""
        return [one for one in self.outcomes if one.is_bug]


@dataclass
class Tally:
    """What a run came to; can be written down and taken up again."""

    seed: int
    done: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)  # "format|target|result"
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    largest: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Count a case."""
        self.done += 1
        for one in case.outcomes:
            self.counts[f"{case.base.format}|{one.target}|{one.result}"] += 1
            what = f"{case.base.format} {case.base.tags}, {one.target}"
            self.slowest = sorted((*self.slowest, (one.seconds, case.number, what)))[-10:]
        what = f"{case.base.format} {case.base.tags}"
        self.largest = sorted((*self.largest, (case.grown, case.number, what)))[-10:]


def make_case(seed: int, number: int, corpus: Sequence[Base]) -> tuple[Base, bytes, list[str]]:
    """Return the healthy file of a case, the hostile one, and how it was made."""
    rng = random.Random(f"{seed}:{number}")
    base = corpus[number % len(corpus)]
    data, names = mutate(rng, base, corpus)
    return base, data, names


def run_cases(seed: int, numbers: Sequence[int], corpus: Sequence[Base]) -> Iterator[Case]:
    """Yield every case of `numbers` in order, run in children."""
    at = 0
    while at < len(numbers):
        for case in _run_child(seed, numbers[at : at + CASES_A_CHILD], corpus):
            at += 1
            if any(one.result == HANGS for one in case.outcomes):
                # Or the machine had no time for it: then it does not hang once more.
                yield from _run_child(seed, numbers[at - 1 : at], corpus)
            else:
                yield case


def _run_child(seed: int, numbers: Sequence[int], corpus: Sequence[Base]) -> Iterator[Case]:
    """Yield cases of one child: all of them, or up to and with the one that brought it down."""
    reader, writer = os.pipe()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_fast_folder()))
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _work(seed, numbers, corpus, folder, writer)
    os.close(writer)
    outcomes: list[Outcome] = []
    number, target, names = numbers[0], "start", [""]
    killed = False
    try:
        with os.fdopen(reader, "rb", buffering=0) as lines:
            for line in _lines(lines.fileno(), CASE_SECONDS):
                said = json.loads(line)
                if "begin" in said:
                    number, names, outcomes = said["begin"], said["names"], []
                elif "target" in said:
                    target = said["target"]
                elif "outcome" in said:
                    outcomes.append(Outcome(*said["outcome"]))
                else:
                    yield Case(number, _base(number, corpus), names, outcomes, said["grown"])
                    target = "end"
            if target != "end":
                killed = _kill(pid)
    finally:
        _kill(pid)
        _, status = os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)
    if target != "end":
        code = os.waitstatus_to_exitcode(status)
        what = HANGS if killed else f"BUG crash {code}"
        outcomes.append(Outcome(target, what, CASE_SECONDS if killed else 0.0))
        yield Case(number, _base(number, corpus), names, outcomes, 0)


def _kill(pid: int) -> bool:
    """End the child if it still runs; say whether it did."""
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.2)  # it closed its pipe a moment before its end
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _lines(descriptor: int, seconds: float) -> Iterator[bytes]:
    """Yield lines until the end, or until none came for so long."""
    rest = b""
    while select.select([descriptor], [], [], seconds)[0]:
        block = os.read(descriptor, 1 << 16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


def _work(
    seed: int, numbers: Sequence[int], corpus: Sequence[Base], folder: Path, writer: int
) -> None:
    """Run the cases in this process, which ends with them."""
    try:
        faulthandler.disable()
        audio._PATIENCE = PATIENCE
        limit = _data_size() + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # what FFmpeg says of each file

        def say(**what: object) -> None:
            os.write(writer, json.dumps(what).encode() + b"\n")

        for number in numbers:
            base, data, names = make_case(seed, number, corpus)
            path = folder / f"case{base.suffix}"
            path.write_bytes(data)
            say(begin=number, names=names)
            before = _resident(reset=True)
            for target in TARGETS:
                if (number // len(corpus)) % SELDOM.get(target, 1):
                    continue
                say(target=target)
                one = run_target(target, path)
                say(outcome=(one.target, one.result, one.seconds, one.detail))
            say(grown=max(0, _resident() - before))
            path.unlink()
        os._exit(0)
    finally:
        os._exit(70)


def _base(number: int, corpus: Sequence[Base]) -> Base:
    return corpus[number % len(corpus)]


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _resident(*, reset: bool = False) -> int:
    """Return the most bytes resident since the last reset; reset to what is now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


def _data_size() -> int:
    return _status("VmData")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0
