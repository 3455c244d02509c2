"""What a cluster costs a track, and what 1, 4 and 16 machines would give.

    python benchmarks/cluster.py [--tracks 24] [--seconds 220] [--rate 23685] [--gpu-rate N]

Measured here, with a Ray of one machine (`--cluster local`): a question without any work and its
answer, and the bytes of one; the one writer alone, with answers that are there at once. Computed
from these, from `--rate` (tracks an hour of one machine, by `benchmarks/pipeline.py`; by default
that of two idle x86 cores in the README) and from the nominal speeds of storage: the table. It was
not measured on several machines, and says so.

Of the writer, the table takes the processor's seconds, which are the same beside other jobs, and
adds the storage's.
"""

from __future__ import annotations

import argparse
import os
import pickle  # nosec B403
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import make_library

from reclass_plex import pipeline
from reclass_plex.cluster import Cluster
from reclass_plex.config import Config, TagOptions
from reclass_plex.decoders import Decoders
from reclass_plex.ensemble import Ensemble
from reclass_plex.files import FoundFile
from reclass_plex.jobs import Jobs
from reclass_plex.records import Embedding, Verdict
from reclass_plex.store import Store
from reclass_plex.worker import Worker

QUESTIONS = 300
MACHINES = (1, 4, 16)
# Bytes a second that are nominally had, and seconds that a file costs beside them.
STORAGE = {
    "1 GbE": (118e6, 0.0),
    "10 GbE": (1.18e9, 0.0),
    "hard disk": (180e6, 4 * 0.012),  # four seeks: to hear, to copy, to check, to rename
    "NVMe": (3e9, 0.0),
}


@dataclass(frozen=True)
class Cost:
    """Seconds a track: of the clock, and of the processor."""

    clock: float
    processor: float


def run_worker(
    folder: Path,
    store: Path,
    config: Config,
    ensemble: Ensemble,
    **parts: Any,  # noqa: ANN401 - the worker's
) -> Cost:
    """Tag what lies in `folder` with these parts."""
    paths = sorted(folder.glob("*/*"))
    with Store.open(store) as opened:
        Jobs(opened).enqueue(paths, "benchmark", time.time())
        worker = Worker(opened, config, ensemble, **parts)
        clock, processor = time.perf_counter(), time.process_time()
        while worker.step(time.time()):
            pass
        worker.close()
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        counts = Jobs(opened).counts()
        assert not counts["failed"] and not counts["ready"], counts
    return Cost(clock / len(paths), processor / len(paths))


def measure_questions(config: Config, ensemble: Ensemble, file: FoundFile) -> tuple[float, int]:
    """Return the seconds that Ray takes for a question and its answer, and the answer's bytes."""
    with Cluster("local", config, ensemble.fingerprint, [file.path], print) as cluster:
        seat = cluster._seats[0]
        ray = cluster._ray
        answer = ray.get(seat.actor.hear.remote(file))
        began = time.perf_counter()
        for _ in range(QUESTIONS):
            ray.get(seat.actor.introduce.remote(()))
        seconds = (time.perf_counter() - began) / QUESTIONS
        return seconds, len(pickle.dumps(answer))  # our own, to count its bytes: never loaded


def measure_writer(folder: Path, scratch: Path, config: Config, ensemble: Ensemble) -> Cost:
    """Return what a track costs the writer alone: policy, journal, files, database."""
    examined: dict[Path, Any] = {}
    heard: dict[Path, tuple[Verdict, tuple[Embedding, ...]]] = {}
    with Decoders(1) as decoders:
        hear: Callable[[Path], Any] = pipeline.listener(ensemble, decoders.decode)
        for path in sorted(folder.glob("*/*")):
            examined[path] = decoders.examine(path, config.tags)
            heard[path] = hear(path)

    def examine(path: Path, options: TagOptions) -> Any:  # noqa: ANN401 - as the pipeline's
        return examined[path]

    return run_worker(
        folder,
        scratch / "store.sqlite",
        config,
        ensemble,
        threads=2,
        hear=heard.__getitem__,
        examine=examine,
    )


def show_table(name: str, rate: float, overhead: float, writer: float, size: float) -> None:
    """Print what machines of `rate` tracks an hour give, and what stops them."""
    alone = 3600 / (3600 / rate + overhead)
    print(f"\n| {name} | machines' sum | with this storage: least of all, tracks an hour |")
    print("|---|---|---|")
    for machines in MACHINES:
        total = machines * alone
        cells = []
        for storage, (speed, seek) in STORAGE.items():
            # Heard by the machine; copied and checked by the writer, one after another.
            limit = 3600 / (3 * size / speed + seek)
            alone_writes = 3600 / (writer + 2 * size / speed + seek)
            least = min(total, limit, alone_writes)
            why = "" if least == total else " (writer)" if least != limit else " (storage)"
            cells.append(f"{storage} {least:,.0f}{why}")
        print(f"| {machines} | {total:,.0f} | {'; '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tracks", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--rate", type=float, default=23685, help="tracks an hour of one machine")
    parser.add_argument("--gpu-rate", type=float, help="the same of one with a GPU")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d')}", flush=True)
    config = Config.model_validate({"watch": {"settle_seconds": 0.1}})
    ensemble = Ensemble.from_config(config)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / "music"
        size = make_library(folder, options.tracks, options.seconds) / options.tracks
        time.sleep(0.2)  # they rest
        first = min(folder.glob("*/*"))
        status = first.stat()
        question, answer = measure_questions(
            config, ensemble, FoundFile(first, status.st_size, status.st_mtime_ns)
        )
        writer = measure_writer(folder, scratch, config, ensemble)
    print(f"measured: {size / 1e6:.2f} MB a track of {options.seconds:.0f} s")
    print(f"measured: {question * 1e3:.2f} ms a question of Ray, two a track")
    print(f"measured: {answer:,} bytes an answer (verdict and embeddings)")
    print(
        f"measured: {writer.processor * 1e3:.1f} ms of the processor a track of the one writer,"
        f" alone: at most {3600 / writer.processor:,.0f} an hour"
        f" ({writer.clock * 1e3:.1f} ms here by the clock)"
    )
    asking = 2 * question
    busy = writer.processor + asking  # at most: of a question, Ray takes a part elsewhere
    show_table("machines, computed", options.rate, asking, busy, size)
    if options.gpu_rate:
        show_table("machines with a GPU, computed", options.gpu_rate, asking, busy, size)


if __name__ == "__main__":
    main()
