"""The daemon's HTTP interface, over real sockets, and the client that the command line uses."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.applications import Starlette
from timing import timed

from reclass_plex.config import Config, WebOptions
from reclass_plex.errors import ConfigError, DaemonError, PlexUnreachable
from reclass_plex.jobs import Job, Jobs, State
from reclass_plex.plex import Plex
from reclass_plex.remote import (
    DaemonClient,
    FolderStatus,
    PlexStatus,
    ReclassifyResult,
    Status,
    daemon_file,
    find_daemon,
    remove_daemon_file,
    write_daemon_file,
)
from reclass_plex.selection import Selection
from reclass_plex.store import Store
from service.actions import Actions
from service.events import Events
from service.hints import Hint
from service.web import server as server_module
from service.web.app import create_app
from service.web.gate import MAX_BODY
from service.web.server import MAX_CONNECTIONS, WebServer

KEY = "Z9-an_unguessable-key"
TOKEN = "an-api-token"
STRANGE = Path(os.fsdecode(b"/music/caf\xe9 \xff.mp3"))  # no UTF-8
LOCAL = WebOptions(host="127.0.0.1", port=0)


def no_plex() -> contextlib.AbstractContextManager[Plex]:
    raise ConfigError("there is no Plex server; set plex.url")


class Daemon:
    """What the interface needs of a daemon, with a real queue and store behind it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.jobs = Jobs(store)
        config_file = store.path.with_name("daemon.yaml")  # for commands that it starts
        config_file.write_text(f"store: {{path: {store.path}}}\n")
        self.actions = Actions(store, Config, no_plex, events=Events(), config_file=config_file)
        self.hints: queue.SimpleQueue[Hint] = queue.SimpleQueue()
        self.uuid: str | None = None
        self.started = True
        self.paused = False
        self.selected: list[tuple[Selection, bool]] = []
        self.error: Exception | None = None
        self.entered, self.leave = threading.Event(), threading.Event()
        self.leave.set()

    def config(self) -> Config:
        return Config()

    def config_file(self) -> Path | None:
        return None

    def status(self) -> Status:
        self.entered.set()
        self.leave.wait(20)
        return Status(
            version="0.1.0",
            state="paused" if self.paused else "idle",
            why="asked for" if self.paused else None,
            jobs=self.jobs.counts(),
            plex=PlexStatus(state="unreachable", message="no answer", pending=3),
            folders=(FolderStatus(path=STRANGE.parent / STRANGE.name, state="polling", why="NFS"),),
            models_loaded=True,
            tracks_done=7,
            since=1_000_000.5,
        )

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def reclassify(self, selection: Selection, dry_run: bool) -> ReclassifyResult:
        if self.error is not None:
            raise self.error
        self.selected.append((selection, dry_run))
        if not dry_run:
            self.jobs.enqueue(selection.paths, "asked", time.time())
        return ReclassifyResult(count=len(selection.paths), sample=selection.paths[:5])

    def list_jobs(self, states: Collection[State], limit: int, offset: int) -> list[Job]:
        return self.jobs.list_jobs(*states, limit=limit, offset=offset)

    def revive(self, ids: Collection[int] | None) -> int:
        return self.jobs.revive(time.time(), ids)

    def hint(self, hint: Hint) -> None:
        self.hints.put(hint)

    def server_uuid(self) -> str | None:
        return self.uuid

    def ready(self) -> bool:
        return self.started


@contextlib.contextmanager
def serving(daemon: Daemon, options: WebOptions = LOCAL) -> Iterator[WebServer]:
    """Serve, on 127.0.0.1 whatever the options say; when it ends no thread may be left."""
    before = set(threading.enumerate())
    app = create_app(daemon, daemon.store, webhook_key=KEY, api_token=TOKEN, options=options)
    server = WebServer(app, options.model_copy(update={"host": LOCAL.host}))
    server.start()
    try:
        yield server
    finally:
        server.stop()
    wait_for(lambda: set(threading.enumerate()) <= before, 5)


