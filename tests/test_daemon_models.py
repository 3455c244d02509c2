"""The daemon's models change while it runs: real processes, tiny models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from daemon_tools import Daemon, Site, hang_up, in_line, running, wait_until
from model_server import ModelServer
from tiny_ensemble import install_ensemble, make_head, make_stage, publish
from tiny_models import write_tiny_jmla

from reclass_plex.config import Config, load_config
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ModelError
from reclass_plex.jobs import Jobs
from reclass_plex.models import find_in_catalogue
from reclass_plex.models.fetch import fetch_model
from reclass_plex.selection import Selection
from reclass_plex.store import Store
from service.daemon import Daemon as InProcess
from service.supervisor import Supervisor

MUSIC = Path(__file__).parent.parent / "demo" / "HSR - Rock.mp3"


def decided_by(site: Site, track: Path) -> str:
    """Return which of the models of now decided about a track, "" if none did yet."""
    models = Ensemble.from_config(load_config(site.config)).fingerprint
    with Store.open(site.store) as store:
        known = store.find_track(track, models)
    return known.verdict.decided_by if known and known.verdict else ""


def wait_through(daemon: Daemon) -> None:
    wait_until(lambda: in_line(daemon.status()) == 0, "through")


def test_models_that_come_and_go_while_the_daemon_runs(tmp_path: Path) -> None:
    models = tmp_path / "models"
    older = Selection(older_model=True)
    site = Site(
        tmp_path,
        {
            "ensemble": {"taxonomy": "gtzan", "profile": "gpu"},
            "models": {"folder": os.fspath(models)},
            "worker": {"idle_minutes": 60, "device": "cpu"},
        },
    )
    site.configure()
    track = Path(shutil.copy(MUSIC, site.music / "a.mp3"))
    with running(site) as daemon:
        wait_until(lambda: decided_by(site, track), "heard")
        assert "is not trained here" in daemon.status().left_out[0]
        wait_through(daemon)
        first = daemon.worker()

        # Installed, with its weights: those who ask for it are heard by it, not by what is loaded.
        write_tiny_jmla(tmp_path / "jmla")
        with ModelServer() as server:
            publish("jmla", tmp_path / "jmla", server, models)
            fetch_model(find_in_catalogue("jmla", models), models, mirror=server.url, accepted=True)
        stage = make_stage("jmla", "jmla", "jmla", (0.1, 2.0))
        install_ensemble(models, "gpu", [make_head("jmla", "jmla", 64, None)], [stage])
        assert daemon.wait_ready().reclassify(older, dry_run=False).count == 1
        wait_until(lambda: decided_by(site, track) == "jmla", "heard anew")
        assert daemon.status().left_out == ()
        assert daemon.worker() != first
        wait_through(daemon)
        assert daemon.wait_ready().reclassify(older, dry_run=True).count == 0

        # Too large for the memory that it may have: said, left out, and no process dies of it.
        site.configure(worker={"memory_gib": 1e-5})
        hang_up(daemon)
        daemon.wait_ready().reclassify(Selection(everything=True), dry_run=False)
        wait_until(
            lambda: any("worker.memory_gib" in note for note in daemon.status().left_out),
            "the worker says it",
        )
        wait_through(daemon)
        assert daemon.wait_ready().reclassify(older, dry_run=True).count == 0
        assert "the GPU failed" not in site.log_text()
        assert daemon.status().why is None


def test_models_that_cannot_be_used_end_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what tells the user of them: the dashboard, the command, the notifications."""

    def damaged(config: Config) -> Ensemble:
        raise ModelError("musicnn/msd.safetensors: is damaged")

    monkeypatch.setattr("service.daemon.Ensemble.from_config", damaged)
    config = Config()
    daemon = InProcess(config, None)
    daemon.stop()  # so that nothing is waited for
    with Store.open(tmp_path / "store.sqlite") as store:
        daemon._supervisor = Supervisor(Jobs(store), config, store.path)
        assert daemon._models_in_use() == ("", ("musicnn/msd.safetensors: is damaged",))
        with pytest.raises(ModelError, match="is damaged"):
            daemon.reclassify(Selection(everything=True), dry_run=True)
