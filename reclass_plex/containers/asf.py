"""WMA and other ASF files: the attributes WM/Genre and WM/Mood in the header object.

Specification: Microsoft, "Advanced Systems Format (ASF) Specification" 01.20.06. The first value
goes to the Extended Content Description, more of them to the Metadata Library, as TagLib and
mutagen do: the former shall not hold an attribute twice. Every other attribute stays as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO
from uuid import UUID

from reclass_plex.containers.base import (
    GENRE,
    UNREADABLE,
    ContainerError,
    Edits,
    Found,
    Splice,
    read_at,
    replace_fields,
    size_of,
)

HEADER_GUID = UUID("75B22630-668E-11CF-A6D9-00AA0062CE6C").bytes_le
_FILE_PROPERTIES = UUID("8CABDCA1-A947-11CF-8EE4-00C00C205365").bytes_le
_EXTENSION = UUID("5FBF03B5-A92E-11CF-8EE3-00C00C205365").bytes_le
_CONTENT = UUID("75B22633-668E-11CF-A6D9-00AA0062CE6C").bytes_le
_EXTENDED_CONTENT = UUID("D2D0A440-E307-11D2-97F0-00A0C95EA850").bytes_le
_METADATA = UUID("C5F8CBEA-5BAF-4877-8467-AA8C44FA4CCA").bytes_le
_LIBRARY = UUID("44231C94-9498-49D1-A141-1D134E457054").bytes_le
_PADDING = UUID("1806D474-CADF-4509-A4BA-9AABCB96AAE8").bytes_le

_FIELD_OF = {
    "WM/Genre": "genre",
    "WM/Mood": "mood",
    "WM/AlbumTitle": "album",
    "WM/AlbumArtist": "album_artist",
}
_NAME_OF = {field: name for name, field in _FIELD_OF.items()}
_TEXT = 0  # type of an attribute
_OBJECT = struct.Struct("<16sQ")  # GUID and size, before any object's data
_TOP = struct.Struct("<16sQIBB")  # the header object's: also the number of objects in it
_EXTENSION_HEAD = 22  # bytes of the header extension's data before the objects in it
_LARGEST_VALUE = 0xFFFF  # bytes, in the extended content description


@dataclass(frozen=True)
class _Object:
    guid: bytes
    data: bytes

    def render(self) -> bytes:
        return _OBJECT.pack(self.guid, _OBJECT.size + len(self.data)) + self.data


def read_asf(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what an ASF file holds."""
    _, objects = _header(file)
    texts: dict[str, list[str]] = {}
    rest: list[bytes] = []
    inner: list[_Object] = []
    for item in objects:
        if item.guid == _EXTENSION:
            rest.append(item.data[:18])
            inner = _objects(item.data[_EXTENSION_HEAD:])
    for item in (*objects, *inner):
        if item.guid == _CONTENT:
            texts.update(_description(item.data))
        if item.guid in {_EXTENDED_CONTENT, _METADATA, _LIBRARY}:
            for record in _records(item):
                name, text = _attribute(item.guid, record)
                field = _FIELD_OF.get(name)
                if text is None and field == "mood":
                    text = UNREADABLE
                if field and text is not None:
                    texts.setdefault(field, []).append(text)
                if field not in fields:
                    rest.append(record)
        elif item.guid == _FILE_PROPERTIES:
            rest.append(item.data[:16] + item.data[24:])  # all but the file's size
        elif item.guid not in {_EXTENSION, _PADDING}:
            rest.append(item.guid + item.data)
    return Found("asf", texts, rest)


