"""Is this installation well? Each check says ok, warning or error, and what to do."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reclass_plex import audio, models
from reclass_plex.config import Config
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ModelError, StoreError, printable
from reclass_plex.store import Store

LOW_SPACE = 1 << 30  # bytes free on the store's disk under which a warning is due


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    level: Literal["ok", "warning", "error"]
    text: str
    advice: str = ""


def examine(config: Config) -> list[Check]:
    """Run every check."""
    return [
        Check("python", "ok", f"{platform.python_version()} on {platform.machine()}"),
        *_decoders(),
        *_torch(),
        *_models(config),
        *_store(config.store.resolve()),
    ]


def _decoders() -> Iterator[Check]:
    missing = audio.missing_decoders()
    if missing:
        advice = "Files of these formats are reported and skipped; another build of PyAV has them."
        yield Check("decoders", "warning", f"FFmpeg lacks {', '.join(missing)}", advice)
    else:
        yield Check("decoders", "ok", f"FFmpeg {audio.ffmpeg_version()}, every format")


def _torch() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        device = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    yield Check("torch", "ok", f"{torch.__version__}: {device}")


def _models(config: Config) -> Iterator[Check]:
    advice = "Install reclass-plex anew."
    try:
        faults = [f"{file.name} {file.problem}" for file in models.list_models() if file.problem]
    except ModelError as error:
        faults = [str(error)]
    for fault in faults:
        yield Check("model file", "error", fault, advice)
    try:
        ensemble = Ensemble(config.ensemble)
        ensemble.load()
        stages = ", ".join(stage.name for stage in ensemble.spec.stages)
        yield Check("ensemble", "ok", f"{config.ensemble.taxonomy}: {stages}")
    except ModelError as error:
        yield Check("ensemble", "error", str(error), advice)


def _store(path: Path) -> Iterator[Check]:
    name = printable(path)
    try:
        with Store.open(path) as store:
            faults = store.check_integrity()
            pending = len(store.pending_changes())
    except StoreError as error:
        yield Check("store", "error", str(error))
        return
    if faults:
        advice = "Keep a copy, then restore a backup or move it away to begin anew."
        yield Check("store", "error", f"{name}: {'; '.join(faults)}", advice)
    elif pending:
        advice = "The next `reclass-plex tag` or `undo` puts this right by itself."
        yield Check("store", "warning", f"{name}: {pending} changes were interrupted", advice)
    else:
        yield Check("store", "ok", f"{name}, {path.stat().st_size / 1e6:.1f} MB")
    free = shutil.disk_usage(path.parent).free
    if free < LOW_SPACE:
        advice = "Free some space: nothing is written when the disk is nearly full."
        yield Check("disk", "warning", f"{free / 1e6:.0f} MB free beside {name}", advice)
    else:
        yield Check("disk", "ok", f"{free / 1e9:.0f} GB free beside {name}")
