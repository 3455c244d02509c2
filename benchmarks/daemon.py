"""How quick and how quiet the daemon is here.

    python benchmarks/daemon.py [--minutes 2] [--files 100000]

Real processes on music cut from the demo's, each piece another. Latency is counted from the moment
when a file has rested for `settle_seconds` to that when the tagged one stands in its place. How
steady it is over hours, fault_injection.py --soak measures.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
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
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d')}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
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
