"""Similar music at size: building the index, asking it, and how right its answers are.

    python benchmarks/similar.py [--tracks 100000] [--queries 500]

A real store with synthetic tracks in 300 clusters, ten an album. A query is what the API does:
nearest vectors, names and genres from SQLite, at most two of an album. The files themselves do
not exist, so that the last look, whether a file is there, is left out (a few microseconds each).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from similar_store import clustered, digest_of, fill

from reclass_plex.similarity import SimilarMusic, Wish, index_path
from reclass_plex.store import Store

BATCH = 20_000  # tracks of one transaction
CHECKED = 100  # queries compared with the exact answer
LATE = 1000  # tracks that come after the index was made


def main() -> None:
    """Fill a store, build, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reclass-similar-") as folder:
        run(Path(folder), options.tracks, options.queries)


def run(folder: Path, count: int, queries: int) -> None:
    """Print one figure a line."""
    process = psutil.Process()
    _, vectors = clustered(count + LATE)
    with Store.open(folder / "store.sqlite") as store:
        began = time.perf_counter()
        for first in range(0, count, BATCH):
            fill(store, vectors[first : min(first + BATCH, count)], first=first)
        show("the store was filled in", time.perf_counter() - began, "s")
        began = time.perf_counter()
        SimilarMusic.open(store).update()
        show(f"index of {count:,} tracks built in", time.perf_counter() - began, "s")
        show("  its file", index_path(store).stat().st_size / 1e6, "MB")
        before = process.memory_info().rss
        began = time.perf_counter()
        music = SimilarMusic.open(store)
        music.near(digest_of(1), 10, Wish(existing=False))
        show("opened and asked once in", time.perf_counter() - began, "s")
        random = np.random.default_rng(1)
        asked = [digest_of(int(one)) for one in random.integers(0, count, queries)]
        ask(music, "20 nearest", asked, Wish(existing=False))
        ask(music, "20 nearest, two of an album", asked, Wish(per_album=2, existing=False))
        ask(music, "20 nearest of one genre of eight", asked, Wish(("Jazz",), existing=False))
        show("memory taken by the open index", (process.memory_info().rss - before) / 1e6, "MB")
        recall(music, vectors[:count], random)
        fill(store, vectors[count:], first=count)
        began = time.perf_counter()
        assert music.near(digest_of(count), 1, Wish(existing=False))
        show(f"{LATE:,} new tracks taken up in", time.perf_counter() - began, "s")
        ask(music, "20 nearest, with these", asked, Wish(existing=False))


def ask(music: SimilarMusic, what: str, asked: list[str], wish: Wish) -> None:
    """Print how long queries take, and how much of that the processor worked on them."""
    times, worked = [], []
    for digest in asked:
        began, at_work = time.perf_counter(), time.thread_time()
        found = music.near(digest, 20, wish)
        times.append(1000 * (time.perf_counter() - began))
        worked.append(1000 * (time.thread_time() - at_work))
        assert len(found) == 20
    middle, late, worst = np.percentile(times, (50, 99, 100))
    used = np.percentile(worked, 50)  # what it takes on a machine that does nothing else
    print(
        f"{what}: median {middle:.1f} ms ({used:.1f} ms of processor), p99 {late:.1f} ms,"
        f" longest {worst:.1f} ms",
        flush=True,
    )


def recall(
    music: SimilarMusic,
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float16]],
    random: np.random.Generator,
) -> None:
    """Print which part of the ten nearest, found by comparing all, the index finds."""
    units = vectors.astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = 0
    for number in random.integers(0, len(units), CHECKED):
        near = units @ units[number]
        near[number] = -2
        exact = {digest_of(int(one)) for one in np.argpartition(-near, 10)[:10]}
        answer = music.near(digest_of(int(number)), 10, Wish(existing=False))
        found += len(exact & {one.digest for one in answer})
    show("recall at 10", found / (10 * CHECKED), "")


def show(what: str, value: float, unit: str) -> None:
    """Print one figure."""
    print(f"{what}: {value:.3g} {unit}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
