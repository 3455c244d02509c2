"""Files whose tags lie around the audio: ID3v2 in front, APEv2 and ID3v1 behind it.

MP3, AAC and TTA keep genre and mood in ID3v2; Monkey's Audio, WavPack, Musepack, OptimFROG and TAK
in APEv2. A second tag that names one is kept in step, since some players prefer it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import BinaryIO

from reclass_plex.containers import apev2, id3
from reclass_plex.containers.base import (
    GENRE,
    ContainerError,
    Edits,
    Found,
    Splice,
    has_values,
    read_at,
    size_of,
)


def read_front(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what an MP3 (AAC, TTA) file holds.

    ID3v2's genre counts, else APEv2's; ID3v1's only where no other tag stands: programs often
    leave "Blues" in it, its zero.
    """
    return _read(file, fields, _primary(file))


def edit_front(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the tags of an MP3 (AAC, TTA) file."""
    return _edit(file, edits, _primary(file))


def read_behind(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what a Monkey's Audio (WavPack, Musepack, OptimFROG, TAK) file holds."""
    return _read(file, fields, "apev2")


def edit_behind(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the tags of a Monkey's Audio (WavPack, ...) file."""
    return _edit(file, edits, "apev2")


def front_tag(file: BinaryIO) -> bytes:
    """Return the ID3v2 tag at the beginning of the file, b"" if there is none."""
    head = read_at(file, 0, min(id3.HEADER, size_of(file)))
    return read_at(file, 0, min(id3.tag_size(head), size_of(file)))


def _primary(file: BinaryIO) -> str:
    """Return "id3" or "apev2": whose genre counts.

    An MP3 that is described in an APEv2 tag alone stays so: a new ID3 tag with nothing but a
    genre would hide the rest from many players.
    """
    tag = None if front_tag(file) else apev2.find_tag(file)
    return "apev2" if tag and apev2.read_tag(tag).texts else "id3"


def _read(file: BinaryIO, fields: Collection[str], primary: str) -> Found:
    front, behind, v1 = front_tag(file), apev2.find_tag(file), apev2.find_id3v1(file)
    first = id3.read_tag(front, fields) if front else Found("id3v2.4")
    second = apev2.read_tag(behind, fields) if behind else Found("apev2")
    rest = [*second.rest, v1[:-1] if "genre" in fields else v1, *first.rest]
    if primary == "apev2":
        first, second = second, first
    texts = {**(id3.read_id3v1(v1) if v1 else {}), **second.texts, **first.texts}
    if (front or behind) and "genre" not in {**first.texts, **second.texts}:
        texts.pop("genre", None)
    return Found(first.format, texts, rest)


def _edit(file: BinaryIO, edits: Edits, primary: str) -> list[Splice]:
    front, behind, v1 = front_tag(file), apev2.find_tag(file), apev2.find_id3v1(file)
    splices = []
    if front and primary == "apev2":
        raise ContainerError("has an ID3 tag in front, where its format knows none")
    if front:
        splices.append(Splice(0, len(front), id3.edit_tag(front, edits)))
    elif primary == "id3" and has_values(edits, "id3v2.4"):
        splices.append(Splice(0, 0, id3.new_tag(edits, v1)))
    second = edits
    if primary == "id3":
        named = apev2.read_tag(behind).texts if behind else {}
        second = {field: values for field, values in edits.items() if field in named}
    if second:
        splices += apev2.edit_tag(file, behind, second)
    if v1 and "genre" in edits:
        number = id3.id3v1_genre(edits["genre"]("names"))
        splices.append(Splice(size_of(file) - 1, 1, bytes([number])))
    return splices