def wait_for(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield Daemon(store)


@pytest.fixture
def server(daemon: Daemon) -> Iterator[WebServer]:
    with serving(daemon) as server:
        yield server


@pytest.fixture
def client(server: WebServer) -> DaemonClient:
    return DaemonClient(server.url, TOKEN)


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all the tests that change nothing."""
    with Store.open(tmp_path_factory.mktemp("shared") / "store.sqlite") as store:
        yield Daemon(store)


@pytest.fixture(scope="module")
def shared(shared_daemon: Daemon) -> Iterator[WebServer]:
    with serving(shared_daemon) as server:
        yield server


def ask(
    server: WebServer,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON. Headers by keyword: Content_Type is Content-Type."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, {n: v for n, v in given.items() if v})
        answer = connection.getresponse()
        content = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, json.loads(content) if content else None
    finally:
        connection.close()


def raw(server: WebServer, text: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(text)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes, or cuts the connection."""
    with connection:
        content = b""
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                content += chunk
        return content


# Health


def test_health_needs_no_token(server: WebServer, daemon: Daemon) -> None:
    status, _, answer = ask(server, "GET", "/healthz", Authorization="", Host="evil.example")
    assert (status, answer) == (200, {"pid": os.getpid()})
    assert ask(server, "GET", "/readyz", Authorization="")[0] == 200
    daemon.started = False
    status, headers, problem = ask(server, "GET", "/readyz", Authorization="")
    assert (status, problem["status"]) == (503, 503)
    assert headers["content-type"] == "application/problem+json"


# What the command line asks


def test_status_travels_whole(client: DaemonClient, daemon: Daemon) -> None:
    daemon.jobs.enqueue([STRANGE], "watch", 1.0)
    assert client.status() == daemon.status()
    assert client.status().jobs["ready"] == 1
    assert client.status().folders[0].path == STRANGE


def test_pause_and_resume(client: DaemonClient, daemon: Daemon) -> None:
    client.pause()
    assert daemon.paused
    assert client.status().state == "paused"
    client.resume()
    assert not daemon.paused


def test_paths_that_are_no_utf8_travel_both_ways(client: DaemonClient, daemon: Daemon) -> None:
    selection = Selection(paths=(STRANGE, Path("/music/Größe 音.flac")), below=0.6)
    result = client.reclassify(selection, dry_run=True)
    assert daemon.selected == [(selection, True)]
    assert result == ReclassifyResult(count=2, sample=selection.paths)
    assert client.list_jobs(["ready"]) == []
    client.reclassify(selection, dry_run=False)
    assert {job.path for job in client.list_jobs(["ready"])} == set(selection.paths)
    assert os.fsencode(client.list_jobs(["ready"])[0].path).startswith(b"/music/")


def test_every_criterion_travels(client: DaemonClient, daemon: Daemon) -> None:
    selection = Selection(
        library="Music", album="A/B", genre="Soul/R&B", older_model=True, everything=True
    )
    client.reclassify(selection, dry_run=True)
    assert daemon.selected == [(selection, True)]


def test_dead_letters_are_listed_in_pages_and_revived(client: DaemonClient, daemon: Daemon) -> None:
    paths = [Path(f"/music/{number}.mp3") for number in range(25)]
    daemon.jobs.enqueue(paths, "watch", 1.0)
    held = daemon.jobs.claim(25, 2.0, owner="me", lease=60)
    daemon.jobs.park([job.id for job in held], "me", 3.0, message="is empty")
    listed = client.list_jobs(["failed"], limit=10) + client.list_jobs(
        ["failed"], limit=100, offset=10
    )
    assert listed == daemon.jobs.list_jobs("failed")
    assert {job.message for job in listed} == {"is empty"}
    assert client.list_jobs(["done", "ready"]) == []
    assert client.revive([listed[0].id, listed[1].id, 999_999]) == 2
    assert client.revive() == 23
    assert len(client.list_jobs(["ready", "failed"], limit=1000)) == 25


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/jobs?state=nonsense", None),
        ("GET", "/api/jobs?limit=0", None),
        ("GET", "/api/jobs?limit=1001", None),
        ("GET", "/api/jobs?offset=-1", None),
        ("GET", "/api/jobs?offset=99999999999999999999", None),
        ("POST", "/api/v1/reclassify", b""),
        ("POST", "/api/v1/reclassify", b"{"),
        ("POST", "/api/v1/reclassify", b"[]"),
        ("POST", "/api/v1/reclassify", b'{"selection": {}}'),
        ("POST", "/api/v1/reclassify", b'{"selection": {"below": 7}}'),
        ("POST", "/api/v1/reclassify", b'{"selection": {"below": NaN}}'),
        ("POST", "/api/v1/reclassify", b'{"selection": {"paths": ["not/full"]}}'),
        ("POST", "/api/v1/reclassify", b'{"selection": {"paths": ["/a\\u0000b"]}}'),
        ("POST", "/api/v1/reclassify", b'{"selection": {"paths": ["/\\ud800"]}}'),
        ("POST", "/api/v1/reclassify", b'{"selection": {"everything": true, "more": 1}}'),
        ("POST", "/api/v1/jobs/revive", b'{"ids": ["x"]}'),
        ("POST", "/api/v1/jobs/revive", b'{"ids": [99999999999999999999999]}'),
        ("POST", "/api/v1/jobs/revive", b'{"ids": "all"}'),
    ],
)
def test_wrong_use_is_explained(
    shared: WebServer, shared_daemon: Daemon, method: str, path: str, body: bytes | None
) -> None:
    status, headers, problem = ask(shared, method, path, body=body)
    assert status == problem["status"] == 422
    assert headers["content-type"] == "application/problem+json"
    assert problem["errors"]
    assert problem["errors"][0]["message"] in problem["detail"]
    assert shared_daemon.selected == []


