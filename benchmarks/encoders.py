"""The deep encoders, with random weights of the true shapes, on 30 s of audio.

For each: seconds a track, real-time factor (seconds of work a second of audio), tracks an hour, the
work counted by torch (GFLOP a track), the speed that makes, its share of the peak of a large matrix
product in the same precision measured in the same run, and memory: weights and the peak of a call.
MERT hears six windows of 5 s, OpenJMLA one of 30 s, CLAP three of 10 s. A time is the best of
several rounds, in which encoders and products take turns, from samples on the CPU to embeddings; on
a GPU with the batch given, and the time divided by it.

    python benchmarks/encoders.py [--device cpu|cuda] [--dtype float32|bfloat16|float16] [--batch N]
                                  [--threads N] [--rounds N] [--only NAME] [--compile]

Machines are shared and noisy: compare ratios within one run. Without --dtype, both float32 and what
`choose_dtype` picks are measured. CLAP needs transformers.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reclass_plex.encoders.clap import Clap
from reclass_plex.encoders.jmla import Jmla, VitConfig
from reclass_plex.encoders.mert import Mert, MertConfig
from reclass_plex.encoders.transformer import choose_dtype

SECONDS = 30.0  # of audio a track
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of the product that gives the peak
LARGE = MertConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    do_stable_layer_norm=True,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = (
    "mert-95m to layer 7",
    "mert-95m to layer 12",
    "mert-330m to layer 10",
    "mert-330m to layer 24",
    "jmla",
    "clap",
)


@dataclass(frozen=True)
class Run:
    """One encoder in one precision: what to time, how many tracks and GFLOP that is."""

    name: str
    dtype: torch.dtype
    call: Callable[[], object]
    tracks: int
    gflop: float  # a call
    megabytes: float  # of memory: the weights, and the peak of a call


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return weights that neither vanish nor overflow."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.02 + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def make_clap(device: str, dtype: torch.dtype) -> Clap:
    """Return CLAP in the sizes of larger_clap_music, without a tokenizer: no text is scored."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    audio = {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]}
    model = ClapModel(ClapConfig(audio_config=audio))
    extractor = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)
    return Clap(model, extractor, SimpleNamespace(), device=device, dtype=dtype)


def make(name: str, device: str, dtype: torch.dtype) -> Mert | Jmla | Clap:
    """Return an encoder by its name in `NAMES`, with random weights."""
    if name == "clap":
        return make_clap(device, dtype)
    if name == "jmla":
        vit = VitConfig()
        return Jmla(vit, random_tensors(vit.tensor_shapes()), device=device, dtype=dtype)
    model, _, layer = name.partition(" to layer ")
    config = MertConfig() if model == "mert-95m" else LARGE
    tensors = random_tensors(config.tensor_shapes())
    return Mert(config, tensors, (int(layer),), name=model, device=device, dtype=dtype)


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the time of one call, its work on the device included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def megabytes_in_use(call: Callable[[], object], device: str) -> float:
    """Return the peak of memory during a call, beyond what was in use before, in MB."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return float(torch.cuda.max_memory_allocated() - before) / 1e6
    if sys.platform == "linux":  # give back what making the weights took, or a call would reuse it
        ctypes.CDLL(None).malloc_trim(0)
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return float(highest - before) / 1e6


def prepare(name: str, dtype: torch.dtype, options: argparse.Namespace) -> Run:
    """Make an encoder, count its work and its memory."""
    device = str(options.device)
    encoder = make(name, device, dtype)
    samples = 0.1 * torch.randn(int(SECONDS * encoder.rate))
    windows = encoder.cut(samples).repeat(options.batch, 1)
    call = functools.partial(encoder.encode, windows)
    network = encoder.network if isinstance(encoder, Mert | Jmla) else encoder.model
    weights = sum(p.numel() * p.element_size() for p in network.parameters()) / 1e6
    peak = weights + megabytes_in_use(call, device)
    # The counter does not know every fused attention; the plain one is of the same work.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    if options.compile and isinstance(encoder, Mert | Jmla):
        encoder.network.compile()
        call()
    return Run(name, dtype, call, options.batch, counter.get_total_flops() / 1e9, peak)


def products(dtypes: list[torch.dtype], device: str) -> Iterator[Run]:
    """Yield a large matrix product for each precision: the measured peak."""
    size = MATRIX[device]
    for dtype in dtypes:
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        call = functools.partial(torch.matmul, matrix, matrix)
        call()
        yield Run("product", dtype, call, 1, 2 * size**3 / 1e9, 0.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=1, help="tracks a call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    picked = choose_dtype(options.device)
    dtypes = [DTYPES[options.dtype]] if options.dtype else list({torch.float32, picked})
    place = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{place}, {options.threads} threads, best of {options.rounds}, torch {torch.__version__}"
    )
    print(f"{options.batch} tracks of {SECONDS:.0f} s a call; choose_dtype: {picked}")
    peaks: dict[torch.dtype, float] = {}
    head = ("encoder", "precision", "s/track", "realtime", "tracks/h", "GFLOP", "GFLOP/s", "share")
    print("{:22} {:9} {:>8} {:>9} {:>9} {:>7} {:>8} {:>6} {:>7}".format(*head, "MB"))
    for name in options.only or NAMES:
        for dtype in dtypes:
            # One encoder at a time, beside the products: all of them together fill small cards.
            runs = [prepare(name, dtype, options), *products([dtype], options.device)]
            best = [float("inf")] * len(runs)
            for _ in range(options.rounds):
                for i, run in enumerate(runs):
                    best[i] = min(best[i], seconds(run.call, options.device))
            run = runs[0]
            peaks[dtype] = runs[1].gflop / best[1]
            track, speed = best[0] / run.tracks, run.gflop / best[0]
            print(
                f"{name:22} {str(dtype).removeprefix('torch.'):9} {track:8.3f} "
                f"{track / SECONDS:9.5f} {3600 / track:9,.0f} {run.gflop / run.tracks:7.0f} "
                f"{speed:8.0f} {speed / peaks[dtype]:6.2f} {run.megabytes:7.0f}",
                flush=True,
            )
            del run, runs
    for dtype, peak in peaks.items():
        print(f"matrix product, {dtype}: {peak:.0f} GFLOP/s in the last of these runs")


if __name__ == "__main__":
    main()
