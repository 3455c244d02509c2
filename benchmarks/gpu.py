"""How fast a GPU is with the deep encoders: by batch, by thread, and from file to embedding.

    python benchmarks/gpu.py [--parts encoders,threads,tracks] [--only NAME] [--batches 1,4,16,64]
                             [--dtype bfloat16] [--no-compile] [--rounds 7] [--seconds 15]
                             [--threads 64] [--decoders N] [--json]

Weights are random, in the true shapes. What is measured:
- encoders: windows that lie on the GPU to embeddings there, by tracks a batch, as written and by
  torch.compile. The share is that of a large matrix product in the same precision, with which the
  encoder takes turns; the best of several rounds counts. Memory is weights and the peak of a call,
  beside what `encoders.footprint` expects.
- threads: windows on the CPU to embeddings, by threads that share a `Batched` encoder.
- tracks: FLAC and MP3 files to the 518 features, MERT-95M and OpenJMLA; see gpu_tracks.py.

It prints Markdown, or with --json one object a line. Without a GPU it says so and exits with 2;
--cpu runs all of it on the CPU in tiny sizes, which measures nothing: the tests do that.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from encoders import (
    DTYPES,
    MATRIX,
    MODELS,
    SECONDS,
    AnyEncoder,
    ClapModel,
    JmlaModel,
    MertModel,
    Model,
    best_of_turns,
    count_gflop,
    megabytes_in_use,
    product,
    short_name,
    track_windows,
    wait,
    weight_bytes,
)
from gpu_tracks import measure_tracks

from reclass_plex.encoders.batching import MOST_WINDOWS, Batched, to_device
from reclass_plex.encoders.clap import Clap
from reclass_plex.encoders.compiling import CompiledNetwork, compiled
from reclass_plex.encoders.jmla import VitConfig
from reclass_plex.encoders.mert import MertConfig
from reclass_plex.encoders.transformer import choose_dtype
from reclass_plex.memory import free_bytes, windows_that_fit

PARTS = ("encoders", "threads", "tracks")
TINY: tuple[Model, ...] = (
    MertModel("mert-tiny", MertConfig(16, 1, 2, 24, (4,) * 7), 1),
    JmlaModel("jmla-tiny", VitConfig(16, 1, 2, 24)),
    ClapModel(
        "clap-tiny",
        {
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
        },
        {"vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
)


class Report:
    """Prints each row as soon as it is measured."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._part = ""
        self._columns: tuple[str, ...] = ()

    def start(self, part: str, title: str) -> None:
        """Begin a part."""
        self._part, self._columns = part, ()
        if not self._as_json:
            print(f"\n### {title}\n", flush=True)

    def row(self, **values: object) -> None:
        """Print one row; the first of a part brings the columns."""
        if self._as_json:
            print(json.dumps({"part": self._part, **values}), flush=True)
            return
        if not self._columns:
            self._columns = tuple(values)
            print("| " + " | ".join(name.replace("_", " ") for name in values) + " |")
            print("|" + "---|" * len(values))
        shown = [_shown(values.get(name, "")) for name in self._columns]
        print("| " + " | ".join(shown) + " |", flush=True)


