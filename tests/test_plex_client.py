"""Connecting to the stand-in over real HTTP, and reading it: plexapi unchanged."""

from __future__ import annotations

import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from plex_server import Library, PlexStandIn, Reply
from plex_tools import TRICKY, add_album, connect, wait_until

from reclass_plex.config import PathMap, PlexOptions
from reclass_plex.errors import ConfigError, PlexError, PlexUnauthorized, PlexUnreachable
from reclass_plex.plex import (
    Connections,
    Plex,
    library_folders,
    parse_version,
    report_server,
)


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
    texts = [line.text for line in report_server(plex)]
    assert {line.level for line in report_server(plex)} == {"ok"}
    assert any("/data/tunes" in text and "tv.plex.agents.music" in text for text in texts)
    assert "library Tunes: Prefer local metadata (respectTags) is on" in texts
    assert "library Tunes: Genres (genres) is 'Plex Music'" in texts


def test_the_report_warns_of_what_cannot_work() -> None:
    old = "1.32.8.7639-fb6452ebf"
    with PlexStandIn(version=old) as server, connect(server, libraries=("Tunes",)) as plex:
        lines = report_server(plex)
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


def test_a_listing_is_read_in_pages(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 95)
    monkeypatch.setattr("reclass_plex.plex.client.LIST_PAGE", 20)
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


def test_genres_and_locks_are_read_whole(server: PlexStandIn, library: Library, plex: Plex) -> None:
    """A listing shows two genres of each and no locks; what is believed must not be that."""
    first, second, third = add_album(server, library, ("Rock", "Blues", "Soul", "Funk"), 3)
    server.edit_by_user(second, TRICKY)
    third.genres, third.files = [], ["/music/a.flac", "/music/a.mp3"]
    items = plex.read_items([first.key, second.key, third.key])
    assert items[first.key].genres == ("Rock", "Blues", "Soul", "Funk")
    assert items[first.key].locked is False
    assert (items[second.key].genres, items[second.key].locked) == (TRICKY, True)
    assert (items[third.key].genres, items[third.key].locked) == ((), False)
    tracks = {track.rating_key: track for track in plex.list_tracks(1)}
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
    monkeypatch.setattr("reclass_plex.plex.client.RECENT_PAGE", 10)
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
    monkeypatch.setattr("reclass_plex.plex.client.RECENT_PAGE", 10)
    keys = []
    for track in plex.recently_added(library.key, 0):
        keys.append(track.rating_key)
        if len(keys) == 5:
            server.add_track(library, "New", "New", "New")
    assert len(keys) == len(set(keys)) == 25


def test_artist_album_and_track_expand_to_tracks(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    server.populate(library, 45)
    artist, other = library.items("artist")
    album = artist.children[1]
    keys = [[track.key for track in one.children] for one in artist.children]

    def expand(*asked: int) -> list[int]:
        return [track.rating_key for track in plex.expand(asked)]

    assert expand(artist.key) == [key for album_keys in keys for key in album_keys]
    assert expand(album.key) == keys[1]
    (track,) = plex.expand([album.children[3].key])
    assert (track.rating_key, track.library_key) == (album.children[3].key, library.key)
    assert track.paths == tuple(album.children[3].files)
    assert len(expand(other.key)) == 5
    assert expand(99999) == expand() == []


def test_an_album_that_is_told_of_in_many_ways_is_read_once(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    server.populate(library, 40)
    (artist,) = library.items("artist")
    album = artist.children[1]
    server.reset_counts()
    keys = (artist.key, album.key, *(track.key for track in album.children), 99999)
    assert len(list(plex.expand(keys))) == 40
    assert server.requests == 2


def test_what_hangs_is_broken_off_by_another_thread(server: PlexStandIn, library: Library) -> None:
    connections = Connections()
    plex = Plex(PlexOptions(url=server.url), server.token, connections)
    server.mode, server.delay = "slow", 60.0
    server.reset_counts()
    raised: list[Exception] = []

    def ask() -> None:
        try:
            plex.list_libraries()
        except PlexUnreachable as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.requests)
    connections.break_off()
    thread.join(2)
    assert not thread.is_alive()
    assert len(raised) == 1
    server.reset_counts()
    with pytest.raises(PlexUnreachable, match="broken off"):
        plex.list_libraries()
    with pytest.raises(PlexUnreachable):  # nor is a new one made
        Plex(PlexOptions(url=server.url), server.token, connections)
    plex.close()


class _Elsewhere(BaseHTTPRequestHandler):
    """Sends everybody on, and notes what it is told."""

    target = ""
    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(str(self.headers))
        self.send_response(302)
        self.send_header("Location", f"{self.target}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_the_token_goes_to_no_other_host(server: PlexStandIn) -> None:
    _Elsewhere.heard = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{other.server_address[1]}"
            # Another port is another server: whoever listens there would have the token.
            _Elsewhere.target = server.url
            server.reset_counts()
            with pytest.raises(
                PlexUnreachable, match=rf"on to {server.url}.*set plex\.url"
            ) as told:
                Plex(PlexOptions(url=url), server.token)
            assert server.requests == 0
            assert server.token not in str(told.value)
            _Elsewhere.target = "/again"  # on the same server that is as it always was
            with pytest.raises(PlexUnreachable, match="redirects"):
                Plex(PlexOptions(url=url), server.token)
            assert all(server.token in headers for headers in _Elsewhere.heard)
        finally:
            other.shutdown()
            thread.join()


def test_folders_of_a_library_are_local(server: PlexStandIn) -> None:
    server.add_library("Music", "/data/music")
    server.add_library("Windows", "D:\\Music")
    maps = (PathMap(plex="/data", local="/mnt/nas"),)
    with connect(server, path_map=maps) as plex:
        assert library_folders(plex, "music") == (Path("/mnt/nas/music"),)
        assert library_folders(plex, "Windows") == ()
        with pytest.raises(ConfigError, match=r"'Jazz'.*Music, Windows"):
            library_folders(plex, "Jazz")


def test_a_listing_that_breaks_off_is_an_error(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 30)
    monkeypatch.setattr("reclass_plex.plex.client.LIST_PAGE", 10)
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


def test_every_error_of_plex_is_named() -> None:
    assert {PlexError.kind, PlexUnauthorized.kind, PlexUnreachable.kind} == {
        "plex",
        "plex-unauthorized",
        "plex-unreachable",
    }
