"""MusiCNN on 30 s of audio: milliseconds a checkpoint, and against the matrix-multiply bound.

The bound is what the plain convolutions' 1.4 billion multiply-adds a patch would take at the speed
of a large matrix product, measured in the same run, taking turns with the network. Only the ratio
can be compared between machines. Below 1 is possible: the Fourier transform saves arithmetic.

    python benchmarks/musicnn.py [--threads N] [--rounds N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch

from reclass_plex.encoders.musicnn import RATE, Checkpoint, load_musicnn, log_mel_patches

MATRIX = 2048
PLAIN_MULTIPLY_ADDS = (
    187 * 204 * 7 * (59 * 38 + 30 * 67)  # timbral, over 59 and 30 positions in frequency
    + 187 * 51 * 96 * (128 + 64 + 32)  # temporal
    + 187 * 64 * 7 * (561 + 64 + 64)  # mid-end
    + 1506 * 200
    + 200 * 50
)  # a patch


def milliseconds(call: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    samples = 0.1 * torch.randn(30 * RATE, generator=torch.Generator().manual_seed(0))
    patches = log_mel_patches(samples)
    matrix = torch.randn(MATRIX, MATRIX)
    calls: dict[str, Callable[[], object]] = {
        "log-mel patches": lambda: log_mel_patches(samples),
        "matrix product": lambda: matrix @ matrix,
    }
    for checkpoint in get_args(Checkpoint):
        calls[checkpoint] = partial(load_musicnn(checkpoint).encode, patches)
    for call in calls.values():
        call()
    best = {name: float("inf") for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            best[name] = min(best[name], milliseconds(call))
    speed = MATRIX**3 / best["matrix product"]  # multiply-adds a millisecond
    bound = len(patches) * PLAIN_MULTIPLY_ADDS / speed
    print(f"{len(patches)} patches (30 s), {options.threads} threads, best of {options.rounds}")
    print(f"matrix product: {2 * speed / 1e6:.0f} GFLOP/s, so plain convolutions: {bound:.0f} ms")
    print(f"log-mel patches {best['log-mel patches']:6.1f} ms")
    for name in get_args(Checkpoint):
        print(f"{name:15s} {best[name]:6.1f} ms = {best[name] / bound:.2f} of the bound")


if __name__ == "__main__":
    main()
