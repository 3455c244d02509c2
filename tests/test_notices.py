"""Notifications: told once, over real HTTP and SMTP, over restarts too; nothing leaks."""

from __future__ import annotations

import itertools
import json
import logging
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from timing import timed

from reclass_plex import messages
from reclass_plex.config import NotifyOptions, load_config
from reclass_plex.credentials import read_notify_urls
from reclass_plex.errors import ConfigError, StoreError
from reclass_plex.jobs import Jobs
from reclass_plex.notices import GONE_SECONDS, Notices, Problem
from reclass_plex.remote import FolderStatus, PlexStatus, Status
from reclass_plex.store import Store
from service.notices import Notifier
from service.problems import FIRST_LOOK, find_problems

DAY = 86400.0
NOW = 1_800_000_000.0
FULL = Problem("disk", "The disk is full.", 0.0)
GONE = Problem("folder", "The folder is gone.", 300.0)


class Ear:
    """A real HTTP server that notes what it is told. It answers `status`, or lies still."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.status = 200
        self.silent = threading.Event()
        self.silent.set()
        ear = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                ear.silent.wait(30)
                said = json.loads(body)
                ear.heard.append({"path": self.path, **said})
                self.send_response(ear.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    def titles(self) -> list[str]:
        return [one.get("title", "") for one in self.heard]


@pytest.fixture
def ear() -> Iterator[Ear]:
    made = Ear()
    with _serving(made.server):
        yield made


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def _titles(book: Notices, now: float) -> list[str]:
    """Take all messages that are due, as if they had been sent."""
    titles = []
    while (message := book.next_message(now)) is not None:
        book.finish(message, (), now)
        titles.append(message.title)
    return titles


def test_a_problem_is_told_once_again_after_the_repeat_time_and_when_solved(store: Store) -> None:
    book = Notices(store)
    for minute in range(60):
        book.observe([FULL], NOW + 60 * minute, repeat_seconds=DAY)
    assert _titles(book, NOW + 3600) == ["reclass-plex needs you"]
    book = Notices(store)  # a restart repeats nothing
    book.observe([FULL], NOW + DAY - 60, repeat_seconds=DAY)
    assert _titles(book, NOW + DAY - 60) == []
    book.observe([FULL], NOW + DAY, repeat_seconds=DAY)
    assert _titles(book, NOW + DAY) == ["reclass-plex needs you"]
    book.observe([], NOW + DAY + 60, repeat_seconds=DAY)
    assert _titles(book, NOW + DAY + 60) == []
    book.observe([], NOW + DAY + 60 + GONE_SECONDS, repeat_seconds=DAY)
    assert _titles(book, NOW + DAY + 60 + GONE_SECONDS) == ["All is well again"]


def test_what_passes_quickly_is_not_told_and_what_flaps_rarely(store: Store) -> None:
    book = Notices(store)
    book.observe([GONE], NOW, repeat_seconds=DAY)
    book.observe([GONE], NOW + 200, repeat_seconds=DAY)
    book.observe([], NOW + 290, repeat_seconds=DAY)
    book.observe([], NOW + 3000, repeat_seconds=DAY)
    assert _titles(book, NOW + 3000) == []
    told = []
    for step in range(60):  # twenty minutes there, twenty minutes away, for twenty hours
        now = NOW + 10_000 + step * 1200
        book.observe([FULL] if step % 2 else [], now, repeat_seconds=DAY)
        book.observe([FULL] if step % 2 else [], now + 600, repeat_seconds=DAY)
        told += [(title, now) for title in _titles(book, now + 600)]
    needs = [now for title, now in told if title == "reclass-plex needs you"]
    assert 2 < len(needs) <= 20
    assert all(later - now >= 3600 for now, later in itertools.pairwise(needs))


def test_several_problems_are_one_message_and_a_wrong_clock_silences_nothing(store: Store) -> None:
    book = Notices(store)
    future = NOW + 100 * 365 * DAY
    other = Problem("plex", "Plex refuses the token.", 0.0)
    book.observe([FULL, other], future, repeat_seconds=DAY)
    message = book.next_message(future)
    assert message is not None
    assert message.title == "2 things need you"
    assert FULL.text in message.body
    assert other.text in message.body
    book.observe([FULL, other], NOW, repeat_seconds=DAY)  # the clock was set right
    assert _titles(book, NOW) == ["2 things need you"]
    book.put("daily", "", "", future)
    assert book.last_daily(NOW) is None


def test_an_idle_look_writes_nothing(store: Store) -> None:
    book = Notices(store)
    book.observe([FULL], NOW, repeat_seconds=DAY)
    with store.transaction(write=False) as connection:
        before = connection.exec_driver_sql("PRAGMA data_version").scalar()
        book.observe([FULL], NOW + 20, repeat_seconds=DAY)
        assert connection.exec_driver_sql("PRAGMA data_version").scalar() == before


def test_a_message_reaches_each_address_once_although_one_fails(store: Store, ear: Ear) -> None:
    book = Notices(store)
    deaf = Ear()
    deaf.status = 500
    with _serving(deaf.server):
        urls = [f"json://127.0.0.1:{ear.port}/a", f"json://127.0.0.1:{deaf.port}/secret-word"]
        notifier = Notifier(book, NotifyOptions(daily=None), lambda: urls, lambda: [FULL])
        notifier.step(NOW)
        assert len(ear.heard) == len(deaf.heard) == 1
        assert ear.heard[0]["message"] == FULL.text
        notifier.step(NOW + 10)  # too early
        assert len(deaf.heard) == 1
        deaf.status = 200
        notifier.step(NOW + 40)
        notifier.step(NOW + 400)
    assert len(ear.heard) == 1
    assert len(deaf.heard) == 2
    assert book.next_message(NOW + 4000) is None


def test_old_news_is_dropped(store: Store) -> None:
    book = Notices(store)
    book.put("problem", "old", "news", NOW)
    assert book.next_message(NOW + 3 * DAY) is None
    assert book.next_message(NOW + 1) is None  # for good


def test_the_summary_counts_what_was_tagged_and_comes_once_a_day(
    store: Store, ear: Ear, tmp_path: Path
) -> None:
    book = Notices(store)
    urls = [f"json://127.0.0.1:{ear.port}"]
    options = NotifyOptions(errors=False, daily="08:00")
    notifier = Notifier(book, options, lambda: urls, lambda: [])
    notifier.step(NOW)  # from here on
    run = store.start_run("tag", now=NOW)
    changes: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        ((), ("Rock",)),
        ((), ("Rock",)),
        (("Pop",), ("Pop", "Jazz")),
        (("Folk",), ("Folk",)),
    ]
    for number, (before, after) in enumerate(changes):
        track = store.save_track(tmp_path / str(number), 1, 1, digest=str(number))
        entry = store.begin_change(
            run,
            track,
            path=tmp_path / str(number),
            temp_path=tmp_path / "x",
            digest="d",
            before=before,
            after=after,
            before_hash="",
            after_hash="",
            before_mtime_ns=1,
            delta=b"",
            now=NOW + 5,
        )
        store.finish_change(entry, 1, 1)
    queue = Jobs(store)
    queue.enqueue([tmp_path / "bad"], "watch", NOW)
    (job,) = queue.claim(1, NOW + 1, owner="me", lease=60)
    queue.park([job.id], "me", NOW + 2, message="broken")
    notifier.step(NOW + DAY)
    assert ear.titles() == ["reclass-plex: 3 tracks tagged"]
    text = ear.heard[0]["message"]
    assert "Rock: 2" in text
    assert "Jazz: 1" in text
    assert "1 failed" in text
    assert "Folk" not in text
    for hour in range(1, 50):
        notifier.step(NOW + DAY + 3600 * hour)  # nothing more happened
    assert len(ear.heard) == 1


def test_a_store_that_cannot_be_written_is_told_once(store: Store, ear: Ear) -> None:
    def look() -> list[Problem]:
        raise StoreError("the store is full")

    urls = [f"json://127.0.0.1:{ear.port}"]
    notifier = Notifier(Notices(store), NotifyOptions(daily=None), lambda: urls, look)
    notifier.step(NOW)
    notifier.step(NOW + 60)
    assert [one["message"] for one in ear.heard] == ["the store is full"]


@timed
def test_a_hanging_address_holds_nothing_up_and_stopping_is_prompt(store: Store, ear: Ear) -> None:
    import time

    ear.silent.clear()
    urls = [f"json://127.0.0.1:{ear.port}"]
    book = Notices(store)
    notifier = Notifier(book, NotifyOptions(daily=None), lambda: urls, lambda: [FULL])
    notifier.start()
    until = time.monotonic() + 30
    while notifier._child is None and time.monotonic() < until:
        time.sleep(0.01)
    began = time.monotonic()
    notifier.stop()
    assert time.monotonic() - began < 2
    ear.silent.set()
    assert book.next_message(time.time()) is not None  # it is sent at the next start


def test_nothing_of_an_address_is_ever_said(
    ear: Ear, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    ear.status = 403
    secret = "tops3cret"
    urls = [
        f"json://user:{secret}@127.0.0.1:{ear.port}/{secret}?+X-Key={secret}",
        f"ntfy://{secret}@127.0.0.1:{ear.port}/{secret}",
        f"json://{secret}@127.0.0.1:1/{secret}",
        f"mailto://me:{secret}@127.0.0.1:1?smtp=127.0.0.1&mode=insecure",
        f"discord://{secret}",
        f"nosuch://{secret}",
        f"{secret}",
    ]
    said = repr(messages.send(urls, "a", "b")) + repr(messages.send_in_child(urls[2:], "a", "b"))
    logged = [record.getMessage() for record in caplog.records if "urllib3" not in record.name]
    out = capfd.readouterr()
    assert secret not in said + "".join(logged) + out.out + out.err
    deliveries = messages.send(urls, "a", "b")
    assert [one.error is None for one in deliveries] == [False] * len(urls)
    assert "403" in str(deliveries[0].error)
    assert "cannot be reached" in str(deliveries[2].error)


def test_a_child_that_hangs_is_ended(ear: Ear) -> None:
    ear.silent.clear()
    (one,) = messages.send_in_child([f"json://127.0.0.1:{ear.port}"], "a", "b", seconds=1.5)
    assert one.error is not None
    assert "no answer" in one.error
    ear.silent.set()


def test_ntfy_and_mail_get_the_message(ear: Ear) -> None:
    with _mail_server() as (port, mails):
        urls = [
            f"ntfy://127.0.0.1:{ear.port}/music",
            f"mailto://127.0.0.1:{port}?from=a@example.org&to=b@example.org&mode=insecure",
        ]
        deliveries = messages.send(urls, "Grüße", "Zwölf Boxkämpfer")
        assert [one.error for one in deliveries] == [None, None]
    assert ear.heard[0]["topic"] == "music"
    assert ear.heard[0]["message"] == "Zwölf Boxkämpfer"
    assert len(mails) == 1
    assert "To: b@example.org" in mails[0]


@contextmanager
def _mail_server() -> Iterator[tuple[int, list[str]]]:
    """Speak as much SMTP (RFC 5321) as a mail needs."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline().strip().upper():
                if line == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    mails.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")
                if line == b"QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    with _serving(server):
        yield server.server_address[1], mails


