"""A person's word on tracks: it is written, wins over every verdict, and can be taken back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_tools import set_tags
from decision_tools import CONFIG, ENSEMBLE, copy_file, know, make_file

from reclass_plex import decisions, pipeline
from reclass_plex.browse_history import list_runs
from reclass_plex.changes import find_changes, undo_changes
from reclass_plex.config import Config
from reclass_plex.decided import Decisions
from reclass_plex.errors import ConfigError, StoreBusy
from reclass_plex.files import FoundFile
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store
from reclass_plex.sync import Wanted
from reclass_plex.tags import read_tags

PLEX = CONFIG.model_copy(
    update={"plex": CONFIG.plex.model_copy(update={"url": "http://127.0.0.1:9"})}
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def music(tmp_path: Path) -> Path:
    return tmp_path / "music"


def correct(store: Store, ids: list[int], *genres: str) -> decisions.Decided:
    return decisions.correct(store, ids, genres, CONFIG, ENSEMBLE, by="anna")


def write(store: Store, config: Config = CONFIG) -> list[decisions.Written]:
    return list(decisions.write_decisions(store, config))


def tag(store: Store, *paths: Path, **policy: object) -> list[pipeline.TrackResult]:
    """Run the pipeline as `tag` does."""
    config = Config.model_validate({"policy": policy})
    found = [FoundFile(p, p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    with store.writing_files():
        return list(
            pipeline.tag_files(
                found,
                store=store,
                ensemble=ENSEMBLE,
                config=config,
                run_id=store.start_run("tag"),
                workers=1,
            )
        )


def undo(store: Store, run_id: int | None) -> list[str]:
    entries = find_changes(store, run_id=run_id)
    return [result.how for _, result in undo_changes(store, entries, CONFIG.tags)]


def test_a_correction_is_written_and_wins_over_every_verdict(store: Store, music: Path) -> None:
    track = make_file(music / "a.ogg")
    set_tags(track, genre="Polka")
    before = track.read_bytes()
    track_id = know(store, track, (("Rock", 0.99), ("Jazz", 0.01)))
    jobs = Jobs(store)
    jobs.enqueue([track], "test", time.time())
    jobs.claim(1, time.time(), owner="x", lease=9)
    job = jobs.find(track)
    assert job is not None
    jobs.finish([job.id], "x", "review", time.time(), message="below 0.50")

    done = correct(store, [track_id], "jazz", "Gypsy  Jazz")
    assert (done.track_ids, done.refused) == ((track_id,), ())
    assert [one.state for one in write(store, PLEX)] == ["written"]
    assert read_tags(track).genres == ("Jazz", "Gypsy Jazz")  # the usual spelling; replaces
    job = jobs.find(track)
    assert job is not None
    assert (job.state, job.message) == ("done", "decided by a person: Jazz, Gypsy Jazz")
    [wish] = Wanted(store).due(time.time(), 9)
    assert [tuple(genre) for genre in wish.genres] == [("Jazz", 1.0), ("Gypsy Jazz", 1.0)]

    for mode in ("fill", "append", "replace"):
        [result] = tag(store, track, mode=mode, min_confidence=0.1)
        assert not result.written
        assert result.plan is not None
        assert "as was decided" in result.plan.reason
        assert not result.plan.undecided
        assert [tuple(g) for g in pipeline.genres_for_plex(result)] == [
            ("Jazz", 1.0),
            ("Gypsy Jazz", 1.0),
        ]
    know(store, track, (("Metal", 1.0),), models="newer models")
    assert not tag(store, track, mode="replace")[0].written

    assert undo(store, done.run_id) == ["restored byte for byte"]
    assert track.read_bytes() == before
    assert Decisions(store).all_standing() == {}  # withdrawn with it
    [result] = tag(store, track, mode="replace")
    assert result.plan is not None
    assert result.plan.reason == "taken back by undo since"


def test_accept_writes_what_was_heard_first(store: Store, music: Path) -> None:
    tracks = [make_file(music / f"{n}.ogg", n) for n in range(3)]
    ids = [
        know(store, tracks[0], (("Rock", 0.3), ("Jazz", 0.2)), unsure="too close to call"),
        know(store, tracks[1], (("Metal", 0.2),), models="older"),
        know(store, tracks[2], None),
    ]
    names = CONFIG.model_copy(
        update={"policy": CONFIG.policy.model_copy(update={"names": {"Rock": "Rock music"}})}
    )
    done = decisions.accept(store, [*ids, 10**30, -1], names, ENSEMBLE)
    assert [(one.track_id, one.reason) for one in done.refused] == [
        (ids[2], "no genre was heard in it yet"),
        (10**30, "is not known"),
        (-1, "is not known"),
    ]
    assert [one.state for one in write(store)] == ["written", "written"]
    assert [read_tags(track).genres for track in tracks] == [("Rock music",), ("Metal",), ()]
    standing = Decisions(store).all_standing().values()
    assert {(one.kind, one.previous, one.by) for one in standing} == {
        ("accept", "Rock", None),
        ("accept", "Metal", None),
    }
    nothing = decisions.accept(store, [ids[2]], CONFIG, ENSEMBLE)
    assert nothing.run_id is None  # no empty run in the history


def test_accepting_what_we_wrote_keeps_it(store: Store, music: Path) -> None:
    track = make_file(music / "a.ogg")
    know(store, track, (("Rock", 0.9),))
    assert tag(store, track)[0].written
    track_id = know(store, track, (("Metal", 0.9),), models=ENSEMBLE.fingerprint)
    decisions.accept(store, [track_id], CONFIG, ENSEMBLE)
    assert [one.state for one in write(store)] == ["unchanged"]
    assert not tag(store, track, mode="replace")[0].written
    assert read_tags(track).genres == ("Rock",)


def test_it_survives_moves_and_later_edits_are_the_users(store: Store, music: Path) -> None:
    track = make_file(music / "a.ogg")
    track_id = know(store, track)
    correct(store, [track_id], "Jazz")
    moved = track.rename(music / "b.ogg")  # before it was written
    assert [(one.state, one.reason) for one in write(store)] == [("missing", decisions.NOT_THERE)]
    know(store, moved)
    assert [(one.state, one.path) for one in write(store)] == [("written", moved)]
    assert read_tags(moved).genres == ("Jazz",)
    assert Decisions(store).open_ones() == []
    again = moved.rename(music / "c.ogg")
    assert not tag(store, again, mode="replace", min_confidence=0.1)[0].written
    set_tags(again, genre="Ska")
    [result] = tag(store, again, mode="replace", min_confidence=0.1)
    assert result.plan is not None
    assert result.plan.reason == "edited by hand since"
    copy = copy_file(again, music / "copy.ogg")
    set_tags(copy, genre="")
    [result] = tag(store, copy)  # no genre of its own
    assert read_tags(copy).genres == ("Jazz",)


def test_of_two_words_the_newer_counts_and_undo_gives_the_older_back(
    store: Store, music: Path
) -> None:
    track = make_file(music / "a.ogg")
    track_id = know(store, track)
    first = correct(store, [track_id], "Jazz")
    write(store)
    second = correct(store, [track_id], "Blues")
    third = correct(store, [track_id], "Metal")  # before the second was written
    assert [one.genres for one in write(store)] == [("Metal",)]
    assert read_tags(track).genres == ("Metal",)
    digest = next(iter(Decisions(store).all_standing()))
    states = [(one.run_id, one.state) for one in Decisions(store).of_digest(digest)]
    assert states == [
        (third.run_id, "stands"),
        (second.run_id, "withdrawn"),  # it left no trace in the file
        (first.run_id, "replaced"),
    ]
    undo(store, third.run_id)
    assert read_tags(track).genres == ("Jazz",)
    assert decisions.forget(store, [track_id]) == 1
    assert Decisions(store).all_standing() == {}
    assert read_tags(track).genres == ("Jazz",)


def test_two_at_once_leave_one_word_and_one_genre(store: Store, music: Path) -> None:
    track = make_file(music / "a.ogg")
    track_id = know(store, track)
    names = ["Jazz", "Blues", "Metal", "Rock"]

    def decide(name: str) -> None:
        correct(store, [track_id], name)
        for _ in decisions.write_decisions(store, CONFIG, wait_seconds=20):
            pass

    threads = [threading.Thread(target=decide, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write(store)
    [standing] = Decisions(store).all_standing().values()
    assert read_tags(track).genres == standing.genres
    assert standing.open == ()
    while entries := find_changes(store):  # all of it can be taken back
        undo(store, entries[0].run_id)
    assert read_tags(track).genres == ()
    assert Decisions(store).all_standing() == {}


def test_what_cannot_be_written_waits_and_says_why(store: Store, music: Path) -> None:
    locked = make_file(music / "locked" / "a.ogg")
    gone = make_file(music / "gone.ogg", 1)
    other = make_file(music / "other.ogg", 2)
    linked = make_file(music / "linked.ogg", 3)
    os.link(linked, music / "seed.ogg")
    ids = [know(store, path) for path in (locked, gone, other, linked)]
    correct(store, ids, "Jazz")
    gone.unlink()
    make_file(other, 7)  # another recording takes its place
    locked.parent.chmod(0o500)
    if os.geteuid() == 0:  # root writes anywhere: let the folder be a file system of its own
        subprocess.run(["chattr", "+i", str(locked)], check=False, capture_output=True)
    try:
        found = {one.path.name: one for one in write(store)}
        assert found["gone.ogg"].state == "missing"
        assert found["other.ogg"].reason == "another recording has taken its place since"
        assert "hard links" in (found["linked.ogg"].reason or "")
        open_ids = {one for d in Decisions(store).open_ones() for one in d.open}
        assert open_ids >= {ids[1], ids[2], ids[3]}
        problems = {one.problem for one in Decisions(store).open_ones()}
        assert decisions.NOT_THERE in problems
    finally:
        subprocess.run(["chattr", "-i", str(locked)], check=False, capture_output=True)
        locked.parent.chmod(0o700)
    write(store)
    assert read_tags(locked).genres == ("Jazz",)
    assert read_tags(other).genres == ()


def test_a_file_retagged_meanwhile_is_looked_at_again(store: Store, music: Path) -> None:
    track = make_file(music / "a.ogg")
    track_id = know(store, track)
    set_tags(track, genre="Polka", title="New title")
    before = track.read_bytes()
    done = correct(store, [track_id], "Jazz")
    assert [one.state for one in write(store)] == ["written"]
    assert read_tags(track).title == "New title"
    undo(store, done.run_id)
    assert track.read_bytes() == before


def test_an_album_is_decided_at_once_and_its_tracks_do_not_vote(store: Store, music: Path) -> None:
    tracks = [make_file(music / "Album" / f"{n}.ogg", n) for n in range(4)]
    for track in tracks:
        set_tags(track, album="Album")
    ids = [know(store, track, (("Rock", 0.9),)) for track in tracks]
    assert decisions.whole_albums(store, [ids[1]]) == ids
    assert decisions.whole_albums(store, [999]) == [999]
    correct(store, ids[:3], "Jazz")
    write(store)
    results = tag(store, *tracks, mode="replace")
    assert [result.written for result in results] == [False, False, False, True]
    assert [read_tags(track).genres for track in tracks] == [("Jazz",)] * 3 + [("Rock",)]
    assert results[3].plan is not None
    assert results[3].plan.reason == "Rock 0.90"  # its own answer: one voter is no album


@pytest.mark.parametrize(
    "genres",
    [
        *((), ("",), (" ",), ("a\nb",), ("Jazz; Blues",), ("x" * 61,), ("Unknown",), ("\ud800",)),
        tuple(f"Genre {n}" for n in range(11)),
    ],
)
def test_names_that_are_no_genres_are_refused(store: Store, genres: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="genre"):
        decisions.correct(store, [1], genres, CONFIG, ENSEMBLE)
    assert list_runs(store).rows == ()


def test_while_another_process_changes_files_it_waits(store: Store, music: Path) -> None:
    track_id = know(store, make_file(music / "a.ogg"))
    correct(store, [track_id], "Jazz")
    with Store.open(store.path) as other, other.writing_files(), pytest.raises(StoreBusy):
        write(store)
    assert [one.state for one in write(store)] == ["written"]


_CHILD = """
import sys
from pathlib import Path
from reclass_plex import decisions
from reclass_plex.config import Config
from reclass_plex.store import Store
store = Store.open(Path(sys.argv[1]))
print("ready", flush=True)
for one in decisions.write_decisions(store, Config(), wait_seconds=30):
    print(one.track_id, flush=True)
