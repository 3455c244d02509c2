"""ID3v2 tags (2.2, 2.3, 2.4) as bytes, and the ID3v1 tag at a file's end.

Specifications: id3.org, "ID3 tag version 2", 2.3.0, 2.4.0 (structure and frames). A new tag is the
old one with its genre or mood frame replaced: no other frame is changed, so none can be damaged.
The mood is TMOO, which ID3v2.4 brought; older versions have TXXX (TXX) with the description MOOD,
and that counts in any version.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass

from reclass_plex.containers.base import (
    GENRE,
    UNREADABLE,
    ContainerError,
    Edits,
    Found,
    replace_fields,
)
from reclass_plex.genres import ID3V1_GENRES

HEADER = 10  # bytes
_LARGEST = (1 << 28) - 1  # bytes of a tag's body: four times seven bits

_LONGEST_TEXT = 1 << 20  # bytes of a text frame; also what a compressed one may become
_MOST_VALUES = 10_000  # of a text frame

_FRAMES = {
    "genre": (b"TCON", b"TCO"),
    "mood": (b"TMOO",),
    "album": (b"TALB", b"TAL"),
    "album_artist": (b"TPE2", b"TP2"),
    "title": (b"TIT2", b"TT2"),
    "artist": (b"TPE1", b"TP1"),
}
_FIELD_OF = {name: field for field, names in _FRAMES.items() for name in names}
_DESCRIBED = (b"TXXX", b"TXX")  # text frames whose first value says what they are
_MOOD = "MOOD"  # that value
_FRAME_ID = re.compile(rb"[A-Z][A-Z0-9]{2}[A-Z0-9\0 ]?")
_ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")

ID3V1_SIZE = 128  # bytes
ID3V1_NONE = 255  # the genre byte that says nothing


@dataclass(frozen=True)
class Frame:
    """One frame: where it lies in the tag's plain body (header included), its ID and flags."""

    name: bytes
    start: int
    data: int  # where its content begins
    end: int
    flags: int


@dataclass(frozen=True)
class Tag:
    """A parsed tag. `body` is all after the header, with unsynchronisation undone (2.2, 2.3)."""

    version: int  # 2, 3 or 4
    flags: int
    body: bytes
    frames: tuple[Frame, ...]
    frames_start: int
    frames_end: int
    plain_sizes: bool  # 2.4 with sizes as iTunes once wrote them: not syncsafe

    @property
    def format(self) -> str:
        """ "id3v2.2", "id3v2.3" or "id3v2.4"."""
        return f"id3v2.{self.version}"

    def field_of(self, frame: Frame) -> str | None:
        """Return which of the fields `frame` holds."""
        if frame.name not in _DESCRIBED:
            return _FIELD_OF.get(frame.name)
        try:
            texts = _text(self, frame)
        except ContainerError:  # encrypted, or damaged: not for us to judge
            return None
        return "mood" if texts and texts[0].upper() == _MOOD else None


def tag_size(head: bytes) -> int:
    """Return how long the tag is that begins with `head` (10 bytes), 0 if none does."""
    if len(head) < HEADER or head[:3] != b"ID3" or max(head[6:10]) > 0x7F or 0xFF in head[3:5]:
        return 0
    footer = HEADER if head[3] == 4 and head[5] & 0x10 else 0
    return HEADER + _syncsafe(head[6:10]) + footer


def read_tag(raw: bytes, fields: Collection[str] = GENRE) -> Found:
    """Return what the ID3v2 tag `raw` holds."""
    tag = _parse(raw)
    texts: dict[str, list[str]] = {}
    rest = []
    for frame in tag.frames:
        field = tag.field_of(frame)
        if field:
            texts.setdefault(field, []).extend(_values_of(tag, frame, field))
        if field not in fields:
            rest.append(tag.body[frame.start : frame.end])
    rest.append(tag.body[tag.frames_end :].rstrip(b"\0"))  # what follows the frames, if not padding
    return Found(tag.format, texts, [raw[:4], *rest, raw[tag_size(raw[:HEADER]) :]])


