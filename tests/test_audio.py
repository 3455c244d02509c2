"""Every format decodes where it should; no tag edit moves the digest; bad files say why."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

import av
import mutagen
import numpy as np
import numpy.typing as npt
import pytest
from audio_files import DATA, FORMATS, LOSSLESS, encode, make_audio, synthesize
from mutagen.apev2 import APEv2, APEValue
from mutagen.asf import ASF, ASFByteArrayAttribute
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TCON, TIT2
from mutagen.mp4 import MP4, MP4Cover
from mutagen.ogg import OggFileType
from timing import timed

from reclass_plex import audio, audio_collector, audio_ends
from reclass_plex.audio import audio_digest, decode_excerpt, resample
from reclass_plex.errors import FileChanged, FileError, NotAudio, RetryLater, Unreadable
from reclass_plex.records import Excerpt, FloatArray, Waveform

FULL = Excerpt(None)
SECONDS = 8.0  # of the files that decoding is tested on
SOURCED = [name for name in FORMATS if name not in {"ape", "musepack"}]  # made from SECONDS here
# how far an excerpt may lie from its place in the source, in samples; FFmpeg's WMA decoder does
# not count its own delay of one frame
DELAYS = dict.fromkeys(LOSSLESS, 0) | {"wma": 2100, "dsf": 2}
CODEC_DELAY = 1  # of the rest, whose files state their delay


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("audio")
    return {name: make_audio(folder, name, seconds=SECONDS) for name in FORMATS}


def mono_source(format_name: str) -> FloatArray:
    rate = 48000 if format_name == "opus" else 44100
    mono: FloatArray = synthesize(SECONDS, rate).mean(axis=0, dtype=np.float32)
    return mono


def place_of(piece: npt.NDArray[Any], whole: npt.NDArray[Any]) -> int:
    """Where in `whole` the `piece` fits best, by cross-correlation."""
    n = len(piece) + len(whole)
    spectrum = np.fft.rfft(whole, n) * np.conj(np.fft.rfft(piece, n))
    return int(np.fft.irfft(spectrum, n)[: len(whole)].argmax())


# Decoding


@pytest.mark.parametrize("format_name", SOURCED)
def test_middle_is_the_middle(library: dict[str, Path], format_name: str) -> None:
    source = mono_source(format_name)
    got = decode_excerpt(library[format_name], Excerpt(3.0))
    assert got.samples.dtype == np.float32
    assert got.rate == (48000 if format_name == "opus" else 44100)
    assert len(got.samples) == 3 * got.rate
    assert got.start == pytest.approx((SECONDS - 3) / 2, abs=0.1)
    assert got.track_seconds == pytest.approx(SECONDS, abs=0.1)
    place = place_of(got.samples, source)
    assert abs(place - got.start * got.rate) <= DELAYS.get(format_name, CODEC_DELAY)
    expected = source[place : place + len(got.samples)]
    if format_name in LOSSLESS:
        np.testing.assert_array_equal(got.samples, expected)
    else:
        assert np.corrcoef(got.samples, expected)[0, 1] > 0.97


@pytest.mark.parametrize("format_name", FORMATS)
def test_full_is_all_of_it(library: dict[str, Path], format_name: str) -> None:
    seconds = 3.03 if format_name == "musepack" else SECONDS
    got = decode_excerpt(library[format_name], FULL)
    assert got.seconds == pytest.approx(seconds, abs=0.1)
    assert got.track_seconds == pytest.approx(seconds, abs=0.1)
    assert got.start < 0.1
    level = float(np.sqrt(np.mean(got.samples**2)))
    assert level == 0 if format_name == "ape" else 0.03 < level < 0.2
    if format_name in LOSSLESS:
        np.testing.assert_array_equal(got.samples, mono_source(format_name))


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_short_track_comes_whole(library: dict[str, Path], format_name: str) -> None:
    full = decode_excerpt(library[format_name], FULL)
    longer = decode_excerpt(library[format_name], Excerpt(30.0))
    np.testing.assert_array_equal(longer.samples, full.samples)


def test_musepack_seeks(library: dict[str, Path]) -> None:
    full = decode_excerpt(library["musepack"], FULL)
    middle = decode_excerpt(library["musepack"], Excerpt(0.5))
    assert middle.seconds == 0.5
    assert 0.5 < middle.start < 2  # its packets of 1.7 s are all that its header counts in
    assert place_of(middle.samples, full.samples) == round(middle.start * 44100)


@pytest.mark.parametrize(
    ("encoder", "rate", "channels", "tolerance"),
    [
        ("pcm_u8", 22050, 1, 1 / 128),
        ("pcm_s16le", 8000, 8, 0),
        ("pcm_s24le", 96000, 6, 0),
        ("pcm_s32le", 192000, 2, 0),
        ("pcm_f32le", 48000, 3, 0),
        ("pcm_f64le", 11025, 4, 0),
    ],
)
def test_any_rate_channels_and_sample_format(
    tmp_path: Path, encoder: str, rate: int, channels: int, tolerance: float
) -> None:
    source = synthesize(1.0, rate, channels)
    encode(tmp_path / "a.wav", "wav", encoder, source, rate)
    got = decode_excerpt(tmp_path / "a.wav", FULL)
    assert got.rate == rate
    np.testing.assert_allclose(got.samples, source.mean(axis=0), atol=tolerance + 1e-7)


@pytest.mark.parametrize("rate", [352800, 384000])
def test_rates_above_192_khz_come_down(tmp_path: Path, rate: int) -> None:
    kept = 44100 if rate == 352800 else 48000
    encode(tmp_path / "dxd.wav", "wav", "pcm_s16le", synthesize(3.0, rate), rate)
    got = decode_excerpt(tmp_path / "dxd.wav", Excerpt(2.0))
    assert got.rate == kept
    assert len(got.samples) == 2 * kept
    whole = decode_excerpt(tmp_path / "dxd.wav", FULL)
    assert len(whole.samples) == 3 * kept
    assert place_of(got.samples, whole.samples) == kept // 2


def test_broken_floats_become_silence_or_are_clipped(tmp_path: Path) -> None:
    samples = np.array([0.5, np.nan, np.inf, -np.inf, 1e30, -1e30, -1.2] * 2000, "<f4")
    data = samples.tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 8000, 32000, 4, 32)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    path = tmp_path / "float.wav"
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    got = decode_excerpt(path, FULL).samples
    limit = audio_collector.MAX_AMPLITUDE
    np.testing.assert_allclose(got[:7], [0.5, 0, 0, 0, limit, -limit, -1.2], rtol=1e-6)


def test_threads_do_not_disturb_each_other(library: dict[str, Path]) -> None:
    paths = list(library.values())

    def work(path: Path) -> tuple[str, bytes]:
        return audio_digest(path), decode_excerpt(path, Excerpt(2.0)).samples.tobytes()

    alone = [work(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, paths * 2)) == alone * 2


def test_full_is_bounded_to_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    seconds, rate = 25 * 60, 1000
    encode(path, "wav", "pcm_s16le", np.zeros((1, seconds * rate), np.float32), rate)
    got = decode_excerpt(path, FULL)
    assert got.seconds == audio.MAX_FULL_SECONDS
    assert got.start == (seconds - audio.MAX_FULL_SECONDS) / 2
    assert got.track_seconds == seconds


def frames_of_mp3(folder: Path, seconds: float, rate: int = 44100, seed: int = 0) -> bytes:
    """The frames of a mono MP3 without the first, which holds the index."""
    path = make_audio(folder, "mp3", seconds=seconds, rate=rate, channels=1, seed=seed)
    data = path.read_bytes()
    return data[data.index(data[:2], 100) :]


def test_mp3_of_varying_rate_without_index(tmp_path: Path) -> None:
    """FFmpeg guesses its length from the first frames; the guess is corrected."""
    data = b""
    for number, bit_rate in enumerate((32000, 320000)):
        path = tmp_path / "part.mp3"
        with av.open(str(path), "w", options={"id3v2_version": "0", "write_xing": "0"}) as out:
            stream = out.add_stream("libmp3lame", rate=44100, layout="mono", bit_rate=bit_rate)
            block = np.round(synthesize(15, 44100, 1, number) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate = 44100
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        data += path.read_bytes()
    whole = tmp_path / "whole.mp3"
    whole.write_bytes(data)
    with audio._opened(whole) as source:
        assert (source.stated_seconds() or 0) > 60  # the guess: 30 s would be true
    got = decode_excerpt(whole, Excerpt(4.0))
    assert got.track_seconds == pytest.approx(30, abs=0.2)
    assert got.start == pytest.approx(13, abs=0.2)


TEN_HOURS = """
import sys, time
from pathlib import Path
from reclass_plex.audio import decode_excerpt
from reclass_plex.records import Excerpt

