"""Nothing is lost by kill -9: at any instant of tagging and undoing, over and over."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from faults.commands import Commands
from faults.music import Maker, change_tag

from reclass_plex.audio import audio_digest
from reclass_plex.files import is_leftover
from reclass_plex.store import Store
from reclass_plex.store_guard import find_faults

KILLS = 200
SEED = 20261122


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Pieces of the demo music in formats whose tags differ most."""
    folder, maker = tmp_path / "music", Maker(tmp_path / "made", SEED)
    folder.mkdir()
    for format_name in (".mp3", "flac", ".m4a", ".ogg", ".opus", ".wma", ".wv", "wav", "dsf"):
        made = maker.make("Kept", format_name)
        change_tag(made, genre="")
        made.rename(folder / made.name)
    return folder


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    # Confidence does not matter here.
    config = {"policy": {"min_confidence": 0}, "store": {"path": str(tmp_path / "store.sqlite")}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    started = Commands(path)
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
    tmp_path: Path, music: Path, commands: Commands
) -> None:
    arguments = {  # neither does what the last trial took back
        "tag": ("tag", str(music), "--yes", "--overwrite-user-genres"),
        "undo": ("undo", "--path", str(music), "--yes"),
    }

    def run(command: str) -> None:
        assert commands.run(*arguments[command]) == 0, commands.log.read_text()

    old = hashes(music)
    digests = {path.name: audio_digest(path) for path in music.iterdir()}
    run("tag")
    new = hashes(music)
    changed = {name for name in old if old[name] != new[name]}
    assert len(changed) >= 5
    run("undo")
    assert hashes(music) == old
    run("tag")  # now that all was heard it takes as long as those that are killed
    run("undo")
    assert hashes(music) == old

    generator = random.Random(SEED)
    killed = partial = 0
    while killed < KILLS:
        command = "tag" if hashes(music) == old else "undo"
        longest = commands.seconds[command]
        for _ in range(20):  # go on with a command until it comes to its end
            kill_after = generator.uniform(0, longest)
            status = commands.run(*arguments[command], kill_after=kill_after)
            killed += status == -signal.SIGKILL
            now = hashes(music)
            for name, value in now.items():
                assert value in (old[name], new[name]), f"{name} is neither old nor new"
            assert now.keys() == old.keys()
            partial += now not in (old, new)
            _check_journal(tmp_path, music, now, new, changed)
            if status == 0:
                break

    assert partial > KILLS // 20, "the kills fell beside the writes"
    run("tag")
    assert hashes(music) == new
    assert not [path for path in music.iterdir() if is_leftover(path.name)]
    assert {path.name: audio_digest(path) for path in music.iterdir()} == digests
    run("undo")
    assert hashes(music) == old
    assert not [path for path in music.iterdir() if is_leftover(path.name)]


def _check_journal(
    tmp_path: Path, music: Path, now: dict[str, str], new: dict[str, str], changed: set[str]
) -> None:
    """Every file that is new has a journal row that can take it back."""
    with Store.open(tmp_path / "store.sqlite") as store:
        rows = [*store.changes(), *store.pending_changes()]
        known = {(row.path.name, row.after_hash) for row in rows}
        assert find_faults(store.path) == []
    for name in changed:
        if now[name] == new[name]:
            assert (name, new[name]) in known, f"{name} changed without a journal row"
