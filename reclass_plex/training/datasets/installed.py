"""Datasets on disk: where they are, what was trusted, and whether every file is still the same.

    DATASETS/
      fma_metadata/          a component, whole, since it came into being by one rename
        SHA256SUMS           of every file in it, in the format of sha256sum
        origin.json          where its files came from, and under which licence
      .incoming/fma_small/   what is still being fetched
      .trusted/              digests of files for which none is published, as they first came

Data of the files is not forced to disk one by one (a hundred thousand of them would take hours):
after a power cut `verify` tells whether all of it arrived.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from reclass_plex.errors import FileError, NoSpace, ReadOnly, printable
from reclass_plex.files import hold_lock
from reclass_plex.training.datasets.collection import DatasetError
from reclass_plex.training.datasets.published import Component, Dataset

SUMS = "SHA256SUMS"
ORIGIN = "origin.json"
INCOMING = ".incoming"
TRUSTED = ".trusted"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Unpacked:
    """A file that was unpacked: its path below the folder, and the SHA-256 of its contents."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Origin:
    """Where a component came from: `files` are the published files, by name, with their SHA-256."""

    component: str
    fetched: str  # ISO 8601
    source: str
    licence: str
    files: dict[str, str]


def datasets_folder(named_folder: Path | None = None) -> Path:
    """Return where datasets are: the named folder, or $XDG_DATA_HOME/reclass-plex/datasets."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    folder = named_folder if named_folder is not None else Path(data) / "reclass-plex" / "datasets"
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise DatasetError(
            f"{printable(folder)}: whose home is meant is not known; set HOME, or name a full path"
            " with --folder"
        ) from error


def is_installed(component: Component, folder: Path) -> bool:
    """Say whether a component is there. Whether its files are unharmed, only `verify` knows."""
    return (folder / component.name / SUMS).is_file()


def require(component: Component, folder: Path, dataset: Dataset) -> Path:
    """Return the folder of a component. Raises DatasetError, saying how to get it."""
    if not is_installed(component, folder):
        how = (
            f"reclass-plex dataset fetch {dataset.name}"
            if component.files[0].url is not None
            else dataset.get
        )
        raise DatasetError(
            f"{dataset.name}: {printable(folder)} does not hold its {component.part}."
            f" To get it: {how}"
        )
    return folder / component.name


def verify_component(
    component: Component, folder: Path, on_file: Callable[[int], None] = lambda count: None
) -> Iterator[str]:
    """Read every file of a component, and yield what is wrong: one text a file."""
    place = folder / component.name
    for name, digest in read_sums(place / SUMS).items():
        try:
            if hash_file(place / name, ["sha256"])["sha256"] != digest:
                yield f"{printable(place / name)}: differs from what was fetched"
        except FileNotFoundError:
            yield f"{printable(place / name)}: is missing"
        except OSError as error:
            yield f"{printable(place / name)}: cannot be read: {error.strerror}"
        on_file(1)


def read_sums(path: Path) -> dict[str, str]:
    """Return the digests of a list as sha256sum writes it, by name. Raises FileError."""
    digests = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                digest, separator, name = line.rstrip("\n").partition("  ")
                if not separator or len(digest) != 64:
                    raise FileError(path, f"line {number} is not 'digest  name'; fetch it anew")
                digests[name] = digest
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    return digests


def complete(place: Path, files: Iterable[Unpacked], origin: Origin) -> None:
    """Write what makes a folder of files a component. Raises NoSpace or ReadOnly."""
    lines = [f"{one.sha256}  {one.name}\n" for one in files if one.name not in (SUMS, ORIGIN)]
    try:
        _write(place / SUMS, "".join(lines))
        _write(place / ORIGIN, json.dumps(asdict(origin), indent=2) + "\n")
    except OSError as error:
        raise named(error, place) from error


def read_origin(component: Component, folder: Path) -> Origin | None:
    """Return where a component came from; None if it is not there, or that cannot be read."""
    try:
        data = json.loads((folder / component.name / ORIGIN).read_text(encoding="utf-8"))
        return Origin(**data)
    except (OSError, ValueError, TypeError):
        return None


def read_trusted(component: Component, folder: Path) -> dict[str, str]:
    """Return the SHA-256 of files that were trusted when they first came, by name."""
    path = folder / TRUSTED / f"{component.name}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read: {error}; delete it to trust anew") from error
    if not isinstance(data, dict):
        raise FileError(path, "holds no digests by name; delete it to trust anew")
    return {str(name): str(digest) for name, digest in data.items()}


def write_trusted(component: Component, folder: Path, digests: Mapping[str, str]) -> None:
    """Remember the digests of files for which none is published. Raises NoSpace or ReadOnly."""
    path = folder / TRUSTED / f"{component.name}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        _write(part, json.dumps(dict(digests), indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        raise named(error, path) from error


def named(error: OSError, path: Path) -> NoSpace | ReadOnly:
    """Return what a failure to write means."""
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else ReadOnly
    return kind(path, f"cannot be written: {error.strerror}")


def hash_file(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Return a file's digests in hexadecimal, by algorithm, after reading it once."""
    digests = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            for digest in digests.values():
                digest.update(block)
    return {algorithm: digest.hexdigest() for algorithm, digest in digests.items()}


@contextmanager
def locked(component: Component, folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time change a component; `waiting` is called if another is at it."""
    place = folder / INCOMING
    with ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(place / f"{component.name}.lock", waiting))
        except OSError as error:
            raise named(error, place) from error
        yield


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
