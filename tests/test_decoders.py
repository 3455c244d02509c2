from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from reclass_plex.config import TagOptions
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.errors import FileError, Harmful, RetryLater, Unreadable
from reclass_plex.records import Excerpt

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "demo"
SURE = DEMO / "Legoluft - Space-Atmo.opus"
SITE = Path(__file__).parent / "hostile_site"  # names that make their reader fall
EXCERPT = Excerpt(30)


@pytest.fixture(autouse=True)
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{SITE}{os.pathsep}{ROOT}")


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    others = psutil.Process().children()  # of tests before this one: multiprocessing's tracker, ...
    with Decoders(2, Limits(seconds=2.0, memory=512 << 20)) as some:
        yield some
    assert set(psutil.Process().children()) <= set(others)


def track(folder: Path, name: str) -> Path:
    return Path(shutil.copy(SURE, folder / f"{name}.opus"))


def test_what_a_file_says_and_its_sound_come_back(tmp_path: Path, decoders: Decoders) -> None:
    from reclass_plex import audio, tags

    path = track(tmp_path, "good")
    found, digest = decoders.examine(path, TagOptions())
    assert found == tags.read_tags(path)
    assert digest == audio.audio_digest(path)
    here, there = audio.decode_excerpt(path, EXCERPT), decoders.decode(path, EXCERPT)
    assert (here.samples == there.samples).all()
    assert (here.rate, here.start, here.track_seconds) == (
        there.rate,
        there.start,
        there.track_seconds,
    )


def test_a_crash_costs_its_own_file_alone(tmp_path: Path, decoders: Decoders) -> None:
    good = [track(tmp_path, f"good{number}") for number in range(6)]
    bad = track(tmp_path, "crash")
    said: list[FileError] = []

    def fall() -> None:
        with pytest.raises(Harmful, match="SIGSEGV") as caught:
            decoders.decode(bad, EXCERPT)
        said.append(caught.value)

    thread = threading.Thread(target=fall)
    thread.start()
    for path in good:
        assert len(decoders.decode(path, EXCERPT).samples)
    thread.join()
    assert [error.path for error in said] == [bad]


def test_a_file_that_sends_its_reader_in_circles_is_named(
    tmp_path: Path, decoders: Decoders
) -> None:
    began = time.monotonic()
    with pytest.raises(Harmful, match=r"circle\.opus: was not read within 2 s"):
        decoders.examine(track(tmp_path, "circle"), TagOptions())
    assert time.monotonic() - began < 20
    assert decoders.examine(track(tmp_path, "good"), TagOptions())


def test_a_disk_that_stands_still_is_tried_again_later(tmp_path: Path, decoders: Decoders) -> None:
    with pytest.raises(RetryLater, match="is its disk slow"):
        decoders.decode(track(tmp_path, "stall"), EXCERPT)


def test_no_file_is_to_blame_for_a_start_that_takes_long(
    tmp_path: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = track(tmp_path, "good")
    monkeypatch.setattr("reclass_plex.decoders._START_SECONDS", 0.2)  # of computing, nearly all
    monkeypatch.setenv("HOSTILE_START", "3")
    with pytest.raises(RetryLater):
        decoders.digest(path)
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", f"{SITE}{os.pathsep}{ROOT}")
    assert decoders.digest(path)


def test_a_process_that_is_slow_to_end_costs_one_file_alone(
    tmp_path: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = subprocess.Popen.wait
    late: list[subprocess.Popen[bytes]] = []

    def be_late(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not late:
            late.append(self)
            raise subprocess.TimeoutExpired("it", timeout or 0)
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", be_late)
    with pytest.raises(Harmful, match="SIGSEGV"):  # by the second process
        decoders.decode(track(tmp_path, "crash"), EXCERPT)
    assert late[0].returncode is not None


def test_memory_is_bounded(tmp_path: Path, decoders: Decoders) -> None:
    assert len(decoders.decode(track(tmp_path, "good"), EXCERPT).samples)
    with pytest.raises(Harmful, match=r"needs over 0\.5 GiB of memory"):
        decoders.decode(track(tmp_path, "greedy"), EXCERPT)
    assert len(decoders.decode(track(tmp_path, "good2"), EXCERPT).samples)


def test_a_fault_of_ours_is_named_and_ends_nothing(tmp_path: Path, decoders: Decoders) -> None:
    with pytest.raises(Unreadable, match=r"ZeroDivisionError.*please report"):
        decoders.decode(track(tmp_path, "fault"), EXCERPT)
    assert len(decoders.decode(track(tmp_path, "good"), EXCERPT).samples)


def test_tag_over_a_folder_goes_on_behind_poisonous_files(tmp_path: Path) -> None:
    """The command, as a user runs it: each bad file is named, all others get their genre."""
    music = tmp_path / "music"
    music.mkdir()
    names = ["a", "circle", "crash", "fault", "greedy", "z"]
    for number, name in enumerate(names):
        album = music / str(number // 3)
        album.mkdir(exist_ok=True)
        shutil.copy(SURE, album / f"{name}.opus")
    config = tmp_path / "config.yaml"
    config.write_text("worker: {file_seconds: 2, file_memory_gib: 0.5}\n")
    command = [sys.executable, "-m", "reclass_plex", "tag", str(music), "--json", "--yes"]
    done = subprocess.run(
        [*command, "--mode", "replace", "--min-confidence", "0", "--config", str(config)],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = {Path(one["path"]).stem: one for one in map(json.loads, done.stdout.splitlines())}
    assert set(said) == set(names)
    kinds = {name: (one.get("error") or {}).get("kind") for name, one in said.items()}
    assert kinds == {
        **{"a": None, "z": None, "fault": "unreadable"},
        **{"circle": "harmful", "crash": "harmful", "greedy": "harmful"},
    }


def test_they_die_with_their_parent(tmp_path: Path) -> None:
    path = track(tmp_path, "stall")
    code = (
        "import sys; from pathlib import Path; from reclass_plex.decoders import Decoders;"
        "from reclass_plex.records import Excerpt;"
        f"Decoders(1).decode(Path({str(path)!r}), Excerpt(30))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    children: list[psutil.Process] = []
    until = time.monotonic() + 20
    while not children and time.monotonic() < until:
        children = psutil.Process(parent.pid).children()
        time.sleep(0.05)
    time.sleep(1)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert children
    assert not alive
