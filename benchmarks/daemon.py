"""How quick, how quiet and how steady the daemon is here.

    python benchmarks/daemon.py [--minutes 2] [--files 100000]
    python benchmarks/daemon.py --soak 30

Real processes on music cut from the demo's, each piece another. Latency is counted from the moment
when a file has rested for `settle_seconds` to that when the tagged one stands in its place. With
--soak nothing else is measured: new files keep coming as fast as they are worked on, with the
tests' Plex server beside, and every 30 s memory, open files and threads are counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
from pipeline import known_library

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from daemon_tools import DEMO, Daemon, Site, cut_track, in_line, running, wait_until
from plex_server import PlexStandIn

from reclass_plex.credentials import webhook_key

SOURCES = (
    DEMO / "HSR - City.ogg",
    DEMO / "Muldjord - Mutilated Mime.mp3",
    DEMO / "Legoluft - Space-Atmo.opus",
)
SETTLE = 1.0  # seconds
SAMPLE_SECONDS = 30.0
WARM_UP_SECONDS = 120.0  # of a soak, before its slopes are counted: caches fill
IN_LINE = 60  # files that a soak keeps before the worker
KEPT = 300  # files that a soak leaves in place


class Pieces:
    """Ever new pieces of music, some 30 s long."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self._folder = folder
        self._random = random.Random(seed)  # noqa: S311 - the same pieces every time
        self.count = 0

    def next(self, source: Path | None = None) -> Path:
        """Make one, beside the watched folder; from the begin of `source` on, if that is given."""
        latest = 100_000 if source is None else 40  # packet: the genre is clear from there on
        source = source or SOURCES[self.count % len(SOURCES)]
        self.count += 1
        path = self._folder / f"{self.count:06}{source.suffix}"
        seconds = self._random.uniform(28, 32)
        return cut_track(source, path, self._random.randrange(latest), seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="how long to watch it idle")
    parser.add_argument("--files", type=int, default=100_000, help="of the large library")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d')}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.soak:
            soak(Path(scratch), options.soak * 60)
            return
        measure_latency(Path(scratch, "latency"), options.minutes * 60)
        measure_busy(Path(scratch, "busy"))
        measure_large(Path(scratch, "large"), options.files)


def make_site(root: Path) -> tuple[Site, Pieces]:
    """Make the folders of one measurement."""
    (root / "pieces").mkdir(parents=True)
    return Site(root), Pieces(root / "pieces")


def tag_one(site: Site, piece: Path) -> float:
    """Drop a file; return the seconds from its rest to its tag."""
    target = site.music / piece.name
    piece.rename(target)
    os.utime(target)
    began, inode = time.monotonic(), target.stat().st_ino
    wait_until(lambda: target.stat().st_ino != inode, "tagged", pause=0.005)
    return time.monotonic() - began - SETTLE


def measure_latency(root: Path, idle_seconds: float) -> None:
    """One file at a time, with models loaded and not; then nothing at all."""
    site, pieces = make_site(root)
    sure = SOURCES[0]
    site.configure(
        watch={"settle_seconds": SETTLE},
        worker={"idle_minutes": 0.05},
    )
    with running(site) as daemon:
        cold = []
        for _ in range(5):
            wait_until(lambda: not daemon.status().models_loaded, "the models are unloaded")
            cold.append(tag_one(site, pieces.next(sure)))
        warm = []
        for _ in range(15):
            piece = pieces.next(sure)
            assert daemon.status().models_loaded, "too slow for a worker that is loaded"
            warm.append(tag_one(site, piece))
        tell("settled to tagged, models loaded", warm)
        tell(f"settled to tagged, models unloaded when it came ({SETTLE:g} s before)", cold)
        wait_until(lambda: not daemon.status().models_loaded, "the models are unloaded")
        time.sleep(5)
        processes = [psutil.Process(daemon.process.pid), *daemon.children()]
        before, began = cpu_seconds(processes), time.monotonic()
        time.sleep(idle_seconds)
        share = (cpu_seconds(processes) - before) / (time.monotonic() - began)
        sizes = ", ".join(f"{one.memory_info().rss / 1e6:.0f} MB" for one in processes)
        print(
            f"idle for {idle_seconds:.0f} s: {share:.2%} of one core;"
            f" {len(processes)} process(es) of {sizes}",
            flush=True,
        )


def measure_busy(root: Path) -> None:
    """Webhooks, and being asked to stop, in the midst of work."""
    site, pieces = make_site(root)
    with PlexStandIn() as plex:
        track = plex.add_track(plex.add_library(), "Artist", "Album", "Title")
        site.configure(plex={"url": plex.url})
        with running(site) as daemon:
            client = daemon.wait_ready()
            plex.webhook_url = f"{client.url}/webhook/{webhook_key(site.store)}"
            for _ in range(80):
                piece = pieces.next()
                piece.rename(site.music / piece.name)
            wait_until(lambda: daemon.status().tracks_done > 3, "it works")
            took = []
            for _ in range(100):
                began = time.perf_counter()
                assert plex.send_webhook(track) == 202
                took.append(time.perf_counter() - began)
                time.sleep(0.02)
            status = daemon.status()
            left, loaded = (
                in_line(status),
                [f"{one.memory_info().rss / 1e6:.0f} MB" for one in daemon.children()],
            )
            assert left, "it was through before"
            tell("webhook while busy", took, "ms", 1e3)
            print(
                f"stopped while busy, {left} in line: {daemon.terminate():.2f} s;"
                f" until then {', '.join(loaded)} beside the main process",
                flush=True,
            )


