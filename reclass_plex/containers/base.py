"""What the containers share: what was found in one, and edits told as splices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

# Which of a container's texts are read; the keys that hold them are each module's data.
FIELDS = ("genre", "mood", "album", "album_artist", "title", "artist")
EDITABLE = ("genre", "mood")
GENRE = frozenset({"genre"})
UNREADABLE = "\ufffd"  # stands for a mood that is there, but is no text

Values = Callable[[str], list[str]]
"""From a tag format ("id3v2.3") to the values that a field shall have in it (none: it goes);
from "names" to the names themselves."""

Edits = Mapping[str, Values]
"""What an edit sets, by field: some of EDITABLE. All others stay."""


class ContainerError(ValueError):
    """The container is damaged, or of a kind that cannot be edited safely; the text says which."""


@dataclass(frozen=True)
class Splice:
    """An edit: `length` bytes at `offset` of the file as it was are replaced by `data`."""

    offset: int
    length: int
    data: bytes


@dataclass(frozen=True)
class Found:
    """What a container holds.

    `format` is that of the tag a genre is written to, there or not yet. `texts` maps each of
    FIELDS to its values as they are in the file. `rest` is everything that an edit of the fields
    that were asked for must leave alone, piece by piece and in order; only padding is in neither.
    What a new tag brings with it (its version, a vendor string) comes last.
    """

    format: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    rest: Sequence[bytes] = ()


def size_of(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Return exactly `length` bytes at `offset`. Raises ContainerError if there are fewer."""
    data = os.pread(file.fileno(), length, offset)
    if len(data) != length:
        raise ContainerError("ends in the middle of its tags")
    return data


def has_values(edits: Edits, format_name: str) -> bool:
    """Tell whether an edit gives any field a value in this tag format."""
    return any(values(format_name) for values in edits.values())


def replace_fields(
    pieces: Sequence[bytes], owners: Sequence[str | None], new: Mapping[str, Sequence[bytes]]
) -> list[bytes]:
    """Return `pieces` with those of the fields in `new` replaced, each where its first one was.

    `owners` names the field of each piece. What had no piece comes at the end.
    """
    left = dict(new)
    result: list[bytes] = []
    for piece, owner in zip(pieces, owners, strict=True):
        if owner is not None and owner in new:
            result += left.pop(owner, ())
        else:
            result.append(piece)
    for more in left.values():
        result += more
    return result
