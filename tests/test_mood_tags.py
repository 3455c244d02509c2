"""Moods in real files of every format: written beside the genre or alone, by mutagen's witness."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mutagen
import pytest
from audio_files import FORMATS, make_audio
from mutagen import apev2, asf, flac, id3, mp4

from reclass_plex.audio import audio_digest
from reclass_plex.config import TagOptions
from reclass_plex.errors import EditedSince, FileError
from reclass_plex.files import is_leftover
from reclass_plex.tags import (
    PreparedWrite,
    prepare_write,
    read_tags,
    restore_bytes,
    restore_names,
)

OPTIONS = TagOptions()
MOODS = ("Happy", "Méllow 音")
KEYS = {"tmoo", "txxx:mood", "mood", "----:com.apple.itunes:mood", "wm/mood"}
PICARD = {  # the key that mutagen shows, by our name of the tag's format
    "id3v2.4": "TMOO",
    "id3v2.3": "TXXX:MOOD",
    "id3v2.2": "TXXX:MOOD",
    "vorbis": "mood",
    "mp4": "----:com.apple.iTunes:MOOD",
    "asf": "WM/Mood",
    "apev2": "Mood",
}


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short file of each format, without tags."""
    folder = tmp_path_factory.mktemp("sounds")
    return {name: make_audio(folder, name, seconds=0.3) for name in FORMATS}


@pytest.fixture
def song(tmp_path: Path, sounds: dict[str, Path]) -> Iterator[Callable[[str], Path]]:
    """Make a file of a format; no temporary file may stay beside it."""

    def make(name: str) -> Path:
        path = tmp_path / f"song{sounds[name].suffix}"
        path.write_bytes(sounds[name].read_bytes())
        return path

    yield make
    assert not [path for path in tmp_path.rglob("*") if is_leftover(path.name)]


def tags_of(path: Path) -> list[tuple[str, list[str]]]:
    """All tags that mutagen reads, in order where that matters."""
    tags = mutagen.File(path).tags
    if tags is None:
        return []
    if isinstance(tags, list):
        return [(key, [str(value)]) for key, value in tags]
    return sorted((key, [as_text(one) for one in listed(value)]) for key, value in tags.items())


