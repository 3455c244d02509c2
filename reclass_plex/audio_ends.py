"""Whether a file ends before its audio does: an interrupted download, a copy that stopped.

Pure reading of a few kilobytes, whatever the file's size. To refuse a healthy file would be worse
than to hear half of one, so a size in a header is never enough: editors cut MP3s at a frame and
keep the old size, radio recordings lack the last page of Ogg, streaming writers leave sizes open.
A file counts as cut if its end lies *within* a unit of its format and, where the format counts
bytes, over SLACK of them are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SLACK = 16 << 10  # bytes, 1 s at 128 kbit/s: miscounted tags and headers, and losses nobody hears

_HEAD = 64 << 10  # bytes in which an MP3's first frame is sought
_CHAIN = 4  # frames of an MP3 in a row that are no chance
_MP3_TAIL = 16 << 10  # bytes, eleven of the largest frames
_OGG_TAIL = 2 * 65307  # bytes, two of the largest pages
_LEAST_UNSET = 0x7FFF0000  # chunk sizes from here on are what streaming writers leave
_MOST_CHUNKS = 1000

# Layer III of MPEG 1, then of MPEG 2 and 2.5 (ISO 11172-3, 13818-3); bit rates in kbit/s
_BIT_RATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MPEG1_RATES = (44100, 48000, 32000)  # Hz

_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@dataclass(frozen=True)
class _File:
    """The bytes of a file between its tags."""

    descriptor: int
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def read(self, at: int, length: int) -> bytes:
        length = min(length, self.size - at)
        return os.pread(self.descriptor, length, self.start + at) if length > 0 <= at else b""

    def tail(self, length: int) -> bytes:
        return self.read(max(0, self.size - length), length)

    def number(self, at: int, width: int, order: Literal["big", "little"]) -> int:
        return int.from_bytes(self.read(at, width), order)


def missing_end(format_name: str, descriptor: int, start: int, end: int) -> str | None:
    """Return in words how the file ends too early, None if it does not or cannot be told.

    `format_name` is FFmpeg's; the audio and its headers lie from byte `start` to `end`. Known are
    MP3 (by its Xing, Info or VBRI header), Ogg, WAV, AIFF, DSF and WMA. Of an MP4 that FFmpeg
    cannot open, for want of its index, "mp4" tells whether it was cut.
    """
    find = _FINDERS.get(format_name)
    return find(_File(descriptor, start, end)) if find else None


def _mp3(file: _File) -> str | None:
    head = file.read(0, _HEAD)
    at = head.find(0xFF)
    while at >= 0:
        if _frame_size(head[at : at + 4]) and (promised := _xing_bytes(head[at : at + 200])):
            kind = _frame_kind(head[at : at + 4])
            if _ends_within_a_frame(file.tail(_MP3_TAIL), kind):
                return _too_short(file.size, at + promised)
            return None
        at = head.find(0xFF, at + 1)
    return None


def _frame_kind(header: bytes) -> tuple[int, int]:
    """What all frames of a file share: version and layer, sample rate."""
    return header[1] & 0xFE, header[2] & 0x0C


def _frame_size(header: bytes) -> int:
    """Return the bytes of the Layer III frame with this header, 0 if it is none or "free"."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, bit_rate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bit_rate == 15 or rate == 3:
        return 0
    mpeg1 = version == 3
    bits = 1000 * _BIT_RATES[0 if mpeg1 else 1][bit_rate]
    hertz = _MPEG1_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return bits * (144 if mpeg1 else 72) // hertz + (header[2] >> 1 & 1) if bits else 0


def _xing_bytes(frame: bytes) -> int:
    """Return how many bytes follow from this frame on, by the header in it; 0 if not told."""
    mpeg1, mono = frame[1] & 0x18 == 0x18, frame[3] & 0xC0 == 0xC0
    place = 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[46:50], "big")
    flags = int.from_bytes(frame[place + 4 : place + 8], "big")
    if frame[place : place + 4] not in {b"Xing", b"Info"} or not flags & 2:
        return 0
    place += 12 if flags & 1 else 8  # behind the count of frames
    return int.from_bytes(frame[place : place + 4], "big")


