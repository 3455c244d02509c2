"""Fetching a model: looked up, room made sure of, transferred, checked, installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reclass_plex.errors import ModelError
from reclass_plex.models.catalogue import Model, PublishedFile
from reclass_plex.models.download import Patience, Remote, Source
from reclass_plex.models.install import (
    PART,
    Say,
    already_there,
    check_file,
    install,
    make_stage,
    require_licence,
    require_space,
)
from reclass_plex.models.installed import Manifest, Pin, expected, locked, read_pins

OnBytes = Callable[[str, int, int], None]  # file, bytes that are here, bytes in all (perhaps about)

_SMALL = 64 << 20  # bytes: the most that a file may have beyond twice what it is about


def fetch_model(
    model: Model,
    folder: Path,
    *,
    mirror: str | None = None,
    accepted: bool = False,
    force: bool = False,
    patience: Patience | None = None,
    on_bytes: OnBytes = lambda name, here, due: None,
    say: Say = lambda text: None,
) -> Manifest:
    """Install a model from where it is published, or from a mirror; go on where a former try ended.

    A model that is whole stays, unless `force`. Raises ModelError (licence not accepted, not
    reached, refused), ConfigError (bad address), NoSpace and ReadOnly.
    """
    acceptance = require_licence(model, folder, accepted=accepted)

    def waiting() -> None:
        say(f"{model.name}: another process is fetching it; waiting")

    with locked(model.name, folder, waiting):
        if not force and (there := already_there(model, folder)) is not None:
            say(f"{model.name}: is there already")
            return there
        source = Source(mirror, patience)
        try:
            stage = make_stage(model, folder)
            pins = read_pins(model, folder)
            remotes = [_look_up(source, model, file, pins) for file in model.files]
            _require_space(model, folder, stage, remotes)
            digests = {}
            for file, remote in zip(model.files, remotes, strict=True):
                digests[file.name] = _fetch_file(source, file, remote, stage, pins, on_bytes)
        finally:
            source.close()
        return install(
            model, folder, stage, digests, accepted=acceptance, origin=source.name, say=say
        )


def _look_up(source: Source, model: Model, file: PublishedFile, pins: dict[str, Pin]) -> Remote:
    """Ask for a file, and refuse before a byte is sent what cannot be the one that is due."""
    remote = source.look_up(model.repository, model.revision, file.name)
    size, sha256 = expected(file, pins)
    if size is not None and remote.size is not None and remote.size != size:
        raise ModelError(
            f"{source.name}: offers a {file.name} of {remote.size:,} bytes instead of {size:,}:"
            " it is not the file that was published"
        )
    if sha256 is not None and remote.sha256 is not None and remote.sha256 != sha256:
        raise ModelError(
            f"{source.name}: offers a {file.name} with the SHA-256 {remote.sha256[:16]}... instead"
            f" of {sha256[:16]}...: it is not the file that was published"
        )
    if remote.size is not None and remote.size > _limit(file):
        raise ModelError(
            f"{source.name}: offers a {file.name} of {remote.size:,} bytes, where about"
            f" {file.length:,} are due"
        )
    return Remote(remote.url, size if remote.size is None else remote.size, remote.sha256)


def _fetch_file(
    source: Source,
    file: PublishedFile,
    remote: Remote,
    stage: Path,
    pins: dict[str, Pin],
    on_bytes: OnBytes,
) -> str:
    """Bring one file into the stage; return its digest. What is wrong is deleted."""
    whole, part = stage / file.name, stage / (file.name + PART)
    due = remote.size or file.length
    # The publisher's own digest guards what ours does not know, against damage if not against him.
    known = expected(file, pins)[1] is not None
    told = file if known else file.model_copy(update={"sha256": remote.sha256})
    for attempt in range(2):
        resumed = part.exists() or whole.exists()
        if not whole.exists():
            source.fetch(
                remote,
                part,
                limit=_limit(file),
                on_bytes=lambda here: on_bytes(file.name, here, due),
            )
            part.rename(whole)
        try:
            return check_file(whole, told, pins, source.name)
        except ModelError:
            whole.unlink()
            # The first half may be of a former try, of another server even: once more from the
            # start tells whether this server is wrong.
            if not resumed or attempt:
                raise
    raise AssertionError  # the second attempt returns or raises


def _limit(file: PublishedFile) -> int:
    return file.size if file.size is not None else 2 * file.about + _SMALL


def _require_space(model: Model, folder: Path, stage: Path, remotes: list[Remote]) -> None:
    there = due = 0
    for file, remote in zip(model.files, remotes, strict=True):
        due += remote.size or file.length
        for path in (stage / file.name, stage / (file.name + PART)):
            there += path.stat().st_size if path.exists() else 0
    require_space(model, folder, there, due)
