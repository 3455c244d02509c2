"""JSON files of ours that outlive a version: cards, ensembles, manifests of models.

One without a key `format` has format 1. The first change that a version from before cannot read
writes format 2, so that such a version says so instead of calling the file damaged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from reclass_plex.errors import ModelError, printable

FORMAT = 1  # the newest that this version reads
T = TypeVar("T", bound=BaseModel)


def read_file(path: Path, model: type[T]) -> T:
    """Read a file of the newest format or an earlier one.

    Raises ModelError, naming the file and the key; OSError if it cannot be read.
    """
    data = path.read_bytes()
    refuse_newer(path, data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{printable(path)}: {key and f'{key}: '}{first['msg']}") from error


def refuse_newer(path: Path, data: bytes) -> None:
    """Raise ModelError if a file's content says that it is of a later format."""
    try:
        said = json.loads(data)
        written = said.get("format", FORMAT) if isinstance(said, dict) else FORMAT
    except ValueError:  # for the reader to say
        return
    if isinstance(written, int) and written > FORMAT:
        raise ModelError(
            f"{printable(path)}: was written by a newer reclass-plex (format {written}, this"
            f" version reads up to {FORMAT}): upgrade reclass-plex, or install what this version"
            " made"
        )
