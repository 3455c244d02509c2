"""How many tracks an hour `reclass-plex tag` does here, and how long a known library takes.

    python benchmarks/pipeline.py [--tracks 60] [--seconds 220] [--known 10000]

Tracks of an album's usual length are made from the demo music: repeated, each from another point
on, so that every track is another piece of audio. MP3, AAC and Opus keep their encoded packets; the
Vorbis pieces become stereo FLAC. The command runs as a user runs it, its start included.
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
from pathlib import Path

import av
import numpy as np

DEMO = Path(__file__).parent.parent / "demo"
COMMAND = str(Path(sys.executable).with_name("reclass-plex"))
REMUXABLE = {".mp3": "mp3", ".m4a": "ipod", ".opus": "ogg"}


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


def run(folder: Path, state: Path) -> tuple[float, list[dict[str, object]]]:
    """Run `tag` and return its seconds and results."""
    started = time.perf_counter()
    done = subprocess.run(
        [COMMAND, "tag", str(folder), "--yes", "--json"],
        env=os.environ | {"XDG_STATE_HOME": str(state), "XDG_CONFIG_HOME": str(state)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - started, [json.loads(line) for line in done.stdout.splitlines()]


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tracks", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--known", type=int, default=10_000)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder, state = Path(scratch, "music"), Path(scratch, "state")
        size = make_library(folder, options.tracks, options.seconds)
        seconds, results = run(folder, state)
        rate = options.tracks / seconds * 3600
        stages = Counter(str(result.get("decided_by")) for result in results)
        print(
            f"tag: {options.tracks} tracks of {options.seconds:.0f} s, {size / 1e6:.0f} MB:"
            f" {seconds:.1f} s, {rate:,.0f} tracks an hour, start included"
        )
        print(f"     written {sum(bool(r['written']) for r in results)}, decided by {dict(stages)}")
        seconds, _ = run(folder, state)
        print(f"tag again: {seconds:.2f} s")
    with tempfile.TemporaryDirectory() as scratch:
        folder, state = Path(scratch, "music"), Path(scratch, "state")
        known_library(folder, state, options.known)
        seconds, results = run(folder, state)
        print(f"{len(results):,} known files: {seconds:.2f} s")


if __name__ == "__main__":
    main()
