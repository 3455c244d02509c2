"""Listening to what is live, from a real station on this machine that behaves well, and badly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from audio_files import encode
from daemon_tools import DEMO
from radio import Station, make_station
from timing import timed

from reclass_plex import http_stream, live
from reclass_plex.audio_stream import parse_source
from reclass_plex.errors import StreamError
from reclass_plex.http_stream import shown
from reclass_plex.live import LiveNotice, LiveResult, listen
from reclass_plex.stream_source import Source

CLASSICAL = DEMO / "Czech National Symphony Orchestra - Morning.flac"
METAL = DEMO / "Muldjord - Mutilated Mime.mp3"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what does not come."""
    monkeypatch.setattr(http_stream, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.05)


def _results(found: list[LiveResult | LiveNotice]) -> list[LiveResult]:
    return [one for one in found if isinstance(one, LiveResult)]


def _notices(found: list[LiveResult | LiveNotice]) -> list[str]:
    return [one.text for one in found if isinstance(one, LiveNotice)]


@pytest.mark.parametrize("kind", ["mp3", "aac", "ogg"])
def test_a_station_is_heard_in_every_format_with_its_titles(kind: str) -> None:
    station = make_station([CLASSICAL, METAL], kind, 8.0)
    station.speed = 4.0
    station.titles = [(0.0, "Morning \x1b[31m"), (8.0, "Mime's 'End'")]
    station.chunked = kind == "aac"
    station.first_line = "ICY 200 OK" if kind == "mp3" else "HTTP/1.1 200 OK"
    with station.on_air() as url:
        found = list(listen(f"{url}/stream?key=secret", seconds=20.0, window=5.0))
    results = _results(found)
    assert _notices(found) == []
    assert "GET /stream?key=secret HTTP/1.0" in station.requests[0]
    at = {round(one.at): one for one in results}
    assert at[7].genres[0].name == "Classical"
    assert at[7].title == "Morning \\x1b[31m"
    assert at[15].genres[0].name == "Metal"
    assert at[15].title == "Mime's 'End'"
    assert any(one.changed for one in results if 8 <= one.at <= 12)
    assert at[20].at == 20.0  # beyond the place where the station begins anew


