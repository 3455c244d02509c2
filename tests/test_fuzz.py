"""Hostile files: a short run of the fuzzer, and what it, or reading the code, once found."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from audio_files import make_audio
from fuzz_corpus import Base, make_corpus
from fuzz_mutators import mend_checksums
from fuzz_run import Case, make_case, run_cases
from fuzz_targets import TARGETS, run_target

from reclass_plex import audio, tags
from reclass_plex.config import TagOptions
from reclass_plex.decoders import Decoders
from reclass_plex.errors import Harmful, NotAudio, TagsUnsupported
from reclass_plex.records import Excerpt

SEED = 1
CASES = 500
NIGHTLY_CASES = 60_000
LONGEST = 3.0  # seconds for one thing that is done to a file of kilobytes
LARGEST = 700 << 20  # bytes of memory for one case


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def check(cases: list[Case]) -> None:
    wrong = [
        f"{SEED}:{case.number} {case.base.format} {one.target}: {one.result} {one.detail}"
        for case in cases
        for one in case.bugs
    ]
    assert wrong == [], "see it again: benchmarks/fuzz.py --show SEED:NUMBER"
    assert all(case.grown < LARGEST for case in cases)


def test_nothing_falls_over_hostile_files(corpus: list[Base]) -> None:
    cases = list(run_cases(SEED, range(CASES), corpus))
    assert [case.number for case in cases] == list(range(CASES))
    check(cases)
    kinds = {(one.target, one.result) for case in cases for one in case.outcomes}
    assert {(name, "ok") for name in TARGETS} <= kinds  # not all are refused
    assert ("decode", "not-audio") in kinds
    assert ("tags", "tags-unsupported") in kinds
    assert {case.base.format for case in cases} == {base.format for base in corpus}


@pytest.mark.nightly
def test_nothing_falls_over_many_hostile_files(corpus: list[Base]) -> None:
    for case in run_cases(SEED, range(CASES, NIGHTLY_CASES), corpus):
        check([case])


def test_a_case_is_the_same_file_each_time(corpus: list[Base]) -> None:
    some = [make_case(SEED, number, corpus)[1:] for number in range(40)]
    assert some == [make_case(SEED, number, corpus)[1:] for number in range(40)]
    assert len({data for data, _ in some}) > 35


def test_the_fuzzer_sees_crashes_circles_and_broken_promises(
    corpus: list[Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault is planted once, in the first thing that is done to case 3."""
    import os
    import signal

    import fuzz_run
    import fuzz_targets

    plants: dict[str, Callable[[Path], None]] = {
        "BUG crash -11": lambda path: os.kill(os.getpid(), signal.SIGSEGV),
        "BUG hangs": lambda path: time.sleep(60),
        "BUG MemoryError": lambda path: print(len(bytes(3 << 30))),
        "BUG KeyError": lambda path: print(dict[str, str]()["a"]),
        "BUG Broken": lambda path: fuzz_targets._hold(False, "planted"),
    }
    monkeypatch.setattr(fuzz_run, "CASE_SECONDS", 3.0)
    for wanted, plant in plants.items():
        monkeypatch.setitem(fuzz_targets.TARGETS, "tags", plant)
        monkeypatch.setattr(fuzz_run, "SELDOM", {name: 10**6 for name in TARGETS if name != "tags"})
        [case] = run_cases(SEED, [3], corpus)
        assert [one.result for one in case.bugs if one.target == "tags"] == [wanted]


# What was found once


def _syncsafe(value: int) -> bytes:
    return bytes(value >> shift & 0x7F for shift in (21, 14, 7, 0))


def _id3(name: bytes, content: bytes, flags: int = 0) -> bytes:
    frame = name + _syncsafe(len(content)) + bytes([0, flags]) + content
    return b"ID3\4\0\0" + _syncsafe(len(frame)) + frame


def packed_frame(folder: Path) -> bytes:
    bomb = zlib.compress(bytes(200 << 20), 9)
    return _id3(b"TCON", bytes(4) + bomb, 9) + make_audio(folder, "mp3", seconds=0.5).read_bytes()


def text_of_zeros(folder: Path) -> bytes:
    text = b"\0" * (1 << 20)
    return _id3(b"TIT2", text) + make_audio(folder, "mp3", seconds=0.5).read_bytes()


