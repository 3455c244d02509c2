"""Undo of files, decisions and Plex together, and the right to change Plex."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from decision_tools import CONFIG, ENSEMBLE, know, make_file
from plex_server import Library, PlexStandIn
from plex_tools import connect

from reclass_plex import decisions, undoing
from reclass_plex.config import Config
from reclass_plex.decided import Decisions
from reclass_plex.errors import ConfigError, PlexUnreachable, StoreBusy
from reclass_plex.plex import Plex
from reclass_plex.store import Store
from reclass_plex.sync import Wanted, sync_once
from reclass_plex.tags import read_tags


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def away() -> Plex:
    raise PlexUnreachable("it is away")


def take_back(
    store: Store, plan: undoing.UndoPlan, connect: undoing.Connect = away
) -> list[undoing.Undone]:
    with store.writing_files():
        return list(undoing.take_back(store, plan, CONFIG.tags, connect))


def decide(store: Store, ids: list[int], genre: str) -> int:
    config = Config.model_validate({"plex": {"url": "http://127.0.0.1:9"}})
    run_id = decisions.correct(store, ids, [genre], config, ENSEMBLE).run_id
    assert run_id is not None
    list(decisions.write_decisions(store, config))
    return run_id


def test_file_and_plex_follow_a_decision_and_its_undo(
    store: Store, tmp_path: Path, server: PlexStandIn, library: Library
) -> None:
    paths = [make_file(tmp_path / "music" / f"{n}.ogg", n) for n in range(2)]
    tracks = [
        server.add_track(library, "A", "B", path.name, file=str(path), genres=["Pop"])
        for path in paths
    ]
    album = tracks[0].parent
    assert album is not None
    album.genres = ["Pop"]
    before = [path.read_bytes() for path in paths]
    ids = [know(store, path) for path in paths]
    run_id = decide(store, ids[:1], "Jazz")
    with connect(server) as plex:  # in mode fill
        sync_once(plex, store, CONFIG.policy, time.time())
    assert tracks[0].genres == ["Jazz"]  # a person's word replaces
    assert tracks[1].genres == ["Pop"]
    assert album.genres == ["Pop"]  # one of two tracks is no album
    both = decide(store, ids, "Blues")
    with connect(server) as plex:
        sync_once(plex, store, CONFIG.policy, time.time())
    assert [one.genres for one in (*tracks, album)] == [["Blues"]] * 3

    plan = undoing.plan_undo(store, track_ids=[ids[0]])
    assert [entry.run_id for entry in plan.entries] == [both, run_id]
    undone = take_back(store, plan)  # Plex is away
    assert isinstance(undone[-1], undoing.PlexKept)
    assert [read_tags(path).genres for path in paths] == [(), ("Blues",)]
    assert paths[0].read_bytes() == before[0]
    assert tracks[0].genres == ["Blues"]
    again = undoing.plan_undo(store, track_ids=[ids[0]])
    assert (again.entries, again.edits > 0) == ((), True)
    take_back(store, again, lambda: connect(server))
    assert tracks[0].genres == ["Pop"]

    rest = undoing.plan_undo(store, since=0.0)
    take_back(store, rest, lambda: connect(server))
    assert [path.read_bytes() for path in paths] == before
    assert [one.genres for one in (*tracks, album)] == [["Pop"]] * 3
    assert Decisions(store).all_standing() == {}
    with connect(server) as plex:
        sync_once(plex, store, CONFIG.policy, time.time())
    assert [one.genres for one in (*tracks, album)] == [["Pop"]] * 3
    assert Wanted(store).counts()["waiting"] == 0


def test_a_decision_that_changed_no_file_is_withdrawn(store: Store, tmp_path: Path) -> None:
    path = make_file(tmp_path / "music" / "a.ogg")
    track_id = know(store, path)
    first = decide(store, [track_id], "Jazz")
    second = decide(store, [track_id], "Jazz")  # it says so already
    assert undoing.last_run(store) == second
    plan = undoing.plan_undo(store, run_id=second)
    assert (plan.entries, plan.decisions) == ((), 1)
    assert take_back(store, plan) == []
    [standing] = Decisions(store).all_standing().values()
    assert standing.run_id == first
    assert undoing.plan_undo(store, path=tmp_path / "elsewhere").empty
    assert not undoing.plan_undo(store, path=tmp_path / "music").empty


def test_nothing_and_no_such_run_are_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="say what"):
        undoing.plan_undo(store)
    with pytest.raises(ConfigError, match="no such run"):
        undoing.plan_undo(store, run_id=7)
    for ids in ([], list(range(10_001))):
        with pytest.raises(ConfigError, match="tracks"):
            undoing.plan_undo(store, track_ids=ids)
    assert undoing.last_run(store) is None
    assert undoing.plan_undo(store, track_ids=[7]).empty


def test_a_round_of_edits_and_an_undo_never_meet(
    store: Store, tmp_path: Path, server: PlexStandIn, library: Library
) -> None:
    path = make_file(tmp_path / "music" / "a.ogg")
    track = server.add_track(library, "A", "B", "C", file=str(path))
    run_id = decide(store, [know(store, path)], "Jazz")
    with connect(server) as plex:
        sync_once(plex, store, CONFIG.policy, time.time())
        assert track.genres == ["Jazz"]
        with store.writing_plex(), pytest.raises(StoreBusy, match="changing Plex"):
            sync_once(plex, store, CONFIG.policy, time.time())
    plan = undoing.plan_undo(store, run_id=run_id)
    with store.writing_plex():  # a round is under way
        thread = threading.Thread(target=take_back, args=[store, plan, lambda: connect(server)])
        thread.start()
        time.sleep(0.3)
        assert track.genres == ["Jazz"]
    thread.join(20)
    assert track.genres == []
