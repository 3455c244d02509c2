"""What mutagen reads in a file, to compare an edited copy with: it had no part in the edit.

Two opinions compare: what was to change, as it stands in the file, all other tags, and the audio.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mutagen
import mutagen.id3
from mutagen.apev2 import APENoHeaderError, APEv2

from reclass_plex.errors import TagsUnsupported
from reclass_plex.files import naming_errors

_PLACE = re.compile(r"unknown\d+")
_KEYS = {  # of mutagen, in lower case, by the tag's kind: what they hold
    "id3": {"tcon": "genre", "tmoo": "mood", "txxx:mood": "mood"},
    "vorbis": {"genre": "genre", "mood": "mood"},
    "mp4": {"\xa9gen": "genre", "----:com.apple.itunes:mood": "mood"},
    "asf": {"wm/genre": "genre", "wm/mood": "mood"},
    "apev2": {"genre": "genre", "mood": "mood"},
}
_LONGEST_PACKED = 1 << 16  # bytes that a compressed frame may become for mutagen: nobody has any
_LENGTH_TOLERANCE = 0.5  # seconds; mutagen estimates some lengths from the file's size


class _BoundedZlib:
    """What mutagen uses of zlib, for ID3's compressed frames: a kilobyte may become a gigabyte."""

    error = zlib.error

    @staticmethod
    def decompress(data: bytes) -> bytes:
        """Return what `data` holds. Raises zlib.error, as for other damage, if that is too much."""
        packed = zlib.decompressobj()
        plain = packed.decompress(data, _LONGEST_PACKED)
        if not packed.eof:
            raise zlib.error("incomplete or too large")
        return plain


mutagen.id3._frames.zlib = _BoundedZlib


@dataclass(frozen=True)
class Opinion:
    """What mutagen reads: `names` of the edited fields, as they are in the file, and the rest."""

    names: dict[str, list[str]]
    others: object  # all other tags, comparable
    info: tuple[object, ...]  # what the audio is
    length: float  # seconds

    def sounds_like(self, other: Opinion) -> bool:
        """Tell whether both are the same kind of audio, and as long."""
        return self.info == other.info and abs(self.length - other.length) < _LENGTH_TOLERANCE


class _Disk(io.FileIO):
    """A file that remembers what went wrong with its disk: mutagen passes over it now and then."""

    failed: OSError | None = None

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - what takes bytes has no type
        """Read, and remember the error."""
        try:
            return os.readv(self.fileno(), [buffer])
        except OSError as error:
            self.failed = error
            raise


def second_opinion(name: Path, path: Path, format_name: str, fields: Collection[str]) -> Opinion:
    """Return what mutagen reads in `path`. Errors speak of `name`.

    `format_name` is that of the tag with the edited `fields`. Raises TagsUnsupported if mutagen
    cannot read it, and what `naming_errors` makes of the disk's errors.
    """
    with (
        naming_errors(name, writing=False),
        _Disk(os.fspath(path)) as disk,
        io.BufferedReader(disk) as opened,
    ):
        try:
            return _ask_mutagen(name, opened, format_name, fields)
        finally:
            if disk.failed is not None:  # whatever was made of it
                raise disk.failed


def _ask_mutagen(
    name: Path, opened: BinaryIO, format_name: str, fields: Collection[str]
) -> Opinion:
    try:
        file = mutagen.File(opened)
        tags = None if file is None else file.tags
        if format_name == "apev2" and not isinstance(tags, APEv2):
            try:
                opened.seek(0)
                tags = APEv2(opened)
            except APENoHeaderError:
                tags = None
        names, others = _take_fields(tags, format_name, fields)
    except Exception as error:  # mutagen raises anything over damaged tags
        raise TagsUnsupported(name, f"mutagen cannot read its tags: {error}") from error
    if file is None:
        raise TagsUnsupported(name, "mutagen does not know its format")
    info = file.info
    audio = [getattr(info, key, None) for key in ("sample_rate", "channels", "bits_per_sample")]
    return Opinion(names, others, (type(file), *audio), float(info.length))


def _take_fields(
    tags: Any,  # noqa: ANN401 - mutagen is not typed
    format_name: str,
    fields: Collection[str],
) -> tuple[dict[str, list[str]], object]:
    """Return mutagen's values of `fields` as they are in the file, and all other tags in
    comparable form.
    """
    names: dict[str, list[str]] = {field: [] for field in fields}
    if tags is None:
        return names, {}
    keys = _KEYS["id3" if format_name.startswith("id3") else format_name]
    field_of = {key: field for key, field in keys.items() if field in fields}
    if isinstance(tags, list):  # Vorbis comments, ASF attributes
        rest = []
        for key, value in tags:
            if field := field_of.get(key.lower()):
                names[field].append(str(value))
            else:
                # A comment without "=" gets a name with its place in it, which an edit may move.
                rest.append((_PLACE.sub("unknown", key), _plain(value)))
        return names, rest
    others = {}
    for key, value in tags.items():
        if field := field_of.get(key.lower()):
            names[field] += [_text(one) for one in value]
        else:
            others[key] = _plain(value)
    return names, others


def _text(value: Any) -> str:  # noqa: ANN401 - mutagen is not typed
    """Return a value of mutagen's as text: MP4's free forms are bytes."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> object:  # noqa: ANN401 - mutagen is not typed
    """Return a value of mutagen's as what compares by content: not all its classes do."""
    if isinstance(value, bytes) and type(value) is not bytes:  # MP4's covers and free forms
        return bytes(value), vars(value)
    if isinstance(value, (str, bytes, int, float, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return type(value).__name__, {key: _plain(item) for key, item in vars(value).items()}
