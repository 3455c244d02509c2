"""Who may ask the daemon: passwords, sessions, tokens, proxies, and pages of other sites."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from pydantic import ValidationError
from test_web import KEY, LOCAL, TOKEN, Daemon, serving
from typer.testing import CliRunner

from reclass_plex import password as password_module
from reclass_plex.cli import app as cli
from reclass_plex.config import TrustedProxy, WebOptions
from reclass_plex.errors import ConfigError
from reclass_plex.password import (
    check_password,
    has_password,
    make_password,
    password_file,
    set_password,
)
from reclass_plex.store import Store
from reclass_plex.web_keys import IDLE_SECONDS, LINK_SECONDS, MAX_SESSIONS, WebKeys
from service.web.access import COOKIE
from service.web.login_limit import LoginLimit
from service.web.server import WebServer

PASSWORD = "correct horse Größe"
PROXY = WebOptions(
    port=0,
    names=("music.example.org",),
    trusted_proxy=TrustedProxy(addresses=("127.0.0.0/8",), user_header="Remote-User"),  # type: ignore[arg-type]
)


@pytest.fixture(scope="module", autouse=True)
def cheap_scrypt() -> Iterator[None]:
    """The same function with less work: these tests sign in often."""
    patch = pytest.MonkeyPatch()
    patch.setattr(password_module, "_COST", 2**4)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Store.open(tmp_path_factory.mktemp("access") / "store.sqlite") as store:
        set_password(store.path, PASSWORD)
        yield Daemon(store)


@pytest.fixture(scope="module")
def shared(daemon: Daemon) -> Iterator[WebServer]:
    with serving(daemon) as server:
        yield server


@pytest.fixture
def server(daemon: Daemon) -> Iterator[WebServer]:
    """One that nobody tried a password at yet."""
    with serving(daemon) as server:
        yield server


@dataclass
class Browser:
    """Keeps a cookie, as a browser would."""

    server: WebServer
    cookie: str = ""
    csrf: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        given = {"Content-Type": "application/json", **self.headers}
        if self.cookie:
            given["Cookie"] = f"theme=dark; {COOKIE}={self.cookie}"
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request(method, path, data, {n: v for n, v in given.items() if v})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if sent := found.get("set-cookie"):
            match = re.match(rf'{COOKIE}="?([^;"]*)', sent)
            assert match is not None
            self.cookie = match[1]
        is_json = found.get("content-type", "").endswith("json")
        return answer.status, found, json.loads(content) if is_json else content

    def sign_in(self, password: str = PASSWORD) -> tuple[int, dict[str, str], Any]:
        answer = self.ask("POST", "/api/v1/session", {"password": password})
        if answer[0] == 204:
            self.csrf = self.ask("GET", "/api/v1/session")[2]["csrf"]
        return answer


# The password


def test_a_password_is_kept_as_a_hash_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "state" / "store.sqlite"
    assert not has_password(path)
    assert not check_password(path, "")
    set_password(path, "Gro\u0308ße of ten")
    file = password_file(path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "of ten" not in file.read_text()
    assert check_password(path, "Größe of ten")  # another keyboard
    for wrong in ("", "Größe of te", "größe of ten", "x" * 100_000, "\udcff"):
        assert not check_password(path, wrong)
    former = file.read_text()
    set_password(path, "Größe of ten")
    assert file.read_text() != former  # salted
    for short in ("", "123456789", "x" * 2000):
        with pytest.raises(ConfigError, match="10 to 1000"):
            set_password(path, short)
    assert len({make_password() for _ in range(50)}) == 50
    for damaged in ("", "plain", "scrypt$99999999$AAAA$AAAA", "scrypt$16$AAAA$AAAA", "a$b$c$d"):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match="reclass-plex password"):
            check_password(path, "anything at all")


# Sessions


def test_a_session_begins_with_the_password_and_ends(shared: WebServer) -> None:
    browser = Browser(shared)
    assert browser.ask("GET", "/api/v1/session")[0] == 401
    status, headers, _ = browser.sign_in()
    assert status == 204
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/" in cookie
    assert "Secure" not in cookie
    assert PASSWORD not in cookie
    status, headers, session = browser.ask("GET", "/api/v1/session")
    assert (session["kind"], session["scope"]) == ("session", "write")
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    key = browser.cookie
    assert browser.ask("DELETE", "/api/v1/session", X_CSRF_Token=browser.csrf)[0] == 204
    browser.cookie = key
    assert browser.ask("GET", "/api/v1/session")[0] == 401


def test_no_wrong_password_and_no_made_up_cookie_lets_in(server: WebServer) -> None:
    status, headers, problem = Browser(server).sign_in("wrong password")
    assert (status, problem["kind"]) == (401, "wrong-password")
    assert "set-cookie" not in headers
    for cookie in ("", "x", "A" * 43, "A" * 10_000, "\xe4", f"{TOKEN}"):
        assert Browser(server, cookie).ask("GET", "/api/v1/session")[0] == 401


def test_a_new_sign_in_takes_the_place_of_the_old_session(server: WebServer) -> None:
    browser = Browser(server)
    browser.sign_in()
    former = browser.cookie
    browser.sign_in()
    assert browser.cookie != former
    assert Browser(server, former).ask("GET", "/api/v1/session")[0] == 401


def test_the_store_holds_no_key_of_anybody(server: WebServer, daemon: Daemon) -> None:
    browser = Browser(server)
    browser.sign_in()
    token = WebKeys(daemon.store).make_token("secret keeper", "read", time.time())
    link = WebKeys(daemon.store).make_link(time.time())
    folder = daemon.store.path.parent
    content = b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    assert b"secret keeper" in content
    for secret in (browser.cookie, browser.csrf, token, link, PASSWORD):
        assert secret.encode() not in content


def test_sessions_end_by_themselves(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        keys = WebKeys(store)
        now = 1e9
        key = keys.begin_session(now)
        assert keys.find(key, "session", now + IDLE_SECONDS - 1) is not None
        assert keys.find(key, "session", now + 2 * IDLE_SECONDS - 2) is not None  # it was used
        assert keys.find(key, "session", now + 4 * IDLE_SECONDS) is None
        assert keys.find(key, "token", now) is None
        for number in range(MAX_SESSIONS + 5):
            keys.begin_session(now + number)
        assert len(keys.list_keys("session")) == MAX_SESSIONS
        link = keys.make_link(now)
        assert not keys.use_link(link, now + LINK_SECONDS + 1)
        assert keys.find(link, "session", now) is None
        assert keys.end_sessions() > MAX_SESSIONS
        assert keys.list_keys("session") == []


def test_a_link_signs_in_once(server: WebServer, daemon: Daemon) -> None:
    link = WebKeys(daemon.store).make_link(time.time())
    browser = Browser(server)
    status, headers, _ = browser.ask("GET", f"/login/{link}")
    assert (status, headers["location"]) == (303, "/")
    assert browser.ask("GET", "/api/v1/session")[0] == 200
    status, headers, _ = Browser(server).ask("GET", f"/login/{link}")
    assert status == 401
    assert "set-cookie" not in headers


def test_pages_lead_to_the_login_and_programs_are_told(shared: WebServer) -> None:
    browser = Browser(shared)
    status, headers, _ = browser.ask("GET", "/library?q=a&b=c", Accept="text/html")
    assert (status, headers["location"]) == (303, "/login?next=/library%3Fq%3Da%26b%3Dc")
    assert browser.ask("GET", "/", Accept="text/html")[1]["location"] == "/login"
    assert browser.ask("GET", "/library")[0] == 401
    for hidden in ("/login%3F/../api/v1/status", "/static/..%2Fapi%2Fstatus", "/api%2Fstatus"):
        assert browser.ask("GET", hidden)[0] in {401, 404}
    assert browser.ask("POST", "/library", Accept="text/html")[0] == 401
    assert browser.ask("GET", "/api/v1/status", Accept="text/html")[0] == 401


# Pages of other sites


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Sec-Fetch-Site": "same-origin"}, 204),
        ({"Origin": "http://127.0.0.1:{port}"}, 204),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"X-CSRF-Token": ""}, 403),
        ({"X-CSRF-Token": "wrong"}, 403),
        ({"X-CSRF-Token": "\xe4"}, 403),
    ],
)
def test_only_our_pages_change_anything(
    shared: WebServer, daemon: Daemon, headers: dict[str, str], status: int
) -> None:
    browser = Browser(shared)
    key = WebKeys(daemon.store).begin_session(time.time())
    browser.cookie = key
    browser.csrf = browser.ask("GET", "/api/v1/session")[2]["csrf"]
    given = {"X-CSRF-Token": browser.csrf} | headers
    given = {name: value.format(port=shared.port) for name, value in given.items()}
    daemon.paused = False
    assert browser.ask("POST", "/api/v1/pause", **given)[0] == status
    assert daemon.paused == (status == 204)


def test_every_route_that_changes_something_is_guarded(shared: WebServer, daemon: Daemon) -> None:
    """All that the description names, so that a new route is asked, too."""
    keys = WebKeys(daemon.store)
    browser = Browser(shared, keys.begin_session(time.time()))
    browser.csrf = browser.ask("GET", "/api/v1/session")[2]["csrf"]
    reader = keys.make_token("a reader", "read", time.time())
    described = browser.ask("GET", "/api/openapi.json")[2]["paths"]
    changing = [
        (method.upper(), re.sub(r"{\w+}", "1", path))
        for path, methods in described.items()
        for method in methods
        if method in {"post", "put", "patch", "delete"} and path != "/api/v1/session"
    ]
    for named in (
        ("PUT", "/api/v1/radio"),
        ("DELETE", "/api/v1/radio"),
        ("POST", "/api/v1/duplicates"),
        ("POST", "/api/v1/tracks/1/playlist"),
    ):
        assert named in changing
    ours = {"X-CSRF-Token": browser.csrf}
    for method, path in changing:
        if path.startswith("/webhook/"):
            continue
        for headers in ({}, ours | {"Origin": "http://evil.example"}, {"X-CSRF-Token": "wrong"}):
            assert browser.ask(method, path, {}, **headers)[0] == 403, (method, path, headers)
        token = {"Authorization": f"Bearer {reader}"}
        assert Browser(shared).ask(method, path, {}, **token)[0] == 403, (method, path)
        assert Browser(shared).ask(method, path, {})[0] == 401, (method, path)


def test_the_token_of_one_session_is_none_of_another(shared: WebServer, daemon: Daemon) -> None:
    keys = WebKeys(daemon.store)
    one, other = (Browser(shared, keys.begin_session(time.time())) for _ in range(2))
    token = one.ask("GET", "/api/v1/session")[2]["csrf"]
    assert other.ask("POST", "/api/v1/resume", X_CSRF_Token=token)[0] == 403
    assert one.ask("POST", "/api/v1/resume", X_CSRF_Token=token)[0] == 204


def test_a_form_may_carry_the_token(shared: WebServer, daemon: Daemon) -> None:
    browser = Browser(shared, WebKeys(daemon.store).begin_session(time.time()))
    token = browser.ask("GET", "/api/v1/session")[2]["csrf"]
    form = "application/x-www-form-urlencoded"

    def send(body: bytes, kind: str = form) -> int:
        return browser.ask("POST", "/api/v1/pause", body, Content_Type=kind)[0]

    assert send(urlencode({"a": "b" * 5000, "csrf_token": token}).encode()) == 204
    assert send(urlencode({"csrf_token": token[:-1]}).encode()) == 403
    assert send(urlencode({"csrf_token": token}).encode(), "text/plain") == 403
    assert send(b"&".join([b"a=b"] * 5000)) == 400
    assert send(b"a" * (1 << 20) + b"a") == 413
    assert send(b"\xff\xfe%%%=") == 403


def test_nobody_signs_a_stranger_in(server: WebServer) -> None:
    browser = Browser(server)
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        body = {"password": PASSWORD}
        assert browser.ask("POST", "/api/v1/session", body, **headers)[0] == 403
    assert not browser.cookie


# Tokens


def test_a_token_does_what_its_scope_says_until_it_is_revoked(
    shared: WebServer, daemon: Daemon
) -> None:
    keys = WebKeys(daemon.store)
    read = keys.make_token("reader", "read", time.time())
    write = keys.make_token("writer", "write", time.time())
    old = keys.make_token("old", "write", time.time() - 10 * 86400, days=1)

    def ask(method: str, path: str, token: str, **headers: str) -> int:
        return Browser(shared).ask(method, path, Authorization=f"Bearer {token}", **headers)[0]

    assert ask("GET", "/api/v1/status", read) == ask("GET", "/api/v1/status", write) == 200
    assert ask("POST", "/api/v1/pause", read) == 403
    assert ask("POST", "/api/v1/pause", write) == 204
    assert ask("POST", "/api/v1/pause", write, Origin="http://evil.example") == 204  # no browser
    assert ask("GET", "/api/v1/status", old) == 401
    assert ask("GET", "/api/v1/status", read + "x") == 401
    session = keys.begin_session(time.time())
    assert ask("GET", "/api/v1/status", session) == 401  # no token
    assert Browser(shared, read).ask("GET", "/api/v1/status")[0] == 401  # and no session
    # A wrong token is not made up for by a good cookie.
    assert ask("GET", "/api/v1/status", "wrong", Cookie=f"{COOKIE}={session}") == 401
    assert keys.revoke_token("reader")
    assert not keys.revoke_token("reader")
    assert ask("GET", "/api/v1/status", read) == 401
    for name in ("writer", "", " ", "x" * 101, "a\nb"):
        with pytest.raises(ConfigError):
            keys.make_token(name, "read", 0)


# Brute force


def test_passwords_cannot_be_tried_at_will(server: WebServer) -> None:
    browser = Browser(server)
    answers = [browser.sign_in("wrong password") for _ in range(7)]
    assert [status for status, _, _ in answers] == [401] * 5 + [429] * 2
    _, headers, problem = answers[-1]
    assert 1 <= int(headers["retry-after"]) <= 30
    assert problem["kind"] == "too-many-tries"
    assert browser.sign_in()[0] == 429  # the right one, too


def test_who_tries_from_everywhere_does_not_lock_the_owner_out() -> None:
    limit = LoginLimit()
    limit.succeeded("192.168.1.9")
    waits = [limit.take(f"10.0.{n // 200}.{n % 200}", 100.0) for n in range(20_000)]
    assert waits.count(0.0) == 30
    assert limit.take("203.0.113.5", 100.0) > 0
    assert limit.take("192.168.1.9", 100.0) == 0
    assert limit.take("127.0.0.1", 100.0) == 0
    assert limit.take("203.0.113.5", 103.0) == 0  # and a stranger waits some seconds


def test_an_address_has_few_tries_and_gets_them_back() -> None:
    limit = LoginLimit()
    assert [limit.take("10.0.0.1", 0.0) == 0 for _ in range(6)] == [True] * 5 + [False]
    assert limit.take("10.0.0.2", 0.0) == 0
    assert limit.take("10.0.0.1", 29.0) == pytest.approx(1.0)
    assert limit.take("10.0.0.1", 30.5) == 0
    assert [limit.take(f"2001:db8::{n}", 100.0) == 0 for n in range(6)] == [True] * 5 + [False]
    assert limit.take("::ffff:10.0.0.3", 100.0) == 0
    limit.succeeded("10.0.0.1")
    assert [limit.take("10.0.0.1", 40.0) == 0 for _ in range(5)] == [True] * 5
    assert limit.take("10.0.0.1", -1e9) > 0  # a clock that goes back gives nothing away


# Proxies and names


def test_a_trusted_proxy_says_who_it_is(daemon: Daemon) -> None:
    with serving(daemon, PROXY) as server:
        browser = Browser(server, headers={"Host": "music.example.org", "Remote-User": "Ann"})
        status, _, session = browser.ask("GET", "/api/v1/session")
        assert (status, session["kind"], session["name"]) == (200, "proxy", "Ann")
        token = session["csrf"]
        assert browser.ask("POST", "/api/v1/pause")[0] == 403
        assert browser.ask("POST", "/api/v1/pause", X_CSRF_Token=token)[0] == 204
        other = browser.ask("POST", "/api/v1/pause", X_CSRF_Token=token, Remote_User="Eve")
        assert other[0] == 403
        for nobody in ("", " ", "x" * 300):
            assert browser.ask("GET", "/api/v1/session", Remote_User=nobody)[0] == 401
        browser = Browser(server, headers={"Host": "music.example.org"})
        _, headers, _ = browser.ask(
            "POST", "/api/v1/session", {"password": PASSWORD}, X_Forwarded_Proto="https"
        )
        assert "Secure" in headers["set-cookie"]


def test_each_address_behind_a_proxy_has_its_own_tries(daemon: Daemon) -> None:
    with serving(daemon, PROXY) as server:
        browser = Browser(server)

        def wrong(forwarded: str) -> int:
            body = {"password": "wrong password"}
            return browser.ask("POST", "/api/v1/session", body, X_Forwarded_For=forwarded)[0]

        # What is before the last stranger's address anybody can write.
        tries = [wrong(f"10.9.9.{n}, 203.0.113.5, 127.0.0.2") for n in range(6)]
        assert tries == [401] * 5 + [429]
        assert wrong("203.0.113.6") == 401


def test_who_is_no_proxy_is_not_believed(shared: WebServer) -> None:
    browser = Browser(shared, headers={"Remote-User": "Ann", "X-Forwarded-Proto": "https"})
    assert browser.ask("GET", "/api/v1/session")[0] == 401
    assert browser.ask("GET", "/api/v1/session", Host="music.example.org")[0] == 421


@pytest.mark.parametrize(
    "wrong",
    [
        {"trusted_proxy": {"addresses": []}},
        {"trusted_proxy": {"addresses": ["no.address"]}},
        {"trusted_proxy": {"addresses": ["10.0.0.1"], "user_header": "a b"}},
        {"names": ["http://x"]},
        {"names": ["UPPER"]},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WebOptions.model_validate(wrong)


def test_without_a_password_no_password_lets_in(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store, serving(Daemon(store), LOCAL) as server:
        for wrong in ("password", "None", " "):
            status, _, problem = Browser(server).sign_in(wrong)
            assert (status, problem["kind"]) == (401, "wrong-password")
            assert "reclass-plex password" in problem["detail"]
        assert Browser(server).ask("GET", "/api/v1/status")[0] == 401


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.9", False),
        ("music.example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_it_is_known_what_other_machines_reach(host: str, local: bool) -> None:
    assert WebOptions(host=host).is_local is local


NETWORK = WebOptions(host="0.0.0.0", port=0)
OTHER = "192.168.1.9"  # as which another machine would know us


def test_on_the_network_nobody_is_served_before_there_is_a_password(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store, serving(Daemon(store), NETWORK) as server:
        link = WebKeys(store).make_link(time.time())
        browser = Browser(server, headers={"Host": OTHER})
        for method, path in (
            ("GET", "/"),
            ("GET", "/login"),
            ("GET", f"/login/{link}"),
            ("GET", "/api/v1/tracks"),
            ("GET", "/api/events"),
            ("GET", "/metrics"),
            ("POST", "/api/v1/session"),
        ):
            status, _, problem = browser.ask(method, path, Accept="text/html")
            assert (status, problem["status"]) == (403, 403), path
            assert "reclass-plex password" in problem["detail"]
        assert browser.ask("GET", "/healthz")[0] == 200
        assert browser.ask("POST", f"/webhook/{KEY}", b"{}")[0] == 400  # malformed, but let in
        assert browser.ask("GET", "/api/v1/status", Authorization=f"Bearer {TOKEN}")[0] == 200
        set_password(store.path, PASSWORD)
        assert browser.ask("GET", "/api/v1/tracks")[0] == 401
        assert browser.sign_in()[0] == 204
        assert browser.ask("GET", "/api/v1/tracks")[0] == 200


def test_on_the_network_a_token_that_holds_is_enough(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store, serving(Daemon(store), NETWORK) as server:
        browser, keys = Browser(server, headers={"Host": OTHER}), WebKeys(store)
        old = keys.make_token("old", "read", time.time() - 9 * 86400, days=1)
        assert browser.ask("GET", "/api/v1/tracks", Authorization=f"Bearer {old}")[0] == 403
        token = keys.make_token("new", "read", time.time())
        assert browser.ask("GET", "/api/v1/tracks", Authorization=f"Bearer {token}")[0] == 200
        keys.revoke_token("new")
        assert browser.ask("GET", "/api/v1/tracks", Authorization=f"Bearer {token}")[0] == 403


# The commands


@contextlib.contextmanager
def configured(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    config, path = tmp_path / "config.yaml", tmp_path / "state" / "store.sqlite"
    config.write_text(f"store: {{path: {path}}}\n")
    yield config, path


def test_commands_set_the_password_and_keep_tokens(tmp_path: Path) -> None:
    run = CliRunner()
    with configured(tmp_path) as (config, path):
        option = ["--config", str(config)]
        made = run.invoke(cli, ["password", "--generate", *option])
        assert made.exit_code == 0
        assert check_password(path, made.stdout.split()[0])
        with Store.open(path) as store:
            key = WebKeys(store).begin_session(time.time())
        assert run.invoke(cli, ["password", *option], input="another one!\n").exit_code == 0
        assert check_password(path, "another one!")
        with Store.open(path) as store:  # everybody was signed out
            assert WebKeys(store).find(key, "session", time.time()) is None
        created = run.invoke(cli, ["token", "create", "grafana", *option])
        assert created.stdout.startswith("rplex_")
        with Store.open(path) as store:
            found = WebKeys(store).find(created.stdout.strip(), "token", time.time())
        assert found is not None
        assert found.scope == "read"
        listed = run.invoke(cli, ["token", "list", "--json", *option])
        assert json.loads(listed.stdout)["name"] == "grafana"
        assert "grafana: read" in run.invoke(cli, ["token", "list", *option]).stdout
        assert run.invoke(cli, ["token", "revoke", "grafana", *option]).exit_code == 0
        assert run.invoke(cli, ["token", "list", *option]).stdout == ""


def test_init_makes_a_password_once_and_says_it(tmp_path: Path) -> None:
    music = tmp_path / "music"
    music.mkdir()
    with configured(tmp_path) as (config, path):
        path.parent.mkdir()
        options = ["--no-plex", "--folder", str(music), "--yes", "--config", str(config)]
        first = CliRunner().invoke(cli, ["init", *options])
        assert first.exit_code == 0, first.output
        said = re.search(r"has the password (\S+)", first.output)
        assert said is not None
        assert check_password(path, said[1])
        second = CliRunner().invoke(cli, ["init", *options])
        assert second.exit_code == 0
        assert "has the password" not in second.output
        assert check_password(path, said[1])
