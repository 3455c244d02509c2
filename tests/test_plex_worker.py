"""The daemon's Plex worker: real HTTP to the stand-in, real SQLite, time given by the test."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from plex_server import Library, PlexStandIn
from plex_tools import wait_until
from timing import timed

from reclass_plex.config import Config, PathMap, PlexOptions, PolicyOptions, WorkerOptions
from reclass_plex.errors import ConfigError, StoreError
from reclass_plex.jobs import Jobs
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.sync import Wanted, WantedGenres
from service import plex_worker
from service.hints import Hint, Kind
from service.plex_worker import GROUP_SECONDS, IDLE_SECONDS, PlexWorker

NOW = 1_800_000_000.0


@pytest.fixture
def server() -> Iterator[PlexStandIn]:
    with PlexStandIn() as stand_in:
        yield stand_in
        assert stand_in.errors == []


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    return folder


@pytest.fixture
def library(server: PlexStandIn, music: Path) -> Library:
    return server.add_library(location="/data/music", root=music)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


class Bench:
    """A worker, what it is told, and what it asks for."""

    def __init__(self, server: PlexStandIn, store: Store, music: Path, **plex: Any) -> None:
        self.server, self.store, self.music = server, store, music
        self.token: str | None = server.token
        self.jobs = Jobs(store)
        self.wanted = Wanted(store)
        self.pokes = 0
        maps = (PathMap(plex="/data/music", local=str(music)),)
        options: dict[str, Any] = {
            "url": server.url,
            "path_map": maps,
            "timeout_seconds": 2,
            **plex,
        }
        self.config = Config(plex=PlexOptions(**options))
        self.worker = PlexWorker(store, self.jobs, self.config, self.read_token, self.poke)

    def read_token(self) -> str:
        if self.token is None:
            raise ConfigError("plex.token_file: does not exist; run reclass-plex init")
        return self.token

    def poke(self) -> None:
        self.pokes += 1

    def want(self, path: Path, genre: str = "Jazz", now: float = NOW) -> None:
        self.wanted.want([WantedGenres(path, (GenreScore(genre, 0.8),))], now)

    def files(self, *names: str) -> list[Path]:
        """Put files into the folder and let the server find them."""
        paths = [self.music / name for name in names]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"music")
        return paths

    def scan(self) -> list[Any]:
        return self.server.scan(self.server.libraries[1])

    @property
    def state(self) -> str:
        return self.worker.status().state

    def in_line(self) -> set[Path]:
        return {job.path for job in self.jobs.list_jobs("waiting", "ready")}

    def genres(self) -> list[list[str]]:
        return [item.genres for item in self.server.libraries[1].items("track")]


@pytest.fixture
def bench(server: PlexStandIn, library: Library, store: Store, music: Path) -> Iterator[Bench]:
    made = Bench(server, store, music)
    yield made
    made.worker.stop()


ALBUM = tuple(f"Artist/Album/{number:02}.flac" for number in range(1, 13))


# The connection


def test_without_an_address_it_is_off(store: Store) -> None:
    worker = PlexWorker(store, Jobs(store), Config(), lambda: "token")
    assert worker.step(NOW) == IDLE_SECONDS
    assert worker.status().state == "off"
    worker.stop()


def test_what_it_connected_to_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.worker.step(NOW)
    assert bench.worker.server_uuid == bench.server.uuid
    assert (bench.state, bench.worker.status().message) == ("connected", None)
    first = [record.getMessage() for record in caplog.records if "service" in record.name]
    assert any(bench.server.version in line for line in first)
    assert any("library Music" in line for line in first)
    caplog.clear()
    bench.server.mode = "down"
    bench.worker.ask_recent(NOW)
    bench.worker.step(NOW + 1)
    bench.server.mode = "ok"
    bench.worker.step(NOW + 100)
    lines = [record.getMessage() for record in caplog.records if "service" in record.name]
    assert len(lines) == 2
    assert "tried again" in lines[0] and "answers again" in lines[1]


@pytest.mark.parametrize("mode", ["down", "failing", "garbage"])
def test_a_server_that_is_away_is_tried_ever_more_rarely_and_said_once(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    mode: Literal["down", "failing", "garbage"],
) -> None:
    (path,) = bench.files("Artist/Album/One.flac")
    bench.scan()
    bench.server.mode = mode
    bench.want(path)
    now, attempts = NOW, []
    while now < NOW + 3600:
        before = bench.server.requests
        pause = bench.worker.step(now)
        if bench.server.requests > before:
            attempts.append(now - NOW)
        assert 0 < pause <= IDLE_SECONDS
        now += pause
    gaps = [later - sooner for sooner, later in itertools.pairwise(attempts)]
    assert gaps[:4] == [5, 10, 20, 40]
    assert max(gaps) == gaps[-1] == 300
    status = bench.worker.status()
    assert (status.state, status.pending) == ("unreachable", 1)
    assert status.message and bench.server.url in status.message
    assert len([record for record in caplog.records if "service" in record.name]) == 1
    bench.server.mode = "ok"
    bench.worker.step(now + 300)
    assert bench.genres() == [["Jazz"]]
    assert (bench.state, bench.worker.status().pending) == ("connected", 0)


def test_a_refused_token_waits_for_another_one(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = bench.files("Artist/Album/One.flac")
    bench.scan()
    bench.want(path)
    bench.token = "wrong-secret"
    for second in range(0, 599, 5):
        bench.worker.step(NOW + second)
    assert bench.server.requests == 1
    assert (bench.state, bench.worker.status().pending) == ("needs sign-in", 1)
    bench.worker.step(NOW + 600)
    assert bench.server.requests == 2
    said = [record.getMessage() for record in caplog.records if "service" in record.name]
    assert len(said) == 1 and "401" in said[0] and "reclass-plex init" in said[0]
    assert "wrong-secret" not in caplog.text
    bench.token = bench.server.token
    bench.worker.step(NOW + 605)
    assert bench.state == "connected"
    assert bench.genres() == [["Jazz"]]


def test_no_token_needs_the_user_too(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.token = None
    for second in (0, 5, 700):
        bench.worker.step(NOW + second)
    assert (bench.state, bench.server.requests) == ("needs sign-in", 0)
    assert "token_file" in (bench.worker.status().message or "")
    assert len([record for record in caplog.records if "service" in record.name]) == 1
    bench.token = bench.server.token
    bench.worker.step(NOW + 705)
    assert bench.state == "connected"


def test_a_token_that_is_revoked_while_connected(bench: Bench) -> None:
    bench.worker.step(NOW)
    bench.server.token = "another"
    bench.worker.ask_recent(NOW)
    bench.worker.step(NOW + 1)
    assert bench.state == "needs sign-in"
    bench.token = "another"
    bench.worker.step(NOW + 2)
    assert bench.state == "connected"


def test_an_address_that_is_none_is_left_alone_until_it_is_changed(
    server: PlexStandIn, library: Library, store: Store, music: Path
) -> None:
    bench = Bench(server, store, music, url="http://plex:port")
    bench.worker.step(NOW)
    assert bench.state == "off"
    assert "plex.url" in (bench.worker.status().message or "")
    bench.worker.reload(Config(plex=PlexOptions(url=server.url)))
    bench.worker.step(NOW + 1)
    assert bench.state == "connected"
    bench.worker.reload(Config())
    bench.worker.step(NOW + 2)
    assert bench.state == "off"
    bench.worker.stop()


# Hints


def hint(bench: Bench, *items: Any) -> None:
    kinds: dict[str, Kind] = {"artist": "artist", "album": "album", "track": "track"}
    for item in items:
        bench.worker.hint(Hint(item.key, kinds[item.kind], item.added_at))


def test_an_album_that_arrives_as_many_events_is_expanded_once(bench: Bench) -> None:
    bench.worker.step(NOW)
    paths = bench.files(*ALBUM)
    tracks = bench.scan()
    for item in (*tracks, tracks[0].parent, tracks[0].parent.parent):
        hint(bench, item)
    bench.server.reset_counts()
    pause = bench.worker.step(NOW + 1)
    assert pause == IDLE_SECONDS
    assert (bench.server.requests, bench.in_line()) == (0, set())
    bench.worker.step(NOW + 1 + GROUP_SECONDS)
    assert bench.in_line() == set(paths)
    assert bench.pokes == 1
    metadata = [one for one in bench.server.log if "/library/metadata/" in one]
    assert len(metadata) == 2  # what it is, and all that is below the artist
    assert bench.server.requests <= 5
    assert {
        reason for path in paths if (job := bench.jobs.find(path)) for reason in job.reasons
    } == {"plex"}
    bench.server.reset_counts()
    bench.worker.step(NOW + 100)
    assert bench.server.requests == 0


def test_what_is_known_unchanged_or_not_here_is_not_asked_for(bench: Bench) -> None:
    known, changed, cover, leftover, absent, new = bench.files(
        "A/B/known.flac",
        "A/B/changed.flac",
        "A/B/cover.jpg",
        "A/B/.x.flac.reclass-01234567-89ab.tmp.flac",
        "A/B/absent.flac",
        "A/B/ne\u0301w.flac",  # in two characters here
    )
    for path in (known, changed):
        status = path.stat()
        bench.store.save_track(path, status.st_size, status.st_mtime_ns, digest=path.name)
    changed.write_bytes(b"longer than before")
    absent.unlink()
    library = bench.server.libraries[1]
    names = ("known", "changed", "absent", "n\u00e9w")  # and in one there
    tracks = [
        bench.server.add_track(library, "A", "B", name, file=f"/data/music/A/B/{name}.flac")
        for name in names
    ]
    for file in ("/data/music/A/B/cover.jpg", f"/data/music/A/B/{leftover.name}", "C:\\x.flac"):
        tracks.append(bench.server.add_track(library, "A", "B", file, file=file))
    assert cover.exists()
    hint(bench, tracks[0].parent)
    bench.worker.step(NOW)
    bench.worker.step(NOW + GROUP_SECONDS)
    assert bench.in_line() == {changed, new}


def test_hints_outlive_a_server_that_goes_away(bench: Bench) -> None:
    paths = bench.files(*ALBUM)
    tracks = bench.scan()
    hint(bench, tracks[0].parent)
    bench.worker.step(NOW)
    bench.server.mode = "down"
    bench.worker.step(NOW + GROUP_SECONDS)
    assert bench.state == "unreachable"
    bench.server.mode = "ok"
    bench.worker.step(NOW + GROUP_SECONDS + 5)
    assert bench.in_line() == set(paths)


def test_a_hint_that_plex_knows_a_file_now_has_it_written_at_once(bench: Bench) -> None:
    """The file was tagged before Plex scanned it; its next look would be in four minutes."""
    (path,) = bench.files("Artist/Album/One.flac")
    status = path.stat()
    bench.store.save_track(path, status.st_size, status.st_mtime_ns, digest="d")
    bench.want(path)
    for second in (0, 60, 180):
        bench.worker.step(NOW + second)
    (track,) = bench.scan()
    hint(bench, track)
    bench.worker.step(NOW + 181)
    assert track.genres == []
    bench.worker.step(NOW + 181 + GROUP_SECONDS)
    assert track.genres == ["Jazz"]
    assert bench.in_line() == set()


def test_an_artist_that_is_no_music_or_gone_is_no_matter(bench: Bench) -> None:
    bench.worker.hint(Hint(99999, "album"))
    bench.worker.step(NOW)
    bench.worker.step(NOW + GROUP_SECONDS)
    assert (bench.state, bench.in_line()) == ("connected", set())


def test_too_many_hints_become_one_question(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plex_worker, "MAX_HINTS", 3)
    paths = bench.files(*ALBUM)
    tracks = bench.scan()
    for track in tracks:
        track.added_at = int(NOW)
    hint(bench, *tracks)
    bench.worker.step(NOW)
    assert bench.in_line() == set(paths)


def test_what_was_recently_added_is_asked_for_from_time_to_time(bench: Bench) -> None:
    old, recent = bench.files("A/B/old.flac", "A/B/recent.flac")
    for track in bench.scan():
        track.added_at = int(NOW - (86400 if "recent" in track.title else 30 * 86400))
    bench.worker.step(NOW)
    assert bench.in_line() == set()
    bench.worker.ask_recent(NOW)
    bench.worker.step(NOW)
    assert bench.in_line() == {recent}
    (newer,) = bench.files("A/B/newer.flac")
    (track,) = bench.scan()
    track.added_at = int(NOW + 800)
    bench.server.reset_counts()
    bench.worker.ask_recent(NOW + 900)
    bench.worker.step(NOW + 900)
    assert bench.in_line() == {recent, newer}
    assert bench.server.requests == 2
    assert old.exists()


# Rounds


def test_rounds_are_the_farther_apart_the_more_there_is_to_do(bench: Bench) -> None:
    paths = bench.files(*(f"A/{number}/x.flac" for number in range(200)))
    bench.scan()
    bench.worker.step(NOW)
    rounds, written, now = [], 0, NOW + 10
    for number, path in enumerate(paths):  # one album each five seconds
        bench.want(path, now=now + 5 * number)
        bench.worker.step(now + 5 * number)
        done = sum(genres == ["Jazz"] for genres in bench.genres())
        if done > written:
            rounds.append(5 * number)
            written = done
    gaps = [later - sooner for sooner, later in itertools.pairwise(rounds)]
    assert rounds[0] == 0
    assert gaps == sorted(gaps) and gaps[-1] == 300
    assert len(rounds) < 10
    for second in range(5, 700, 5):
        bench.worker.step(now + 1000 + second)
    assert all(genres == ["Jazz"] for genres in bench.genres())
    (last,) = bench.files("B/1/x.flac")
    bench.scan()
    bench.want(last, now=now + 2000)
    bench.worker.step(now + 2000)  # it was quiet since: at once
    assert all(genres == ["Jazz"] for genres in bench.genres())


def test_a_clock_that_ran_ahead_holds_nothing_up(bench: Bench) -> None:
    wrong = NOW + 1e7
    early, late = bench.files("A/B/1.flac", "A/B/2.flac")
    bench.want(early, now=wrong)
    bench.worker.step(wrong)  # Plex does not know the file yet: it is to be looked for later
    assert bench.worker.status().pending == 1
    bench.scan()
    bench.worker.step(NOW)
    assert bench.genres() == [["Jazz"], []]
    bench.want(late, "Rock", now=wrong)  # by a daemon that was ended before the clock was set
    again = PlexWorker(bench.store, bench.jobs, bench.config, bench.read_token)
    again.step(NOW + 1)
    again.stop()
    assert bench.genres() == [["Jazz"], ["Rock"]]


def test_in_quiet_hours_nothing_is_written_but_news_are_heard(bench: Bench) -> None:
    (path,) = bench.files("A/B/x.flac")
    (track,) = bench.scan()
    quiet = WorkerOptions(quiet_hours=("00:00-00:00",))
    bench.worker.reload(bench.config.model_copy(update={"worker": quiet}))
    bench.want(path)
    hint(bench, track)
    bench.worker.step(NOW)
    bench.worker.step(NOW + GROUP_SECONDS)
    assert (bench.genres(), bench.in_line()) == ([[]], {path})
    bench.worker.reload(bench.config)
    bench.worker.step(NOW + GROUP_SECONDS + 1)
    assert bench.genres() == [["Jazz"]]


def test_the_policy_is_taken_up_without_a_new_connection(bench: Bench) -> None:
    (path,) = bench.files("A/B/x.flac")
    (track,) = bench.scan()
    track.genres = ["Pop"]
    bench.want(path)
    bench.worker.step(NOW)
    assert bench.genres() == [["Pop"]]
    replace = PolicyOptions(mode="replace")
    bench.server.reset_counts()
    bench.worker.reload(bench.config.model_copy(update={"policy": replace}))
    bench.want(path, now=NOW + 1)
    bench.worker.step(NOW + 1)
    assert bench.genres() == [["Jazz"]]
    assert "GET /" not in bench.server.log


def test_folders_of_a_library_are_local(bench: Bench) -> None:
    assert bench.worker.library_folders("music") == (bench.music,)
    with pytest.raises(ConfigError, match="no music library"):
        bench.worker.library_folders("Jazz")


# The thread


def test_the_thread_writes_what_is_wanted_when_it_is_woken(bench: Bench) -> None:
    bench.worker.start()
    wait_until(lambda: bench.state == "connected")
    (path,) = bench.files("Artist/Album/One.flac")
    bench.scan()
    bench.want(path, now=time.time())
    bench.worker.wake()
    wait_until(lambda: bench.genres() == [["Jazz"]])
    bench.worker.stop()
    assert not any(thread.name == "plex" for thread in threading.enumerate())


@timed
@pytest.mark.parametrize("at", ["connecting", "listing"])
def test_it_stops_at_once_while_the_server_hangs(
    server: PlexStandIn, library: Library, store: Store, music: Path, at: str
) -> None:
    bench = Bench(server, store, music, timeout_seconds=60)
    server.delay = 60.0
    if at == "connecting":
        server.mode = "slow"
    bench.worker.start()
    if at == "listing":
        wait_until(lambda: bench.state == "connected")
        server.reset_counts()
        server.mode = "slow"
        bench.worker.ask_recent(NOW)
    wait_until(lambda: server.requests)
    started = time.monotonic()
    bench.worker.stop()
    assert time.monotonic() - started < 2
    assert not any(thread.name == "plex" for thread in threading.enumerate())


def test_the_thread_outlives_a_store_that_fails(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plex_worker, "TROUBLE_SECONDS", 0.02)
    steps: list[float] = []
    step = bench.worker.step

    def failing(now: float) -> float:
        steps.append(now)
        if len(steps) < 5:
            raise StoreError("the disk is full") if len(steps) < 4 else KeyError("a mistake")
        return step(now)

    monkeypatch.setattr(bench.worker, "step", failing)
    bench.worker.start()
    wait_until(lambda: bench.state == "connected")
    bench.worker.stop()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [("disk" in one.getMessage(), bool(one.exc_info)) for one in errors] == [
        (True, False),
        (False, True),
    ]
