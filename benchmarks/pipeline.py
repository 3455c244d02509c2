"""How many tracks an hour `reclass-plex tag` does here, where the time goes, and what it could be.

    python benchmarks/pipeline.py [--tracks 60] [--seconds 220] [--known 10000] [--parts 30]
                                  [--seed 8]

Tracks of an album's usual length are made from the demo music: repeated, each from another point
on, so that every track is another piece of audio. MP3, AAC and Opus keep their encoded packets; the
Vorbis pieces become stereo FLAC. The command runs as a user runs it, its start included.

Beside it, in the same run on the same machine: time a part (`parts.py`, over `--parts` further
tracks), the least that the parts take (`bounds.py`), and the way that the project began with
(`seed_way.py`, half of its `--seed` tracks before and half after). Of a machine that others use,
too, read the processor's seconds and the ratios of these.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

DEMO = Path(__file__).parent.parent / "demo"
COMMAND = str(Path(sys.executable).with_name("reclass-plex"))
HERE = Path(__file__).parent
REMUXABLE = {".mp3": "mp3", ".m4a": "ipod", ".opus": "ogg"}
BLOCK = 1 << 20
DISK_BYTES = 256 << 20  # written to learn how fast the disk is


def encode_flac(source: Path, target: Path, seconds: float, generator: random.Random) -> None:
    """Write a FLAC of `seconds` from the audio of `source`, begun anywhere and repeated."""
    with av.open(str(source)) as reader:
        resampler = av.AudioResampler(format="s16", layout="stereo", rate=44100)
        frames = [out for frame in reader.decode(audio=0) for out in resampler.resample(frame)]
        audio = np.concatenate([frame.to_ndarray()[0] for frame in frames]).reshape(-1, 2)
    audio = np.roll(audio, generator.randrange(len(audio)), axis=0)
    audio = np.resize(audio, (round(seconds * 44100), 2))
    with av.open(str(target), "w", format="flac") as writer:
        stream = writer.add_stream("flac", rate=44100, layout="stereo")
        for start in range(0, len(audio), 1 << 20):
            block = np.ascontiguousarray(audio[start : start + (1 << 20)]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="stereo")
            frame.rate = 44100
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))


def make_track(source: Path, target: Path, seconds: float, generator: random.Random) -> None:
    """Write a track of `seconds` from the packets of `source`, begun anywhere and repeated."""
    if source.suffix == ".ogg":
        encode_flac(source, target, seconds, generator)
        return
    with av.open(str(source)) as reader:
        stream = reader.streams.audio[0]
        packets = [packet for packet in reader.demux(stream) if packet.size]
        first = generator.randrange(len(packets))
        with av.open(str(target), "w", format=REMUXABLE[source.suffix]) as writer:
            copy = writer.add_stream_from_template(stream)
            time_base = float(stream.time_base or 1)
            at = 0
            index = first
            while at * time_base < seconds:
                packet = packets[index % len(packets)]
                packet.stream = copy
                packet.pts = packet.dts = at
                packet.time_base = stream.time_base
                at += packet.duration or 1
                writer.mux(packet)
                index += 1


def make_library(folder: Path, count: int, seconds: float) -> int:
    """Write `count` tracks, a dozen an album; return their bytes."""
    generator = random.Random(1)  # noqa: S311 - the same library every time
    sources = sorted(path for path in DEMO.iterdir() if path.suffix in {*REMUXABLE, ".ogg"})
    size = 0
    for number in range(count):
        source = sources[number % len(sources)]
        album = folder / f"Album {number // 12:04}"
        album.mkdir(parents=True, exist_ok=True)
        target = album / f"{number:05} {source.stem}{source.suffix.replace('.ogg', '.flac')}"
        make_track(source, target, seconds, generator)
        size += target.stat().st_size
    return size


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds, and processor seconds and peak memory of its processes."""

    seconds: float
    cpu: float
    peak: int
    lines: tuple[str, ...]

    @property
    def results(self) -> list[dict[str, Any]]:
        """What it printed, as JSON."""
        return [json.loads(line) for line in self.lines]


