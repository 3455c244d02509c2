"""The command `organize`, on real music: albums together, nothing lost, and all of it back."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_files import encode
from daemon_tools import DEMO, cut_track, set_tags

from reclass_plex.cli import main

METAL = DEMO / "Muldjord - Mutilated Mime.mp3"
CLASSICAL = DEMO / "Czech National Symphony Orchestra - Morning.flac"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh state and no configuration."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An album with its companions, a single, noise, and what is no music."""
    album = tmp_path / "inbox" / "New" / "Album?"
    (album / "CD1").mkdir(parents=True)
    (album / "Scans").mkdir()
    for number, place in enumerate((album / "CD1", album / "CD1", album)):
        track = cut_track(METAL, place / f"0{number}.mp3", number * 300, 12.0)
        set_tags(track, album="The Album")
    (album / "cover.jpg").write_bytes(b"picture")
    (album / "Scans" / "back.jpg").write_bytes(b"back")
    (album / "CD1" / "00.lrc").write_text("la la")
    (album / "program.exe").write_bytes(b"no companion")
    root = tmp_path / "inbox"
    shutil.copy(CLASSICAL, root / "morning.flac")
    (root / "morning.lrc").write_text("lyrics")
    (root / "cover.jpg").write_bytes(b"of nobody")
    noise = np.random.default_rng(1).normal(0, 0.1, (1, 441_000)).astype(np.float32)
    encode(root / "noise.wav", "wav", "pcm_s16le", noise, 44100)
    (root / "broken.mp3").write_bytes(b"no music at all" * 100)
    (root / "notes.txt").write_text("mine")
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*arguments: str | Path, status: int | None = 0) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["reclass-plex", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert status is None or int(stop.value.code or 0) == status, captured
        lines = [line for line in captured.out.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines] or [{"err": captured.err, "out": captured.out}]

    return run


def content(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_folder_is_sorted_and_everything_comes_back(run: Any, inbox: Path) -> None:
    tree = inbox / "sorted"  # in the folder itself, which is sorted around it
    before = content(inbox)
    planned = run("organize", inbox, "--into", tree, "--dry-run", "--json", status=1)
    assert content(inbox) == before
    done = run("organize", inbox, "--into", tree, "--move", "--yes", "--json", status=1)
    assert {line["target"] for line in planned} == {line["target"] for line in done}
    found = content(tree)
    metal = "Metal/New/Album?"
    assert set(found) == {
        *(f"{metal}/CD1/00.mp3", f"{metal}/CD1/01.mp3", f"{metal}/02.mp3"),
        *(f"{metal}/cover.jpg", f"{metal}/Scans/back.jpg", f"{metal}/CD1/00.lrc"),
        *("Classical/morning.flac", "Classical/morning.lrc", "Unsure/noise.wav"),
    }
    assert {name: data for name, data in before.items() if "CD1/00" in name or "morn" in name} == {
        name.split("/", 1)[1]: data
        for name, data in found.items()
        if "CD1/00" in name or "morn" in name
    }
    left = {name for name in content(inbox) if not name.startswith("sorted/")}
    assert left == {"broken.mp3", "notes.txt", "cover.jpg", "New/Album?/program.exe"}
    assert not (inbox / "New" / "Album?" / "CD1").exists()  # emptied
    (latest,) = (line for line in run("history", "--json") if line["command"] == "organize")
    assert latest["done"] == len(found)
    assert all(line["restored"] for line in run("undo", "--yes", "--json"))
    assert content(inbox) == before
    assert not tree.exists()


def test_a_second_run_goes_on_and_copies_nothing_twice(run: Any, inbox: Path) -> None:
    tree = inbox.parent / "tree"
    options = ("--into", tree, "--yes", "--json", "--portable-names", "--unsure", "leave")
    first = run("organize", inbox, *options, status=1)
    assert {line["result"] for line in first} == {"placed", "kept", "failed"}
    assert (tree / "Metal" / "New" / "Album_" / "02.mp3").is_file()
    assert not (tree / "Unsure").exists()
    (tree / "Classical" / "morning.flac").unlink()
    set_tags(tree / "Metal" / "New" / "Album_" / "02.mp3", title="tagged since")
    after = content(tree)
    again = run("organize", inbox, *options, status=1)
    placed = [Path(line["path"]).name for line in again if line["result"] == "placed"]
    assert placed == ["morning.flac"]
    assert {name: data for name, data in content(tree).items() if name in after} == after
    assert all("(2)" not in name for name in content(tree))
    kept = run("undo", "--since", "1h", "--yes", "--json", status=1)
    left = [line["path"] for line in kept if not line["restored"]]
    assert [Path(path).name for path in left] == ["02.mp3"]
    assert list(content(tree)) == ["Metal/New/Album_/02.mp3"]


def test_what_cannot_be_is_said_before_anything_happens(run: Any, inbox: Path) -> None:
    tree = inbox.parent / "tree"
    wrong = [
        (inbox, inbox, "is the folder that is to be sorted"),
        (inbox / "none", tree, "no such folder"),
        (inbox, inbox / "notes.txt", "is no folder"),
    ]
    for folder, into, said in wrong:
        (result,) = run("organize", folder, "--into", into, "--yes", status=2)
        assert said in result["err"]
    (result,) = run("organize", inbox, "--into", tree, "--move", "--copy", status=2)
    assert "only one" in result["err"]
    inside = tree / "Hip-Hop" / "mine"
    inside.mkdir(parents=True)
    (result,) = run("organize", inside, "--into", tree, "--yes", status=2)
    assert "sorted already" in result["err"]
    (result,) = run("organize", inbox, "--into", tree, status=2)  # nobody to ask
    assert "--yes" in result["err"]
    shm = Path("/dev/shm")
    if shm.is_dir() and shm.stat().st_dev != inbox.stat().st_dev:
        (result,) = run("organize", inbox, "--into", shm / "none", "--hardlink", "--yes", status=2)
        assert "--copy" in result["err"]
        assert not (shm / "none").exists()


def test_a_link_is_not_moved_but_copied(run: Any, inbox: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(CLASSICAL, outside / "real.flac")
    for path in sorted(inbox.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (inbox / "link.flac").symlink_to(outside / "real.flac")
    (inbox / "folder").symlink_to(outside)
    tree = tmp_path / "tree"
    lines = run("organize", inbox, "--into", tree, "--move", "--yes", "--json", status=1)
    assert all("link" in line["reason"] for line in lines)
    assert os.listdir(outside) == ["real.flac"]
    assert not tree.exists()
    run("organize", inbox, "--into", tree, "--yes", "--json")
    assert not (tree / "Classical" / "link.flac").is_symlink()
    assert (tree / "Classical" / "link.flac").read_bytes() == CLASSICAL.read_bytes()


def test_folders_stay_together_and_tags_are_trusted_if_one_asks(run: Any, inbox: Path) -> None:
    tree = inbox.parent / "tree"
    for track in ("CD1/00.mp3", "CD1/01.mp3", "02.mp3"):
        set_tags(inbox / "New" / "Album?" / track, genre="Schlager")
    lines = run(
        "organize",
        inbox,
        "--into",
        tree,
        "--trust-tags",
        "--by-folder",
        "--yes",
        "--json",
        status=1,
    )
    genres = {Path(line["path"]).name: line["genre"] for line in lines}
    assert genres["00.mp3"] == genres["02.mp3"] == genres["back.jpg"] == "Schlager"
    assert genres["noise.wav"] == genres["morning.flac"] == "Classical"
    assert (tree / "Classical" / "noise.wav").is_file()
