"""Nothing is lost by kill -9: at any instant of tagging and undoing, over and over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_tools import cut_track, set_tags

from reclass_plex.audio import audio_digest
from reclass_plex.files import is_leftover
from reclass_plex.store import Store

DEMO = Path(__file__).parent.parent / "demo"
KILLS = 200
SEED = 20261122
CUT_SECONDS = 4.0  # enough to be heard; every run reads, copies and hashes all of it


class Child:
    """A process that forks a run for each command."""

    def __init__(self, store: Path, music: Path) -> None:
        script = Path(__file__).with_name("tagging_child.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(store), str(music)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, command: str) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._read()

    def wait(self) -> int:
        return self._read()

    def run(self, command: str) -> None:
        self.start(command)
        assert self.wait() == 0, f"{command} failed"

    def warm(self) -> None:
        assert self.start("warm") == 0

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def _read(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Pieces of the demo music in each of its formats."""
    folder = tmp_path / "music"
    folder.mkdir()
    for source in sorted(DEMO.iterdir()):
        if source.suffix in {".mp3", ".m4a", ".ogg", ".opus", ".wma", ".wv", ".flac"}:
            piece = cut_track(source, folder / source.name, 0, CUT_SECONDS)
            if source.suffix not in {".wma", ".wv"}:  # whose names of tags are others
                set_tags(piece, title=source.stem, album="Kept")
    return folder


@pytest.fixture
def child(tmp_path: Path, music: Path) -> Iterator[Child]:
    started = Child(tmp_path / "store.sqlite", music)
    yield started
    started.close()


def hashes(music: Path) -> dict[str, str]:
    """Hash every file, leftovers of a kill excepted."""
    return {
        path.name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in music.iterdir()
        if not is_leftover(path.name)
    }


def test_every_file_is_wholly_old_or_wholly_new_whenever_the_process_is_killed(
    tmp_path: Path, music: Path, child: Child
) -> None:
    old = hashes(music)
    digests = {path.name: audio_digest(path) for path in music.iterdir()}
    child.run("tag")
    new = hashes(music)
    changed = {name for name in old if old[name] != new[name]}
    assert len(changed) >= 5
    child.run("undo")
    assert hashes(music) == old
    child.warm()
    assert hashes(music) == old

    # How long a run takes, so that kills fall everywhere in it.
    seconds = {}
    for command in ("tag", "undo"):
        started = time.perf_counter()
        child.run(command)
        seconds[command] = time.perf_counter() - started

    generator = random.Random(SEED)
    killed = partial = 0
    while killed < KILLS:
        command = "tag" if hashes(music) == old else "undo"
        for _ in range(20):  # go on with a command until it comes to its end
            pid = child.start(command)
            time.sleep(generator.uniform(0, seconds[command]))
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
            status = child.wait()
            killed += status == signal.SIGKILL
            now = hashes(music)
            for name, value in now.items():
                assert value in (old[name], new[name]), f"{name} is neither old nor new"
            assert now.keys() == old.keys()
            partial += now not in (old, new)
            _check_journal(tmp_path, music, now, new, changed)
            if status == 0:
                break

    assert partial > KILLS // 20, "the kills fell beside the writes"
    child.run("tag")
    assert hashes(music) == new
    assert not [path for path in music.iterdir() if is_leftover(path.name)]
    assert {path.name: audio_digest(path) for path in music.iterdir()} == digests
    child.run("undo")
    assert hashes(music) == old
    assert not [path for path in music.iterdir() if is_leftover(path.name)]


def _check_journal(
    tmp_path: Path, music: Path, now: dict[str, str], new: dict[str, str], changed: set[str]
) -> None:
    """Every file that is new has a journal row that can take it back."""
    with Store.open(tmp_path / "store.sqlite") as store:
        rows = [*store.changes(), *store.pending_changes()]
        known = {(row.path.name, row.after_hash) for row in rows}
        assert store.check_integrity() == []
    for name in changed:
        if now[name] == new[name]:
            assert (name, new[name]) in known, f"{name} changed without a journal row"
