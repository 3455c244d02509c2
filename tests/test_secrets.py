"""No secret is ever said: the whole program is made to stumble, and all that it says is searched.

A real daemon with every secret it can have, real commands, a Plex that refuses, fails and talks
rubbish, a station and a notification's receiver that refuse. What is searched: logs at every level,
outputs, answers of the web, the store's folder, and each process' command line and environment.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from daemon_tools import DEMO, PATIENCE, Daemon, Site, hang_up, wait_until
from plex_server import PlexStandIn
from radio import make_station

from reclass_plex import redaction
from reclass_plex.config import parse_config
from reclass_plex.errors import ConfigError, StreamError
from reclass_plex.http_stream import HttpStream
from reclass_plex.password import set_password
from reclass_plex.redaction import HidingFormatter, hide_secrets, remember, remember_address
from reclass_plex.store import Store
from reclass_plex.web_keys import WebKeys
from service.events import Events
from service.radio import Radio

FORMS = ("environment, long", "files, long")
TRACK = "Muldjord - Mutilated Mime.mp3"


def fresh(name: str) -> str:
    """Return a secret that stands nowhere else, and of which a hit tells which it is."""
    return f"S3cret{name}{secrets.token_hex(10)}"


@dataclass
class Search:
    """What must not be found, and where it was."""

    values: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def add(self, name: str) -> str:
        self.values[name] = fresh(name)
        return self.values[name]

    def forms(self) -> Iterator[tuple[str, bytes]]:
        for name, value in self.values.items():
            basic = base64.b64encode(f"user:{value}".encode())
            for form in {value.encode(), quote(value, safe="").encode(), basic}:
                yield name, form

    def look(self, where: str, data: bytes | str) -> None:
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        for name, form in self.forms():
            if (at := raw.find(form)) >= 0:
                around = raw[max(0, at - 200) : at + len(form) + 40]
                self.found.append(f"{name} in {where}: {around!r}")


class Processes:
    """Looks at every process of the machine again and again: command lines, and environments.

    `owners` may have secrets in their environments: it is from there that they have them.
    """

    def __init__(self, search: Search) -> None:
        self.owners = {os.getpid()}
        self.looks = 0
        self._search = search
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        seen: set[tuple[int, bytes, bytes]] = set()
        while not self._over.wait(0.05):
            for folder in Path("/proc").iterdir():
                if folder.name.isdecimal():
                    with suppress(OSError):
                        line = (folder / "cmdline").read_bytes()
                        environment = (folder / "environ").read_bytes()
                        if line == (folder / "cmdline").read_bytes():
                            seen.add((int(folder.name), line, environment))
            self.looks += 1
        # What an owner has forked is still that owner, until it runs another program.
        owned = {line for process, line, _ in seen if process in self.owners}
        for process, line, environment in seen:
            self._search.look(f"cmdline of process {process}", line)
            if line not in owned:
                self._search.look(f"environ of process {process}, {line!r},", environment)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def refusing_receiver() -> Iterator[int]:
    """A receiver of notifications that takes none, and says in its answer what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(f"{self.path} {self.headers}".encode())

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@dataclass
class Scene:
    """A site with every secret, its Plex, and what it says."""

    site: Site
    plex: PlexStandIn
    search: Search
    environment: dict[str, str]
    processes: Processes
    long: bool  # with all commands

    def run(
        self, *arguments: str, given: str = "", owner: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; what it says is searched, unless it is there to say a secret."""
        command = [sys.executable, "-m", "reclass_plex", *arguments]
        process = subprocess.Popen(
            [*command, "--config", str(self.site.config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment() | self.environment,
            cwd=self.site.root,
        )
        self.processes.owners.add(process.pid)
        out, err = process.communicate(given, timeout=PATIENCE)
        if not owner:
            self.search.look(f"the output of {arguments}", out)
        self.search.look(f"the errors of {arguments}", err)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    @contextmanager
    def daemon(self) -> Iterator[Daemon]:
        daemon = Daemon.__new__(Daemon)
        with self.site.log.open("ab") as log:
            arguments = ["--config", str(self.site.config), "--verbose"]
            process = subprocess.Popen(
                [sys.executable, "-m", "service", *arguments],
                env=clean_environment() | {"PYTHONFAULTHANDLER": "1"} | self.environment,
                stdout=log,
                stderr=log,
                cwd=self.site.root,
            )
        self.processes.owners.add(process.pid)
        daemon.attach(self.site, process)
        try:
            yield daemon
        finally:
            daemon.end()


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("RECLASS_PLEX")}


@pytest.fixture(
    params=["environment", *(pytest.param(one, marks=pytest.mark.nightly) for one in FORMS)]
)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    search = Search()
    token, key = search.add("PlexToken"), search.add("WebhookKey")
    mirror = f"http://me:{search.add('MirrorPassword')}@127.0.0.1:1/models"
    with PlexStandIn(token=token) as plex, refusing_receiver() as port:
        site = Site(
            tmp_path,
            {"plex": {"url": plex.url, "timeout_seconds": 3}, "models": {"mirror": mirror}},
        )
        site.configure()
        library = plex.add_library(root=site.music, location=str(site.music))
        urls = (
            f"json://user:{search.add('NotifyPassword')}@127.0.0.1:{port}/"
            f"{search.add('NotifyPath')}?+X-Key={search.add('NotifyHeader')}"
        )
        site.store.parent.mkdir()
        environment = {}
        if request.param.startswith("files"):
            for path, text in (
                (tmp_path / "plex-token", token),
                (tmp_path / "notify-urls", urls),
                (site.store.parent / "webhook-key", key),
            ):
                path.write_text(text)
                path.chmod(0o600)
        else:
            environment = {
                "RECLASS_PLEX_TOKEN": token,
                "RECLASS_PLEX_NOTIFY_URLS": urls,
                "RECLASS_PLEX_WEBHOOK_KEY": key,
            }
        with Processes(search) as processes:
            long = request.param.endswith("long")
            yield Scene(site, plex, search, environment, processes, long)
        assert processes.looks > 10
    assert library.artists
    assert not search.found, "\n".join(search.found)


def test_nothing_that_is_said_bears_a_secret(scene: Scene) -> None:
    search, site, plex = scene.search, scene.site, scene.plex
    password = search.add("Password")
    if scene.long:
        assert scene.run("password", given=f"{password}\n").returncode == 0
        made = scene.run("token", "create", "reader", "--scope", "write", owner=True)
        search.values["ApiToken"] = made.stdout.strip()
    else:
        with Store.open(site.store) as store:
            set_password(site.store, password)
            token = WebKeys(store).make_token("reader", "write", time.time())
        search.values["ApiToken"] = token
    shutil.copy(DEMO / TRACK, site.music / TRACK)
    with scene.daemon() as daemon:
        daemon.wait_ready()
        url = f"http://127.0.0.1:{_entry(site)['url'].rpartition(':')[2]}"
        search.values["CommandToken"] = _entry(site)["token"]
        for library in plex.libraries.values():
            plex.scan(library)
        wait_until(lambda: daemon.status().jobs["done"], "the track is tagged")
        wait_until(lambda: "PUT" in "".join(plex.log), "Plex has it")
        _visit(scene, url, password)
        _disturb(scene, daemon, url)
        # A crash says where every thread was.
        daemon.process.send_signal(signal.SIGABRT)
        daemon.process.wait(PATIENCE)
    log = site.log_text()
    for sign in ("listening to the alerts", "refuses the token", "Fatal Python error"):
        assert sign in log, log[-3000:]
    search.look("the log", log)
    for path in site.store.parent.rglob("*"):
        if path.is_file() and path.name not in {"webhook-key", "daemon.json"}:
            search.look(f"the file {path.name}", path.read_bytes())


def _entry(site: Site) -> dict[str, str]:
    found: dict[str, str] = json.loads((site.store.parent / "daemon.json").read_bytes())
    return found


def _visit(scene: Scene, url: str, password: str) -> None:
    """Ask for all there is, by API and in a browser, rightly and wrongly."""
    search = scene.search
    token = {"Authorization": f"Bearer {search.values['ApiToken']}"}

    def look(answer: requests.Response) -> requests.Response:
        search.look(f"{answer.request.method} {answer.request.path_url}", answer.content)
        return answer

    schema = look(requests.get(f"{url}/api/openapi.json", headers=token, timeout=20)).json()
    paths = [path for path, methods in schema["paths"].items() if "get" in methods]
    assert len(paths) > 15
    for path in paths:
        if path.endswith("/events"):
            continue
        one = path.replace("{", "").replace("}", "")
        for name in ("track_id", "job_id", "run_id", "album_id"):
            one = one.replace(name, "1")
        look(requests.get(url + one, headers=token, timeout=20))
    browser = requests.Session()
    wrong = search.add("WrongPassword")
    kind = {"Content-Type": "application/json"}
    for body in ({"password": password, "x": 1}, {"password": [password]}, {"password": wrong}):
        answer = look(
            browser.post(f"{url}/api/v1/session", data=json.dumps(body), headers=kind, timeout=20)
        )
        assert answer.status_code in {401, 422}
    look(browser.post(f"{url}/login", data={"password": wrong}, timeout=20))
    begun = look(browser.post(f"{url}/login", data={"password": password}, timeout=20))
    assert begun.ok
    search.values["Session"] = browser.cookies.get("reclass-session") or ""
    assert search.values["Session"]
    for page in ("/", "/library", "/review", "/statistics", "/log", "/settings", "/api/docs"):
        assert look(browser.get(url + page, timeout=20)).ok, page
    if scene.long:
        link = scene.run("dashboard", owner=True).stdout.strip()
    else:
        with Store.open(scene.site.store) as store:
            link = f"{url}/login/{WebKeys(store).make_link(time.time())}"
    search.values["Link"] = link.rpartition("/")[2]
    guest = requests.Session()
    assert look(guest.get(link, timeout=20)).ok
    assert not look(requests.get(link, timeout=20)).ok
    for way in ("Bearer", "Basic", "Nonsense"):
        head = {"Authorization": f"{way} {search.add('Foreign' + way)}"}
        look(requests.get(f"{url}/api/v1/status", headers=head, timeout=20))
    hook = f"{url}/webhook/{search.values['WebhookKey']}"
    look(requests.post(hook, data=b"nonsense", timeout=20))
    look(requests.post(hook, files={"payload": (None, "{}")}, timeout=20))
    look(requests.post(f"{url}/webhook/{search.add('WrongKey')}", data=b"x", timeout=20))


def _disturb(scene: Scene, daemon: Daemon, url: str) -> None:
    """Let Plex refuse, fail, talk rubbish and vanish, and have everything ask it meanwhile."""
    search, site, plex = scene.search, scene.site, scene.plex
    right = plex.token
    token = {"Authorization": f"Bearer {search.values['ApiToken']}"}
    for number, mode in enumerate(("refusing", "failing", "garbage", "down")):
        plex.mode = "down"  # breaks off what is open
        plex.token = "another" if mode == "refusing" else right
        plex.mode = "ok" if mode == "refusing" else mode  # type: ignore[assignment]
        copy = site.music / f"{number}.mp3"
        shutil.copy(DEMO / TRACK, copy)
        if mode == "refusing":
            wait_until(lambda: "refuses the token" in site.log_text(), "it is refused")
        elif scene.long:
            scene.run("undo", "--all", "--dry-run")
            scene.run("doctor")
        for path in ("status", "jobs", "plex-edits"):
            answer = requests.get(f"{url}/api/v1/{path}", headers=token, timeout=20)
            search.look(f"{path} while Plex is {mode}", answer.content)
    scene.run("notify", "test")
    # The configuration goes wrong in the ways in which people put a token into it.
    good = site.config.read_text()
    slip = search.values["PlexToken"]
    for wrong in (
        f"plex: {{url: 'http://plex:32400/?X-Plex-Token={slip}'}}",
        f"plex: {{url: 'http://user:{slip}@plex:32400'}}",
        f"plex: {{token: {slip}}}",
        f"plex:\n  token: {slip}\n bad",
        f"plex: {slip}",
    ):
        site.config.write_text(wrong)
        before = site.log_text().count("config.yaml: ")
        hang_up(daemon)
        wait_until(lambda b=before: site.log_text().count("config.yaml: ") > b, wrong[:20])  # type: ignore[misc]
        if scene.long or wrong.startswith("plex:\n"):
            assert scene.run("status").returncode == 2
    site.config.write_text(good)


def test_a_station_with_a_password_is_heard_in_secret(tmp_path: Path) -> None:
    search = Search()
    secret, key = search.add("StationPassword"), search.add("StationKey")
    station = make_station([DEMO / TRACK], "mp3", 4.0)
    station.mode = "404"
    player = Radio(Events(), None)
    with Processes(search) as processes, station.on_air() as url:
        address = f"{url.replace('//', f'//user:{secret}@')}/stream?key={key}"
        player.start(address)
        wait_until(lambda: player.status().state == "failed", "it fails")
        search.look("the failure", player.status().model_dump_json())
        assert any(f"key={key}" in one for one in station.requests)
        assert processes.looks > 5
    assert not search.found, "\n".join(search.found)


def test_the_search_finds_what_is_said() -> None:
    """Else the tests above would say nothing: a process that is careless is seen."""
    search = Search()
    secret = search.add("Canary")
    program = f"import sys, time; print(sys.argv); time.sleep(0.5); {secret!r}"
    with Processes(search):
        said = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"CANARY": secret},
            capture_output=True,
            check=True,
        )
    search.look("base64", base64.b64encode(f"user:{secret}".encode()))
    places = " ".join(search.found)
    assert said.returncode == 0
    for place in ("cmdline of process", "environ of process", "base64"):
        assert place in places


def test_a_damaged_address_of_a_station_is_not_repeated() -> None:
    for address in (
        "http://user:s3cr/et@host/x",
        "http://user:s3cr@host:99999/",
        "http://user:s3cr@[::1/x",
        "http://user:s3cr#et@host",
    ):
        with pytest.raises(StreamError) as caught:
            HttpStream(address)
        assert "s3cr" not in str(caught.value)
        assert "%2F" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:pw@plex:32400",
        "http://plex:32400/?X-Plex-Token=abcdefghij",
        "http://plex:32400/#abcdefghij",
    ],
)
def test_the_address_of_plex_bears_no_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="must be the address alone") as caught:
        parse_config(f"plex: {{url: '{url}'}}", "config.yaml")
    assert "abcdefghij" not in str(caught.value) or "#" in url
    assert "pw@" not in str(caught.value)


def test_tracebacks_and_strange_texts_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())
    remember("aVeryLong%Token")
    remember_address("ntfy://me:p4ssw0rd@host/topic-name")
    remember("abc")  # too short: it would hide half of every word
    try:
        raise OSError("HTTPConnectionPool: /x?t=aVeryLong%25Token failed; abc")
    except OSError:
        record = logging.LogRecord("x", 40, "x", 1, "it %s", ("failed",), sys.exc_info())
    text = HidingFormatter("%(message)s").format(record)
    assert "Traceback" in text
    assert "aVeryLong" not in text
    assert "abc" in text
    cleaned = {
        "X-Plex-Token=xyz123&a=b": "X-Plex-Token=•••&a=b",
        "http://user:pa/ss@host/x": "http://user:•••@host/x",
        "Authorization: Basic dXNlcjpwYXNz": "Authorization: Basic •••",
        "GET /login/abcDEF is over": "GET /login/••• is over",
        "the password p4ssw0rd": "the password •••",
        "ntfy://me:p4ssw0rd@host/topic-name": "•••",
        "token_file: /etc/x": "token_file: /etc/x",
        "plex-token: the secret in it": "plex-token: the secret in it",
        "token: abcdefghijABCDEFGHIJ": "token: •••",
        "http://host:8787/tracks?a=b": "http://host:8787/tracks?a=b",
        "a basic idea, the bearer of news": "a basic idea, the bearer of news",
    }
    assert {text: hide_secrets(text) for text in cleaned} == cleaned
