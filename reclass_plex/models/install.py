"""From files that have gathered to an installed model: checked, converted, put in place at once."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path

from reclass_plex.errors import ModelError, NoSpace, ReadOnly, printable
from reclass_plex.models.catalogue import PICKLES, SAFE, Model, PublishedFile
from reclass_plex.models.convert import bears_mark, convert, read_shapes
from reclass_plex.models.installed import (
    INCOMING,
    MANIFEST,
    Acceptance,
    InstalledFile,
    Manifest,
    Original,
    Pin,
    Pins,
    expected,
    find_model,
    hash_file,
    incoming,
    leftovers,
    pins_path,
    read_manifest,
    read_pins,
    write_record,
)

Say = Callable[[str], None]

PART = ".part"  # ends the name of a file that is not whole
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_SPARE = 1.02  # of the bytes that are due: what the file system itself needs


def require_licence(model: Model, folder: Path, *, accepted: bool) -> Acceptance | None:
    """Return that the licence was accepted, now or when the model was installed before.

    None if it needs no acceptance. Raises ModelError if it does and has none.
    """
    if not model.must_accept:
        return None
    if (before := former_acceptance(model, folder)) is not None:
        return before
    if not accepted:
        raise ModelError(f"{model.name}: {describe_terms(model)}. To accept: --accept-licence")
    return Acceptance(licence=model.licence, date=_now())


def former_acceptance(model: Model, folder: Path) -> Acceptance | None:
    """Return that the same licence was accepted for the copy that is installed, if it was."""
    try:
        manifest = read_manifest(model.name, folder)
    except ModelError:
        return None
    if manifest is None or manifest.accepted is None:
        return None
    return manifest.accepted if manifest.accepted.licence == model.licence else None


def describe_terms(model: Model) -> str:
    """Return what the licence means for the user, in a sentence without a full stop."""
    meaning = {
        "free": "free to use and to pass on",
        "non-commercial": "not for commercial use",
        "unclear": "what it allows is not clear: use the weights privately, never pass them on",
    }[model.terms]
    return f"its weights ({model.repository}) are under the licence {model.licence}: {meaning}"


def already_there(model: Model, folder: Path) -> Manifest | None:
    """Return the manifest of a whole model of the catalogue's revision, None if there is none."""
    if find_model(model.name, folder) is None:
        return None
    manifest = read_manifest(model.name, folder)
    return manifest if manifest is not None and manifest.revision == model.revision else None


def make_stage(model: Model, folder: Path) -> Path:
    """Return the folder in which a model's files gather; what is of use there is kept.

    Call it while the model is locked. Raises ReadOnly.
    """
    _put_back(model.name, folder)
    stage = incoming(model, folder)
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnly(stage, f"cannot be made: {error.strerror}") from error
    return stage


def require_space(model: Model, folder: Path, there: int, due: int) -> None:
    """Raise NoSpace unless `due` bytes fit, less those `there`, and the converted copy."""
    copies = sum(
        file.length
        for file in model.files
        if file.name == model.weights and not file.name.endswith(SAFE)
    )
    need = int((due - there + copies) * _SPARE)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise NoSpace(
            folder,
            f"{model.name} needs {need / 1e6:,.1f} MB free for a while, there are"
            f" {free / 1e6:,.1f} MB; make room, or name another folder in models.folder",
        )


def check_file(path: Path, file: PublishedFile, pins: dict[str, Pin], where: str) -> str:
    """Return a received file's digest. Raises ModelError if it is not the one that is due."""
    size, sha256 = expected(file, pins)
    found = path.stat().st_size
    anew = ""
    if file.sha256 is None and file.name in pins:
        anew = "; what came first is held to, to trust anew: reclass-plex models remove --forget"
    if size is not None and found != size:
        raise ModelError(
            f"{where}: {file.name} has {found:,} bytes instead of {size:,}: it is not the file"
            f" that was published, and was refused{anew}"
        )
    digest = hash_file(path)
    if sha256 is not None and digest != sha256:
        raise ModelError(
            f"{where}: {file.name} has the SHA-256 {digest[:16]}... instead of {sha256[:16]}...:"
            f" it is not the file that was published, and was refused{anew}"
        )
    return digest


