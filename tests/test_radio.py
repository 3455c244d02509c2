"""Listening on request: one stream at a time, in a process that ends with its use."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from daemon_tools import DEMO, wait_until
from radio import make_station

from reclass_plex.errors import ConfigError, StreamError
from service import radio
from service.events import Events
from service.radio import Radio


def _wait(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, what, 40)


def test_a_stream_is_followed_replaced_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radio, "_LOOK_SECONDS", 0.1)
    now = [0.0]
    events = Events()
    player = Radio(events, None, clock=lambda: now[0])
    station = make_station([DEMO / "Muldjord - Mutilated Mime.mp3"], "mp3", 8.0)
    station.speed = 4.0
    assert player.status().state == "off"
    with station.on_air() as url, events.listen() as listener:
        begun = player.start(f"{url}/stream?key=secret", window=5.0)
        assert begun.state == "starting"
        assert begun.source == f"{url}/stream"
        _wait(lambda: player.status().state == "playing", "it is heard")
        line = player.status().lines[-1]
        assert line.genres[0].name == "Metal"
        assert abs(line.time - time.time()) < 10
        told = [event for event in listener.take(1) if event.kind == "radio"]
        assert told
        assert "secret" not in repr(told)
        first = player._process
        player.start(f"{url}/other")
        assert first is not None
        assert first.poll() is not None
        second = player._process
        assert second is not None
        time.sleep(0.3)  # for the first one's last words
        assert not any(event.data.get("ended") for event in listener.take(0))  # one plays
    assert events.listeners == 0
    now[0] += radio.UNWATCHED_SECONDS + 1  # nobody watches any more
    _wait(lambda: second.poll() is not None, "it ends by itself")
    assert player.status().state == "off"
    station.mode = "404"
    station.closing.clear()
    with station.on_air() as url:
        player.start(url)
        _wait(lambda: player.status().state == "failed", "it fails")
        assert "status 404" in str(player.status().error)
    with station.on_air() as url, events.listen() as listener:
        player.start(url)
        player.stop()
        player.stop()  # of nothing
        ended = [event.data for event in listener.take(0) if event.data.get("ended")]
        assert ended == [{"ended": True, "error": None}]


@pytest.mark.parametrize(
    "address",
    [
        *("/etc/passwd", "file:///etc/passwd", "-", "--help", "ftp://a/b", ""),
        *("http://a/\r\nX: y", "http://" + "a" * 3000),
    ],
)
def test_a_page_can_open_no_file(address: str) -> None:
    player = Radio(Events(), None)
    with pytest.raises(StreamError):
        player.start(address)
    assert player.status().state == "off"
    with pytest.raises(ConfigError):
        player.start("http://127.0.0.1:1/", window=0)
