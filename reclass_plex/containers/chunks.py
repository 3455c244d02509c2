"""Files made of chunks, which keep an ID3v2 tag in one: WAV, AIFF, DSDIFF; and DSF, which ends so.

Specifications: Microsoft/IBM, "Multimedia Programming Interface and Data Specifications 1.0"
(RIFF); Apple, "AIFF-C"; Philips, "DSDIFF 1.5"; Sony, "DSF File Format Specification 1.01".
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from reclass_plex.containers import id3
from reclass_plex.containers.base import (
    GENRE,
    ContainerError,
    Edits,
    Found,
    Splice,
    has_values,
    read_at,
    replace_fields,
    size_of,
)

_ID3_NAMES = {b"id3 ", b"ID3 "}
_INFO = {b"IGNR": "genre", b"IPRD": "album", b"INAM": "title", b"IART": "artist"}  # of a WAV
_DSF_HEAD = 28  # bytes: "DSD ", size of this chunk, of the file, offset of the tag


@dataclass(frozen=True)
class _Layout:
    order: Literal["big", "little"]  # of bytes
    width: int  # of a chunk's size, in bytes
    id3_name: bytes

    @property
    def head(self) -> int:
        return 4 + self.width

    def number(self, value: int) -> bytes:
        if value >= 1 << (8 * self.width):
            raise ContainerError("would become too large for its format")
        return value.to_bytes(self.width, self.order)


_LAYOUTS = {
    b"RIFF": _Layout("little", 4, b"id3 "),
    b"FORM": _Layout("big", 4, b"ID3 "),
    b"FRM8": _Layout("big", 8, b"ID3 "),
}


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    data: int
    data_end: int
    end: int  # with its padding to an even length


def read_chunks(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what a WAV, AIFF or DSDIFF file holds: its ID3 tag, else a WAV's INFO list."""
    _, chunks, _ = _chunks(file)
    found = Found("id3v2.4")
    rest: list[bytes] = []
    info: dict[str, list[str]] = {}
    for chunk in chunks:
        if chunk.name in _ID3_NAMES:
            if found.rest:
                raise ContainerError("has two ID3 tags")
            found = id3.read_tag(_content(file, chunk), fields)
        elif _is_info(file, chunk):
            for name, item in _info_items(_content(file, chunk)):
                field = _INFO.get(name)
                if field:
                    info[field] = [item[8:].split(b"\0")[0].decode("utf-8", "replace")]
                if field not in fields:
                    rest.append(item)
        else:
            rest.append(chunk.name + (chunk.data_end - chunk.data).to_bytes(8, "big"))
    return Found(found.format, {**info, **found.texts}, [*rest, *found.rest])


def edit_chunks(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the tags of a WAV, AIFF or DSDIFF file.

    Genre and mood go to the ID3 tag; a WAV's INFO list is kept in step if it names a genre.
    """
    layout, chunks, end = _chunks(file)
    splices = []
    tagged = False
    for chunk in chunks:
        if chunk.name in _ID3_NAMES:
            tagged = True
            content = id3.edit_tag(_content(file, chunk), edits)
        elif "genre" in edits and _is_info(file, chunk):
            old = _content(file, chunk)
            items = _info_items(old)
            if b"IGNR" not in dict(items):
                continue
            names = edits["genre"]("names")
            new = {"genre": [_info_item(names)] if names else []}
            content = b"INFO" + b"".join(
                replace_fields([item for _, item in items], [_INFO.get(n) for n, _ in items], new)
            )
        else:
            continue
        splices.append(
            Splice(chunk.start, chunk.end - chunk.start, _render(layout, chunk.name, content))
        )
    if not tagged and has_values(edits, "id3v2.4"):
        new_chunk = _render(layout, layout.id3_name, id3.new_tag(edits))
        missing = bytes((end - layout.head) % 2)  # the last chunk may lack its padding
        splices.append(Splice(end, 0, missing + new_chunk))
    grown = sum(len(splice.data) - splice.length for splice in splices)
    return [Splice(4, layout.width, layout.number(end - layout.head + grown)), *splices]


def read_dsf(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what a DSF file holds."""
    _, start = _dsf_pointers(file)
    raw = read_at(file, start, size_of(file) - start) if start else b""
    return id3.read_tag(raw, fields) if id3.tag_size(raw[: id3.HEADER]) else Found("id3v2.4")


def edit_dsf(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the tag of a DSF file."""
    end, start = _dsf_pointers(file)
    raw = read_at(file, start, end - start) if start else b""
    tag = id3.edit_tag(raw, edits) if raw else id3.new_tag(edits)
    start = start or end
    return [
        Splice(12, 16, struct.pack("<QQ", start + len(tag), start)),
        Splice(start, end - start, tag),
    ]


def _dsf_pointers(file: BinaryIO) -> tuple[int, int]:
    """Return the file's size and where its tag begins (0: it has none)."""
    magic, _, size, start = struct.unpack("<4sQQQ", read_at(file, 0, _DSF_HEAD))
    if magic != b"DSD " or size != size_of(file) or start >= size:
        raise ContainerError("its DSF header is damaged, or the file is cut off")
    return size, start


def _chunks(file: BinaryIO) -> tuple[_Layout, list[_Chunk], int]:
    """Return the layout, the chunks, and where the last of them ends, if need be unpadded."""
    layout = _LAYOUTS.get(read_at(file, 0, 4))
    if layout is None:
        raise ContainerError("is of a kind of RIFF that cannot be edited")
    size = int.from_bytes(read_at(file, 4, layout.width), layout.order)
    end = layout.head + size
    if end > size_of(file):
        raise ContainerError("is cut off, or was never finished")
    return layout, list(_walk(file, layout, layout.head + 4, end)), end


def _walk(file: BinaryIO, layout: _Layout, at: int, end: int) -> Iterator[_Chunk]:
    while at + layout.head <= end:
        head = read_at(file, at, layout.head)
        size = int.from_bytes(head[4:], layout.order)
        data = at + layout.head
        if data + size > end:
            raise ContainerError("is cut off, or was never finished")
        yield _Chunk(head[:4], at, data, data + size, min(data + size + size % 2, end))
        at = data + size + size % 2


def _content(file: BinaryIO, chunk: _Chunk) -> bytes:
    return read_at(file, chunk.data, chunk.data_end - chunk.data)


def _render(layout: _Layout, name: bytes, content: bytes) -> bytes:
    return name + layout.number(len(content)) + content + bytes(len(content) % 2)


def _is_info(file: BinaryIO, chunk: _Chunk) -> bool:
    return (
        chunk.name == b"LIST"
        and chunk.data_end - chunk.data >= 4
        and read_at(file, chunk.data, 4) == b"INFO"
    )


def _info_items(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the items of an INFO list: name, and all its bytes with its padding."""
    items = []
    at = 4
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + size
        if end > len(content):
            raise ContainerError("its INFO list is damaged")
        items.append((content[at : at + 4], content[at : end + size % 2]))
        at = end + size % 2
    if content[at:].strip(b"\0"):
        raise ContainerError("its INFO list is damaged")
    return items


def _info_item(texts: list[str]) -> bytes:
    value = "; ".join(texts).encode("utf-8") + b"\0"
    return b"IGNR" + len(value).to_bytes(4, "little") + value + bytes(len(value) % 2)
