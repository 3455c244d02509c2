"""Plex over real HTTP: the stand-in server, plexapi unchanged, and everything we write."""

from __future__ import annotations

import email.parser
import email.policy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import plexapi.exceptions
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from plex_server import Item, Library, PlexStandIn, Reply
from plexapi.server import PlexServer

from reclass_plex.config import PathMap, PlexOptions
from reclass_plex.errors import ConfigError, PlexError, PlexUnauthorized, PlexUnreachable
from reclass_plex.plex import (
    EDIT_CHUNK,
    READ_CHUNK,
    EditOutcome,
    EditRecord,
    Plex,
    parse_version,
    same_genres,
    to_local,
    to_plex,
    vote_genres,
)
from reclass_plex.records import GenreScore

TRICKY = ("R&B", "Folk, World, & Country", "Drum/Bass", "100% Pop+", "Größe #1?", "a%2Cb", "J=z")


@pytest.fixture
def server() -> Iterator[PlexStandIn]:
    """A server that must not have been asked for anything that it does not know."""
    with PlexStandIn() as stand_in:
        yield stand_in
        assert stand_in.errors == []


@pytest.fixture
def library(server: PlexStandIn) -> Library:
    return server.add_library()


@pytest.fixture
def plex(server: PlexStandIn) -> Iterator[Plex]:
    with connect(server) as connected:
        yield connected


def connect(server: PlexStandIn, **options: Any) -> Plex:
    return Plex(PlexOptions(url=server.url, **options), server.token)


def add_album(
    server: PlexStandIn, library: Library, genres: tuple[str, ...] = ("Pop/Rock",), tracks: int = 5
) -> list[Item]:
    return [
        server.add_track(library, "Artist", "Album", f"Track {number}", genres=genres)
        for number in range(tracks)
    ]


def edit(plex: Plex, items: list[Item], *genres: str) -> tuple[EditRecord, ...]:
    """Write genres to items, and expect that all comes out right."""
    plan = plex.plan_edits({item.key: genres for item in items})
    assert plan.skipped == ()
    assert statuses(plex.apply_edits(plan.records)) == ["done"] * len(plan.records)
    return plan.records


def statuses(outcomes: tuple[EditOutcome, ...]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def wait_until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


# Connecting


def test_a_connection_says_which_server_it_is(server: PlexStandIn, plex: Plex) -> None:
    assert (plex.uuid, plex.name, plex.version) == (server.uuid, server.name, server.version)
    assert server.requests == 1


def test_a_wrong_token_needs_the_user_and_is_not_shown(server: PlexStandIn) -> None:
    options = PlexOptions(url=server.url)
    with pytest.raises(PlexUnauthorized, match=r"401.*sign in again") as caught:
        Plex(options, "a-wrong-token")
    assert "a-wrong-token" not in str(caught.value)
    assert not isinstance(caught.value, PlexUnreachable)
    for none in ("", " \n", "two words", "gr\u00f6\u00dfe"):
        with pytest.raises(PlexUnauthorized, match="no token"):
            Plex(options, none)
    with Plex(options, f"{server.token}\n") as plex:  # as files end
        assert plex.uuid == server.uuid


def test_a_token_that_is_revoked_later_is_told_apart(server: PlexStandIn, plex: Plex) -> None:
    server.token = "another"
    with pytest.raises(PlexUnauthorized):
        plex.list_libraries()


@pytest.mark.parametrize("url", [None, "http://.", "http://plex:port", "http://[1"])
def test_no_address_is_a_mistake_of_the_configuration(url: str | None) -> None:
    with pytest.raises(ConfigError, match=r"plex\.url"):
        Plex(PlexOptions(url=url), "token")


def test_a_closed_port_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        port = unused.getsockname()[1]
        with pytest.raises(PlexUnreachable, match="Connection refused"):
            Plex(PlexOptions(url=f"http://127.0.0.1:{port}"), "token")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("slow", "no answer in time"),
        ("failing", "503"),
        ("garbage", "not Plex"),
        ("down", "closed connection|reset|aborted"),
    ],
)
def test_trouble_is_unreachable_until_it_is_over(
    server: PlexStandIn, mode: Literal["slow", "failing", "garbage", "down"], message: str
) -> None:
    with connect(server, timeout_seconds=0.2) as plex:
        server.mode = mode
        with pytest.raises(PlexUnreachable, match=message):
            plex.list_libraries()
        with pytest.raises(PlexUnreachable):
            connect(server, timeout_seconds=0.2)
        server.mode = "ok"
        assert plex.list_libraries() == ()


