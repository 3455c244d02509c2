"""What the containers share: what was found in one, and edits told as splices."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

# Which of a container's texts are read; the keys that hold them are each module's data.
FIELDS = ("genre", "album", "album_artist", "title", "artist")

Values = Callable[[str], list[str]]
"""From a tag format ("id3v2.3") to the values that the genre shall have in it (none: no
genre); from "genres" to the genres themselves."""


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
    FIELDS to its values as they are in the file. `rest` is everything else that an edit of the
    genre must leave alone, piece by piece and in order; only padding is in neither. What a new
    tag brings with it (its version, a vendor string) comes last.
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


def replace_first(pieces: list[bytes], mine: list[bool], new: list[bytes]) -> list[bytes]:
    """Return `pieces` without those that are `mine`, with `new` where the first of them was.

    At the end, if none was.
    """
    place = mine.index(True) if True in mine else len(pieces)
    before = pieces[:place]
    after = [
        piece for piece, is_mine in zip(pieces[place:], mine[place:], strict=True) if not is_mine
    ]
    return before + new + after
