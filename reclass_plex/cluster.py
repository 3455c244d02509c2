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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from reclass_plex.cluster_node import (
    ONE_THREAD,
    Answer,
    Introduction,
    Node,
    code_digest,
    version,
)
from reclass_plex.cluster_ray import connect, import_ray, last_line
from reclass_plex.config import Config, TagOptions
from reclass_plex.errors import ClusterError, FileChanged, RetryLater, printable
from reclass_plex.files import FoundFile
from reclass_plex.records import Embedding, Verdict

if TYPE_CHECKING:
    from reclass_plex.tags import FileTags

START_SECONDS = 180.0  # for a machine to load its models
LOOK_SECONDS = 5.0  # between looks for machines that came
RESTARTS = 3  # of one machine's process, if it dies and the machine lives
TRIES = 3  # processes that may die over one track before it has to wait
AHEAD = 1  # tracks that a machine has beside those it hears, so that it need not wait for us

log = logging.getLogger(__name__)

_HEARD_BY = {"ensemble", "models", "worker", "tags"}  # what of the configuration travels


@dataclass(eq=False)
class _Seat:
    """A process on a machine: it takes `places` files at once, and has `busy`.

    Of one that was lost, `alone` says in the end whether it died alone: its machine lives.
    """

    name: str
    node_id: str
    actor: Any
    places: int
    busy: int = 0
    alone: Future[bool] = field(default_factory=Future)


