"""The same recording in several files: found in whatever format, and nothing else taken for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from audio_files import encode, make_audio

from reclass_plex.audio import audio_seconds, decode_excerpt
from reclass_plex.config import Config
from reclass_plex.duplicates import MOST_BITS, find_duplicates
from reclass_plex.ensemble import Ensemble
from reclass_plex.files import AUDIO_SUFFIXES, find_audio_files
from reclass_plex.fingerprint import differing_bits, take_fingerprint
from reclass_plex.pipeline import tag_files
from reclass_plex.records import Excerpt, Waveform
from reclass_plex.similarity import SimilarMusic
from reclass_plex.store import Store

DEMO = Path(__file__).parent.parent / "demo"
CITY, ROCK, PIXEL = "HSR - City.ogg", "HSR - Rock.mp3", "Muldjord - Mutilated Mime.mp3"
EXCERPT = Excerpt(30.0)
SITE = Path(__file__).parent / "hostile_site"  # names that make their reader fall


def encoded(source: Path, target: Path, muxer: str, encoder: str, *, cut: float = 0.0) -> Path:
    waveform = decode_excerpt(source, Excerpt(None))
    samples = waveform.samples[None, round(cut * waveform.rate) :]
    encode(target, muxer, encoder, np.clip(samples, -1, 1 - 1 / 32768), waveform.rate)
    return target


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """City and Rock in several formats (64 kbit/s where there is a loss), and another track."""
    folder = tmp_path_factory.mktemp("duplicates") / "music"
    folder.mkdir()
    for name in (CITY, ROCK, PIXEL):
        shutil.copy(DEMO / name, folder)
    encoded(folder / CITY, folder / "city.mp3", "mp3", "libmp3lame")
    encoded(folder / CITY, folder / "city.flac", "flac", "flac", cut=0.4)
    encoded(folder / ROCK, folder / "rock.m4a", "ipod", "aac")
    shutil.copy(folder / "rock.m4a", folder / "rock again.m4a")
    os.link(folder / PIXEL, folder / "one file of two names.mp3")
    yield folder


@pytest.fixture(scope="module")
def store(music: Path) -> Iterator[Store]:
    with Store.open(music.parent / "store.sqlite") as opened:
        found = find_audio_files([music], AUDIO_SUFFIXES, lambda leftover: None)
        ensemble = Ensemble.from_config(Config())
        results = tag_files(
            found, store=opened, ensemble=ensemble, config=Config(), run_id=None, workers=2
        )
        assert all(result.error is None for result in results)
        yield opened


def test_formats_cuts_and_copies_are_found(store: Store, music: Path) -> None:
    compared: list[int] = []
    groups = find_duplicates(SimilarMusic.open(store), progress=compared.append)
    names = [[file.path.name for file in group.files] for group in groups]
    assert names == [[CITY, "city.flac", "city.mp3"], [ROCK, "rock again.m4a", "rock.m4a"]]
    city, rock = groups
    assert 0 < city.bits < MOST_BITS / 2
    assert 0 < rock.bits < MOST_BITS / 2
    assert not city.identical
    assert [file.seconds for file in city.files] == pytest.approx([25, 24.6, 25.1], abs=0.1)
    assert city.files[2].bytes == (music / "city.mp3").stat().st_size
    assert sum(compared) >= 3


def test_one_that_brings_its_reader_down_is_left_out(
    store: Store, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{SITE}{os.pathsep}{SITE.parent.parent}")
    (known,) = store.known_files([music / "city.mp3"], "")
    crash = (music / "city.mp3").rename(music / "crash.mp3")
    try:
        store.save_track(crash, known.size, known.mtime_ns, digest=known.digest)
        groups = find_duplicates(SimilarMusic.open(store))
    finally:
        crash.rename(music / "city.mp3")
    names = [[file.path.name for file in group.files] for group in groups]
    assert names == [[CITY, "city.flac"], [ROCK, "rock again.m4a", "rock.m4a"]]


def test_what_is_gone_or_damaged_is_no_duplicate(store: Store, music: Path) -> None:
    hidden = music.parent / "hidden"
    (music / "city.mp3").rename(hidden)
    broken = (music / "city.flac").read_bytes()
    (music / "city.flac").write_bytes(b"junk" * 99)
    try:
        groups = find_duplicates(SimilarMusic.open(store))
    finally:
        hidden.rename(music / "city.mp3")
        (music / "city.flac").write_bytes(broken)
    names = [[file.path.name for file in group.files] for group in groups]
    assert names == [[ROCK, "rock again.m4a", "rock.m4a"]]
    (same,) = [g for g in find_duplicates(SimilarMusic.open(store), 1.01) if g.files]
    assert same.identical  # copies are told by their audio alone
    assert [file.path.name for file in same.files] == ["rock again.m4a", "rock.m4a"]


def test_fingerprints_tell_every_other_recording(music: Path) -> None:
    demo = sorted(path for path in DEMO.iterdir() if path.suffix in AUDIO_SUFFIXES)
    prints = {path: take_fingerprint(decode_excerpt(path, EXCERPT)) for path in demo}
    assert len(prints) == 10
    for one, other in combinations(prints.values(), 2):
        assert differing_bits(one, other) > 0.4
    for one in prints.values():
        assert differing_bits(one, one) == 0
    whole = decode_excerpt(DEMO / CITY, EXCERPT)
    for late in (0.2, 1.0, 2.4):  # seconds of silence before, or taken away
        cut = Waveform(whole.samples[round(late * whole.rate) :], whole.rate, 0.0, 25 - late)
        other = take_fingerprint(cut)
        assert differing_bits(prints[DEMO / CITY], other) < MOST_BITS / 2
        assert differing_bits(other, prints[DEMO / CITY]) < MOST_BITS / 2
    quiet = Waveform(whole.samples * 0.05, whole.rate, 0.0, 25)
    assert differing_bits(prints[DEMO / CITY], take_fingerprint(quiet)) < 0.05


def test_silence_and_snippets_are_like_nothing(tmp_path: Path) -> None:
    music = decode_excerpt(DEMO / CITY, Excerpt(1.2))
    short = take_fingerprint(music)
    assert len(short.bits) > 10
    empty = [
        take_fingerprint(Waveform(samples.astype(np.float32), 44100, 0.0, 1.0))
        for samples in (np.zeros(99999), np.zeros(0), np.full(99999, 1e-6), np.ones(5))
    ]
    for one in empty:
        assert len(one.bits) == 0
        assert differing_bits(one, one) == 0.5
    assert differing_bits(short, short) == 0.5  # too little to say so


@pytest.mark.parametrize("format_name", ["mp3", "flac", "opus", "wma", "m4a-aac", "wavpack"])
def test_the_length_of_a_file(tmp_path: Path, format_name: str) -> None:
    path = make_audio(tmp_path, format_name, seconds=3.0)
    assert audio_seconds(path) == pytest.approx(3.0, abs=0.15)
