"""Plex's websocket: what it tells of new music, and a connection that always comes back."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import queue
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plex_server import PlexStandIn

from service import alerts
from service.alerts import (
    GROUP_SECONDS,
    MAX_PAUSE_SECONDS,
    MAX_PENDING,
    PATIENCE_SECONDS,
    AlertListener,
    NewItems,
    TimelineEntry,
    parse,
    pause_after,
)
from service.hints import Hint

TOKEN = "stand-in-token"


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


# What a message says


def message(**changes: object) -> str:
    entry = {
        "identifier": "com.plexapp.plugins.library",
        "sectionID": "2",
        "itemID": "57",
        "type": 10,
        "title": "A Track",
        "state": 0,
        "metadataState": "created",
        **changes,
    }
    return container([entry])


def container(entries: object, kind: object = "timeline") -> str:
    return json.dumps({"NotificationContainer": {"type": kind, "TimelineEntry": entries}})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, TimelineEntry(57, "track", "created")),
        ({"type": 9, "itemID": 57}, TimelineEntry(57, "album", "created")),
        ({"type": "8"}, TimelineEntry(57, "artist", "created")),
        ({"state": 5, "metadataState": None}, TimelineEntry(57, "track", "processed")),
        ({"state": "9", "metadataState": "deleted"}, TimelineEntry(57, "track", "deleted")),
        ({"metadataState": None}, None),  # state 0 is also that of thumbnails being made
        ({"state": 1, "metadataState": "queued"}, None),
        ({"state": 4, "metadataState": "processing"}, None),
        ({"type": 1}, None),  # a film
        ({"type": -1}, None),
        ({"itemID": "-1"}, None),
        ({"itemID": "1; DROP"}, None),
        ({"identifier": "com.plexapp.plugins.playlists"}, None),
    ],
)
def test_steps_of_music_are_told_from_all_else(
    changes: dict[str, object], expected: TimelineEntry | None
) -> None:
    assert parse(message(**changes)) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "garbage",
    [
        *(
            "",
            "{",
            "null",
            "[]",
            "7",
            '"text"',
            "{}",
            "[" * 100_000,
            '{"NotificationContainer": 1}',
        ),
        *(b"\xff\xfe\xfd", b"\x00" * 50),
        container([7, None]),
        container([[]]),
        container(7),
        container(None),
        container([{}]),
        container([{"type": {}, "itemID": [], "state": {}}]),
        container([], kind="playing"),
        json.dumps({"NotificationContainer": {"type": "timeline"}}),
        json.dumps({"NotificationContainer": {"type": "progress", "ProgressNotification": []}}),
    ],
)
def test_garbage_says_nothing(garbage: bytes | str) -> None:
    assert parse(garbage) == []


# Which items are new: no clock, no thread


def created(key: int) -> TimelineEntry:
    return TimelineEntry(key, "track", "created")


def processed(key: int) -> TimelineEntry:
    return TimelineEntry(key, "track", "processed")


def test_an_item_is_new_when_it_was_created_and_is_processed() -> None:
    new = NewItems()
    new.notice(created(1), 0)
    assert new.step(10) == []
    for at in (10.0, 11.0, 12.0):
        new.notice(processed(1), at)  # several notices are one
        assert new.step(at) == []
    assert new.step(12 + GROUP_SECONDS) == [Hint(1, "track")]
    assert new.step(1e9) == []


def test_an_edit_is_no_news() -> None:
    new = NewItems()
    new.notice(processed(1), 0)
    assert new.step(1e9) == []


def test_patience_with_a_server_that_never_says_processed_ends() -> None:
    new = NewItems()
    new.notice(created(1), 0)
    new.notice(created(1), 50)  # said again: no longer a wait
    assert new.step(PATIENCE_SECONDS - 0.1) == []
    assert new.step(PATIENCE_SECONDS) == [Hint(1, "track")]


def test_what_is_deleted_again_is_no_news() -> None:
    new = NewItems()
    for key in (1, 2):
        new.notice(created(key), 0)
        new.notice(processed(key), 1)
    new.notice(TimelineEntry(1, "track", "deleted"), 2)
    new.notice(TimelineEntry(3, "track", "deleted"), 2)
    assert new.step(1e9) == [Hint(2, "track")]


def test_memory_is_bounded() -> None:
    new = NewItems()
    for key in range(MAX_PENDING + 100):
        new.notice(created(key), 0)
    assert new.step(1) == [Hint(key, "track") for key in range(100)]
    assert len(new) == MAX_PENDING


def test_pauses_grow_and_are_spread() -> None:
    assert [pause_after(failures, 0) for failures in range(1, 12)] == [
        *(1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300)
    ]
    assert pause_after(5, 1) == 8
    assert pause_after(10**6, 0) == MAX_PAUSE_SECONDS


# Against the stand-in server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for milliseconds where the daemon waits for seconds."""
    monkeypatch.setattr(alerts, "GROUP_SECONDS", 0.1)
    monkeypatch.setattr(alerts, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(alerts, "pause_after", lambda failures, chance: 0.05)


class Ear:
    """A listener and what it said."""

    def __init__(self, url: str, token: str = TOKEN) -> None:
        self.hints: queue.SimpleQueue[Hint] = queue.SimpleQueue()
        self.failing = 0  # times that the sink has still to fail
        self.connections = 0
        self.refused = 0
        self.listener = AlertListener(
            url, token, self.take, on_connect=self._connect, on_unauthorized=self._refuse
        )

    def take(self, hint: Hint) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError("the disk is full")
        self.hints.put(hint)

    def _connect(self) -> None:
        self.connections += 1

    def _refuse(self) -> None:
        self.refused += 1

    def heard(self, count: int) -> set[Hint]:
        found = [self.hints.get(timeout=10) for _ in range(count)]
        assert len(set(found)) == count
        return set(found)


@contextlib.contextmanager
def listening(url: str, token: str = TOKEN) -> Iterator[Ear]:
    """Listen; when it ends its thread must have ended soon."""
    before = set(threading.enumerate())
    ear = Ear(url, token)
    ear.listener.start()
    yield ear
    began = time.monotonic()
    ear.listener.stop()
    assert time.monotonic() - began < 3
    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name == "plex alerts"]
    assert not ear.listener.connected


