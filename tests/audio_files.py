"""Real audio files for the tests: music-like sound, synthesized here, in every format.

PyAV's own FFmpeg encodes what it can. Three formats it cannot encode: Musepack is copied from
tests/data/tone.mpc (`mpcenc` of Debian's musepack-tools over `synthesize(3.0, 44100, 2)`); DSF
and Monkey's Audio are written by hand below, from their published layouts.

No file has tags, except the encoder names that a format demands (the vendor string of Ogg, say).
"""

from __future__ import annotations

import functools
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"

# format name: (suffix, FFmpeg muxer, FFmpeg encoder)
_ENCODED: dict[str, tuple[str, str, str]] = {
    "mp3": (".mp3", "mp3", "libmp3lame"),
    "flac": (".flac", "flac", "flac"),
    "m4a-aac": (".m4a", "ipod", "aac"),
    "m4a-alac": (".m4a", "ipod", "alac"),
    "ogg-vorbis": (".ogg", "ogg", "vorbis"),
    "ogg-flac": (".oga", "ogg", "flac"),
    "opus": (".opus", "opus", "libopus"),
    "wav": (".wav", "wav", "pcm_s16le"),
    "aiff": (".aiff", "aiff", "pcm_s16be"),
    "wma": (".wma", "asf", "wmav2"),
    "wavpack": (".wv", "wv", "wavpack"),
    "tta": (".tta", "tta", "tta"),
}
FORMATS: tuple[str, ...] = (*_ENCODED, "musepack", "dsf", "ape")
LOSSLESS: tuple[str, ...] = (
    *("flac", "m4a-alac", "ogg-flac", "wav", "aiff", "wavpack", "tta"),  # exact to the sample
)

_SAMPLE_FORMATS = {"flac": "s16", "alac": "s16p", "wavpack": "s16p", "tta": "s16"}  # lossless
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 6: "5.1", 8: "7.1"}
_CHUNK = 65536  # samples handed to an encoder at a time

_CHORDS = (  # two bars each of four chords, as MIDI notes
    (57, 60, 64),
    (53, 57, 60),
    (48, 55, 64),
    (55, 59, 62),
)


def make_audio(
    folder: Path,
    format_name: str,
    *,
    seconds: float = 3.0,
    rate: int = 44100,
    channels: int = 2,
    name: str | None = None,
    seed: int = 0,
) -> Path:
    """Write a file in `format_name` (of FORMATS) to `folder` and return its path.

    `name` is the file's whole name (default: the format's name and its usual suffix). Another
    `seed` is another piece of music. Some formats know only some parameters: Opus is always
    48 kHz, Vorbis always stereo, DSF has 64 times `rate`, Monkey's Audio is silent (its packets
    differ by seed all the same), and Musepack is always the same 3 s, 44.1 kHz, stereo.
    """
    suffix = {"musepack": ".mpc", "dsf": ".dsf", "ape": ".ape"}.get(format_name)
    path = folder / (name or f"{format_name}{suffix or _ENCODED[format_name][0]}")
    if format_name == "musepack":
        shutil.copyfile(DATA / "tone.mpc", path)
    elif format_name == "dsf":
        path.write_bytes(_dsf(synthesize(seconds, rate, channels, seed), rate))
    elif format_name == "ape":
        path.write_bytes(_silent_ape(round(seconds * rate), rate, channels, seed))
    else:
        _, muxer, encoder = _ENCODED[format_name]
        rate = 48000 if encoder == "libopus" else rate
        channels = 2 if encoder == "vorbis" else channels
        encode(path, muxer, encoder, synthesize(seconds, rate, channels, seed), rate)
    return path


