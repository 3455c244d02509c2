"""Real files to damage: every format, short, with the tags that such files have in the wild."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutagen
from audio_files import FORMATS, make_audio
from mutagen import apev2, asf, flac, id3, mp4

_PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4  # begins as a JPEG
_TEXTS = {
    "title": "Für Elise \U0001f3b9",
    "artist": "The Others",
    "album": "Demos",
    "albumartist": "Various",
}
_DESCRIBED = "a;b/c"


@dataclass(frozen=True)
class Base:
    """A healthy file: its format, how it is tagged, and its bytes."""

    format: str
    tags: str
    suffix: str
    data: bytes


def make_corpus(folder: Path, formats: tuple[str, ...] = FORMATS) -> list[Base]:
    """Return files of every format, each without tags and with each kind that it knows."""
    bases = []
    for name in formats:
        plain = make_audio(folder, name, seconds=0.7, rate=_rate(name), channels=2, seed=3)
        kinds: dict[str, Callable[[Path], None]] = {"none": lambda path: None, **_taggers(name)}
        for kind, tag in kinds.items():
            path = folder / f"{name}-{kind}{plain.suffix}"
            path.write_bytes(plain.read_bytes())
            tag(path)
            bases.append(Base(name, kind, plain.suffix, path.read_bytes()))
    return bases


def _rate(name: str) -> int:
    return {"dsf": 4000, "opus": 48000, "mp3": 22050, "wma": 22050}.get(name, 11025)


def _taggers(name: str) -> dict[str, Callable[[Path], None]]:
    if name in {"mp3", "tta"}:
        return {
            "id3v2.3": lambda path: _id3(path, 3),
            "id3v2.4": lambda path: _id3(path, 4),
            "id3v1+ape": _id3v1_and_ape,
        }
    if name in {"wav", "aiff", "dsf"}:
        return {"id3v2.4": _inner_id3}
    if name == "flac":
        return {"vorbis": _vorbis, "id3+vorbis": _id3_and_vorbis}
    if name in {"ogg-vorbis", "ogg-flac", "opus"}:
        return {"vorbis": _vorbis}
    if name in {"m4a-aac", "m4a-alac"}:
        return {"mp4": _mp4}
    if name == "wma":
        return {"asf": _asf}
    return {"apev2": _ape}


def _frames() -> list[id3.Frame]:
    return [
        id3.TIT2(encoding=1, text=_TEXTS["title"]),
        id3.TPE1(encoding=3, text=[_TEXTS["artist"], "Second"]),
        id3.TALB(encoding=0, text=_TEXTS["album"]),
        id3.TPE2(encoding=0, text=_TEXTS["albumartist"]),
        id3.TCON(encoding=3, text=["Other"]),
        id3.TXXX(encoding=3, desc="MOOD", text=["Calm"]),
        id3.TRCK(encoding=0, text="3/12"),
        id3.COMM(encoding=1, lang="eng", desc="", text="a comment"),
        id3.APIC(encoding=0, mime="image/jpeg", type=3, desc="", data=_PICTURE),
        id3.PRIV(owner="someone", data=b"\xff\x00\xff\xe0"),
    ]


def _id3(path: Path, version: int) -> None:
    tags = id3.ID3()
    for frame in _frames():
        tags.add(frame)
    if version == 3:
        tags.update_to_v23()
    tags.save(path, v2_version=version)


def _inner_id3(path: Path) -> None:
    file = mutagen.File(path)
    file.add_tags()
    for frame in _frames():
        file.tags.add(frame)
    file.save()


def _id3v1_and_ape(path: Path) -> None:
    tags = id3.ID3()
    for frame in _frames():
        tags.add(frame)
    tags.save(path, v1=2)
    _ape(path)


def _id3_and_vorbis(path: Path) -> None:
    _vorbis(path)
    _id3(path, 4)


def _ape(path: Path) -> None:
    tags = apev2.APEv2()
    for key, value in (*_TEXTS.items(), ("Genre", "Other"), ("Mood", "Calm")):
        tags[key] = value
    tags["Cover Art (Front)"] = apev2.APEValue(b"cover.jpg\0" + _PICTURE, apev2.BINARY)
    tags.save(path)


def _vorbis(path: Path) -> None:
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    for key, value in _TEXTS.items():
        file.tags[key] = value
    file.tags["genre"] = ["Other", "Unknown"]
    file.tags["mood"] = "Calm"
    picture = flac.Picture()
    picture.data, picture.mime, picture.type = _PICTURE, "image/jpeg", 3
    if isinstance(file, flac.FLAC):
        file.add_picture(picture)
    file.save()


def _mp4(path: Path) -> None:
    file = mp4.MP4(path)
    keys = {"title": "\xa9nam", "artist": "\xa9ART", "album": "\xa9alb", "albumartist": "aART"}
    for key, value in _TEXTS.items():
        file[keys[key]] = value
    file["\xa9gen"] = "Other"
    file["----:com.apple.iTunes:MOOD"] = [b"Calm"]
    file["trkn"] = [(3, 12)]
    file["covr"] = [mp4.MP4Cover(_PICTURE, mp4.MP4Cover.FORMAT_JPEG)]
    file.save()


def _asf(path: Path) -> None:
    file = asf.ASF(path)
    file["Title"], file["Author"] = _TEXTS["title"], _TEXTS["artist"]
    file["WM/AlbumTitle"], file["WM/AlbumArtist"] = _TEXTS["album"], _TEXTS["albumartist"]
    file["WM/Genre"] = ["Other", "Unknown"]
    file["WM/Mood"] = "Calm"
    file["WM/Picture"] = asf.ASFByteArrayAttribute(_PICTURE)
    file.save()
