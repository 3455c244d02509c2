"""From audio files to the 518 features, MERT's and OpenJMLA's embeddings, as many as there can be.

Part of gpu.py. Files of 60 s are synthesized, half FLAC, half MP3; their middle 30 s are decoded in
processes, resampled (by soxr for the features, else as `resample_to` does), and computed in batches
over tracks by threads, each of which sees one track through, as the worker's do.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from encoders import Model, best_of_turns, count_gflop, product, short_name

from reclass_plex.audio import resample
from reclass_plex.audio_gpu import resample_to
from reclass_plex.decoders import Decoders
from reclass_plex.encoders.batching import MOST_WINDOWS, Batched, Batcher, to_device
from reclass_plex.features import extract_fma_features
from reclass_plex.memory import budget_bytes, share_memory
from reclass_plex.records import Excerpt

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from audio_files import make_audio

FEATURE_RATE = 22_050  # Hz
FEATURE_TRACKS = 16  # of a batch of features: some 100 MB a track
FILES = 24
WAIT_SECONDS = 0.02  # for company


class Stopwatch:
    """Adds up what threads spend on what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        began = time.perf_counter()
        yield
        with self._lock:
            self.seconds[name] += time.perf_counter() - began


class Listener:
    """Sees tracks through, for any number of threads."""

    def __init__(
        self, decoders: Decoders, encoders: list[Batched], device: str, seconds: float
    ) -> None:
        self._decoders, self._encoders, self._device = decoders, encoders, device
        self._excerpt = Excerpt(seconds)
        self._features = Batcher(
            lambda rows: extract_fma_features(rows, FEATURE_RATE),
            most_rows=FEATURE_TRACKS,
            wait_seconds=WAIT_SECONDS,
        )
        self.watch = Stopwatch()

    def listen(self, path: Path) -> list[torch.Tensor]:
        """Return the features (1, 518) of a file, and each encoder's embeddings."""
        with self.watch.time("decode"):
            waveform = self._decoders.decode(path, self._excerpt)
        with self.watch.time("features"), self._features.expected():
            samples = torch.from_numpy(resample(waveform, FEATURE_RATE).samples)
            heard = [self._features(to_device(samples[None], self._device))]
        for encoder in self._encoders:
            with self.watch.time("resample"):
                windows = encoder.cut(resample_to(waveform, encoder.rate, self._device))
            with self.watch.time(encoder.name), encoder.expected():
                heard.append(encoder.encode(windows))
        return heard


def measure_tracks(
    models: tuple[Model, Model],
    dtype: torch.dtype,
    device: str,
    options: argparse.Namespace,
    tell: Callable[..., None],
) -> None:
    """Measure tracks a second, and where their time goes."""
    small = options.cpu
    share = share_memory(
        budget_bytes(device), [model.footprint(dtype) for model in models], MOST_WINDOWS
    )
    encoders = [
        Batched(model.make(device, dtype), most_windows=most, wait_seconds=WAIT_SECONDS)
        for model, most in zip(models, share.most_windows, strict=True)
    ]
    gflop = sum(count_gflop(model) for model in models)
    multiply, multiplied = product(dtype, device, 64 if small else 8192)
    peak = multiplied / best_of_turns(5, device, multiply)[0]
    decoders = Decoders(options.decoders)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(Path(folder), 4 if small else FILES, 6.0 if small else 60.0)
            listener = Listener(decoders, encoders, device, 3.0 if small else 30.0)
            run(listener, files, options.threads, 0.0)  # processes start, kernels are loaded
            listener.watch = Stopwatch()
            began = time.perf_counter()
            tracks = run(listener, files, options.threads, options.seconds)
            took = time.perf_counter() - began
    finally:
        decoders.close()
    spent = listener.watch.seconds
    tell(
        precision=short_name(dtype),
        decoders=options.decoders,
        threads=options.threads,
        most_windows=" ".join(str(encoder.most_windows) for encoder in encoders),
        tracks=tracks,
        tracks_a_second=tracks / took,
        tracks_an_hour=tracks / took * 3600,
        share_of_peak=tracks / took * gflop / peak,
        **{f"{name}_ms": seconds / tracks * 1e3 for name, seconds in spent.items()},
    )


def run(listener: Listener, files: list[Path], threads: int, seconds: float) -> int:
    """Listen in threads for that long, once at least in each; return how many tracks that were."""
    until = time.perf_counter() + seconds
    paths = itertools.cycle(files)
    lock = threading.Lock()

    def work(_: int) -> int:
        torch.set_num_threads(1)
        for count in itertools.count(1):
            with lock:
                path = next(paths)
            heard = listener.listen(path)
            assert all(bool(each.isfinite().all()) for each in heard)
            if time.perf_counter() > until:
                return count
        raise AssertionError("never reached")

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)))


def make_files(folder: Path, count: int, seconds: float) -> list[Path]:
    """Write pieces of synthetic music, FLAC and MP3 in turn."""
    make = partial(_make_file, folder, seconds)
    if count <= 4:
        return [make(number) for number in range(count)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # no fork beside threads
        return list(pool.map(make, range(count)))


def _make_file(folder: Path, seconds: float, number: int) -> Path:
    kind = ("flac", "mp3")[number % 2]
    return make_audio(folder, kind, seconds=seconds, name=f"{number}.{kind}", seed=number)
