"""Checkpoints of torch in, safetensors out: the same names, types and numbers, without pickle.

A fetched `.bin` or `.pth` is read once, with `weights_only=True`, so that no class in it is ever
made; from then on only the safetensors file is read. It is no larger, it is mapped into memory
instead of parsed, and the original is deleted once the copy has been compared with it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import ModelError, printable
from reclass_plex.models.bundled import load_tensors
from reclass_plex.models.catalogue import PICKLES, SAFE

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPINGS = ("state_dict",)  # keys under which training programs put the tensors
_PREFIXES = ("", "backbone.")  # of the names of a model that was part of another


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of torch, or of a safetensors file, on the CPU.

    They stay mapped to the file where its form allows. Raises ModelError, naming the file, if it
    is damaged, holds Python objects, or holds no tensors by name.
    """
    if path.suffix == SAFE:
        return load_tensors(path)
    import torch

    try:
        # torch maps only its zip container; the older form has to be read into memory
        mapped = zipfile.is_zipfile(path)
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    except Exception as error:  # by torch's documentation, a damaged pickle may raise anything
        raise ModelError(
            f"{printable(path)}: is damaged, or holds more than plain tensors, and was not loaded"
        ) from error
    if isinstance(data, Mapping):
        data = next((data[key] for key in _WRAPPINGS if key in data), data)
    if not isinstance(data, Mapping) or not data:
        raise ModelError(f"{printable(path)}: holds no tensors by name")
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(f"{printable(path)}: {name} is no tensor but {type(value).__name__}")
        if value.layout is not torch.strided or value.is_quantized:
            raise ModelError(f"{printable(path)}: {name} is sparse or quantized; we cannot use it")
    return dict(data)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape. Reads little of a large file. Raises ModelError."""
    if path.suffix != SAFE:
        return {name: tuple(tensor.shape) for name, tensor in read_checkpoint(path).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{printable(path)}: cannot read the weights: {error}") from error


def bears_mark(shapes: Mapping[str, tuple[int, ...]], mark: tuple[str, tuple[int, ...]]) -> bool:
    """Say whether the tensor named in `mark` is there, and has that shape."""
    name, shape = mark
    return any(shapes.get(prefix + name) == tuple(shape) for prefix in _PREFIXES)


def convert(source: Path, target: Path) -> None:
    """Write the tensors of `source` to the safetensors file `target`, and compare the two.

    Raises ModelError as `read_checkpoint` does, or if the copy does not read back as it was;
    OSError if it cannot be written. What is left at `target` then is no whole file.
    """
    assert source.suffix in PICKLES  # noqa: S101 - the caller's doing, not the user's
    from safetensors.torch import save_file

    tensors = read_checkpoint(source)
    save_file(_apart(tensors), target, metadata={"format": "pt"})
    with target.open("rb") as file:
        os.fsync(file.fileno())
    copied = load_tensors(target)
    for name in tensors.keys() | copied.keys():
        if name not in copied or name not in tensors or not _same(tensors[name], copied[name]):
            raise ModelError(f"{printable(target)}: {name} was not copied exactly")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each in a row of memory of its own, as safetensors wants them.

    Tied weights become two copies: that costs a little space, and keeps every name.
    """
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.contiguous() if storage not in seen else tensor.contiguous().clone()
        seen.add(storage)
    return apart


def _same(one: Tensor, other: Tensor) -> bool:
    """Compare bit by bit, so that a NaN equals itself: whether it may be there, encoders say."""
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1) for tensor in (one, other)]
    return one.numel() == 0 or torch.equal(flat[0].view(torch.uint8), flat[1].view(torch.uint8))