@timed
def test_the_command_is_at_most_three_seconds_behind_and_ends_at_once() -> None:
    station = make_station([CLASSICAL], "mp3", 12.0)
    with station.on_air() as url:
        child = subprocess.Popen(
            [sys.executable, "-m", "reclass_plex", "listen", url, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout is not None
        delays = []
        for line in child.stdout:
            said = json.loads(line)
            delays.append(station.delay(said["at"], said["time"]))
            assert time.time() - said["time"] < 1  # it is not kept in a buffer
            if len(delays) == 3:
                break
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 0, errors
    assert errors == b""
    assert time.monotonic() - began < 10  # the machine may be busy
    assert sorted(delays)[1] < 3, delays


def test_a_stream_that_breaks_off_or_stands_still_is_asked_for_again(quick: None) -> None:
    station = make_station([CLASSICAL], "mp3", 6.0)
    station.speed = 8.0
    station.limit = 5.0
    with station.on_air() as url:
        found = []
        for one in listen(url, seconds=11.0):
            found.append(one)
            if isinstance(one, LiveNotice):
                station.mode = "stall" if station.mode == "play" else "play"
    assert station.connections == 3
    first, second = _notices(found)
    assert "ended the stream" in first
    assert "nothing came" in second
    assert 11.0 <= _results(found)[-1].at < 12.0


@pytest.mark.parametrize("mode", ["rubbish", "503"])
def test_what_never_gives_audio_is_given_up(mode: str, quick: None) -> None:
    station = Station([(0.1, b"")], b"", "audio/mpeg")
    station.mode = mode
    with station.on_air() as url, pytest.raises(StreamError, match="given up after 5"):
        list(listen(url))


def test_rubbish_in_between_is_heard_past(quick: None) -> None:
    station = make_station([CLASSICAL], "mp3", 8.0)
    station.speed = 8.0
    station.pieces.insert(len(station.pieces) // 2, (0.0, os.urandom(30_000)))
    with station.on_air() as url:
        results = _results(list(listen(url, seconds=7.0)))
    assert results[-1].genres[0].name == "Classical"


def test_only_http_and_https_are_spoken_wherever_an_address_leads(quick: None) -> None:
    station = make_station([CLASSICAL], "mp3", 4.0)
    station.speed = 8.0
    with station.on_air() as url:
        station.playlists = {
            "/good.pls": ("audio/x-scpls", f"[playlist]\nFile1={url}/here\n".encode()),
            "/bad.m3u": ("audio/x-mpegurl", b"#EXTM3U\nfile:///etc/passwd\n"),
            "/hls.m3u8": ("application/x", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\nhttp://a/b"),
            "/empty.m3u": ("audio/x-mpegurl", b""),
        }
        station.redirects = {
            "/good": "/good.pls",
            "/file": "file:///etc/passwd",
            "/gopher": "gopher://127.0.0.1:25/x",
            "/loop": "/loop",
            "/bracket": "http://[::1",
        }
        assert _results(list(listen(f"{url}/good", seconds=3.0)))
        for path, said in {
            "/file": "only http and https",
            "/gopher": "only http and https",
            "/bad.m3u": "only http and https",
            "/hls.m3u8": "HLS",
            "/empty.m3u": "names no stream",
            "/loop": "without an end",
            "/bracket": "what is no address",
        }.items():
            with pytest.raises(StreamError, match=said):
                list(listen(url + path))
        station.mode = "404"
        with pytest.raises(StreamError, match="status 404"):
            list(listen(f"{url}/none"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "as a web server or radio station would"),
        (b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 20_000, "no end"),
        (b"HTTP/1.0 200 OK" + b"x" * 200_000, "no end"),
        (b"", "given up"),
        (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-8\r\n" + b"x" * 2000,
            "given up",
        ),
    ],
)
def test_a_hostile_answer_is_refused(answer: bytes, said: str, quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(answer)
                except OSError:
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(StreamError, match=said):
            list(listen(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        done.set()
        thread.join(10)


@pytest.mark.parametrize(
    "address",
    [
        *("ftp://host/a.mp3", "rtmp://host/live", "concat://a|b", "data://x", "udp://239.0.0.1:1"),
        *("pulse:default", "/no/such/file.mp3", "/", "http://", "http://[bad", "http://a:99999/"),
    ],
)
def test_no_other_source_is_opened(address: str) -> None:
    with pytest.raises(StreamError):
        list(listen(address))


def test_sources_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alsa:x").write_bytes(b"")
    assert parse_source("HTTPS://host/a") == Source("http", "HTTPS://host/a")
    assert parse_source("alsa:default") == Source("device", "default", "alsa")
    assert parse_source("alsa:x") == Source("file", "alsa:x")
    assert parse_source("file:///tmp/a b.mp3") == Source("file", "/tmp/a b.mp3")
    assert parse_source("C: Minor.mp3") == Source("file", "C: Minor.mp3")
    assert shown("http://me:secret@host:80/a?key=secret") == "http://host:80/a"


def test_silence_and_noise_are_unsure_and_music_after_them_is_another_piece(
    tmp_path: Path,
) -> None:
    from reclass_plex.audio_stream import AudioStream

    with AudioStream(parse_source(os.fspath(METAL)), 16_000) as stream:
        music = np.concatenate(list(stream))[: 8 * 16_000]
    noise = np.random.default_rng(1).normal(0, 0.1, 8 * 16_000).astype(np.float32)
    silence = np.zeros(6 * 16_000, np.float32)
    path = tmp_path / "mixed.wav"
    encode(path, "wav", "pcm_s16le", np.concatenate([music, silence, music, noise])[None], 16_000)
    at = {round(one.at): one for one in _results(list(listen(os.fspath(path))))}
    assert (at[8].unsure, at[8].genres[0].name) == (None, "Metal")
    assert at[13].unsure == "silence"
    assert any(one.changed for one in at.values() if 14 < one.at < 18)
    assert at[22].unsure is None
    assert at[30].unsure is not None


def test_hours_take_no_more_memory_than_seconds() -> None:
    tape = live._Tape()
    block = np.ones(50_001, np.float32)
    handed = sum(1 for _ in range(4000) for _ in tape.add(block))
    assert tape.at == pytest.approx(4000 * 50_001 / 16_000)
    assert handed == int(tape.at) - 2
    assert len(tape._kept) == live.PATCH_SAMPLES


def test_standard_input_is_heard() -> None:
    with CLASSICAL.open("rb") as music:
        done = subprocess.run(
            [sys.executable, "-m", "reclass_plex", "listen", "-", "--seconds", "6"],
            stdin=music,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert "Classical" in done.stdout
    assert done.stderr == ""


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """Every connection is closed: an open one would be a ResourceWarning, thus an error."""
    import gc

    yield
    gc.collect()
