"""Many machines that hear: files are named to them, and what they heard comes back to one writer.

    pipeline's threads -> a machine with a free place -> answer
                       -> the machine was lost: another one is asked

`Cluster.examine` and `Cluster.hear` stand where one machine's own stand in the pipeline, so policy,
store, journal and albums are the same code. Ray starts the machines' processes, carries questions
and answers, and says who died; who is asked what is decided here. A question that was lost with its
machine is put to another one; an answer is taken by the one thread that waits for it. So each track
is recorded once.

Ray lets everyone who reaches its ports run code: see docs/cluster.md. The configuration travels
without secrets, which are in files of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reclass_plex.cluster_node import (
    ONE_THREAD,
    Answer,
    Introduction,
    Node,
    code_digest,
    version,
)
from reclass_plex.config import Config, TagOptions
from reclass_plex.errors import ClusterError, ConfigError, FileChanged, RetryLater
from reclass_plex.files import FoundFile
from reclass_plex.pipeline import count_cores
from reclass_plex.records import Embedding, Verdict

if TYPE_CHECKING:
    from reclass_plex.tags import FileTags

START_SECONDS = 180.0  # for a machine to load its models
KNOCK_SECONDS = 5.0  # for an address to answer at all
RESTARTS = 3  # of one machine's process, if it dies and the machine lives
TRIES = 3  # processes that may die over one track before it has to wait
AHEAD = 1  # tracks that a machine has beside those it hears, so that it need not wait for us
STORE_BYTES = 80 << 20  # of Ray's memory for objects, where we start it: answers are small

_HEARD_BY = {"ensemble", "models", "worker", "tags"}  # what of the configuration travels


@dataclass(eq=False)
class _Seat:
    """A process on a machine: it takes `places` files at once, and has `busy`."""

    name: str
    node_id: str
    actor: Any
    places: int
    busy: int = 0


class Cluster:
    """The machines at `address`: ray://HOST:PORT, HOST:PORT, auto, or local (this one alone).

    `models` is the fingerprint that all must have, `samples` are files that all must see as they
    are here, `tell` is told who is not used, and why. Its methods may be called from any thread.
    """

    def __init__(
        self,
        address: str,
        config: Config,
        models: str,
        samples: Sequence[FoundFile],
        tell: Callable[[str], object],
    ) -> None:
        """Connect, and let the machines load. Raises ConfigError, ClusterError."""
        self._ray = _import_ray()
        self._order = config.model_dump_json(include=_HEARD_BY)
        self._device = config.worker.device
        self._models = models
        self._code = code_digest()
        self._samples = samples
        self._tell = tell
        self._changed = threading.Condition()
        self._seats: list[_Seat] = []
        self._known: set[str] = set()  # nodes that were looked at
        self._reviving = 0
        self._deaths: Counter[str] = Counter()  # of processes, by node
        self.heard: Counter[str] = Counter()  # tracks, by machine
        _connect(self._ray, address)
        try:
            self.look_for_machines()
            if not self._seats:
                raise ClusterError(f"{address}: no machine of the cluster can be used")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def places(self) -> int:
        """How many files are asked for at once, at most."""
        with self._changed:
            return sum(seat.places for seat in self._seats)

    @property
    def machines(self) -> list[str]:
        """The names of those that are used."""
        with self._changed:
            return sorted({seat.name for seat in self._seats})

    def look_for_machines(self) -> None:
        """Begin to use those that came; returns when they have loaded."""
        fresh = [node for node in self._alive() if node["NodeID"] not in self._known]
        self._known |= {node["NodeID"] for node in fresh}
        seats = [seat for node in fresh for seat in self._make_seats(node)]
        self._admit(seats)

    def examine(self, path: Path, options: TagOptions) -> tuple[FileTags, str]:
        """Return what a file says of itself, and its audio digest. Raises FileError.

        `options` are those of the configuration, which the machines have.
        """
        found: tuple[FileTags, str] = self._ask("examine", path)
        return found

    def hear(self, path: Path) -> tuple[Verdict, tuple[Embedding, ...]]:
        """Return what the ensemble hears in a file. Raises FileError; ClusterError if all left."""
        found: tuple[Verdict, tuple[Embedding, ...]] = self._ask("hear", path)
        return found

    def close(self) -> None:
        """Leave the cluster: the processes that were started there end."""
        self._ray.shutdown()

    def _ask(self, what: str, path: Path) -> Any:  # noqa: ANN401 - as the node's methods
        deaths = 0
        while deaths < TRIES:
            file = _stamp(path)
            with self._place() as seat:
                try:
                    answer: Answer = self._ray.get(getattr(seat.actor, what).remote(file))
                except self._ray.exceptions.RayTaskError as error:  # our own bug, on that machine
                    raise RetryLater(path, f"{seat.name} failed: {error.cause!r}") from error
                except self._ray.exceptions.RayError as error:
                    answer = Answer(unfit=f"was lost ({type(error).__name__})")
            if answer.unfit is not None:
                _stamp(path)  # it may be gone here as well: then no machine is to blame
                deaths += self._lost(seat, answer.unfit)
                continue
            if answer.error is not None:
                raise answer.error
            if what == "hear":
                self.heard[seat.name] += 1
            return answer.result
        raise RetryLater(path, f"was not heard: {deaths} processes of the cluster died over it")

    @contextlib.contextmanager
    def _place(self) -> Iterator[_Seat]:
        """Hold a place at the machine that has most of its places free."""
        with self._changed:
            while not (free := [seat for seat in self._seats if seat.busy < seat.places]):
                if not self._seats and not self._reviving:
                    raise ClusterError(
                        "no machine of the cluster is left: what was not done stays in line;"
                        " give the command again when there are some"
                    )
                self._changed.wait()
            seat = min(free, key=lambda seat: seat.busy / seat.places)
            seat.busy += 1
        try:
            yield seat
        finally:
            with self._changed:
                seat.busy -= 1
                self._changed.notify_all()

    def _lost(self, seat: _Seat, why: str) -> bool:
        """Do without a process; start another where its machine lives. Return whether it does."""
        with self._changed:
            if seat not in self._seats:
                return True  # another thread saw it first
            self._seats.remove(seat)
            self._reviving += 1
            self._deaths[seat.node_id] += 1
        try:
            self._tell(f"{seat.name}: {why}")
            with contextlib.suppress(Exception):  # it may be dead
                self._ray.kill(seat.actor)
            node = next((n for n in self._alive() if n["NodeID"] == seat.node_id), None)
            if node is None or self._deaths[seat.node_id] > RESTARTS:
                return node is not None
            again = self._make_seats(node)[:1]  # that of the GPU which is free now
            self._admit(again)
            return True
        finally:
            with self._changed:
                self._reviving -= 1
                self._changed.notify_all()

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _make_seats(self, node: dict[str, Any]) -> list[_Seat]:
        """Start a process for each GPU of a machine, or one if it has none; all cores are theirs.

        A machine without cores to give (the head of a cluster often) is left alone.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cores = int(node["Resources"].get("CPU", 0))
        gpus = 0 if self._device == "cpu" else int(node["Resources"].get("GPU", 0))
        if not cores:
            return []
        threads = max(1, cores // max(1, gpus))
        actor = self._ray.remote(Node).options(
            num_cpus=threads,
            num_gpus=min(1, gpus),
            max_restarts=0,  # what is lost is asked of another: see _ask
            max_concurrency=threads + AHEAD,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            runtime_env={"env_vars": ONE_THREAD},
        )
        host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
        label = node.get("NodeName") or host
        name = label if label == address else f"{label} ({address})"
        return [
            _Seat(name, node["NodeID"], actor.remote(self._order, threads), threads + AHEAD)
            for _ in range(max(1, gpus))
        ]

    def _admit(self, seats: Sequence[_Seat]) -> None:
        """Use those that see the files and hear as we do; say who does not, and why."""
        asked = [(seat, seat.actor.introduce.remote(self._samples)) for seat in seats]
        until = time.monotonic() + START_SECONDS
        for seat, reference in asked:
            try:
                said = self._ray.get(reference, timeout=max(0.1, until - time.monotonic()))
                why = self._why_not(said)
            except self._ray.exceptions.GetTimeoutError:
                why = f"did not start in {START_SECONDS:.0f} s: its cores may be taken"
            except self._ray.exceptions.RayError as error:
                why = f"cannot start: {_last_line(error)}"
            if why is None:
                with self._changed:
                    self._seats.append(seat)
                    self._changed.notify_all()
            else:
                self._tell(f"{seat.name} is not used: {why}")
                with contextlib.suppress(Exception):  # it may never have lived
                    self._ray.kill(seat.actor)

    def _why_not(self, said: Introduction) -> str | None:
        if said.version != version():
            return f"it has reclass-plex {said.version}, and here is {version()}"
        if said.code != self._code:
            return f"its code is another of the same version {said.version}: install the same again"
        if said.models != self._models:
            notes = "".join(f"; {note}" for note in said.notes)
            return f"its models or its version are others ({said.models}){notes}"
        return said.unseen


def _import_ray() -> Any:  # noqa: ANN401 - it is an extra
    # Where we start it, or ask it: it shall not report to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            f"--cluster needs Ray ({error}): pip install 'reclass-plex[cluster]'"
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:  # noqa: ANN401 - see _import_ray
    options: dict[str, Any] = {"namespace": "reclass-plex"}
    if not address.startswith("ray://"):
        options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": count_cores(), "include_dashboard": False}
        options |= {"object_store_memory": STORE_BYTES}
    elif address != "auto":
        _knock(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"{address}: Ray cannot be reached: {_last_line(error)}") from error


def _knock(address: str) -> None:
    """Raise unless something listens there: Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise ConfigError(f"--cluster {address}: must be ray://HOST:PORT, HOST:PORT, auto or local")
    try:
        socket.create_connection((host, port), KNOCK_SECONDS).close()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ClusterError(f"{address}: no Ray answers there: {why}") from error


def _stamp(path: Path) -> FoundFile:
    try:
        status = path.stat()
    except OSError as error:
        raise FileChanged(path, (error.strerror or str(error)).lower()) from error
    return FoundFile(path, status.st_size, status.st_mtime_ns)


def _last_line(error: BaseException) -> str:
    """Return the line that says what is wrong: Ray's texts are long, and end with it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
