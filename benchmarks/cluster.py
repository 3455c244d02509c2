"""What a cluster costs a track, and what 1, 4 and 16 machines would give.

    python benchmarks/cluster.py [--tracks 24] [--seconds 220] [--rate 9985] [--gpu-rate N]

Measured here, with a Ray of one machine (`--cluster local`): a question without any work and its
answer, and the bytes of one; the one writer alone, with answers that are there at once. Computed
from these, from `--rate` (tracks an hour of one machine, by `benchmarks/pipeline.py`; by default
that of two x86 cores in the README) and from the nominal speeds of storage: the table. It was not
measured on several machines, and says so.
"""

from __future__ import annotations

import argparse
import os
import pickle  # nosec B403
import platform
import tempfile
import time
from collections.abc import Callable
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
    "hard disk": (180e6, 4 * 0.012),  # four seeks: to read, to copy, to check, to rename
    "NVMe": (3e9, 0.0),
}


def run_worker(
    folder: Path,
    store: Path,
    config: Config,
    ensemble: Ensemble,
    **parts: Any,  # noqa: ANN401 - the worker's
) -> float:
    """Tag what lies in `folder` with these parts; return the seconds that it took."""
    with Store.open(store) as opened:
        Jobs(opened).enqueue(sorted(folder.glob("*/*")), "benchmark", time.time())
        worker = Worker(opened, config, ensemble, **parts)
        began = time.perf_counter()
        while worker.step(time.time()):
            pass
        worker.close()
        seconds = time.perf_counter() - began
        counts = Jobs(opened).counts()
        assert not counts["failed"] and not counts["ready"], counts
    return seconds


def measure_questions(config: Config, ensemble: Ensemble, file: FoundFile) -> tuple[float, int]:
    """Return the seconds that Ray takes for a question and its answer, and the answer's bytes."""
    with Cluster("local", config, ensemble.fingerprint, [file], print) as cluster:
        seat = cluster._seats[0]
        ray = cluster._ray
        answer = ray.get(seat.actor.hear.remote(file))
        began = time.perf_counter()
        for _ in range(QUESTIONS):
            ray.get(seat.actor.introduce.remote(()))
        seconds = (time.perf_counter() - began) / QUESTIONS
        return seconds, len(pickle.dumps(answer))  # our own, to count its bytes: never loaded


def measure_writer(folder: Path, scratch: Path, config: Config, ensemble: Ensemble) -> float:
    """Return the seconds a track of the writer alone: policy, journal, files, database."""
    examined: dict[Path, Any] = {}
    heard: dict[Path, tuple[Verdict, tuple[Embedding, ...]]] = {}
    with Decoders(1) as decoders:
        hear: Callable[[Path], Any] = pipeline.listener(ensemble, decoders.decode)
        for path in sorted(folder.glob("*/*")):
            examined[path] = decoders.examine(path, config.tags)
            heard[path] = hear(path)

    def examine(path: Path, options: TagOptions) -> Any:  # noqa: ANN401 - as the pipeline's
        return examined[path]

    seconds = run_worker(
        folder,
        scratch / "store.sqlite",
        config,
        ensemble,
        threads=2,
        hear=heard.__getitem__,
        examine=examine,
    )
    return seconds / len(heard)


def show_table(name: str, rate: float, overhead: float, writer: float, size: float) -> None:
    """Print what machines of `rate` tracks an hour give, and what stops them."""
    alone = 3600 / (3600 / rate + overhead)
    print(f"\n| {name} | machines' sum | with this storage: least of all, tracks an hour |")
    print("|---|---|---|")
    for machines in MACHINES:
        total = machines * alone
        cells = []
        for storage, (speed, seek) in STORAGE.items():
            # Read by the machine; read again, copied and checked by the writer.
            limit = 3600 / (3 * size / speed + seek)
            least = min(total, limit, 3600 / writer)
            why = "" if least == total else " (writer)" if least != limit else " (storage)"
            cells.append(f"{storage} {least:,.0f}{why}")
        print(f"| {machines} | {total:,.0f} | {'; '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tracks", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--rate", type=float, default=9985, help="tracks an hour of one machine")
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
        f"measured: {writer * 1e3:.1f} ms a track of the one writer, alone:"
        f" at most {3600 / writer:,.0f} an hour"
    )
    show_table("machines, computed", options.rate, 2 * question, writer, size)
    if options.gpu_rate:
        show_table("machines with a GPU, computed", options.gpu_rate, 2 * question, writer, size)


if __name__ == "__main__":
    main()
