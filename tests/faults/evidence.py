"""What a file is, read without the product: its bytes, its audio, its genres, all its other tags.

Audio is what PyAV's demuxers call packets, tags are what mutagen reads. The product reads audio by
walks of its own, and edits tags without mutagen, so a fault of its code is none of this.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import mutagen
from mutagen.apev2 import APEv2
from mutagen.asf import ASFTags
from mutagen.flac import FLAC
from mutagen.id3 import ID3
from mutagen.mp4 import MP4Tags


@dataclass(frozen=True)
class Evidence:
    """`content` and `audio` are SHA-256; `others` are all tags but the genre, and all pictures."""

    content: str
    audio: str
    genres: tuple[str, ...]
    others: tuple[tuple[str, str], ...]


def look_at(path: Path) -> Evidence:
    """Read one file. Raises what PyAV, mutagen and the disk raise."""
    content = hash_content(path)
    genres, others = _read_tags(path)
    return Evidence(content, _hash_audio(path), genres, others)


def hash_content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash_audio(path: Path) -> str:
    digest = hashlib.sha256()
    if path.suffix == ".ape":  # FFmpeg's last packet goes on into the tags
        data = path.read_bytes()
        end = sum(struct.unpack_from("<6I", data, 8)) - struct.unpack_from("<I", data, 28)[0]
        return hashlib.sha256(data[:end]).hexdigest()
    with path.open("rb") as file, av.open(file) as container:
        for packet in container.demux(container.streams.audio[0]):
            digest.update(bytes(packet))
    return digest.hexdigest()


def _read_tags(path: Path) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    file = mutagen.File(path)
    assert file is not None, f"{path}: mutagen knows it not"
    genres: list[str] = []
    others: list[tuple[str, str]] = []
    for name, value, is_genre in _items(file.tags):
        if is_genre:
            genres += value
        else:
            others += [(name, _short(one)) for one in value]
    if isinstance(file, FLAC):
        others += [("picture", _short(picture.write())) for picture in file.pictures]
        others += [("seek table", _short(file.seektable))] if file.seektable else []
    return tuple(genres), tuple(sorted(others))


def _items(tags: Any) -> Iterator[tuple[str, Iterable[Any], bool]]:
    """Yield (name, values, whether it is the genre)."""
    if tags is None:
        return
    if isinstance(tags, ID3):
        yield "version", [tags.version], False
        for frame in tags.values():
            if frame.FrameID == "TCON":
                yield "TCON", list(frame.genres), True
            else:
                yield frame.HashKey, [repr(frame)], False
    elif isinstance(tags, MP4Tags):
        for name, values in tags.items():
            yield name, values if isinstance(values, list) else [values], name == "\xa9gen"
    elif isinstance(tags, ASFTags):
        for name, value in tags:
            yield name, [str(value) if name == "WM/Genre" else value], name == "WM/Genre"
    elif isinstance(tags, APEv2):
        for name, value in tags.items():
            yield name, list(value) if name == "Genre" else [value], name == "Genre"
    else:  # Vorbis comments
        for name, value in tags:
            yield name, [value], name.lower() == "genre"


def _short(value: Any) -> str:
    """Return a text for a value; its hash, where that is shorter."""
    text = repr(value)
    return text if len(text) <= 80 else hashlib.sha256(text.encode()).hexdigest()
