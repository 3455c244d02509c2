"""The model files that come with the package: where they are, and whether they are whole.

Everything bundled stands in `data/`: `musicnn/` the weights, `heads/` the trained heads, each a
folder with a model card, `ensemble/` the stages and what calibrates them. `data/SHA256SUMS` (in
the format of sha256sum) names each file's digest. Only safetensors and JSON are ever read: never
pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import ModelError, printable

if TYPE_CHECKING:
    from torch import Tensor

DATA = Path(__file__).parent.parent / "data"
SUMS = DATA / "SHA256SUMS"


@dataclass(frozen=True)
class ModelFile:
    """One bundled file: `name` relative to `data/`, its size in bytes, the digest it should have.

    `problem` is None, or says what is wrong with it.
    """

    name: str
    path: Path
    size: int
    sha256: str
    problem: str | None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ModelError, naming it, if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb"):  # safetensors calls every failure to open "no such file"
            pass
        return load_file(path)
    except (SafetensorError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ModelError(f"{printable(path)}: cannot read the weights: {reason}") from error


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError unless `tensors` has exactly these names and shapes, all values finite."""
    if wrong := set(tensors) ^ set(shapes):
        raise ModelError(f"missing or unknown tensors: {', '.join(sorted(wrong))}")
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            raise ModelError(f"{name} has the shape {found}, not {shape}")
        if not bool(tensors[name].isfinite().all()):
            raise ModelError(f"{name} holds values that are not finite (NaN or infinity)")


def read_sums(sums: Path = SUMS) -> dict[str, str]:
    """Return {file name relative to the list's folder: SHA-256}. Raises ModelError."""
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{printable(sums)}: cannot read the list of models: {error}") from error
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ModelError(f"{printable(sums)}: line {number} is not 'digest  name'")
        digests[name] = digest
    return digests


def list_models(sums: Path = SUMS) -> Iterator[ModelFile]:
    """Yield every bundled file in the order of its name, its digest checked."""
    for name, digest in sorted(read_sums(sums).items()):
        path = sums.parent / name
        try:
            content = path.read_bytes()
        except OSError as error:
            yield ModelFile(name, path, 0, digest, f"cannot be read: {error.strerror}")
            continue
        same = hashlib.sha256(content).hexdigest() == digest
        problem = None if same else "differs from what was released; reinstall reclass-plex"
        yield ModelFile(name, path, len(content), digest, problem)


def write_sums(data: Path = DATA) -> None:
    """Write `SHA256SUMS` for every file below `data`: the training scripts' last act."""
    files = sorted(p for p in data.rglob("*") if p.is_file() and p.name != SUMS.name)
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(data).as_posix()}\n"
        for p in files
    ]
    (data / SUMS.name).write_text("".join(lines), encoding="utf-8")