def test_json_that_is_too_deep_or_no_utf8_is_refused(shared: WebServer) -> None:
    for body in (b"[" * 100_000, b'{"selection": {"album": "\xff"}}'):
        status, _, problem = ask(shared, "POST", "/api/v1/reclassify", body=body)
        assert (status, problem["status"]) == (400, 400)


def test_unknown_paths_and_methods_are_problems_too(shared: WebServer) -> None:
    for method, path, expected in (
        ("GET", "/", 404),
        ("GET", "/api", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/v1/status/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("DELETE", "/api/v1/status", 405),
        ("GET", f"/webhook/{KEY}", 405),
    ):
        status, headers, problem = ask(shared, method, path)
        assert (status, problem["status"]) == (expected, expected), path
        assert headers["content-type"] == "application/problem+json"
        assert KEY not in json.dumps(problem)


def test_errors_keep_their_words_and_bugs_keep_their_secrets(
    client: DaemonClient, server: WebServer, daemon: Daemon
) -> None:
    everything = Selection(everything=True)
    daemon.error = ConfigError("--library: there is no Plex server; set plex.url")
    with pytest.raises(DaemonError, match=r"there is no Plex server; set plex\.url"):
        client.reclassify(everything, dry_run=False)
    body = b'{"selection": {"everything": true}}'
    status, _, problem = ask(server, "POST", "/api/v1/reclassify", body=body)
    assert (status, problem["kind"]) == (422, "config")
    daemon.error = PlexUnreachable("Plex is away")
    assert ask(server, "POST", "/api/v1/reclassify", body=body)[0] == 503
    daemon.error = ZeroDivisionError("a secret detail")
    status, headers, problem = ask(server, "POST", "/api/v1/reclassify", body=body)
    assert (status, headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in json.dumps(problem)
    assert "Traceback" not in json.dumps(problem)
    assert client.status().state == "idle"


# Who may ask


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer caf\xe9"],
)
def test_nothing_without_the_token(
    shared: WebServer, shared_daemon: Daemon, authorization: str
) -> None:
    for method, path in (
        ("GET", "/api/v1/status"),
        ("POST", "/api/v1/pause"),
        ("GET", "/api/nothing"),
        ("POST", "/api/v1/reclassify"),
    ):
        body = b'{"selection": {"everything": true}}' if method == "POST" else None
        status, headers, _ = ask(shared, method, path, body=body, Authorization=authorization)
        assert status == 401
        assert headers["www-authenticate"] == "Bearer"
    assert not shared_daemon.paused
    assert shared_daemon.selected == []


def test_an_empty_secret_is_no_secret(daemon: Daemon) -> None:
    for key, token in (("", TOKEN), (KEY, "")):
        with pytest.raises(ValueError, match="must not be empty"):
            create_app(daemon, daemon.store, webhook_key=key, api_token=token)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8787", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8787", 200),
        ("evil.example", 421),
        ("evil.example:8787", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.168.1.9", 421),
        ("", 421),
    ],
)
def test_a_page_cannot_come_by_its_own_host_name(shared: WebServer, host: str, status: int) -> None:
    request = f"GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    answer = rest(raw(shared, f"{request}Connection: close\r\n\r\n".encode()))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


