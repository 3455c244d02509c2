"""From a path to a waveform, and to a digest of the audio that no tag edit changes.

Conventions: waveforms are mono float32, nominally in [-1, 1]; times are in seconds from the
track's first audible sample (encoder delay excluded where the file states it).

FFmpeg (PyAV) decides by content what a file is; its name plays no part. It gets an open file
descriptor instead of a path: names need not be valid UTF-8, a fifo never blocks, the file that
was checked is the file that is read, and no Python code runs (and no GIL is held) in its reads.
Only plain containers may be opened: playlists and the like, by which a file could make FFmpeg
read other files or the network, are refused. Nothing here is shared between threads.

A file whose main content is a video (any picture track that is no cover) is not audio.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
from av.container import InputContainer
from av.stream import Disposition

from reclass_plex.audio_collector import MAX_NATIVE_RATE, Collector, kept_rate
from reclass_plex.audio_ends import missing_end
from reclass_plex.audio_file import opened_file
from reclass_plex.errors import NotAudio
from reclass_plex.records import Excerpt, FloatArray, Waveform
from reclass_plex.tag_spans import find_audio_chunks, skip_flac_metadata, span_between_tags

MAX_FULL_SECONDS = 20 * 60.0  # of a longer track, "full" is its middle 20 minutes
MAX_SAMPLES = int(MAX_FULL_SECONDS) * 48000  # 230 MB; at 192 kHz "full" ends at 5 minutes

_END_SECONDS = 2.0  # before the stated end, where a whole file has audio
_PREROLL = 0.5  # seconds decoded and dropped before an excerpt: MP3's reservoir, Opus's filters
_FAST_SEEK = 0x80000  # AVFMT_FLAG_FAST_SEEK of avformat.h; only the MP3 demuxer heeds it
_LONG_SECONDS = 30 * 60.0  # above, MP3 is sought by proportion, not by counting every frame
_MEASURE_BYTES = 32 << 20  # above, the length of an MP3 without index or a WMA stays a guess
_PLAUSIBLE_RATES = range(1000, 8_000_001)  # Hz; the top is DSD1024 as FFmpeg counts it, and more
_PLAUSIBLE_CHANNELS = range(1, 65)  # with 1000 of them, FFmpeg's DSF divides by zero as it seeks
_BLOCK = 1 << 20  # bytes a read
_READ_BYTES = 1 << 16  # that FFmpeg asks for at a time
_DEMUX_RETRIES = 20
_PATIENCE = 30.0  # seconds for one step of FFmpeg's; damaged ASF headers can send it in circles

_CONTAINERS = "aiff,ape,asf,caf,dsf,flac,mov,mp3,mpc,mpc8,ogg,tta,w64,wav,wv"
_VIDEO_CONTAINERS = "avi,flv,matroska,mpeg,mpegts"  # opened only to be named as what they are
_TAGS_OUTSIDE = {"ape", "flac", "mp3", "mpc", "mpc8", "tta", "wv"}  # audio is one run of bytes
_CHUNKED = {"aiff", "caf", "dsf", "w64", "wav"}  # audio is a chunk among others


def decode_excerpt(path: Path, excerpt: Excerpt) -> Waveform:
    """Decode the middle `excerpt.seconds` of `path`, or all of it, at its native rate.

    A track shorter than the excerpt comes whole. "Full" is at most MAX_FULL_SECONDS, from the
    middle. Channels are averaged (as librosa.to_mono). Damaged frames are skipped, as players
    do. A file that ends too early is refused as truncated: before its header says, where that
    counts samples (FLAC, WavPack, TTA, APE, MP4), else within a unit of its format (see
    audio_ends). Where that cannot be told it is the middle of what is there; of a WMA, or an MP3
    without index, over 32 MB it is the middle by FFmpeg's guess.

    Raises NotAudio, Unreadable or RetryLater (FileChanged if the file changes meanwhile).
    """
    with _opened(path) as source:
        if missing := source.missing_end():
            raise _truncated(path, missing)
        rate = kept_rate(source.stream.codec_context.rate)
        longest = min(MAX_FULL_SECONDS, MAX_SAMPLES / rate)
        wanted = min(excerpt.seconds or longest, longest)
        length = source.stated_seconds()
        if length is None or source.is_guess():
            length = source.measured_seconds()
        elif source.is_promise() and length > 2 * _END_SECONDS and not source.reaches(length):
            raise _truncated(path, f"it ends before the {length:.0f} s that its header promises")
        piece = source.decode(max(0.0, (length - wanted) / 2), wanted)
        if piece.complete != (length >= wanted):  # the header was wrong
            length = source.measured_seconds()
            piece = source.decode(max(0.0, (length - wanted) / 2), wanted)
        if not len(piece.samples):  # the rest is damaged, or nothing can be sought
            piece = source.decode(0.0, wanted)
        if not len(piece.samples):
            raise NotAudio(path, "nothing in it can be decoded; it is damaged or no audio file")
        end = piece.start + len(piece.samples) / piece.rate
        track_seconds = max(length, end) if piece.complete else end
        return Waveform(piece.samples, piece.rate, piece.start, track_seconds)


def audio_seconds(path: Path) -> float:
    """Return how long a track is, by its header where that tells; nothing is decoded.

    Raises NotAudio, Unreadable or RetryLater (FileChanged if the file changes meanwhile).
    """
    with _opened(path) as source:
        stated = source.stated_seconds()
        return source.measured_seconds() if stated is None or source.is_guess() else stated


def ffmpeg_version() -> str:
    """Return the version of FFmpeg that decodes."""
    return str(av.ffmpeg_version_info)


def missing_decoders() -> tuple[str, ...]:
    """Return the decoders of `AUDIO_SUFFIXES` that this FFmpeg lacks."""
    needed = (
        *("aac", "alac", "ape", "dsd_lsbf", "flac", "mp3", "mpc7", "mpc8", "opus", "tta"),
        *("vorbis", "wavpack", "wmav2", "wmapro", "wmalossless"),
    )
    return tuple(name for name in needed if name not in av.codecs_available)


def resample(waveform: Waveform, rate: int) -> Waveform:
    """Return `waveform` at `rate` Hz, by soxr at quality HQ: what librosa calls "soxr_hq".

    HQ is 20 bits of precision, linear phase, flat to 0.91 of the lower Nyquist frequency (soxr.h).
    """
    if rate == waveform.rate:
        return waveform
    samples = soxr.resample(waveform.samples, waveform.rate, rate, quality="HQ")
    return Waveform(samples, rate, waveform.start, waveform.track_seconds)


def audio_digest(path: Path) -> str:
    """Return 32 hexadecimal digits that stand for the compressed audio in `path` alone.

    BLAKE2b-128 over the audio track's bytes in order: equal after any edit of tags, pictures or
    padding, whoever made it. It covers neither container, packet boundaries, nor the names and
    parameters that FFmpeg gives to them, which may change with FFmpeg's version. Of a WAV whose
    header does not tell where its audio ends, all that follows counts, as for every player.

    Raises NotAudio, Unreadable or RetryLater (FileChanged if the file changes meanwhile).
    """
    digest = hashlib.blake2b(digest_size=16)
    count = 0
    with _opened(path) as source:
        runs = source.runs()
        for start, end in runs:  # quicker than FFmpeg's demuxers: packets may be small
            for block in _read_blocks(source.descriptor, start, end):
                digest.update(block)
                count += len(block)
        if not runs:
            for packet in source.packets():
                digest.update(packet)
                count += packet.size
        if not count:
            raise NotAudio(path, "it holds no audio, only headers or tags")
    return digest.hexdigest()


def _read_blocks(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (block := os.pread(descriptor, min(_BLOCK, end - start), start)):
        yield block
        start += len(block)


@dataclass(frozen=True)
class _Piece:
    samples: FloatArray
    rate: int
    start: float  # seconds
    complete: bool  # as long as was wanted


@dataclass(frozen=True)
class _Source:
    descriptor: int
    start: int  # byte at which the file begins and ends, but for tags around it
    end: int
    chunks: tuple[tuple[int, int], ...]  # of audio, where a walk along the chunks found them
    window: _Window
    container: InputContainer
    stream: av.AudioStream

    def runs(self) -> tuple[tuple[int, int], ...]:
        """Where the audio's bytes begin and end; nothing if only FFmpeg can tell them apart."""
        name = self.container.format.name
        if name in _TAGS_OUTSIDE:
            return ((skip_flac_metadata(self.descriptor, self.start), self.end),)
        return self.chunks if name in _CHUNKED else ()

    def stated_seconds(self) -> float | None:
        if self.container.format.name == "dsf":  # FFmpeg guesses it from the file's size
            head = os.pread(self.descriptor, 72, self.start)
            rate = int.from_bytes(head[56:60], "little")
            return int.from_bytes(head[64:72], "little") / rate if rate else None
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        return self.container.duration / av.time_base if self.container.duration else None

    def is_guess(self) -> bool:
        """Whether the stated length may be FFmpeg's guess from the bit rate and the file's size.

        So it is for MP3 without index, and for ASF as soon as a tag edit changes the file's size.
        """
        name = self.container.format.name
        if name not in {"mp3", "asf"} or self.end - self.start > _MEASURE_BYTES:
            return False
        head = os.pread(self.descriptor, 4096, self.start)
        return name == "asf" or not any(index in head for index in (b"Xing", b"Info", b"VBRI"))

    def is_promise(self) -> bool:
        """Whether the stated length counts the samples there should be (PCM's may be unset)."""
        return bool(
            {"flac", "wv", "tta", "ape", "mov"} & set(self.container.format.name.split(","))
        )

    def missing_end(self) -> str | None:
        """How the file ends too early, in words, where its bytes tell without any decoding."""
        return missing_end(self.container.format.name, self.descriptor, self.start, self.end)

    def reaches(self, length: float) -> bool:
        """Tell whether there is audio shortly before `length` seconds."""
        return len(self.decode(length - _END_SECONDS, 1.0).samples) > 0

    def measured_seconds(self) -> float:
        """Read all packets, decoding none, and return the end of the last."""
        self._seek(0.0)
        ends = [
            packet.pts + (packet.duration or 0)
            for packet in self.packets()
            if packet.pts is not None
        ]
        return float((max(ends) - self._origin()) * self.stream.time_base) if ends else 0.0

    def packets(self) -> Iterator[av.Packet]:
        """Yield the stream's packets up to the end; a damaged stretch is read past."""
        for _ in range(_DEMUX_RETRIES):
            self.window.be_patient()
            try:
                for packet in self.container.demux(self.stream):
                    yield packet
                    self.window.be_patient()
                return
            except av.FFmpegError:
                continue

    def decode(self, start: float, seconds: float) -> _Piece:
        """Decode `seconds` from `start`, or what there is of them, dropping what lies before."""
        self._seek(start)
        collector: Collector | None = None
        position = start
        for packet in self.packets():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue  # a damaged packet
            for frame in frames:
                if frame.sample_rate not in _PLAUSIBLE_RATES:
                    continue
                if collector is None:
                    position = start if frame.pts is None else self._seconds_at(frame)
                    collector = Collector(frame.sample_rate, start - position, seconds)
                if frame.sample_rate == collector.rate:
                    collector.add(mono(frame))
            if collector is not None and not collector.missing:
                break
        if collector is None:
            return _Piece(np.zeros(0, np.float32), MAX_NATIVE_RATE, start, complete=False)
        samples = collector.finish()
        return _Piece(
            samples, collector.kept_rate, max(start, position), complete=not collector.missing
        )

    def _seek(self, start: float) -> None:
        if (self.stated_seconds() or 0.0) > _LONG_SECONDS:
            self.container.flags |= _FAST_SEEK
        self.window.be_patient()
        target = max(0.0, start - _PREROLL) / self.stream.time_base
        self.stream.codec_context.flush_buffers()  # it may have been read to the end before
        with contextlib.suppress(av.FFmpegError):  # then reading goes on where it stands
            self.container.seek(self._origin() + int(target), stream=self.stream)

    def _origin(self) -> int:
        return self.stream.start_time or 0

    def _seconds_at(self, frame: av.AudioFrame) -> float:
        return float(frame.pts * frame.time_base - self._origin() * self.stream.time_base)


