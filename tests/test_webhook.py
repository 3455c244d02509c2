"""Plex's webhook, as the stand-in server sends it and as nobody should."""

from __future__ import annotations

import json
import queue
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from plex_server import Item, PlexStandIn
from test_web import KEY, Daemon, ask, raw, rest, serving, wait_for
from timing import timed

from reclass_plex.store import Store
from service.hints import Hint
from service.web.server import WebServer
from service.webhook import MAX_BODY, MAX_PAYLOAD, Malformed, parse

UUID = "the-server's-machine-identifier"
LATENCY_SECONDS = 0.1
BOUNDARY = "----------------------------b3efa4ce4a5f"


def event(**changes: object) -> dict[str, Any]:
    """Return an event of a new album; `changes` are to its Metadata."""
    metadata: dict[str, object] = {
        "librarySectionType": "artist",
        "ratingKey": "1936545",
        "type": "album",
        "title": "An Album",
        "addedAt": 1_700_000_000,
    }
    return {
        "event": "library.new",
        "Server": {"title": "Office", "uuid": UUID},
        "Metadata": {**metadata, **changes},
    }


NEW_ALBUM = Hint(1936545, "album", 1_700_000_000)


# What a payload says


def test_new_music_of_each_kind_is_a_hint() -> None:
    assert parse(json.dumps(event()), UUID) == NEW_ALBUM
    assert parse(json.dumps(event()).encode(), None) == NEW_ALBUM
    for kind in ("artist", "album", "track"):
        hint = parse(json.dumps(event(type=kind, ratingKey=7, addedAt="soon")), UUID)
        assert hint == Hint(7, kind, None)


@pytest.mark.parametrize(
    "other",
    [
        {**event(), "event": "library.on.deck"},
        {**event(), "event": "media.play"},
        {**event(), "event": None},
        {**event(), "event": ["library.new"]},
        {**event(), "Server": {"uuid": "another"}},
        {**event(), "Server": {}},
        {**event(), "Server": "text"},
        event(librarySectionType="movie"),
        event(librarySectionType=None),
        event(type="collection"),
        event(type=["album"]),
        {"event": "admin.database.backup"},
        {},
    ],
)
def test_anything_else_is_none(other: dict[str, object]) -> None:
    assert parse(json.dumps(other), UUID) is None


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"library.new"',
        b"\xff\xfe",
        b'{"event": "caf\xe9"}',
        b"[" * 200_000,
        b'{"event":' * 30_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        json.dumps({**event(), "Metadata": []}).encode(),
        json.dumps({"event": "library.new"}).encode(),
        *(
            json.dumps(event(ratingKey=key)).encode()
            for key in ("", "12a", "-1", "1,2", "٣", "1" * 19, "../1", 1.5, -3, True, None, ["1"])
        ),
    ],
)
def test_what_plex_would_never_send_is_malformed(malformed: bytes) -> None:
    with pytest.raises(Malformed):
        parse(malformed, UUID)


# Over HTTP


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Store.open(tmp_path_factory.mktemp("store") / "store.sqlite") as store:
        yield Daemon(store)


@pytest.fixture(scope="module")
def server(daemon: Daemon) -> Iterator[WebServer]:
    with serving(daemon) as server:
        yield server


@pytest.fixture(scope="module")
def plex() -> Iterator[PlexStandIn]:
    with PlexStandIn() as plex:
        yield plex


@pytest.fixture
def track(plex: PlexStandIn, server: WebServer) -> Item:
    plex.webhook_url = f"{server.url}/webhook/{KEY}"
    return plex.add_track(plex.add_library(), "An Artist", "An Album", "A Track", added_at=1234)


def taken(daemon: Daemon) -> list[Hint]:
    found = []
    while True:
        try:
            found.append(daemon.hints.get_nowait())
        except queue.Empty:
            return found