def test_on_all_addresses_any_address_may_be_named(daemon: Daemon) -> None:
    options = WebOptions(host="0.0.0.0", port=0)
    with serving(daemon, options) as server:
        assert WebServer(Starlette(), options).url == "http://127.0.0.1:0"
        assert ask(server, "GET", "/api/v1/status", Host="192.168.1.9:8787")[0] == 200
        assert ask(server, "GET", "/api/v1/status", Host="0.0.0.0")[0] == 200
        assert ask(server, "GET", "/api/v1/status", Host="evil.example")[0] == 421


# Bounds


def test_a_body_beyond_the_limit_is_refused_unread(server: WebServer, daemon: Daemon) -> None:
    head = (
        f"POST /api/v1/reclassify HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    )
    said = rest(raw(server, f"{head}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode()))
    assert said.startswith(b"HTTP/1.1 413 ")
    connection = raw(
        server,
        f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
    )
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 4 * MAX_BODY:
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent += 65536
    rest(connection)
    assert sent < 3 * MAX_BODY  # what lies in the kernel's buffers on the way counts, too
    assert daemon.selected == []
    assert ask(server, "GET", "/api/v1/status")[0] == 200


@timed
def test_who_sends_nothing_or_never_ends_is_cut_off(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.5)
    slow = [
        raw(server),
        raw(server, b"GET /heal"),
        raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: "),
        raw(server, f"POST /webhook/{KEY} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n".encode()),
        raw(
            server,
            f"POST /webhook/{KEY} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode(),
        ),
        raw(server, b"POST /webhook/wrong HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\nab"),
    ]
    began = time.monotonic()
    while time.monotonic() - began < 0.8:  # a byte now and then is no excuse
        with contextlib.suppress(OSError):
            slow[2].send(b"x")
        time.sleep(0.05)
    answers = [rest(one) for one in slow]
    assert time.monotonic() - began < 3
    assert [answer[:12] for answer in answers] == [b""] * 5 + [b"HTTP/1.1 404"]


def test_a_slow_answer_is_no_slow_request(
    server: WebServer, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    daemon.leave.clear()
    timer = threading.Timer(0.6, daemon.leave.set)
    timer.start()
    assert ask(server, "GET", "/api/v1/status")[0] == 200
    timer.join()


def test_one_connection_serves_many_requests(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.3)
    with requests.Session() as session:
        for _ in range(4):
            assert session.get(f"{server.url}/healthz", timeout=5).status_code == 200
            time.sleep(0.15)


def test_idle_connections_keep_nobody_out(server: WebServer, daemon: Daemon) -> None:
    daemon.leave.clear()
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(ask(server, "GET", "/api/v1/status")[0]))
    asking.start()
    assert daemon.entered.wait(5)
    idle = [raw(server, b"GET / HTTP/1.1\r\n") for _ in range(3 * MAX_CONNECTIONS)]
    try:
        assert ask(server, "GET", "/healthz")[0] == 200
        wait_for(lambda: len(server._server.server_state.connections) <= MAX_CONNECTIONS)
    finally:
        daemon.leave.set()
        asking.join()
        for one in idle:
            one.close()
    assert found == [200]  # who is being answered is not put out


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"\x00\xff" * 5000,
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000,
        b"GET /" + b"a" * 200_000,
        b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    ],
)
def test_garbage_ends_its_own_connection_only(shared: WebServer, garbage: bytes) -> None:
    connection = socket.create_connection(("127.0.0.1", shared.port), timeout=10)
    with contextlib.suppress(ConnectionError):
        connection.sendall(garbage)
    answer = rest(connection)
    assert answer[:12] in {b"HTTP/1.1 400", b""}
    assert ask(shared, "GET", "/healthz")[0] == 200


# Start and stop


def test_a_taken_port_is_a_matter_of_configuration(server: WebServer, daemon: Daemon) -> None:
    app = create_app(daemon, daemon.store, webhook_key=KEY, api_token=TOKEN)
    with pytest.raises(ConfigError, match=rf"web\.port: has value {server.port}.*in use"):
        WebServer(app, WebOptions(port=server.port)).start()
    with pytest.raises(ConfigError, match=r"web\.host: has value 'no-such-host\.invalid'"):
        WebServer(app, WebOptions(host="no-such-host.invalid", port=0)).start()
    with pytest.raises(ConfigError, match=r"web\.host: has value '192\.0\.2\.1'"):
        WebServer(app, WebOptions(host="192.0.2.1", port=0)).start()


def test_the_port_is_free_again_at_once(daemon: Daemon) -> None:
    with serving(daemon) as server:
        port = server.port
        assert ask(server, "GET", "/healthz")[0] == 200
    with serving(daemon, WebOptions(port=port)) as server:
        assert server.port == port
        assert ask(server, "GET", "/healthz")[0] == 200


def test_localhost_is_all_of_its_addresses(daemon: Daemon) -> None:
    with serving(daemon, WebOptions(host="localhost", port=0)) as server:
        assert ask(server, "GET", "/api/v1/status")[0] == 200


def test_an_answer_waits_for_no_acknowledgement() -> None:
    (listening,) = server_module._listen(WebOptions(port=0))
    with listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@timed
def test_stopping_waits_for_nobody_who_only_holds_a_connection(daemon: Daemon) -> None:
    with serving(daemon) as server:
        head = f"POST /webhook/{KEY} HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n"
        form = "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        held = [raw(server), raw(server, b"GET /he"), raw(server, (head + form).encode())]
        wait_for(lambda: len(server._server.server_state.connections) == len(held))
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3
        for one in held:
            one.close()


@timed
def test_stopping_waits_for_no_answer_beyond_its_time(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(daemon) as server:
        daemon.leave.clear()
        head = (
            f"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        )
        connection = raw(server, f"{head}\r\n".encode())
        assert daemon.entered.wait(5)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3
        assert rest(connection).startswith(b"HTTP/1.1 503 ")
        assert "GET /api/v1/status was cut off: stopping" in caplog.text
        assert "Traceback" not in caplog.text
        daemon.leave.set()


# Finding the daemon


def test_the_daemon_is_found_beside_its_store(
    server: WebServer, daemon: Daemon, tmp_path: Path
) -> None:
    store_path = tmp_path / "store.sqlite"
    assert find_daemon(store_path) is None
    write_daemon_file(store_path, server.url, "an old token")
    write_daemon_file(store_path, server.url, TOKEN)
    assert daemon_file(store_path) == tmp_path / "daemon.json"
    assert stat.S_IMODE(daemon_file(store_path).stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("daemon.json", "store.sqlite", "store.sqlite-wal", "store.sqlite-shm"),
        *("store.sqlite.users", "daemon.yaml"),
    }
    found = find_daemon(store_path)
    assert found is not None
    assert found.status().state == "idle"
    assert find_daemon(tmp_path / "another.sqlite") is None
    remove_daemon_file(store_path)
    remove_daemon_file(store_path)
    assert find_daemon(store_path) is None


def test_what_a_dead_daemon_left_behind_misleads_nobody(server: WebServer, tmp_path: Path) -> None:
    store_path = tmp_path / "store.sqlite"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    write_daemon_file(store_path, f"http://127.0.0.1:{port}", TOKEN)
    assert find_daemon(store_path) is None  # nobody answers
    path = daemon_file(store_path)
    write_daemon_file(store_path, server.url, TOKEN)
    entry = json.loads(path.read_bytes())
    path.write_text(json.dumps({**entry, "pid": entry["pid"] + 1}))
    assert find_daemon(store_path) is None  # another process has the port now
    remove_daemon_file(store_path)
    assert path.exists()  # not ours to remove
    for damaged in (b"", b"{", b"[]", b"\xff", b'{"pid": 1}'):
        path.write_bytes(damaged)
        assert find_daemon(store_path) is None


@timed
def test_who_answers_nothing_is_not_waited_for(tmp_path: Path) -> None:
    store_path = tmp_path / "store.sqlite"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        write_daemon_file(store_path, f"http://127.0.0.1:{silent.getsockname()[1]}", TOKEN)
        began = time.monotonic()
        assert find_daemon(store_path) is None
        assert time.monotonic() - began < 4


def test_the_token_is_shown_to_the_daemon_only(tmp_path: Path) -> None:
    """Whoever has the port after a crash is asked without it."""
    store_path = tmp_path / "store.sqlite"
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            connection, _ = stranger.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=answer)
        thread.start()
        write_daemon_file(store_path, f"http://127.0.0.1:{stranger.getsockname()[1]}", TOKEN)
        assert find_daemon(store_path) is None
        thread.join()
    assert heard[0].startswith(b"GET /healthz")
    assert TOKEN.encode() not in heard[0]


def test_a_daemon_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    daemon_file(tmp_path / "store.sqlite").mkdir()  # root, who tests here, may read any file
    with pytest.raises(DaemonError, match=r"daemon\.json: cannot be read.*user that the daemon"):
        find_daemon(tmp_path / "store.sqlite")
    (tmp_path / "none").touch()  # no folder
    with pytest.raises(DaemonError, match=r"daemon\.json: cannot be written"):
        write_daemon_file(tmp_path / "none" / "store.sqlite", "http://127.0.0.1:1", TOKEN)


def test_the_client_says_what_is_wrong(
    server: WebServer, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DaemonError, match="does not know our token") as refused:
        DaemonClient(server.url, "wrong-token").status()
    assert "wrong-token" not in str(refused.value)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy has no say here
    assert DaemonClient(server.url, TOKEN).status().state == "idle"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DaemonError, match=r"did not answer /api/v1/status within 0\.3 s"):
            DaemonClient(url, TOKEN)._call("GET", "/api/v1/status", timeout=0.3)
    with pytest.raises(DaemonError, match="does not answer"):
        DaemonClient(url, TOKEN).status()


def test_no_secret_is_logged(
    server: WebServer, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    daemon.error = ZeroDivisionError()
    ask(server, "POST", f"/webhook/{KEY}", body=b"{}")
    ask(server, "POST", "/api/v1/reclassify", body=b'{"selection": {"everything": true}}')
    rest(raw(server, f"GET /webhook/{KEY} HTTP/9\r\n\r\n".encode()))
    assert "ZeroDivisionError" in caplog.text
    assert KEY not in caplog.text
    assert TOKEN not in caplog.text