class Cluster:
    """The machines at `address`: ray://HOST:PORT, HOST:PORT, auto, or local (this one alone).

    `models` is the fingerprint that all must have, `samples` are files that all must see as they
    are here, as long as they are, `tell` is told who is not used, and why. Its methods may be
    called from any thread.
    """

    def __init__(
        self,
        address: str,
        config: Config,
        models: str,
        samples: Sequence[Path],
        tell: Callable[[str], object],
    ) -> None:
        """Connect, and let the machines load. Raises ConfigError, ClusterError."""
        self._ray = import_ray()
        self._order = config.model_dump_json(include=_HEARD_BY)
        self._device = config.worker.device
        self._models = models
        self._code = code_digest()
        self._samples = samples
        self._tell = tell
        self._changed = threading.Condition()
        self._seats: list[_Seat] = []
        self._known: set[str] = set()  # nodes that were looked at
        self._coming = 0  # rounds of starting, of which there may soon be places
        self._replacing: list[threading.Thread] = []
        self._deaths: Counter[str] = Counter()  # of processes, by node
        self.heard: Counter[str] = Counter()  # tracks, by machine
        self._closing = threading.Event()
        self._looking = threading.Thread(target=self._keep_looking, name="machines", daemon=True)
        connect(self._ray, address)
        try:
            self._look_for_machines()
            if not self._seats:
                raise ClusterError(f"{address}: no machine of the cluster can be used")
            self._looking.start()
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
        self._closing.set()
        if self._looking.ident is not None:
            self._looking.join()
        for thread in self._replacing:
            thread.join()
        self._ray.shutdown()

    def _keep_looking(self) -> None:
        """Begin to use machines that come meanwhile; the others hear as they load."""
        while not self._closing.wait(LOOK_SECONDS):
            try:
                self._look_for_machines()
            except Exception:  # who asks for a track is told why, and this may pass
                log.debug("cannot look for machines", exc_info=True)

    def _look_for_machines(self) -> None:
        """Begin to use those that came; returns when they have loaded."""
        fresh = [node for node in self._alive() if node["NodeID"] not in self._known]
        if not fresh:
            return
        self._known |= {node["NodeID"] for node in fresh}
        with self._changed:
            self._coming += 1
        try:
            self._admit([seat for node in fresh for seat in self._make_seats(node)])
        finally:
            self._came()

    def _came(self) -> None:
        """Let those who wait for a place look whether there is one."""
        with self._changed:
            self._coming -= 1
            self._changed.notify_all()

    def _ask(self, what: str, path: Path) -> Any:  # noqa: ANN401 - as the node's methods
        lost: list[_Seat] = []
        # Of a machine that was lost Ray says for some seconds that it lives.
        while len(lost) < TRIES or sum(seat.alone.result() for seat in lost) < TRIES:
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
                lost.append(seat)
                self._leave(seat, answer.unfit)
                continue
            if answer.error is not None:
                raise answer.error
            if what == "hear":
                self.heard[seat.name] += 1
            return answer.result
        raise RetryLater(path, f"was not heard: {TRIES} processes of the cluster died over it")

    @contextlib.contextmanager
    def _place(self) -> Iterator[_Seat]:
        """Hold a place at the machine that has most of its places free."""
        with self._changed:
            while not (free := [seat for seat in self._seats if seat.busy < seat.places]):
                if not self._seats and not self._coming:
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

    def _leave(self, seat: _Seat, why: str) -> None:
        """Do without a process from now on, and start another where its machine lives."""
        with self._changed:
            if seat not in self._seats:  # another thread saw it
                return
            self._seats.remove(seat)
            self._deaths[seat.node_id] += 1
            self._coming += 1
        self._tell(f"{seat.name}: {why}")
        thread = threading.Thread(target=self._replace, args=[seat], name="machine", daemon=True)
        self._replacing.append(thread)
        thread.start()

    def _replace(self, seat: _Seat) -> None:
        """Start another process in the place of one, and note whether its machine lives."""
        alone = False
        try:
            with contextlib.suppress(Exception):  # it may be dead
                self._ray.kill(seat.actor)
            node = self._find_node(seat)
            if node is not None and self._deaths[seat.node_id] <= RESTARTS:
                self._admit(self._make_seats(node)[:1])  # that of the GPU which is free now
            alone = self._find_node(seat) is not None
        except Exception:  # Ray's head may be lost: who asks for a track is told
            log.debug("cannot replace %s", seat.name, exc_info=True)
        finally:
            seat.alone.set_result(alone)
            self._came()

    def _find_node(self, seat: _Seat) -> dict[str, Any] | None:
        """Return the machine of a process, if Ray says that it lives."""
        return next((node for node in self._alive() if node["NodeID"] == seat.node_id), None)

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
        before = _stamps(self._samples)
        asked = [(seat, seat.actor.introduce.remote(list(before))) for seat in seats]
        until = time.monotonic() + START_SECONDS
        for seat, reference in asked:
            why: str | None = f"did not start in {START_SECONDS:.0f} s: its cores may be taken"
            try:
                while not (ready := self._ray.wait([reference], timeout=1)[0]):
                    if self._closing.is_set():
                        return
                    if time.monotonic() > until:
                        break
                if ready:
                    why = self._why_not(self._ray.get(reference), before)
            except self._ray.exceptions.RayError as error:
                why = f"cannot start: {last_line(error)}"
            if why is None:
                with self._changed:
                    self._seats.append(seat)
                    self._changed.notify_all()
            else:
                self._tell(f"{seat.name} is not used: {why}")
                with contextlib.suppress(Exception):  # it may never have lived
                    self._ray.kill(seat.actor)

    def _why_not(self, said: Introduction, before: Mapping[Path, FoundFile]) -> str | None:
        if said.version != version():
            return f"it has reclass-plex {said.version}, and here is {version()}"
        if said.code != self._code:
            return f"its code is another of the same version {said.version}: install the same again"
        if said.models != self._models:
            notes = "".join(f"; {note}" for note in said.notes)
            return f"its models or its version are others ({said.models}){notes}"
        after = _stamps(before)  # they are tagged one after another, as long as we work
        for path, seen in zip(before, said.samples, strict=True):
            if path in after and seen not in (before[path], after[path]):
                return seen if isinstance(seen, str) else f"{printable(path)} is another file there"
        return None


def _stamp(path: Path) -> FoundFile:
    try:
        status = path.stat()
    except OSError as error:
        raise FileChanged(path, (error.strerror or str(error)).lower()) from error
    return FoundFile(path, status.st_size, status.st_mtime_ns)


def _stamps(paths: Iterable[Path]) -> dict[Path, FoundFile]:
    """Return those that are there."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileChanged):
            found[path] = _stamp(path)
    return found
