"""The commands `review` and `preview`, beside a real daemon that is paused, or killed."""

from __future__ import annotations

import time
from pathlib import Path

from daemon_tools import Site, command, running, say, wait_until
from decision_tools import CONFIG, ENSEMBLE, know, make_file
from typer.testing import CliRunner

from reclass_plex import decisions
from reclass_plex.browse_history import list_runs
from reclass_plex.cli import app
from reclass_plex.decided import Decisions
from reclass_plex.errors import ConfigError
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store
from reclass_plex.tags import read_tags


def make_site(tmp_path: Path) -> tuple[Site, list[Path]]:
    """A site that knows three unsure tracks, the least sure last; the first is in no queue."""
    site = Site(tmp_path, {"watch": {"settle_seconds": 30}})
    site.configure()
    paths = [make_file(site.music / f"{n}.ogg", n) for n in range(3)]
    with Store.open(site.store) as store:
        for number, path in enumerate(paths):
            know(store, path, (("Rock", 0.4 - number / 10), ("Jazz", 0.1)))
        jobs = Jobs(store)
        jobs.enqueue(paths[1:], "test", time.time())
        held = jobs.claim(9, time.time(), owner="x", lease=60)
        jobs.finish([job.id for job in held], "x", "review", time.time(), message="below 0.50")
    return site, paths


def test_review_lists_decides_and_is_undone_beside_a_daemon(tmp_path: Path) -> None:
    site, paths = make_site(tmp_path)
    before = [path.read_bytes() for path in paths]
    listed = command(site, "review")
    # The first is as `tag` leaves it, without a daemon: it waits as well, as `preview` counts.
    assert [one["path"] for one in listed] == [str(paths[2]), str(paths[1]), str(paths[0])]
    assert [one["why"] for one in listed] == ["below 0.50"] * 2 + ["below 0.50 (Rock 0.40)"]
    assert command(site, "preview")[0]["now"]["review"] == len(listed)
    assert listed[0]["heard"][0]["genre"] == "Rock"
    with running(site) as daemon:
        client = daemon.wait_ready()
        client.pause()
        done = command(site, "review", "--correct", "jazz", str(paths[1]))
        assert [(one["state"], one["genres"]) for one in done] == [("written", ["Jazz"])]
        assert "1 decided" in say(site, "review", "--accept", str(paths[2]))
        assert [read_tags(path).genres for path in paths] == [(), ("Jazz",), ("Rock",)]
        assert client.status().in_hand == ()

        # Decided, and killed before it was written: the next daemon writes it, paused or not.
        daemon.kill()
        daemon.end()
        with Store.open(site.store) as store:
            [track] = store.known_files([paths[0]], "")
            decisions.correct(store, [track.id], ["Blues"], CONFIG, ENSEMBLE)
        with running(site):
            wait_until(lambda: read_tags(paths[0]).genres == ("Blues",), "it is written")
    with Store.open(site.store) as store:
        runs = [run.id for run in list_runs(store).rows if run.command == "review"]
    assert len(runs) == 3
    say(site, "undo", "--since", "1d", "--yes")
    assert [path.read_bytes() for path in paths] == before
    with Store.open(site.store) as store:
        assert Decisions(store).all_standing() == {}
        # They wait again; the other has no job.
        assert Jobs(store).counts()["review"] == 2


def test_wrong_use_is_explained(tmp_path: Path) -> None:
    site, paths = make_site(tmp_path)
    before = [path.read_bytes() for path in paths]
    for wrong in (
        ("review", "--accept"),
        ("review", "--accept", "--forget", str(paths[0])),
        ("review", str(paths[0])),
        ("review", "--correct", "", str(paths[0])),
        ("review", "--accept", str(tmp_path / "elsewhere")),
        ("preview", "--name", "Rock"),
        ("preview", "--mode", "burn"),
    ):
        result = CliRunner().invoke(app, [*wrong, "--config", str(site.config)])
        assert isinstance(result.exception, ConfigError), wrong
    assert [path.read_bytes() for path in paths] == before


def test_preview_says_what_would_be_written(tmp_path: Path) -> None:
    site, paths = make_site(tmp_path)
    [found] = command(site, "preview", "--min-confidence", "0.35")
    assert found["then"] == {"written": 1, "changed": 0, "moods": 0, "review": 2, "kept": 0}
    assert found["now"]["review"] == 3
    [one] = found["sample"]
    assert (one["path"], one["before"], one["after"]) == (str(paths[0]), [], ["Rock"])
    shown = say(site, "preview", "--min-confidence", "0.35", "--name", "Rock=Rock music")
    assert "Rock music 1" in shown
    assert "1 files differ" in shown
    assert read_tags(paths[0]).genres == ()
