"""How much memory the models may take, and which of them stay in it.

Conventions: sizes are bytes, save for what the user states in GiB. On a CPU it is the machine's
memory, on a GPU its own. Where both are one (a Jetson), the GPU's counter alone would be wrong in
both directions: what the kernel would give up (caches) does not count as free there, and what is
free there may be what other programs are about to need; so the lesser of the two counts.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from reclass_plex.errors import DeviceError

log = logging.getLogger(__name__)

GIB = 1 << 30
RESERVE = GIB // 2  # left to the system and to other programs, and to what torch does not count
MARGIN = 1.25  # times what is computed: blocks that do not fill up, buffers inside of kernels
PATIENCE = 10.0  # seconds that who needs room lets others go on with what stands in its way
MEMINFO = Path("/proc/meminfo")

T = TypeVar("T")


@dataclass(frozen=True)
class Footprint:
    """What an encoder takes: its `weights` once, and `window` for every window of a batch."""

    weights: int
    window: int


@dataclass(frozen=True)
class Share:
    """How several encoders share the memory."""

    together: bool  # all loaded at once; else one in turn
    most_windows: tuple[int, ...]  # of a batch, for each encoder; at least 1


def free_bytes(device: str) -> int:
    """Return what is free on `device`, less a reserve, and with what torch holds but does not use.

    0 where nothing is; where the system does not say, on a CPU, half a GiB.
    """
    if torch.device(device).type == "cpu":
        available = available_bytes()
        return RESERVE if available is None else max(0, available - RESERVE)
    index = _gpu_index(device)
    free, _ = torch.cuda.mem_get_info(index)
    if torch.cuda.get_device_properties(index).is_integrated:
        available = available_bytes()
        free = free if available is None else min(free, available)
    cached = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return max(0, free + cached - RESERVE)


def budget_bytes(device: str, gib: float | None = None) -> int:
    """Return what models and their work may take on `device`, with what they already have there.

    `gib` is the user's limit (worker.memory_gib); None: all that is free.
    """
    most = free_bytes(device)
    if torch.device(device).type == "cuda":
        most += torch.cuda.memory_allocated(_gpu_index(device))
    return most if gib is None else min(most, int(gib * GIB))


def available_bytes(meminfo: Path = MEMINFO) -> int | None:
    """Return what Linux could give to programs without swapping; None if it does not say."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        value = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(value) * 1024
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def windows_that_fit(room: int, window: int, most: int) -> int:
    """Return how many windows of `window` bytes a batch may have in `room`: 1 to `most`.

    One window is tried in any case: what is computed here is an upper bound.
    """
    return max(1, min(most, int(room / (window * MARGIN))))


def share_memory(budget: int, footprints: Sequence[Footprint], most: int) -> Share:
    """Return how encoders share `budget`: all at once, if each then has room for one window.

    Otherwise they are to be loaded in turn (`Residents`), each with all the room to itself.
    Raises DeviceError if one of them does not fit even so.
    """
    weights = sum(footprint.weights for footprint in footprints)
    room = (budget - weights) // max(1, len(footprints))
    together = all(room >= footprint.window * MARGIN for footprint in footprints)
    rooms = [room if together else budget - footprint.weights for footprint in footprints]
    if (least := min(rooms, default=0)) < 0:
        _refuse("a model", budget - least, budget)
    fits = [
        windows_that_fit(each, footprint.window, most)
        for each, footprint in zip(rooms, footprints, strict=True)
    ]
    return Share(together, tuple(fits))


