"""Mixed precision, and what a GPU says of itself while it trains."""

from __future__ import annotations

import contextlib
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

JETSON_LOAD = Path("/sys/devices/platform/gpu.0/load")  # in tenths of a percent


class Precision:
    """bfloat16 where the GPU has it, else float16 with a scaled loss; float32 on the CPU."""

    def __init__(self, device: str, amp: bool, clip: float | None = None) -> None:
        """Take the longest gradient that a step follows, if there is to be one."""
        self._dtype: torch.dtype | None = None
        if amp and device == "cuda":
            good = torch.cuda.is_bf16_supported(including_emulation=False)
            self._dtype = torch.bfloat16 if good else torch.float16
        self._clip = clip
        self._scaler = torch.amp.GradScaler(device, enabled=self._dtype is torch.float16)

    def context(self) -> AbstractContextManager[Any]:
        """Return what the forward pass stands in."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast("cuda", self._dtype)

    def step(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Go back through the network, and take a step."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._clip is not None:
            self._scaler.unscale_(optimiser)
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        self._scaler.step(optimiser)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return what `restore` takes: numbers only, empty without a scaler."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as a checkpoint says."""
        if state:
            self._scaler.load_state_dict(state)


def gpu_load(device: str) -> tuple[float | None, float | None]:
    """Return the most memory used so far in MiB and the utilisation in percent; None if unknown."""
    if device != "cuda":
        return None, None
    memory = torch.cuda.max_memory_allocated() / 2**20
    try:
        return memory, float(torch.cuda.utilization())
    except Exception:  # NVIDIA's own library, which few have, and which no Jetson answers
        return memory, utilisation()


def utilisation(command: str = "nvidia-smi", jetson: Path = JETSON_LOAD) -> float | None:
    """Return how busy the first GPU is in percent, by what every driver brings; None if unknown."""
    with contextlib.suppress(OSError, ValueError):
        return int(jetson.read_text()) / 10
    query = [command, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        told = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        return float(told.stdout.splitlines()[0])
    return None
