"""The real daemon and a damaged store: it ends with advice, writes no music, and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from audio_files import make_audio
from daemon_tools import PATIENCE, Daemon, Site, running, wait_until
from many_tracks import fill_store

from reclass_plex.backups import list_backups, make_backup
from reclass_plex.errors import StoreDamaged
from reclass_plex.store import Store

PAGE = 4096


@pytest.fixture
def told() -> Iterator[tuple[str, list[str]]]:
    """Yield an address for notifications, and the bodies that came there."""
    bodies: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"json://127.0.0.1:{server.server_port}/", bodies
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site whose store has a backup, and a track that is yet to be heard."""
    site = Site(tmp_path)
    site.configure()
    with Store.open(site.store) as store:
        fill_store(store, 3000)
    make_backup(site.store)
    make_audio(site.music, "mp3", seconds=1)
    return site


def spoil(path: Path, *, header: bool) -> None:
    with path.open("r+b") as file:
        if header:
            file.write(b"\0" * 100)
            return
        for start in range(PAGE, path.stat().st_size, PAGE):
            file.seek(start)
            file.write(b"\xa5" * PAGE)


def restore(site: Site) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reclass_plex", "restore", "--yes"]
    command += ["--config", str(site.config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_damaged_store_is_refused_told_and_restored(
    site: Site, told: tuple[str, list[str]]
) -> None:
    address, bodies = told
    song = site.music / "mp3.mp3"
    before = song.read_bytes()
    spoil(site.store, header=False)
    daemon = Daemon(site, {"RECLASS_PLEX_NOTIFY_URLS": address})
    try:
        assert daemon.process.wait(PATIENCE) == os.EX_DATAERR
    finally:
        daemon.end()
    advice = f"{site.store}: the store is damaged"
    assert advice in site.log_text()
    assert "give: reclass-plex restore" in site.log_text()
    assert "Traceback" not in site.log_text()
    assert [advice in json.loads(body)["message"] for body in bodies] == [True]
    assert song.read_bytes() == before
    done = restore(site)
    assert done.returncode == 0, done.stderr
    assert not site.store.with_name("store.sqlite.damaged").exists()
    with running(site) as daemon:
        status = daemon.status()
        assert status.backup is not None
        refused = restore(site)
        assert refused.returncode == 1
        assert "a reclass-plexd runs already with the store" in refused.stderr
        assert daemon.terminate() < 15


def test_damage_under_a_running_daemon_ends_it(site: Site) -> None:
    with running(site) as daemon:
        daemon.wait_ready().pause()
        spoil(site.store, header=False)
        # Idle, it may have all that it asks for in its caches: whoever meets the damage tells all.
        with pytest.raises(StoreDamaged), Store.open(site.store) as store:
            list(store.iter_known())
        assert daemon.process.wait(PATIENCE) == os.EX_DATAERR
        wait_until(lambda: not daemon.survivors(), "all its processes ended")
    assert "the store is damaged" in site.log_text()
    assert site.store.with_name("store.sqlite.damaged").exists()
    (good,) = list_backups(site.store)
    assert restore(site).returncode == 0
    with Store.open(site.store) as store:
        assert store.count_tracks() >= 3000
        assert good.path.exists()
