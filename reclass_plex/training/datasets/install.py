"""From files that have gathered to a component: checked, unpacked, put in place by one rename."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from reclass_plex.errors import NoSpace, ReadOnly, printable
from reclass_plex.files import sync_folder
from reclass_plex.training.datasets.archives import Joined, unpack
from reclass_plex.training.datasets.collection import DatasetError
from reclass_plex.training.datasets.installed import (
    INCOMING,
    Origin,
    Unpacked,
    complete,
    hash_file,
    named,
    write_trusted,
)
from reclass_plex.training.datasets.published import Component, Dataset, PublishedFile

OnBytes = Callable[[str, int, int], None]  # what, bytes that are here, bytes in all (perhaps about)
Say = Callable[[str], None]

_UNPACKED = "unpacked"
_OLD = "old"  # the component that is being replaced
_SLACK = 64 << 20  # bytes: the most that something may have beyond twice what it is about
_SPARE = 1.02  # of the bytes that are due: what the file system itself needs


def make_stage(component: Component, folder: Path) -> Path:
    """Return the folder in which a component gathers. Half unpacked files are deleted."""
    stage = folder / INCOMING / component.name
    try:
        stage.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(stage / _UNPACKED, ignore_errors=True)
        _put_back(component, folder)
    except OSError as error:
        raise named(error, stage) from error
    return stage


def _put_back(component: Component, folder: Path) -> None:
    """Put a component back that a killed process had just moved out of the way."""
    old, place = folder / INCOMING / component.name / _OLD, folder / component.name
    if old.is_dir() and not place.exists():
        old.rename(place)


def require_space(
    component: Component, folder: Path, stage: Path, due: int, there: int | None = None
) -> None:
    """Raise NoSpace unless what is still to come fits, and what will be unpacked from it."""
    if there is None:
        there = sum(path.stat().st_size for path in stage.iterdir() if path.is_file())
    need = int((max(0, due - there) + component.unpacked) * _SPARE)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise NoSpace(
            folder,
            f"{component.name} needs {need / 1e9:,.1f} GB free for a while, there are"
            f" {free / 1e9:,.1f} GB; make room, or name another folder with --folder",
        )


def limit_of(file: PublishedFile) -> int:
    """Return the most bytes that a file may have."""
    return file.size if file.size is not None else 2 * file.about + _SLACK


def check_file(path: Path, file: PublishedFile, trusted: dict[str, str], where: str) -> str:
    """Return a file's SHA-256. Raises DatasetError if it is not the one that is due."""
    algorithm, _, due = (file.digest or "sha256:").partition(":")
    try:
        found = path.stat().st_size
        digests = hash_file(path, {"sha256", algorithm})
    except OSError as error:
        raise DatasetError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    if file.size is not None and found != file.size:
        raise DatasetError(
            f"{where}: {file.name} has {found:,} bytes instead of {file.size:,}: it is not the"
            " file that was published, and was refused"
        )
    if due and digests[algorithm] != due:
        raise DatasetError(
            f"{where}: {file.name} has another {algorithm.upper()} than {due[:16]}...: it is not"
            " the file that was published, and was refused"
        )
    sha256 = digests["sha256"]
    if file.digest is None and trusted.get(file.name, sha256) != sha256:
        raise DatasetError(
            f"{where}: {file.name} is another than the one that came first, and was refused. No"
            " digest is published for it; to trust it anew: reclass-plex dataset fetch NAME"
            " --trust-anew"
        )
    return sha256


def install(
    dataset: Dataset,
    component: Component,
    folder: Path,
    paths: Sequence[Path],
    digests: dict[str, str],
    source: str,
    on_bytes: OnBytes,
    say: Say,
) -> Path:
    """Unpack or copy the checked files, and put all in place by one rename."""
    stage = folder / INCOMING / component.name
    fresh = stage / _UNPACKED
    try:
        if component.archive:
            files = _unpack(component, paths, fresh, on_bytes)
        else:
            files = _gather(stage, paths, fresh, digests)
        root, files = _without_top(fresh, files)
    except DatasetError as error:
        for path in stage.iterdir():  # of no use, and the next fetch must not find it
            if path.is_file():
                path.unlink()
        shutil.rmtree(fresh, ignore_errors=True)
        raise DatasetError(f"{component.name}: {error}") from error
    except (NoSpace, ReadOnly):
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    complete(root, files, Origin(component.name, now, source, dataset.licence, digests))
    new = {file.name for file in component.files if file.digest is None}
    if new:
        say(
            f"{component.name}: no digest is published for {', '.join(sorted(new))}: trusted as it"
            " came, and held to from now on"
        )
        write_trusted(component, folder, {name: digests[name] for name in new})
    place = folder / component.name
    try:
        if place.exists():
            shutil.rmtree(stage / _OLD, ignore_errors=True)
            place.rename(stage / _OLD)
        root.rename(place)
        sync_folder(folder)
    except OSError as error:
        raise named(error, place) from error
    shutil.rmtree(stage, ignore_errors=True)  # the archives, and the former component
    return place


def _unpack(
    component: Component, paths: Sequence[Path], fresh: Path, on_bytes: OnBytes
) -> tuple[Unpacked, ...]:
    label, due = f"{component.name}, unpacking", component.unpacked
    try:
        with Joined(paths) as joined:
            return unpack(
                io.BufferedReader(joined, 1 << 20),
                component.archive or "zip",
                fresh,
                limit=2 * component.unpacked + _SLACK,
                on_bytes=lambda here: on_bytes(label, here, due),
            )
    except OSError as error:  # of writing they have other names
        raise DatasetError(f"the archive cannot be read: {error.strerror}") from error


def _gather(
    stage: Path, paths: Sequence[Path], fresh: Path, digests: dict[str, str]
) -> tuple[Unpacked, ...]:
    """Move what was fetched, copy what is the user's."""
    try:
        fresh.mkdir()
        for path in paths:
            if path.parent == stage:
                path.rename(fresh / path.name)
            else:
                shutil.copyfile(path, fresh / path.name)
    except OSError as error:
        raise named(error, fresh) from error
    return tuple(Unpacked(name, digest) for name, digest in digests.items())


def _without_top(fresh: Path, files: tuple[Unpacked, ...]) -> tuple[Path, tuple[Unpacked, ...]]:
    """Leave out the folder that all of an archive's files are in, if they are in one."""
    tops = {one.name.partition("/")[0] for one in files}
    if len(tops) > 1 or not all("/" in one.name for one in files):
        return fresh, files
    shorter = tuple(Unpacked(one.name.partition("/")[2], one.sha256) for one in files)
    return fresh / tops.pop(), shorter
