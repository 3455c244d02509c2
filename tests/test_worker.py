"""The worker, step by step, on real music with a real store."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from reclass_plex import pipeline
from reclass_plex.audio import decode_excerpt
from reclass_plex.browse_history import list_runs
from reclass_plex.config import Config
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import DeviceError, StoreError
from reclass_plex.jobs import Jobs
from reclass_plex.records import Excerpt, Waveform
from reclass_plex.store import Store
from reclass_plex.sync import Wanted
from reclass_plex.tags import read_tags
from reclass_plex.worker import Worker

DEMO = Path(__file__).parent.parent / "demo"
SURE = DEMO / "HSR - City.ogg"  # decided by the first stage
UNSURE = DEMO / "Klaus Halfmann - Silkweaver Song.m4a"  # below the confidence
CONFIG = Config.model_validate({"watch": {"settle_seconds": 0.1}})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    return folder


def make_worker(store: Store, **options: object) -> Worker:
    settings: dict[str, object] = {"threads": 1, "config": CONFIG, **options}
    config = settings.pop("config")
    assert isinstance(config, Config)
    ensemble = Ensemble.from_config(config)
    decode: Any = settings.pop("decode", decode_excerpt)
    settings["hear"] = pipeline.listener(ensemble, decode)
    return Worker(store, config, ensemble, **settings)  # type: ignore[arg-type]


def put(store: Store, *paths: Path) -> Jobs:
    jobs = Jobs(store)
    time.sleep(0.15)  # they rest
    jobs.enqueue(paths, "test", time.time())
    return jobs


def test_a_track_is_heard_tagged_and_done(store: Store, music: Path) -> None:
    track = Path(shutil.copy(SURE, music / "a.ogg"))
    jobs = put(store, track)
    wanted = Wanted(store)
    worker = make_worker(store, wanted=wanted)
    assert worker.step(time.time())
    assert not worker.step(time.time())
    assert read_tags(track).genres == ("Blues",)
    job = jobs.find(track)
    assert job is not None
    assert (job.state, job.owner) == ("done", None)
    [wish] = wanted.due(time.time(), 10)
    assert (wish.path, [genre.name for genre in wish.genres]) == (track, ["Blues"])
    [run] = list_runs(store).rows
    assert (run.command, run.done) == ("daemon", 1)
    assert run.finished is not None


def test_what_is_not_sure_waits_for_a_person(store: Store, music: Path) -> None:
    track = Path(shutil.copy(UNSURE, music / "a.m4a"))
    before = track.read_bytes()
    jobs = put(store, track)
    wanted = Wanted(store)
    worker = make_worker(store, wanted=wanted)
    worker.step(time.time())
    worker.close()
    job = jobs.find(track)
    assert job is not None
    assert job.state == "review"
    assert "below 0.50" in (job.message or "")
    assert track.read_bytes() == before
    assert wanted.due(time.time(), 10) == []
    assert list_runs(store).rows == ()  # nothing came of it


def test_each_kind_of_trouble_ends_as_it_should(store: Store, music: Path) -> None:
    gone = music / "gone.ogg"
    broken = music / "broken.mp3"
    broken.write_bytes(b"no music at all" * 1000)
    linked = Path(shutil.copy(SURE, music / "linked.ogg"))
    os.link(linked, music.parent / "seeded.ogg")
    has_genre = Path(shutil.copy(SURE, music / "jazz.ogg"))
    jobs = put(store, has_genre)
    make_worker(store).step(time.time())
    has_job = jobs.find(has_genre)
    assert has_job is not None
    assert has_job.state == "done"
    put(store, gone, broken, linked, has_genre)
    make_worker(store).step(time.time())
    found = {path.name: jobs.find(path) for path in (gone, broken, linked, has_genre)}
    states = {name: job.state for name, job in found.items() if job}
    assert states == {
        "gone.ogg": "skipped",
        "broken.mp3": "failed",
        "linked.ogg": "skipped",
        "jazz.ogg": "skipped",
    }
    messages = {name: job.message or "" for name, job in found.items() if job}
    assert messages["gone.ogg"] == "the file is gone"
    assert "hard link" in messages["linked.ogg"]
    assert messages["jazz.ogg"].startswith("already has")


def test_a_young_file_is_left_to_rest(store: Store, music: Path) -> None:
    config = Config.model_validate({"watch": {"settle_seconds": 60}})
    track = Path(shutil.copy(SURE, music / "a.ogg"))
    jobs = put(store, track)
    make_worker(store, config=config).step(time.time())
    job = jobs.find(track)
    assert job is not None
    assert job.state == "waiting"
    assert job.due > time.time() + 50
    assert job.attempts == 0


def test_an_album_votes_with_what_is_known_of_it(store: Store, music: Path) -> None:
    """A late track of an album hears what its mates said, and they stay as they are."""
    from mutagen.mp4 import MP4
    from mutagen.oggvorbis import OggVorbis

    tracks = []
    for name in ("1.ogg", "2.ogg", "3.ogg"):
        track = Path(shutil.copy(SURE, music / name))
        tags = OggVorbis(track)
        tags["album"] = ["One"]
        tags.save()
        tracks.append(track)
    late = Path(shutil.copy(UNSURE, music / "4.m4a"))
    late_tags = MP4(late)
    late_tags["\xa9alb"] = ["One"]
    late_tags.save()
    jobs = put(store, *tracks)
    make_worker(store).step(time.time())
    stamps = [track.stat().st_mtime_ns for track in tracks]
    put(store, late)
    make_worker(store).step(time.time())
    assert read_tags(late).genres == ("Blues",)
    job = jobs.find(late)
    assert job is not None
    assert "album consensus" in (job.message or "")
    assert [track.stat().st_mtime_ns for track in tracks] == stamps


def test_a_command_that_changes_files_is_waited_for(
    store: Store, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reclass_plex.worker.LOCK_SECONDS", 0.2)
    track = Path(shutil.copy(SURE, music / "a.ogg"))
    jobs = put(store, track)
    worker = make_worker(store)
    worker._repair()
    with store.writing_files():
        worker.step(time.time())
    job = jobs.find(track)
    assert job is not None
    assert (job.state, job.attempts) == ("waiting", 0)
    assert read_tags(track).genres == ()


def test_when_the_gpu_fails_every_track_is_given_back(store: Store, music: Path) -> None:
    tracks = [Path(shutil.copy(SURE, music / f"{number}.ogg")) for number in range(3)]
    jobs = put(store, *tracks)

    def fail(path: Path, excerpt: Excerpt) -> Waveform:
        raise DeviceError("the GPU failed")

    with pytest.raises(DeviceError):
        make_worker(store, decode=fail).step(time.time())
    assert jobs.counts()["ready"] == 3
    make_worker(store).step(time.time())
    assert jobs.counts()["done"] == 3


def test_a_store_that_fails_amid_an_album_holds_no_track_back(
    store: Store, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = Path(shutil.copy(SURE, music / "a.ogg"))
    jobs = put(store, track)
    worker = make_worker(store)
    finish, give_back = Store.finish_change, Jobs.give_back

    def fail(*_: object, **__: object) -> int:
        raise StoreError("database or disk is full")

    monkeypatch.setattr(Store, "finish_change", fail)
    with pytest.raises(StoreError):
        worker.step(time.time())
    job = jobs.find(track)
    assert job is not None
    assert (job.state, job.owner, job.deaths) == ("waiting", None, 0)
    assert len(store.pending_changes()) == 1
    monkeypatch.setattr(Store, "finish_change", finish)
    assert not worker.step(time.time())  # and what it had begun is settled, by the same process
    assert store.pending_changes() == []
    assert [entry.after for entry in store.changes()] == [("Blues",)]

    monkeypatch.setattr(Store, "begin_change", fail)
    monkeypatch.setattr(Jobs, "give_back", fail)
    other = Path(shutil.copy(SURE, music / "b.ogg"))
    put(store, other)
    with pytest.raises(StoreError):
        worker.step(time.time())
    monkeypatch.undo()
    assert Jobs.give_back is give_back
    assert worker.step(time.time())
    found = jobs.find(other)
    assert found is not None
    assert (found.state, found.owner) == ("done", None)


def test_stopping_gives_back_what_was_not_begun(store: Store, music: Path) -> None:
    tracks = [Path(shutil.copy(SURE, music / f"{number}.ogg")) for number in range(4)]
    jobs = put(store, *tracks)
    heard = []

    def decode(path: Path, excerpt: Excerpt) -> Waveform:
        heard.append(path)
        return decode_excerpt(path, excerpt)

    worker = make_worker(store, decode=decode, should_stop=lambda: bool(heard))
    worker.step(time.time())
    counts = jobs.counts()
    assert counts["ready"] >= 3
    assert counts["ready"] + counts["done"] == 4
    assert counts["running"] == counts["writing"] == 0


def test_half_of_the_time_is_rested_where_half_is_asked_for(store: Store, music: Path) -> None:
    config = CONFIG.model_copy(update={"worker": CONFIG.worker.model_copy(update={"share": 0.5})})
    jobs = put(store, *(Path(shutil.copy(SURE, music / f"{n}.ogg")) for n in range(3)))
    rests: list[float] = []
    began = time.monotonic()
    make_worker(store, config=config, sleep=rests.append).step(time.time())
    worked = time.monotonic() - began
    assert jobs.counts()["done"] == 3
    assert 0.3 * worked < sum(rests) < 1.5 * worked


def test_a_decoder_that_dies_takes_only_its_own_track_along(music: Path) -> None:
    """Kill the processes while they decode: the tracks are heard all the same."""
    tracks = [Path(shutil.copy(SURE, music / f"{number}.ogg")) for number in range(2)]
    others = set(psutil.Process().children())
    decoders = Decoders(2)
    try:
        assert len(decoders.decode(tracks[0], Excerpt(30)).samples)
        for process in set(psutil.Process().children()) - others:
            process.kill()
        assert len(decoders.decode(tracks[1], Excerpt(30)).samples)
    finally:
        decoders.close()
    assert set(psutil.Process().children()) <= others


def test_a_poisonous_file_fails_by_its_name_and_its_album_is_done(
    store: Store, music: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Path(__file__).parent / "hostile_site"  # these names make their reader fall
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(site.parent.parent)]))
    names = ("a", "circle", "crash", "greedy", "z")
    tracks = {name: Path(shutil.copy(SURE, music / f"{name}.ogg")) for name in names}
    jobs = put(store, *tracks.values())
    with Decoders(1, Limits(seconds=1.0, memory=256 << 20)) as decoders:
        worker = make_worker(store, examine=decoders.examine, decode=decoders.decode)
        assert worker.step(time.time())
        assert not worker.step(time.time())  # nothing is tried for ever
    found = {name: jobs.find(path) for name, path in tracks.items()}
    assert {name: job and job.state for name, job in found.items()} == {
        **{"a": "done", "circle": "failed", "crash": "failed", "greedy": "failed", "z": "done"}
    }
    assert "SIGSEGV" in str(found["crash"])
    assert "was not read within 1 s" in str(found["circle"])
    assert "of memory" in str(found["greedy"])


def test_decoders_outlive_the_threads_that_ask_them(music: Path) -> None:
    import threading

    decoders = Decoders(1)
    track = Path(shutil.copy(SURE, music / "a.ogg"))
    seen = []
    try:
        for _ in range(2):
            thread = threading.Thread(target=decoders.decode, args=(track, Excerpt(30)))
            thread.start()
            thread.join()
            time.sleep(0.2)
            seen.append([process.pid for process in psutil.Process().children()])
    finally:
        decoders.close()
    assert seen[0] == seen[1] != []


def test_decoders_name_the_file_that_is_no_music(music: Path) -> None:
    from reclass_plex.errors import NotAudio

    bad = music / "bad.mp3"
    bad.write_bytes(b"no music" * 100)
    decoders = Decoders(1)
    try:
        with pytest.raises(NotAudio, match=r"bad\.mp3"):
            decoders.decode(bad, Excerpt(30))
    finally:
        decoders.close()


def test_verdicts_through_decoders_are_the_same(music: Path) -> None:
    ensemble = Ensemble.from_config(CONFIG)
    decoders = Decoders(1)
    try:
        there, _ = pipeline.classify_file(SURE, ensemble, decoders.decode)
    finally:
        decoders.close()
    here, _ = pipeline.classify_file(SURE, ensemble)
    assert there.genres == here.genres