def edit_tag(raw: bytes, edits: Edits) -> bytes:
    """Return the ID3v2 tag `raw`, edited. It keeps its size if its padding allows.

    What follows the tag in `raw` stays.
    """
    tag = _parse(raw)
    raw, behind = raw[: tag_size(raw[:HEADER])], raw[tag_size(raw[:HEADER]) :]
    body = tag.body
    new = {
        field: [_field_frame(tag.version, field, texts, tag.plain_sizes)] if texts else []
        for field, texts in ((field, values(tag.format)) for field, values in edits.items())
    }
    pieces = replace_fields(
        [body[frame.start : frame.end] for frame in tag.frames],
        [tag.field_of(frame) for frame in tag.frames],
        new,
    )
    content = body[: tag.frames_start] + b"".join(pieces)
    if junk := body[tag.frames_end :].rstrip(b"\0"):  # not ours to judge
        content += body[tag.frames_end : tag.frames_end + len(junk)]
    if tag.version < 4 and tag.flags & 0x80:
        content = _unsynchronise(content)
    padding = bytes(max(0, len(raw) - HEADER - len(content)))
    if tag.version == 3 and tag.frames_start:  # the extended header states the padding
        content = content[:6] + len(padding).to_bytes(4, "big") + content[HEADER:]
    body = content + padding
    if len(body) > _LARGEST:
        raise ContainerError("the ID3 tag would become too large")
    return raw[:6] + _to_syncsafe(len(body)) + body + behind


def new_tag(edits: Edits, id3v1: bytes = b"") -> bytes:
    """Return an ID3v2.4 tag with what is set, and with what the `id3v1` tag says besides.

    Players that find a version 2 tag do not look at version 1 any more.
    """
    frames = []
    if id3v1:
        for name, start, length in ((b"TIT2", 3, 30), (b"TPE1", 33, 30), (b"TALB", 63, 30)):
            frames.append((name, b"\0" + _id3v1_text(id3v1, start, length)))
        frames.append((b"TDRC", b"\0" + _id3v1_text(id3v1, 93, 4)))
        numbered = id3v1[125] == 0 and id3v1[126] != 0  # ID3v1.1
        comment = _id3v1_text(id3v1, 97, 28 if numbered else 30)
        frames.append((b"COMM", b"\0engID3v1 Comment\0" + comment if comment else b"\0"))
        frames.append((b"TRCK", b"\0" + (b"%d" % id3v1[126] if numbered else b"")))
        if "genre" not in edits and id3v1[127] < len(ID3V1_GENRES):
            frames.append((b"TCON", b"\0%d" % id3v1[127]))
    body = b"".join(_frame(4, name, data) for name, data in frames if len(data) > 1)
    for field, values in edits.items():
        if texts := values("id3v2.4"):
            body += _field_frame(4, field, texts, plain_sizes=False)
    return b"ID3\4\0\0" + _to_syncsafe(len(body)) + body


def read_id3v1(raw: bytes) -> dict[str, list[str]]:
    """Return the texts of the ID3v1 tag `raw` (128 bytes)."""
    found = {}
    for field, start in (("title", 3), ("artist", 33), ("album", 63)):
        if text := _id3v1_text(raw, start, 30).decode("latin-1").strip():
            found[field] = [text]
    if raw[127] < len(ID3V1_GENRES):
        found["genre"] = [ID3V1_GENRES[raw[127]]]
    return found


def id3v1_genre(values: list[str]) -> int:
    """Return the genre byte for `values`: that of the first which has one."""
    numbers = {name.casefold(): number for number, name in enumerate(ID3V1_GENRES)}
    return next((numbers[v.casefold()] for v in values if v.casefold() in numbers), ID3V1_NONE)