def open_sockets() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {link for link in found if link.startswith("socket:")}


@pytest.fixture
def plex() -> Iterator[PlexStandIn]:
    with PlexStandIn() as plex:
        yield plex


@pytest.fixture
def ear(plex: PlexStandIn) -> Iterator[Ear]:
    with listening(plex.url) as ear:
        wait_for(lambda: ear.listener.connected)
        yield ear


def test_new_music_is_heard_and_the_token_is_not_in_the_address(
    plex: PlexStandIn, ear: Ear
) -> None:
    track = plex.add_track(plex.add_library(), "An Artist", "An Album", "A Track")
    album, artist = track.ancestor("album"), track.ancestor("artist")
    assert album is not None
    assert artist is not None
    plex.announce(artist)
    items = [artist, album, track]
    assert ear.heard(3) == {Hint(item.key, item.kind) for item in items}
    plex.notify([track], 5)  # an edit
    time.sleep(0.4)
    assert ear.hints.empty()
    assert plex.log == ["GET /:/websockets/notifications"]


def test_music_that_is_deleted_before_its_time_is_not_told(plex: PlexStandIn, ear: Ear) -> None:
    library = plex.add_library()
    gone = plex.add_track(library, "An Artist", "An Album", "Gone")
    stays = plex.add_track(library, "An Artist", "An Album", "Stays")
    plex.notify([gone, stays], 0)
    plex.remove(gone)
    plex.later(lambda: plex.notify([stays], 5))
    assert ear.heard(1) == {Hint(stays.key, "track")}
    time.sleep(0.3)
    assert ear.hints.empty()