def part(name: str, content: bytes, *, file: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def post(
    server: WebServer,
    body: bytes,
    *,
    key: str = KEY,
    content_type: str = f"multipart/form-data; boundary={BOUNDARY}",
) -> int:
    return ask(server, "POST", f"/webhook/{key}", body=body, Content_Type=content_type)[0]


def head(length: int | None) -> bytes:
    """Return a request's head; without a length its body is chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /webhook/{KEY} HTTP/1.1\r\nHost: whatever.example\r\n{size}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    ).encode()


GOOD = part("payload", json.dumps(event()).encode())


def test_all_three_shapes_of_the_real_server_arrive(
    plex: PlexStandIn, track: Item, daemon: Daemon
) -> None:
    daemon.uuid = plex.uuid
    album, artist = track.ancestor("album"), track.ancestor("artist")
    assert album is not None
    assert artist is not None
    items = [track, album, artist]
    assert [plex.send_webhook(item) for item in items] == [202] * 3
    assert taken(daemon) == [Hint(item.key, item.kind, 1234) for item in items]


def test_other_events_and_other_servers_are_answered_and_left(
    plex: PlexStandIn, track: Item, daemon: Daemon
) -> None:
    daemon.uuid = plex.uuid
    for name in ("library.on.deck", "media.scrobble", "admin.database.corrupted"):
        assert plex.send_webhook(track, name) == 204
    daemon.uuid = "another"  # webhooks are an account's, which may have several servers
    assert plex.send_webhook(track) == 204
    daemon.uuid = None  # not known yet
    assert plex.send_webhook(track) == 202
    assert len(taken(daemon)) == 1


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1], "caf%C3%A9", "%00", "%FF", "a%2Fb"])
def test_a_wrong_key_is_an_unknown_address(server: WebServer, daemon: Daemon, key: str) -> None:
    daemon.uuid = None
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    unknown = ask(server, "POST", "/no/such/path", body=form(GOOD), Content_Type=content_type)
    wrong = ask(server, "POST", f"/webhook/{key}", body=form(GOOD), Content_Type=content_type)
    assert wrong[0] == unknown[0] == 404
    assert wrong[2] == unknown[2]
    assert {*wrong[1]} == {*unknown[1]}
    assert taken(daemon) == []


def test_a_form_may_be_written_in_other_ways(server: WebServer, daemon: Daemon) -> None:
    daemon.uuid = UUID
    quoted = f'Multipart/Form-Data; charset=utf-16; boundary="{BOUNDARY}"'
    assert post(server, form(GOOD), content_type=quoted) == 202
    assert post(server, form(part("thumb", b"\xff\xd8" * 900_000, file="t.jpg"), GOOD)) == 202
    chinese = json.dumps(event(title="音楽 é"), ensure_ascii=False).encode()
    assert post(server, form(part("payload", chinese))) == 202
    connection = raw(server, head(None))  # in chunks of a byte
    for byte in form(GOOD):
        connection.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
    connection.sendall(b"0\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 202"
    connection.close()
    assert taken(daemon) == [NEW_ALBUM] * 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"payload={}",
        form(),
        form(part("other", b"{}")),
        form(part("payload", json.dumps(event()).encode(), file="payload.json")),
        form(part("payload", b"{")),
        form(part("payload", b"[" * 100_000)),
        form(part("payload", b'{"event": "\xff"}')),
        form(part("payload", json.dumps(event(ratingKey="1 OR 1")).encode())),
        form(*[part(f"f{number}", b"") for number in range(50)], GOOD),
        form(*[part("thumb", b"", file="t.jpg") for _ in range(50)], GOOD),
        b"--wrong\r\n" + form(GOOD)[30:],
        f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\n{{}}\r\n".encode(),
        f"--{BOUNDARY}\r\n".encode() + b"A" * 100_000,
        f"--{BOUNDARY}\r\n".encode() + b"A: b\r\n" * 10_000,
        bytes(range(256)) * 100,
    ],
)
def test_malformed_bodies_are_refused(server: WebServer, daemon: Daemon, body: bytes) -> None:
    daemon.uuid = UUID
    assert post(server, body) == 400
    assert taken(daemon) == []


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary="a\\"b"',
        f"multipart/form-data; boundary={'b' * 71}",
        f"multipart/mixed; boundary={BOUNDARY}",
    ],
)
def test_what_is_no_form_is_refused(server: WebServer, daemon: Daemon, content_type: str) -> None:
    daemon.uuid = UUID
    assert post(server, form(GOOD), content_type=content_type) == 400
    assert taken(daemon) == []


def test_nobody_else_chooses_the_codec(server: WebServer, daemon: Daemon) -> None:
    daemon.uuid = UUID
    body = form(part("payload", json.dumps(event()).encode("utf-16")))
    smuggled = f'multipart/form-data; boundary="{BOUNDARY}\\"; charset=utf-16; a=\\"b\\\\"'
    assert post(server, body, content_type=smuggled) == 400
    assert taken(daemon) == []


def test_too_much_is_refused_and_not_read(server: WebServer, daemon: Daemon) -> None:
    daemon.uuid = UUID
    declared = rest(raw(server, head(MAX_BODY + 1)))
    assert declared.startswith(b"HTTP/1.1 413 ")  # before anything of it was sent
    large = json.dumps(event(title="x" * MAX_PAYLOAD)).encode()
    assert post(server, form(part("payload", large))) == 413
    thumb = part("thumb", bytes(MAX_BODY - 2000), file="t.jpg")
    assert post(server, form(GOOD, thumb)) == 202
    assert len(taken(daemon)) == 1
    connection = raw(server, head(None))
    opening = GOOD + part("thumb", b"", file="t.jpg")[:-2]
    connection.sendall(f"{len(opening):x}\r\n".encode() + opening + b"\r\n")
    sent = 0
    try:
        while sent < 8 * MAX_BODY:
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            sent += 65536
    except ConnectionError:
        pass
    rest(connection)
    assert sent < 4 * MAX_BODY
    assert taken(daemon) == []


def test_a_length_that_lies_ends_its_own_connection_only(server: WebServer, daemon: Daemon) -> None:
    daemon.uuid = UUID
    short = raw(server, head(len(form(GOOD)) + 50) + form(GOOD))
    short.shutdown(socket.SHUT_WR)  # less came than was said
    assert b" 202 " not in rest(short)[:20]
    long = raw(server, head(len(form(GOOD))) + form(GOOD) + b"and more that is no request\r\n\r\n")
    answers = rest(long)
    assert answers.startswith(b"HTTP/1.1 202 ")
    assert b"HTTP/1.1 400 " in answers
    assert taken(daemon) == [NEW_ALBUM]
    gone = raw(server, head(5000) + form(GOOD)[:50])
    gone.close()
    assert post(server, form(GOOD)) == 202


def test_a_sender_that_goes_away_is_no_error(
    server: WebServer, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        raw(server, head(5000) + form(GOOD)[:50]).close()
    time.sleep(0.2)
    assert post(server, form(GOOD)) == 202
    assert caplog.text == ""


@timed
def test_webhooks_are_answered_at_once_while_the_process_is_busy(
    plex: PlexStandIn, track: Item, daemon: Daemon, server: WebServer
) -> None:
    """Another thread burns Python, the API is held up, and a writer has the store."""
    daemon.uuid = plex.uuid
    taken(daemon)
    body = form(part("payload", json.dumps(plex.payload(track)).encode()), part("thumb", b"x" * 40))
    request = urllib.request.Request(
        f"{server.url}/webhook/{KEY}",
        body,
        {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(number * number for number in range(10_000))

    daemon.leave.clear()
    threads = [threading.Thread(target=burn)]
    threads += [
        threading.Thread(target=lambda: ask(server, "GET", "/api/v1/status")) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    took = []
    try:
        with daemon.store.transaction():
            wait_for(lambda: sum("AnyIO" in thread.name for thread in threading.enumerate()) >= 20)
            for _ in range(50):
                began = time.perf_counter()
                with urllib.request.urlopen(request, timeout=5) as answer:
                    assert answer.status == 202
                took.append(time.perf_counter() - began)
    finally:
        stop.set()
        daemon.leave.set()
        for thread in threads:
            thread.join()
    assert len(taken(daemon)) == 50
    print(f"median {statistics.median(took):.4f} s, longest {max(took):.4f} s")
    assert statistics.median(took) < LATENCY_SECONDS
    assert statistics.quantiles(took, n=10)[-1] < LATENCY_SECONDS, sorted(took)[-10:]
