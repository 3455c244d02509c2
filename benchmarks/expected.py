"""What other cards should do with the deep encoders: computed, not measured.

    python benchmarks/expected.py [--product-share 0.5] [--bandwidth-share 0.6]

Prints the tables of docs/jetson.md and docs/rtx.md. A track is 30 s. Its time on the GPU is

    GFLOP / (peak x share)  +  bytes / (bandwidth x share)

GFLOP is that of all products (matrices, convolutions, attention), counted by torch; bytes is what
all other operations read and write in half precision, as written (torch.compile joins some). Both
are counted on torch's meta device, which computes nothing. Peak is the data sheet's for dense
half-precision products summed in float32. The shares are assumed, the same for all cards. Decoding,
the small stages and the copies to the GPU are not in it. Memory is what `encoders.footprint` gives.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from encoders import MODELS, ClapModel, Model, count_gflop
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reclass_plex.encoders.footprint import AsOnGpu
from reclass_plex.encoders.transformer import narrow_weights

HALF = torch.float16
TRACK_WINDOWS = {"mert": 6, "jmla": 1, "clap": 3}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet."""

    name: str
    tflops: float  # dense products of half precision, summed in float32
    bandwidth: float  # GB/s
    memory: int  # GB; of a Jetson, shared with the CPU


CARDS = (
    Card("Jetson Orin Nano 8 GB (15 W, 625 MHz)", 10.2, 68, 8),
    Card("Jetson Orin Nano 8 GB (Super, 1020 MHz)", 16.7, 102, 8),
    Card("Jetson Orin NX 16 GB (918 MHz)", 15.0, 102, 16),
    Card("Jetson AGX Orin 64 GB (1300 MHz)", 42.6, 205, 64),
    Card("RTX 3060", 25.5, 360, 12),
    Card("RTX 4070", 58.3, 504, 12),
    Card("RTX 4090", 165.2, 1008, 24),
    Card("H200", 989.0, 4800, 141),
)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--product-share", type=float, default=0.5)
    parser.add_argument("--bandwidth-share", type=float, default=0.6)
    options = parser.parse_args()
    works = {model.name: (count_gflop(model), count_bytes(model) / 1e9) for model in MODELS}
    print_memory()
    print("\n| a track of 30 s | " + " | ".join(works) + " |")
    print("|" + "---|" * (len(works) + 1))
    print("| GFLOP | " + " | ".join(f"{gflop:.0f}" for gflop, _ in works.values()) + " |")
    print("| GB moved | " + " | ".join(f"{moved:.1f}" for _, moved in works.values()) + " |")
    print("\n| tracks an hour, computed | " + " | ".join(works) + " |")
    print("|" + "---|" * (len(works) + 1))
    for card in CARDS:
        rates = [
            3600 / expected_seconds(work, card, options.product_share, options.bandwidth_share)
            for work in works.values()
        ]
        print(f"| {card.name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")


def expected_seconds(
    work: tuple[float, float], card: Card, product_share: float, bandwidth_share: float
) -> float:
    """Return the time of a track from its GFLOP and GB."""
    gflop, moved = work
    return gflop / (card.tflops * 1e3 * product_share) + moved / (card.bandwidth * bandwidth_share)


def print_memory() -> None:
    """Print what each encoder takes in half precision, with the windows of one track at once."""
    print("| half precision | weights, MB | a window, MB | with one track's windows, MB |")
    print("|---|---|---|---|")
    for model in MODELS:
        footprint = model.footprint(HALF)
        windows = TRACK_WINDOWS[model.name.partition("-")[0]]
        both = footprint.weights + windows * footprint.window
        print(
            f"| {model.name} | {footprint.weights / 1e6:,.0f} | {footprint.window / 1e6:.0f}"
            f" | {both / 1e6:,.0f} |"
        )


def count_bytes(model: Model) -> float:
    """Return the bytes that all but products read and write for a track, in half precision.

    CLAP is counted in float32: where transformers narrows it, autocast decides as it runs.
    """
    rehearsal = model.rehearse()
    if not isinstance(model, ClapModel):
        narrow_weights(rehearsal.network, HALF)
    with torch.no_grad(), _Traffic() as traffic, AsOnGpu():
        rehearsal.call()
    moved: float = traffic.bytes * rehearsal.times
    return moved


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what operations read and write, but for products and mere views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: float = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (torch's signature)
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        held = {each.untyped_storage()._cdata for each in given}
        new = any(each.untyped_storage()._cdata not in held for each in made)
        if new and func.__name__.partition(".")[0] not in PRODUCTS:
            self.bytes += sum(each.numel() * each.element_size() for each in given + made)
        return result


if __name__ == "__main__":
    main()
