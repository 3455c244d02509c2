"""Extracted features beside the same in CSV, and what more processes bring.

    .venv/bin/python benchmarks/extraction.py [--copies N] [--features NAME] [FOLDER]

FOLDER holds audio, by default the demo's music; each file counts `--copies` times, but for sizes
and loading once, since what is there twice packs too well. The features are extracted with 1, 2,
... processes up to the cores; their start is part of the time, and the bytes must be equal. Then:
bytes on disk, seconds to load (best of rounds; every number is touched, the files are in the
system's cache), and what float16 costs, in standard deviations of a column. CSV "as read" has the
digits of float64, which is what a list of a tensor's numbers prints; CSV "shortest" has no more
digits than float32 needs.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files
from reclass_plex.pipeline import count_cores
from reclass_plex.records import Excerpt
from reclass_plex.training.datasets.collection import Collection, Recording
from reclass_plex.training.extraction import read_table
from reclass_plex.training.extraction_run import open_extraction
from reclass_plex.training.extraction_sets import Dtype, choose_sets
from reclass_plex.training.extraction_workers import Workers

DEMO = Path(__file__).parents[1] / "demo"
EXCERPT = Excerpt(30.0)
ROUNDS = 5


def collect(folder: Path, copies: int) -> Collection:
    """Return all audio in a folder, each file several times."""
    paths = [f.path for f in find_audio_files([folder], AUDIO_SUFFIXES) if isinstance(f, FoundFile)]
    labels = ("even", "odd")
    recordings = tuple(
        Recording(f"{copy}/{path.name}", path, (labels[number % 2],))
        for copy in range(copies)
        for number, path in enumerate(paths)
    )
    return Collection("benchmark", labels, recordings, "")


def extract(
    collection: Collection, name: str, out: Path, jobs: int, dtype: Dtype
) -> tuple[Path, float]:
    """Return the folder of the features, and the seconds that they took."""
    (features,) = choose_sets([name], EXCERPT, dtype=dtype)
    start = perf_counter()
    with open_extraction(collection, features, EXCERPT, out) as run, Workers(jobs) as workers:
        assert run.run(workers) is not None
    return out / name, perf_counter() - start


def best(function: Callable[[], object]) -> float:
    """Return the seconds of the fastest round."""
    seconds = []
    for _ in range(ROUNDS):
        start = perf_counter()
        function()
        seconds.append(perf_counter() - start)
    return min(seconds)


def write_csv(path: Path, rows: npt.NDArray[np.float32], shortest: bool) -> None:
    """Write one line a row."""
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        for row in rows:
            writer.writerow([str(value) for value in row] if shortest else row.tolist())


def load_csv(path: Path) -> npt.NDArray[np.float32]:
    """Read it with the fastest reader that NumPy has."""
    return np.loadtxt(path, dtype=np.float32, delimiter=",")


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--features", default="fma-windows")
    given = parser.parse_args()
    collection = collect(given.folder, given.copies)
    count = len(collection.recordings)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        contents = set()
        for jobs in range(1, count_cores() + 1):
            folder, seconds = extract(collection, given.features, out / f"{jobs}", jobs, "float32")
            contents.add((folder / "rows.npy").read_bytes())
            print(f"{jobs} processes: {count} recordings in {seconds:.1f} s")
        assert len(contents) == 1
        once = collect(given.folder, 1)
        folder, _ = extract(once, given.features, out / "once", count_cores(), "float32")
        half, _ = extract(once, given.features, out / "half", count_cores(), "float16")
        rows = np.array(read_table(folder).rows)
        rows = rows.reshape(len(rows), -1)
        print(f"{rows.shape[0]} rows of {rows.shape[1]}")
        sizes, times = {}, {}
        for shortest, kind in ((False, "CSV as read"), (True, "CSV shortest")):
            path = out / f"{shortest}.csv"
            write_csv(path, rows, shortest)
            sizes[kind] = path.stat().st_size
            times[kind] = best(lambda path=path: load_csv(path))  # type: ignore[misc]
        for place, kind in ((folder, "float32"), (half, "float16")):
            sizes[kind] = sum(file.stat().st_size for file in place.iterdir())
            times[kind] = best(lambda place=place: read_table(place).rows.sum())  # type: ignore[misc]
        for kind, size in sizes.items():
            print(
                f"{kind:<13}{size / 1e6:8.2f} MB {sizes['CSV as read'] / size:6.1f} x smaller"
                f" {times[kind] * 1e3:8.1f} ms {times['CSV as read'] / times[kind]:6.0f} x faster"
            )
        deviation = rows.std(0)
        error = np.abs(read_table(half).rows.reshape(rows.shape) - rows).max(0)
        error = error[deviation > 0] / deviation[deviation > 0]
        print(f"float16: error {np.median(error):.4f} (median column), {error.max():.4f} (worst)")


if __name__ == "__main__":
    main()
