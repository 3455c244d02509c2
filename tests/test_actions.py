"""What people do through the daemon: operations that can be followed, and events about them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from decision_tools import CONFIG, UNSURE, know, make_file
from timing import timed

from reclass_plex.decided import Decisions
from reclass_plex.errors import ConfigError, FileError, PlexUnreachable
from reclass_plex.jobs import Jobs
from reclass_plex.placements import Placements
from reclass_plex.placing import Order, place
from reclass_plex.plex import Plex
from reclass_plex.remote import Operation, UndoRequest
from reclass_plex.store import Store
from reclass_plex.tags import read_tags
from service.actions import Actions
from service.events import MAX_LISTENERS, MAX_WAITING, Event, Events, TooManyListeners
from service.operations import MAX_RUNNING, Operations, Progress


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def away() -> Plex:
    raise PlexUnreachable("it is away")


@pytest.fixture
def actions(store: Store) -> Iterator[Actions]:
    made = Actions(store, lambda: CONFIG, away, events=Events())
    yield made
    made.close()


def ended(actions: Actions, operation: Operation | None) -> Operation:
    assert operation is not None
    found = actions.operations.wait(operation.id, 20)
    assert found is not None
    assert found.finished is not None
    return found


def test_a_run_that_sorted_files_is_counted_and_taken_back(
    store: Store, actions: Actions, tmp_path: Path
) -> None:
    source, target = make_file(tmp_path / "in" / "a.ogg"), tmp_path / "tree" / "Jazz" / "a.ogg"
    run_id = store.start_run("organize")
    with store.writing_files():
        place(Placements(store), Order(run_id, source, target, "move"))
    store.finish_run(run_id)
    assert target.exists()
    wanted = UndoRequest(run_id=run_id)
    count = actions.count_undo(wanted)
    assert (count.files, count.edits, count.decisions) == (1, 0, 0)
    undone = ended(actions, actions.undo(wanted))
    assert (undone.total, undone.result) == (
        1,
        {"restored": 1, "kept": 0, "edits": 0, "edits_kept": 0},
    )
    assert source.exists()
    assert not target.exists()


@timed
def test_a_click_is_in_the_file_at_once(store: Store, actions: Actions, tmp_path: Path) -> None:
    path = make_file(tmp_path / "music" / "a.ogg")
    before = path.read_bytes()
    track_id = know(store, path)
    began = time.monotonic()
    said = actions.decide([track_id], "correct", ["jazz"], by="anna")
    done = ended(actions, said.operation)
    assert time.monotonic() - began < 5  # some 0.1 s where nothing else runs
    assert read_tags(path).genres == ("Jazz",)
    assert (done.state, done.done, done.total, done.failed) == ("done", 1, 1, 0)
    assert (done.result, done.run_id) == ({"written": 1}, said.run_id)
    count = actions.count_undo(UndoRequest(run_id=said.run_id))
    assert (count.files, count.edits, count.decisions) == (1, 0, 0)
    undone = ended(actions, actions.undo(UndoRequest(track_ids=(track_id,))))
    assert undone.result == {"restored": 1, "kept": 0, "edits": 0, "edits_kept": 0}
    assert path.read_bytes() == before
    with pytest.raises(ConfigError):
        actions.undo(UndoRequest(run_id=999))
    with pytest.raises(ConfigError):
        actions.decide([track_id], "correct", [])
    nothing = actions.decide([999], "accept")
    assert (nothing.run_id, nothing.operation) == (None, None)
    assert [one.reason for one in nothing.refused] == ["is not known"]


def test_what_fails_is_named_and_tried_again(
    store: Store, actions: Actions, tmp_path: Path
) -> None:
    paths = [make_file(tmp_path / "music" / f"{n}.ogg", n) for n in range(3)]
    ids = [know(store, path) for path in paths]
    away_now = paths[1].rename(tmp_path / "hidden")
    said = actions.decide(ids, "accept")
    done = ended(actions, said.operation)
    assert (done.state, done.done, done.failed) == ("done", 3, 1)
    assert [(one.name, one.reason) for one in done.failures] == [
        (str(paths[1]), "the file is not there")
    ]
    away_now.rename(paths[1])
    actions.resume(0.0)
    actions.resume(1.0)  # not again so soon
    ended(actions, actions.operations.all()[0])
    assert read_tags(paths[1]).genres == ("Rock",)
    assert not Decisions(store).any_open()
    assert len(actions.operations.all()) == 2
    assert actions.forget(ids) == 3
    assert Jobs(store).counts()["ready"] == 3  # the models decide again


def test_operations_can_be_stopped_and_say_what_went_wrong() -> None:
    operations = Operations(Events())
    release = threading.Event()

    def slow(progress: Progress) -> None:
        progress.begin(1000)
        while not progress.should_stop():
            progress.advance()
            time.sleep(0.001)

    def broken(progress: Progress) -> None:
        raise RuntimeError("a fault of ours")

    def refused(progress: Progress) -> None:
        raise FileError(Path("/music/a\udcff.mp3"), "is read-only")

    def blocked(progress: Progress) -> None:
        release.wait(20)

    try:
        first = operations.start("slow", slow, writes=True)
        second = operations.start("after it", broken, writes=True)
        looked = operations.wait(operations.start("look", refused, writes=False).id, 20)
        assert looked is not None  # what only looks does not wait
        assert (looked.state, looked.error) == ("failed", "file")
        waiting = operations.find(second.id)
        assert waiting is not None
        assert waiting.state == "waiting"
        assert operations.ask_to_stop(first.id)
        assert not operations.ask_to_stop("unknown")
        assert operations.wait("unknown", 1) is None
        stopped, failed = operations.wait(first.id, 20), operations.wait(second.id, 20)
        assert stopped is not None
        assert stopped.state == "stopped"
        assert 0 < stopped.done < 1000
        assert failed is not None
        assert (failed.state, failed.error) == ("failed", "internal")
        assert "a fault" not in (failed.message or "")
        for _ in range(MAX_RUNNING):
            operations.start("blocked", blocked, writes=True)
        with pytest.raises(ConfigError, match="too much"):
            operations.start("one more", blocked, writes=True)
    finally:
        release.set()
        operations.close()


def test_a_slow_listener_loses_the_oldest_and_is_told() -> None:
    events = Events()
    events.publish("unheard")
    with events.listen() as listener:
        assert listener.take(0.0) == []
        for number in range(MAX_WAITING + 10):
            events.publish("tick", {"n": number})
        lost, *rest = listener.take(0.0)
        assert (lost.kind, lost.data) == ("lost", {"count": 10})
        assert [event.data["n"] for event in rest] == list(range(10, MAX_WAITING + 10))
        heard: list[Event] = []
        thread = threading.Thread(target=lambda: heard.extend(listener.take(20)))
        thread.start()
        events.publish("now")
        thread.join(20)
        assert [event.kind for event in heard] == ["now"]
        events.close()
        assert listener.take(20) == []
        assert listener.closed
    assert events.listeners == 0


def test_there_are_not_more_listeners_than_it_can_bear() -> None:
    events = Events()
    opened = [events.listen() for _ in range(MAX_LISTENERS)]
    for one in opened:
        one.__enter__()
    with pytest.raises(TooManyListeners), events.listen():
        pass
    for one in opened:
        one.__exit__(None, None, None)
    with events.listen() as listener:
        events.publish("x")
        assert [event.kind for event in listener.take(1)] == ["x"]


def test_many_at_once_leave_each_track_with_one_word(
    store: Store, actions: Actions, tmp_path: Path
) -> None:
    paths = [make_file(tmp_path / "music" / f"{n}.ogg", n) for n in range(4)]
    ids = [know(store, path, UNSURE) for path in paths]
    names = ["Jazz", "Blues", "Metal"]
    threads = [
        threading.Thread(target=actions.decide, args=[ids, "correct", [name]]) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for operation in actions.operations.all():
        assert ended(actions, operation).failed == 0
    said = {one.genres for one in Decisions(store).all_standing().values()}
    assert {read_tags(path).genres for path in paths} == said
    assert len(said) == 1
    ended(actions, actions.undo(UndoRequest(since=0.0)))
    assert {read_tags(path).genres for path in paths} == {()}
