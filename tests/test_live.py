"""Live state: told from the queue alone, whoever changes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reclass_plex.cli_daemon import _describe_progress
from reclass_plex.jobs import STATES, Jobs
from reclass_plex.remote import PlexStatus, Status
from reclass_plex.store import Store
from service.events import Events, Listener
from service.live import MAX_TOLD, Live

NOW = 2_000_000_000.0


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield Jobs(opened)


def told(listener: Listener) -> list[tuple[str, str]]:
    events = [event.data for event in listener.take(0.0)]
    return [(one["path"], one["state"]) for data in events for one in data["changed"]]


def test_changes_are_told_once_and_together(jobs: Jobs) -> None:
    events = Events()
    live = Live(jobs, events)
    live._since = NOW
    with events.listen() as listener:
        jobs.enqueue([Path("/a"), Path("/b")], "test", NOW + 1)
        live.look(1.0, NOW + 1)
        assert sorted(told(listener)) == [("/a", "ready"), ("/b", "ready")]
        live.look(1.1, NOW + 1.1)  # not yet
        live.look(2.0, NOW + 2)
        assert told(listener) == []
        [job] = jobs.claim(1, NOW + 2, owner="x", lease=60)
        assert live.in_hand() == (job.path,)
        live.look(3.0, NOW + 3)
        jobs.finish([job.id], "x", "done", NOW + 2.5, message="m")  # came to light late
        live.look(4.0, NOW + 4)
        assert told(listener) == [(str(job.path), "running"), (str(job.path), "done")]
        jobs.enqueue([Path(f"/many/{n}") for n in range(200)], "test", NOW + 5)
        live.look(5.0, NOW + 5)
        [event] = listener.take(0.0)
        assert (len(event.data["changed"]), event.data["more"]) == (MAX_TOLD, 200 - MAX_TOLD)
        assert event.data["counts"]["ready"] == 201
        jobs.enqueue([Path("/odd\udcff\n")], "test", NOW + 6)
        live.look(6.0, NOW + 6)
        assert told(listener) == [("/odd\\xff\\n", "ready")]  # fit for JSON and for a page


def test_rate_and_time_left(jobs: Jobs) -> None:
    live = Live(jobs, Events())
    live._since = NOW
    jobs.enqueue([Path(f"/{n}") for n in range(40)], "test", NOW)
    live.look(0.0, NOW)
    assert live.per_minute(0.0) is None
    assert live.seconds_left(0.0, jobs.counts()) is None
    for step in range(1, 7):  # two tracks in each 5 s
        now = NOW + 5 * step
        held = jobs.claim(2, now, owner="x", lease=60)
        jobs.finish([job.id for job in held], "x", "done", now)
        live.look(5.0 * step, now)
    assert live.per_minute(30.0) == pytest.approx(24.0)
    assert live.seconds_left(30.0, jobs.counts()) == pytest.approx(28 / 24 * 60)
    live.look(40.0, NOW - 1e6)  # the clock was set: what it says is no measure of time
    assert live.per_minute(40.0) == pytest.approx(18.0)
    live.look(1000.0, NOW - 1e6 + 960)
    assert live.per_minute(1000.0) is None  # long ago


def test_status_says_it_to_people() -> None:
    counts = dict.fromkeys(STATES, 0)
    idle = Status(version="1", state="idle", jobs=counts, plex=PlexStatus(state="off"), since=NOW)
    assert _describe_progress(idle) == []
    busy = idle.model_copy(
        update={
            "per_minute": 24.0,
            "seconds_left": 70.0 * 60,
            "in_hand": (Path("/music/a\x1b.mp3"),),
            "operations": 2,
        }
    )
    assert _describe_progress(busy) == [
        "24.0 tracks a minute, about 70 minutes left",
        "in hand: a\\x1b.mp3",
        "2 operations that people asked for are under way",
    ]


def test_a_look_goes_by_an_index(jobs: Jobs, tmp_path: Path) -> None:
    import sqlite3

    plan: list[Any] = []
    jobs.enqueue([Path("/a")], "test", NOW)
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE changed >= 5 ORDER BY changed DESC LIMIT 9"
        ).fetchall()
    connection.close()
    assert "ix_jobs_changed" in plan[0][3]
    assert len(plan) == 1  # nothing is sorted
    assert [job.path for job in jobs.changed_since(time.time() - 1, 5)] == [Path("/a")]