def install(
    model: Model,
    folder: Path,
    stage: Path,
    digests: Mapping[str, str],
    *,
    accepted: Acceptance | None,
    origin: str,
    say: Say,
) -> Manifest:
    """Convert the checked files in `stage`, write the manifest, and put all in place.

    `digests` names them. Raises ModelError if the weights are not this model's.
    """
    pins = read_pins(model, folder)
    try:
        files = tuple(_take_in(model, stage / name, digests[name]) for name in digests)
        manifest = Manifest(
            model=model.name,
            repository=model.repository,
            revision=model.revision,
            licence=model.licence,
            accepted=accepted,
            fetched=_now(),
            origin=origin,
            files=files,
        )
        write_record(stage / MANIFEST, manifest)
        trusted = {
            file.name: Pin(size=file.size, sha256=file.sha256) for file in files if file.first_use
        }
        if new := sorted(trusted.keys() - pins.keys()):
            say(
                f"{model.name}: no digest is published for {', '.join(new)}: trusted as it came,"
                f" and held to from now on ({printable(pins_path(model.name, folder))})"
            )
        kept = Pins(model=model.name, revision=model.revision, files=pins | trusted)
        write_record(pins_path(model.name, folder), kept)
        _keep_only(stage, {MANIFEST, *(file.name for file in files)})
        _swap(model.name, folder, stage)
    except OSError as error:
        kind = NoSpace if error.errno in NO_ROOM else ReadOnly
        raise kind(folder, f"cannot be written: {error.strerror}") from error
    return manifest


def _take_in(model: Model, path: Path, digest: str) -> InstalledFile:
    """Convert a file where it is torch's, and describe what is kept of it."""
    published = {file.name: file.sha256 for file in model.files}
    first_use = published.get(path.name) is None
    original = None
    try:
        if path.name == model.weights and path.suffix in PICKLES:
            original = Original(name=path.name, size=path.stat().st_size, sha256=digest)
            path = _converted(path, path.with_name(model.converted))
            digest = hash_file(path)
        if path.name == model.converted:
            _require_mark(model, path)
    except ModelError:
        path.unlink(missing_ok=True)  # of no use, and the next fetch must not find it
        raise
    status = path.stat()
    return InstalledFile(
        name=path.name,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=digest,
        first_use=first_use,
        original=original,
    )


def _converted(source: Path, target: Path) -> Path:
    part = target.with_name(f".{target.name}.part{SAFE}")
    try:
        convert(source, part)
        shutil.copymode(source, part)  # safetensors writes what only its owner can read
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    source.unlink()
    return target


def _require_mark(model: Model, path: Path) -> None:
    if model.mark is not None and not bears_mark(read_shapes(path), model.mark):
        name, shape = model.mark
        raise ModelError(
            f"{model.name}: these are not its weights: there is no {name} of the shape {shape}"
        )


def _keep_only(stage: Path, names: Collection[str]) -> None:
    """Delete what killed processes left in the stage, safetensors' own parts among it."""
    for path in stage.iterdir():
        if path.name not in names:
            path.unlink()


def _swap(name: str, folder: Path, stage: Path) -> None:
    """Put the stage in the place of the model; a process that has the old one open keeps it."""
    _sync(stage)
    target, old = folder / name, _old(name, folder)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    stage.rename(target)
    _sync(folder)
    for path in leftovers(name, folder):  # the old one, and parts of other revisions
        shutil.rmtree(path, ignore_errors=True)


def _put_back(name: str, folder: Path) -> None:
    """Put a model back that a killed process had just moved out of the way."""
    if not (folder / name).exists() and _old(name, folder).is_dir():
        _old(name, folder).rename(folder / name)


def _old(name: str, folder: Path) -> Path:
    return folder / INCOMING / f"{name}@old"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
