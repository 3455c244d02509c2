"""Short real tracks in every format: pieces of the demo music, with tags, pictures and genres.

Each piece has audio of its own, so that a mix-up shows. Formats that FFmpeg cannot cut are encoded
anew from decoded demo music (tests/audio_files.py).
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import av
import mutagen
import numpy as np
import numpy.typing as npt
from audio_files import _ENCODED, DATA, _dsf, _silent_ape, encode
from daemon_tools import DEMO, cut_track
from mutagen.apev2 import APEv2
from mutagen.asf import ASFTags
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TALB, TCON, TIT2, TPE1
from mutagen.mp4 import MP4Cover, MP4Tags

CUT = (".mp3", ".m4a", ".opus", ".ogg", ".wma", ".wv")
ENCODED = ("flac", "wav", "aiff", "tta", "ogg-flac", "m4a-alac")
BY_HAND = ("dsf", "ape", "musepack")
FORMATS = (*CUT, *ENCODED, *BY_HAND)
SECONDS = 4.0
RATE = 22050  # of what is encoded anew: small files
SOURCES = tuple(path for path in sorted(DEMO.iterdir()) if path.suffix in (*CUT, ".flac"))
PICTURE = bytes.fromhex("ffd8ffe000104a46494600010100000100010000") + bytes(range(256)) * 6


class Maker:
    """Makes ever new tracks; the same seed makes the same."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._random = random.Random(seed)
        self.count = 0

    def make(self, album: str, format_name: str | None = None) -> Path:
        """Make the next track, in the next format, with tags of its own."""
        self.count += 1
        format_name = format_name or FORMATS[self.count % len(FORMATS)]
        stem = f"{self.count:05} {format_name.strip('.')}"
        path = self._make(stem, format_name)
        genre = "" if self._random.random() < 0.8 else self._random.choice(("Other", "Zydeco"))
        dress(path, f"Title {self.count}", album, genre)
        return path

    def _make(self, stem: str, format_name: str) -> Path:
        if format_name in CUT:
            source = self._random.choice([one for one in SOURCES if one.suffix == format_name])
            target = self._folder / f"{stem}{format_name}"
            return cut_track(source, target, self._random.randrange(100_000), SECONDS)
        samples = _piece(self._random.choice(SOURCES), self._random.randrange(200))
        if format_name in ENCODED:
            suffix, muxer, encoder = _ENCODED[format_name]
            target = self._folder / f"{stem}{suffix}"
            encode(target, muxer, encoder, samples, RATE)
            return target
        target = self._folder / f"{stem}.{ {'musepack': 'mpc'}.get(format_name, format_name) }"
        if format_name == "dsf":
            target.write_bytes(_dsf(samples[:1, :RATE], RATE))
        elif format_name == "ape":
            target.write_bytes(_silent_ape(RATE * 4, RATE, 1, self.count))
        else:  # its stream may end anywhere: some of its end is other bytes in each
            target.write_bytes((DATA / "tone.mpc").read_bytes())
        return target


@functools.lru_cache(maxsize=16)
def _samples(source: Path) -> npt.NDArray[np.float32]:
    """Return a minute of a demo track, mono."""
    resampler = av.AudioResampler("fltp", "mono", RATE)
    blocks: list[npt.NDArray[np.float32]] = []
    with av.open(str(source)) as container:
        for frame in container.decode(audio=0):
            blocks += [one.to_ndarray() for one in resampler.resample(frame)]
            if sum(block.shape[1] for block in blocks) > 60 * RATE:
                break
    return np.concatenate(blocks, axis=1)


def _piece(source: Path, at: int) -> npt.NDArray[np.float32]:
    whole = _samples(source)
    length = round(SECONDS * RATE)
    start = at * RATE // 10 % max(1, whole.shape[1] - length)
    piece = whole[:, start : start + length].copy()
    piece[:, :64] += np.float32((at + 1) / 4096)  # a click: no two pieces are alike
    clipped: npt.NDArray[np.float32] = np.clip(piece, -1, 1)
    return clipped


def dress(path: Path, title: str, album: str, genre: str = "") -> None:
    """Give a file tags and, where its format has them, a picture."""
    file: Any = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    tags = file.tags
    if isinstance(tags, ID3):
        tags.add(TIT2(3, [title]))
        tags.add(TALB(3, [album]))
        tags.add(TPE1(3, ["Artist"]))
        tags.add(APIC(3, "image/jpeg", 3, "front", PICTURE))
        if genre:
            tags.add(TCON(3, [genre]))
    elif isinstance(tags, MP4Tags):
        tags["\xa9nam"], tags["\xa9alb"], tags["\xa9ART"] = [title], [album], ["Artist"]
        tags["covr"] = [MP4Cover(PICTURE, MP4Cover.FORMAT_JPEG)]
        if genre:
            tags["\xa9gen"] = [genre]
    else:
        names = {"Title": title, "Album": album, "Artist": "Artist", "Genre": genre}
        if isinstance(tags, ASFTags):
            prefix = {"Album": "WM/AlbumTitle", "Artist": "Author", "Genre": "WM/Genre"}
            names = {prefix.get(name, name): value for name, value in names.items()}
        elif not isinstance(tags, APEv2):
            names = {name.lower(): value for name, value in names.items()}
        for name, value in names.items():
            if value:
                tags[name] = value
    if isinstance(file, FLAC):
        picture = Picture()
        picture.data, picture.mime, picture.type = PICTURE, "image/jpeg", 3
        file.add_picture(picture)
    file.save()


def change_tag(path: Path, *, title: str | None = None, genre: str | None = None) -> None:
    """Do what a person does with a tagger: another title, or another genre ("": none)."""
    file: Any = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    tags = file.tags
    if isinstance(tags, ID3):
        if title is not None:
            tags.add(TIT2(3, [title]))
        if genre is not None:
            tags.delall("TCON")
            if genre:
                tags.add(TCON(3, [genre]))
    else:
        names = ("title", "genre")
        if isinstance(tags, MP4Tags):
            names = ("\xa9nam", "\xa9gen")
        elif isinstance(tags, ASFTags):
            names = ("Title", "WM/Genre")
        elif isinstance(tags, APEv2):
            names = ("Title", "Genre")
        for name, value in zip(names, (title, genre), strict=True):
            if value == "" and name in tags:
                del tags[name]
            elif value:
                tags[name] = [value]
    file.save()
