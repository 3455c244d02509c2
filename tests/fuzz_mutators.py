"""Hostile files out of healthy ones: random, yet the same for the same seed and number.

Half of what is done knows the container (`fuzz_layout`): sizes, counts and flags are set to what
readers trip over, pieces are removed, repeated, nested in themselves, and taken from other files.
Checksums that would hide the damage from a reader are made right again half of the time.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

from fuzz_corpus import Base
from fuzz_layout import Field, Layout, find_layout

LARGEST = 4 << 20  # bytes of a hostile file, except of bombs

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_TEXTS = (
    b"\xff\xfe\x00\xd8\x41\x00",  # UTF-16 with a lone surrogate
    b"\xff\xfe\x00\xdc",
    b"\xfe\xff\xd8",  # half a character
    b"\xed\xa0\x80\xed\xb0\x80",  # surrogates in UTF-8
    b"\xff\xff\xfe\xc0\x80\xf8\x88\x80\x80\x80",
    b"\x1b[2J\x07\r\n\x00\x08",  # what a terminal would do
    b"../../../etc/passwd",
    b"<script>alert(1)</script>",
    b"A" * 70000,
    b"\0" * 5000,
    b"(13)(RX)((17)" * 200,
    b";" * 3000,
    b"",
)

Mutator = Callable[[random.Random, bytearray, Layout, Sequence[Base]], bytearray]


def mutate(rng: random.Random, base: Base, corpus: Sequence[Base]) -> tuple[bytes, list[str]]:
    """Return a hostile file made of `base`, and the names of what was done to it."""
    data = bytearray(base.data)
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        layout = find_layout(bytes(data))
        mutator = rng.choice(_STRUCTURED if rng.random() < 0.65 else _BLIND)
        data = mutator(rng, data, layout, corpus)[:LARGEST]
        names.append(mutator.__name__.strip("_"))
    if rng.random() < 0.6:
        mend_checksums(data)
    return bytes(data), names


def mend_checksums(data: bytearray) -> None:
    """Make right what readers check before they look further: Ogg pages, TTA's header."""
    at = data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        head = min(at + 27 + data[at + 26], len(data))
        end = head + sum(data[at + 27 : head])
        data[at + 22 : at + 26] = bytes(4)
        value = zlib.crc32(bytes(data[at:end]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        data[at + 22 : at + 26] = value.to_bytes(4, "little").translate(_REVERSED)[::-1]
        at = data.find(b"OggS", at + 27)
    at = data.find(b"TTA1")
    if 0 <= at <= len(data) - 22:
        data[at + 18 : at + 22] = zlib.crc32(bytes(data[at : at + 18])).to_bytes(4, "little")


# Blind


def _flip_bits(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    for _ in range(rng.choice((1, 2, 8, 64))):
        if data:
            data[_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _set_run(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    if data:
        at = _place(rng, data)
        size = min(rng.choice((1, 2, 4, 8, 30, 500)), len(data) - at)
        value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", None))
        data[at : at + size] = rng.randbytes(size) if value is None else value * size
    return data


def _remove_run(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    if data:
        at = _place(rng, data)
        del data[at : at + rng.choice((1, 2, 4, 16, 200, 5000))]
    return data


def _insert_run(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 3, 16, 200, 5000)))
    return data


def _truncate(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    del data[_place(rng, data) :]
    return data


def _splice(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    other = rng.choice(corpus).data
    return data[: _place(rng, data)] + other[rng.randrange(len(other)) :]


def _repeat_run(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    at = _place(rng, data)
    run = data[at : at + rng.choice((1, 4, 10, 64, 1000))]
    data[at:at] = run * rng.choice((1, 3, 50, 1000))
    return data


def _place(rng: random.Random, data: bytearray) -> int:
    """Choose a byte: often among the first or last, where headers and tags are."""
    if not data:
        return 0
    kind = rng.random()
    if kind < 0.4:
        return rng.randrange(min(len(data), rng.choice((16, 64, 600, 3000))))
    if kind < 0.55:
        return len(data) - 1 - rng.randrange(min(len(data), 1500))
    return rng.randrange(len(data))


# With the container in mind


def _set_field(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 4))):
        if layout.fields:
            _write(rng, data, rng.choice(layout.fields))
    return data


def _write(rng: random.Random, data: bytearray, field: Field) -> None:
    bits = 7 if field.order == "syncsafe" else 8
    top = 1 << bits * field.width
    order: Literal["big", "little"] = "big" if field.order == "big" else "little"
    now = int.from_bytes(data[field.offset : field.offset + field.width], order)
    value = rng.choice(
        (
            *(0, 1, 2, 3, 7, 8, 9, 255, 1000, 65535, len(data), 2 << 30, 10**9),
            *(top - 1, top - 2, top // 2, top // 2 - 1, top - rng.randrange(1, 64)),
            *(now + 1, now - 1, now * 2, now // 2, now + 8, rng.randrange(top)),
        )
    )
    value %= top
    if field.order == "syncsafe":
        raw = bytes(value >> shift & 0x7F for shift in range(7 * (field.width - 1), -1, -7))
        if rng.random() < 0.1:
            raw = bytes([raw[0] | 0x80]) + raw[1:]  # no syncsafe number
    else:
        raw = value.to_bytes(field.width, order)
    data[field.offset : field.offset + field.width] = raw


def _remove_piece(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    if layout.pieces:
        start, end = rng.choice(layout.pieces)
        del data[start:end]
    return data


def _repeat_piece(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    if layout.pieces:
        start, end = rng.choice(layout.pieces)
        times = rng.choice((1, 1, 2, 20, 300, 3000))
        times = max(1, min(times, (1 << 20) // max(1, end - start)))
        data[end:end] = data[start:end] * times
    return data


def _nest_piece(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    """Put a piece into itself, or around everything behind it, many times."""
    if not layout.pieces:
        return data
    start, end = rng.choice(layout.pieces)
    head = bytes(data[start : start + rng.choice((4, 8, 10, 12, 24))])
    if rng.random() < 0.4:
        data[start:start] = head * rng.choice((1, 5, 100, 3000))
        return data
    whole = bytes(data[start:end])
    middle = start + min(len(head), end - start)
    data[middle:middle] = whole[: 1 << 16]
    return data


def _swap_pieces(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    if len(layout.pieces) < 2:
        return data
    (a, b), (c, d) = sorted(rng.sample(layout.pieces, 2))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]
    return data


def _take_piece(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    """Put in a piece of another file, often of another format."""
    other = rng.choice(corpus)
    pieces = find_layout(other.data).pieces
    if pieces:
        start, end = rng.choice(pieces)
        at = rng.choice(layout.pieces)[rng.randrange(2)] if layout.pieces else 0
        data[at:at] = other.data[start:end]
    return data


def _set_text(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    """Put a text that is none into a tag, in the place of as many bytes or with its size kept."""
    if layout.contents:
        start, end = rng.choice(layout.contents)
        text = rng.choice(_TEXTS)
        if rng.random() < 0.6:
            text = text[: end - start].ljust(end - start, b"\0")
        data[start:end] = text
    return data


def _add_tag(
    rng: random.Random, data: bytearray, layout: Layout, corpus: Sequence[Base]
) -> bytearray:
    """Put a hostile tag in front or behind."""
    if rng.random() < 0.6:
        return bytearray(_hostile_id3(rng)) * rng.choice((1, 1, 1, 3, 500)) + data
    return data + _hostile_ape(rng) + (b"TAG" + rng.randbytes(125)) * rng.randrange(3)


def _hostile_id3(rng: random.Random) -> bytes:
    version = rng.choice((2, 3, 4, 4, 3))
    frames = b""
    for _ in range(rng.choice((1, 1, 2, 5))):
        content = rng.choice((b"\0", b"\1", b"\2", b"\3", b"\x09")) + rng.choice(_TEXTS)
        name = rng.choice((b"TCON", b"TIT2", b"TALB", b"TXXX", b"APIC", b"TMOO", b"PRIV"))
        flags = rng.choice((0, 0, 0, 1, 2, 3, 4, 8, 9, 0x40, 0x80, 0xFF))
        if rng.random() < 0.3:  # compressed: a little becomes much
            bomb = zlib.compress(b"\0" * rng.choice((100, 10**6, 30 * 10**6)), 9)
            content = struct.pack(">I", rng.choice((0, 100, 1 << 31))) + bomb
            flags = 9 if version == 4 else 0x80
        if version == 2:
            frames += name[:3] + len(content).to_bytes(3, "big") + content
        else:
            size = len(content) + rng.choice((0, 0, 0, 1, -1, 10**6))
            number = _syncsafe(size) if version == 4 else max(0, size).to_bytes(4, "big")
            frames += name + number + bytes([0, flags]) + content
    flags = rng.choice((0, 0, 0x80, 0x40, 0xC0, 0x20, 0x10, 0xFF))
    size = max(0, len(frames) + rng.choice((0, 0, 0, -1, 1, 10, 10**5)))
    return b"ID3" + bytes([version, 0, flags]) + _syncsafe(size) + frames


def _hostile_ape(rng: random.Random) -> bytes:
    items = b""
    count = rng.choice((0, 1, 1, 5))
    for _ in range(count):
        value = rng.choice(_TEXTS)
        size = rng.choice((len(value), len(value), 0, 0xFFFFFFFF, 0x80000000))
        flags = rng.choice((0, 0, 2, 4, 6, 0xFFFFFFFF))
        key = rng.choice((b"Genre", b"genre", b"", b"\xff\xfe", b"Mood", b"Title"))
        items += struct.pack("<II", size, flags) + key + b"\0" + value
    size = rng.choice((len(items) + 32, len(items) + 32, 0, 31, 32, 0xFFFFFFE0, 1 << 31))
    count = rng.choice((count, count, 0, 0xFFFFFFFF))
    flags = rng.choice((0, 1 << 31, 1 << 29, 0xFFFFFFFF))
    footer = struct.pack(
        "<8sIIII8s", b"APETAGEX", rng.choice((2000, 1000)), size, count, flags, b""
    )
    return items + footer


def _syncsafe(value: int) -> bytes:
    value = max(0, value) & 0x0FFFFFFF
    return bytes(value >> shift & 0x7F for shift in (21, 14, 7, 0))


_BLIND: tuple[Mutator, ...] = (
    *(_flip_bits, _flip_bits, _set_run, _set_run, _remove_run, _insert_run),
    *(_truncate, _splice, _repeat_run),
)
_STRUCTURED: tuple[Mutator, ...] = (
    *(_set_field, _set_field, _set_field, _set_field, _remove_piece, _repeat_piece),
    *(_nest_piece, _swap_pieces, _take_piece, _set_text, _set_text, _add_tag),
)