class _Resident(Generic[T]):
    """One loaded thing, or one that is being loaded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.users = 1
        self.loaded: list[T] = []  # one, or none yet


class Residents(Generic[T]):
    """Keeps models loaded within a budget: who was used least recently goes first.

    For any number of threads, each of which uses one model at a time. A model in use is never
    dropped: who needs its room waits until nobody uses it, at first letting others go on with it,
    and after `patience` seconds ahead of whoever comes later.
    """

    def __init__(self, budget: int, patience: float = PATIENCE) -> None:
        self._budget = budget
        self._patience = patience
        self._changed = threading.Condition()
        self._residents: dict[str, _Resident[T]] = {}  # the least recently used first
        self._waiting: list[float] = []  # since when threads wait for room
        self._busy: set[int] = set()  # threads

    @property
    def names(self) -> tuple[str, ...]:
        """What is loaded, the least recently used first."""
        with self._changed:
            return tuple(name for name, one in self._residents.items() if one.loaded)

    @contextmanager
    def use(self, name: str, size: int, load: Callable[[], T]) -> Iterator[T]:
        """Give the model `name` for as long as the context lasts, loading it if it is not there.

        `size` is what it takes, with room to work; `load` returns it, and its errors are raised
        here. Raises DeviceError if it is larger than the budget.
        """
        thread = threading.get_ident()
        if thread in self._busy:
            raise RuntimeError("a thread that uses a model and waits for another may wait for ever")
        if size > self._budget:
            _refuse(name, size, self._budget)
        self._busy.add(thread)
        try:
            resident = self._take(name, size, load)
            try:
                yield resident.loaded[0]
            finally:
                with self._changed:
                    resident.users -= 1
                    self._changed.notify_all()
        finally:
            self._busy.discard(thread)

    def _take(self, name: str, size: int, load: Callable[[], T]) -> _Resident[T]:
        with self._changed:
            since = time.monotonic()
            while True:
                resident = self._residents.get(name)
                if resident is not None and resident.loaded and not self._is_overdue(since):
                    resident.users += 1
                    self._residents[name] = self._residents.pop(name)
                    return resident
                if resident is None and self._make_room(size, since):
                    resident = self._residents[name] = _Resident(size)
                    break
                # All of this changes when somebody is done.
                self._wait(since, for_room=resident is None)
        try:
            resident.loaded.append(load())
        except BaseException:
            with self._changed:
                del self._residents[name]
            raise
        finally:
            with self._changed:
                self._changed.notify_all()
        return resident

    def _is_overdue(self, since: float) -> bool:
        """Say whether a thread that came before `since` has waited too long for room."""
        oldest = min(self._waiting, default=since)
        return oldest < since and time.monotonic() - oldest > self._patience

    def _make_room(self, size: int, since: float) -> bool:
        """Drop what has to go, the least recently used first; return False if that is in use.

        Nothing is dropped in vain, nor ahead of a thread that waits for longer.
        """
        if any(other < since for other in self._waiting):
            return False
        free = self._budget - sum(one.size for one in self._residents.values())
        going: list[str] = []
        for name, one in self._residents.items():
            if free >= size:
                break
            if not one.users:
                going.append(name)
                free += one.size
        if free < size:
            return False
        self._drop(going)
        return True

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            del self._residents[name]
            log.debug("%s leaves the memory", name)
        if names and torch.cuda.is_available():
            gc.collect()  # compiled networks hold themselves in circles
            torch.cuda.empty_cache()

    def _wait(self, since: float, *, for_room: bool) -> None:
        waiting = [since] if for_room else []
        self._waiting += waiting
        try:
            self._changed.wait(self._patience)
        finally:
            for one in waiting:
                self._waiting.remove(one)


def _gpu_index(device: str) -> int:
    # Some of torch's functions want a number: "cuda" alone is none before torch 2.6.
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def _refuse(name: str, size: int, budget: int) -> None:
    raise DeviceError(why_too_large(name, size, budget))


def why_too_large(name: str, size: int, budget: int) -> str:
    """Return, for people, that a model of `size` bytes does not fit, and what to do."""
    return (
        f"{name} needs {size / GIB:.1f} GiB, and there are {budget / GIB:.1f}: end what else uses"
        " the memory, raise worker.memory_gib if it is set, or choose a smaller model"
    )