def main() -> int:
    """Measure and print; return the exit status."""
    options = parse()
    if not options.cpu and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} finds none", file=sys.stderr)
        return 2
    device = "cpu" if options.cpu else "cuda"
    dtype = DTYPES[options.dtype] if options.dtype else choose_dtype(device)
    if options.cpu:
        dtype = torch.float32
    models = TINY if options.cpu else MODELS
    if unknown := set(options.only) - {model.name for model in models}:
        print(f"no encoder {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [model for model in models if not options.only or model.name in options.only]
    report = Report(options.json)
    tell_machine(report, device, dtype)
    if "encoders" in options.parts:
        report.start("encoders", "Encoders, by tracks a batch")
        for model in chosen:
            measure_encoder(model, dtype, device, options, report)
    if "threads" in options.parts:
        report.start("threads", "Threads that share an encoder")
        for model in chosen:
            if not isinstance(model, ClapModel):
                measure_threads(model, dtype, device, options, report)
    if "tracks" in options.parts:
        report.start("tracks", "From file to embeddings")
        pair = (models[0], models[1]) if options.cpu else (models[1], models[4])
        measure_tracks(pair, dtype, device, options, report.row)
    return 0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--parts", type=_parts, default=PARTS, help="of " + ",".join(PARTS))
    parser.add_argument("--only", action="append", default=[], help="an encoder's name")
    parser.add_argument("--batches", type=_numbers, default=(1, 2, 4, 8, 16, 32), help="tracks")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seconds", type=float, default=15, help="each run with threads")
    parser.add_argument("--threads", type=int, default=64, help="of the tracks")
    parser.add_argument("--decoders", type=int, default=max(1, (cores or 2) - 3))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes; measures nothing")
    return parser.parse_args()


def tell_machine(report: Report, device: str, dtype: torch.dtype) -> None:
    """Print where and when this is, and the peak."""
    size = MATRIX["cuda"] if device == "cuda" else 64
    multiply, gflop = product(dtype, device, size)
    fastest = best_of_turns(20, device, multiply)[0]
    report.start("machine", "Machine")
    report.row(
        date=time.strftime("%Y-%m-%d"),
        device=torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        torch=torch.__version__,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        precision=short_name(dtype),
        measured_peak_tflops=gflop / fastest / 1e3,
        free_gib=free_bytes(device) / 2**30,
    )


def measure_encoder(
    model: Model,
    dtype: torch.dtype,
    device: str,
    options: argparse.Namespace,
    report: Report,
) -> None:
    """Measure one encoder by batches, as written and compiled."""
    gflop, footprint = count_gflop(model), model.footprint(dtype)
    size = MATRIX["cuda"] if device == "cuda" else 64
    multiply, multiplied = product(dtype, device, size)
    for quick in (False, True) if options.compile else (False,):
        encoder = model.make(device, dtype)
        if quick and not compile_network(encoder):
            continue
        for tracks in options.batches:
            windows = to_device(track_windows(encoder, tracks), device)
            call = functools.partial(encoder.encode, windows)
            try:
                call()  # compiles, loads kernels
                megabytes = (weight_bytes(encoder) / 1e6) + megabytes_in_use(call, device)
                best, fastest = best_of_turns(options.rounds, device, call, multiply)
            except torch.cuda.OutOfMemoryError:
                report.row(encoder=model.name, compiled=quick, tracks=tracks, memory_mb="too much")
                torch.cuda.empty_cache()
                break
            network = encoder.model if isinstance(encoder, Clap) else encoder.network
            track = best / tracks
            report.row(
                encoder=model.name,
                compiled=isinstance(network, CompiledNetwork) and network.is_compiled,
                tracks=tracks,
                windows=len(windows),
                ms_a_track=track * 1e3,
                realtime_factor=track / SECONDS,
                tracks_an_hour=3600 / track,
                gflop_a_track=gflop,
                tflops=gflop / track / 1e3,
                share_of_peak=gflop / track / (multiplied / fastest),
                memory_mb=megabytes,
                expected_mb=(footprint.weights + footprint.window * len(windows)) / 1e6,
            )


def compile_network(encoder: AnyEncoder) -> bool:
    """Let it be compiled; return False for one that is not ours to compile."""
    if isinstance(encoder, Clap):
        return False
    if encoder.device == "cpu":  # the path, not the compiler
        encoder.network = CompiledNetwork(encoder.network, encoder.name, backend="eager")
    else:
        compiled(encoder)
    return True


def measure_threads(
    model: MertModel | JmlaModel,
    dtype: torch.dtype,
    device: str,
    options: argparse.Namespace,
    report: Report,
) -> None:
    """Measure threads that each bring a track's windows from the CPU, again and again."""
    encoder = model.make(device, dtype)
    footprint, gflop = model.footprint(dtype), count_gflop(model)
    multiply, multiplied = product(dtype, device, MATRIX["cuda"] if device == "cuda" else 64)
    most = windows_that_fit(free_bytes(device), footprint.window, MOST_WINDOWS)
    peak = multiplied / best_of_turns(options.rounds, device, multiply)[0]
    batches: list[int] = []
    encoder.network.register_forward_hook(lambda network, given, made: batches.append(len(made)))
    for threads in sorted({1, min(8, options.threads), options.threads}):
        batched = Batched(encoder, most_windows=most, wait_seconds=0.01)
        windows = track_windows(encoder, 1)
        batched.encode(windows)
        batches.clear()
        began = time.perf_counter()
        until = began + options.seconds
        with ThreadPoolExecutor(threads) as pool:
            work = [pool.submit(bring, batched, windows, until) for _ in range(threads)]
            tracks = sum(each.result() for each in work)
        wait(device)
        rate = tracks / (time.perf_counter() - began)
        report.row(
            encoder=model.name,
            threads=threads,
            most_windows=most,
            windows_a_batch=sum(batches) / len(batches),
            tracks_a_second=rate,
            share_of_peak=rate * gflop / peak,
        )


def bring(batched: Batched, windows: torch.Tensor, until: float) -> int:
    """Encode the same windows until it is time, once at least; return how often."""
    count = 0
    with batched.expected():
        while not count or time.perf_counter() < until:
            batched.encode(windows)
            count += 1
    return count


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _parts(text: str) -> Sequence[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}")
    return parts


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("batches have one track or more")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
