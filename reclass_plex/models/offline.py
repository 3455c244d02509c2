"""Models without a network: recognised in a folder or on a stick, copied, checked, installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from reclass_plex.errors import ModelError, NoSpace, ReadOnly, printable
from reclass_plex.models.catalogue import (
    PICKLES,
    SAFE,
    Model,
    PublishedFile,
    find_in_catalogue,
    load_catalogue,
)
from reclass_plex.models.convert import bears_mark, read_shapes
from reclass_plex.models.fetch import OnBytes
from reclass_plex.models.install import (
    NO_ROOM,
    PART,
    Say,
    check_file,
    install,
    make_stage,
    require_licence,
    require_space,
)
from reclass_plex.models.installed import Manifest, Pin, locked, read_manifest, read_pins

_DEPTH = 6  # folders below the one that is named: a mirror's layout has five
_MOST = 200  # files that may be weights; with more, this is no folder of models
_BLOCK = 1 << 20  # bytes copied at a time


def recognise(path: Path, folder: Path, name: str | None = None) -> list[tuple[Model, Path]]:
    """Return the models found at `path`, a file or a folder, each with the file of its weights.

    They are known by their size or by a tensor of theirs, whatever the file is called. With
    `name`, only that one. Raises ModelError if there is none, with the reasons.
    """
    models = load_catalogue(folder) if name is None else {name: find_in_catalogue(name, folder)}
    found: dict[str, Path] = {}
    reasons: list[str] = []
    for file in _candidates(path):
        try:
            known = _known(file, list(models.values()))
        except ModelError as error:
            reasons.append(str(error))
            continue
        if known is None:
            reasons.append(f"{printable(file)}: not of {' or '.join(models)}")
        elif known.name not in found or file.suffix in PICKLES:
            # The published file goes before a converted one: its digest is known.
            found[known.name] = file
    if not found:
        told = "; ".join(reasons[:5]) or "there is no .bin, .pth, .pt or .safetensors file"
        raise ModelError(f"{printable(path)}: holds no model that we know: {told}")
    return [(models[known], file) for known, file in sorted(found.items())]


def import_model(
    model: Model,
    weights: Path,
    folder: Path,
    *,
    accepted: bool = False,
    on_bytes: OnBytes = lambda name, here, due: None,
    say: Say = lambda text: None,
) -> Manifest:
    """Install a model from the file of its weights, and the other files it needs beside that.

    Raises ModelError as `fetch_model` does, and if a file is missing or cannot be read.
    """
    acceptance = require_licence(model, folder, accepted=accepted)
    sources = dict(_sources(model, weights))
    known = _known_digests(weights.parent)

    def waiting() -> None:
        say(f"{model.name}: another process is at it; waiting")

    with locked(model.name, folder, waiting):
        stage = make_stage(model, folder)
        pins = read_pins(model, folder)
        due = sum(path.stat().st_size for path in sources.values())
        require_space(model, folder, 0, due)
        digests = {}
        for name, path in sources.items():
            digests[name] = _copy(path, stage / name, _published(model, name), pins, on_bytes)
            if known.get(path.name, digests[name]) != digests[name]:
                (stage / name).unlink()
                raise ModelError(
                    f"{printable(path)}: is damaged: it differs from the manifest beside it"
                )
        return install(
            model,
            folder,
            stage,
            digests,
            accepted=acceptance,
            origin=printable(weights.parent),
            say=say,
        )


def _candidates(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise ModelError(f"{printable(path)}: there is no such file or folder")
        return [path]
    files = list(_weights_below(path))
    if len(files) > _MOST:
        raise ModelError(
            f"{printable(path)}: holds {len(files)} files that may be weights; name the folder of"
            " the model, or the file"
        )
    return sorted(files)


def _weights_below(folder: Path) -> Iterator[Path]:
    top = len(folder.parts)
    for here, folders, names in os.walk(folder):
        if len(Path(here).parts) - top >= _DEPTH:
            folders.clear()
        for name in names:
            if Path(name).suffix in (*PICKLES, SAFE) and not name.startswith("."):
                yield Path(here, name)


def _known(file: Path, models: list[Model]) -> Model | None:
    """Return whose weights a file holds. Raises ModelError if it cannot be read."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise ModelError(f"{printable(file)}: cannot be read: {error.strerror}") from error
    for model in models:
        if _published(model, model.weights).size == size and file.suffix in PICKLES:
            return model  # its digest is checked once it is copied
    shapes = read_shapes(file)
    return next((m for m in models if m.mark is not None and bears_mark(shapes, m.mark)), None)


def _sources(model: Model, weights: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file that the model needs: the name to have here, and where it is now."""
    for file in model.files:
        if file.name == model.weights:
            yield (model.converted if weights.suffix == SAFE else model.weights), weights
            continue
        path = weights.parent / file.name
        if not path.is_file():
            needed = ", ".join(other.name for other in model.files if other.name != model.weights)
            raise ModelError(
                f"{printable(path)}: is missing; {model.name} needs beside its weights: {needed}"
            )
        yield file.name, path


def _published(model: Model, name: str) -> PublishedFile:
    """Return what is published of a file; of converted weights, nothing but how large they are."""
    for file in model.files:
        if file.name == name:
            return file
    about = next(file.length for file in model.files if file.name == model.weights)
    return PublishedFile(name=name, about=about)


def _known_digests(folder: Path) -> dict[str, str]:
    """Return what the manifest beside the files says, where they are another installation's."""
    manifest = read_manifest(folder.name, folder.parent)
    return {} if manifest is None else {file.name: file.sha256 for file in manifest.files}


def _copy(
    source: Path, target: Path, file: PublishedFile, pins: dict[str, Pin], on_bytes: OnBytes
) -> str:
    """Copy a file and return its digest, read back from the copy. What is wrong is deleted."""
    part = target.with_name(target.name + PART)
    here = 0
    try:
        with _opened(source) as original, part.open("wb") as copy:
            due = os.fstat(original.fileno()).st_size
            while block := _read(original, source):
                copy.write(block)
                here += len(block)
                on_bytes(file.name, here, due)
            copy.flush()
            os.fsync(copy.fileno())
    except OSError as error:
        kind = NoSpace if error.errno in NO_ROOM else ReadOnly
        raise kind(part, f"cannot be written: {error.strerror}") from error
    try:
        digest = check_file(part, file, pins, printable(source.parent))
    except ModelError:
        part.unlink()
        raise
    part.replace(target)
    return digest


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error


def _read(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.read(_BLOCK)
    except OSError as error:  # a stick that was pulled out
        raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error
