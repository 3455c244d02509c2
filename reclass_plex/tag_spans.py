"""Where the audio of a file lies between the tags around it: pure reading of bytes.

FFmpeg refuses some formats behind an ID3v2 tag, and counts tags behind others as audio.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

_TAIL = 5200  # bytes; no Lyrics3 tag without a length is longer
_MOST_TAGS = 1000  # at either end; no tag need be longer than 10 bytes, so there may be millions
_MOST_CHUNKS = 10_000  # in one file; a recording with a chunk for each marker has hundreds
_UNTOLD = 0xFFFFFFFF  # a 32-bit size that a streaming writer left open, or that ds64 tells


@dataclass(frozen=True)
class _Layout:
    """How a container's chunks follow each other; a chunk is a name, a size and a content."""

    first: int  # byte at which the first chunk begins
    audio: bytes  # name of the chunks that hold audio
    lead: int  # bytes in such a chunk before the audio
    order: Literal["big", "little"]  # of the bytes of a size
    width: int  # of a size, in bytes
    step: int = 1  # chunks are padded to a multiple of it, in bytes
    counts_head: bool = False  # whether a size includes the name and itself

    @property
    def head(self) -> int:
        return len(self.audio) + self.width


_RIFF = _Layout(12, b"data", 0, "little", 4, step=2)
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_LAYOUTS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"FORM": _Layout(12, b"SSND", 8, "big", 4, step=2),
    b"DSD ": _Layout(28, b"data", 0, "little", 8, counts_head=True),
    b"riff": _Layout(40, _W64_DATA, 0, "little", 8, step=8, counts_head=True),
    b"caff": _Layout(8, b"data", 4, "big", 8),
}


def span_between_tags(descriptor: int) -> tuple[int, int]:
    """Return where a file begins and ends, but for the tags in front and behind, in bytes.

    Known are ID3v2 and APE tags in front, and ID3v1, ID3v2.4, APE and Lyrics3 tags behind, in any
    order and number (id3.org; Hydrogenaudio's specifications of APEv2 and Lyrics3).
    """
    start, end = 0, os.fstat(descriptor).st_size
    for _ in range(_MOST_TAGS):
        size = _leading_tag(os.pread(descriptor, 32, start))
        if not 0 < size <= end - start:
            break
        start += size
    for _ in range(_MOST_TAGS):
        length = min(_TAIL, end - start)
        size = _trailing_tag(os.pread(descriptor, length, end - length)) if length else 0
        if not 0 < size <= end - start:
            break
        end -= size
    return start, end


def skip_flac_metadata(descriptor: int, start: int) -> int:
    """Return where the first frame of a FLAC is that begins at `start` (RFC 9639), in bytes."""
    if os.pread(descriptor, 4, start) != b"fLaC":
        return start
    start += 4
    last = False
    while not last and len(block := os.pread(descriptor, 4, start)) == 4:
        last = bool(block[0] & 0x80)
        start += 4 + int.from_bytes(block[1:], "big")
    return start


def find_audio_chunks(
    descriptor: int, start: int, end: int
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Return the runs of audio (begin, end) between `start` and `end`, and where chunks end.

    Known are WAV with RF64 and BW64 (EBU Tech 3306), AIFF, DSF, Wave64 and CAF. There are no
    runs, and `end` stays, in another format and in doubt: a size of the audio that is not told,
    or is more than there is. Zeros behind the last chunk, as a recorder leaves them that reserves
    its space, are no chunks: FFmpeg would take every eight of them for one.
    """
    layout = _LAYOUTS.get(os.pread(descriptor, 4, start))
    if layout is None:
        return (), end
    runs: list[tuple[int, int]] = []
    at = start + layout.first
    long_size = 0  # that ds64 tells
    for _ in range(_MOST_CHUNKS):
        content = at + layout.head
        if content > end:
            return tuple(runs), end
        head = os.pread(descriptor, layout.head, at)
        name = head[: len(layout.audio)]
        if not any(name):
            return tuple(runs), at if runs else end
        size = int.from_bytes(head[len(name) :], layout.order)
        size -= layout.head if layout.counts_head else 0
        if name == b"ds64":
            long_size = int.from_bytes(os.pread(descriptor, 8, content + 8), "little")
        if name == layout.audio:
            if layout.width == 4 and size == _UNTOLD:
                size = long_size
            if not layout.lead < size <= end - content:
                return (), end
            runs.append((content + layout.lead, content + size))
        elif not 0 <= size <= end - content:
            return tuple(runs), end  # what follows the last chunk is none
        at = content + size + -size % layout.step
    return (), end


def _leading_tag(head: bytes) -> int:
    """The size in bytes of the tag that begins with `head`; 0 if it is none."""
    if len(head) < 32:
        return 0
    if head.startswith(b"ID3"):
        return 10 + _synchsafe(head[6:10]) + (10 if head[5] & 0x10 else 0)  # with a footer
    if head.startswith(b"APETAGEX"):
        return 32 + int.from_bytes(head[12:16], "little")
    return 0


def _trailing_tag(tail: bytes) -> int:
    """The size in bytes of the tag that ends with `tail`; 0 if it is none."""
    # "APETAGEX" has "TAG" in it, and an APE tag of 131 bytes has it in the place of an ID3v1 tag.
    if tail[-128:-125] == b"TAG" and tail[-131:-123] != b"APETAGEX":
        return 128 + (227 if tail[-355:-351] == b"TAG+" else 0)
    if tail[-32:-24] == b"APETAGEX":
        header = 32 if tail[-9] & 0x80 else 0
        return header + int.from_bytes(tail[-20:-16], "little")
    if tail.endswith(b"LYRICS200") and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    if tail.endswith(b"LYRICSEND") and b"LYRICSBEGIN" in tail:
        return len(tail) - tail.rindex(b"LYRICSBEGIN")
    if tail[-10:-7] == b"3DI":
        return 20 + _synchsafe(tail[-4:])
    return 0


def _synchsafe(number: bytes) -> int:
    """ID3v2's integers: seven bits a byte, most significant first."""
    return sum((byte & 0x7F) << shift for byte, shift in zip(number, (21, 14, 7, 0), strict=True))