def test_the_report_names_settings_that_bear_on_genres(server: PlexStandIn, plex: Plex) -> None:
    library = server.add_library("Tunes", "/data/tunes")
    library.preferences["respectTags"] = "1"
    texts = [line.text for line in plex.report()]
    assert {line.level for line in plex.report()} == {"ok"}
    assert any("/data/tunes" in text and "tv.plex.agents.music" in text for text in texts)
    assert "library Tunes: Prefer local metadata (respectTags) is on" in texts
    assert "library Tunes: Genres (genres) is 'Plex Music'" in texts


def test_the_report_warns_of_what_cannot_work() -> None:
    old = "1.32.8.7639-fb6452ebf"
    with PlexStandIn(version=old) as server, connect(server, libraries=("Tunes",)) as plex:
        lines = plex.report()
    assert [line.level for line in lines] == ["ok", "warning", "error", "error"]
    assert "1.40.0" in lines[1].text
    assert "Tunes" in lines[2].text


def test_only_the_named_libraries_are_listed(server: PlexStandIn) -> None:
    for title in ("Music", "Audiobooks", "Jazz"):
        server.add_library(title)
    with connect(server, libraries=("jazz", "Music")) as plex:
        assert [one.title for one in plex.list_libraries()] == ["Music", "Jazz"]


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("1.40.0.7775-456fbaf97", (1, 40, 0)),
        ("1.9.11", (1, 9, 11)),
        ("", ()),
    ],
)
def test_versions(version: str, numbers: tuple[int, ...]) -> None:
    assert parse_version(version) == numbers


# Path maps

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


# Reading


def test_a_listing_is_read_in_pages(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 95)
    monkeypatch.setattr("reclass_plex.plex.LIST_PAGE", 20)
    server.reset_counts()
    tracks = list(plex.list_tracks(library.key))
    assert server.requests == 5
    assert [track.rating_key for track in tracks] == sorted(
        item.key for item in library.items("track")
    )
    for track in tracks:
        item = server.items[track.rating_key]
        assert (track.title, track.paths) == (item.title, tuple(item.files))
        assert (track.album_key, track.artist_key) == (
            item.parent and item.parent.key,
            item.parent and item.parent.parent and item.parent.parent.key,
        )
        assert (track.library_key, track.added_at) == (library.key, item.added_at)
        assert (track.genres, track.locked) == (None, None)


def test_genres_and_locks_are_read_whole(server: PlexStandIn, library: Library, plex: Plex) -> None:
    """A listing shows two genres of each and no locks; what is believed must not be that."""
    first, second, third = add_album(server, library, ("Rock", "Blues", "Soul", "Funk"), 3)
    server.edit_by_user(second, TRICKY)
    third.genres, third.files = [], ["/music/a.flac", "/music/a.mp3"]
    tracks = {track.rating_key: track for track in plex.list_tracks(1, with_genres=True)}
    assert tracks[first.key].genres == ("Rock", "Blues", "Soul", "Funk")
    assert tracks[first.key].locked is False
    assert (tracks[second.key].genres, tracks[second.key].locked) == (TRICKY, True)
    assert (tracks[third.key].genres, tracks[third.key].locked) == ((), False)
    assert tracks[third.key].paths == ("/music/a.flac", "/music/a.mp3")


