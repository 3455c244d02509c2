"""How time and memory grow with the library: 10^4, 10^5, 10^6 tracks.

    python benchmarks/scale.py [--sizes 10000,100000,1000000] [--only reconcile,queue]
                               [--folder F] [--plot docs/scale.svg] [--json F]

Real directory entries, a real store and a real daemon; what is in the store is made up. Each
measurement is a process of its own, so that its peak memory is its own. With --folder the libraries
stay there and are used again: a million tracks take 5 GB and some minutes to make. Fails where
something grows faster than n log n, or is over the bounds of `LIMITS`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pages import PAGES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from large_library import Library

Figures = dict[str, float]

SLACK = 0.15  # of an exponent, for what a shared machine adds
LIMITS = {"reconcile, s": 300.0, "daemon at rest, MB": 1000.0}
ROUNDS = 200  # of what takes a moment
PAGE_ROUNDS = 10
CLAIMED = 32  # tracks at a time
ASKED = (
    *PAGES,
    "/api/v1/status",
    "/api/v1/tracks?genre=Jazz&max_confidence=0.5",
    "/api/v1/albums",
    "/api/v1/facets",
    "/metrics",
)


@dataclass(frozen=True)
class Growth:
    """How a figure may grow: "n log n" for what concerns all tracks, "log n" for one of them."""

    name: str
    allowed: str

    def exponent(self, small: int, large: int) -> float:
        """Return the greatest exponent of n between two sizes that is within this."""
        logs = math.log(math.log(large) / math.log(small)) / math.log(large / small)
        return logs + (1.0 if self.allowed == "n log n" else 0.0)


def growth_of(name: str) -> Growth:
    """Return what a figure may do. A single operation's cost may grow as the depth of a tree."""
    return Growth(name, "log n" if name.startswith(("one ", "open ")) else "n log n")


@contextmanager
def clock(figures: Figures, name: str) -> Iterator[None]:
    """Put the seconds that pass into `figures`."""
    began = time.perf_counter()
    yield
    figures[name] = time.perf_counter() - began


def middle_ms(rounds: int, call: Callable[[int], object]) -> float:
    """Return the median of the processor's ms in a call: the least noisy on a shared machine."""
    taken = []
    for number in range(rounds):
        began = time.process_time()
        call(number)
        taken.append((time.process_time() - began) * 1e3)
    return statistics.median(taken)