def _id3v1_text(raw: bytes, start: int, length: int) -> bytes:
    return raw[start : start + length].split(b"\0")[0].rstrip()


def _parse(raw: bytes) -> Tag:
    if not tag_size(raw[:HEADER]):
        raise ContainerError("its ID3 tag is damaged")
    version, flags = raw[3], raw[5]
    if version not in {2, 3, 4}:
        raise ContainerError(f"its ID3 tag is of the unknown version 2.{version}")
    if tag_size(raw[:HEADER]) > len(raw):
        raise ContainerError("its ID3 tag is cut off")
    if flags & {2: 0x7F, 3: 0x1F, 4: 0x1F}[version]:
        raise ContainerError("its ID3 tag is compressed, has a footer or an unknown structure")
    raw = raw[: tag_size(raw[:HEADER])]
    body = raw[HEADER:]
    if version < 4 and flags & 0x80:
        plain = body.replace(b"\xff\x00", b"\xff")
        if _unsynchronise(plain).rstrip(b"\0") != body.rstrip(b"\0"):
            raise ContainerError("its ID3 tag is wrongly unsynchronised")
        body = plain
    start = _extended_header(version, flags, body)
    frames, end = _walk(version, body, start, plain_sizes=False)
    plain_sizes = False
    if version == 4 and body[end:].strip(b"\0"):
        others, other_end = _walk(version, body, start, plain_sizes=True)
        if not body[other_end:].strip(b"\0"):
            frames, end, plain_sizes = others, other_end, True
    for frame in frames:
        if frame.name[:1] == b"T":
            _check_text(frame, body[frame.data : frame.end])
    return Tag(version, flags, body, tuple(frames), start, end, plain_sizes)


def _extended_header(version: int, flags: int, body: bytes) -> int:
    """Return where the frames begin."""
    if version == 2 or not flags & 0x40 or _FRAME_ID.fullmatch(body[:4]):
        return 0  # some programs set the flag without the header
    if version == 3:
        size, checksum = 4 + int.from_bytes(body[:4], "big"), body[4] & 0x80
        known = size in {10, 14}
    else:
        size, checksum = _syncsafe(body[:4]), body[5] & 0x20
        known = 6 <= size <= len(body)
    if checksum or not known or (version == 3 and flags & 0x80):
        raise ContainerError("its ID3 tag has a checksum or an unknown extended header")
    return size


def _walk(version: int, body: bytes, at: int, *, plain_sizes: bool) -> tuple[list[Frame], int]:
    """Return the frames and where they end: at padding, at bytes that are no frame, or the end."""
    frames = []
    id_size, head = (3, 6) if version == 2 else (4, HEADER)
    while at + head <= len(body):
        name = body[at : at + id_size]
        if not _FRAME_ID.fullmatch(name):
            break
        number = body[at + id_size : at + 2 * id_size]
        if version == 4 and not plain_sizes:
            if max(number) > 0x7F:
                break
            size = _syncsafe(number)
        else:
            size = int.from_bytes(number, "big")
        if at + head + size > len(body):
            break
        flags = int.from_bytes(body[at + 8 : at + HEADER], "big") if version > 2 else 0
        frames.append(Frame(name, at, at + head, at + head + size, flags))
        at += head + size
    return frames, at