def mono(frame: av.AudioFrame) -> FloatArray:
    """Return the mean of a frame's channels, (n,) float32 in [-1, 1]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    mono: FloatArray = samples.mean(axis=0, dtype=np.float32)
    if samples.dtype == np.uint8:
        mono = (mono - 128) / np.float32(128)
    elif samples.dtype.kind == "i":
        mono = mono / np.float32(2 ** (8 * samples.itemsize - 1))
    return mono


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """Open `path` and choose its audio track; every failure inside becomes a FileError."""
    with opened_file(path) as descriptor:
        start, end = span_between_tags(descriptor)
        if start == end:
            raise NotAudio(path, "holds tags, but no audio")
        chunks, end = find_audio_chunks(descriptor, start, end)
        try:
            window = _Window(descriptor, start, end)
            with _open_container(window) as container:
                stream = _choose_stream(path, container)
                yield _Source(descriptor, start, end, chunks, window, container, stream)
        except av.FFmpegError as error:
            if missing := missing_end("mp4", descriptor, start, end):  # without its index
                raise _truncated(path, missing) from error
            raise NotAudio(path, "is no audio file that FFmpeg can open") from error


class _Window:
    """Bytes `start` to `end` of a file, as FFmpeg gets to see them.

    It does not see the tags around them: it refuses APE, WavPack and Musepack behind ID3v2, takes
    APE's trailing tag for audio, and counts them all when it guesses a length. And it does not
    read by itself: a demuxer may take an I/O error for the end, or for damage, and go on with less
    audio. PyAV raises what is raised here, whatever the demuxer made of it.
    """

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor, self._start, self._end = descriptor, start, end
        self._at = start
        self.be_patient()

    def be_patient(self) -> None:
        """A step of FFmpeg's begins, which may take so long."""
        self._until = time.monotonic() + _PATIENCE

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end. Raises OSError, as when a step takes long."""
        if time.monotonic() > self._until:
            reason = f"it took over {_PATIENCE:g} s; the disk is slow or the file damaged"
            raise TimeoutError(errno.ETIMEDOUT, reason)
        data = os.pread(self._descriptor, max(0, min(size, self._end - self._at)), self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on elsewhere; return where, counted from the window's start (see `tell`).

        What FFmpeg computes from damaged headers may lie before it: then its AVERROR(EINVAL).
        """
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}
        to = origin[whence] + offset
        if not self._start <= to < 1 << 63:
            return -errno.EINVAL
        self._at = to
        return self.tell()

    def tell(self) -> int:
        """Return the position, counted from the window's start."""
        return self._at - self._start


def _open_container(window: _Window) -> InputContainer:
    """Open a part of a file. Raises OSError and av.FFmpegError."""
    container: InputContainer = av.open(
        window,
        container_options={"format_whitelist": f"{_CONTAINERS},{_VIDEO_CONTAINERS}"},
        metadata_errors="replace",  # of tags we do not even look at
        buffer_size=_READ_BYTES,
    )
    return container


def _choose_stream(path: Path, container: InputContainer) -> av.AudioStream:
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    if any(not stream.disposition & covers for stream in container.streams.video):
        raise NotAudio(path, "is a video")
    for stream in container.streams.audio:
        context = stream.codec_context
        if context is None or context.channels not in _PLAUSIBLE_CHANNELS:
            continue
        if context.rate in _PLAUSIBLE_RATES:
            context.thread_count = 1  # tracks run side by side instead
            return stream
    raise NotAudio(path, "has no audio track that FFmpeg can decode")


def _truncated(path: Path, missing: str) -> NotAudio:
    return NotAudio(path, f"is truncated: {missing}; an incomplete download?")
