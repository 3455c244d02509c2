"""Where the audio of a file lies between the tags around it: pure reading of bytes.

FFmpeg refuses some formats behind an ID3v2 tag, and counts tags behind others as audio.
"""

from __future__ import annotations

import os

_TAIL = 5200  # bytes; no Lyrics3 tag without a length is longer


def span_between_tags(descriptor: int) -> tuple[int, int]:
    """Return where a file begins and ends, but for the tags in front and behind, in bytes.

    Known are ID3v2 and APE tags in front, and ID3v1, ID3v2.4, APE and Lyrics3 tags behind, in any
    order and number (id3.org; Hydrogenaudio's specifications of APEv2 and Lyrics3).
    """
    start, end = 0, os.fstat(descriptor).st_size
    while 0 < (size := _leading_tag(os.pread(descriptor, 32, start))) <= end - start:
        start += size
    while start < end:
        length = min(_TAIL, end - start)
        size = _trailing_tag(os.pread(descriptor, length, end - length))
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
    if tail[-128:-125] == b"TAG":
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