def _text(tag: Tag, frame: Frame) -> list[str]:
    """Return the values of a text frame."""
    data = tag.body[frame.data : frame.end]
    if tag.version == 3:
        compressed, encrypted, grouped = (frame.flags & bit for bit in (0x80, 0x40, 0x20))
        length_known = compressed
    else:
        grouped, compressed, encrypted = (frame.flags & bit for bit in (0x40, 0x08, 0x04))
        length_known = frame.flags & 0x01
    if encrypted:
        raise ContainerError(f"its {frame.name.decode()} is encrypted")
    if tag.version == 4:
        data = data[(1 if grouped else 0) + (4 if length_known else 0) :]
        if frame.flags & 0x02 or tag.flags & 0x80:
            data = data.replace(b"\xff\x00", b"\xff")
    else:
        data = data[(4 if length_known else 0) + (1 if grouped else 0) :]
    if compressed:
        data = _unpacked(frame, data)
    if not data:
        return []
    if data[0] >= len(_ENCODINGS):
        return [data.decode("latin-1").rstrip("\0")]
    encoding, content = _ENCODINGS[data[0]], data[1:]
    if data[0] in {1, 2} and len(content) % 2:
        content = content[:-1]  # half a terminator
    if data[0] == 1 and content[:2] not in {b"\xff\xfe", b"\xfe\xff"}:
        encoding = "utf-16-le"
    text = content.decode(encoding, "replace").rstrip("\0")
    return [value.lstrip("\ufeff") for value in text.split("\0")]


def _check_text(frame: Frame, data: bytes) -> None:
    """Refuse what takes readers forever: mutagen copies the rest of a text at each of its zeros."""
    zero = b"\0" if data[:1] in {b"\0", b"\3"} else b"\0\0"
    if len(data) > _LONGEST_TEXT or data.count(zero) > _MOST_VALUES:
        raise ContainerError(f"its {frame.name.decode()} is no text that a person wrote")


def _unpacked(frame: Frame, data: bytes) -> bytes:
    """Return what a compressed frame holds: a few kilobytes may become gigabytes."""
    packed = zlib.decompressobj()
    try:
        data = packed.decompress(data, _LONGEST_TEXT)
    except zlib.error as error:
        raise ContainerError(f"its {frame.name.decode()} is damaged: {error}") from error
    if not packed.eof:
        raise ContainerError(f"its {frame.name.decode()} is cut off or over {_LONGEST_TEXT} bytes")
    return data


def _values_of(tag: Tag, frame: Frame, field: str) -> list[str]:
    """Return the values of a frame that holds `field`."""
    if field != "mood":
        return _text(tag, frame)
    try:
        texts = _text(tag, frame)
    except ContainerError:  # not to be written over, yet no reason to refuse the file
        return [UNREADABLE]
    return texts[1:] if frame.name in _DESCRIBED else texts


def _field_frame(version: int, field: str, values: list[str], plain_sizes: bool) -> bytes:
    if field == "genre":
        name = b"TCO" if version == 2 else b"TCON"
    elif version == 4:
        name = b"TMOO"
    else:
        name = b"TXX" if version == 2 else b"TXXX"
        values = [_MOOD, *values]
    text = "\0".join(values)
    if text.isascii():
        data = b"\0" + text.encode("ascii")
    elif version == 4:
        data = b"\3" + text.encode("utf-8")  # holds no 0xFF, so needs no unsynchronisation
    else:
        try:
            data = b"\0" + text.encode("latin-1")
        except UnicodeEncodeError:
            marked = (b"\xff\xfe" + value.encode("utf-16-le") for value in values)
            data = b"\1" + b"\0\0".join(marked)
    return _frame(version, name, data, plain_sizes=plain_sizes)


def _frame(version: int, name: bytes, data: bytes, *, plain_sizes: bool = False) -> bytes:
    if version == 2:
        return name + len(data).to_bytes(3, "big") + data
    if version == 3 or plain_sizes:
        return name + len(data).to_bytes(4, "big") + b"\0\0" + data
    return name + _to_syncsafe(len(data)) + b"\0\0" + data


def _unsynchronise(data: bytes) -> bytes:
    data = re.sub(rb"\xff(?=[\xe0-\xff\x00])", b"\xff\x00", data)
    return data + b"\0" if data.endswith(b"\xff") else data


def _syncsafe(data: bytes) -> int:
    return data[0] << 21 | data[1] << 14 | data[2] << 7 | data[3]


def _to_syncsafe(value: int) -> bytes:
    return bytes(value >> shift & 0x7F for shift in (21, 14, 7, 0))
