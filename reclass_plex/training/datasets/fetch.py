"""Getting a dataset: room made sure of, transferred, checked, unpacked, put in place.

What breaks off goes on where it ended. Archives are deleted once they are unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from reclass_plex.download import Patience, Remote, Transfer, Wording, without_login
from reclass_plex.errors import ConfigError, printable, visible
from reclass_plex.training.datasets.collection import DatasetError
from reclass_plex.training.datasets.install import (
    OnBytes,
    Say,
    check_file,
    install,
    limit_of,
    make_stage,
    require_space,
)
from reclass_plex.training.datasets.installed import is_installed, locked, read_trusted
from reclass_plex.training.datasets.published import Component, Dataset, PublishedFile

_PART = ".part"
_WORDING = Wording(
    DatasetError,
    "Another address: --mirror URL, that of a folder with the same files. With the files from"
    " elsewhere: reclass-plex dataset import NAME FILE...",
    {
        401: "it asks for a login: put it into the mirror's address",
        403: "it forbids the access",
        404: "it does not have this file; perhaps it has moved: --mirror URL names another place",
        407: "the proxy asks for a login: put it into $https_proxy",
    },
)


def fetch_component(
    dataset: Dataset,
    component: Component,
    folder: Path,
    *,
    mirror: str | None = None,
    force: bool = False,
    patience: Patience | None = None,
    on_bytes: OnBytes = lambda name, here, due: None,
    say: Say = lambda text: None,
) -> Path:
    """Fetch a component from where it is published, or from a mirror (MIRROR/FILE).

    One that is there stays, unless `force`. Returns its folder. Raises DatasetError (not reached,
    not what was published, not to be trusted), ConfigError (bad address), NoSpace and ReadOnly.
    """
    addresses = find_addresses(dataset, component, mirror)
    with locked(component, folder, lambda: _waiting(component, say)):
        stage = make_stage(component, folder)
        if is_installed(component, folder) and not force:
            say(f"{component.name}: is there already")
            return folder / component.name
        require_space(component, folder, stage, component.length)
        trusted = read_trusted(component, folder)
        digests = {}
        for file, url in zip(component.files, addresses, strict=True):
            transfer = Transfer(visible(without_login(url.rpartition("/")[0])), _WORDING, patience)
            try:
                digests[file.name] = _fetch_file(transfer, url, file, stage, trusted, on_bytes)
            finally:
                transfer.close()
        source = visible(without_login(addresses[0]))
        paths = [stage / file.name for file in component.files]
        return install(dataset, component, folder, paths, digests, source, on_bytes, say)


def import_component(
    dataset: Dataset,
    component: Component,
    files: Sequence[Path],
    folder: Path,
    *,
    on_bytes: OnBytes = lambda name, here, due: None,
    say: Say = lambda text: None,
) -> Path:
    """Take a component from files that the user has, in the component's order; they stay.

    Raises DatasetError, NoSpace and ReadOnly as `fetch_component` does.
    """
    with locked(component, folder, lambda: _waiting(component, say)):
        stage = make_stage(component, folder)
        there = sum(path.stat().st_size for path in files) if component.archive else 0
        require_space(component, folder, stage, component.length, there)
        trusted = read_trusted(component, folder)
        digests = {}
        for file, path in zip(component.files, files, strict=True):
            digests[file.name] = check_file(path, file, trusted, printable(path.parent))
        source = printable(files[0].absolute())
        return install(dataset, component, folder, files, digests, source, on_bytes, say)


def match_files(dataset: Dataset, paths: Sequence[Path]) -> list[tuple[Component, list[Path]]]:
    """Return the components that these files, or the files in these folders, make up.

    Raises DatasetError if they make up none.
    """
    by_name: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise DatasetError(f"{printable(path)}: there is no such file or folder")
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        by_name |= {one.name: one for one in found if one.is_file()}
    matched = [
        (component, [by_name[file.name] for file in component.files])
        for component in dataset.components
        if all(file.name in by_name for file in component.files)
    ]
    if not matched:
        due = "; or ".join(
            " and ".join(file.name for file in component.files) for component in dataset.components
        )
        wanted = f"it is made of {due}" if due else dataset.get
        raise DatasetError(f"{dataset.name}: none of its files is here: {wanted}")
    return matched


def find_addresses(dataset: Dataset, component: Component, mirror: str | None) -> list[str]:
    """Return where its files are fetched from. Raises DatasetError if that is nowhere, ConfigError
    for a bad mirror."""
    return [_address(file, mirror, dataset) for file in component.files]


def _address(file: PublishedFile, mirror: str | None, dataset: Dataset) -> str:
    if mirror is None:
        if file.url is None:
            raise DatasetError(f"{dataset.name}: {file.name} has no address. {dataset.get}")
        return file.url
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--mirror {visible(without_login(mirror))}: must begin with http:// or https://; files"
            " are taken with: reclass-plex dataset import NAME FILE..."
        )
    return f"{mirror.rstrip('/')}/{quote(file.name)}"


def _waiting(component: Component, say: Say) -> None:
    say(f"{component.name}: another process is at it; waiting")


def _fetch_file(
    transfer: Transfer,
    url: str,
    file: PublishedFile,
    stage: Path,
    trusted: dict[str, str],
    on_bytes: OnBytes,
) -> str:
    """Bring one file into the stage; return its SHA-256. What is wrong is deleted."""
    whole, part = stage / file.name, stage / (file.name + _PART)
    for attempt in range(2):
        resumed = whole.exists() or part.exists()
        if not whole.exists():
            remote = _look_up(transfer, url, file)
            due = remote.size or file.length
            transfer.fetch(
                remote,
                part,
                limit=limit_of(file),
                on_bytes=lambda here, due=due: on_bytes(file.name, here, due),  # type: ignore[misc]
            )
            part.rename(whole)
        try:
            return check_file(whole, file, trusted, transfer.name)
        except DatasetError:
            whole.unlink()
            # The first half may be of a former try, of another server even: once more from the
            # start tells whether this server is wrong.
            if not resumed or attempt:
                raise
    raise AssertionError  # the second attempt returns or raises


def _look_up(transfer: Transfer, url: str, file: PublishedFile) -> Remote:
    """Ask for a file, and refuse before a byte is sent what cannot be the one that is due."""
    remote = transfer.ask(url)
    if remote.size is None:
        return Remote(url, file.size, remote.sha256)
    if remote.size > limit_of(file) or (file.size is not None and remote.size != file.size):
        raise DatasetError(
            f"{transfer.name}: offers a {file.name} of {remote.size:,} bytes, where"
            f" {'' if file.size else 'about '}{file.length:,} are due: it is not the file that was"
            " published"
        )
    return remote
