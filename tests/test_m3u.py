"""Playlists as files: what players read, and nothing replaced that is no playlist."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import av
import pytest
from audio_files import make_audio

from reclass_plex.errors import ConfigError, ReclassError, Unreadable
from reclass_plex.m3u import Entry, is_replaceable, write_m3u


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")


def test_relative_and_absolute(tmp_path: Path) -> None:
    music = tmp_path / "Müsic"
    entries = [Entry(music / "A/Björk – 1.flac", 241.6), Entry(tmp_path / "lists/#1 here.mp3")]
    path = tmp_path / "lists" / "mine.m3u8"
    path.parent.mkdir()
    assert write_m3u(path, entries, title="Mine\nand yours").count == 2
    assert lines(path) == [
        *("#EXTM3U", "#EXTENC:UTF-8", "#PLAYLIST:Mine\\nand yours"),
        *("#EXTINF:242,Björk – 1", "../Müsic/A/Björk – 1.flac"),
        *("#EXTINF:-1,#1 here", "./#1 here.mp3", ""),
    ]
    write_m3u(path, entries, relative=False)
    assert lines(path)[3] == os.fspath(entries[0].path)
    assert os.listdir(path.parent) == ["mine.m3u8"]


@pytest.mark.parametrize(
    "name", ["a\nb.mp3", "a\r.mp3", "a\u2028b.mp3", "a\x85b.mp3", os.fsdecode(b"a\xff.mp3")]
)
def test_a_name_that_no_line_can_hold_is_left_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.m3u"
    done = write_m3u(path, [Entry(tmp_path / name), Entry(tmp_path / "good.mp3")])
    assert (done.count, [error.path.name for error in done.left_out]) == (1, [name])
    assert lines(path)[2:] == ["#EXTINF:-1,good", "good.mp3", ""]


def test_what_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.m3u8"
    assert is_replaceable(path)
    for content in (b"", b"#EXTM3U\n", b"#EXTM3U\r\nx", b"#EXTM3U", b"\xef\xbb\xbf#EXTM3U\nx"):
        path.write_bytes(content)
        assert is_replaceable(path), content
    for content in (b"ID3\x04", b"#EXTM3UX\n", b"my thesis", b"#", b" #EXTM3U\n"):
        path.write_bytes(content)
        assert not is_replaceable(path), content
    for name in ("song.mp3", "x", "store.sqlite", ".m3u8"):
        with pytest.raises(ConfigError, match="ends in"):
            is_replaceable(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.m3u")
    (tmp_path / "folder.m3u").mkdir()
    for name in ("pipe.m3u", "folder.m3u"):
        with pytest.raises(Unreadable):
            is_replaceable(tmp_path / name)
        with pytest.raises(ReclassError):
            write_m3u(tmp_path / name, [])


def test_links_stay_and_so_does_the_mode(tmp_path: Path) -> None:
    real = tmp_path / "real" / "list.m3u8"
    real.parent.mkdir()
    real.write_text("#EXTM3U\n")
    real.chmod(0o640)
    link = tmp_path / "list.m3u8"
    link.symlink_to(real)
    write_m3u(link, [Entry(tmp_path / "song.mp3")])
    assert link.is_symlink()
    assert lines(real)[3] == "../song.mp3"  # from where it really lies
    assert real.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it first"):
        is_replaceable(tmp_path / "no such folder" / "x.m3u8")
    with pytest.raises(ReclassError):
        write_m3u(tmp_path / "no such folder" / "x.m3u8", [])
    path = tmp_path / "x.m3u8"
    path.write_text("#EXTM3U\nold.mp3\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # as if the disk were full
    try:
        with pytest.raises(ReclassError):
            write_m3u(path, [Entry(tmp_path / "a long name.mp3")] * 9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "#EXTM3U\nold.mp3\n"
    assert os.listdir(tmp_path) == ["x.m3u8"]


def test_ffmpeg_could_open_each_line(tmp_path: Path) -> None:
    """What a player does: each line that is no comment, from the playlist's folder."""
    names = ["plain", " leading", "#hash", "ünï", "a%20b?c", "trailing .x"]
    (tmp_path / "music").mkdir()
    made = [make_audio(tmp_path / "music", "wav", name=f"{n}.wav", seconds=0.1) for n in names]
    path = tmp_path / "music" / "all.m3u8"
    assert write_m3u(path, map(Entry, made)).left_out == ()
    shown = [line for line in lines(path) if line and not line.startswith("#")]
    assert len(shown) == len(names)
    for line, one in zip(shown, made, strict=True):
        assert line == line.strip()
        with av.open(os.fspath(path.parent / line)) as opened:
            assert opened.streams.audio[0].frames >= 0
        assert (path.parent / line).resolve() == one
