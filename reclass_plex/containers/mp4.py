"""MP4 and M4A: genre and mood in moov/udta/meta/ilst, among other atoms.

Specifications: ISO/IEC 14496-12 (boxes, chunk offsets), Apple's "QuickTime File Format" (metadata),
mutagen's and AtomicParsley's readings of iTunes' items. Room for a longer genre is taken from a
"free" atom beside the items; where there is none, the atoms around grow, and the offsets of all
audio behind them are moved.
"""

from __future__ import annotations

import struct
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
    replace_fields,
    size_of,
)
from reclass_plex.genres import ID3V1_GENRES

_FIELD_OF = {
    b"\xa9gen": "genre",
    b"gnre": "genre",  # a number: ID3v1's, plus one
    b"\xa9alb": "album",
    b"aART": "album_artist",
    b"\xa9nam": "title",
    b"\xa9ART": "artist",
}
_FREE_FORM = b"----"  # an item that names itself: who means it, and what
_MEAN, _MOOD = b"com.apple.iTunes", b"MOOD"
_HANDLER = b"hdlr" + bytes(8) + b"mdirappl" + bytes(9)  # of a meta atom that we create
_UTF8 = 1  # type of a data atom
_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mfra"}
_LARGEST = (1 << 32) - 1
_DEEPEST = 16  # atoms in each other; moov to stco are five


@dataclass(frozen=True)
class _Atom:
    name: bytes
    start: int
    data: int  # where its content begins: 8 or 16 bytes on
    end: int


@dataclass(frozen=True)
class _Items:
    """The way to the items: the atoms around them, and the items (None: no ilst yet)."""

    parents: tuple[_Atom, ...]  # moov, then udta and meta where they are
    ilst: _Atom | None


def read_mp4(file: BinaryIO, fields: Collection[str] = GENRE) -> Found:
    """Return what an MP4 file holds."""
    way = _find_items(file)
    texts: dict[str, list[str]] = {}
    rest = []
    for name, item in _split_items(file, way):
        field = _field_of(name, item)
        if field:
            texts.setdefault(field, []).extend(_texts(name, item))
        if field not in fields:
            rest.append(item)
    return Found("mp4", texts, rest)


def edit_mp4(file: BinaryIO, edits: Edits) -> list[Splice]:
    """Return what edits the items of an MP4 file."""
    way = _find_items(file)
    old = _split_items(file, way)
    new = {
        field: [_item(field, texts)] if texts else []
        for field, texts in ((field, values("mp4")) for field, values in edits.items())
    }
    items = replace_fields([item for _, item in old], [_field_of(*pair) for pair in old], new)
    ilst = _render(b"ilst", b"".join(items))
    if way.ilst is None:
        return _create(file, way, ilst)
    free = _free_after(file, way)
    start, end = way.ilst.start, free.end if free else way.ilst.end
    room = end - start - len(ilst)
    if free and room >= 8:
        content = read_at(file, free.data, free.end - free.data)
        ilst += _render(b"free", (bytes(room) + content)[-(room - 8) :] if room > 8 else b"")
    elif not free and room >= 8:
        ilst += _render(b"free", bytes(room - 8))
    elif free and room:  # too small for the rest of it
        start, end = way.ilst.start, way.ilst.end
    grown = len(ilst) - (end - start)
    return [*_resize(file, way.parents, start, grown), Splice(start, end - start, ilst)]


def _create(file: BinaryIO, way: _Items, ilst: bytes) -> list[Splice]:
    """Return what adds `ilst` and the atoms that are missing around it."""
    inside = way.parents[-1]
    if inside.name == b"meta":
        new, at = ilst, inside.end
    elif inside.name == b"udta":  # at its beginning: QuickTime ends it with a zero
        new, at = _meta(ilst), inside.data
    else:
        new, at = _render(b"udta", _meta(ilst)), inside.end
    return [*_resize(file, way.parents, at, len(new)), Splice(at, 0, new)]


def _meta(ilst: bytes) -> bytes:
    return _render(b"meta", bytes(4) + _render(_HANDLER[:4], _HANDLER[4:]) + ilst)


def _find_items(file: BinaryIO) -> _Items:
    moov = _child(file, 0, size_of(file), b"moov")
    if moov is None:
        raise ContainerError("is an MP4 file without its index (moov)")
    udta = _child(file, moov.data, moov.end, b"udta")
    if udta is None:
        return _Items((moov,), None)
    meta = _child(file, udta.data, udta.end, b"meta")
    if meta is None:
        return _Items((moov, udta), None)
    start = _meta_start(file, meta)
    handler = _child(file, start, meta.end, b"hdlr")
    if handler is None or read_at(file, handler.data + 8, 4) != b"mdir":
        raise ContainerError("its metadata are not of the kind that iTunes writes")
    return _Items((moov, udta, meta), _child(file, start, meta.end, b"ilst"))


def _meta_start(file: BinaryIO, meta: _Atom) -> int:
    """Return where the children of `meta` begin: QuickTime's has no version and flags."""
    return meta.data if read_at(file, meta.data + 4, 4) == b"hdlr" else meta.data + 4


def _child(file: BinaryIO, start: int, end: int, name: bytes) -> _Atom | None:
    return next((atom for atom in _atoms(file, start, end) if atom.name == name), None)