def listed(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def moods_of(path: Path) -> list[str]:
    return [text for key, texts in tags_of(path) if is_mood(path, key) for text in texts]


def without_moods(path: Path) -> list[tuple[str, list[str]]]:
    return [(key, texts) for key, texts in tags_of(path) if not is_mood(path, key)]


def is_mood(path: Path, key: str) -> bool:
    """ASF's is WM/Mood; a plain Mood there is anybody's."""
    return key.lower() in KEYS and (path.suffix, key.lower()) != (".wma", "mood")


def write(
    path: Path,
    *moods: str,
    genres: tuple[str, ...] | None = None,
    options: TagOptions = OPTIONS,
) -> PreparedWrite:
    wanted = read_tags(path, options).genres if genres is None else genres
    prepared = prepare_write(path, wanted, options, moods=moods)
    assert prepared is not None
    prepared.commit()
    return prepared


def undo(prepared: PreparedWrite) -> None:
    restore_bytes(
        prepared.path,
        prepared.delta,
        prepared.before_hash,
        prepared.after_hash,
        mtime_ns=prepared.before_stamp.mtime_ns,
    )


def describe(path: Path) -> None:
    """Give `path` a genre, a title and more, but no mood."""
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    tags = file.tags
    if isinstance(tags, id3.ID3):
        for frame in (id3.TIT2(3, ["Títle"]), id3.TCON(0, ["Blues", "Swing"])):
            tags.add(frame)
        tags.add(id3.TXXX(1, "MOODY", ["not a mood"]))
        tags.add(id3.TXXX(3, "", ["nor this"]))
        tags.add(id3.PRIV("owner", b"\0\xff\xe0 data"))
    elif isinstance(tags, mp4.MP4Tags):
        tags.update({"\xa9nam": ["Títle"], "\xa9gen": ["Blues", "Swing"]})
        tags["----:com.apple.iTunes:MOODY"] = [mp4.MP4FreeForm(b"not a mood")]
        tags["----:org.example:MOOD"] = [mp4.MP4FreeForm(b"nor this")]
    elif isinstance(tags, asf.ASFTags):
        tags["Title"] = ["Títle"]
        tags["WM/Genre"] = ["Blues", "Swing"]
        tags["Mood"] = [asf.ASFDWordAttribute(7)]
    elif isinstance(tags, apev2.APEv2):
        tags.update({"Title": "Títle", "Genre": ["Blues", "Swing"], "Moody": "no"})
    else:
        tags.extend([("TITLE", "Títle"), ("GENRE", "Blues"), ("MOODY", "no"), ("GENRE", "Swing")])
    file.save()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("described", [True, False])
def test_moods_are_written_where_none_are_and_every_byte_comes_back(
    name: str, described: bool, song: Callable[[str], Path]
) -> None:
    path = song(name)
    if described:
        describe(path)
    before, audio, others = path.read_bytes(), audio_digest(path), without_moods(path)
    tags = read_tags(path)
    assert tags.moods == () == tuple(moods_of(path))
    written = write(path, *MOODS)
    assert (written.before, written.after) == (tags.genres, tags.genres)
    assert (written.moods_before, written.moods_after) == ((), MOODS)
    assert read_tags(path).moods == MOODS
    assert read_tags(path).genres == tags.genres
    assert moods_of(path) == list(MOODS)
    assert PICARD[written.format] in dict(tags_of(path)) or name.startswith(("ogg", "opus", "flac"))
    assert without_moods(path) == others
    assert audio_digest(path) == audio
    assert prepare_write(path, tags.genres, OPTIONS, moods=MOODS) is None
    undo(written)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", FORMATS)
def test_genre_and_moods_come_in_one_write_and_one_undo(
    name: str, song: Callable[[str], Path]
) -> None:
    path = song(name)
    describe(path)
    before = path.read_bytes()
    written = write(path, *MOODS, genres=("Jazz",))
    assert (read_tags(path).genres, read_tags(path).moods) == (("Jazz",), MOODS)
    assert moods_of(path) == list(MOODS)
    undo(written)
    assert path.read_bytes() == before
    write(path, "Sad")
    write(path, "Party", genres=())
    assert (read_tags(path).genres, moods_of(path)) == ((), ["Party"])
    write(path, genres=("Blues", "Swing"))
    assert (read_tags(path).genres, moods_of(path)) == (("Blues", "Swing"), [])


@pytest.mark.parametrize("name", FORMATS)
def test_a_genre_is_written_beside_moods_that_stay(name: str, song: Callable[[str], Path]) -> None:
    path = song(name)
    write(path, *MOODS)
    with_moods = path.read_bytes()
    prepared = prepare_write(path, ("Rock",), OPTIONS)
    assert prepared is not None
    assert prepared.moods_before == prepared.moods_after == MOODS
    prepared.commit()
    assert (read_tags(path).genres, moods_of(path)) == (("Rock",), list(MOODS))
    undo(prepared)
    assert path.read_bytes() == with_moods


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_restored_exactly(
    name: str, song: Callable[[str], Path]
) -> None:
    path = song(name)
    write(path, "Blues", genres=("Rock",))
    sound = path.read_bytes()
    text = max(sound.find(b"Blues"), sound.find("Blues".encode("utf-16-le")))
    mix = random.Random(name)
    for _ in range(12):
        damaged = bytearray(sound)
        for _ in range(mix.choice((1, 1, 3))):
            place = text + mix.randrange(-60, 60)
            damaged[max(0, min(place, len(sound) - 1))] = mix.choice((0, 1, 128, 255))
        path.write_bytes(damaged)
        try:
            prepared = prepare_write(path, read_tags(path).genres, OPTIONS, moods=("Sad",))
        except FileError as error:
            assert error.path == path
        else:
            assert prepared is not None
            prepared.commit()
            assert read_tags(path).moods == ("Sad",)
            undo(prepared)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize("name", ["mp3", "flac", "m4a-aac", "wma", "ape"])
def test_several_moods_are_joined_where_that_is_wanted(
    name: str, song: Callable[[str], Path]
) -> None:
    options = TagOptions(
        join={"id3v2.4": " / ", "vorbis": "; ", "mp4": ", ", "asf": "|", "apev2": " & "}
    )
    path = song(name)
    written = write(path, "Happy", "Sad", options=options)
    (separator,) = (text for name, text in options.join.items() if name == written.format)
    assert moods_of(path) == [f"Happy{separator}Sad"]
    assert read_tags(path, options).moods == ("Happy", "Sad")


# ID3


def id3_tag(version: int, *frames: tuple[bytes, bytes], padding: int = 64) -> bytes:
    """Build a tag by hand."""
    body = b""
    for name, data in frames:
        width = 3 if version == 2 else 4
        body += name + len(data).to_bytes(width, "big") + bytes(0 if version == 2 else 2) + data
    body += bytes(padding)
    assert len(body) < 1 << 14
    return b"ID3" + bytes([version, 0, 0, 0, 0, len(body) >> 7, len(body) & 0x7F]) + body


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("moods", [("Happy", "Sad"), ("Méllow",), ("音楽", "Gut")])
def test_older_id3_versions_have_a_described_text(
    version: int, moods: tuple[str, ...], song: Callable[[str], Path]
) -> None:
    path = song("mp3")
    names = (b"TT2", b"TCO", b"TXX") if version == 2 else (b"TIT2", b"TCON", b"TXXX")
    other = b"\1" + "\ufeffMOODs\0\ufeffno".encode("utf-16-le")
    frames = zip(names, (b"\0Title", b"\0Rock", other), strict=True)
    tag = id3_tag(version, *frames)
    path.write_bytes(tag + path.read_bytes())
    before = path.read_bytes()
    written = write(path, *moods)
    assert written.format == f"id3v2.{version}"
    assert moods_of(path) == ["; ".join(moods)]
    assert read_tags(path).moods == moods
    assert read_tags(path).genres == ("Rock",)
    assert other in path.read_bytes()
    assert len(path.read_bytes()) == len(before)  # the padding had room
    undo(written)
    assert path.read_bytes() == before


def test_a_mood_in_either_id3_frame_is_the_users(song: Callable[[str], Path]) -> None:
    for frame in (id3.TMOO(3, ["calm"]), id3.TXXX(1, "Mood", ["calm"])):
        path = song("mp3")
        file = mutagen.File(path)
        file.add_tags()
        file.tags.add(frame)
        file.save()
        assert read_tags(path).moods == ("calm",)


def test_an_encrypted_text_is_no_mood_and_an_encrypted_mood_is_one(
    song: Callable[[str], Path],
) -> None:
    def encrypted(name: bytes) -> bytes:
        data = b"\x07\0MOOD\0x"
        return name + len(data).to_bytes(4, "big") + b"\0\x04" + data

    path = song("mp3")
    audio = path.read_bytes()
    for name, moods in ((b"TXXX", ()), (b"TMOO", ("\ufffd",))):
        body = encrypted(name) + bytes(64)
        path.write_bytes(b"ID3\4\0\0\0\0\0" + bytes([len(body)]) + body + audio)
        assert read_tags(path).moods == moods
        written = prepare_write(path, ("Rock",), OPTIONS)
        assert written is not None
        written.commit()
        assert encrypted(name) in path.read_bytes()


def test_an_id3v1_genre_is_kept_when_only_moods_are_written(song: Callable[[str], Path]) -> None:
    path = song("mp3")
    tag = b"TAG" + b"Title".ljust(30, b"\0") + bytes(93) + b"\0\0" + b"\x11"[:1]
    path.write_bytes(path.read_bytes() + tag.ljust(128, b"\0")[:127] + bytes([17]))
    before = path.read_bytes()
    assert read_tags(path).genres == ("Rock",)
    written = write(path, "Sad")
    tags = read_tags(path)
    assert (tags.genres, tags.moods, tags.title) == (("Rock",), ("Sad",), "Title")
    assert path.read_bytes().endswith(before[-128:])
    undo(written)
    assert path.read_bytes() == before


def test_a_second_tag_with_a_mood_is_kept_in_step(song: Callable[[str], Path]) -> None:
    path = song("mp3")
    second = apev2.APEv2()
    second.update({"Mood": "calm", "Genre": "Rock"})
    second.save(path)
    first = id3.ID3()
    first.add(id3.TIT2(3, ["Title"]))
    first.save(path)
    assert (read_tags(path).genres, read_tags(path).moods) == (("Rock",), ("calm",))
    before = path.read_bytes()
    written = write(path, "Sad", genres=("Rock",))
    assert str(apev2.APEv2(path)["Mood"]) == "Sad"
    assert id3.ID3(path)["TMOO"].text == ["Sad"]
    assert str(apev2.APEv2(path)["Genre"]) == "Rock"
    undo(written)
    assert path.read_bytes() == before


# What is no text, and what the user did since


def test_a_mood_that_is_no_text_counts_as_the_users(song: Callable[[str], Path]) -> None:
    path = song("ape")
    tags = apev2.APEv2()
    tags["MOOD"] = apev2.APEValue(b"\xff\x01", apev2.BINARY)
    tags.save(path)
    assert read_tags(path).moods != ()

    path = song("m4a-aac")
    file = mp4.MP4(path)
    file["----:com.apple.iTunes:Mood"] = [mp4.MP4FreeForm(struct.pack(">I", 7), 21)]
    file.save()
    assert read_tags(path).moods != ()

    path = song("wma")
    wma = asf.ASF(path)
    wma["WM/Mood"] = [asf.ASFDWordAttribute(7)]
    wma.save()
    assert read_tags(path).moods == ("\ufffd",)


def test_after_the_user_edited_other_tags_genre_and_moods_alone_are_restored(
    song: Callable[[str], Path],
) -> None:
    path = song("flac")
    describe(path)
    written = write(path, *MOODS, genres=("Jazz",))
    file = flac.FLAC(path)
    file["title"] = ["By the user"]
    file.save()
    with pytest.raises(EditedSince):
        undo(written)
    _, prepared = restore_names(path, written.before, written.after, OPTIONS, moods=MOODS)
    assert prepared is not None
    prepared.commit()
    tags = read_tags(path)
    assert (tags.genres, tags.moods, tags.title) == (("Blues", "Swing"), (), "By the user")


def test_what_the_user_chose_since_stays_and_the_rest_is_taken_back(
    song: Callable[[str], Path],
) -> None:
    path = song("flac")
    for genre, mood, expected in (
        ("Shoegaze", "Happy", (("Shoegaze",), ())),
        ("Jazz", "gloomy", ((), ("gloomy",))),
        ("Shoegaze", "gloomy", None),
    ):
        path = song("flac")
        written = write(path, "Happy", genres=("Jazz",))
        file = flac.FLAC(path)
        file["genre"], file["mood"] = [genre], [mood]
        file["title"] = ["edited"]
        file.save()
        names = (path, written.before, written.after, OPTIONS)
        if expected is None:
            with pytest.raises(EditedSince, match="another genre since: Shoegaze"):
                restore_names(*names, moods=("Happy",))
            continue
        _, prepared = restore_names(*names, moods=("Happy",))
        assert prepared is not None
        prepared.commit()
        assert (read_tags(path).genres, read_tags(path).moods) == expected


def test_an_undo_of_a_genre_alone_leaves_all_moods(song: Callable[[str], Path]) -> None:
    path = song("flac")
    written = write(path, genres=("Jazz",)) if read_tags(path).genres else None
    assert written is None
    prepared = prepare_write(path, ("Jazz",), OPTIONS)
    assert prepared is not None
    prepared.commit()
    file = flac.FLAC(path)
    file["mood"] = ["gloomy"]
    file.save()
    _, back = restore_names(path, (), ("Jazz",), OPTIONS)
    assert back is not None
    back.commit()
    assert (read_tags(path).genres, read_tags(path).moods) == ((), ("gloomy",))
