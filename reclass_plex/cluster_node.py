"""What a machine of a cluster does: it examines and hears the files that the one writer names.

It is made of the same parts as one machine's worker, decoders in processes of their own and the
ensemble in threads, and it has neither store nor queue. It changes nothing. Audio is decoded where
it is heard, so that only tags, digests, verdicts and embeddings travel. Ray is not imported here.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reclass_plex.errors import DeviceError, FileChanged, FileError, ModelError, printable
from reclass_plex.files import FoundFile

NOT_THE_SAME = "is not the same on {} (size or time): is it being written?"
# Each track is heard on one core, whatever the number of cores: sums are then the same everywhere.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Introduction:
    """What a machine says of itself, and of samples: what each is there, or why it is not seen."""

    version: str
    code: str
    models: str
    notes: tuple[str, ...]
    samples: tuple[FoundFile | str, ...]


@dataclass(frozen=True)
class Answer:
    """What became of one file: `result`, or the file's `error`, or that the machine is `unfit`."""

    result: Any = None
    error: FileError | None = None
    unfit: str | None = None


def version() -> str:
    """Return the version that is installed here."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reclass-plex")
    except PackageNotFoundError:  # from a checkout that was not installed
        return "unknown"


def code_digest(package: Path = Path(__file__).parent) -> str:
    """Return 32 hexadecimal digits that stand for the program's text.

    A version's number does not tell a checkout from the one that it was an hour ago. Order and
    grouping of sums are not in the models' fingerprint, and show in an embedding's last digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\n{len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


class Node:
    """The models and decoders of one machine, or of one of its GPUs. Loaded once, when made.

    `order` is the part of the configuration that hearing goes by, as JSON; `threads` tracks are
    heard at once. Methods may be called from any number of threads.
    """

    def __init__(self, order: str, threads: int) -> None:
        """Load everything. Raises ModelError, DeviceError, ValidationError."""
        os.environ.update(ONE_THREAD)  # before torch and numpy are there
        from reclass_plex.config import Config
        from reclass_plex.decoders import Decoders, Limits
        from reclass_plex.device import choose_device
        from reclass_plex.ensemble import Ensemble

        config = Config.model_validate_json(order)
        self._tags = config.tags
        self._ensemble = Ensemble.from_config(config, choose_device(config.worker.device))
        self._ensemble.load()
        self._models = self._ensemble.fingerprint
        self._code = code_digest()
        self._decoders = Decoders(config.worker.decoders or threads, Limits.of(config.worker))

    def introduce(self, paths: Sequence[Path]) -> Introduction:
        """Say what is here, and what these files are here."""
        samples = tuple(map(_find, paths))
        return Introduction(version(), self._code, self._models, self._ensemble.notes, samples)

    def examine(self, file: FoundFile) -> Answer:
        """Read a file's tags and audio digest, as `decoding.examine_file` does."""
        missing = _look(file)
        if missing is not None:
            return missing
        try:
            return Answer(self._decoders.examine(file.path, self._tags))
        except FileError as error:
            return _look(file) or Answer(error=error)

    def hear(self, file: FoundFile) -> Answer:
        """Decode a file and let the ensemble vote, as `pipeline.classify_file` does."""
        from reclass_plex.pipeline import classify_file

        missing = _look(file)
        if missing is not None:
            return missing
        try:
            heard = classify_file(file.path, self._ensemble, self._decoders.decode)
        except FileError as error:
            return _look(file) or Answer(error=error)
        except (DeviceError, ModelError) as error:
            return Answer(unfit=str(error))
        if self._ensemble.fingerprint != self._models:
            return Answer(unfit="a stage had to be left out, so that its verdicts would be others")
        return Answer(heard)


def _look(file: FoundFile) -> Answer | None:
    """Return None if the file is here as the writer sees it."""
    found = _find(file.path)
    if isinstance(found, str):
        return Answer(unfit=found)
    if found == file:
        return None
    return Answer(error=FileChanged(file.path, NOT_THE_SAME.format(platform.node())))


def _find(path: Path) -> FoundFile | str:
    """Return what a file is here, or why it is not seen."""
    try:
        status = path.stat()
    except OSError as error:
        return f"does not see {printable(path)}: {(error.strerror or str(error)).lower()}"
    return FoundFile(path, status.st_size, status.st_mtime_ns)