def test_garbage_frames_break_nothing(
    plex: PlexStandIn, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "MAX_MESSAGE", 120_000)  # each is smaller, all together are not
    track = plex.add_track(plex.add_library(), "An Artist", "An Album", "A Track")
    with plex.lock:
        (handler,) = plex._listeners
    for text in ("", "{", "null", "[" * 100_000, '{"NotificationContainer": []}', "\0"):
        plex.send_alert(text)
    handler.send_frame(0x1, b"\xff\xfe not utf-8")
    handler.send_frame(0x2, bytes(70_000))
    handler.send_frame(0x9, b"are you there")
    plex.announce(track)
    assert ear.heard(1) == {Hint(track.key, "track")}
    assert ear.connections == 1


@pytest.mark.parametrize(
    "frame",
    [
        b"\xf1\x05hello",  # reserved bits
        b"\x8b\x00",  # an unknown opcode
        b"\x80\x05hello",  # a continuation of nothing
        b"\x81\x7f" + struct.pack(">Q", 1 << 62) + b"endless",
        b"\x88\x01\x00",  # a closing frame that is too short
        b"\x88\x02\x03\xe9",
    ],
)
def test_a_broken_connection_is_replaced(
    plex: PlexStandIn, ear: Ear, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "MAX_MESSAGE", 200_000)
    with plex.lock:
        (handler,) = plex._listeners
    with contextlib.suppress(OSError):
        handler.connection.sendall(frame + bytes(300_000) * (b"endless" in frame))
    wait_for(lambda: ear.connections == 2)
    track = plex.add_track(plex.add_library(), "An Artist", "An Album", "A Track")
    plex.announce(track)
    assert ear.heard(1) == {Hint(track.key, "track")}


def test_a_server_that_restarts_is_heard_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with PlexStandIn() as first:
        port = int(first.url.rpartition(":")[2])
        with listening(first.url) as ear:
            wait_for(lambda: ear.listener.connected)
            track = first.add_track(first.add_library(), "A", "B", "C")
            first.notify([track], 0)
            first.notify([track], 5)  # told just before the end: passed on while it is away
            time.sleep(0.05)
            first.close()
            wait_for(lambda: not ear.listener.connected)
            assert ear.heard(1) == {Hint(track.key, "track")}
            wait_for(lambda: "refused" in str(ear.listener.problem))
            with PlexStandIn(port=port) as second:
                wait_for(lambda: ear.connections == 2)
                assert ear.listener.problem is None
                track = second.add_track(second.add_library(), "A", "B", "D")
                second.announce(track)
                assert ear.heard(1) == {Hint(track.key, "track")}
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("mode", ["failing", "garbage", "down"])
def test_a_server_in_trouble_is_tried_again(plex: PlexStandIn, mode: Any) -> None:
    plex.mode = mode
    with listening(plex.url) as ear:
        wait_for(lambda: plex.requests >= 2)
        assert not ear.listener.connected
        assert ear.refused == 0
        wait_for(lambda: ear.listener.problem)
        plex.mode = "ok"
        wait_for(lambda: ear.listener.connected)
        assert ear.listener.problem is None