def edit_asf(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the attributes of an ASF file."""
    size, objects = _header(file)
    texts = {field: values("asf") for field, values in edits.items()}
    if any(len(_encode(text)) > _LARGEST_VALUE for field in texts.values() for text in field):
        raise ContainerError("a name is too long for its tag")
    first = {field: of_field[:1] for field, of_field in texts.items()}
    more = {field: of_field[1:] for field, of_field in texts.items()}
    none: dict[str, list[str]] = {field: [] for field in texts}
    top = [_with_fields(item, none) if item.guid == _METADATA else item for item in objects]
    top = _with_object(top, _EXTENDED_CONTENT, first)
    for i, item in enumerate(top):
        if item.guid == _EXTENSION:
            inner = _objects(item.data[_EXTENSION_HEAD:])
            inner = [_with_fields(x, none) if x.guid == _METADATA else x for x in inner]
            content = b"".join(x.render() for x in _with_object(inner, _LIBRARY, more))
            top[i] = _Object(
                _EXTENSION, item.data[:18] + len(content).to_bytes(4, "little") + content
            )
            break
    else:
        if any(more.values()):
            raise ContainerError("its ASF header has no extension, so it can hold one value only")
    grown = sum(len(item.render()) for item in top) + _TOP.size - size
    for i, item in enumerate(top):
        if item.guid == _FILE_PROPERTIES:
            stated = int.from_bytes(item.data[16:24], "little")
            if stated == size_of(file):
                data = item.data[:16] + (stated + grown).to_bytes(8, "little") + item.data[24:]
                top[i] = _Object(_FILE_PROPERTIES, data)
    _, _, _, *reserved = _TOP.unpack(read_at(file, 0, _TOP.size))
    head = _TOP.pack(HEADER_GUID, size + grown, len(top), *reserved)
    return [Splice(0, size, head + b"".join(item.render() for item in top))]


def _header(file: BinaryIO) -> tuple[int, list[_Object]]:
    """Return the header object's size and the objects in it."""
    guid, size, count, _, _ = _TOP.unpack(read_at(file, 0, _TOP.size))
    if guid != HEADER_GUID or not _TOP.size <= size <= size_of(file):
        raise ContainerError("its ASF header is damaged or cut off")
    objects = _objects(read_at(file, _TOP.size, size - _TOP.size))
    if len(objects) != count:
        raise ContainerError("its ASF header is damaged")
    return size, objects


def _objects(data: bytes) -> list[_Object]:
    objects = []
    at = 0
    while at < len(data):
        if at + _OBJECT.size > len(data):
            raise ContainerError("its ASF header is damaged")
        guid, size = _OBJECT.unpack_from(data, at)
        if size < _OBJECT.size or at + size > len(data):
            raise ContainerError("its ASF header is damaged")
        objects.append(_Object(guid, data[at + _OBJECT.size : at + size]))
        at += size
    return objects


def _with_object(
    objects: list[_Object], guid: bytes, texts: Mapping[str, list[str]]
) -> list[_Object]:
    """Return `objects` with `texts`, by field, in the first of `guid`, made if need be."""
    if any(texts.values()) and not any(item.guid == guid for item in objects):
        objects = [*objects, _Object(guid, bytes(2))]
    done: list[_Object] = []
    for item in objects:
        first = item.guid == guid and not any(other.guid == guid for other in done)
        new = texts if first else {field: [] for field in texts}
        done.append(_with_fields(item, new) if item.guid == guid else item)
    return done


def _with_fields(item: _Object, texts: Mapping[str, list[str]]) -> _Object:
    records = _records(item)
    owners = [_FIELD_OF.get(_attribute(item.guid, record)[0]) for record in records]
    if not any(texts.values()) and not any(field in owners for field in texts):
        return item
    new = replace_fields(
        records,
        owners,
        {
            field: [_record(item.guid, _NAME_OF[field], text) for text in of_field]
            for field, of_field in texts.items()
        },
    )
    return _Object(item.guid, len(new).to_bytes(2, "little") + b"".join(new))


def _records(item: _Object) -> list[bytes]:
    """Return the attributes in an object, as bytes."""
    data = item.data
    records = []
    at = 2
    try:
        for _ in range(int.from_bytes(data[:2], "little")):
            if item.guid == _EXTENDED_CONTENT:
                (name,) = struct.unpack_from("<H", data, at)
                (value,) = struct.unpack_from("<H", data, at + 2 + name + 2)
                end = at + 6 + name + value
            else:
                name, _, value = struct.unpack_from("<HHI", data, at + 4)
                end = at + 12 + name + value
            if end > len(data):
                raise ContainerError("its ASF attributes are damaged")
            records.append(data[at:end])
            at = end
    except struct.error as error:
        raise ContainerError("its ASF attributes are damaged") from error
    if at != len(data):
        raise ContainerError("its ASF attributes are damaged")
    return records


def _attribute(guid: bytes, record: bytes) -> tuple[str, str | None]:
    """Return the name of an attribute and its text (None if it is no text)."""
    if guid == _EXTENDED_CONTENT:
        (length,) = struct.unpack_from("<H", record)
        name, kind = record[2 : 2 + length], record[2 + length]
        value = record[2 + length + 4 :]
    else:
        length, kind = struct.unpack_from("<HH", record, 4)
        name, value = record[12 : 12 + length], record[12 + length :]
    return _decode(name), _decode(value) if kind == _TEXT else None


def _record(guid: bytes, attribute: str, text: str) -> bytes:
    name, value = _encode(attribute), _encode(text)
    if guid == _EXTENDED_CONTENT:
        return struct.pack("<H", len(name)) + name + struct.pack("<HH", _TEXT, len(value)) + value
    return struct.pack("<HHHHI", 0, 0, len(name), _TEXT, len(value)) + name + value


def _description(data: bytes) -> dict[str, list[str]]:
    """Return title and artist: the first two texts of the content description."""
    lengths = struct.unpack_from("<5H", data)
    title = _decode(data[10 : 10 + lengths[0]])
    artist = _decode(data[10 + lengths[0] : 10 + lengths[0] + lengths[1]])
    return {key: [text] for key, text in (("title", title), ("artist", artist)) if text}


def _decode(data: bytes) -> str:
    return data[: len(data) & ~1].decode("utf-16-le", "replace").rstrip("\0")


def _encode(text: str) -> bytes:
    return text.encode("utf-16-le") + b"\0\0"
