"""Vorbis comments: the block itself, and how FLAC keeps it.

Specifications: xiph.org, "Ogg Vorbis I format specification: comment field and header"; RFC 9639
(FLAC). Comments are kept as bytes, in order, whatever their case
or encoding; only those named GENRE or MOOD are replaced.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO

from reclass_plex.containers.base import (
    GENRE,
    ContainerError,
    Edits,
    Found,
    Splice,
    read_at,
    replace_fields,
    size_of,
)
from reclass_plex.containers.id3 import HEADER, tag_size

_FIELD_OF = {
    b"GENRE": "genre",
    b"MOOD": "mood",
    b"ALBUM": "album",
    b"ALBUMARTIST": "album_artist",
    b"ALBUM ARTIST": "album_artist",
    b"TITLE": "title",
    b"ARTIST": "artist",
}
_VENDOR = b"reclass-plex"  # of a comment block that we create; the encoder is not known

_STREAMINFO, _PADDING, _COMMENT = 0, 1, 4  # types of FLAC blocks
_LAST = 0x80  # flag of the last FLAC block
_MOST_TAGS = 1000  # ID3v2 tags in front
_MOST_ITEMS = 100_000  # comments; an empty one takes four bytes, so there may be millions
_LARGEST_BLOCK = (1 << 24) - 1  # bytes


# The comment block


@dataclass(frozen=True)
class Comments:
    """A parsed block; `tail` is what follows the comments (a framing bit, padding)."""

    vendor: bytes
    items: tuple[bytes, ...]
    tail: bytes

    def found(self, fields: Collection[str] = GENRE) -> Found:
        """Return the texts, and the rest as bytes."""
        texts: dict[str, list[str]] = {}
        for item in self.items:
            key, _, value = item.partition(b"=")
            if field := _FIELD_OF.get(key.upper()):
                texts.setdefault(field, []).append(value.decode("utf-8", "replace"))
        others = [item for item in self.items if _field_of(item) not in fields]
        return Found("vorbis", texts, [self.vendor, *others, self.tail.rstrip(b"\0")])

    def edited(self, edits: Edits) -> bytes:
        """Return the whole block, edited, without `tail`; a key keeps its case."""
        new = {}
        for field, values in edits.items():
            old = next((item for item in self.items if _field_of(item) == field), b"")
            key = old.partition(b"=")[0] or field.upper().encode()
            new[field] = [key + b"=" + text.encode("utf-8") for text in values("vorbis")]
        items = replace_fields(self.items, [_field_of(item) for item in self.items], new)
        pieces = [_sized(self.vendor), struct.pack("<I", len(items)), *map(_sized, items)]
        return b"".join(pieces)


def parse_comments(data: bytes) -> Comments:
    """Return the comment block at the beginning of `data`; the rest of it is its tail."""
    try:
        length = int.from_bytes(data[:4], "little")
        at = 4 + length
        vendor = data[4:at]
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        if count > _MOST_ITEMS and count <= (len(data) - at) // 4:
            raise ContainerError(f"has {count} Vorbis comments")
        items = []
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, at)
            items.append(data[at + 4 : at + 4 + length])
            at += 4 + length
            if at > len(data):
                raise ContainerError("its Vorbis comments are cut off")
    except struct.error as error:
        raise ContainerError("its Vorbis comments are cut off") from error
    return Comments(vendor, tuple(items), data[at:])


def _field_of(item: bytes) -> str | None:
    return _FIELD_OF.get(item.partition(b"=")[0].upper())


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


# FLAC: metadata blocks before the audio


@dataclass(frozen=True)
class _Block:
    kind: int
    data: bytes

    def render(self, last: bool) -> bytes:
        return (
            bytes([self.kind | (_LAST if last else 0)])
            + len(self.data).to_bytes(3, "big")
            + self.data
        )


def read_flac(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what a FLAC file holds."""
    _, _, blocks = _flac_blocks(file)
    comments = [block.data for block in blocks if block.kind == _COMMENT]
    found = parse_comments(comments[0]).found(fields) if comments else Found("vorbis")
    others = [bytes([block.kind]) + block.data for block in blocks if block.kind not in {1, 4}]
    return Found("vorbis", found.texts, [*others, *comments[1:], *found.rest])


def edit_flac(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits a FLAC file. An ID3 tag in front stays untouched."""
    start, end, blocks = _flac_blocks(file)
    place = next((i for i, block in enumerate(blocks) if block.kind == _COMMENT), None)
    if place is None:
        place = 1
        blocks.insert(1, _Block(_COMMENT, Comments(_VENDOR, (), b"").edited({})))
    comments = parse_comments(blocks[place].data)
    data = comments.edited(edits) + comments.tail
    if len(data) > _LARGEST_BLOCK:
        raise ContainerError("its Vorbis comments would become too large")
    blocks[place] = _Block(_COMMENT, data)
    grown = sum(4 + len(block.data) for block in blocks) - (end - start)
    for i, block in enumerate(blocks):
        room = len(block.data) - grown
        if block.kind == _PADDING and 0 <= room <= _LARGEST_BLOCK and grown:
            blocks[i] = _Block(_PADDING, bytes(room))
            break
    last = len(blocks) - 1
    new = b"".join(block.render(i == last) for i, block in enumerate(blocks))
    return [Splice(start, end - start, new)]


def _flac_blocks(file: BinaryIO) -> tuple[int, int, list[_Block]]:
    """Return where the blocks begin and end, and the blocks."""
    at = skip_id3(file)
    if read_at(file, at, 4) != b"fLaC":
        raise ContainerError("is not a FLAC file")
    start = at = at + 4
    blocks = []
    while True:
        head = read_at(file, at, 4)
        length = int.from_bytes(head[1:], "big")
        blocks.append(_Block(head[0] & ~_LAST, read_at(file, at + 4, length)))
        at += 4 + length
        if head[0] & _LAST:
            break
    if blocks[0].kind != _STREAMINFO:
        raise ContainerError("its FLAC header is damaged")
    return start, at, blocks


def skip_id3(file: BinaryIO) -> int:
    """Return where the ID3v2 tags at the beginning of the file end (0: there is none)."""
    at = 0
    for _ in range(_MOST_TAGS):
        size = tag_size(read_at(file, at, min(HEADER, size_of(file) - at)))
        if not size:
            return at
        at += size
        if at > size_of(file):
            raise ContainerError("its ID3 tag is cut off")
    raise ContainerError(f"has over {_MOST_TAGS} ID3 tags")
