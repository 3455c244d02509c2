"""The stand-in itself: plexapi, unchanged, must find it a Plex."""

from __future__ import annotations

import email.parser
import email.policy
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import plexapi.exceptions
import pytest
import requests
from plex_server import Library, PlexStandIn
from plex_tools import add_album, statuses, wait_until
from plexapi.server import PlexServer

from reclass_plex.config import PathMap, PlexOptions
from reclass_plex.plex import (
    Plex,
    apply_edits,
    plan_edits,
    to_plex,
)


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
                tracks = {track.paths: track for track in plex.list_tracks(1)}
                track = tracks[(str(to_plex(path, maps)),)]
                plan = plan_edits(plex, {track.rating_key: ["Electronic"]})
                assert statuses(apply_edits(plex, plan.records)) == ["done"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
