"""How fast the 518 FMA features are, beside the librosa reference of the tests.

    .venv/bin/python benchmarks/features.py [FILE ...]

Default files: the demo's music. Both sides work on the same decoded samples (the middle 30 s),
both are warm, and take turns in one run; the best of the rounds counts. Figures are ratios
because machines differ. Three settings: all cores on one track, one thread (how the product
works, a track a thread), and two tracks at once with a thread each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from types import ModuleType
from typing import Any

import torch

from reclass_plex.audio import decode_excerpt
from reclass_plex.features import chroma, constant_q, extract_fma_features, fma, spectral, tuning
from reclass_plex.records import Excerpt, Waveform

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # fma_reference, imported late: it loads librosa

ROUNDS = 5
PAUSE_SECONDS = 0.15  # librosa's threads spin on after their work, and would hold a core of ours

# What belongs together: librosa's parts, and the functions here that do their work. librosa
# estimates the tunings inside its chroma functions, so all that is tuned is one group.
CHROMA = ("constant-Q", "chroma of constant-Q", "chroma_stft")
SHAPES = ("rmse", "spectral_centroid", "spectral_bandwidth", "spectral_rolloff")
GROUPS: tuple[tuple[str, tuple[str, ...], tuple[tuple[ModuleType, str], ...]], ...] = (
    ("STFT", ("STFT",), ((spectral, "power_spectrum"),)),
    (
        "chroma_stft, chroma_cqt, chroma_cens, tonnetz",
        CHROMA,
        (
            (tuning, "find_peaks"),
            (tuning, "estimate_tunings"),
            (fma, "_chroma_stft"),
            (constant_q, "constant_q_chroma"),
            (chroma, "energy_normalised"),
            (chroma, "tonal_centroids"),
        ),
    ),
    ("rmse, centroid, bandwidth, rolloff", SHAPES, ((spectral, "shape_series"),)),
    ("spectral_contrast", ("spectral_contrast",), ((spectral, "contrast_extremes"),)),
    ("mfcc", ("mfcc",), ((spectral, "mel_levels"), (spectral, "mfcc"))),
    ("zcr", ("zcr",), ((spectral, "zero_crossing_rate"),)),
    ("statistics", ("statistics",), ((fma, "summarise"),)),
)


@contextmanager
def timed_functions(watch: dict[str, float]) -> Iterator[None]:
    """Add the seconds that each function of `GROUPS` takes to `watch`, under the group's name."""

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            since = perf_counter()
            result = function(*arguments, **options)
            watch[name] = watch.get(name, 0.0) + perf_counter() - since
            return result

        return call

    originals = [
        (module, name, getattr(module, name), group)
        for group, _, functions in GROUPS
        for module, name in functions
    ]
    for module, name, function, group in originals:
        setattr(module, name, timed(function, group))
    try:
        yield
    finally:
        for module, name, function, _ in originals:
            setattr(module, name, function)


def ours(music: Waveform) -> None:
    """Extract with this package."""
    extract_fma_features(torch.from_numpy(music.samples)[None], music.rate)


def reference(music: Waveform) -> None:
    """Extract with librosa."""
    from fma_reference import reference_features

    reference_features(music.samples, music.rate)


def best_of_turns(*calls: Callable[[], object]) -> list[float]:
    """Return the least seconds of each call over `ROUNDS` rounds, after one to warm up."""
    best = [float("inf")] * len(calls)
    for turn in range(ROUNDS + 1):
        for index, call in enumerate(calls):
            sleep(PAUSE_SECONDS)
            since = perf_counter()
            call()
            if turn:
                best[index] = min(best[index], perf_counter() - since)
    return best


def print_groups(music: Waveform) -> None:
    """Print seconds and ratio for each group of series, one thread."""
    from fma_reference import Stopwatch, reference_features

    theirs: dict[str, float] = {}
    mine: dict[str, float] = {}
    for _ in range(ROUNDS + 1):
        stopwatch, watch = Stopwatch(), dict[str, float]()
        reference_features(music.samples, music.rate, watch=stopwatch)
        with timed_functions(watch):
            ours(music)
        for part, seconds in stopwatch.seconds.items():
            theirs[part] = min(theirs.get(part, seconds), seconds)
        for part, seconds in watch.items():
            mine[part] = min(mine.get(part, seconds), seconds)
    print(f"  {'series':<48}{'librosa':>10}{'ours':>10}{'ratio':>8}")
    for group, parts, _ in GROUPS:
        theirs_sum = sum(theirs[part] for part in parts)
        line = f"  {group:<48}{theirs_sum * 1e3:>7.1f} ms{mine[group] * 1e3:>7.1f} ms"
        print(f"{line}{theirs_sum / mine[group]:>8.1f}")


def print_totals(music: Waveform) -> None:
    """Print seconds and ratio of the whole, in three settings."""
    cores = os.cpu_count() or 1
    for threads in sorted({cores, 1}, reverse=True):
        torch.set_num_threads(threads)
        slow, fast = best_of_turns(lambda: reference(music), lambda: ours(music))
        print_total(f"total, {threads} thread(s)", slow, fast)
    with ThreadPoolExecutor(2) as pool:
        slow, fast = best_of_turns(
            lambda: reference(music), lambda: list(pool.map(ours, (music, music)))
        )
    print_total("total a track, two tracks at once", slow, fast / 2)


def print_total(name: str, slow: float, fast: float) -> None:
    """Print one line of the totals."""
    print(f"  {name:<48}{slow * 1e3:>7.1f} ms{fast * 1e3:>7.1f} ms{slow / fast:>8.1f}")


def print_memory(path: Path) -> None:
    """Print the peak memory of one extraction, over a process with torch and the samples in it."""
    command = [sys.executable, __file__, "--memory", str(path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    print(f"  peak memory over the base: {shown.stdout.strip()} MiB")


def measure_memory(path: Path) -> None:
    """Extract once in this fresh process; print by how many MiB its peak grew."""
    music = decode_excerpt(path, Excerpt(30.0))
    samples = torch.from_numpy(music.samples)[None]
    base = peak_megabytes()
    extract_fma_features(samples, music.rate)
    print(peak_megabytes() - base)


def peak_megabytes() -> int:
    """Return the most memory this process image has held (getrusage would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main(arguments: list[str]) -> None:
    """Run the benchmark for the files named, or for the demo's."""
    if arguments[:1] == ["--memory"]:
        measure_memory(Path(arguments[1]))
        return
    demo = (path for path in (ROOT / "demo").iterdir() if path.suffix not in {".md", ".py"})
    for path in [Path(argument) for argument in arguments] or sorted(demo):
        music = decode_excerpt(path, Excerpt(30.0))
        print(f"{path.name}: {music.seconds:.1f} s at {music.rate} Hz")
        torch.set_num_threads(1)
        print_groups(music)
        print_totals(music)
        print_memory(path)


if __name__ == "__main__":
    main(sys.argv[1:])
