"""The command and Plex: what `tag` leaves for the daemon, and `undo` in both places."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plex_server import PlexStandIn

from reclass_plex.cli import main
from reclass_plex.config import PolicyOptions
from reclass_plex.plex import Plex
from reclass_plex.store import Store
from reclass_plex.sync import Wanted, sync_once
from reclass_plex.tags import read_tags

DEMO = Path(__file__).parent.parent / "demo"
Answer = tuple[int, list[dict[str, Any]], str]


@pytest.fixture
def server() -> Iterator[PlexStandIn]:
    with PlexStandIn() as running:
        yield running


@pytest.fixture
def music(tmp_path: Path, server: PlexStandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tracks that the server has, and a configuration for it."""
    folder = tmp_path / "music"
    folder.mkdir()
    for name in ("HSR - City.ogg", "Muldjord - Mutilated Mime.mp3"):
        shutil.copy(DEMO / name, folder)
    server.scan(server.add_library(location=str(folder), root=folder))
    config = tmp_path / "config" / "reclass-plex" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"plex: {{url: '{server.url}'}}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RECLASS_PLEX_TOKEN", server.token)
    monkeypatch.delenv("RECLASS_PLEX_CONFIG", raising=False)
    return folder


@pytest.fixture
def store(tmp_path: Path, music: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "reclass-plex" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command, in this process: another would load torch each time."""

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["reclass-plex", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), [json.loads(line) for line in out.splitlines()], err

    return run


def tag_and_sync(run: Any, server: PlexStandIn, music: Path, store: Store) -> None:
    """Tag, and do what the daemon does with what `tag` left for it."""
    status, _, errors = run("tag", music, "--yes")
    assert (status, errors) == (0, "")
    from reclass_plex.config import PlexOptions

    with Plex(PlexOptions(url=server.url), server.token) as plex:
        sync_once(plex, store, PolicyOptions(), time.time())


def genres_in_plex(server: PlexStandIn) -> dict[int, tuple[list[str], bool]]:
    return {
        item.key: (list(item.genres), "genre" in item.locked)
        for item in server.items.values()
        if item.kind != "artist"
    }


def test_what_tag_wrote_is_left_for_the_daemon_and_undo_takes_both_back(
    run: Any, server: PlexStandIn, music: Path, store: Store
) -> None:
    before = genres_in_plex(server)
    originals = {path: path.read_bytes() for path in music.iterdir()}
    tag_and_sync(run, server, music, store)
    tagged = genres_in_plex(server)
    assert sorted(genres for genres, _ in tagged.values()) == [
        ["Blues"],
        ["Blues"],
        ["Metal"],
        ["Metal"],
    ]
    assert all(locked for _, locked in tagged.values())
    status, lines, errors = run("undo", "--yes")
    assert (status, errors) == (0, "")
    assert {path: path.read_bytes() for path in music.iterdir()} == originals
    assert genres_in_plex(server) == before
    items = [line["item"].split()[0] for line in lines if "item" in line]
    assert sorted(items) == ["album", "album", "track", "track"]
    assert server.errors == []


def test_undo_without_plex_restores_the_files_and_the_rest_later(
    run: Any, server: PlexStandIn, music: Path, store: Store
) -> None:
    before = genres_in_plex(server)
    tag_and_sync(run, server, music, store)
    server.mode = "down"
    status, lines, errors = run("undo", "--yes")
    assert status == 1
    assert [line["restored"] for line in lines] == [True, True]
    assert "Plex keeps our genres" in errors
    assert server.token not in errors
    assert [read_tags(path).genres for path in music.iterdir()] == [(), ()]
    server.mode = "ok"
    status, lines, errors = run("undo", "--yes")
    assert (status, errors) == (0, "")
    assert len(lines) == 4
    assert genres_in_plex(server) == before
    status, lines, errors = run("undo", "--yes")
    assert (status, lines) == (0, [])
    assert "nothing to undo" in errors


def test_a_dry_run_leaves_nothing_for_plex(run: Any, music: Path, store: Store) -> None:
    run("tag", music, "--dry-run")
    assert Wanted(store).counts()["waiting"] == 0


def test_undo_says_what_someone_edited_since(
    run: Any, server: PlexStandIn, music: Path, store: Store
) -> None:
    tag_and_sync(run, server, music, store)
    track = next(item for item in server.items.values() if item.kind == "track")
    track.genres = ["Mine"]
    status, lines, _ = run("undo", "--yes")
    assert status == 1
    kept = [line for line in lines if line.get("item") == f"track {track.key}"]
    assert [line["restored"] for line in kept] == [False]
    assert track.genres == ["Mine"]