def measure_large(root: Path, files: int) -> None:
    """How long until all of a large library is watched, and compared with the store."""
    root.mkdir()
    site = Site(root)
    known_library(site.music, root, files)
    site.configure(store={"path": str(root / "reclass-plex" / "store.sqlite")})
    site = Site(root, {"store": {"path": str(root / "reclass-plex" / "store.sqlite")}})
    began = time.monotonic()
    daemon = Daemon(site)
    try:
        ready = wait_until(lambda: " is ready" in site.log_text(), "ready")
        wait_until(lambda: f"compared {files}" in site.log_text(), "compared", 600)
        line = next(line for line in site.log_text().splitlines() if "compared" in line)
        size = psutil.Process(daemon.process.pid).memory_info().rss
        print(
            f"{files:,} known files: answering after {ready:.1f} s, all watched and compared after"
            f" {time.monotonic() - began:.1f} s; {size / 1e6:.0f} MB\n  {line[24:]}",
            flush=True,
        )
        late = next(path for path in sorted(site.music.iterdir(), reverse=True) if path.is_dir())
        _, pieces = make_site(root / "more")
        piece = pieces.next(SOURCES[0])
        target = late / piece.name
        piece.rename(target)
        seconds = wait_until(lambda: f"{piece.name}: none -> " in site.log_text(), "tagged")
        print(f"  a new file in its last folder: tagged after {seconds:.1f} s, 0.3 s to settle")
    finally:
        daemon.end()


# Soak


def soak(root: Path, seconds: float) -> None:
    """Keep it at full load and look whether anything grows."""
    site, pieces = make_site(root)
    with ExitStack() as stack:
        plex = stack.enter_context(PlexStandIn())
        library = plex.add_library(location="/data/music", root=site.music)
        site.configure(
            plex={
                "url": plex.url,
                "path_map": [{"plex": "/data/music", "local": str(site.music)}],
            }
        )
        daemon = stack.enter_context(running(site))
        stopping = threading.Event()
        feeder = threading.Thread(target=feed, args=(site, daemon, pieces, plex, stopping))
        feeder.start()
        stack.callback(feeder.join)
        stack.callback(stopping.set)
        samples: list[tuple[float, str, tuple[float, int, int]]] = []
        began = time.monotonic()
        workers = set()
        print("  time        main: MB files threads   worker: MB files threads   done in line")
        while (now := time.monotonic() - began) < seconds + 1:
            status = daemon.status()
            worker = daemon.worker()
            line = f"{now:6.0f} s"
            main = psutil.Process(daemon.process.pid)
            for name, process in (("main", main), ("worker", worker)):
                if process is None:
                    line += f"{'-':>27}"
                    continue
                values = count(process)
                samples.append((now, name, values))
                line += f"{values[0]:17.1f} {values[1]:5} {values[2]:4}"
            workers.add(worker.pid if worker else None)
            line += f"   {pieces.count - in_line(status):8} {in_line(status):5}"
            print(line, flush=True)
            plex.scan(library)
            stopping.wait(SAMPLE_SECONDS)
        stopping.set()
        feeder.join()
        done = pieces.count - in_line(daemon.status())
        print(
            f"{done} tracks, {done / now * 3600:,.0f} an hour; {plex.requests} requests to Plex,"
            f" errors: {plex.errors[:3]}; worker processes: {len(workers)}"
        )
        for name in ("main", "worker"):
            tell_growth(name, [(at, values) for at, one, values in samples if one == name])
        failed = daemon.status().jobs["failed"]
        print(f"failed: {failed}; stopped within {daemon.terminate():.2f} s")


def feed(
    site: Site, daemon: Daemon, pieces: Pieces, plex: PlexStandIn, stopping: threading.Event
) -> None:
    """Drop albums of ever new files while there are few in line, and delete the oldest."""
    dropped: list[Path] = []
    album = 0
    while not stopping.wait(0.2):
        if in_line(daemon.status()) > IN_LINE:
            continue
        album += 1
        folder = site.music / f"Artist {album // 4}" / f"Album {album}"
        folder.mkdir(parents=True)
        for _ in range(12):
            piece = pieces.next()
            dropped.append(piece.rename(folder / piece.name))
        while len(dropped) > KEPT:
            dropped.pop(0).unlink()


def count(process: psutil.Process) -> tuple[float, int, int]:
    """Return memory in MB, open files and threads."""
    with process.oneshot():
        return process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()


def tell_growth(name: str, samples: Sequence[tuple[float, tuple[float, int, int]]]) -> None:
    """Print the first and last of each figure, and its slope after the warm-up."""
    steady = [one for one in samples if one[0] >= WARM_UP_SECONDS] or list(samples)
    for index, what in enumerate(("MB", "open files", "threads")):
        times = [at for at, _ in steady]
        values = [float(figures[index]) for _, figures in steady]
        slope = "-"
        if len(steady) >= 3:
            slope = f"{statistics.linear_regression(times, values).slope * 3600:+.1f} an hour"
        print(
            f"{name}, {what}: first {samples[0][1][index]:.0f}, after the warm-up {values[0]:.0f},"
            f" last {values[-1]:.0f}, most {max(values):.0f}; slope {slope}"
        )


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return what processes have used so far."""
    return sum(sum(one.cpu_times()[:2]) for one in processes)


def tell(what: str, seconds: Sequence[float], unit: str = "s", factor: float = 1) -> None:
    """Print median and longest."""
    print(
        f"{what}: median {statistics.median(seconds) * factor:.2f} {unit},"
        f" longest {max(seconds) * factor:.2f} {unit} of {len(seconds)}",
        flush=True,
    )


if __name__ == "__main__":
    main()