def run_command(command: Sequence[str], state: Path) -> Run:
    """Run a command to its end. Fails if it does."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            env=os.environ | {"XDG_STATE_HOME": str(state), "XDG_CONFIG_HOME": str(state)},
            stdout=said,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        assert process.returncode == 0, (command, process.returncode)
        said.seek(0)
        lines = tuple(said.read().splitlines())
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, lines)


def run(folder: Path, state: Path) -> Run:
    """Run `tag` over a folder."""
    return run_command([COMMAND, "tag", str(folder), "--yes", "--json"], state)


def script(name: str, *arguments: str | Path, state: Path) -> Run:
    """Run one of the scripts beside this one."""
    return run_command([sys.executable, str(HERE / name), *map(str, arguments)], state)


def known_library(folder: Path, state: Path, count: int) -> None:
    """Make the store know `count` files, as one run over one file of them made it know that one."""
    folder.mkdir()
    source = next(path for path in DEMO.iterdir() if path.suffix == ".opus")
    first = folder / "00000.opus"
    shutil.copy(source, first)
    run(folder, state)
    tagged = first.read_bytes()
    store = sqlite3.connect(state / "reclass-plex" / "store.sqlite")
    columns = "size, mtime_ns, digest, genres, album, written, undone"
    row = store.execute(f"SELECT {columns} FROM tracks").fetchone()  # noqa: S608 - our own names
    for number in range(1, count):
        path = folder / f"Album {number // 12:04}" / f"{number:05}.opus"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tagged[:64])  # nobody will look into it
        status = path.stat()
        values = (os.fsencode(path), status.st_size, status.st_mtime_ns)
        store.execute(
            f"INSERT INTO tracks (path, {columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (*values, *row[2:]),
        )
    store.commit()
    store.close()


# Beside the run: its parts, their bounds, the seed's way


def show_parts(folder: Path, state: Path, tracks: int) -> None:
    """Run `tag` once more with clocks around its parts, and print what each took."""
    out = state.with_name("parts.json")
    done = script("parts.py", out, "tag", folder, "--yes", "--json", state=state)
    measured = json.loads(out.read_text())
    print(f"parts, ms a track over {tracks} tracks (of the processor; that passed; calls):")
    total = 0.0
    for part, took in measured["parts"].items():
        total += took["cpu"]
        per = [took[key] / tracks * 1e3 for key in ("cpu", "wall")]
        print(f"  {part:22}{per[0]:8.1f}{per[1]:8.1f}{took['calls'] / tracks:7.1f}")
    rest = done.cpu - measured["start"] - total
    print(f"  {'start, once':22}{measured['start'] * 1e3:8.1f}")
    print(f"  {'all else':22}{rest / tracks * 1e3:8.1f}   of {done.cpu / tracks * 1e3:.1f}")
    wanted = measured["wanted"] / measured["seconds"] / count_cores()
    print(f"  cores wanted at once, whether given or not: {wanted:.0%} of {count_cores()}")


def show_bounds(samples: Iterable[Path], state: Path, done: Run, size: float) -> None:
    """Print the least that a track takes, and which part of that rate the run reached."""
    found = script("bounds.py", *samples, state=state)
    least: dict[str, float] = json.loads(found.lines[-1])
    results = done.results
    count = len(results)
    reached = {
        "fma518": sum(result.get("decided_by") != "musicnn-few" for result in results) / count,
        "musicnn-full": sum(r.get("decided_by") == "musicnn-full" for r in results) / count,
        "write": sum(bool(result["written"]) for result in results) / count,
    }
    print("least, ms of processor a track (each part alone, one thread, times how many reach it):")
    cpu = 0.0
    for part, seconds in least.items():
        share = reached.get(part, 1.0)
        cpu += seconds * share
        print(f"  {part:22}{seconds * share * 1e3:8.1f}   ({seconds * 1e3:.1f} x {share:.0%})")
    read, written = disk_speed(state.parent)
    disk = size / read + size * reached["write"] / written
    cores = count_cores()
    bounds = {f"{cores} cores": cpu / cores, "disk": disk}
    for name, seconds in bounds.items():
        print(f"  {name:22}{seconds * 1e3:8.1f} ms a track: {3600 / seconds:,.0f} tracks an hour")
    slowest = max(bounds, key=lambda name: bounds[name])
    share = bounds[slowest] * count / done.seconds
    print(
        f"  the bound is set by the {slowest}: {share:.0%} of it reached by the clock,"
        f" {cpu * count / done.cpu:.0%} by the processor's seconds"
    )


def disk_speed(folder: Path) -> tuple[float, float]:
    """Return bytes a second read and written, whole files, in order."""
    path = folder / "speed"
    block = os.urandom(BLOCK)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(DISK_BYTES // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    written = time.perf_counter() - began
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while file.read(BLOCK):
            pass
    read = time.perf_counter() - began
    path.unlink()
    return DISK_BYTES / read, DISK_BYTES / written


def seed_way(samples: Sequence[Path], state: Path) -> tuple[Run, dict[str, Any]]:
    """Run the seed's way over some tracks."""
    done = script("seed_way.py", *samples, state=state)
    return done, json.loads(done.lines[-1])