def test_the_addresses_are_a_secret_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RECLASS_PLEX_NOTIFY_URLS", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    warned: list[str] = []
    config = tmp_path / "config.yaml"
    config.write_text("notify: {daily: off}")
    options = load_config(config).notify
    assert options.daily is None
    assert read_notify_urls(options, config, warned.append) == ()
    file = tmp_path / "notify-urls"
    file.write_text("# mine\n\n json://one \ntgram://a/b\n")
    file.chmod(0o644)
    assert read_notify_urls(options, config, warned.append) == ("json://one", "tgram://a/b")
    assert "chmod 600" in warned[0]
    named = NotifyOptions(urls_file=Path("others"))
    with pytest.raises(ConfigError, match=r"notify\.urls_file"):
        read_notify_urls(named, config, warned.append)
    file.write_text("x" * 70_000)
    with pytest.raises(ConfigError, match="too long"):
        read_notify_urls(options, config, warned.append)
    monkeypatch.setenv("RECLASS_PLEX_NOTIFY_URLS", "json://two json://three")
    assert read_notify_urls(options, config, warned.append) == ("json://two", "json://three")


def test_the_command_tries_every_address(
    ear: Ear,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from reclass_plex.cli import main

    def run() -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        return int(stop.value.code or 0), out.out, out.err

    config = tmp_path / "config.yaml"
    config.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["reclass-plex", "notify", "test", "--config", str(config)])
    status, _, err = run()
    assert status == 2
    assert str(tmp_path / "notify-urls") in err
    file = tmp_path / "notify-urls"
    file.write_text(f"json://127.0.0.1:{ear.port}/\njson://127.0.0.1:1/tops3cret\n")
    file.chmod(0o600)
    status, out, err = run()
    assert status == 1
    assert out.splitlines() == [
        "JSON, address 1: taken",
        "JSON, address 2: it cannot be reached",
    ]
    assert err == ""
    assert ear.titles() == ["reclass-plex: a test"]