def peak_mb() -> float:
    """Return the most memory that this process has held (its own, not its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


# Measurements


def measure_store(library: Library) -> Figures:
    """Opening, looking up and recording, in the midst of a full store."""
    from many_tracks import digest_of, path_of

    from reclass_plex.records import Embedding, GenreScore, Verdict
    from reclass_plex.store import Store

    figures: Figures = {"store's file, MB": library.store.stat().st_size / 1e6}
    began = time.process_time()
    with Store.open(library.store) as store:
        figures["open the store, ms"] = (time.process_time() - began) * 1e3
        step = library.tracks // ROUNDS
        paths = [path_of(n * step, str(library.music)) for n in range(ROUNDS)]
        figures["one track looked up, ms"] = middle_ms(
            ROUNDS, lambda n: store.find_track(paths[n], "")
        )
        import numpy as np

        heard = Embedding("musicnn-msd", np.ones(200, np.float32))
        scores = (GenreScore("Jazz", 0.9), GenreScore("Rock", 0.1))

        def record(number: int) -> None:
            known = store.find_track(paths[number], "")
            assert known is not None
            digest = known.digest or digest_of(number)
            verdict = Verdict("default", scores, "fma518", (), 0.1, None)
            store.save_verdict(digest, "benchmark", verdict, (heard,), now=1.0)
            store.save_track(
                known.path,
                known.size,
                known.mtime_ns,
                digest=digest,
                genres=known.genres,
                album=known.album,
            )

        figures["one track recorded, ms"] = middle_ms(ROUNDS, record)
    return figures


def measure_reconcile(library: Library) -> Figures:
    """Comparing all files with the store and the queue."""
    from reclass_plex.jobs import Jobs
    from reclass_plex.reconcile import reconcile
    from reclass_plex.store import Store

    figures: Figures = {}
    with Store.open(library.store) as store:
        before = peak_mb()
        cpu = time.process_time()
        with clock(figures, "reconcile, s"):
            done = reconcile([library.music], store, Jobs(store), is_healthy=lambda folder: True)
        figures["reconcile, processor s"] = time.process_time() - cpu
        figures["reconcile's memory, MB"] = peak_mb() - before
    assert (done.found, done.queued, done.unreadable) == (library.tracks, 0, 0), done
    return figures


def measure_known(library: Library) -> Figures:
    """`tag` over a library of which all is known."""
    figures: Figures = {}
    state = library.root / "empty"
    state.mkdir(exist_ok=True)
    config = library.root / "tag.yaml"
    config.write_text(f"store: {{path: {library.store}}}\n")
    command = [sys.executable, "-m", "reclass_plex", "tag", str(library.music), "--dry-run"]
    with clock(figures, "known files asked about, s"):
        done = subprocess.run(
            [*command, "--config", str(config)],
            env=os.environ | {"XDG_CONFIG_HOME": str(state), "XDG_STATE_HOME": str(state)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode in (0, 1), done.stderr
    figures["their memory, MB"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    return figures


def measure_queue(library: Library) -> Figures:
    """All tracks asked for again at once; then handed out and finished, the line being full."""
    from many_tracks import path_of

    from reclass_plex.jobs import Jobs
    from reclass_plex.store import Store

    figures: Figures = {}
    copy = library.store.with_name("queue.sqlite")
    with Store.open(library.store) as store, store.transaction() as connection:
        connection.exec_driver_sql("SELECT 1")
    shutil.copyfile(library.store, copy)
    try:
        with Store.open(copy) as store:
            jobs = Jobs(store)
            now = 2e9
            where = str(library.music)
            with clock(figures, "all put in line, s"):
                for first in range(0, library.tracks, 10_000):
                    numbers = range(first, min(first + 10_000, library.tracks))
                    jobs.enqueue((path_of(n, where) for n in numbers), "by hand", now, bulk=True)
            assert jobs.counts()["ready"] == library.tracks
            held: list[list[int]] = []

            def claim(number: int) -> None:
                found = jobs.claim(CLAIMED, now + number, owner="me", lease=1e6)
                assert len(found) == CLAIMED
                held.append([job.id for job in found])

            figures["one claim of 32, ms"] = middle_ms(ROUNDS // 4, claim)

            def finish(number: int) -> None:
                jobs.start_writing(held[number], "me", now + number)
                assert jobs.finish(held[number], "me", "done", now + number) == CLAIMED

            figures["one finish of 32, ms"] = middle_ms(ROUNDS // 4, finish)
            figures["one look when to go on, ms"] = middle_ms(
                ROUNDS, lambda n: jobs.next_due(now + ROUNDS)
            )
            figures["one track put in line, ms"] = middle_ms(
                ROUNDS,
                lambda n: jobs.enqueue([path_of(n, where)], "watch", now + n),
            )
            figures["states counted, ms"] = middle_ms(10, lambda n: jobs.counts())
    finally:
        for path in copy.parent.glob("queue.sqlite*"):
            path.unlink()
    return figures


def measure_similar(library: Library) -> Figures:
    """The index of similar music: made, opened, asked."""
    import numpy as np
    from many_tracks import digest_of

    from reclass_plex.similarity import SimilarMusic, Wish, index_path
    from reclass_plex.store import Store

    figures: Figures = {}
    with Store.open(library.store) as store:
        index_path(store).unlink(missing_ok=True)
        command = [sys.executable, "-m", "service.similar_index", str(library.store)]
        with clock(figures, "index made, s"):
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures["index made, processor s"] = usage.ru_utime + usage.ru_stime
        figures["making it, MB"] = usage.ru_maxrss / 1e3
        figures["index's file, MB"] = index_path(store).stat().st_size / 1e6
        music = SimilarMusic.open(store)
        before = peak_mb()
        wish = Wish(existing=False)
        with clock(figures, "index opened and asked, s"):
            assert music.near(digest_of(1), 10, wish)
        chosen = np.random.default_rng(1).integers(0, library.tracks // 500, ROUNDS) * 500
        figures["one query, ms"] = middle_ms(
            ROUNDS, lambda n: music.near(digest_of(int(chosen[n])), 20, wish)
        )
        figures["index open, MB"] = peak_mb() - before
        figures["one query, vectors compared"] = vectors_compared(index_path(store))
    return figures


def vectors_compared(path: Path) -> float:
    """Return the mean steps of a search in an index: they are the same whatever the machine."""
    import numpy as np
    from usearch.index import Index

    index = Index.restore(os.fspath(path), view=True)
    assert index is not None
    keys = [int(index.keys[at]) for at in range(0, len(index), max(1, len(index) // ROUNDS))]
    asked = [np.asarray(index.get(key)) for key in keys]
    return statistics.mean(index.search(vector, 20).computed_distances for vector in asked)


def measure_daemon(library: Library) -> Figures:
    """A daemon on the library: until all is watched and compared, at rest, and visited."""
    import psutil
    from daemon_tools import Daemon, Site, wait_until
    from page_tools import Visitor, sign_in

    from reclass_plex.store import Store

    figures: Figures = {}
    library.store.with_name("daemon.json").unlink(missing_ok=True)
    site = Site(library.root)  # which has its music and its store where they are
    site.configure()
    site.log.unlink(missing_ok=True)
    began = time.monotonic()
    daemon = Daemon(site)
    main = psutil.Process(daemon.process.pid)
    try:
        wait_until(lambda: " is ready" in site.log_text(), "ready")
        figures["daemon answers, s"] = time.monotonic() - began
        compared = f"compared {library.tracks}"
        wait_until(lambda: compared in site.log_text(), "compared", 1800, pause=0.2)
        figures["watched and compared, s"] = time.monotonic() - began
        times = main.cpu_times()
        figures["watched and compared, processor s"] = times.user + times.system
        assert ": 0 put in line, 0 jobs dropped" in site.log_text(), site.log_text()[-500:]
        visitor = Visitor(daemon.wait_ready().url)
        with Store.open(library.store) as store:
            sign_in(visitor, store)
        firsts = []
        for page in ASKED:
            taken = []
            for _ in range(1 + PAGE_ROUNDS):
                since = time.perf_counter()
                answer = visitor.get(page)
                taken.append((time.perf_counter() - since) * 1e3)
                assert answer.status_code == 200, (page, answer.status_code, answer.text[:300])
            firsts.append(taken[0])  # reads from the disk what no one asked for that day
            figures[f"page {page}, p95 ms"] = statistics.quantiles(taken[1:], n=20)[-1]
        figures["slowest first visit of a page, ms"] = max(firsts)
        time.sleep(5)
        processes = [main, *daemon.children()]
        figures["daemon at rest, MB"] = sum(one.memory_info().rss for one in processes) / 1e6
    finally:
        daemon.end()
    return figures


MEASURES: dict[str, Callable[[Library], Figures]] = {
    "store": measure_store,
    "reconcile": measure_reconcile,
    "known": measure_known,
    "queue": measure_queue,
    "similar": measure_similar,
    "daemon": measure_daemon,
}


# The whole


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path, help="figures, taken up from there and added to")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.measure:
        print(json.dumps(MEASURES[options.measure](Library(options.folder, sizes[0]))))
        return 0
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d')}",
        flush=True,
    )
    table: dict[int, Figures] = {}
    if options.json and options.json.exists():
        said = json.loads(options.json.read_text())
        table = {int(size): figures for size, figures in said.items()}
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            library = Library(Path(options.folder or scratch) / str(size), size)
            table.setdefault(size, {}).update(measure_all(library, options.only.split(",")))
            if options.json:
                options.json.write_text(json.dumps(table, indent=1))
            if not options.folder:
                shutil.rmtree(library.root)
    faults = show(table)
    if options.plot:
        from scale_plot import plot

        plot(table, options.plot)
    return 1 if faults else 0


def measure_all(library: Library, wanted: list[str]) -> Figures:
    """Make the library if need be, and measure each thing in a process of its own."""
    figures: Figures = {}
    if not library.is_made:
        figures["entries made, s"], figures["store filled, s"] = library.make()
    for name in wanted:
        command = [sys.executable, __file__, "--measure", name, "--folder", str(library.root)]
        done = subprocess.run(
            [*command, "--sizes", str(library.tracks)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        figures |= json.loads(done.stdout.splitlines()[-1])
        print(f"{library.tracks:>9,}: {name}", flush=True)
    return figures


def show(table: dict[int, Figures]) -> list[str]:
    """Print all figures with their growth; return what is beyond its bounds."""
    sizes = sorted(table)
    faults: list[str] = []
    print(f"{'':46}" + "".join(f"{size:>12,}" for size in sizes) + "   exponent  (at most)")
    for name in dict.fromkeys(name for size in sizes for name in table[size]):
        values = [table[size].get(name) for size in sizes]
        cells = "".join(f"{'' if v is None else f'{v:.4g}':>12}" for v in values)
        line = f"{name:46}{cells}"
        if len(sizes) > 1 and values[-1] is not None and values[-2] is not None:
            small, large = sizes[-2:]
            ratio = max(values[-1], 1e-9) / max(values[-2], 1e-9)
            exponent = math.log(ratio) / math.log(large / small)
            most = growth_of(name).exponent(small, large) + SLACK
            line += f"   {exponent:8.2f}  ({most:.2f})"
            if exponent > most and not name.endswith((", s", ", p95 ms", "visit of a page, ms")):
                faults.append(f"{name}: grows with n^{exponent:.2f}, at most n^{most:.2f} is meant")
        bound = LIMITS.get(name)
        if bound is not None and values[-1] is not None and values[-1] > bound:
            faults.append(f"{name}: {values[-1]:.0f}, at most {bound:.0f} is meant")
        print(line)
    for fault in faults:
        print(f"BEYOND ITS BOUNDS  {fault}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
