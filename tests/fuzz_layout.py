"""Where a healthy file keeps its sizes, counts and flags, and what its pieces are: by container.

Written for the fuzzer from the formats' specifications, apart from the product's own readers, so
that both do not share a mistake. Meant for files of `fuzz_corpus`: what is odd is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

_MP4_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta", b"ilst", b"edts", b"dinf"}
_ASF_EXTENSION = bytes.fromhex("b503bf5f2ea9cf118ee300c00c205365")


@dataclass(frozen=True)
class Field:
    """A number in the file: where, how many bytes, and how it is written."""

    offset: int
    width: int
    order: Literal["big", "little", "syncsafe"]


@dataclass
class Layout:
    """What may be set (`fields`), and what may be removed, repeated or nested (`pieces`).

    A piece that has a text or binary content has it from `content` of the same index on.
    """

    fields: list[Field] = field(default_factory=list)
    pieces: list[tuple[int, int]] = field(default_factory=list)
    contents: list[tuple[int, int]] = field(default_factory=list)

    def add(self, offset: int, width: int, order: Literal["big", "little", "syncsafe"]) -> None:
        """Note a number."""
        self.fields.append(Field(offset, width, order))


def find_layout(data: bytes) -> Layout:
    """Return what is known of a file's structure; of any file at least its tags and header."""
    layout = Layout()
    with contextlib.suppress(IndexError, ValueError):  # damaged before: what was found is enough
        _walk(data, layout)
    return layout


def _walk(data: bytes, layout: Layout) -> None:
    at = 0
    while data[at : at + 3] == b"ID3":
        at += _id3(data, at, layout)
    walk = _WALKS.get(data[at : at + 4])
    if data[4:8] == b"ftyp":
        walk = _mp4
    if walk is None:  # a header of numbers: Musepack, MPEG frames
        walk = _header
    walk(data, at, layout)
    _behind(data, layout)


def _id3(data: bytes, at: int, layout: Layout) -> int:
    size = _syncsafe(data[at + 6 : at + 10])
    end = min(len(data), at + 10 + size)
    layout.pieces.append((at, end))
    layout.add(at + 6, 4, "syncsafe")
    layout.add(at + 3, 1, "big")  # version
    layout.add(at + 5, 1, "big")  # flags
    version = data[at + 3]
    place = at + 10
    while place + 10 <= end and data[place : place + 1].isalpha():
        raw = data[place + 4 : place + 8]
        length = _syncsafe(raw) if version == 4 else int.from_bytes(raw, "big")
        stop = place + 10 + length
        if stop > end:
            break
        layout.add(place + 4, 4, "syncsafe" if version == 4 else "big")
        layout.add(place + 8, 1, "big")
        layout.add(place + 9, 1, "big")
        layout.add(place + 10, 1, "big")  # a text's encoding
        layout.pieces.append((place, stop))
        layout.contents.append((place + 10, stop))
        place = stop
    return 10 + size


def _behind(data: bytes, layout: Layout) -> None:
    end = len(data)
    if data[end - 128 : end - 125] == b"TAG":
        layout.pieces.append((end - 128, end))
        layout.add(end - 1, 1, "big")
        end -= 128
    if data[end - 32 : end - 24] == b"APETAGEX":
        size = int.from_bytes(data[end - 20 : end - 16], "little")
        start = max(0, end - size - 32)
        layout.pieces.append((start, end))
        for place in (end - 32, start):
            for offset in (8, 12, 16, 20):
                layout.add(place + offset, 4, "little")
        at = start + 32
        while at + 8 < end - 32:
            length = int.from_bytes(data[at : at + 4], "little")
            key = data.find(b"\0", at + 8)
            if key < 0 or key + 1 + length > end - 32:
                break
            layout.add(at, 4, "little")
            layout.add(at + 4, 4, "little")
            layout.pieces.append((at, key + 1 + length))
            layout.contents.append((key + 1, key + 1 + length))
            at = key + 1 + length


