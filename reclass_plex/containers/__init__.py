"""Where each container keeps its genre and its mood: found, and edited, as bytes.

Each module reads (`Found`) and edits (a list of `Splice`) without touching the file; whatever is
not to be edited is carried over as it is and never interpreted, so that nothing can be lost in a
translation. Damaged or unknown structures are refused (`ContainerError`). The names of the mood's
tags are those of MusicBrainz Picard's table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import BinaryIO

from reclass_plex.containers import asf, chunks, mp4, mpeg, ogg, vorbis
from reclass_plex.containers.base import (
    EDITABLE,
    ContainerError,
    Edits,
    Found,
    Splice,
    Values,
    read_at,
    size_of,
)

__all__ = [
    "EDITABLE",
    "Container",
    "ContainerError",
    "Edits",
    "Found",
    "Splice",
    "Values",
    "find_container",
]


@dataclass(frozen=True)
class Container:
    """How a kind of file is read and edited. What is read is told from what those fields are."""

    read: Callable[[BinaryIO, Collection[str]], Found]
    edit: Callable[[BinaryIO, Edits], list[Splice]]


_FRONT = Container(mpeg.read_front, mpeg.edit_front)
_BEHIND = Container(mpeg.read_behind, mpeg.edit_behind)
_FLAC = Container(vorbis.read_flac, vorbis.edit_flac)
_CHUNKS = Container(chunks.read_chunks, chunks.edit_chunks)

# First bytes of a file -> its container
_AT_START = {
    b"OggS": Container(ogg.read_ogg, ogg.edit_ogg),
    b"RIFF": _CHUNKS,
    b"FORM": _CHUNKS,
    b"FRM8": _CHUNKS,
    b"DSD ": Container(chunks.read_dsf, chunks.edit_dsf),
    asf.HEADER_GUID: Container(asf.read_asf, asf.edit_asf),
}
# First bytes of a file after ID3v2 tags, which may stand before any of these -> its container
_AFTER_ID3 = {
    b"fLaC": _FLAC,
    b"TTA1": _FRONT,
    b"TTA2": _FRONT,
    b"MAC ": _BEHIND,
    b"wvpk": _BEHIND,
    b"MPCK": _BEHIND,
    b"MP+": _BEHIND,
    b"OFR ": _BEHIND,
    b"tBaK": _BEHIND,
}
_OTHERS = (b"RF64", b"BW64", b"\x1aE\xdf\xa3", *_AT_START)  # which are no MP3, whatever their name
_MPEG_SUFFIXES = {".mp3", ".mp2", ".mp1", ".mpga", ".aac"}


def find_container(file: BinaryIO, suffix: str) -> Container:
    """Return the container of an open file, told by its first bytes.

    Only for MPEG audio, which may begin with anything, does the name's `suffix` count.
    Raises ContainerError for files whose tags are not known here.
    """
    head = read_at(file, 0, min(16, size_of(file)))
    for magic, container in _AT_START.items():
        if head.startswith(magic):
            return container
    if head[4:8] == b"ftyp":
        return Container(mp4.read_mp4, mp4.edit_mp4)
    audio = vorbis.skip_id3(file)
    begin = read_at(file, audio, min(4, size_of(file) - audio))
    for magic, container in _AFTER_ID3.items():
        if begin.startswith(magic):
            return container
    synchronised = len(begin) > 1 and begin[0] == 0xFF and begin[1] & 0xE0 == 0xE0
    if (synchronised or suffix.lower() in _MPEG_SUFFIXES) and not begin.startswith(_OTHERS):
        return _FRONT
    raise ContainerError("is of no format whose tags are known")
