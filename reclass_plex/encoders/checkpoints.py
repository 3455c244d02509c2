"""Published checkpoints: found in a folder, read, and compared name by name.

`reclass_plex.models.convert` reads them, mapped to memory and without running what is in a pickle;
only the tensors that an encoder wants are then copied.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from reclass_plex.errors import ModelError, printable
from reclass_plex.models.convert import read_checkpoint

LISTED = 4  # names a message holds


def open_checkpoint(folder: Path, names: Collection[str]) -> tuple[Path, dict[str, Tensor]]:
    """Return the first of the files `names` that is in `folder`, and its tensors, on the CPU.

    Raises ModelError, naming the file, where none is there or it cannot be read.
    """
    for name in names:
        path = folder / name
        if path.is_file():
            return path, read_checkpoint(path)
    raise ModelError(f"{printable(folder)}: none of {', '.join(names)} is there")


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Raise ModelError unless `tensors` have exactly these names and shapes, floating and finite.

    It names the file and what differs.
    """
    missing, unknown = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    differences = []
    if missing:
        differences.append(f"missing {_list(missing)}")
    if unknown:
        differences.append(f"unknown {_list(unknown)}")
    if differences:
        counts = f"{len(tensors)} tensors where {len(shapes)} are expected"
        raise ModelError(f"{printable(path)}: {counts}: {'; '.join(differences)}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            found = tuple(tensor.shape)
            raise ModelError(f"{printable(path)}: {name} has the shape {found}, not {shape}")
        if not tensor.is_floating_point():
            raise ModelError(f"{printable(path)}: {name} holds {tensor.dtype}, not fractions")
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{printable(path)}: {name} holds values that are not finite")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ModelError, naming the file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{printable(path)}: holds no object")
    return content


def _list(names: Collection[str]) -> str:
    shown = sorted(names)[:LISTED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
