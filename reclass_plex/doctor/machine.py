"""Python, decoders, GPU, memory, and the models."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reclass_plex import audio, models
from reclass_plex.config import Config, WorkerOptions
from reclass_plex.doctor.checks import Check, Level
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ModelError

LOW_MEMORY = 1 << 30  # bytes available under which a warning is due; the models take 0.6 GB
LOW_GPU_MEMORY = 1 << 30
DRIVER_SECONDS = 10.0  # for nvidia-smi, which may hang with a sick driver
GPU_SECONDS = 90.0  # for a process that imports torch and computes one sum
_REINSTALL = "Install reclass-plex anew."

# In a process of its own: a sick driver may hang or end it. One sum tells more than is_available:
# torch may lack code for a GPU that is too old or too new.
_PROBE = """
import json, warnings
warnings.simplefilter("ignore")
import torch
found = {"version": torch.__version__, "cuda": torch.version.cuda}
found["threads"] = torch.get_num_threads()
try:
    if torch.cuda.is_available():
        found["name"] = torch.cuda.get_device_name(0)
        found["free"], found["total"] = torch.cuda.mem_get_info(0)
        assert torch.ones(8, device="cuda").sum().item() == 8
        found["works"] = True
except Exception as error:
    found["problem"] = str(error).partition(chr(10))[0]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Torch:
    """What torch says. `cuda` is None for a build without CUDA; memory in bytes."""

    version: str
    threads: int
    cuda: str | None = None
    name: str | None = None
    free: int = 0
    total: int = 0
    works: bool = False
    problem: str | None = None


def check_machine(config: Config) -> Iterator[Check]:
    """Look at everything that turns a file into a genre."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    missing = audio.missing_decoders()
    if missing:
        advice = "Files of these formats are reported and skipped; another build of PyAV has them."
        yield Check("decoders", "warning", f"FFmpeg lacks {', '.join(missing)}", advice)
    else:
        yield Check("decoders", "ok", f"FFmpeg {audio.ffmpeg_version()}, every format")
    yield from check_memory()
    torch = ask_torch()
    if isinstance(torch, str):
        advice = "Install torch anew; on a Jetson NVIDIA's wheel (docs/jetson.md)."
        yield Check("torch", "error", torch, advice)
    else:
        yield Check("torch", "ok", f"{torch.version}, {torch.threads} threads")
        yield judge_gpu(torch, find_nvidia(), config.worker)
    yield from _check_models(config, load=not isinstance(torch, str))


def ask_torch(seconds: float = GPU_SECONDS) -> Torch | str:
    """Return what torch says of itself and of the GPU, or why it says nothing."""
    try:
        done = _run([sys.executable, "-c", _PROBE], seconds)
    except subprocess.TimeoutExpired:
        return f"torch and the GPU did not answer within {seconds:g} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"cannot be used: {last}"
    return Torch(**json.loads(done.stdout.splitlines()[-1]))


def find_nvidia(seconds: float = DRIVER_SECONDS) -> str | None:
    """Return what the machine itself says of its NVIDIA GPU and driver; None without one."""
    if command := shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total"
        try:
            done = _run([command, query, "--format=csv,noheader"], seconds)
        except subprocess.TimeoutExpired:
            return f"an NVIDIA GPU whose driver does not answer (nvidia-smi, {seconds:g} s)"
        except OSError:
            done = None
        if done is not None and done.returncode == 0 and done.stdout.strip():
            name, _, rest = done.stdout.strip().splitlines()[0].partition(", ")
            return f"{name}, driver {rest}"
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        driver = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
        return f"an NVIDIA GPU, driver {driver[0] if driver else 'of unknown version'}"
    except OSError:
        pass
    return "a Jetson" if os.path.exists("/etc/nv_tegra_release") else None  # noqa: PTH110


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def judge_gpu(torch: Torch, nvidia: str | None, options: WorkerOptions) -> Check:
    """Compare what there is with what the configuration asks for."""
    bad: Level = "error" if options.device == "cuda" else "warning"
    slow = "" if options.device == "cuda" else "; the CPU computes"
    if options.device == "cpu":
        return Check("gpu", "ok", "not asked for: worker.device is cpu")
    if torch.works:
        free, total = torch.free / 2**30, torch.total / 2**30
        text = f"{nvidia or torch.name}, CUDA {torch.cuda}, {free:.1f} of {total:.1f} GiB free"
        if torch.free < LOW_GPU_MEMORY:
            advice = "Something else fills it (nvidia-smi shows what). The CPU takes over at need."
            return Check("gpu", "warning", text, advice)
        return Check("gpu", "ok", text)
    if torch.name is not None:
        advice = (
            "This torch may lack code for this GPU: docs/rtx.md and docs/jetson.md name others."
        )
        text = f"{torch.name}: {torch.problem or 'a sum came out wrong'}{slow}"
        return Check("gpu", bad, text, advice)
    if nvidia is None:
        if options.device == "cuda":
            advice = "Set worker.device to auto, or install the driver of the GPU."
            return Check("gpu", "error", "worker.device is cuda, but there is none", advice)
        return Check("gpu", "ok", "none: the CPU computes")
    if torch.cuda is None:
        advice = "Install torch with CUDA: docs/rtx.md; on a Jetson NVIDIA's: docs/jetson.md."
        text = f"{nvidia}, but torch {torch.version} is built without CUDA{slow}"
        return Check("gpu", bad, text, advice)
    advice = (
        "Is the driver new enough (nvidia-smi), and may this user open /dev/nvidia* (groups video"
        " and render)?"
    )
    why = f" ({torch.problem})" if torch.problem else ""
    return Check("gpu", bad, f"{nvidia}, but torch finds none{why}{slow}", advice)


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Iterator[Check]:
    """Say how much memory is left; nothing where the kernel does not tell."""
    try:
        lines = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE))
        available, total = (int(lines[key]) * 1024 for key in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError):
        return
    text = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    if available < LOW_MEMORY:
        advice = "Set worker.decoders to 1, or stop something else."
        yield Check("memory", "warning", text, advice)
    else:
        yield Check("memory", "ok", text)


def _check_models(config: Config, *, load: bool) -> Iterator[Check]:
    try:
        files = list(models.list_models())
        faults = [f"{file.name} {file.problem}" for file in files if file.problem]
    except ModelError as error:
        files, faults = [], [str(error)]
    for fault in faults:
        yield Check("model file", "error", fault, _REINSTALL)
    if not faults:
        yield Check("model files", "ok", f"{len(files)}, each as it was released")
    if not load:
        return
    try:
        ensemble = Ensemble.from_config(config)
        ensemble.load()
        stages = ", ".join(stage.name for stage in ensemble.spec.stages)
        yield Check("ensemble", "ok", f"{ensemble.spec.taxonomy}: {stages}")
        for note in ensemble.notes:
            yield Check("ensemble", "warning", note)
    except ModelError as error:
        yield Check("ensemble", "error", str(error), _REINSTALL)