@pytest.mark.parametrize("mode", ["failing", "garbage", "down", "ok"])
def test_nothing_piles_up_while_it_tries(
    plex: PlexStandIn, mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def more(than: int) -> bool:
        return plex.requests > than

    with listening(plex.url) as ear:
        wait_for(lambda: ear.listener.connected)
        before = len(open_sockets())
        plex.mode = mode
        plex._http.drop_connections()
        for _ in range(20):
            seen = plex.requests
            if mode == "ok":
                plex._http.drop_connections()
            wait_for(functools.partial(more, seen))
        # A connection that is just being made has two ends here.
        wait_for(lambda: len(open_sockets()) <= before + 2)
    if mode != "ok":
        assert len(caplog.records) <= 4  # not a line for each attempt


def test_a_refused_token_is_said_and_not_tried_again_soon(
    plex: PlexStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(plex.url, "an-old-token") as ear:
        wait_for(lambda: ear.refused == 1)
        time.sleep(0.5)
        assert plex.requests == 1
        assert ear.refused == 1
        assert ear.listener.problem == "the server refuses the token: sign in again"
    assert caplog.text.count("sign in again") == 1
    assert "an-old-token" not in caplog.text


def test_a_sink_that_fails_loses_nothing(plex: PlexStandIn, ear: Ear) -> None:
    library = plex.add_library()
    tracks = [plex.add_track(library, "A", "B", f"C{number}") for number in range(20)]
    ear.failing = 2
    for track in tracks:
        plex.announce(track)
    assert ear.heard(20) == {Hint(track.key, "track") for track in tracks}
    assert ear.failing == 0


def test_stopping_before_or_without_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        AlertListener(url, TOKEN, print).stop()  # never started
        with listening(url):
            pass
        with listening(url):
            time.sleep(0.5)  # in the middle of the handshake
    with listening("http://no-such-host.invalid:32400") as ear:
        wait_for(lambda: ear.listener.problem)


class Silent:
    """A websocket server that opens, perhaps over TLS, and then says only what it is told to."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self.server = socket.create_server(("127.0.0.1", 0))
        self.opened: list[socket.socket] = []
        self.requests: list[bytes] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            try:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                request = connection.recv(65536)
                key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
                guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
                accept = b64encode(hashlib.sha1(key + guid).digest())
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
                )
            except OSError:
                connection.close()
                continue
            self.requests.append(request)
            self.opened.append(connection)

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join()
        for connection in self.opened:
            connection.close()


def test_a_connection_that_is_dead_on_the_other_side_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alerts, "PING_SECONDS", 0.1)
    monkeypatch.setattr(alerts, "SILENCE_SECONDS", 0.4)
    with contextlib.closing(Silent()) as server:
        url = f"http://127.0.0.1:{server.server.getsockname()[1]}/behind/a/proxy/"
        with listening(url) as ear:
            wait_for(lambda: ear.connections == 2)
            assert server.opened[0].recv(65536)[:1] == b"\x89"  # it was asked
    assert server.requests[0].startswith(b"GET /behind/a/proxy/:/websockets/notifications HTTP")


def test_pings_keep_a_quiet_connection(plex: PlexStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "PING_SECONDS", 0.1)
    monkeypatch.setattr(alerts, "SILENCE_SECONDS", 0.4)
    with listening(plex.url) as ear:
        wait_for(lambda: ear.listener.connected)
        time.sleep(0.8)
        assert ear.connections == 1
        assert ear.listener.connected


def test_a_redirect_is_not_followed_with_the_token() -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as thief, socket.create_server(("", 0)) as server:
        thief.settimeout(0.5)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(65536))
                place = f"ws://127.0.0.1:{thief.getsockname()[1]}/"
                connection.sendall(
                    f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
                )

        thread = threading.Thread(target=answer)
        thread.start()
        with listening(f"http://127.0.0.1:{server.getsockname()[1]}") as ear:
            wait_for(lambda: ear.listener.problem)
            with pytest.raises(TimeoutError):
                thief.accept()
        thread.join()
    assert TOKEN.encode() in heard[0]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_is_verified_as_requests_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", os.fspath(key), "-out", os.fspath(certificate), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with contextlib.closing(Silent(context)) as server:
        port = server.server.getsockname()[1]
        with listening(f"https://localhost:{port}") as ear:
            wait_for(lambda: "certificate" in str(ear.listener.problem).lower())
            assert ear.connections == 0
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with listening(f"https://localhost:{port}") as ear:
            wait_for(lambda: ear.listener.connected)
            wait_for(lambda: server.opened)
            server.opened[0].sendall(_text(message()) + _text(message(state=5)))
            assert ear.heard(1) == {Hint(57, "track")}
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle.pem")
        with listening(f"https://localhost:{port}") as ear:
            wait_for(lambda: "/no/such/bundle.pem" in str(ear.listener.problem))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with listening(f"https://127.0.0.1:{port}") as ear:  # another name than the certificate's
            wait_for(lambda: "certificate" in str(ear.listener.problem).lower())
            assert ear.connections == 0


def _text(text: str) -> bytes:
    return b"\x81\x7e" + struct.pack(">H", len(text)) + text.encode()