def _flac(data: bytes, at: int, layout: Layout) -> None:
    at += 4
    last = False
    while not last and at + 4 <= len(data):
        kind, size = data[at] & 0x7F, int.from_bytes(data[at + 1 : at + 4], "big")
        last = bool(data[at] & 0x80)
        layout.add(at, 1, "big")
        layout.add(at + 1, 3, "big")
        layout.pieces.append((at, at + 4 + size))
        if kind == 0:  # rate, channels, bits and count of samples share these bytes
            for offset, width in ((0, 2), (2, 2), (4, 3), (7, 3), (10, 4), (12, 2), (14, 4)):
                layout.add(at + 4 + offset, width, "big")
        elif kind == 4:
            _comments(data, at + 4, at + 4 + size, layout)
        elif kind == 6:
            _picture(data, at + 4, layout)
        at += 4 + size


def _comments(data: bytes, at: int, end: int, layout: Layout) -> None:
    end = min(end, len(data))
    layout.add(at, 4, "little")
    at += 4 + int.from_bytes(data[at : at + 4], "little")
    layout.add(at, 4, "little")
    count = int.from_bytes(data[at : at + 4], "little")
    at += 4
    for _ in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > end:
            return
        layout.add(at, 4, "little")
        layout.pieces.append((at, at + 4 + size))
        layout.contents.append((at + 4, at + 4 + size))
        at += 4 + size


def _picture(data: bytes, at: int, layout: Layout) -> None:
    layout.add(at, 4, "big")
    for _ in range(2):  # media type, description
        at += 4
        layout.add(at, 4, "big")
        at += int.from_bytes(data[at : at + 4], "big")
    for i in range(5):
        layout.add(at + 4 + 4 * i, 4, "big")


def _ogg(data: bytes, at: int, layout: Layout) -> None:
    while data[at : at + 4] == b"OggS":
        count = data[at + 26]
        head = at + 27 + count
        end = head + sum(data[at + 27 : head])
        layout.pieces.append((at, end))
        for offset, width in ((4, 1), (5, 1), (6, 8), (14, 4), (18, 4), (26, 1)):
            layout.add(at + offset, width, "little")
        if count:
            layout.add(at + 27 + count - 1, 1, "big")
        if data[head : head + 7] == b"\x01vorbis":
            for offset, width in ((7, 4), (11, 1), (12, 4), (16, 4), (20, 4), (24, 4), (28, 1)):
                layout.add(head + offset, width, "little")
        elif data[head : head + 8] == b"OpusHead":
            for offset, width in ((8, 1), (9, 1), (10, 2), (12, 4), (16, 2), (18, 1)):
                layout.add(head + offset, width, "little")
        elif data[head : head + 5] == b"\x7fFLAC":
            for offset, width in ((5, 1), (7, 2), (17, 2), (19, 2), (27, 3), (30, 4)):
                layout.add(head + offset, width, "big")
        for magic, skip in ((b"\x03vorbis", 7), (b"OpusTags", 8)):
            if data[head:].startswith(magic):
                _comments(data, head + skip, end, layout)
        if data[head : head + 1] == b"\x84" or (
            data[head : head + 1] == b"\x04" and count and end - head > 8
        ):
            layout.add(head + 1, 3, "big")
            _comments(data, head + 4, end, layout)
        at = end


def _chunked(data: bytes, at: int, layout: Layout) -> None:
    order: Literal["big", "little"] = "big" if data[at : at + 4] == b"FORM" else "little"
    layout.add(at + 4, 4, order)
    at += 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
        end = at + 8 + size + size % 2
        if end > len(data) + 1:
            return
        layout.add(at + 4, 4, order)
        layout.pieces.append((at, min(end, len(data))))
        if name == b"fmt ":
            for offset, width in ((0, 2), (2, 2), (4, 4), (8, 4), (12, 2), (14, 2)):
                layout.add(at + 8 + offset, width, order)
        elif name == b"COMM":
            for offset, width in ((0, 2), (2, 4), (6, 2), (8, 2), (10, 4), (14, 4)):
                layout.add(at + 8 + offset, width, order)
        elif name.lower() == b"id3 ":
            _id3(data, at + 8, layout)
        at = end


