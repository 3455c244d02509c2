"""The deep encoders, with random weights of the true shapes, on 30 s of audio.

For each: seconds a track, real-time factor (seconds of work a second of audio), tracks an hour, the
work counted by torch (GFLOP a track), the speed that makes, its share of the peak of a large matrix
product in the same precision measured in the same run, and memory: weights and the peak of a call.
MERT hears six windows of 5 s, OpenJMLA one of 30 s, CLAP three of 10 s. A time is the best of
several rounds, in which encoder and product take turns, from samples on the CPU to embeddings.
`gpu.py` measures batches, threads and whole tracks on a GPU.

    python benchmarks/encoders.py [--device cpu|cuda] [--dtype float32|bfloat16|float16] [--batch N]
                                  [--threads N] [--rounds N] [--only NAME]

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
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from reclass_plex.encoders import jmla
from reclass_plex.encoders.clap import Clap
from reclass_plex.encoders.footprint import clap_footprint, jmla_footprint, mert_footprint
from reclass_plex.encoders.jmla import Jmla, JmlaNetwork, VitConfig
from reclass_plex.encoders.mert import Mert, MertConfig, MertNetwork
from reclass_plex.encoders.transformer import choose_dtype
from reclass_plex.memory import Footprint

SECONDS = 30.0  # of audio a track
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of the product that gives the peak
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE = MertConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    do_stable_layer_norm=True,
)
AnyEncoder = Mert | Jmla | Clap


@dataclass(frozen=True)
class Rehearsal:
    """A network on torch's meta device, which computes nothing: its work can be counted there."""

    network: torch.nn.Module
    call: Callable[[], object]  # on two windows: batches have work of their own, copies
    times: float  # that it is called for a track


@dataclass(frozen=True)
class MertModel:
    """MERT of some size, computed up to `layer`."""

    name: str
    config: MertConfig
    layer: int

    def make(self, device: str, dtype: torch.dtype) -> Mert:
        """Return it with random weights."""
        tensors = random_tensors(self.config.tensor_shapes())
        name = self.name.partition(" ")[0]
        return Mert(self.config, tensors, (self.layer,), name=name, device=device, dtype=dtype)

    def footprint(self, dtype: torch.dtype) -> Footprint:
        """Return the memory it is estimated to take."""
        return mert_footprint(self.config, (self.layer,), dtype)

    def rehearse(self) -> Rehearsal:
        """Return it without values, on the meta device."""
        with torch.device("meta"):
            network = MertNetwork(self.config, (self.layer,))
            windows = torch.empty(2, round(Mert.rate * Mert.window_seconds))
        return Rehearsal(network, lambda: network(windows), SECONDS / Mert.window_seconds / 2)


@dataclass(frozen=True)
class JmlaModel:
    """OpenJMLA's backbone of some size."""

    name: str
    config: VitConfig

    def make(self, device: str, dtype: torch.dtype) -> Jmla:
        """Return it with random weights."""
        tensors = random_tensors(self.config.tensor_shapes())
        return Jmla(self.config, tensors, device=device, dtype=dtype)

    def footprint(self, dtype: torch.dtype) -> Footprint:
        """Return the memory it is estimated to take."""
        return jmla_footprint(self.config, dtype)

    def rehearse(self) -> Rehearsal:
        """Return it without values, on the meta device."""
        with torch.device("meta"):
            network = JmlaNetwork(self.config)
            windows = torch.empty(2, round(SECONDS * Jmla.rate))
        return Rehearsal(network, lambda: network(jmla.log_mel(windows)), 1 / 2)


@dataclass(frozen=True)
class ClapModel:
    """CLAP of some size, without a tokenizer: no text is scored."""

    name: str
    audio: dict[str, Any]
    text: dict[str, Any]

    def make(self, device: str, dtype: torch.dtype) -> Clap:
        """Return it with random weights."""
        import transformers

        model = transformers.ClapModel(self.config())
        extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)
        return Clap(model, extractor, SimpleNamespace(), device=device, dtype=dtype)

    def footprint(self, dtype: torch.dtype) -> Footprint:
        """Return the memory it is estimated to take."""
        return clap_footprint(self.config(), dtype)

    def rehearse(self) -> Rehearsal:
        """Return it without values, on the meta device."""
        import transformers

        with torch.device("meta"):
            model: Any = transformers.ClapModel(self.config())
            images = torch.empty(2, 1, 1001, 64)
        model.eval()
        listen = functools.partial(model.audio_model, input_features=images)
        return Rehearsal(model, listen, SECONDS / Clap.window_seconds / 2)

    def config(self) -> Any:  # noqa: ANN401 (transformers' types need transformers)
        """Return transformers' configuration."""
        from transformers import ClapConfig

        return ClapConfig(audio_config=self.audio, text_config=self.text)


