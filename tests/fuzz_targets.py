"""What is done to a hostile file, and what must hold: a result, or one of our named errors."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from reclass_plex import m3u, tags
from reclass_plex.audio import audio_digest, audio_seconds, decode_excerpt
from reclass_plex.audio_collector import MAX_AMPLITUDE, MAX_NATIVE_RATE
from reclass_plex.config import TagOptions
from reclass_plex.errors import FileError, ReclassError
from reclass_plex.records import Excerpt
from service.web import child

EXCERPT = Excerpt(30.0)
OPTIONS = TagOptions()
WANTED = ("Zydeco", "Ärger")
ALLOWED = "ok"


@dataclass(frozen=True)
class Outcome:
    """What a target came to: "ok", the kind of a named error, or "BUG ..." and the traceback."""

    target: str
    result: str
    seconds: float
    detail: str = ""

    @property
    def is_bug(self) -> bool:
        """Say whether it is none of what is allowed."""
        return self.result.startswith("BUG")


class Broken(AssertionError):
    """Something that must hold does not."""


def run_target(name: str, path: Path) -> Outcome:
    """Do one thing to the file and return what came of it."""
    began = time.monotonic()
    try:
        TARGETS[name](path)
        result, detail = ALLOWED, ""
    except ReclassError as error:
        result, detail = error.kind, str(error)
        if isinstance(error, FileError) and not error.reason:
            result, detail = "BUG no reason", repr(error)
    except MemoryError:
        result, detail = "BUG MemoryError", traceback.format_exc(limit=-6)
    except BaseException as error:
        result = f"BUG {type(error).__name__}"
        detail = traceback.format_exc(limit=-6)
    return Outcome(name, result, time.monotonic() - began, detail)


def _tags(path: Path) -> None:
    found = tags.read_tags(path, OPTIONS)
    _hold(all(isinstance(name, str) and name for name in found.genres), "an empty genre")


def _digest(path: Path) -> None:
    _hold(len(audio_digest(path)) == 32, "no digest")


def _seconds(path: Path) -> None:
    seconds = audio_seconds(path)
    _hold(np.isfinite(seconds), f"{seconds} s long")


def _decode(path: Path) -> None:
    waveform = decode_excerpt(path, EXCERPT)
    samples = waveform.samples
    _hold(len(samples) > 0, "no samples")
    _hold(0 < waveform.rate <= MAX_NATIVE_RATE, f"a rate of {waveform.rate}")
    _hold(len(samples) <= 31 * waveform.rate, f"{len(samples)} samples at {waveform.rate} Hz")
    _hold(bool(np.isfinite(samples).all()), "samples that are not finite")
    _hold(float(np.abs(samples).max()) <= MAX_AMPLITUDE, "samples that are too loud")
    _hold(np.isfinite(waveform.start) and np.isfinite(waveform.track_seconds), "no times")


def _write(path: Path) -> None:
    """Write, verify by other means, take back."""
    former = path.read_bytes()
    heard = _heard(path)
    options = TagOptions()
    said = tags.read_tags(path, options)
    digest = audio_digest(path)
    status = path.stat()
    try:
        prepared = tags.prepare_write(path, WANTED, options, moods=("Calm",))
    except FileError:
        _hold(path.read_bytes() == former, "a refused write changed the file")
        _hold([path.name] == os.listdir(path.parent), "a refused write left a copy")
        raise
    if prepared is None:
        return
    _hold(path.read_bytes() == former, "preparing changed the file")
    prepared.commit()
    now = tags.read_tags(path, options)
    _hold(now.genres == WANTED and now.moods == ("Calm",), f"reads {now.genres} {now.moods}")
    others = [
        (one.album, one.album_artist, one.title, one.artist, one.format) for one in (said, now)
    ]
    _hold(others[0] == others[1], f"other tags changed: {others}")
    _hold(audio_digest(path) == digest, "another digest")
    # FFmpeg seeks in damaged Ogg by halving the file, so that a longer tag may cost it a frame.
    written = None if _heard(path) == heard else _packets(path)
    tags.restore_bytes(
        path,
        prepared.delta,
        prepared.before_hash,
        prepared.after_hash,
        mtime_ns=status.st_mtime_ns,
    )
    _hold(path.read_bytes() == former, "undo did not give the bytes back")
    _hold([path.name] == os.listdir(path.parent), "a copy was left")
    if written is not None:
        _hold(written == _packets(path), "other audio")


def _packets(path: Path) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(audio=0)]


def _heard(path: Path) -> object:
    try:
        waveform = decode_excerpt(path, EXCERPT)
    except FileError as error:
        return type(error)
    return waveform.samples.tobytes(), waveform.rate


def _spectrogram(path: Path) -> None:
    _hold(child.spectrogram(path).startswith(b"\x89PNG"), "no picture")


def _excerpt(path: Path) -> None:
    _hold(child.excerpt(path).startswith(b"RIFF"), "no sound")


def _playlist(path: Path) -> None:
    link = path.with_suffix(".m3u8")
    path.rename(link)
    try:
        m3u.is_replaceable(link)
    finally:
        link.rename(path)


def _hold(right: bool | np.bool_, what: str) -> None:
    if not right:
        raise Broken(what)


TARGETS: dict[str, Callable[[Path], None]] = {
    "tags": _tags,
    "digest": _digest,
    "seconds": _seconds,
    "decode": _decode,
    "write and undo": _write,
    "spectrogram": _spectrogram,
    "excerpt": _excerpt,
    "playlist": _playlist,
}
SELDOM = {"spectrogram": 16, "excerpt": 16, "playlist": 16}  # one case in so many: dear, or small