def memory(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024

short, long = map(Path, sys.argv[1:])
decode_excerpt(short, Excerpt(30.0))
base = memory("VmRSS")
began = time.process_time()
got = decode_excerpt(long, Excerpt(30.0))
print(time.process_time() - began, memory("VmHWM") - base)
print(got.start, got.seconds, got.track_seconds)
"""


def test_ten_hours_take_little_time_and_memory(tmp_path: Path) -> None:
    frames = frames_of_mp3(tmp_path, 60, rate=8000)
    minute = len(frames) / (64000 / 8)  # seconds, at the constant 64 kbit/s
    repeats = int(36000 / minute)
    path = tmp_path / "mix.mp3"
    with path.open("wb") as file:
        for _ in range(repeats):
            file.write(frames)
    command = [sys.executable, "-c", TEN_HOURS, str(tmp_path / "mp3.mp3"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu, memory, start, seconds, track_seconds = map(float, done.stdout.split())
    assert cpu < 1.0
    assert memory < 200  # MB
    assert seconds == 30
    assert track_seconds == pytest.approx(repeats * minute, rel=0.01)
    assert start == pytest.approx(track_seconds / 2, rel=0.01)
    assert done.stderr == ""


# Resampling


def test_resampled_sine_is_the_same_sine() -> None:
    time = np.arange(88200) / 44100
    wave = Waveform(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 44100, 7.0, 300.0)
    got = resample(wave, 16000)
    assert (got.rate, got.start, got.track_seconds) == (16000, 7.0, 300.0)
    assert len(got.samples) == 32000
    assert got.samples.dtype == np.float32
    expected = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    np.testing.assert_allclose(got.samples[400:-400], expected[400:-400], atol=1e-4)


def test_resample_keeps_out_what_the_rate_cannot_hold() -> None:
    time = np.arange(88200) / 44100
    wave = Waveform(np.sin(2 * np.pi * 9000 * time).astype(np.float32), 44100, 0.0, 2.0)
    assert np.abs(resample(wave, 16000).samples[400:-400]).max() < 1e-4  # no alias at 7 kHz


def test_resample_to_the_same_rate_is_no_work() -> None:
    wave = Waveform(np.zeros(10, np.float32), 44100, 0.0, 1.0)
    assert resample(wave, 44100) is wave


# The digest

NOISE = np.random.default_rng(5).bytes(300_000)  # a picture that spans many Ogg pages


def set_tags(path: Path, text: str, picture: bytes) -> None:
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    if isinstance(file.tags, ID3):
        file.tags.add(TIT2(encoding=3, text=[text]))
        file.tags.add(TCON(encoding=3, text=["Jazz", "Rock"]))
        file.tags.delall("APIC")
        file.tags.add(APIC(encoding=3, mime="image/png", type=3, desc="", data=picture))
    elif isinstance(file, MP4):
        file["\xa9nam"], file["covr"] = [text], [MP4Cover(picture)]
    elif isinstance(file, ASF):
        file["Title"], file["WM/Picture"] = [text], [ASFByteArrayAttribute(picture)]
    elif isinstance(file.tags, APEv2):
        file["Title"], file["Cover Art (Front)"] = text, APEValue(b"a.png\0" + picture, 1)
    else:
        assert isinstance(file, FLAC | OggFileType)
        file["title"], file["genre"], file["x"] = text, ["Jazz", "Rock"], picture.hex()
        if isinstance(file, FLAC):
            cover = Picture()
            cover.mime, cover.type, cover.data = "image/png", 3, picture
            file.clear_pictures()
            file.add_picture(cover)
    file.save()


@pytest.mark.parametrize("format_name", FORMATS)
def test_tag_edits_do_not_change_the_digest(tmp_path: Path, format_name: str) -> None:
    path = make_audio(tmp_path, format_name)
    bare = path.read_bytes()
    digest = audio_digest(path)
    heard = decode_excerpt(path, Excerpt(1.0))
    assert len(digest) == 32
    for text, picture in (("A", b"\x89PNG"), ("B" * 9999, NOISE), ("C", b""), ("D", NOISE)):
        set_tags(path, text, picture)
        assert path.read_bytes() != bare
        assert audio_digest(path) == digest
    again = decode_excerpt(path, Excerpt(1.0))
    assert again.start == heard.start
    np.testing.assert_array_equal(again.samples, heard.samples)
    file = mutagen.File(path)
    file.delete()
    assert audio_digest(path) == digest


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name != "musepack"])
def test_other_music_has_another_digest(tmp_path: Path, format_name: str) -> None:
    one, two = (
        make_audio(tmp_path, format_name, seed=seed, seconds=1.0, name=f"{seed}.x")
        for seed in (1, 2)
    )
    assert audio_digest(one) != audio_digest(two)


def test_one_flipped_bit_is_another_digest(tmp_path: Path) -> None:
    for format_name in ("mp3", "musepack", "m4a-aac"):
        path = make_audio(tmp_path, format_name)
        before = audio_digest(path)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert audio_digest(path) != before


ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x03\0\0\0\0\x01\x00" + b"TIT2\0\0\0\x03\0\0\0Hi" + bytes(115)
ID3V2_AT_THE_END = (
    *(b"ID3\x04\0\x10\0\0\0\x10", b"TIT2\0\0\0\x03\0\0\0Hi\0\0\0", b"3DI\x04\0\x10\0\0\0\x10"),
)
APE_ITEM = struct.pack("<II", 4, 0) + b"Genre\0Jazz"
LYRICS2 = b"LYRICSBEGIN" + b"IND00002" + b"11" + b"000021" + b"LYRICS200"
LYRICS1 = b"LYRICSBEGIN" + b"la la la" * 300 + b"LYRICSEND"


def ape_tag(header: bool) -> bytes:
    def mark(flags: int) -> bytes:
        return struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(APE_ITEM) + 32, 1, flags)

    if not header:
        return APE_ITEM + mark(0)
    return mark(0xA0000000) + APE_ITEM + mark(0x80000000)


def short_ape_tag(size: int) -> bytes:
    """Return an APEv2 tag of so many bytes, with a header, and one item."""
    value = bytes(size - 2 * 32 - 14)
    item = struct.pack("<II", len(value), 0) + b"Album\0" + value

    def mark(flags: int) -> bytes:
        return b"APETAGEX" + struct.pack("<IIII8x", 2000, len(item) + 32, 1, flags)

    tag = mark(0xA0000000) + item + mark(0x80000000)
    assert len(tag) == size
    return tag


@pytest.mark.parametrize("format_name", ["mp3", "flac", "wavpack", "tta", "ape", "musepack"])
@pytest.mark.parametrize(
    ("front", "back"),
    [
        (b"", ID3V1),
        (b"", b"TAG+" + bytes(223) + ID3V1),
        (b"", ape_tag(header=True)),
        (b"", short_ape_tag(131)),  # where an ID3v1 tag would say "TAG", it says "APETAGEX"
        (b"", ape_tag(header=False) + ID3V1),
        (b"", ape_tag(header=True) + LYRICS2 + ID3V1),
        (b"", LYRICS1 + ID3V1),
        (b"", b"".join(ID3V2_AT_THE_END)),
        (ID3V2, b""),
        (ID3V2 + ID3V2, ape_tag(header=True)),
    ],
)
def test_tags_of_other_programs_do_not_change_the_digest(
    tmp_path: Path, format_name: str, front: bytes, back: bytes
) -> None:
    path = make_audio(tmp_path, format_name, seconds=1.0)
    digest = audio_digest(path)
    path.write_bytes(front + path.read_bytes() + back)
    assert audio_digest(path) == digest


def riff(*chunks: tuple[bytes, bytes | int, bytes]) -> bytes:
    """A WAV of (name, its size or b"" for the true one, content) after a format of 8 kHz mono."""
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    body = b"WAVE"
    for name, size, content in ((b"fmt ", b"", form), *chunks):
        told = size if isinstance(size, int) else len(content)
        body += name + struct.pack("<I", told) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


SOUND = np.random.default_rng(7).integers(-9999, 9999, 4000, np.int16).astype("<i2").tobytes()
SOUND_DIGEST = blake2b(SOUND, digest_size=16).hexdigest()


def digest_of(folder: Path, content: bytes) -> str:
    path = folder / "made.wav"
    path.write_bytes(content)
    return audio_digest(path)


@pytest.mark.parametrize(
    ("name", "muxer", "encoder", "options"),
    [
        ("a.wav", "wav", "pcm_s16le", {}),
        ("a.wav", "wav", "pcm_s16le", {"rf64": "always"}),
        ("a.w64", "w64", "pcm_s16le", {}),
        ("a.caf", "caf", "pcm_s16le", {}),
        ("a.aiff", "aiff", "pcm_s16be", {}),
    ],
)
def test_the_digest_is_that_of_the_samples(
    tmp_path: Path, name: str, muxer: str, encoder: str, options: dict[str, str]
) -> None:
    source = synthesize(1.0, 8000)
    path = tmp_path / name
    encode(path, muxer, encoder, source, 8000, options)
    order = ">i2" if encoder.endswith("be") else "<i2"
    samples = (source.T * 32768).astype(order).tobytes()
    assert audio_digest(path) == blake2b(samples, digest_size=16).hexdigest()
    with audio._opened(path) as found:
        ((start, end),) = found.chunks
        assert path.read_bytes()[start:end] == samples
        assert b"".join(bytes(packet) for packet in found.packets()) == samples  # FFmpeg agrees


def test_dsf_is_digested_by_its_chunk(tmp_path: Path) -> None:
    path = make_audio(tmp_path, "dsf", seconds=0.5)
    data = path.read_bytes()
    assert audio_digest(path) == blake2b(data[92:], digest_size=16).hexdigest()


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"data", b"", SOUND)],
        [(b"LIST", b"", b"INFOodd"), (b"data", b"", SOUND), (b"id3 ", b"", ID3V2)],
        [(b"data", b"", SOUND), (b"cue ", 10**9, b"damaged")],
        [(b"data", b"", SOUND[:3000]), (b"id3 ", b"", ID3V2), (b"data", b"", SOUND[3000:])],
        [(b"data", 0xFFFFFFFF, SOUND)],  # a streaming writer: all that follows
        [(b"data", 0, SOUND)],
        [(b"data", 10**9, SOUND)],  # a truncated file
    ],
)
def test_chunks_in_any_order_and_sizes_in_doubt(
    tmp_path: Path, chunks: list[tuple[bytes, bytes | int, bytes]]
) -> None:
    assert digest_of(tmp_path, riff(*chunks)) == SOUND_DIGEST


def test_tag_bytes_that_look_like_a_chunk_of_audio_are_none(tmp_path: Path) -> None:
    trap = b"data" + struct.pack("<I", 100) + bytes(100)
    plain = riff((b"data", b"", SOUND))
    assert digest_of(tmp_path, plain + b"id3 " + struct.pack("<I", len(trap)) + trap) == (
        SOUND_DIGEST
    )


def test_audio_without_its_padding_byte(tmp_path: Path) -> None:
    content = riff((b"data", b"", SOUND + b"odd"))[:-1]
    whole = blake2b(SOUND + b"odd", digest_size=16).hexdigest()
    assert digest_of(tmp_path, content) == whole


@timed
def test_a_sparse_wav_of_5_gb_takes_no_time(tmp_path: Path) -> None:
    """Space that was reserved and not filled: FFmpeg walked along it for a minute."""
    path = tmp_path / "reserved.wav"
    path.write_bytes(riff((b"data", b"", SOUND)))
    os.truncate(path, 5 << 30)
    began = time.process_time()
    assert audio_digest(path) == SOUND_DIGEST
    assert len(decode_excerpt(path, FULL).samples) == len(SOUND) // 2
    assert time.process_time() - began < 1.0


def test_sizes_of_64_bits(tmp_path: Path) -> None:
    """In an RF64 of 5 GB, nearly all of it a hole, the chunk is known to its last byte."""
    path = tmp_path / "long.wav"
    size = 5 << 30
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    long = struct.pack("<4sIQQQI", b"ds64", 28, size + 80, size, size // 2, 0)
    head = b"RF64\xff\xff\xff\xffWAVE" + long + form + b"data\xff\xff\xff\xff"
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + size)
        file.write(b"id3 " + struct.pack("<I", len(ID3V2)) + ID3V2)
    with audio._opened(path) as source:
        assert source.runs() == ((len(head), len(head) + size),)
        assert source.stated_seconds() == pytest.approx(size / 16000)


def test_a_file_of_nothing_but_chunks_is_left_to_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "chunks.wav"
    path.write_bytes(riff(*[(b"junk", b"", b"")] * 20_000, (b"data", b"", SOUND)))
    with audio._opened(path) as source:
        assert source.runs() == ()
    assert audio_digest(path) == SOUND_DIGEST


def test_mp3_with_mutagen_ape_and_id3_tags(tmp_path: Path) -> None:
    path = make_audio(tmp_path, "mp3")
    digest = audio_digest(path)
    ID3().save(path, v1=2)
    tags = APEv2()
    tags["Genre"] = "Jazz"
    tags.save(path)
    set_tags(path, "both", NOISE)
    assert audio_digest(path) == digest


def test_moved_index_of_an_m4a_does_not_change_the_digest(tmp_path: Path) -> None:
    source = synthesize(3.0, 44100)
    for name, options in (("end", {}), ("front", {"movflags": "faststart"})):
        encode(tmp_path / name, "ipod", "aac", source, 44100, options)
    end, front = (tmp_path / name for name in ("end", "front"))
    assert end.read_bytes().index(b"moov") > end.read_bytes().index(b"mdat")
    assert front.read_bytes().index(b"moov") < front.read_bytes().index(b"mdat")
    assert audio_digest(end) == audio_digest(front)


def test_covers_are_no_video(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", crc)

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(bytes(14))) + chunk(b"IEND", b"")
    for format_name in ("mp3", "flac", "m4a-aac", "wavpack", "aiff"):
        path = make_audio(tmp_path, format_name)
        set_tags(path, "with cover", png)
        assert decode_excerpt(path, FULL).seconds == pytest.approx(3.0, abs=0.1)


# Damage


PROMISING = ("flac", "wavpack", "tta")  # their headers count the samples
CUT = "truncated: it ends .*; an incomplete download"


def is_refused(path: Path, content: bytes) -> bool:
    """Whether `content` is taken for the beginning of a longer file."""
    path.write_bytes(content)
    try:
        decode_excerpt(path, Excerpt(1.0))
    except NotAudio as error:
        assert re.search(CUT, error.reason), error.reason
        return True
    return False


@pytest.mark.parametrize("format_name", SOURCED)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_what_ends_too_early_is_refused(
    library: dict[str, Path], tmp_path: Path, format_name: str, share: float
) -> None:
    data = library[format_name].read_bytes()
    share -= 0.1 if format_name in PROMISING else 0  # they may lack 2 s of the 8
    assert is_refused(tmp_path / "cut", data[: int(len(data) * share)])
    assert not is_refused(tmp_path / "whole", data)
    assert not is_refused(tmp_path / "one byte less", data[:-1])


def test_the_reason_says_what_is_missing(library: dict[str, Path], tmp_path: Path) -> None:
    for format_name, share, reason in (
        ("mp3", 0.5, r"it ends after 0\.06 of 0\.13 MB"),
        ("wav", 0.5, r"it ends after 0\.71 of 1\.41 MB"),
        ("aiff", 0.5, r"it ends after 0\.71 of 1\.41 MB"),
        ("ogg-vorbis", 0.5, "it ends within a page"),
        ("flac", 0.5, "it ends before the 8 s that its header promises"),
        ("m4a-aac", 0.5, r"it ends after 0\.07 of 0\.1\d MB"),  # and has no index
    ):
        data = library[format_name].read_bytes()
        path = tmp_path / "cut"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(NotAudio, match=f"is truncated: {reason}; an incomplete download"):
            decode_excerpt(path, Excerpt(1.0))


@pytest.mark.parametrize("format_name", SOURCED)
@pytest.mark.parametrize(
    "behind", [bytes(50_000), b"OggS junk \xff\xfb\x90\x64" * 99], ids=["zeros", "junk"]
)
def test_what_lies_behind_a_whole_file_is_no_cut(
    library: dict[str, Path], tmp_path: Path, format_name: str, behind: bytes
) -> None:
    if format_name.startswith("ogg") or format_name == "opus":
        behind = behind.replace(b"OggS", b"")  # that is a page, and cut
    data = library[format_name].read_bytes()
    assert not is_refused(tmp_path / "long", data + behind)


def frame_starts(data: bytes) -> list[int]:
    """Where the frames of an MP3 begin that has nothing in front of its first."""
    starts = [0]
    while size := audio_ends._frame_size(data[starts[-1] : starts[-1] + 4]):
        starts.append(starts[-1] + size)
    return starts


def test_an_mp3_is_cut_only_where_a_frame_is(library: dict[str, Path], tmp_path: Path) -> None:
    """Editors cut between frames, and keep the header that tells the old size."""
    data = library["mp3"].read_bytes()
    path = tmp_path / "cut.mp3"
    *starts, end = frame_starts(data)
    assert end == len(data)
    middle = starts[len(starts) // 2]
    assert not is_refused(path, data[:middle])
    for offset in (1, 3, 4, 100):
        assert is_refused(path, data[: middle + offset])
    assert not is_refused(path, data[:middle] + bytes(50_000))
    tags = ape_tag(header=True) + LYRICS2 + ID3V1  # written to the half file since
    assert is_refused(path, ID3V2 + data[: middle + 100] + tags)
    assert not is_refused(path, ID3V2 + data[:middle] + tags)
    assert not is_refused(path, ID3V2 + data + tags)
    assert not is_refused(path, data + data)  # two files in a row, each with a header
    assert not is_refused(path, data + data[: middle + 100])
    unheaded = data[starts[1] :]
    assert not is_refused(path, unheaded[: len(unheaded) // 2])  # nothing tells
    assert is_refused(path, bytes(1000) + data[: middle + 100])


@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (48000, 2), (22050, 2), (8000, 1)])
def test_mp3_headers_of_any_rate(tmp_path: Path, rate: int, channels: int) -> None:
    path = make_audio(tmp_path, "mp3", seconds=8.0, rate=rate, channels=channels)
    data = path.read_bytes()
    *starts, end = frame_starts(data)
    assert end == len(data)
    middle = starts[len(starts) // 2]
    assert is_refused(path, data[: middle + 50])
    assert not is_refused(path, data[:middle])


def test_the_header_of_a_fraunhofer_encoder(library: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(library["mp3"].read_bytes())
    first = frame_starts(bytes(data))[1]
    data[4:first] = bytes(first - 4)
    data[36:54] = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), 300)
    assert is_refused(tmp_path / "cut", bytes(data[: len(data) // 2]))
    assert not is_refused(tmp_path / "whole", bytes(data))


def page_starts(data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(b"OggS\\0[\\0-\\x07]", data)]


@pytest.mark.parametrize("format_name", ["ogg-vorbis", "ogg-flac", "opus"])
def test_ogg_may_lack_its_last_page(
    library: dict[str, Path], tmp_path: Path, format_name: str
) -> None:
    """As a recorded radio stream does, which no page ends."""
    path = tmp_path / "radio"
    data = library[format_name].read_bytes()
    starts = page_starts(data)
    assert len(starts) > 4
    assert not is_refused(path, data[: starts[-1]])
    for offset in (1, 4, 20, 100):
        assert is_refused(path, data[: starts[-2] + offset])
    assert not is_refused(path, data + data)  # a chain of two streams
    assert is_refused(path, data + data[: len(data) // 2])


def test_ogg_that_ends_within_a_packet(tmp_path: Path) -> None:
    path = tmp_path / "a.oga"
    noise = np.random.default_rng(3).uniform(-1, 1, (8, 44100)).astype(np.float32)
    encode(path, "ogg", "flac", noise, 44100)  # packets of 74 kB, pages of 65 kB
    data = path.read_bytes()
    starts = page_starts(data)
    whole = [at for at in starts if data[at + 5] & 1 == 0]
    continued = [at for at in starts if data[at + 5] & 1]
    assert continued
    assert not is_refused(path, data[: whole[-1]])
    assert is_refused(path, data[: continued[-1]])


@pytest.mark.parametrize(
    ("format_name", "size"),
    [
        ("wav", 0),  # of an AIFF FFmpeg would play nothing
        *product(["wav", "aiff"], [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    ],
)
def test_sizes_that_a_streaming_writer_left_open(
    library: dict[str, Path], tmp_path: Path, format_name: str, size: int
) -> None:
    data = bytearray(library[format_name].read_bytes())
    order = "<I" if format_name == "wav" else ">I"
    at = data.index(b"data" if format_name == "wav" else b"SSND") + 4
    struct.pack_into(order, data, at, size)
    for outer in (len(data) - 8, size):
        struct.pack_into(order, data, 4, outer)
        assert not is_refused(tmp_path / "streamed", bytes(data[: len(data) // 2]))


def test_a_wav_whose_sizes_contradict_each_other_is_heard(tmp_path: Path) -> None:
    assert not is_refused(tmp_path / "a.wav", riff((b"data", 10**6, SOUND * 9)))
    assert is_refused(tmp_path / "b.wav", riff((b"data", b"", SOUND * 9))[:-20_000])


def test_truncated_audio_of_unknown_size_gives_what_is_left(
    library: dict[str, Path], tmp_path: Path
) -> None:
    mp3, ogg = library["mp3"].read_bytes(), library["ogg-vorbis"].read_bytes()
    wav = bytearray(library["wav"].read_bytes())
    wav[4:8] = wav[wav.index(b"data") + 4 : wav.index(b"data") + 8] = b"\xff" * 4
    unheaded = mp3[frame_starts(mp3)[1] :]
    pages = page_starts(ogg)
    for content in (
        unheaded[: len(unheaded) * 4 // 10],
        ogg[: min(at for at in pages if at > len(ogg) * 4 // 10)],
        bytes(wav[: len(wav) * 4 // 10]),
    ):
        path = tmp_path / "part"
        path.write_bytes(content)
        got = decode_excerpt(path, Excerpt(1.0))
        assert got.seconds == 1.0
        assert 2 < got.track_seconds < 5  # and not the 8 s that some headers say
        assert abs(got.start + 0.5 - got.track_seconds / 2) < 0.3
        assert np.abs(got.samples).max() > 0.1


@pytest.mark.parametrize("format_name", ["mp3", "flac", "m4a-aac", "ogg-vorbis", "opus", "tta"])
def test_damage_in_the_middle_is_played_past(
    library: dict[str, Path], tmp_path: Path, format_name: str
) -> None:
    path = tmp_path / "damaged"
    data = bytearray(library[format_name].read_bytes())
    third, tenth = len(data) // 3, len(data) // 10
    data[third : third + tenth] = np.random.default_rng(0).bytes(tenth)
    path.write_bytes(data)
    got = decode_excerpt(path, FULL)
    assert 5.0 < got.seconds < SECONDS + 0.1
    assert np.abs(got.samples).max() <= 2.0
    whole = mono_source(format_name)
    tail = got.samples[-2 * got.rate :]  # the end is heard, in its place before the end
    assert abs(place_of(tail, whole) - (len(whole) - len(tail))) <= 1100


def test_a_half_loaded_flac_is_refused(library: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "zeros"  # as a torrent client makes it: its whole size at once
    data = library["flac"].read_bytes()
    path.write_bytes(data[: len(data) * 3 // 10] + bytes(len(data) * 7 // 10))
    with pytest.raises(NotAudio, match=CUT):
        decode_excerpt(path, Excerpt(1.0))


@pytest.mark.parametrize("format_name", ["mp3", "opus"])
def test_a_half_loaded_file_is_heard_where_it_is_there(
    library: dict[str, Path], tmp_path: Path, format_name: str
) -> None:
    path = tmp_path / "zeros"
    data = library[format_name].read_bytes()
    path.write_bytes(data[: len(data) * 3 // 10] + bytes(len(data) * 7 // 10))
    got = decode_excerpt(path, Excerpt(1.0))
    assert np.abs(got.samples).max() > 0.1
    assert got.start + got.seconds < 3.0


def test_a_step_of_ffmpeg_that_takes_long(
    library: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is slow."""
    monkeypatch.setattr(audio, "_PATIENCE", 0.05)
    read = audio._Window.read

    def slow(self: audio._Window, size: int) -> bytes:
        time.sleep(0.1)
        return read(self, size)

    monkeypatch.setattr(audio._Window, "read", slow)
    with pytest.raises(RetryLater, match=r"over 0\.05 s"):
        audio_digest(library["opus"])


def test_a_file_that_would_send_ffmpeg_in_circles() -> None:
    """tests/data/endless.wma is a WMA of make_audio with a few damaged header bytes."""
    with pytest.raises(NotAudio, match="no audio file that FFmpeg can open"):
        audio_digest(DATA / "endless.wma")


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_disk_that_fails_once_does_not_make_another_recording(
    library: dict[str, Path], monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    """Wherever a read fails: demuxers take that for the end, or for damage that is read past."""
    path, pread = library[format_name], os.pread
    wanted = (audio_digest(path), decode_excerpt(path, Excerpt(1.0)).samples.tobytes())
    for fails in range(30):
        left = fails

        def failing(descriptor: int, size: int, offset: int) -> bytes:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.EIO, "Input/output error")
            return pread(descriptor, size, offset)

        for reader, result in (
            (audio_digest, wanted[0]),
            (lambda path: decode_excerpt(path, Excerpt(1.0)).samples.tobytes(), wanted[1]),
        ):
            left = fails
            with monkeypatch.context() as patch:
                patch.setattr(os, "pread", failing)
                try:
                    assert reader(path) == result
                    assert left >= 0, "the error was passed over"
                except FileError as error:
                    assert isinstance(error, RetryLater)
                    assert "Input/output error" in error.reason


# What is not audio, or cannot be read


def failure(path: Path) -> FileError:
    """Return what both readers of a file agree on."""
    with pytest.raises(FileError) as decoding:
        decode_excerpt(path, Excerpt(30.0))
    with pytest.raises(FileError) as digesting:
        audio_digest(path)
    assert type(decoding.value) is type(digesting.value)
    assert decoding.value.reason == digesting.value.reason
    assert decoding.value.path == path
    return decoding.value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"This is a text, whatever its name says.\n" * 100,
        b"<html><body>404 Not Found</body></html>",
        b"%PDF-1.7\n" + b"1 0 obj\n" * 500,
        b"\0" * 100_000,
        b"\xff" * 100_000,
        ID3V2 * 20,
        np.random.default_rng(1).bytes(200),
        np.random.default_rng(2).bytes(300_000),
        b"#EXTM3U\n#EXTINF:10,\nother.mp3\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n",
        b"ffconcat version 1.0\nfile other.mp3\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_not_audio(tmp_path: Path, content: bytes) -> None:
    make_audio(tmp_path, "mp3", name="other.mp3")  # what a playlist would lead to
    path = tmp_path / "song.mp3"
    path.write_bytes(content)
    error = failure(path)
    assert isinstance(error, NotAudio)
    assert ("empty" in error.reason) == (not content)


@pytest.mark.parametrize("format_name", FORMATS)
def test_truncated_to_nothing(tmp_path: Path, format_name: str) -> None:
    path = make_audio(tmp_path, format_name)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(NotAudio):
        decode_excerpt(path, FULL)


def test_misnamed_audio_is_known_by_its_content(tmp_path: Path) -> None:
    path = make_audio(tmp_path, "flac", name="song.mp3")
    np.testing.assert_array_equal(
        decode_excerpt(path, FULL).samples, synthesize(3.0, 44100).mean(axis=0, dtype=np.float32)
    )


@pytest.mark.parametrize(("muxer", "video"), [("mp4", "mpeg4"), ("matroska", "mpeg4")])
def test_a_video_is_not_audio(tmp_path: Path, muxer: str, video: str) -> None:
    path = tmp_path / "clip.m4a"
    with av.open(str(path), "w", format=muxer) as out:
        pictures = out.add_stream(video, rate=25)
        pictures.width = pictures.height = 64
        pictures.pix_fmt = "yuv420p"
        sound = out.add_stream("aac", rate=44100, layout="stereo")
        for _ in range(25):
            picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
            out.mux(pictures.encode(av.VideoFrame.from_ndarray(picture)))
        samples = synthesize(1.0, 44100)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 44100
        out.mux(sound.encode(frame))
        for stream in (pictures, sound):
            out.mux(stream.encode(None))
    error = failure(path)
    assert isinstance(error, NotAudio)
    assert "video" in error.reason


def test_no_regular_file(tmp_path: Path) -> None:
    folder, fifo, broken = tmp_path / "folder.mp3", tmp_path / "fifo.mp3", tmp_path / "link.mp3"
    first, second = tmp_path / "1.mp3", tmp_path / "2.mp3"
    folder.mkdir()
    os.mkfifo(fifo)  # no writer: a plain open() would wait for ever
    broken.symlink_to("nowhere.mp3")
    first.symlink_to(second)
    second.symlink_to(first)
    for path, word in (
        (folder, "folder"),
        (fifo, "fifo"),
        (Path("/dev/null"), "device"),
        (broken, "broken link"),
        (first, "loop"),
        (tmp_path / "missing.mp3", "does not exist"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        error = failure(path)
        assert isinstance(error, Unreadable), path
        assert word in error.reason


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, where the tests run as root, whom no permission stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_no_permission(tmp_path: Path) -> None:
    path = make_audio(tmp_path, "mp3")
    path.chmod(0)
    with unprivileged():
        error = failure(path)
    assert isinstance(error, Unreadable)
    assert "permission" in error.reason


@pytest.mark.parametrize(
    "name",
    [
        os.fsdecode(b"caf\xe9 \xff.mp3"),  # Latin-1, not valid UTF-8
        "\N{MUSICAL SCORE} \N{FAMILY}\N{ZERO WIDTH JOINER}.mp3",
        unicodedata.normalize("NFD", "Café Motörhead.mp3"),
        "%2e%2e http:fd: -i.mp3",
        "new\nline.mp3",
    ],
    ids=ascii,
)
def test_any_name(tmp_path: Path, name: str) -> None:
    path = make_audio(tmp_path, "mp3", name=name)
    assert decode_excerpt(path, FULL).seconds == pytest.approx(3.0, abs=0.1)
    assert len(audio_digest(path)) == 32
    path.write_bytes(b"text")
    str(failure(path)).encode()  # the message can be printed anywhere


@pytest.mark.parametrize("change", ["vanish", "append", "touch", "replace", "truncate"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: str) -> None:
    path = make_audio(tmp_path, "wav")
    other = make_audio(tmp_path, "wav", name="other.wav")
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    with pytest.raises(FileChanged), audio._opened(path) as source:
        if change == "vanish":
            path.unlink()
        elif change == "append":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "touch":
            os.utime(path, ns=(0, 1))
        elif change == "replace":  # same size and time, other file
            other.replace(path)
        else:
            os.truncate(path, 100)
            source.decode(1.0, 1.0)
            raise NotAudio(path, "what a reader would make of the rest")


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_are_closed(library: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp3").write_bytes(b"text")
    before = open_descriptors()
    for path in library.values():
        audio_digest(path)
        decode_excerpt(path, Excerpt(1.0))
    failure(tmp_path / "text.mp3")
    assert open_descriptors() == before


def test_ffmpeg_says_nothing(library: dict[str, Path], tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from reclass_plex.audio import audio_digest, decode_excerpt
from reclass_plex.records import Excerpt
for name in sys.argv[1:]:
    decode_excerpt(Path(name), Excerpt(1.0))
    audio_digest(Path(name))
"""
    damaged = []
    for name in ("mp3", "flac", "m4a-aac", "opus"):
        data = bytearray(library[name].read_bytes())
        half, tenth = len(data) // 2, len(data) // 10
        data[half : half + tenth] = np.random.default_rng(0).bytes(tenth)
        damaged.append(tmp_path / name)
        damaged[-1].write_bytes(data)
    command = [sys.executable, "-c", script, *map(str, damaged)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