Model = MertModel | JmlaModel | ClapModel

MODELS: tuple[Model, ...] = (
    MertModel("mert-95m to layer 7", MertConfig(), 7),
    MertModel("mert-95m to layer 12", MertConfig(), 12),
    MertModel("mert-330m to layer 10", LARGE, 10),
    MertModel("mert-330m to layer 24", LARGE, 24),
    JmlaModel("jmla", VitConfig()),
    ClapModel(
        "clap",
        {"patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2]},
        {},
    ),
)


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return weights that neither vanish nor overflow."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.02 + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def count_gflop(model: Model) -> float:
    """Return the work for one track, as torch counts it."""
    rehearsal = model.rehearse()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rehearsal.call()
    return rehearsal.times * float(counter.get_total_flops()) / 1e9


def weight_bytes(encoder: AnyEncoder) -> int:
    """Return what the weights take."""
    network: torch.nn.Module = encoder.model if isinstance(encoder, Clap) else encoder.network
    return sum(each.numel() * each.element_size() for each in network.parameters())


def track_windows(encoder: AnyEncoder, tracks: int) -> torch.Tensor:
    """Return the windows of `tracks` tracks of noise."""
    generator = torch.Generator().manual_seed(1)
    samples = 0.1 * torch.randn(int(SECONDS * encoder.rate), generator=generator)
    return encoder.cut(samples).repeat(tracks, 1)


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


def best_of_turns(rounds: int, device: str, *calls: Callable[[], object]) -> list[float]:
    """Return the least seconds of each call over `rounds`, in which they take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            best[i] = min(best[i], seconds(call, device))
    return best


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


def product(dtype: torch.dtype, device: str, size: int) -> tuple[Callable[[], object], float]:
    """Return a large matrix product, which gives the measured peak, and its GFLOP."""
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    call = functools.partial(torch.matmul, matrix, matrix)
    call()
    return call, 2 * size**3 / 1e9


def short_name(dtype: torch.dtype) -> str:
    """Return "bfloat16" and the like."""
    return str(dtype).removeprefix("torch.")


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
    parser.add_argument("--only", choices=[model.name for model in MODELS], action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    picked = choose_dtype(options.device)
    dtypes = [DTYPES[options.dtype]] if options.dtype else list({torch.float32, picked})
    place = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(
        f"{place}, {options.threads} threads, best of {options.rounds}, torch {torch.__version__}"
    )
    print(f"{options.batch} tracks of {SECONDS:.0f} s a call; choose_dtype: {picked}")
    head = ("encoder", "precision", "s/track", "realtime", "tracks/h", "GFLOP", "GFLOP/s", "share")
    print("{:22} {:9} {:>8} {:>9} {:>9} {:>7} {:>8} {:>6} {:>7}".format(*head, "MB"))
    models = [model for model in MODELS if model.name in (options.only or [model.name])]
    # One encoder at a time, beside the product: all of them together fill small cards.
    for model in models:
        for dtype in dtypes:
            measure(model, dtype, options)


def measure(model: Model, dtype: torch.dtype, options: argparse.Namespace) -> None:
    """Measure one encoder in one precision, and print its line."""
    device: str = options.device
    encoder = model.make(device, dtype)
    call = functools.partial(encoder.encode, track_windows(encoder, options.batch))
    megabytes = weight_bytes(encoder) / 1e6 + megabytes_in_use(call, device)
    multiply, multiplied = product(dtype, device, MATRIX[device])
    best, fastest = best_of_turns(options.rounds, device, call, multiply)
    track, gflop = best / options.batch, count_gflop(model)
    print(
        f"{model.name:22} {short_name(dtype):9} {track:8.3f} {track / SECONDS:9.5f} "
        f"{3600 / track:9,.0f} {gflop:7.0f} {gflop / track:8.0f} "
        f"{gflop / track / (multiplied / fastest):6.2f} {megabytes:7.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
