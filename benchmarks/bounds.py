"""The least that a track's parts take, each alone in its leanest form: `python bounds.py FILE ...`

One thread, warm, the better of two rounds, seconds of processor a track. What the product does
more than that is its own cost: opening twice, journal, checks by a second reader, keeping order.
Prints JSON: {part: seconds}.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import torch

from reclass_plex.audio import decode_excerpt, resample
from reclass_plex.config import Config
from reclass_plex.encoders.musicnn import RATE, load_musicnn, log_mel_patches, spread_indices
from reclass_plex.ensemble import Ensemble
from reclass_plex.evidence import cut_windows
from reclass_plex.features import extract_fma_features
from reclass_plex.records import Embedding, GenreScore, Verdict, Waveform
from reclass_plex.store import Store

ROUNDS = 2
BLOCK = 1 << 20


class Ledger:
    """Seconds of processor of each part, this round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def book(self, part: str) -> Iterator[None]:
        """Book what this thread works."""
        began = time.thread_time()
        yield
        self.seconds[part] += time.thread_time() - began


def hear(path: Path, ledger: Ledger, ensemble: Ensemble) -> None:
    """What every track goes through, and what only the later stages need."""
    with ledger.book("digest"):
        hash_bytes(path)
    wanted = ensemble.excerpt.seconds or 30.0
    with ledger.book("decode"):
        decode(path, wanted)
    waveform = decode_excerpt(path, ensemble.excerpt)
    with ledger.book("resample"):
        at_16k = resample(waveform, RATE)
    with ledger.book("log-mel"):
        patches = log_mel_patches(torch.from_numpy(at_16k.samples))
    stages = {stage.name: stage for stage in ensemble.spec.stages}
    few = [stage for stage in stages.values() if stage.features == "musicnn-msd"]
    full = [stage for stage in stages.values() if stage.features == "musicnn"]
    fma = [stage for stage in stages.values() if stage.features == "fma518"]
    for stage in few:
        with ledger.book(stage.name):
            load_musicnn("msd").encode(patches[list(spread_indices(len(patches), stage.windows))])
    for stage in fma:
        with ledger.book(stage.name):
            extract_fma_features(fma_windows(waveform, stage.rate, stage), stage.rate)
    for stage in full:
        chosen = list(spread_indices(len(patches), stage.windows))
        heard = {place for one in few for place in spread_indices(len(patches), one.windows)}
        with ledger.book(stage.name):
            if rest := [place for place in chosen if place not in heard]:
                load_musicnn("msd").encode(patches[rest])
            load_musicnn("mtt").encode(patches[chosen])


def fma_windows(waveform: Waveform, rate: int, stage: object) -> torch.Tensor:
    """Return the windows that a stage of FMA features hears."""
    seconds, count = stage.window_seconds, stage.windows  # type: ignore[attr-defined]
    samples = resample(waveform, rate).samples
    return torch.from_numpy(cut_windows(samples, round(seconds * rate), count))


def hash_bytes(path: Path) -> None:
    """Read a file once, hashing."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)


def decode(path: Path, seconds: float) -> None:
    """Decode the middle of a file, and leave the samples where FFmpeg has them."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        middle = max(0.0, (container.duration / av.time_base - seconds) / 2)
        container.seek(int(middle * av.time_base))
        left = seconds
        for packet in container.demux(stream):
            with suppress(av.FFmpegError):
                left -= sum(frame.samples / frame.sample_rate for frame in packet.decode())
            if left <= 0:
                return


def write(path: Path, ledger: Ledger) -> None:
    """Copy a file, read the copy, rename it. To sync takes no processor to speak of."""
    copy = path.with_suffix(".copy")
    with ledger.book("write"):
        with path.open("rb") as source, copy.open("wb") as target:
            os.copy_file_range(source.fileno(), target.fileno(), path.stat().st_size)
            os.fsync(target.fileno())
        hash_bytes(copy)
        copy.replace(path.with_suffix(".written"))
    path.with_suffix(".written").unlink()


def record(store: Store, number: int, ledger: Ledger) -> None:
    """Keep one track's verdict and row, in two transactions."""
    digest = f"{number:032x}"
    scores = tuple(GenreScore(f"Genre {one}", 0.05) for one in range(18))
    verdict = Verdict("default", scores, "fma518", (), 0.1, None)
    heard = Embedding("musicnn-msd", np.zeros(200, np.float32))
    with ledger.book("database"):
        store.save_verdict(digest, "models", verdict, (heard,))
        store.save_track(Path(f"/music/{number}.flac"), 1, 1, digest=digest)


def main() -> None:
    """Measure all parts on the files that are named."""
    torch.set_num_threads(1)
    files = [Path(name) for name in sys.argv[1:]]
    ensemble = Ensemble.from_config(Config())
    ensemble.load()
    hear(files[0], Ledger(), ensemble)  # to warm up
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, Store.open(Path(scratch) / "s.sqlite") as store:
        for turn in range(ROUNDS):
            ledger = Ledger()
            for number, path in enumerate(files):
                hear(path, ledger, ensemble)
                write(path, ledger)
                record(store, turn * len(files) + number, ledger)
            for part, seconds in ledger.seconds.items():
                best[part] = min(best.get(part, seconds), seconds)
    print(json.dumps({part: seconds / len(files) for part, seconds in best.items()}))


if __name__ == "__main__":
    main()