def packed_frame_that_only_mutagen_sees(folder: Path) -> bytes:
    """Its size is beyond the tag: we see no frame there, mutagen reads to the end."""
    bomb = bytes(4) + zlib.compress(bytes(4 << 20), 9)
    tag = bytearray(_id3(b"TMOO", bomb, 9))
    tag[14:18] = _syncsafe(len(bomb) + 100)
    return bytes(tag) + make_audio(folder, "tta", seconds=0.5).read_bytes()


def empty_id3_tags(folder: Path) -> bytes:
    return (b"ID3\4\0\0" + bytes(4)) * 300_000 + make_audio(folder, "mp3", seconds=0.5).read_bytes()


def id3v1_tags(folder: Path) -> bytes:
    return make_audio(folder, "mp3", seconds=0.5).read_bytes() + (b"TAG" + bytes(125)) * 50_000


def nested_atoms(folder: Path) -> bytes:
    data = make_audio(folder, "m4a-aac", seconds=0.5).read_bytes()
    nested = b""
    for _ in range(3000):
        nested = struct.pack(">I4s", 8 + len(nested), b"moov") + nested
    return data + nested


def comments_on_tiny_pages(folder: Path) -> bytes:
    """A comment packet of 8 MB on 32,000 pages: to join it page by page would copy 128 GB."""
    data = make_audio(folder, "ogg-vorbis", seconds=0.5).read_bytes()
    first = data[: data.index(b"OggS", 4)]
    page = b"OggS" + bytes([0, 1]) + bytes(8) + first[14:18] + bytes(8) + b"\1\xff" + bytes(255)
    return first + page[:5] + b"\0" + page[6:] + page * 32_000


def many_comments(folder: Path) -> bytes:
    data = make_audio(folder, "flac", seconds=0.5).read_bytes()
    count = 4_000_000
    block = struct.pack("<II", 0, count) + bytes(4 * count)
    head = data[:4] + bytes([data[4] & 0x7F]) + data[5:42]
    return head + b"\4" + len(block).to_bytes(3, "big") + block + b"\x81\0\0\0" + data[-2000:]


def endless_asf_header(folder: Path) -> bytes:
    """Case 11:3136: where its data begin, no file reaches."""
    data = bytearray(make_audio(folder, "wma", seconds=0.5).read_bytes())
    data[16:24] = b"\xff" * 8
    return bytes(data)


REFUSED = {
    "packed.mp3": packed_frame,
    "zeros.mp3": text_of_zeros,
    "tags.mp3": empty_id3_tags,
    "endless.wma": endless_asf_header,
    "pages.ogg": comments_on_tiny_pages,
    "comments.flac": many_comments,
}
TAKEN = {
    "hidden.tta": packed_frame_that_only_mutagen_sees,
    "id3v1.mp3": id3v1_tags,
    "atoms.m4a": nested_atoms,
}


@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_what_was_found_once_is_quickly_done(tmp_path: Path, name: str) -> None:
    data = {**REFUSED, **TAKEN}[name](tmp_path)
    folder = tmp_path / "alone"
    folder.mkdir()
    path = folder / name
    path.write_bytes(data)
    for target in TARGETS:
        one = run_target(target, path)
        assert not one.is_bug, one.detail
        assert one.seconds < LONGEST * (1 + len(data) / (4 << 20))
        if target == "tags":
            assert one.result == ("tags-unsupported" if name in REFUSED else "ok")


def test_moov_in_moov_without_end_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(nested_atoms(tmp_path))
    with pytest.raises(TagsUnsupported, match=r"without end|mutagen"):
        tags.prepare_write(path, ("Jazz",), TagOptions())


def test_a_dsf_of_a_thousand_channels_divides_nothing_by_zero(tmp_path: Path) -> None:
    """Case 7:5737: FFmpeg's seek died of SIGFPE."""
    path = make_audio(tmp_path, "dsf", seconds=0.5, rate=4000)
    data = bytearray(path.read_bytes())
    data[52:56] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    with Decoders(1) as decoders, pytest.raises(NotAudio) as caught:
        decoders.decode(path, Excerpt(30))
    assert not isinstance(caught.value, Harmful)
    data[52:56], data[56:60] = (2).to_bytes(4, "little"), bytes(4)  # 0 Hz
    path.write_bytes(data)
    with pytest.raises(NotAudio):
        audio.audio_seconds(path)


def test_checksums_are_mended(tmp_path: Path) -> None:
    path = make_audio(tmp_path, "ogg-vorbis", seconds=0.5)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[22] ^= 1
    mend_checksums(broken)
    assert bytes(broken) == whole