def test_items_that_are_gone_are_left_out(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    first, second = add_album(server, library, ("Rock",), 2)
    assert first.parent is not None
    server.remove(first)
    found = plex.read_items([first.key, second.key, first.parent.key, 99999])
    assert {key: item.kind for key, item in found.items()} == {
        second.key: "track",
        first.parent.key: "album",
    }
    assert plex.read_items([99999]) == {}
    assert plex.read_items([]) == {}


def test_recently_added_ends_where_the_known_begins(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 60)
    monkeypatch.setattr("reclass_plex.plex.RECENT_PAGE", 10)
    times = sorted((item.added_at for item in library.items("track")), reverse=True)
    server.reset_counts()
    recent = list(plex.recently_added(library.key, times[24] - 0.5))
    assert [track.added_at for track in recent] == times[:26]
    assert server.requests == 3
    assert list(plex.recently_added(library.key, times[0] + 1)) == []


def test_what_is_added_between_two_pages_comes_once(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 25)
    monkeypatch.setattr("reclass_plex.plex.RECENT_PAGE", 10)
    keys = []
    for track in plex.recently_added(library.key, 0):
        keys.append(track.rating_key)
        if len(keys) == 5:
            server.add_track(library, "New", "New", "New")
    assert len(keys) == len(set(keys)) == 25


def test_local_files_find_their_tracks(server: PlexStandIn) -> None:
    library = server.add_library(location="/data/music")
    server.populate(library, 30)
    wanted = list(library.items("track"))[7]
    accented = server.add_track(library, "Bjo\u0308rk", "Debut", "Come to Me")  # as macOS writes
    maps = (PathMap(plex="/data", local="/mnt/nas"),)
    path = Path("/mnt/nas" + wanted.files[0].removeprefix("/data"))
    other = Path("/mnt/nas/music/Bj\u00f6rk/Debut/Come to Me.flac")
    with connect(server, path_map=maps) as plex:
        found = plex.find_tracks(library.key, [path, other, Path("/mnt/nas/music/none.mp3")])
        assert {path: track.rating_key for path, track in found.items()} == {
            path: wanted.key,
            other: accented.key,
        }
        server.reset_counts()
        assert plex.find_tracks(library.key, []) == {}
        assert server.requests == 0


def test_the_newest_file_is_found_at_once(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reclass_plex.plex.LIST_PAGE", 10)
    server.populate(library, 100)
    new = server.add_track(library, "New", "New", "New")
    server.reset_counts()
    assert plex.find_tracks(library.key, [Path(new.files[0])])[Path(new.files[0])].rating_key
    assert server.requests == 1


def test_artist_album_and_track_expand_to_tracks(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    server.populate(library, 45)
    artist, other = library.items("artist")
    album = artist.children[1]
    keys = [[track.key for track in one.children] for one in artist.children]
    assert [track.rating_key for track in plex.expand(artist.key)] == [
        key for album_keys in keys for key in album_keys
    ]
    assert [track.rating_key for track in plex.expand(album.key)] == keys[1]
    (track,) = plex.expand(album.children[3].key)
    assert (track.rating_key, track.library_key) == (album.children[3].key, library.key)
    assert len(plex.expand(other.key)) == 5
    assert plex.expand(99999) == ()


def test_a_listing_that_breaks_off_is_an_error(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 30)
    monkeypatch.setattr("reclass_plex.plex.LIST_PAGE", 10)
    whole = server.answer

    def answer(*request: Any) -> Reply:
        status, body = whole(*request)
        return status, re.sub("<Track .*</Track>", "", body) if 'offset="20"' in body else body

    monkeypatch.setattr(server, "answer", answer)
    with pytest.raises(PlexUnreachable, match="20 of 30"):
        list(plex.list_tracks(library.key))


def test_a_library_that_is_gone_is_no_empty_one(server: PlexStandIn, plex: Plex) -> None:
    with pytest.raises(PlexError, match="404"):
        list(plex.list_tracks(7))


def test_an_empty_answer_is_no_empty_library(
    library: Library, server: PlexStandIn, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "answer", lambda *_: (200, ""))
    with pytest.raises(PlexUnreachable, match="not Plex's"):
        list(plex.list_tracks(library.key))


# Writing


@pytest.mark.parametrize("tag_edits", ["append", "replace"])
@pytest.mark.parametrize("one_removal", [False, True])
def test_genres_are_replaced_and_locked(
    server: PlexStandIn,
    library: Library,
    plex: Plex,
    tag_edits: Literal["append", "replace"],
    one_removal: bool,
) -> None:
    """Whatever the server makes of several tags in one edit of several items."""
    server.tag_edits, server.one_removal = tag_edits, one_removal
    tracks = add_album(server, library, tracks=8)
    for track, former in zip(
        tracks, ([], ["Pop"], ["Pop", "Rock"], [*TRICKY], ["Jazz"]), strict=False
    ):
        track.genres = former
    wanted: dict[int, tuple[str, ...]] = {track.key: ("Jazz", "Blues") for track in tracks[:5]}
    wanted |= {track.key: TRICKY for track in tracks[5:]}
    plan = plex.plan_edits(wanted)
    assert statuses(plex.apply_edits(plan.records)) == ["done"] * 8
    for track in tracks:
        assert set(track.genres) == set(wanted[track.key])
        assert track.locked == {"genre"}


def test_albums_and_artists_are_written_where_it_is_on(
    server: PlexStandIn, library: Library
) -> None:
    (track,) = add_album(server, library, tracks=1)
    album = track.parent
    assert album is not None and album.parent is not None
    wanted = {item.key: ["Jazz"] for item in (track, album, album.parent)}
    with connect(server) as plex:
        plan = plex.plan_edits(wanted)
        assert [record.kind for record in plan.records] == ["track", "album"]
        assert [(one.rating_key, one.reason) for one in plan.skipped] == [
            (album.parent.key, "plex.artists is off")
        ]
    with connect(server, tracks=False, albums=False, artists=True) as plex:
        plan = plex.plan_edits(wanted)
        assert [record.kind for record in plan.records] == ["artist"]
        assert statuses(plex.apply_edits(plan.records)) == ["done"]
    assert (track.genres, album.genres, album.parent.genres) == (["Pop/Rock"], [], ["Jazz"])


def test_an_old_server_is_not_sent_genres_of_tracks() -> None:
    with PlexStandIn(version="1.39.0.1") as server, connect(server) as plex:
        (track,) = add_album(server, server.add_library(), tracks=1)
        assert track.parent is not None
        plan = plex.plan_edits({track.key: ["Jazz"], track.parent.key: ["Jazz"]})
        assert [record.kind for record in plan.records] == ["album"]
        assert "1.40.0" in plan.skipped[0].reason
        assert statuses(plex.apply_edits(plan.records)) == ["done"]
        assert server.errors == []


def test_only_differences_are_written(server: PlexStandIn, library: Library, plex: Plex) -> None:
    tracks = add_album(server, library, ("jazz", "Blues"))
    server.reset_counts()
    plan = plex.plan_edits({track.key: ["Blues", "Jazz"] for track in tracks})
    assert (plan.records, plan.skipped) == ((), ())
    assert plex.apply_edits(plan.records) == ()
    assert server.requests == 1
    plan = plex.plan_edits({tracks[0].key: []})
    assert plan.skipped[0].reason == "there is no genre to write"


def test_what_is_locked_survives_a_refresh_and_the_rest_does_not(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    ours, loose = add_album(server, library, tracks=2)
    edit(plex, [ours], "Jazz")
    loose.genres = ["Jazz"]
    requests.get(
        f"{server.url}/library/sections/1/refresh?force=1",
        headers={"X-Plex-Token": server.token},
        timeout=5,
    )
    assert (ours.genres, loose.genres) == (["Jazz"], ["Pop/Rock"])


def test_what_the_user_locked_is_left_alone(server: PlexStandIn, library: Library) -> None:
    theirs, free = add_album(server, library, tracks=2)
    server.edit_by_user(theirs, ["Shoegaze"])
    wanted = {theirs.key: ["Rock"], free.key: ["Rock"]}
    with connect(server) as plex:
        plan = plex.plan_edits(wanted)
        assert [record.rating_key for record in plan.records] == [free.key]
        assert "locked" in plan.skipped[0].reason
        plex.apply_edits(plan.records)
    assert theirs.genres == ["Shoegaze"]
    with connect(server, overwrite_locked=True) as plex:
        plan = plex.plan_edits(wanted)
        assert [(one.rating_key, one.was_locked) for one in plan.records] == [(theirs.key, True)]
        plex.apply_edits(plan.records)
        assert theirs.genres == ["Rock"]
        assert statuses(plex.undo_edits(plan.records)) == ["done"]
    assert (theirs.genres, theirs.locked) == (["Shoegaze"], {"genre"})


def test_our_own_lock_does_not_keep_us_out(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    (track,) = add_album(server, library, tracks=1)
    (first,) = edit(plex, [track], "Jazz")
    assert plex.plan_edits({track.key: ["Blues"]}).records == ()  # without the record: the user's
    (second,) = plex.plan_edits({track.key: ["Blues"]}, {track.key: first}).records
    assert (second.before, second.after, second.was_locked) == (("Pop/Rock",), ("Blues",), False)
    assert statuses(plex.apply_edits([second])) == ["done"]
    assert statuses(plex.undo_edits([second])) == ["done"]
    assert (track.genres, track.locked) == (["Pop/Rock"], set())


def test_an_edit_that_was_planned_and_never_applied_is_no_obstacle(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    """The process was killed after the record was kept, before the request."""
    (track,) = add_album(server, library, tracks=1)
    (never,) = plex.plan_edits({track.key: ["Jazz"]}).records
    (first,) = plex.plan_edits({track.key: ["Blues"]}, {track.key: never}).records
    assert first.before == ("Pop/Rock",)
    plex.apply_edits([first])
    (never,) = plex.plan_edits({track.key: ["Soul"]}, {track.key: first}).records
    (third,) = plex.plan_edits({track.key: ["Funk"]}, {track.key: never}).records
    assert statuses(plex.apply_edits([third])) == ["done"]
    assert statuses(plex.undo_edits([third])) == ["done"]
    assert (track.genres, track.locked) == (["Pop/Rock"], set())


def test_a_genre_that_the_user_edited_after_us_is_theirs(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    (track,) = add_album(server, library, tracks=1)
    (record,) = edit(plex, [track], "Jazz")
    server.edit_by_user(track, ["Free Jazz"])
    plan = plex.plan_edits({track.key: ["Blues"]}, {track.key: record})
    assert (plan.records, len(plan.skipped)) == ((), 1)
    (outcome,) = plex.undo_edits([record])
    assert (outcome.status, outcome.reason) == ("changed", "it has Free Jazz by now")
    assert track.genres == ["Free Jazz"]


def test_undo_restores_genres_and_locks(server: PlexStandIn, library: Library, plex: Plex) -> None:
    tracks = add_album(server, library, tracks=6)
    formers: list[list[str]] = [[], ["Pop"], ["Pop", "Rock"], [*TRICKY], ["Jazz"], ["Pop"]]
    for track, former in zip(tracks, formers, strict=True):
        track.genres = list(former)
    album = tracks[0].parent
    assert album is not None
    records = edit(plex, [*tracks, album], "Jazz", "R&B")
    server.remove(tracks[5])
    outcomes = plex.undo_edits(records)
    assert [outcome.record for outcome in outcomes] == list(records)
    assert statuses(outcomes) == ["done"] * 5 + ["gone", "done"]
    for track, former in zip(tracks[:5], formers, strict=False):
        assert (sorted(track.genres), track.locked) == (sorted(former), set())
    assert (album.genres, album.locked) == ([], set())
    assert statuses(plex.undo_edits(records[:1])) == ["changed"]  # it is done already


def test_one_item_that_vanished_does_not_stop_the_others(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    tracks = add_album(server, library)
    plan = plex.plan_edits({track.key: ["Jazz"] for track in tracks} | {99999: ["Jazz"]})
    assert [one.rating_key for one in plan.skipped] == [99999]
    server.remove(tracks[2])
    outcomes = plex.apply_edits(plan.records)
    assert statuses(outcomes) == ["done", "done", "gone", "done", "done"]
    assert tracks[4].genres == ["Jazz"]


def test_a_lock_that_did_not_hold_is_set_again(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = add_album(server, library)
    whole, puts = server.answer, []

    def answer(method: str, path: str, query: dict[str, str], *page: Any) -> Reply:
        puts.append(method)
        if puts.count("PUT") == 1:
            query.pop("genre.locked", None)
        return whole(method, path, query, *page)

    monkeypatch.setattr(server, "answer", answer)
    edit(plex, tracks, "Jazz")
    assert puts.count("PUT") == 2
    assert all(track.locked for track in tracks)


def test_items_with_the_same_genres_to_lose_go_together(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    """So that a server that heeds one removal a request needs few repairs."""
    server.one_removal = True
    server.populate(library, 1000, ("Pop", "Rock", "Soul", "Funk"))
    server.reset_counts()
    edit(plex, list(library.items("track")), "Jazz")
    assert server.requests <= 3 * (-(-1000 // READ_CHUNK)) + 1000 // EDIT_CHUNK + 3


def test_a_server_that_will_not_is_reported(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    (track,) = add_album(server, library, tracks=1)
    records = plex.plan_edits({track.key: ["Jazz"]}).records
    monkeypatch.setattr(server, "edit_tags", lambda *_: None)
    (outcome,) = plex.apply_edits(records)
    assert (outcome.status, outcome.reason) == ("failed", "Plex kept Pop/Rock, locked: True")
    monkeypatch.undo()
    server.version = "1.39.0"  # put back behind the connection's back: now it refuses
    (outcome,) = plex.apply_edits(records)
    assert outcome.status == "failed" and "(400)" in outcome.reason
    server.errors.clear()


def test_a_connection_lost_half_way_is_made_good(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 450, ("Pop/Rock",))
    wanted = {track.key: ("Jazz",) for track in library.items("track")}
    plan = plex.plan_edits(wanted)
    assert len(plan.records) == 450
    whole, puts = server.answer, []

    def answer(method: str, *request: Any) -> Reply:
        puts.append(method)
        if puts.count("PUT") == 3:
            server.mode = "down"
        return whole(method, *request)

    monkeypatch.setattr(server, "answer", answer)
    with pytest.raises(PlexUnreachable):
        plex.apply_edits(plan.records)
    monkeypatch.undo()
    server.mode = "ok"
    kept = {record.rating_key: record for record in plan.records}
    again = plex.plan_edits(wanted, kept)
    assert len(again.records) == 450 - 3 * EDIT_CHUNK
    assert set(statuses(plex.apply_edits(again.records))) == {"done"}
    assert set(statuses(plex.undo_edits(plan.records))) == {"done"}
    assert all(item.genres == ["Pop/Rock"] for item in library.items("track"))


def test_long_lists_of_former_genres_stay_within_an_address(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    tracks = add_album(server, library, tracks=200)
    for number, track in enumerate(tracks):
        track.genres = [f"Größenwahnsinn Nr. {number}, Teil {part} & mehr" for part in range(3)]
    edit(plex, tracks, "Jazz")
    assert {tuple(track.genres) for track in tracks} == {("Jazz",)}


def test_ten_thousand_edits_take_at_most_300_requests(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    """16 genres where 12 others were, the albums too, planning and reading back included."""
    server.populate(library, 10_000, tuple(f"Former {number}" for number in range(12)))
    wanted = {
        track.key: (f"Genre {number * 7 % 16}",)
        for number, track in enumerate(library.items("track"))
    }
    wanted |= {
        album.key: (f"Genre {number % 16}",) for number, album in enumerate(library.items("album"))
    }
    server.reset_counts()
    plan = plex.plan_edits(wanted)
    assert len(plan.records) == 11_000
    assert set(statuses(plex.apply_edits(plan.records))) == {"done"}
    assert server.requests <= 300, server.requests
    assert all(server.items[key].genres == list(genres) for key, genres in wanted.items())


_SYNC = """
import sys, time
from reclass_plex.config import PlexOptions
from reclass_plex.plex import Plex
started = time.monotonic()
with Plex(PlexOptions(url=sys.argv[1]), sys.argv[2]) as plex:
    tracks = list(plex.list_tracks(1, with_genres=sys.argv[3] == "genres"))
seconds = time.monotonic() - started
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(len(tracks), len({track.paths for track in tracks}), int(peak) // 1024, round(seconds, 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(("what", "requests_"), [("paths", 11), ("genres", 36)])
def test_ten_thousand_tracks_are_synced_under_200_mb(
    server: PlexStandIn, library: Library, what: str, requests_: int
) -> None:
    server.populate(library, 10_000, ("Rock", "Jazz"))
    done = subprocess.run(
        [sys.executable, "-c", _SYNC, server.url, server.token, what],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    tracks, paths, megabytes, seconds = done.stdout.split()
    assert (tracks, paths) == ("10000", "10000")
    assert int(megabytes) < 200
    assert float(seconds) < 20
    assert server.requests == requests_


def test_an_undo_reads_and_writes_in_chunks(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    server.populate(library, 1000, ("Pop", "Rock", "Soul"))
    records = edit(plex, list(library.items("track")), "Jazz")
    server.reset_counts()
    assert set(statuses(plex.undo_edits(records))) == {"done"}
    reads = -(-1000 // READ_CHUNK)
    assert server.requests <= 2 * reads + 3 * (-(-334 // EDIT_CHUNK))
    assert all(item.genres == list(item.agent_genres) for item in library.items("track"))


# The stand-in itself: plexapi, unchanged, must find it a Plex


@pytest.fixture
def section(server: PlexStandIn, library: Library) -> Any:
    server.populate(library, 45, ("Rock", "Jazz", "Soul"))
    with requests.Session() as session:
        found: Any = PlexServer(server.url, server.token, session, 5)  # type: ignore[no-untyped-call]
        yield found.library.section("Music")


def test_plexapi_browses_it(server: PlexStandIn, section: Any) -> None:
    assert [len(section.all()), len(section.albums()), len(section.searchTracks())] == [2, 5, 45]
    artist = section.all()[0]
    assert (artist.title, len(artist.albums()), len(artist.tracks())) == ("Artist 0000", 4, 40)
    album = section.searchAlbums(title="Album 00004")[0]
    assert [track.title for track in album.tracks()] == [f"Track {n:06}" for n in range(40, 45)]
    track = album.track(title="track 000042")
    assert (track.album().title, track.artist().title) == ("Album 00004", "Artist 0001")
    assert track.locations == ["/music/Artist 0001/Album 00004/Track 000042.flac"]
    assert [one.title for one in section.recentlyAddedTracks(maxresults=2)] == [
        "Track 000044",
        "Track 000043",
    ]
    assert len(section.searchTracks(filters={"track.genre": "Soul"})) == 15
    assert {one.id: one.value for one in section.settings()}["respectTags"] is False
    assert section._server.library.section("music").key == 1


def test_plexapi_edits_it(server: PlexStandIn, section: Any) -> None:
    track, *others = section.searchTracks()
    track.addGenre(["R&B", "Folk, World"]).reload()
    assert [genre.tag for genre in track.genres] == ["Rock", "R&B", "Folk, World"]
    assert track.isLocked("genre")
    track.removeGenre(["R&B", "Folk, World"], locked=False).reload()
    assert [genre.tag for genre in track.genres] == ["Rock"]
    assert not track.isLocked("genre")
    section.batchMultiEdits(others[:3]).addGenre("Blues").removeGenre("Jazz").saveMultiEdits()
    assert [server.items[one.ratingKey].genres for one in others[:4]] == [
        ["Blues"],
        ["Soul", "Blues"],
        ["Rock", "Blues"],
        ["Jazz"],
    ]
    others[0].refresh()
    assert server.items[others[0].ratingKey].genres == ["Blues"]
    section.lockAllField("genre", libtype="track")
    assert all(item.locked for item in server.libraries[1].items("track"))


def test_what_it_does_not_know_is_an_error(server: PlexStandIn, section: Any) -> None:
    track = section.searchTracks()[0]
    mistakes: tuple[Callable[[], Any], ...] = (
        lambda: section._server.query("/library/sections/1/all?colour=red"),
        lambda: section._server.query("/library/sections/1/everything"),
        lambda: section._server.query("/library/sections/1/all?type=10&sort=loudness"),
        lambda: section._edit([track], **{"type": 9, "genre.locked": 1}),
        lambda: section._edit([track], **{"genres.locked": 1}),
    )
    for wrong in mistakes:
        server.errors.clear()
        with pytest.raises(plexapi.exceptions.BadRequest, match="400"):
            wrong()
        assert len(server.errors) == 1
    with pytest.raises(plexapi.exceptions.NotFound):
        section._server.query("/library/metadata/99999")
    assert len(server.errors) == 1
    server.errors.clear()
    with pytest.raises(plexapi.exceptions.BadRequest, match="414"):
        section._server.query("/library/metadata/" + ",".join(["12345"] * 2000))
    server.errors.clear()


class _Receiver(BaseHTTPRequestHandler):
    """Keeps the webhooks that it gets."""

    server: _Inbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        self.server.messages.append(
            email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        )
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class _Inbox(HTTPServer):
    messages: list[Any]


@pytest.fixture
def inbox() -> Iterator[_Inbox]:
    with _Inbox(("127.0.0.1", 0), _Receiver) as receiver:
        receiver.messages = []
        thread = threading.Thread(target=receiver.serve_forever, args=(0.02,))
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()


def test_webhooks_come_in_all_three_shapes(
    server: PlexStandIn, library: Library, inbox: _Inbox
) -> None:
    (track,) = add_album(server, library, tracks=1)
    album = track.parent
    assert album is not None and album.parent is not None
    server.webhook_url = f"http://127.0.0.1:{inbox.server_address[1]}/hook/key"
    for item in (album.parent, album, track):
        assert server.send_webhook(item) == 204
    payloads = []
    for message in inbox.messages:
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in message.iter_parts()
        }
        assert parts["thumb"].get_content_type() == "image/jpeg"
        payloads.append(json.loads(parts["payload"].get_content()))
    assert [one["Metadata"]["type"] for one in payloads] == ["artist", "album", "track"]
    assert [one["event"] for one in payloads] == ["library.new"] * 3
    assert {one["Server"]["uuid"] for one in payloads} == {server.uuid}
    assert {one["Metadata"]["librarySectionType"] for one in payloads} == {"artist"}
    metadata = payloads[2]["Metadata"]
    assert [metadata[key] for key in ("ratingKey", "parentRatingKey", "grandparentRatingKey")] == [
        str(track.key),
        str(album.key),
        str(album.parent.key),
    ]
    inbox.shutdown()
    server.webhook_url = "http://127.0.0.1:1/nobody"
    assert server.send_webhook(track) is None


def test_new_files_are_told_of_over_the_websocket(server: PlexStandIn, tmp_path: Path) -> None:
    library = server.add_library(location="/music", root=tmp_path)
    alerts: list[Any] = []
    with requests.Session() as session:
        found: Any = PlexServer(server.url, server.token, session, 5)  # type: ignore[no-untyped-call]
        listener = found.startAlertListener(alerts.append, alerts.append)
        wait_until(lambda: server.listeners == 1)
        (tmp_path / "Artist" / "Album").mkdir(parents=True)
        (tmp_path / "Artist" / "Album" / "Song.flac").touch()
        (tmp_path / "Someone - Flat.mp3").touch()
        (tmp_path / "cover.jpg").touch()
        found.library.section("Music").update("/elsewhere")  # ignored in silence
        found.library.section("Music").update("/music/Artist")
        wait_until(lambda: len(alerts) == 12)
        entries = [entry for alert in alerts for entry in alert["TimelineEntry"]]
        assert {alert["type"] for alert in alerts} == {"timeline"}
        assert [(entry["type"], entry["state"]) for entry in entries[:6]] == [
            *((8, 0), (9, 0), (10, 0)),
            *((8, 5), (9, 5), (10, 5)),
        ]
        assert {entry.get("metadataState") for entry in entries} == {"created", None}
        files = {item.files[0]: item.ancestor("artist") for item in library.items("track")}
        assert {file: artist and artist.title for file, artist in files.items()} == {
            "/music/Artist/Album/Song.flac": "Artist",
            "/music/Someone - Flat.mp3": "Someone",
        }
        (tmp_path / "Artist" / "Album" / "Song.flac").unlink()
        server.scan(library)
        wait_until(lambda: len(alerts) == 15)
        assert [alert["TimelineEntry"][0]["state"] for alert in alerts[12:]] == [9, 9, 9]
        server.mode = "down"  # its stop() may leave the thread in a select of 10 s
        listener.join(5)
        assert not listener.is_alive()
    wait_until(lambda: server.listeners == 0)


def test_a_websocket_needs_the_token_and_ends_when_the_server_goes_down(
    server: PlexStandIn, library: Library
) -> None:
    import websocket

    with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
        websocket.create_connection(
            server.url.replace("http", "ws") + "/:/websockets/notifications", timeout=5
        )
    address = f"{server.url}/:/websockets/notifications?X-Plex-Token={server.token}"
    one = websocket.create_connection(address.replace("http", "ws"), timeout=5)
    try:
        wait_until(lambda: server.listeners == 1)
        one.ping("still there?")
        assert one.recv_data(control_frame=True)[1] == b"still there?"
        server.send_alert("x" * 70_000)
        assert len(one.recv()) == 70_000
        server.mode = "down"
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            one.recv()
    finally:
        one.close()
    server.mode = "ok"


def test_as_a_script_it_serves_a_folder(tmp_path: Path) -> None:
    (tmp_path / "HSR - City.ogg").touch()
    script = Path(__file__).with_name("plex_server.py")
    command = [sys.executable, str(script), "--music", str(tmp_path), "--seen-as", "/music"]
    command += ["--port", "0", "--token", "secret", "--scan-seconds", "0.1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "error"}
    ) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+(?=,)", process.stdout.readline())
            assert found is not None
            assert process.stdout.readline() == "new: /music/HSR - City.ogg\n"
            (tmp_path / "Muldjord - Mime.mp3").touch()
            assert process.stdout.readline() == "new: /music/Muldjord - Mime.mp3\n"
            maps = (PathMap(plex="/music", local=str(tmp_path)),)
            with Plex(PlexOptions(url=found[0], path_map=maps), "secret") as plex:
                path = tmp_path / "Muldjord - Mime.mp3"
                (track,) = plex.find_tracks(1, [path]).values()
                plan = plex.plan_edits({track.rating_key: ["Electronic"]})
                assert statuses(plex.apply_edits(plan.records)) == ["done"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_every_error_of_plex_is_named() -> None:
    assert {PlexError.kind, PlexUnauthorized.kind, PlexUnreachable.kind} == {
        "plex",
        "plex-unauthorized",
        "plex-unreachable",
    }
