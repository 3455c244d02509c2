"""APEv2 tags as bytes, at the end of a file (before an ID3v1 tag, if there is one).

Specification: wiki.hydrogenaud.io, "APEv2 specification", "APE Tags Header", "APE Tag Item".
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
from reclass_plex.containers.id3 import ID3V1_SIZE

_FRAME = struct.Struct("<8sIIII8s")  # header and footer: magic, version, size, items, flags, zeros
_MAGIC = b"APETAGEX"
_VERSION = 2000
_HAS_HEADER, _IS_HEADER = 1 << 31, 1 << 29
_LYRICS3 = 15  # bytes: the size and the end mark of a Lyrics3v2 tag

_FIELD_OF = {
    b"genre": "genre",
    b"mood": "mood",
    b"album": "album",
    b"album artist": "album_artist",
    b"albumartist": "album_artist",
    b"title": "title",
    b"artist": "artist",
}
_NEW_KEYS = {"genre": b"Genre", "mood": b"Mood"}


@dataclass(frozen=True)
class Tag:
    """A parsed tag: where it lies in the file, and its items as bytes."""

    start: int
    end: int
    has_header: bool
    flags: int
    reserved: bytes
    items: tuple[bytes, ...]


def find_id3v1(file: BinaryIO) -> bytes:
    """Return the ID3v1 tag at the end of `file`, b"" if there is none."""
    size = size_of(file)
    if size < ID3V1_SIZE:
        return b""
    raw = read_at(file, size - ID3V1_SIZE, ID3V1_SIZE)
    before = read_at(file, max(0, size - ID3V1_SIZE - 3), min(3, size - ID3V1_SIZE))
    # "APETAGEX" has "TAG" in it, and a very short APEv2 tag has it in this very place
    return raw if raw[:3] == b"TAG" and not (before == b"APE" and raw[3:5] == b"EX") else b""


def tags_end(file: BinaryIO) -> int:
    """Return where an APEv2 tag ends, or would: before ID3v1 and Lyrics3v2."""
    end = size_of(file) - len(find_id3v1(file))
    if end >= _LYRICS3 and end < size_of(file):
        mark = read_at(file, end - _LYRICS3, _LYRICS3)
        if mark[6:] == b"LYRICS200" and mark[:6].isdigit():
            return max(0, end - _LYRICS3 - int(mark[:6]))
    return end


def find_tag(file: BinaryIO) -> Tag | None:
    """Return the APEv2 tag of `file`. Raises ContainerError if it cannot be edited safely."""
    end = tags_end(file)
    if end < _FRAME.size:
        return None
    magic, version, size, count, flags, reserved = _FRAME.unpack(
        read_at(file, end - _FRAME.size, _FRAME.size)
    )
    if magic != _MAGIC:
        return None
    has_header = bool(flags & _HAS_HEADER)
    start = end - size - (_FRAME.size if has_header else 0)
    if version != _VERSION or flags & _IS_HEADER or size < _FRAME.size or start < 0:
        raise ContainerError("its APE tag is damaged or of an unknown version")
    raw = read_at(file, start, end - start - _FRAME.size)
    if has_header:
        if raw[:8] != _MAGIC:
            raise ContainerError("its APE tag has no header where one should be")
        raw = raw[_FRAME.size :]
    return Tag(start, end, has_header, flags, reserved, tuple(_items(raw, count)))


def read_tag(tag: Tag, fields: Collection[str] = GENRE) -> Found:
    """Return what the tag holds."""
    texts: dict[str, list[str]] = {}
    for item in tag.items:
        _, flags, key, value = _split(item)
        field = _FIELD_OF.get(key.lower())
        is_text = not flags & 6 or field == "mood"  # bits 1 and 2: 0 is text; any mood counts
        if field and is_text and field not in texts:
            texts[field] = value.decode("utf-8", "replace").split("\0")
    return Found("apev2", texts, [item for item in tag.items if _field_of(item) not in fields])


def edit_tag(file: BinaryIO, tag: Tag | None, edits: Edits) -> list[Splice]:
    """Return what edits the file's APEv2 tag, which is created if it is None."""
    if tag is None:
        if _tag_at_start(file):
            raise ContainerError("its APE tag stands at the beginning, where nobody looks for it")
        end = tags_end(file)
        tag = Tag(end, end, True, 0, bytes(8), ())
    new: dict[str, list[bytes]] = {}
    for field, values in edits.items():
        old = next((item for item in tag.items if _field_of(item) == field), b"")
        texts = values("apev2")
        new[field] = [_item(old, field, texts)] if texts else []
    items = replace_fields(tag.items, [_field_of(item) for item in tag.items], new)
    if not items:
        return [Splice(tag.start, tag.end - tag.start, b"")]
    body = b"".join(items)
    size, flags = len(body) + _FRAME.size, tag.flags & ~(_HAS_HEADER | _IS_HEADER)
    header = b""
    if tag.has_header:
        flags |= _HAS_HEADER
        header = _FRAME.pack(_MAGIC, _VERSION, size, len(items), flags | _IS_HEADER, tag.reserved)
    footer = _FRAME.pack(_MAGIC, _VERSION, size, len(items), flags, tag.reserved)
    return [Splice(tag.start, tag.end - tag.start, header + body + footer)]


def _tag_at_start(file: BinaryIO) -> bool:
    """Tell whether an APE tag stands at the beginning of the file."""
    return size_of(file) >= 8 and read_at(file, 0, 8) == _MAGIC


def _items(raw: bytes, count: int) -> list[bytes]:
    items = []
    at = 0
    for _ in range(count):
        key_end = raw.find(b"\0", at + 8)
        if key_end < 0:
            raise ContainerError("its APE tag is damaged")
        end = key_end + 1 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise ContainerError("its APE tag is damaged")
        items.append(raw[at:end])
        at = end
    if at != len(raw):
        raise ContainerError("its APE tag is damaged")
    return items


def _split(item: bytes) -> tuple[int, int, bytes, bytes]:
    """Return an item's size, flags, key and value."""
    size, flags = struct.unpack_from("<II", item)
    key, _, value = item[8:].partition(b"\0")
    return size, flags, key, value


def _field_of(item: bytes) -> str | None:
    return _FIELD_OF.get(_split(item)[2].lower())


def _item(old: bytes, field: str, texts: list[str]) -> bytes:
    """Return the field's item; the key keeps its case, the flags all but their type."""
    _, flags, key, _ = _split(old) if old else (0, 0, _NEW_KEYS[field], b"")
    value = "\0".join(texts).encode("utf-8")
    return struct.pack("<II", len(value), flags & ~6) + key + b"\0" + value
