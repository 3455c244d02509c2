"""Paths in both directions, and the votes of albums: pure functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclass_plex.config import PathMap
from reclass_plex.plex import (
    same_genres,
    to_local,
    to_plex,
    vote_genres,
)
from reclass_plex.records import GenreScore

MAPS = (
    PathMap(plex="/data/music", local="/mnt/nas/music"),
    PathMap(plex="/data/music/classical", local="/mnt/classical"),
    PathMap(plex="D:\\Music", local="/mnt/windows"),
    PathMap(plex="\\\\nas\\music", local="/mnt/unc"),
)


@pytest.mark.parametrize(
    ("plex_path", "local"),
    [
        ("/data/music/A/b.mp3", "/mnt/nas/music/A/b.mp3"),
        ("/data/music", "/mnt/nas/music"),
        ("/data/music//A/./b.mp3", "/mnt/nas/music/A/b.mp3"),
        ("/data/music/classical/c.flac", "/mnt/classical/c.flac"),
        ("/data/music/classical2/c.flac", "/mnt/nas/music/classical2/c.flac"),
        ("/data/music2/A/b.mp3", "/data/music2/A/b.mp3"),
        ("/other/b.mp3", "/other/b.mp3"),
        ("/data/music/AC\\DC/t.mp3", "/mnt/nas/music/AC\\DC/t.mp3"),
        ("D:\\Music\\A\\b.mp3", "/mnt/windows/A/b.mp3"),
        ("d:/music/A/b.mp3", "/mnt/windows/A/b.mp3"),
        ("D:\\Music2\\b.mp3", None),
        ("E:\\Music\\b.mp3", None),
        ("\\\\NAS\\Music\\A\\b.mp3", "/mnt/unc/A/b.mp3"),
        ("/data/music/../secret", None),
        ("relative/b.mp3", None),
        ("", None),
    ],
)
def test_plex_paths_become_local(plex_path: str, local: str | None) -> None:
    assert to_local(plex_path, MAPS) == (None if local is None else Path(local))


@pytest.mark.parametrize(
    ("local", "plex_path"),
    [
        ("/mnt/nas/music/A/b.mp3", "/data/music/A/b.mp3"),
        ("/mnt/classical/c.flac", "/data/music/classical/c.flac"),
        ("/mnt/nas/music2/b.mp3", "/mnt/nas/music2/b.mp3"),
        ("/mnt/windows/A/b.mp3", "D:\\Music\\A\\b.mp3"),
        ("/mnt/unc/A/b.mp3", "\\\\nas\\music\\A\\b.mp3"),
        ("/other/b.mp3", "/other/b.mp3"),
        # These would be another file there, or none:
        ("/mnt/nas/music/classical/c.flac", "/mnt/nas/music/classical/c.flac"),
        ("/mnt/windows/AC\\DC/t.mp3", "/mnt/windows/AC\\DC/t.mp3"),
        ("/data/music/b.mp3", None),
        ("/mnt/nas/music/../b.mp3", None),
        ("relative/b.mp3", None),
    ],
)
def test_local_paths_become_plexs(local: str, plex_path: str | None) -> None:
    assert to_plex(Path(local), MAPS) == plex_path


_NAMES = st.sampled_from(["a", "b", "A", "ab", "a b", "c\\d", "C:", "é"])
_LOCAL = st.lists(_NAMES, max_size=4).map(lambda names: "/" + "/".join(names))
_PLEX = _LOCAL | st.lists(st.sampled_from(["a", "b", "A"]), max_size=3).map(
    lambda names: "D:\\" + "\\".join(names)
)
_MAPS = st.lists(st.builds(PathMap, plex=_PLEX, local=_LOCAL), max_size=4)


@given(local=_LOCAL, maps=_MAPS)
def test_a_mapped_path_leads_back_to_the_same_file(local: str, maps: list[PathMap]) -> None:
    plex_path = to_plex(Path(local), maps)
    assert plex_path is None or to_local(plex_path, maps) == Path(local)


@given(
    below=st.lists(st.sampled_from(["a", "b", "ab", "é x"]), max_size=3),
    one=st.builds(PathMap, plex=_PLEX, local=_LOCAL),
)
def test_one_map_serves_both_ways(below: list[str], one: PathMap) -> None:
    local = Path(one.local, *below)
    plex_path = to_plex(local, [one])
    assert plex_path is not None
    assert to_local(plex_path, [one]) == local
    assert plex_path.startswith(one.plex.rstrip("\\/"))


# Votes


def scores(**confidences: float) -> list[GenreScore]:
    return [GenreScore(name, confidence) for name, confidence in confidences.items()]


@pytest.mark.parametrize(
    ("tracks", "at_most", "expected"),
    [
        ([], 1, ()),
        ([[]], 1, ()),
        ([scores(Rock=0.6), scores(Rock=0.6), scores(Jazz=0.9)], 1, ("Rock",)),
        ([scores(Rock=0.4), scores(Rock=0.4), scores(Jazz=0.9)], 1, ("Jazz",)),
        ([scores(Rock=0.8), scores(Rock=0.8), scores(Jazz=0.9)], 2, ("Rock", "Jazz")),
        ([scores(Rock=0.8)] * 9 + [scores(Jazz=0.9)], 2, ("Rock",)),
        ([scores(Rock=0.5, Blues=0.4), scores(Jazz=0.5, Blues=0.4)], 1, ("Blues",)),
        ([scores(Rock=0.5), scores(Jazz=0.5)], 1, ("Jazz",)),  # no order of tracks matters
        ([scores(Jazz=0.5), scores(Rock=0.5)], 1, ("Jazz",)),
    ],
)
def test_an_albums_genres_are_voted(
    tracks: list[list[GenreScore]], at_most: int, expected: tuple[str, ...]
) -> None:
    assert vote_genres(tracks, at_most) == expected


def test_genres_are_the_same_in_any_case_and_order() -> None:
    assert same_genres(["rock", "Bebop "], ["Bebop", "Rock"])
    assert same_genres(["Cafe\u0301"], ["Caf\u00e9"])
    assert not same_genres(["Rock"], ["Rock", "Jazz"])
    assert not same_genres([], ["Rock"])
