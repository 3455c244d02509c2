"""The REST API over real HTTP: what it says, what it refuses, and its whole specification."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import sampled_from
from many_tracks import fill_store
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from test_web import TOKEN, Daemon, ask, raw, rest, serving, wait_for
from timing import timed

from reclass_plex.errors import NotAudio
from reclass_plex.records import GenreScore, Verdict, Vote
from reclass_plex.store import Store
from reclass_plex.web_keys import WebKeys
from service import radio
from service.events import MAX_LISTENERS
from service.web.api import live, metrics
from service.web.server import WebServer

COUNT = 300
STRANGE = Path(os.fsdecode(b"/music/=cmd|' /C calc'!\xe9 <script>alert(1)</script>.mp3"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Store.open(tmp_path_factory.mktemp("api") / "store.sqlite") as store:
        fill_store(store, COUNT)
        scores = (GenreScore("Rock", 0.75), GenreScore("Jazz", 0.25))
        votes = (Vote("fma518", scores, 0.125),)
        verdict = Verdict("default", scores, "fma518", votes, 0.25, None, scores[:1])
        store.save_verdict("strange", "models-1", verdict)
        store.save_track(STRANGE, 1, 2, digest="strange", genres=("=1+1", "Pop"), album="/m\nA")
        store.save_track(Path("/music/bad.mp3"), 1, 2, error=NotAudio("/music/bad.mp3", "is empty"))
        yield Daemon(store)


@pytest.fixture(scope="module")
def server(daemon: Daemon) -> Iterator[WebServer]:
    with serving(daemon) as server:
        yield server
        daemon.actions.close()


def get(server: WebServer, path: str) -> Any:
    status, _, answer = ask(server, "GET", f"/api/v1{path}")
    assert status == 200, answer
    return answer


def request_of(path: str, token: str = TOKEN) -> bytes:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Accept: text/html\r\nConnection: close\r\n\r\n".encode()


def fetch(server: WebServer, path: str) -> tuple[bytes, bytes]:
    """Return head and body as they come."""
    head, _, body = rest(raw(server, request_of(path))).partition(b"\r\n\r\n")
    return head, body


# What it says


def test_tracks_are_found_in_pages_and_read_whole(server: WebServer) -> None:
    seen: list[int] = []
    path = "/tracks?genre=Jazz&sort=-confidence&limit=7"
    page = get(server, path)
    while True:
        seen += [row["id"] for row in page["rows"]]
        assert {row["genres"][0]["name"] for row in page["rows"]} == {"Jazz"}
        if page["next"] is None:
            break
        page = get(server, f"{path}&cursor={page['next']}")
    assert len(seen) == len(set(seen)) == get(server, "/tracks/count?genre=Jazz")["count"] > 7
    (row,) = get(server, "/tracks?text=SCRIPT%20calc")["rows"]
    assert row["path"] == str(STRANGE)  # what is no UTF-8 came through
    assert (row["confidence"], row["decided_by"], row["album"]) == (0.75, "fma518", "A")
    whole = get(server, f"/tracks/{row['id']}")
    assert whole["track"] == row
    assert whole["verdict"]["votes"][0]["seconds"] == 0.125
    assert whole["verdict"]["moods"] == [{"name": "Rock", "confidence": 0.75}]
    assert get(server, f"/tracks/{row['id']}/verdict") == whole["verdict"]
    (bad,) = get(server, "/tracks?error=true&text=bad.mp3")["rows"]
    assert (bad["error_kind"], bad["heard"]) == ("not-audio", None)


def test_albums_and_figures(server: WebServer) -> None:
    albums = get(server, "/albums?text=00007")["rows"]
    assert [album["title"] for album in albums] == ["Album 00007"]
    whole = get(server, f"/albums/{albums[0]['id']}")
    assert len(whole["tracks"]) == whole["album"]["tracks"] == 12
    figures = get(server, "/statistics")
    assert figures["tracks"] == COUNT + 2
    assert sum(figures["confidence"]) == figures["heard"]
    assert {one["name"] for one in get(server, "/facets")["stages"]} >= {"fma518"}
    models = get(server, "/models")
    assert models["in_use"]["stages"]
    assert {one["state"] for one in models["models"]} == {"not fetched"}


def test_the_queue_is_told_in_pages(server: WebServer) -> None:
    counts = get(server, "/queue")["counts"]
    page = get(server, "/jobs?state=review&state=done&limit=200")
    more = get(server, f"/jobs?state=review&state=done&limit=200&cursor={page['next']}")
    assert len(page["rows"]) + len(more["rows"]) == counts["review"] + counts["done"]
    assert get(server, f"/jobs/{page['rows'][0]['id']}") == page["rows"][0]


def test_everything_can_be_exported(server: WebServer) -> None:
    status, headers, rows = ask(server, "GET", "/api/v1/tracks/export?format=json&sort=path")
    assert (status, headers["content-disposition"]) == (200, 'attachment; filename="tracks.json"')
    assert [row["id"] for row in rows] == list(range(1, COUNT + 3))
    assert get(server, "/tracks/export?format=json&text=nothing-of-this") == []
    _, answer = fetch(server, "/api/v1/tracks/export?text=script")
    text = re.sub(rb"(?m)^[0-9a-f]+\r\n", b"", answer).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["tags"] == "'=1+1; Pop"  # no formula
    assert row["path"].startswith("/music/=cmd")
    assert row["confidence"] == "0.7500"


def test_a_decision_is_kept_followed_and_taken_back(server: WebServer, daemon: Daemon) -> None:
    body = json.dumps({"track_ids": [1, 2, 999_999], "kind": "correct", "genres": ["K-Pop"]})
    status, _, said = ask(server, "POST", "/api/v1/decisions", body=body.encode())
    assert status == 202
    assert said["track_ids"] == [1, 2]
    assert said["refused"][0]["track_id"] == 999_999
    path = f"/operations/{said['operation']['id']}"
    wait_for(lambda: get(server, path)["finished"])
    done = get(server, path)  # these files are not there: nothing was written, and that is said
    assert (done["state"], done["result"]) == ("done", {"missing": 2})
    (decision,) = get(server, "/tracks/1")["decisions"]
    assert (decision["genres"], decision["by"]) == (["K-Pop"], "command reclass-plex")
    assert get(server, f"/runs/{said['run_id']}")["command"] == "review"
    undo = json.dumps({"run_id": said["run_id"]}).encode()
    assert ask(server, "POST", "/api/v1/undo/count", body=undo)[2]["decisions"] == 2
    status, _, operation = ask(server, "POST", "/api/v1/undo", body=undo)
    assert status == 202
    wait_for(lambda: get(server, f"/operations/{operation['id']}")["finished"])
    assert get(server, "/tracks/1")["decisions"][0]["state"] == "withdrawn"
    assert operation["id"] in [one["id"] for one in get(server, "/operations")["rows"]]
    wrong = json.dumps({"run_id": 4_000_000}).encode()
    assert ask(server, "POST", "/api/v1/undo", body=wrong)[0] == 404


def test_other_settings_are_tried_without_any_change(server: WebServer) -> None:
    runs = get(server, "/runs")
    body = json.dumps({"policy": {"mode": "replace", "min_confidence": 0.9}}).encode()
    status, _, operation = ask(server, "POST", "/api/v1/preview", body=body)
    assert status == 202
    path = f"/operations/{operation['id']}"
    wait_for(lambda: get(server, path)["finished"])
    assert get(server, path)["state"] == "done"
    assert get(server, path)["result"]
    assert get(server, "/runs") == runs
    wrong = json.dumps({"policy": {"mode": "guess"}}).encode()
    assert ask(server, "POST", "/api/v1/preview", body=wrong)[0] == 422


def test_metrics_are_what_prometheus_reads(server: WebServer, daemon: Daemon) -> None:
    fetch(server, "/metrics")
    head, body = fetch(server, "/metrics")
    assert b"200 OK" in head
    families = {one.name: one for one in text_string_to_metric_families(body.decode())}
    queue = {s.labels["state"]: s.value for s in families["reclass_plex_queue"].samples}
    assert queue == {state: float(n) for state, n in daemon.jobs.counts().items()}
    assert families["reclass_plex_library_tracks"].samples[0].value == COUNT + 2
    assert families["reclass_plex_stage_seconds"].samples
    assert families["reclass_plex_file_errors"].samples[0].labels == {"kind": "not-audio"}
    assert families["reclass_plex_http_seconds"].samples


def gpu_samples(server: WebServer) -> dict[str, list[Any]]:
    _, body = fetch(server, "/metrics")
    return {
        one.name.removeprefix("reclass_plex_gpu_"): one.samples
        for one in text_string_to_metric_families(body.decode())
        if "gpu" in one.name
    }


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A nvidia-smi of ours, before any other. It counts how often it is asked."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin" / "nvidia-smi"
    path.write_text(
        "#!/bin/sh\n"
        f"echo asked >> {tmp_path / 'asked'}\n"
        "echo 'NVIDIA GeForce RTX 4090, 2048, 24564, 50, 61, 120.5'\n"
        "echo 'Another, with a comma, [N/A], 8192, [N/A], 40, [N/A]'\n"
    )
    path.chmod(0o755)
    return path


def test_metrics_tell_the_memory_of_gpus(tmp_path: Path, smi: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store, serving(Daemon(store)) as server:
        found = gpu_samples(server)
        assert {(s.labels["gpu"], s.labels["name"]): s.value for s in found["memory_bytes"]} == {
            ("0", "NVIDIA GeForce RTX 4090"): 24564 * 2**20,
            ("1", "Another, with a comma"): 8192 * 2**20,
        }
        (used,) = found["memory_used_bytes"]  # of the other nobody knows
        assert (used.labels["gpu"], used.value) == ("0", 2048 * 2**20)
        assert [s.value for s in found["busy_ratio"]] == [0.5]
        assert gpu_samples(server) == found
    assert (tmp_path / "asked").read_text() == "asked\n"  # the second scrape came soon after


@pytest.mark.parametrize(
    "script", ["", "#!/bin/sh\necho no driver; exit 9\n", "#!/bin/sh\nsleep 60\n"]
)
def test_without_a_gpu_metrics_say_nothing_of_one(
    tmp_path: Path, smi: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_GPU_PATIENCE", 0.2)
    smi.write_text(f"#!/bin/sh\n{script}\n")
    if not script:
        smi.unlink()
    with Store.open(tmp_path / "store.sqlite") as store, serving(Daemon(store)) as server:
        assert gpu_samples(server) == {}
        assert b"reclass_plex_queue" in fetch(server, "/metrics")[1]


def test_the_description_has_everything_and_the_page_needs_no_other_machine(
    server: WebServer,
) -> None:
    description = ask(server, "GET", "/api/openapi.json")[2]
    assert description["openapi"].startswith("3.1")
    assert "/api/v1/tracks/{track_id}" in description["paths"]
    assert not any(path.startswith("/webhook") for path in description["paths"])
    head, content = fetch(server, "/api/docs")
    page = content.decode()
    assert b"default-src 'none'" in head
    assert "<script" not in page
    assert not re.search(r"(src|href)=['\"](https?:)?//", page)
    for path in description["paths"]:
        assert path in page


# Live


def listen(server: WebServer) -> socket.socket:
    return raw(server, request_of("/api/events"))


def hear(connection: socket.socket, until: bytes) -> bytes:
    content = b""
    while until not in content:
        chunk = connection.recv(65536)
        assert chunk, content
        content += chunk
    return content


def test_events_begin_with_the_state_and_end_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.3)
    with Store.open(tmp_path / "store.sqlite") as store:
        daemon = Daemon(store)
        with serving(daemon) as server, listen(server) as connection:
            first = hear(connection, b"event: status")
            assert b"text/event-stream" in first
            wait_for(lambda: daemon.actions.events.listeners == 1)
            daemon.actions.events.publish("jobs", {"text": "a\nb"})
            assert b'event: jobs\ndata: {"text":"a\\nb"}\n\n' in hear(connection, b"event: jobs")
            hear(connection, b": still here")
            daemon.actions.events.close()
            rest(connection)
            wait_for(lambda: daemon.actions.events.listeners == 0)


def test_listeners_are_few_and_leave_no_trace(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        daemon = Daemon(store)
        with serving(daemon) as server:
            held = [listen(server) for _ in range(MAX_LISTENERS)]
            wait_for(lambda: daemon.actions.events.listeners == MAX_LISTENERS)
            assert ask(server, "GET", "/api/events")[0] == 503
            assert ask(server, "GET", "/api/v1/queue")[0] == 200
            for connection in held:
                connection.close()
            wait_for(lambda: daemon.actions.events.listeners == 0)


def test_a_revoked_token_hears_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.2)
    with Store.open(tmp_path / "store.sqlite") as store:
        keys = WebKeys(store)
        token = keys.make_token("t", "read", time.time())
        with (
            serving(Daemon(store)) as server,
            raw(server, request_of("/api/events", token)) as connection,
        ):
            hear(connection, b"event: status")
            keys.revoke_token("t")
            rest(connection)


# What it refuses


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tracks/0", 422),
        ("/tracks/99999999", 404),
        ("/tracks/9223372036854775808", 422),
        ("/tracks/x", 422),
        ("/tracks/1e3", 422),
        ("/tracks/../../etc/passwd", 404),
        ("/tracks/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("/tracks?cursor=AAAA", 404),
        ("/tracks?cursor=", 422),
        ("/tracks?limit=5&limit=6", 422),
        ("/tracks?limit=501", 422),
        ("/tracks?limit=-1", 422),
        ("/tracks?sort=path;drop", 422),
        ("/tracks?min_confidence=nan", 422),
        ("/tracks?min_confidence=inf", 422),
        ("/tracks?state=nonsense", 422),
        ("/tracks?text=" + "x" * 2000, 422),
        ("/albums/..", 422),
        ("/albums/%2e%2e", 422),
        ("/albums/L2V0Yy9wYXNzd2Q", 404),
        ("/operations/..%2f..", 404),
        ("/operations/zz", 422),
        ("/runs/77777", 404),
        ("/jobs/77777", 404),
        ("/nothing", 404),
    ],
)
def test_what_makes_no_sense_is_a_problem(server: WebServer, path: str, status: int) -> None:
    found, headers, problem = ask(server, "GET", f"/api/v1{path}")
    assert (found, problem["status"]) == (status, status)
    assert headers["content-type"] == "application/problem+json"
    assert "root:" not in json.dumps(problem)


@timed
@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE tracks; --",
        "%",
        "_",
        "~",
        "\0",
        "a\0b",
        "\\",
        '"',
        "*",
        "\u202e",
        "😀" * 200,
        "a " * 400,
        "İ",
        "ﬁ",
        "\x7f",
        "[a-z]",
        "((((",
        "%" * 300,
    ],
)
def test_any_text_can_be_searched_for(server: WebServer, text: str) -> None:
    began = time.perf_counter()
    found = get(server, f"/tracks?text={quote(text)}&tag={quote(text)}&genre={quote(text)}")
    assert found["rows"] == []
    assert get(server, f"/albums?text={quote(text)}")["rows"] is not None
    assert get(server, f"/tracks?folder={quote('/' + text)}")["rows"] is not None
    assert time.perf_counter() - began < 5
    assert get(server, "/tracks/count")["count"] == COUNT + 2


def test_bodies_that_are_wrong_or_huge_are_refused(server: WebServer) -> None:
    for body, status in (
        (b"", 422),
        (b"{", 422),
        (b"[" * 100_000, 400),
        (b'{"track_ids": [1], "kind": "accept", "genres": "\xff"}', 400),
        (b'{"track_ids": [], "kind": "accept"}', 422),
        (b'{"track_ids": [1], "kind": "guess"}', 422),
        (b'{"track_ids": [99999999999999999999], "kind": "accept"}', 422),
        (b'{"track_ids": [1], "kind": "correct", "genres": ["a\\u0000b"]}', 422),
        (b'{"track_ids": [1], "kind": "correct", "genres": ["\\ud800"]}', 422),
        (b'{"track_ids": [1], "kind": "correct", "genres": ["' + b"x" * 3000 + b'"]}', 422),
    ):
        found, _, problem = ask(server, "POST", "/api/v1/decisions", body=body)
        assert (found, problem["status"]) == (status, status), body[:60]


def test_no_header_can_be_smuggled(server: WebServer) -> None:
    for path in ("/api/v1/tracks%0d%0aSet-Cookie:x=y", "/login%0d%0aX:%20y", "/x?a=%0d%0aX-Bad:1"):
        request = request_of(path).replace(f"Authorization: Bearer {TOKEN}\r\n".encode(), b"")
        answer = rest(raw(server, request)).partition(b"\r\n\r\n")[0].lower()
        assert answer.startswith(b"http/1.1 ")
        for name in (b"set-cookie:", b"x-bad:", b"x:"):
            assert b"\r\n" + name not in answer
    both = (
        request_of("/api/v1/pause").replace(b"GET", b"POST").replace(b"Connection: close\r\n", b"")
    )
    both = both[:-2] + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert rest(raw(server, both + request_of("/healthz"))).count(b"HTTP/1.1") == 1


def test_errors_of_the_store_are_told_without_its_secrets(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store, serving(Daemon(store)) as server:
        store.save_track(Path("/a.mp3"), 1, 1, digest="d", genres=())
        store.save_verdict("d", "m", Verdict("default", (), "x", (), 0.1))
        with store.transaction() as connection:
            connection.exec_driver_sql("UPDATE verdicts SET genres = '{broken'")
        status, _, problem = ask(server, "GET", "/api/v1/tracks")
        assert (status, problem["kind"]) == (500, "store-damaged")
        assert "SELECT" not in problem["detail"]


# The whole specification


@pytest.fixture
def stopping(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """One of a daemon that stops: the stream of events, which has no end else, has one there.

    What it listens with calls none of the made-up addresses on the network.
    """
    monkeypatch.setattr(radio, "_COMMAND", (sys.executable, "-c", "input()"))
    other = Daemon(daemon.store)
    other.actions.events.close()
    with serving(other) as server:
        yield server
        other.actions.close()


def test_schemathesis_finds_nothing(stopping: WebServer) -> None:
    """Some requests to every operation, such as it says to take and others: always the same.

    With all of Schemathesis' checks: what the description allows is accepted, what it does not is
    refused, answers are as described, and nobody is served without the token.
    """
    headers = {"Authorization": f"Bearer {TOKEN}"}
    # What is a genre no pattern can say; the description has a format of ours for it.
    schemathesis.openapi.format("genre", sampled_from(["Rock", "Nu Jazz", "K-Pop", "Kölsch"]))
    specification = schemathesis.openapi.from_url(
        f"{stopping.url}/api/openapi.json", headers=headers
    )
    operations = set()
    asked = 0
    with requests.Session() as session:
        for found in specification.get_all_operations():
            operation: Any = found.ok()  # type: ignore[union-attr]
            operations.add(operation.label)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @settings(
                    max_examples=2,
                    derandomize=True,
                    deadline=None,
                    database=None,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def examine(case: Any) -> None:
                    nonlocal asked
                    asked += 1
                    case.call_and_validate(session=session, headers=headers, timeout=20)

                with contextlib.suppress(Unsatisfiable):  # nothing could be wrong with it
                    examine()
    assert asked > 100
    assert {"GET /api/events", "POST /api/v1/decisions", "GET /metrics"} <= operations


def test_nothing_answers_without_a_token(server: WebServer) -> None:
    description = ask(server, "GET", "/api/openapi.json")[2]
    asked = 0
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if operation.get("security") == []:
                continue
            asked += 1
            plain = re.sub(r"\{.*?\}", "1", path)
            for token in ("", "Bearer wrong"):
                status, _, problem = ask(server, method.upper(), plain, Authorization=token)
                assert (status, problem["status"]) == (401, 401), plain
    assert asked > 30
    assert ask(server, "GET", "/api/docs", Authorization="")[0] == 401
    assert ask(server, "GET", "/api/openapi.json", Authorization="")[0] == 401


def test_a_token_that_reads_changes_nothing(server: WebServer, daemon: Daemon) -> None:
    token = WebKeys(daemon.store).make_token("reads", "read", time.time())
    description = ask(server, "GET", "/api/openapi.json")[2]
    for path, operations in description["paths"].items():
        for method in set(operations) - {"get"}:
            if path != "/api/v1/session":
                plain = re.sub(r"\{.*?\}", "1", path)
                headers = {"Authorization": f"Bearer {token}"}
                assert ask(server, method.upper(), plain, body=b"{}", **headers)[0] == 403