def show_seed(runs: Iterable[tuple[Run, dict[str, Any]]], done: Run, tracks: int) -> None:
    """Print how many times as fast the run was, by the clock and by the processor's seconds."""
    whole = [run for run, _ in runs]
    # Of each run's tracks but its first, for which librosa compiles: what a long run tends to.
    warm = [one for _, said in runs for one in said["tracks"][1:]]
    count = sum(len(said["tracks"]) for _, said in runs)
    for name, seconds, cpu in (
        ("whole runs", sum(r.seconds for r in whole) / count, sum(r.cpu for r in whole) / count),
        (
            "start and first track left out",
            *(sum(one[k] for one in warm) / len(warm) for k in (0, 1)),
        ),
    ):
        print(
            f"seed's way, {name}: {seconds:.2f} s a track; tag is"
            f" {seconds / (done.seconds / tracks):.1f} times as fast by the clock,"
            f" {cpu / (done.cpu / tracks):.1f} by the processor's seconds"
        )


def count_cores() -> int:
    """Return the cores that we may use."""
    return len(os.sched_getaffinity(0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tracks", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--known", type=int, default=10_000)
    parser.add_argument(
        "--parts", type=int, default=30, help="tracks; 0: leave parts and bounds out"
    )
    parser.add_argument("--seed", type=int, default=8, help="tracks; 0: leave the seed's way out")
    options = parser.parse_args()
    cores = count_cores()
    print(f"{platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d')}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, state = Path(scratch, "music"), Path(scratch, "state")
        size = make_library(folder, options.tracks, options.seconds)
        samples = sorted(folder.glob("*/*"))
        # librosa reads no AAC without a program beside it, and does not like our Opus.
        readable = [path for path in samples if path.suffix in {".flac", ".mp3"}]
        half = options.seed // 2
        seeds = [seed_way(readable[:half], state)] if half else []
        done = run(folder, state)
        stages = Counter(str(result.get("decided_by")) for result in done.results)
        print(
            f"tag: {options.tracks} tracks of {options.seconds:.0f} s, {size / 1e6:.0f} MB:"
            f" {done.seconds:.1f} s, {options.tracks / done.seconds * 3600:,.0f} tracks an hour,"
            f" start included\n     {done.cpu / done.seconds / cores:.0%} of {cores} cores,"
            f" {done.cpu / options.tracks * 1e3:.0f} ms of processor a track (so at most"
            f" {cores * 3600 * options.tracks / done.cpu:,.0f} an hour),"
            f" peak {done.peak / 1e6:.0f} MB"
        )
        written = sum(bool(result["written"]) for result in done.results)
        print(f"     written {written}, decided by {dict(stages)}", flush=True)
        if half:
            seeds.append(seed_way(readable[half : 2 * half], state))
            show_seed(seeds, done, options.tracks)
        again = run(folder, state)
        print(f"tag again: {again.seconds:.2f} s", flush=True)
        if options.parts:
            show_bounds(samples[:7], state, done, size / options.tracks)
            shutil.rmtree(folder)
            shutil.rmtree(state)
            make_library(folder, options.parts, options.seconds)
            show_parts(folder, state, options.parts)
    if options.known:
        with tempfile.TemporaryDirectory() as scratch:
            folder, state = Path(scratch, "music"), Path(scratch, "state")
            known_library(folder, state, options.known)
            done = run(folder, state)
            print(f"{len(done.lines):,} known files: {done.seconds:.2f} s")


if __name__ == "__main__":
    main()