def _dsf(data: bytes, at: int, layout: Layout) -> None:
    for offset in (4, 12, 20):
        layout.add(at + offset, 8, "little")
    for offset in (4, 56, 64):  # the format's chunk: its size, count of samples, block
        layout.add(at + 28 + offset - (0 if offset == 4 else 20), 8, "little")
    for offset in (12, 16, 20, 24, 28, 32, 44):
        layout.add(at + 28 + offset, 4, "little")
    layout.add(at + 84, 8, "little")
    layout.pieces.append((at + 28, at + 80))
    tag = int.from_bytes(data[at + 20 : at + 28], "little")
    if tag and data[tag : tag + 3] == b"ID3":
        _id3(data, tag, layout)


def _mp4(data: bytes, at: int, layout: Layout) -> None:
    _atoms(data, at, len(data), layout)


def _atoms(data: bytes, at: int, end: int, layout: Layout) -> None:
    while at + 8 <= end:
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size < 8 or at + size > end:
            return
        layout.add(at, 4, "big")
        if name != b"mdat":
            layout.pieces.append((at, at + size))
        inside = at + 8
        if name in _MP4_PARENTS or name[:1] == b"\xa9" or name in {b"----", b"aART", b"covr"}:
            _atoms(data, inside, at + size, layout)
        elif name == b"meta":
            _atoms(data, inside + 4, at + size, layout)
        elif name == b"stsd":
            layout.add(inside + 4, 4, "big")
            entry = inside + 8
            layout.add(entry, 4, "big")
            for offset, width in ((24, 2), (26, 2), (32, 4)):  # channels, bits, rate
                layout.add(entry + offset, width, "big")
            _atoms(data, entry + 36, at + size, layout)
        elif name in {b"esds", b"alac", b"data", b"dOps"}:
            for offset in range(0, min(36, size - 8), 2):
                layout.add(inside + offset, 2, "big")
            layout.contents.append((inside + 8, at + size))
        else:
            for offset in range(0, min(40, size - 8 - 3), 4):
                layout.add(inside + offset, 4, "big")
        at += size


def _asf(data: bytes, at: int, layout: Layout) -> None:
    layout.add(at + 16, 8, "little")
    layout.add(at + 24, 4, "little")
    size = int.from_bytes(data[at + 16 : at + 24], "little")
    _objects(data, at + 30, min(len(data), at + size), layout)
    layout.add(at + size + 16, 8, "little")  # the data object's
    layout.add(at + size + 40, 8, "little")  # its count of packets


def _objects(data: bytes, at: int, end: int, layout: Layout) -> None:
    while at + 24 <= end:
        size = int.from_bytes(data[at + 16 : at + 24], "little")
        if size < 24 or at + size > end:
            return
        layout.add(at + 16, 8, "little")
        layout.pieces.append((at, at + size))
        layout.contents.append((at + 24, at + size))
        if data[at : at + 16] == _ASF_EXTENSION:
            layout.add(at + 42, 4, "little")
            _objects(data, at + 46, at + size, layout)
        else:
            for offset in range(24, min(size - 3, 104), 4):
                layout.add(at + offset, 4, "little")
            for offset in range(24, min(size - 1, 60), 2):
                layout.add(at + offset, 2, "little")
        at += size


def _header(data: bytes, at: int, layout: Layout) -> None:
    """Take every number of the first bytes: small headers without a structure of pieces."""
    for offset in range(0, min(64, len(data) - at - 4)):
        layout.add(at + offset, 1, "big")
        if offset % 2 == 0:
            layout.add(at + offset, 4, "little")
            layout.add(at + offset, 2, "little")


def _syncsafe(data: bytes) -> int:
    return sum((byte & 0x7F) << shift for byte, shift in zip(data, (21, 14, 7, 0), strict=True))


_WALKS: dict[bytes, Callable[[bytes, int, Layout], None]] = {
    b"fLaC": _flac,
    b"OggS": _ogg,
    b"RIFF": _chunked,
    b"FORM": _chunked,
    b"DSD ": _dsf,
    b"\x30\x26\xb2\x75": _asf,
}