def _status(**more: Any) -> Status:
    values = {"version": "1", "state": "idle", "jobs": {}, "since": 0.0}
    return Status(**{**values, "plex": PlexStatus(state="connected"), **more})


def _keys(status: Status, **more: Any) -> set[str]:
    values: dict[str, Any] = {"outcomes": {}, "no_space": 0, "deaths": 0, "free": 1 << 40}
    values["now"] = 3 * 86400.0  # since the start; a backup is made each night
    found = find_problems(status, store=Path("/s/store.sqlite"), **{**values, **more})
    return {problem.key for problem in found}


def test_what_needs_the_user_is_a_problem_and_what_mends_itself_is_none() -> None:
    folder = FolderStatus(path=Path("/m"), state="paused", why="it is not mounted")
    fresh = FolderStatus(path=Path("/n"), state="paused", why=FIRST_LOOK)
    assert _keys(_status(folders=(fresh,))) == set()
    assert _keys(_status(folders=(folder,))) == {"folder:/m"}
    assert _keys(_status(plex=PlexStatus(state="unreachable", message="away"))) == set()
    assert _keys(_status(plex=PlexStatus(state="off", message="plex.url is not set"))) == set()
    refused = PlexStatus(state="needs sign-in", message="401")
    assert _keys(_status(plex=refused)) == {"plex:token"}
    assert _keys(_status(state="waiting", why="the worker cannot start")) == {"worker"}
    assert _keys(_status(), deaths=3) == {"worker"}
    assert _keys(_status(left_out=("stage mert is left out",))) == {"models"}
    assert _keys(_status(), now=4 * 86400.0) == {"backup"}
    assert _keys(_status(backup=2 * 86400.0), now=4 * 86400.0) == set()
    assert _keys(_status(), free=1000, no_space=2) == {"disk:store", "disk:music"}
    assert _keys(_status(), outcomes={"failed": 19, "done": 0}) == set()
    assert _keys(_status(), outcomes={"failed": 25, "done": 20}) == {"failures"}
    assert _keys(_status(), outcomes={"failed": 25, "done": 200}) == set()
