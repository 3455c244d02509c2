"""Ogg: the packet with the Vorbis comments of Vorbis, Opus, Speex or FLAC, and the pages around it.

Specifications: RFC 3533 (Ogg), RFC 7845 (Opus), xiph.org, "Ogg Vorbis I format specification" and
"Ogg encapsulation for the FLAC audio codec".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from reclass_plex.containers.base import (
    GENRE,
    ContainerError,
    Edits,
    Found,
    Splice,
    read_at,
    size_of,
)
from reclass_plex.containers.vorbis import parse_comments

_PAGE = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule, serial, number, CRC, segments
_CONTINUED, _FIRST, _END = 1, 2, 4  # flags of a page
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# First bytes of a stream's first packet -> those of its comment packet
_CODECS = {
    b"\x01vorbis": b"\x03vorbis",
    b"OpusHead": b"OpusTags",
    b"Speex   ": b"",
    b"\x7fFLAC": b"\x84",  # a FLAC block's header follows its type, whose "last" bit may be unset
}


@dataclass(frozen=True)
class _Page:
    offset: int
    flags: int
    granule: int
    serial: int
    number: int
    lacing: bytes
    data_offset: int

    @property
    def end(self) -> int:
        return self.data_offset + sum(self.lacing)


def read_ogg(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what the first audio stream of an Ogg file holds."""
    _, packets, prefix = _ogg_headers(file)
    found = parse_comments(packets[0][len(prefix) :]).found(fields)
    return Found("vorbis", found.texts, [prefix[:1], *packets[1:], *found.rest])


def edit_ogg(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the comments of the first audio stream of an Ogg file.

    Its header pages are written anew, as many as there were if possible; else all later pages of
    that stream get new numbers and checksums. Other streams, multiplexed or chained, stay.
    """
    pages, packets, prefix = _ogg_headers(file)
    comments = parse_comments(packets[0][len(prefix) :])
    block = comments.edited(edits)
    tail = comments.tail
    if not (prefix == b"OpusTags" and tail[:1] and tail[0] & 1):  # RFC 7845: binary, to be kept
        spare = len(tail) - len(tail.rstrip(b"\0"))
        grown = len(prefix) + len(block) + len(tail) - len(packets[0])
        tail = tail[: len(tail) - min(spare, max(0, grown))]
        tail += bytes(max(0, -grown)) if spare else b""
    if prefix[:1] in {b"\x04", b"\x84"}:
        prefix = prefix[:1] + (len(block) + len(tail)).to_bytes(3, "big")
    new = _paginate([prefix + block + tail, *packets[1:]], pages)
    splices = [Splice(pages[0].offset, pages[0].end - pages[0].offset, b"".join(new))]
    splices += [Splice(page.offset, page.end - page.offset, b"") for page in pages[1:]]
    if len(new) != len(pages):
        splices += _renumber(file, pages[-1], len(new) - len(pages))
    return splices


def _ogg_headers(file: BinaryIO) -> tuple[list[_Page], list[bytes], bytes]:
    """Return the pages with the comment packet, the packets on them, and the comment's prefix."""
    serial, known = None, b""
    pages: list[_Page] = []
    packets: list[bytes] = []
    partial = bytearray()
    for page in _pages(file, 0):
        data = read_at(file, page.data_offset, sum(page.lacing))
        if page.flags & _FIRST:
            if data.startswith((b"fishead\0", b"\x80theora")):
                raise ContainerError(
                    "holds a video, or an index of positions, which an edit breaks"
                )
            known = next((codec for codec in _CODECS if data.startswith(codec)), b"")
            if serial is None and known:
                serial, prefix = page.serial, _CODECS[known]
        if page.serial != serial or page.flags & _FIRST:
            continue
        if not pages and page.flags & _CONTINUED:
            break
        pages.append(page)
        at = 0
        for length in page.lacing:
            partial += data[at : at + length]
            at += length
            if length < 255:
                packets.append(bytes(partial))
                partial = bytearray()
        if page.granule > 0:
            raise ContainerError("its Ogg header pages hold audio too")
        if packets and not partial and page.lacing[-1:] != b"\xff":
            if prefix == b"\x84":
                if packets[0][:1] not in {b"\x04", b"\x84"}:
                    break
                return pages, packets, packets[0][:4]
            if packets[0].startswith(prefix):
                return pages, packets, prefix
            break
    raise ContainerError("is not an Ogg file with Vorbis, Opus, Speex or FLAC in it")


def _pages(file: BinaryIO, at: int) -> Iterator[_Page]:
    """Yield the pages from `at` on."""
    size = size_of(file)
    while at < size:
        magic, _, flags, granule, serial, number, _, count = _PAGE.unpack(
            read_at(file, at, _PAGE.size)
        )
        if magic != b"OggS":
            raise ContainerError("its Ogg pages are damaged")
        lacing = read_at(file, at + _PAGE.size, count)
        page = _Page(at, flags, granule, serial, number, lacing, at + _PAGE.size + count)
        if page.end > size:
            raise ContainerError("is cut off in the middle of an Ogg page")
        yield page
        at = page.end


def _paginate(packets: list[bytes], old: list[_Page]) -> list[bytes]:
    """Return pages for `packets` that take the place of `old`: as many, if that is possible."""
    lacing = b"".join(
        b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets
    )
    data = b"".join(packets)
    count = max(-(-len(lacing) // 255), min(len(old), len(lacing)))
    pages = []
    at = done = 0
    for i in range(count):
        take = min(255, len(lacing) - at - (count - 1 - i))
        part = lacing[at : at + take]
        continued = _CONTINUED if at and lacing[at - 1] == 255 else 0
        granule = 0 if min(part) < 255 else -1  # -1: no packet ends on this page
        length = sum(part)
        end = old[-1].flags & _END if i == count - 1 else 0
        head = _PAGE.pack(
            b"OggS", 0, continued | end, granule, old[0].serial, old[0].number + i, 0, take
        )
        pages.append(_with_checksum(head + part + data[done : done + length]))
        at, done = at + take, done + length
    return pages


def _renumber(file: BinaryIO, last: _Page, step: int) -> list[Splice]:
    """Return new numbers and checksums for all pages of the stream after page `last`."""
    splices: list[Splice] = []
    if last.flags & _END:
        return splices
    for page in _pages(file, last.end):
        if page.serial != last.serial:
            continue
        if page.flags & _FIRST:  # a chained stream, which counts on its own
            break
        raw = bytearray(read_at(file, page.offset, page.end - page.offset))
        struct.pack_into("<I", raw, 18, (page.number + step) & 0xFFFFFFFF)
        splices.append(Splice(page.offset + 18, 8, _with_checksum(bytes(raw))[18:26]))
        if page.flags & _END:
            break
    return splices


def _with_checksum(page: bytes) -> bytes:
    """Return `page` with its checksum: RFC 3533's CRC-32, which has zlib's bits reversed."""
    page = page[:22] + bytes(4) + page[26:]
    value = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[:22] + value.to_bytes(4, "little").translate(_REVERSED)[::-1] + page[26:]
