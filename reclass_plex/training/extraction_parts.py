"""The work of an extraction while it is not finished: parts, each written at once or not at all.

    FOLDER/.parts/plan.json                what is being computed
    FOLDER/.parts/000000064-000000128.part recordings 64 to 127 of the collection

A part ends with a digest of itself, keyed with the plan's: what is torn, or of another plan, is
never taken. Parts may be of any length, since they are put together in the collection's order.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import printable
from reclass_plex.files import naming_errors, open_regular, sync_folder
from reclass_plex.training.extraction_workers import Failure, Features

log = logging.getLogger(__name__)

DIGEST_BYTES = 32
_NAME = re.compile(r"(\d{9})-(\d{9})\.part")


@dataclass(frozen=True)
class Part:
    """What became of neighbouring recordings: each its number of rows and digest, or a failure.

    `rows` are those of all, in order.
    """

    start: int
    outcomes: tuple[tuple[int, str] | Failure, ...]
    rows: npt.NDArray[np.floating]

    @property
    def stop(self) -> int:
        """The number of the next recording."""
        return self.start + len(self.outcomes)


class Parts:
    """The parts in `folder`, which exists. `seal` stands for the plan."""

    def __init__(self, folder: Path, seal: bytes) -> None:
        self.folder = folder
        self._seal = seal

    def write(self, start: int, outcomes: Sequence[Features | Failure]) -> None:
        """Keep what became of the recordings from number `start` on. Raises FileError."""
        told = [
            (len(outcome.rows), outcome.digest)
            if isinstance(outcome, Features)
            else (outcome.kind, outcome.reason)
            for outcome in outcomes
        ]
        rows = [outcome.rows for outcome in outcomes if isinstance(outcome, Features)]
        stream = io.BytesIO()
        np.savez(
            stream,
            outcomes=np.frombuffer(json.dumps(told).encode(), np.uint8),
            rows=np.concatenate(rows) if rows else np.zeros(0, np.float32),
        )
        content = stream.getbuffer()
        path = self.folder / f"{start:09d}-{start + len(outcomes):09d}.part"

        def write(file: IO[bytes]) -> None:
            file.write(content)
            file.write(self._digest(content))

        write_at_once(path, write)

    def read(self) -> Iterator[Part]:
        """Yield the parts in order. A damaged one is deleted and left out. Raises FileError."""
        for path in sorted(self.folder.iterdir()):
            if match := _NAME.fullmatch(path.name):
                part = self._read(path, int(match[1]), int(match[2]))
                if part is None:
                    log.warning("%s: is damaged, and is computed again", printable(path))
                    path.unlink()
                else:
                    yield part

    def _read(self, path: Path, start: int, stop: int) -> Part | None:
        with open_regular(path) as file, naming_errors(path, writing=False):
            content = file.readall()  # type: ignore[attr-defined]  # unbuffered, so it has it
        content, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if self._digest(content) != digest:
            return None
        with np.load(io.BytesIO(content)) as stored:
            told = json.loads(stored["outcomes"].tobytes())
            outcomes = tuple(
                (first, second) if isinstance(first, int) else Failure(first, second)
                for first, second in told
            )
            part = Part(start, outcomes, stored["rows"])
        return part if part.stop == stop else None

    def _digest(self, content: bytes | memoryview) -> bytes:
        return blake2b(content, digest_size=DIGEST_BYTES, key=self._seal).digest()


def write_at_once(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a file that is there whole or not at all. Raises FileError.

    One process at a time may write to `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with naming_errors(path, writing=True):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)
