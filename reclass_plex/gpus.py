"""What the GPUs of this machine do now: memory, utilisation, temperature.

By NVIDIA's own `nvidia-smi` where it is there; else by torch, which tells the memory; on a Jetson
the kernel tells how busy the GPU is.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reclass_plex.errors import DeviceError

QUERY = ("name", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu", "power.draw")
JETSON_LOAD = ("/sys/devices/gpu.0/load", "/sys/devices/platform/gpu.0/load")  # per mille
PATIENCE = 10.0  # seconds for nvidia-smi, which hangs with a driver that does


@dataclass(frozen=True)
class GpuState:
    """Memory in MiB, of all processes; what nobody tells is None."""

    name: str
    used: float | None
    total: float | None
    use: float | None  # percent of the time since it was asked last
    celsius: float | None
    watts: float | None
    told_by: str


def read_gpus(smi: str = "nvidia-smi") -> tuple[GpuState, ...]:
    """Return the state of every GPU. Raises DeviceError, saying what was looked for."""
    reasons = []
    for ask in (partial(_ask_smi, smi, PATIENCE), _ask_torch):
        try:
            return ask()
        except DeviceError as error:
            reasons.append(str(error))
    raise DeviceError(f"no GPU to look at: {'; '.join(reasons)}")


def read_gpus_lightly(patience: float, smi: str = "nvidia-smi") -> tuple[GpuState, ...]:
    """Return the same without torch, which would fill the memory of who only asks; () if none.

    On a Jetson GPU and CPU share the memory: there the kernel says how much of that is in use.
    """
    try:
        states = _ask_smi(smi, patience)
    except DeviceError:
        states = ()
    if any(state.used is not None for state in states):
        return states
    return _ask_kernel() or states


def _ask_smi(smi: str, patience: float) -> tuple[GpuState, ...]:
    path = shutil.which(smi)
    if path is None:
        raise DeviceError(f"{smi} is not installed")
    command = [path, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"nvidia-smi does not answer: {error}") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip().partition("\n")[0]
        raise DeviceError(f"nvidia-smi: {said or f'status {done.returncode}'}")
    states = parse_smi(done.stdout)
    if not states:
        raise DeviceError("nvidia-smi names no GPU")
    return states


def parse_smi(text: str) -> tuple[GpuState, ...]:
    """Return what lines of nvidia-smi say, in the order of `QUERY`; "[N/A]" is not known."""
    states = []
    for line in filter(None, map(str.strip, text.splitlines())):
        # A name may hold a comma; the numbers behind it do not.
        name, *values = line.rsplit(",", len(QUERY) - 1)
        used, total, use, celsius, watts = [
            _number(values[i]) if i < len(values) else None for i in range(len(QUERY) - 1)
        ]
        states.append(GpuState(name.strip(), used, total, use, celsius, watts, "nvidia-smi"))
    return tuple(states)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _ask_torch() -> tuple[GpuState, ...]:
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(f"torch {torch.__version__} finds none (reclass-plex doctor says why)")
    states = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        used = (total - free) / 2**20
        states.append(GpuState(name, used, total / 2**20, _jetson_load(), None, None, "torch"))
    return tuple(states)


def _read(path: str) -> str:
    return Path(path).read_text()


def _ask_kernel(read: Callable[[str], str] = _read) -> tuple[GpuState, ...]:
    load = _jetson_load(read)
    if load is None:
        return ()
    lines = (line.partition(":") for line in read("/proc/meminfo").splitlines())
    mib = {name: float(value.split()[0]) / 1024 for name, _, value in lines if value.strip()}
    total = mib["MemTotal"]
    return (GpuState("Jetson", total - mib["MemAvailable"], total, load, None, None, "kernel"),)


def _jetson_load(read: Callable[[str], str] = _read) -> float | None:
    for path in JETSON_LOAD:
        try:
            return float(read(path)) / 10
        except (OSError, ValueError):
            continue
    return None
