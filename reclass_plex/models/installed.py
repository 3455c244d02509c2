"""What lies in the models' folder: found, examined, verified, removed.

    FOLDER/NAME/manifest.json   what the files beside it should be, the licence, who accepted it
    FOLDER/NAME/...             the weights, and the small files they need
    FOLDER/NAME.pins.json       sizes and digests that were trusted on first use; outlives NAME/
    FOLDER/.incoming/           what is being fetched; never looked at by `find_model`

NAME/ comes into being by one rename, with its manifest, so that it is whole or is not there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from reclass_plex.errors import ModelError, ReadOnly, printable
from reclass_plex.files import hold_lock
from reclass_plex.formats import refuse_newer
from reclass_plex.models.catalogue import (
    Digest,
    Model,
    Name,
    PublishedFile,
    Record,
    models_folder,
)

MANIFEST = "manifest.json"
INCOMING = ".incoming"
_READ = 1 << 20  # bytes at a time


class Original(Record):
    """The published file that an installed one was converted from."""

    name: Name
    size: int
    sha256: Digest


class InstalledFile(Record):
    """One file of a model on disk. `mtime_ns` saves hashing it whenever it is looked for."""

    name: Name
    size: int = Field(ge=0)
    mtime_ns: int
    sha256: Digest
    first_use: bool  # nobody published its digest: it was taken as it came
    original: Original | None = None


class Acceptance(Record):
    """That the user accepted the licence, and when: ISO 8601, UTC."""

    licence: str
    date: str


class Manifest(Record):
    """What was installed, from where, and under which licence. Times are ISO 8601, UTC."""

    version: int = Field(default=1, ge=1, le=1)
    model: Name
    repository: str
    revision: str
    licence: str
    accepted: Acceptance | None
    fetched: str
    origin: str
    files: tuple[InstalledFile, ...] = Field(min_length=1)


class Pin(Record):
    """The size and digest that a file had when it first came."""

    size: int
    sha256: Digest


class Pins(Record):
    """What was trusted on first use. It holds for one revision."""

    model: Name
    revision: str
    files: dict[Name, Pin]


def read_manifest(name: str, folder: Path) -> Manifest | None:
    """Return the manifest of an installed model, None if there is none. Raises ModelError."""
    path = folder / name / MANIFEST
    try:
        data = path.read_bytes()
        refuse_newer(path, data)
        return Manifest.model_validate_json(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ModelError(
            f"{printable(path)}: is damaged ({error.error_count()} faults); fetch it again:"
            f" reclass-plex models fetch --force {name}"
        ) from None


def read_pins(model: Model, folder: Path) -> dict[str, Pin]:
    """Return what was trusted on first use, by file. Raises ModelError if it is damaged."""
    path = pins_path(model.name, folder)
    try:
        pins = Pins.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ModelError(
            f"{printable(path)}: is damaged ({error.error_count()} faults); delete it to trust"
            " the next fetch anew"
        ) from None
    return pins.files if pins.revision == model.revision else {}


def pins_path(name: str, folder: Path) -> Path:
    """Return where the pins of a model stand: beside its folder, so that they outlive it."""
    return folder / f"{name}.pins.json"


def find_model(name: str, folder: Path | None = None) -> Path | None:
    """Return the folder of an installed, whole model, or None: `why_missing` says why.

    Cheap: sizes and times are compared with the manifest. Only a file whose time changed (a
    restored backup, say) is read, and once found right its new time is noted.
    """
    folder = models_folder() if folder is None else folder
    return None if why_missing(name, folder) else folder / name


def why_missing(name: str, folder: Path | None = None) -> str | None:
    """Return why `find_model` finds nothing, for people, or None if it does."""
    folder = models_folder() if folder is None else folder
    try:
        manifest = read_manifest(name, folder)
        if manifest is None:
            return f"{name} is not fetched; to have it: reclass-plex models fetch {name}"
        faults = list(_faults(manifest, folder, thorough=False))
    except ModelError as error:
        return str(error)
    again = f"fetch it again: reclass-plex models fetch --force {name}"
    return f"{name} is damaged: {faults[0]}; {again}" if faults else None


def verify_model(name: str, folder: Path) -> list[str]:
    """Read every file of an installed model; return what is wrong. Raises ModelError."""
    manifest = read_manifest(name, folder)
    if manifest is None:
        raise ModelError(f"{name}: is not fetched; to have it: reclass-plex models fetch {name}")
    return list(_faults(manifest, folder, thorough=True))


def remove_model(name: str, folder: Path, *, forget: bool = False) -> int:
    """Delete an installed model and what is left of fetches of it; return the bytes freed.

    `forget` deletes its pins too, so that the next fetch trusts anew what comes. Raises
    ModelError if there is nothing to remove, ReadOnly if it cannot be removed.
    """
    if not folder.is_dir():
        raise ModelError(f"{name}: is not fetched; there is nothing to remove")
    with locked(name, folder):
        doomed = [*leftovers(name, folder)]
        if (folder / name).is_dir():
            doomed.append(folder / name)
        if forget and pins_path(name, folder).exists():
            doomed.append(pins_path(name, folder))
        if not doomed:
            raise ModelError(f"{name}: is not fetched; there is nothing to remove")
        freed = sum(_size(path) for path in doomed)
        try:
            for path in doomed:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise ReadOnly(path, f"cannot be removed: {error.strerror}") from error
        return freed


def _faults(manifest: Manifest, folder: Path, *, thorough: bool) -> Iterator[str]:
    touched: dict[str, int] = {}
    for file in manifest.files:
        path = folder / manifest.model / file.name
        try:
            status = path.stat()
            if status.st_size != file.size:
                yield f"{file.name} has {status.st_size:,} bytes instead of {file.size:,}"
                continue
            if thorough or status.st_mtime_ns != file.mtime_ns:
                found = hash_file(path) if thorough else _hash_once(path, status.st_mtime_ns)
                if found != file.sha256:
                    yield f"{file.name} has other contents than were fetched"
                elif status.st_mtime_ns != file.mtime_ns:
                    touched[file.name] = status.st_mtime_ns
        except OSError as error:
            yield f"{file.name} cannot be read: {error.strerror}"
    if touched:
        files = tuple(
            file.model_copy(update={"mtime_ns": touched.get(file.name, file.mtime_ns)})
            for file in manifest.files
        )
        # Where the folder cannot be written (a service's view of it), it is hashed again next time.
        with contextlib.suppress(OSError):
            write_record(
                folder / manifest.model / MANIFEST, manifest.model_copy(update={"files": files})
            )


def expected(file: PublishedFile, pins: dict[str, Pin]) -> tuple[int | None, str | None]:
    """Return the size and digest that a file must have, as far as they are known."""
    pin = pins.get(file.name)
    return (
        file.size if file.size is not None or pin is None else pin.size,
        file.sha256 if file.sha256 is not None or pin is None else pin.sha256,
    )


@functools.lru_cache(maxsize=16)
def _hash_once(path: Path, mtime_ns: int) -> str:
    """Hash a file once a process and time: it is looked for more often than it changes."""
    return hash_file(path)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ):
            digest.update(block)
    return digest.hexdigest()


def write_record(path: Path, record: Record) -> None:
    """Write JSON in one step: a reader sees the former file or the new one, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(record.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def incoming(model: Model, folder: Path) -> Path:
    """Return where the files of a model gather while it is being fetched."""
    return folder / INCOMING / f"{model.name}@{model.revision[:12]}"


def leftovers(name: str, folder: Path) -> Iterator[Path]:
    """Yield what fetches that did not end left of a model."""
    # "@" is in no name, so that mert-95m is not the start of another model's folder
    yield from (folder / INCOMING).glob(f"{name}@*")


@contextlib.contextmanager
def locked(name: str, folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one process at a time change a model; `waiting` is called if another is at it.

    Raises ReadOnly if the folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder / f".{name}.lock", waiting))
        except OSError as error:
            raise ReadOnly(
                folder, f"cannot be written: {error.strerror}; name another folder in models.folder"
            ) from error
        yield


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
