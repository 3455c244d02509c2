"""The command: what is like a track that is known, or was never heard; playlists in both forms."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from audio_files import make_audio
from plex_server import PlexStandIn

from reclass_plex.cli import app
from reclass_plex.errors import ConfigError, NotAudio, NotHeard
from reclass_plex.store import Store

DEMO = Path(__file__).parent.parent / "demo"
HEARD = (
    "HSR - City.ogg",
    "HSR - Rock.mp3",
    "Legoluft - Space-Atmo.opus",
    "Muldjord - Mutilated Mime.mp3",
)
UNHEARD = "Speedsound - Sky Vibe.m4a"


@pytest.fixture(scope="module")
def server() -> Iterator[PlexStandIn]:
    with PlexStandIn() as running:
        yield running
        assert running.errors == []


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory, server: PlexStandIn) -> Iterator[Path]:
    """Four tracks that were heard and that Plex has, one that was not heard."""
    home = tmp_path_factory.mktemp("similar")
    folder = home / "music" / "Various" / "Demo"
    folder.mkdir(parents=True)
    for name in HEARD:
        shutil.copy(DEMO / name, folder)
    server.scan(server.add_library(location="/plex", root=home / "music"))
    shutil.copy(DEMO / UNHEARD, home)
    (home / "config.yaml").write_text(
        f"store: {{path: {home / 'store.sqlite'}}}\n"
        f"plex: {{url: '{server.url}', path_map: [{{plex: /plex, local: '{home / 'music'}'}}]}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECLASS_PLEX_CONFIG", str(home / "config.yaml"))
        patch.setenv("RECLASS_PLEX_TOKEN", server.token)
        done = typer.testing.CliRunner().invoke(app, ["tag", str(folder), "--dry-run"])
        assert done.exit_code == 0, done.output
        yield folder


def run(*arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    runner = typer.testing.CliRunner()
    done = runner.invoke(app, ["similar", *map(str, arguments), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def names(found: list[dict[str, Any]]) -> list[str]:
    return [Path(one["path"]).name for one in found]


def test_a_track_that_was_heard(music: Path) -> None:
    status, found, _ = run(music / HEARD[0])
    assert status == 0
    assert sorted(names(found)) == sorted(HEARD[1:])
    near = [one["similarity"] for one in found]
    assert near == sorted(near, reverse=True)
    assert all(-1 <= one < 0.999 for one in near)
    assert {"path", "similarity", "genres", "heard", "album", "digest"} == set(found[0])
    assert names(run(music / HEARD[0], "--count", "1")[1]) == names(found)[:1]
    assert run(music / HEARD[0], "--genre", "Polka")[1] == []
    assert names(run(music / HEARD[0], "--per-artist", "1")[1]) == names(found)[:1]


def test_a_track_that_was_not_heard_is_heard_and_forgotten(music: Path) -> None:
    home = music.parents[2]
    status, found, _ = run(home / UNHEARD)
    assert (status, sorted(names(found))) == (0, sorted(HEARD))
    with Store.open(home / "store.sqlite") as store:
        assert store.find_track(home / UNHEARD, "m") is None
    again = shutil.copy(music / HEARD[1], home / "moved.mp3")  # known by its audio
    assert names(run(again)[1]) == names(run(music / HEARD[1])[1])


def test_what_cannot_be_asked(music: Path, tmp_path: Path) -> None:
    with pytest.raises(NotHeard, match="no such file"):
        run(tmp_path / "no such file.mp3")
    (tmp_path / "junk.mp3").write_bytes(b"junk" * 1000)
    with pytest.raises(NotAudio):
        run(tmp_path / "junk.mp3")
    with pytest.raises(NotHeard, match="silence"):
        run(make_audio(tmp_path, "ape", seconds=2))
    for arguments in (("--m3u", "x.txt"), ("--plex-playlist", " ")):
        with pytest.raises(ConfigError):
            run(music / HEARD[0], *arguments)


def test_a_playlist_as_a_file(music: Path, tmp_path: Path) -> None:
    target = tmp_path / "like.m3u8"
    status, found, errors = run(music / HEARD[0], "--m3u", target)
    assert status == 0
    assert "4 tracks in" in errors
    shown = [line for line in target.read_text().splitlines() if not line.startswith("#")]
    paths = [(tmp_path / line).resolve() for line in shown]
    assert paths == [music / HEARD[0], *(Path(one["path"]) for one in found)]
    run(music / HEARD[0], "--m3u", target, "--absolute")  # a playlist may be replaced
    assert os.fspath(music / HEARD[0]) in target.read_text().splitlines()
    target.write_text("my thesis")
    with pytest.raises(ConfigError, match="--yes"):
        run(music / HEARD[0], "--m3u", target)
    assert target.read_text() == "my thesis"
    assert run(music / HEARD[0], "--m3u", target, "--yes")[0] == 0
    assert target.read_text().startswith("#EXTM3U\n")


def test_a_playlist_in_plex(music: Path, server: PlexStandIn) -> None:
    status, found, errors = run(music / HEARD[0], "--plex-playlist", "Like City")
    assert status == 0
    assert "4 tracks in Plex's playlist Like City" in errors
    (playlist,) = server.playlists.values()
    expected = [f"/plex/Various/Demo/{name}" for name in (HEARD[0], *names(found))]
    assert [item.files[0] for _, item in playlist.entries] == expected
    with pytest.raises(ConfigError, match="--yes"):  # it is there now, and perhaps somebody's own
        run(music / HEARD[1], "--plex-playlist", "Like City")
    outside = music.parents[2] / UNHEARD
    status, found, errors = run(outside, "--plex-playlist", "Like City", "--yes", "-n", "2")
    assert status == 1
    assert f"{UNHEARD}: Plex does not have it" in errors.replace("\n", " ")
    expected = [f"/plex/Various/Demo/{name}" for name in names(found)]
    assert [item.files[0] for _, item in playlist.entries] == expected


def test_duplicates_are_listed(music: Path) -> None:
    status, found, _ = run("--duplicates")
    assert (status, found) == (0, [])
    copy = music / "again.mp3"
    shutil.copy(music / HEARD[1], copy)
    try:
        runner = typer.testing.CliRunner()
        assert runner.invoke(app, ["tag", str(copy), "--dry-run"]).exit_code == 0
        status, (group,), _ = run("--duplicates")
        assert [Path(one["path"]).name for one in group["files"]] == [HEARD[1], copy.name]
        assert (group["identical"], group["differing_bits"]) == (True, 0)
        said = runner.invoke(app, ["similar", "--duplicates"]).stdout
        assert "the same audio:" in said
        assert "1 recordings in several files, 1 files more than needed" in said
    finally:
        copy.unlink()
    for arguments in ((), (music / HEARD[0], "--duplicates")):
        with pytest.raises(ConfigError, match="either a track"):
            run(*arguments)