@functools.lru_cache(maxsize=8)
def synthesize(
    seconds: float, rate: int, channels: int = 2, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Return (channels, n) samples in [-1, 1]: decaying chords over a beat, four bars a theme.

    Each sample is a whole number of 1/32768, so that 16-bit lossless formats keep it exactly.
    """
    n = round(seconds * rate)
    random = np.random.default_rng(seed)
    transpose = 2 ** (random.integers(-5, 6) / 12) if seed else 1.0
    beat = round(rate * (0.5 if not seed else random.uniform(0.35, 0.65)))  # samples
    out = np.zeros((channels, n), np.float32)
    length = min(n, 2 * beat)
    time = np.arange(length, dtype=np.float32) / rate
    for index, start in enumerate(range(0, n, beat)):
        stop = min(n, start + length)
        t = time[: stop - start]
        notes = _CHORDS[index // 8 % len(_CHORDS)]
        pan = np.linspace(0.6, 1.0, channels, dtype=np.float32)[:, None]
        for place, note in enumerate((*notes, notes[index % 3] + 12)):
            pitch = (
                440 * 2 ** ((note - 69) / 12) * transpose * (1 + 0.001 * random.standard_normal())
            )
            tone = sum(np.sin(2 * np.pi * pitch * k * t) / k**2 for k in (1, 2, 3))
            decay = np.exp(-t * (3 + random.random()))
            side = pan if place % 2 else pan[::-1]
            out[:, start:stop] += 0.12 * side * (tone * decay).astype(np.float32)
        kick = np.sin(2 * np.pi * 55 * t) * np.exp(-18 * t)
        hat = random.standard_normal(len(t)) * np.exp(-60 * t)
        out[:, start:stop] += (0.25 * kick + 0.05 * hat).astype(np.float32)
    fine = np.clip(np.round(out * 32768 * 0.8), -32768, 32767) / 32768
    samples = fine.astype(np.float32)
    samples.setflags(write=False)  # it is kept for the next caller
    return samples


def encode(
    path: Path,
    muxer: str,
    encoder: str,
    samples: npt.NDArray[np.float32],
    rate: int,
    muxer_options: dict[str, str] | None = None,
) -> None:
    """Encode (channels, n) `samples` with FFmpeg's `encoder` into `path`, without any tag."""
    options = {"fflags": "+bitexact", **(muxer_options or {})}  # bitexact: no encoder names
    if muxer == "mp3":
        options["id3v2_version"] = "0"
    with (
        path.open("wb") as file,  # a Python file: the name need not be valid UTF-8
        av.open(file, "w", format=muxer, container_options=options) as container,
    ):
        stream = container.add_stream(encoder, rate=rate)
        stream.layout = _LAYOUTS[len(samples)]
        if encoder in _SAMPLE_FORMATS:
            stream.format = _SAMPLE_FORMATS[encoder]
        stream.options = {"strict": "experimental", "flags": "+bitexact"}  # FFmpeg's Vorbis
        if encoder in {"libmp3lame", "aac", "libopus", "wmav2"}:
            stream.bit_rate = 64000 * len(samples)
        for frame in _frames(samples, rate):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _frames(samples: npt.NDArray[np.float32], rate: int) -> Iterator[av.AudioFrame]:
    whole = np.round(samples * 32768).astype(np.int16)
    for start in range(0, whole.shape[1], _CHUNK):
        block = np.ascontiguousarray(whole[:, start : start + _CHUNK].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout=_LAYOUTS[len(samples)])
        frame.sample_rate = rate
        frame.pts = start
        yield frame


def _dsf(samples: npt.NDArray[np.float32], rate: int) -> bytes:
    """Return `samples` as a DSF file: one bit a sample at 64 times `rate`.

    Layout: Sony, "DSF File Format Specification" 1.01. The bits are those of a first-order
    delta-sigma modulator, whose output is the step of its integrator's whole part.
    """
    block = 4096  # bytes a channel
    channels, n = samples.shape
    bits = n * 64
    blocks = -(-bits // (8 * block))
    planes = np.zeros((channels, blocks * block), np.uint8)
    for plane, channel in zip(planes, samples, strict=True):
        integral = np.floor(np.cumsum(np.repeat((channel.astype(np.float64) + 1) / 2, 64)))
        packed = np.packbits(np.diff(integral, prepend=0.0) > 0, bitorder="little")
        plane[: len(packed)] = packed
    data: bytes = planes.reshape(channels, blocks, block).transpose(1, 0, 2).tobytes()
    form = struct.pack(
        "<4sQ6IQ2I", b"fmt ", 52, 1, 0, channels, channels, 64 * rate, 1, bits, block, 0
    )
    size = 28 + len(form) + 12 + len(data)
    head = struct.pack("<4sQQQ", b"DSD ", 28, size, 0)  # 0: no metadata
    return head + form + struct.pack("<4sQ", b"data", 12 + len(data)) + data


def _silent_ape(n: int, rate: int, channels: int, seed: int) -> bytes:
    """Return `n` silent samples as a Monkey's Audio 3.99 file.

    Layout: APE_DESCRIPTOR, APE_HEADER, seek table, frames (Monkey's Audio SDK, APEInfo.h). Each
    frame bears the special code "silence", after which a decoder reads no more of it; the bytes
    that follow are filled from `seed`, as the compressed samples of a real file would be.
    """
    blocks_a_frame = 73728
    frames = -(-n // blocks_a_frame)
    random = np.random.default_rng(seed)
    body = b""
    table = []
    start = 52 + 24 + 4 * frames  # descriptor, header, seek table
    for _ in range(frames):
        table.append(start + len(body))
        # words are stored with their bytes reversed: CRC and flag bit, special codes, filling
        words = np.array([0x80000000, 0x00000003, *random.integers(0, 2**32, 16)], "<u4")
        body += words.tobytes()
    descriptor = struct.pack("<4sHH7I16x", b"MAC ", 3990, 0, 52, 24, 4 * frames, 0, len(body), 0, 0)
    last = n - (frames - 1) * blocks_a_frame
    # compression level "fast"; flag 0x20: the WAV header is not stored but made by the decoder
    header = struct.pack("<HHIIIHHI", 1000, 0x20, blocks_a_frame, last, frames, 16, channels, rate)
    return descriptor + header + struct.pack(f"<{frames}I", *table) + body