"""


def test_copies_of_a_killed_writer_that_did_not_decide_are_removed(
    store: Store, music: Path
) -> None:
    track = make_file(music / "Album" / "1.ogg", 1)
    correct(store, [know(store, track)], "Jazz")
    code = f"{_CHILD}\nfrom reclass_plex.files import process_token\nprint(process_token())"
    command = [sys.executable, "-c", code, str(store.path)]
    token = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert read_tags(track).genres == ("Jazz",)
    ours = track.with_name(f".1.reclass-{token}-abcd.tmp.ogg")
    strange = track.with_name(".1.reclass-00000000-abcd.tmp.ogg")
    for leftover in (ours, strange):
        leftover.touch()
    correct(store, [know(store, track)], "Blues")
    write(store)
    assert read_tags(track).genres == ("Blues",)
    assert (ours.exists(), strange.exists()) == (False, True)


def test_killed_while_it_writes_an_album_nothing_is_lost(store: Store, music: Path) -> None:
    count = 90
    sources = [make_file(music / "Album" / f"{n:03}.ogg", n) for n in range(12)]
    tracks = [
        sources[n] if n < 12 else copy_file(sources[n % 12], music / "Album" / f"{n:03}.ogg")
        for n in range(count)
    ]
    before = {track: track.read_bytes() for track in tracks}
    ids = [know(store, track) for track in tracks]
    done = correct(store, ids, "Jazz")
    for number in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(store.path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(2 + 17 * number):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert any(one.open for one in Decisions(store).open_ones())
    write(store)
    assert {read_tags(track).genres for track in tracks} == {("Jazz",)}
    assert list(music.rglob(".*")) == []
    assert len(find_changes(store, run_id=done.run_id)) == count
    assert set(undo(store, done.run_id)) == {"restored byte for byte"}
    assert {track: track.read_bytes() for track in tracks} == before
    assert Decisions(store).all_standing() == {}
