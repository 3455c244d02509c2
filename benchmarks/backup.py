"""What a backup, a check and a restore of a large store cost, and how long writers wait meanwhile.

    .venv/bin/python benchmarks/backup.py [--tracks 100000] [--folder DIR]

A real store with made-up tracks, verdicts, jobs, vectors of two encoders, and a change of every
fourth track whose delta has 300 bytes. Times are wall clock and, in brackets, the processor's.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from many_tracks import fill_store  # noqa: E402

from reclass_plex.backups import look_into, make_backup  # noqa: E402
from reclass_plex.restoring import choose_backup, hold_store, restore  # noqa: E402
from reclass_plex.store import Store  # noqa: E402
from reclass_plex.store_guard import find_faults, hold_daemon_lock  # noqa: E402
from reclass_plex.tables import embeddings, journal, tracks  # noqa: E402

CHUNK = 2000  # tracks a transaction


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tracks", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the store is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "store.sqlite"
        with timing(f"making {options.tracks:,} tracks"):
            fill(path, options.tracks)
        print(f"store: {path.stat().st_size / 1e6:.0f} MB")
        with timing("quick_check, as the daemon's start does"):
            assert find_faults(path) == []
        with timing("integrity_check"):
            assert find_faults(path, thorough=True) == []
        back_up_while_writing(path)
        with timing("looking into a backup (restore --list)"):
            look_into(choose_backup(path, None).path)
        with timing("restore, the replaced store whole"):
            put_back(path)
        with path.open("r+b") as file:
            file.write(b"\0" * 4096)
        with timing("restore, the replaced store without its first page"):
            put_back(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak memory of this process: {peak:.0f} MB")


@contextmanager
def timing(what: str) -> Iterator[None]:
    """Print how long something took."""
    began, used = time.perf_counter(), time.process_time()
    yield
    took, cpu = time.perf_counter() - began, time.process_time() - used
    print(f"{what}: {took:.2f} s ({cpu:.2f} s)", flush=True)


def fill(path: Path, count: int) -> None:
    """Make the store."""
    chance = random.Random(1)  # noqa: S311 - made-up content
    with Store.open(path) as store:
        fill_store(store, count)
        run = store.start_run("tag")
        for first in range(0, count, CHUNK):
            numbers = range(first, min(first + CHUNK, count))
            with store.transaction() as connection:
                known = connection.execute(
                    tracks.select().where(tracks.c.id.between(first + 1, first + CHUNK))
                ).all()
                changed = [row for row in known if row.written is not None]
                if changed:
                    connection.execute(
                        journal.insert(), [_change(run, row, chance) for row in changed]
                    )
                vectors = [
                    {"digest": f"{n:064x}", "encoder": encoder, "vector": chance.randbytes(400)}
                    for n in numbers
                    for encoder in ("musicnn-msd", "musicnn-mtt")
                ]
                connection.execute(embeddings.insert(), vectors)
        store.finish_run(run)


def _change(run: int, row: object, chance: random.Random) -> dict[str, object]:
    path: Path = row.path  # type: ignore[attr-defined]
    number: int = row.id  # type: ignore[attr-defined]
    return {
        "run_id": run,
        "track_id": number,
        "path": path,
        "temp_path": path.with_name(f".{path.stem[:40]}.reclass-0123abcd-0123.tmp.flac"),
        "digest": f"{number - 1:064x}",
        "state": "done",
        "before": (),
        "after": row.written,  # type: ignore[attr-defined]
        "before_hash": f"{number:032x}",
        "after_hash": f"{number + 1:032x}",
        "before_mtime_ns": number,
        "delta": chance.randbytes(300),
        "created": 1.7e9,
    }


def back_up_while_writing(path: Path) -> None:
    """Make a backup while another thread writes a row a transaction; print what that waited."""
    waits: list[float] = []
    done = threading.Event()

    def write() -> None:
        with Store.open(path) as store:
            while not done.is_set():
                began = time.perf_counter()
                store.finish_run(store.start_run("w"), keep_empty=False)
                waits.append(time.perf_counter() - began)

    thread = threading.Thread(target=write)
    thread.start()
    with timing("backup, checked and synced, beside a writer"):
        made = make_backup(path)
    done.set()
    thread.join()
    assert made is not None
    median, longest = (f"{1e3 * one:.0f} ms" for one in (statistics.median(waits), max(waits)))
    print(f"    meanwhile {len(waits)} pairs of transactions, median {median}, longest {longest}")


def put_back(path: Path) -> None:
    """Restore the newest backup."""
    with hold_daemon_lock(path), hold_store(path):
        done = restore(path, choose_backup(path, None))
    if done.replaced is not None:
        for suffix in ("", "-wal", "-shm"):
            done.replaced.with_name(done.replaced.name + suffix).unlink(missing_ok=True)


if __name__ == "__main__":
    os.nice(5)
    main()