def _atoms(file: BinaryIO, at: int, end: int) -> Iterator[_Atom]:
    """Yield the atoms from `at` to `end`."""
    while at + 8 <= end:
        size, name = struct.unpack(">I4s", read_at(file, at, 8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", read_at(file, at + 8, 8)), 16
        elif size == 0:
            if name == bytes(4):  # the zero that may end udta
                return
            size = end - at
        if size < head or at + size > end:
            raise ContainerError(f"its MP4 atom {name.decode('latin-1')} is damaged or cut off")
        yield _Atom(name, at, at + head, at + size)
        at += size


def _split_items(file: BinaryIO, way: _Items) -> list[tuple[bytes, bytes]]:
    """Return the items: name and whole atom."""
    if way.ilst is None:
        return []
    return [
        (atom.name, read_at(file, atom.start, atom.end - atom.start))
        for atom in _atoms(file, way.ilst.data, way.ilst.end)
    ]


def _field_of(name: bytes, item: bytes) -> str | None:
    """Return which of the fields an item holds."""
    if name != _FREE_FORM:
        return _FIELD_OF.get(name)
    at = 8
    said = []
    for part in (b"mean", b"name"):
        size = int.from_bytes(item[at : at + 4], "big")
        if item[at + 4 : at + 8] != part or not 12 <= size <= len(item) - at:
            return None
        said.append(item[at + 12 : at + size])
        at += size
    return "mood" if (said[0], said[1].upper()) == (_MEAN, _MOOD) else None


def _item(field: str, texts: list[str]) -> bytes:
    values = b"".join(map(_data, texts))
    if field == "genre":
        return _render(b"\xa9gen", values)
    named = _render(b"mean", bytes(4) + _MEAN) + _render(b"name", bytes(4) + _MOOD)
    return _render(_FREE_FORM, named + values)


def _texts(name: bytes, item: bytes) -> list[str]:
    """Return the values of an item: those of its data atoms."""
    texts: list[str] = []
    at = 8
    while at + 16 <= len(item):
        size, kind = struct.unpack_from(">I4s", item, at)
        if size < 16 or at + size > len(item):
            raise ContainerError("its MP4 items are damaged")
        value = item[at + 16 : at + size]
        if kind == b"data" and name == b"gnre":
            number = int.from_bytes(value, "big") - 1
            texts += ID3V1_GENRES[number : number + 1] if number >= 0 else ()
        elif kind == b"data":
            texts.append(value.decode("utf-8", "replace"))
        at += size
    return texts


def _free_after(file: BinaryIO, way: _Items) -> _Atom | None:
    """Return the free atom that follows the items."""
    assert way.ilst is not None  # noqa: S101 - for the type checker
    following = next(_atoms(file, way.ilst.end, way.parents[-1].end), None)
    if following and following.name == b"free" and following.data - following.start == 8:
        return following
    return None


def _data(text: str) -> bytes:
    return _render(b"data", struct.pack(">II", _UTF8, 0) + text.encode("utf-8"))


def _render(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _resize(file: BinaryIO, parents: tuple[_Atom, ...], at: int, grown: int) -> list[Splice]:
    """Return what lets `parents` grow at `at`, and moves the offsets of all that lies behind."""
    if not grown:
        return []
    splices = []
    for atom in parents:
        size = atom.end - atom.start + grown
        if atom.data - atom.start == 16:
            splices.append(Splice(atom.start + 8, 8, size.to_bytes(8, "big")))
        elif size > _LARGEST:
            raise ContainerError("its MP4 index would become too large")
        elif read_at(file, atom.start, 4) != bytes(4):  # zero: to the end of the file
            splices.append(Splice(atom.start, 4, size.to_bytes(4, "big")))
    for atom in _tables(file, 0, size_of(file)):
        splices += _moved(file, atom, at, grown)
    return splices


def _tables(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[_Atom]:
    """Yield all atoms that may hold offsets into the file."""
    if depth > _DEEPEST:
        raise ContainerError("its MP4 atoms lie in each other without end")
    for atom in _atoms(file, start, end):
        if atom.name in _PARENTS:
            yield from _tables(file, atom.data, atom.end, depth + 1)
        elif atom.name in {b"stco", b"co64", b"tfhd", b"saio", b"tfra"}:
            yield atom


def _moved(file: BinaryIO, atom: _Atom, at: int, grown: int) -> list[Splice]:
    """Return what moves the offsets in `atom` that point behind `at`."""
    data = read_at(file, atom.data, atom.end - atom.data)
    if atom.name == b"tfhd":
        if not data[3] & 1:  # no base offset
            return []
        form, start, count = "Q", 8, 1
    elif atom.name in {b"stco", b"co64"}:
        form, start = ("I" if atom.name == b"stco" else "Q"), 8
        count = int.from_bytes(data[4:8], "big")
    else:
        raise ContainerError(f"its MP4 atom {atom.name.decode()} holds offsets that would break")
    table = struct.Struct(f">{count}{form}")
    try:
        offsets = table.unpack_from(data, start)
        moved = table.pack(*(offset + grown if offset >= at else offset for offset in offsets))
    except struct.error as error:
        raise ContainerError(f"its MP4 atom {atom.name.decode()} is damaged or full") from error
    return [Splice(atom.data + start, table.size, moved)] if offsets else []
