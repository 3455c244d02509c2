"""From a live stream, a file or an input device to mono audio as it comes.

The second importer of av beside `audio`, which reads whole files through a descriptor: what is
live cannot be sought and has no end. FFmpeg gets the bytes of a network stream from `http_stream`
and opens no address itself; only plain containers may be in them, none by which a station could
make it read files or other addresses. Devices are FFmpeg's own inputs, named "alsa:default".
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import soxr
from av.container import InputContainer

from reclass_plex.audio import mono
from reclass_plex.audio_collector import MAX_AMPLITUDE
from reclass_plex.errors import StreamError, StreamLost, printable, visible
from reclass_plex.http_stream import HttpStream, Stopped
from reclass_plex.records import FloatArray
from reclass_plex.stream_source import DEVICES, Source, read_source

FORMATS = "aac,aiff,ape,asf,caf,flac,matroska,mov,mp3,mpc,mpc8,ogg,tta,w64,wav,wv"
_PROBE_BYTES = "65536"  # FFmpeg reads at most so much before it says what it is,
_PROBE_MICROSECONDS = "500000"  # and listens at most so long
_READ_BYTES = 4096  # at a time; more would be waited for
_ALSA = "/usr/share/alsa/alsa.conf"
_RATES = range(1000, 768_001)  # Hz
_DEAF_BYTES = 1 << 20  # of what is no audio, after which it counts as rubbish


class _Bytes(Protocol):
    def read(self, size: int) -> bytes: ...


def parse_source(text: str) -> Source:
    """Tell URL, device, file and "-" apart, as `read_source` does; the device must be there, too.

    Raises StreamError.
    """
    source = read_source(text)
    if source.device and source.device not in av.formats_available:
        there = ", ".join(one for one in DEVICES if one in av.formats_available) or "none"
        raise StreamError(
            f"{visible(text)}: this FFmpeg has no input {source.device} (there are: {there});"
            " another program can record: arecord -f cd -t wav | reclass-plex listen -"
        )
    return source


class AudioStream:
    """An open source: iterate over it for blocks (n,) of mono float32 at `rate` Hz, as they come.

    Raises StreamError, StreamLost where it may work later, Stopped.
    """

    def __init__(
        self, source: Source, rate: int, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Open it, up to the first audio."""
        self._source = source
        self._rate = rate
        self._should_stop = should_stop
        self._closing = contextlib.ExitStack()
        self.http: HttpStream | None = None
        try:
            self._container: InputContainer = self._closing.enter_context(self._open())
            self._stream = self._choose()
        except av.FFmpegError as error:
            self.close()
            raise self._refusal(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def title(self) -> str | None:
        """What the station says that it plays."""
        return None if self.http is None else self.http.title

    def seconds_behind(self) -> float:
        """Return how much audio has arrived and was not read yet, roughly."""
        if self.http is None:
            return 0.0
        bits = self._stream.codec_context.bit_rate or 128_000
        return 8 * self.http.backlog() / bits

    def close(self) -> None:
        """Close it."""
        self._closing.close()
        if self.http is not None:
            self.http.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[FloatArray]:
        resampler, native = None, 0
        deaf = 0  # bytes in a row that were no audio
        for packet in self._packets():
            if self._should_stop():
                raise Stopped
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames = []
            deaf = 0 if frames else deaf + packet.size
            if deaf > _DEAF_BYTES:
                raise StreamLost(f"{self._name()}: sends what is no audio")
            for frame in frames:
                if frame.sample_rate not in _RATES:
                    continue
                if resampler is None or frame.sample_rate != native:
                    native = frame.sample_rate
                    resampler = soxr.ResampleStream(native, self._rate, 1, quality="HQ")
                block: FloatArray = resampler.resample_chunk(mono(frame))
                if len(block):
                    block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
                    yield np.clip(block, -MAX_AMPLITUDE, MAX_AMPLITUDE)

    def _packets(self) -> Iterator[av.Packet]:
        try:
            yield from self._container.demux(self._stream)
        except av.EOFError:
            return
        except av.FFmpegError as error:
            raise self._refusal(error) from error

    def _open(self) -> Any:  # noqa: ANN401 - av is not typed
        options = {"probesize": _PROBE_BYTES, "analyzeduration": _PROBE_MICROSECONDS}
        options |= {"fflags": "nobuffer"}
        source = self._source
        if source.kind == "device":
            if os.path.exists(_ALSA):  # noqa: PTH110 - PyAV's wheels look where they were built
                os.environ.setdefault("ALSA_CONFIG_PATH", _ALSA)
            return av.open(source.address, format=source.device, options=options)
        file: Any
        if source.kind == "http":
            file = self.http = HttpStream(source.address, self._should_stop)
        else:
            file = self._closing.enter_context(_LocalBytes(source))
        if source.is_live or source.kind == "stdin":
            file = _OnlyRead(file)
        else:
            options = {}
        allowed = {"format_whitelist": FORMATS, "protocol_whitelist": ""}
        return av.open(
            file,
            container_options={**options, **allowed},
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
        )

    def _choose(self) -> av.AudioStream:
        for stream in self._container.streams.audio:
            if stream.codec_context is not None:
                stream.codec_context.thread_count = 1
                return stream
        raise StreamError(f"{self._name()}: has no audio that FFmpeg can decode")

    def _name(self) -> str:
        from reclass_plex.http_stream import shown

        source = self._source
        if source.kind == "http":
            return shown(source.address)
        if source.kind == "device":
            return visible(f"{source.device}:{source.address}")
        return printable(source.address)

    def _refusal(self, error: av.FFmpegError) -> StreamError:
        reason = (error.strerror or str(error)).lower()
        if self._source.kind == "device":
            return StreamError(f"{self._name()}: cannot be recorded from: {reason}")
        text = f"{self._name()}: is no audio that FFmpeg can open"
        return StreamLost(text) if self._source.is_live else StreamError(text)


class _OnlyRead:
    """Gives FFmpeg nothing but bytes in order."""

    def __init__(self, file: _Bytes) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """Return some bytes."""
        return self._file.read(size)


class _LocalBytes:
    """A file, or standard input, read without waiting for more than there is."""

    def __init__(self, source: Source) -> None:
        self._close = source.kind == "file"
        if source.kind == "stdin":
            self._descriptor = sys.stdin.fileno()
            return
        try:
            self._descriptor = os.open(source.address, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StreamError(f"{printable(source.address)}: cannot be read: {reason}") from error
        if Path(source.address).is_dir():
            os.close(self._descriptor)
            raise StreamError(
                f"{printable(source.address)}: is a folder; see reclass-plex classify"
            )

    def read(self, size: int) -> bytes:
        """Return some bytes."""
        return os.read(self._descriptor, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def __enter__(self) -> _LocalBytes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._close:
            os.close(self._descriptor)


def wait(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Sleep, or raise Stopped."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if should_stop():
            raise Stopped
        time.sleep(min(0.1, max(0.0, until - time.monotonic())))