def _ends_within_a_frame(tail: bytes, kind: tuple[int, int]) -> bool:
    begin = tail.find(0xFF)
    while begin >= 0:
        at, chain = begin, 0
        while (size := _frame_size(tail[at : at + 4])) and _frame_kind(tail[at : at + 4]) == kind:
            at, chain = at + size, chain + 1
        if chain >= _CHAIN and at > len(tail):
            return True
        if chain >= _CHAIN and len(tail) - at < 4:  # at the end, or within the next header
            return tail[at : at + 1] == b"\xff"
        begin = tail.find(0xFF, at if chain >= _CHAIN else begin + 1)
    return False


def _ogg(file: _File) -> str | None:
    """RFC 3533. A stream that was cut between two pages cannot be told from a radio recording."""
    tail = file.tail(_OGG_TAIL)
    at = tail.rfind(b"OggS")
    if at < 0:
        return None
    page = tail[at:]
    if len(page) > 5 and page[5] & 4:  # the last: at most its own end is missing
        return None
    segments = page[26] if len(page) > 26 else 256
    lacing = page[27 : 27 + segments]
    size = 27 + segments + sum(lacing)
    if size > len(page) or page[size:] in {b"O", b"Og", b"Ogg"}:
        return "it ends within a page"
    if size == len(page) and lacing[-1:] == b"\xff":
        return "it ends within a packet"
    return None


def _chunks(file: _File) -> str | None:
    """WAV and AIFF: the chunk of the audio, and the one around all others, promise more."""
    name = file.read(0, 4)
    order: Literal["big", "little"] = "big" if name == b"FORM" else "little"
    if name not in {b"RIFF", b"FORM"}:
        return None
    promised = 8 + file.number(4, 4, order)
    at = 12
    for _ in range(_MOST_CHUNKS):
        name, size = file.read(at, 4), file.number(at + 4, 4, order)
        if name in {b"data", b"SSND"}:
            if max(size, promised) >= _LEAST_UNSET or at + 8 + size <= file.size:
                return None
            return _too_short(file.size, promised)
        if not any(name):
            return None
        at += 8 + size + size % 2
    return None


def _dsf(file: _File) -> str | None:
    data = 28 + file.number(32, 8, "little")
    if data + file.number(data + 4, 8, "little") <= file.size:
        return None
    return _too_short(file.size, file.number(12, 8, "little"))


def _asf(file: _File) -> str | None:
    """Microsoft, "Advanced Systems Format Specification" 1.2: packets all of one size."""
    data = file.number(16, 8, "little")
    header = file.read(0, min(data, 1 << 20))
    at = header.find(_ASF_PROPERTIES)
    flags, least, most = (
        int.from_bytes(header[at + place : at + place + 4], "little") for place in (88, 92, 96)
    )
    is_live = at < 0 or flags & 1
    if is_live or least != most or not least or file.read(data, 16) != _ASF_DATA:
        return None
    if (file.size - data - 50) % least == 0:  # where an editor cuts
        return None
    return _too_short(file.size, data + file.number(data + 16, 8, "little"))


def _mp4(file: _File) -> str | None:
    """ISO 14496-12: a box that ends beyond the file."""
    at = 0
    for _ in range(_MOST_CHUNKS):
        size, name = file.number(at, 4, "big"), file.read(at + 4, 4)
        if at == 0 and name != b"ftyp":
            return None
        if size == 1:
            size = file.number(at + 8, 8, "big")
        if size < 8:
            return None
        at += size
        if at > file.size:
            return _too_short(file.size, at, slack=0)
    return None


def _too_short(size: int, promised: int, slack: int = SLACK) -> str | None:
    if promised - size <= slack:
        return None
    return f"it ends after {size / 1e6:.2f} of {promised / 1e6:.2f} MB"


_FINDERS: dict[str, Callable[[_File], str | None]] = {
    "mp3": _mp3,
    "ogg": _ogg,
    "wav": _chunks,
    "aiff": _chunks,
    "dsf": _dsf,
    "asf": _asf,
    "mp4": _mp4,
}
