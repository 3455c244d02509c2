"""Where the models compute, and what a GPU's failures mean.

Out of memory is met by smaller batches; where the smallest does not fit either, or the context is
lost (a driver that was updated, a card that fell off the bus), nothing in this process can help:
that is a DeviceError, and a new process, or the CPU, may go on. No track is to blame for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from reclass_plex.errors import DeviceError

Device = Literal["cpu", "cuda"]


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """Return where to compute. Raises DeviceError when the GPU is asked for and there is none."""
    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise DeviceError(
            f"worker.device is cuda, but torch {torch.__version__} finds no GPU: see"
            " reclass-plex doctor, or set it to auto"
        )
    return "cpu"


def run_in_halves(
    function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor
) -> torch.Tensor:
    """Return function(batch), (n, ...) -> (n, ...); in halves where all at once does not fit.

    Raises torch.OutOfMemoryError when not even one item fits.
    """
    try:
        return function(batch)
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Outside of the handler, whose traceback would keep the failed attempt's tensors alive.
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return torch.cat([run_in_halves(function, part) for part in (batch[:half], batch[half:])])


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn what CUDA raises into DeviceError; other errors stay what they are."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(f"the GPU's memory is full: {_first_line(error)}") from error
    except RuntimeError as error:
        if "CUDA" not in str(error) and "cuDNN" not in str(error):
            raise
        raise DeviceError(f"the GPU failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
