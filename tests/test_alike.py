"""Playlists, duplicates and live radio, through API and dashboard, with all of it real."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer.testing
from daemon_tools import DEMO, wait_until
from page_tools import Visitor, sign_in
from plex_server import PlexStandIn
from radio import make_station
from test_web import TOKEN, Daemon, ask

from reclass_plex.cli import app
from reclass_plex.config import Config, WebOptions, load_config
from reclass_plex.errors import StoreBusy
from reclass_plex.plex import Plex
from reclass_plex.remote import RadioRequest
from reclass_plex.store import Store
from reclass_plex.stream_source import DEVICES
from reclass_plex.sync import write_files
from service import alike
from service.actions import Actions
from service.events import Events
from service.web.app import create_app
from service.web.pages import build_dashboard
from service.web.playlist import as_m3u
from service.web.server import WebServer

HEARD = ("HSR - City.ogg", "Muldjord - Mutilated Mime.mp3")
XSS = "<script>alert(1)</script>"


class AlikeDaemon(Daemon):
    """A daemon without a worker, whose Plex is the stand-in."""

    def __init__(self, store: Store, config_file: Path, server: PlexStandIn) -> None:
        super().__init__(store)
        self.file = config_file
        self.token = server.token
        self.actions = Actions(
            store, self.config, self._connect, events=Events(), config_file=config_file
        )

    def config(self) -> Config:
        return load_config(self.file)

    def config_file(self) -> Path | None:
        return self.file

    def _connect(self) -> Plex:
        return Plex(self.config().plex, self.token)


class Site:
    """The daemon, its music, and a visitor."""

    def __init__(self, home: Path, server: PlexStandIn, store: Store, url: str) -> None:
        self.home, self.server, self.store, self.url = home, server, store, url
        self.visitor = Visitor(url)
        self.web: WebServer | None = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        assert self.web is not None
        status, _, answer = ask(
            self.web, method, path, body=None if body is None else json.dumps(body).encode()
        )
        return status, answer

    def id_of(self, name: str) -> int:
        from reclass_plex import browse

        found = browse.find_track_id(self.store, self.home / "music" / name)
        assert found is not None
        return found

    def ended(self, operation: dict[str, Any]) -> dict[str, Any]:
        path = f"/api/v1/operations/{operation['id']}"
        wait_until(lambda: self.ask("GET", path)[1]["finished"] is not None, "it ends", 60)
        found: dict[str, Any] = self.ask("GET", path)[1]
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("alike")
    music = home / "music"
    music.mkdir()
    for name in HEARD:
        shutil.copy(DEMO / name, music)
    config_file = home / "config.yaml"
    with PlexStandIn() as server:
        server.scan(server.add_library(location="/plex", root=music))
        config_file.write_text(
            f"store: {{path: {home / 'store.sqlite'}}}\n"
            f"plex: {{url: '{server.url}', path_map: [{{plex: /plex, local: '{music}'}}]}}\n"
        )
        arguments = ["tag", str(music), "--dry-run", "--config", str(config_file)]
        done = typer.testing.CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        with Store.open(home / "store.sqlite") as store:
            daemon = AlikeDaemon(store, config_file, server)
            options = WebOptions(port=0)
            web = create_app(daemon, store, webhook_key="k", api_token=TOKEN, options=options)
            web.include_router(build_dashboard(daemon, store, lambda: [music]))
            served = WebServer(web, options)
            served.start()
            made = Site(home, server, store, served.url)
            made.web = served
            sign_in(made.visitor, store)
            yield made
            made.visitor.session.close()
            served.stop()
            daemon.actions.close()


def test_a_playlist_is_downloaded(site: Site) -> None:
    track = site.id_of(HEARD[0])
    for path in (f"/tracks/{track}/similar.m3u8",):
        answer = site.visitor.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("audio/x-mpegurl")
        assert "attachment" in answer.headers["Content-Disposition"]
        shown = [line for line in answer.text.splitlines() if not line.startswith("#")]
        assert shown == [os.fspath(site.home / "music" / name) for name in HEARD]
    stranger = Visitor(site.url)
    assert stranger.get(f"/tracks/{track}/similar.m3u8").status_code == 303
    assert stranger.get(f"/api/v1/tracks/{track}/similar.m3u8").status_code == 401
    stranger.session.close()
    assert site.ask("GET", "/api/v1/tracks/999/similar.m3u8")[0] == 404
    assert f"/tracks/{track}/similar.m3u8" in site.visitor.get(f"/tracks/{track}/similar").text


def test_what_a_playlist_cannot_hold_is_named_in_it() -> None:
    answer = as_m3u([Path("/music/a.mp3"), Path("/music/two\nlines.mp3"), Path("/music/b.mp3")])
    text = bytes(answer.body).decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "/music/a.mp3",
        "/music/b.mp3",
    ]
    (said,) = (line for line in text.splitlines() if line.startswith("# "))
    assert "two\\nlines.mp3" in said and "line end" in said


def test_a_playlist_waits_for_who_lists_a_library(site: Site) -> None:
    """Both drop what is not in their list: at once, they would drop each other's tracks."""
    files = [site.home / "music" / HEARD[0]]
    with (
        Plex(load_config(site.home / "config.yaml").plex, site.server.token) as plex,
        site.store.writing_plex(),
        pytest.raises(StoreBusy),
    ):
        write_files(site.store, plex, "Busy", files, lambda one: None, lambda: True)


def test_a_playlist_is_written_to_plex_and_none_is_replaced_unasked(site: Site) -> None:
    track = site.id_of(HEARD[0])
    path = f"/api/v1/tracks/{track}/playlist"
    status, operation = site.ask("POST", path, {"name": "Mine", "count": 5})
    assert status == 202
    done = site.ended(operation)
    assert (done["state"], done["result"]) == ("done", {"name": "Mine", "count": 2})
    (playlist,) = site.server.playlists.values()
    names = [item.files[0] for _, item in playlist.entries]
    assert names == [f"/plex/{name}" for name in HEARD]
    refused = site.ended(site.ask("POST", path, {"name": "mine"})[1])
    assert refused["state"] == "failed"
    assert "may be replaced" in refused["message"]
    answer = site.visitor.post(f"/tracks/{track}/playlist", {"name": "Mine"})
    assert answer.status_code == 422
    assert "may be replaced" in answer.text
    form = {"name": "Mine", "replace": "true"}
    answer = site.visitor.post(f"/tracks/{track}/playlist", form)
    assert answer.headers["Location"] == f"/tracks/{track}?said=playlist"
    assert len(site.server.playlists) == 1
    assert site.ask("POST", path, {"name": " \n"})[0] == 422
    assert site.visitor.post(f"/tracks/{track}/playlist", form, token="wrong").status_code == 403


def test_duplicates_are_looked_for_once_at_a_time(site: Site) -> None:
    copy = site.home / "music" / f"{XSS.replace('/', '')}.mp3"
    shutil.copy(site.home / "music" / HEARD[1], copy)
    arguments = ["tag", str(copy), "--dry-run", "--config", str(site.home / "config.yaml")]
    assert typer.testing.CliRunner().invoke(app, arguments).exit_code == 0
    assert "Nobody has looked" in site.visitor.get("/duplicates").text
    assert site.visitor.post("/duplicates").status_code == 303
    status, operation = site.ask("POST", "/api/v1/duplicates")
    assert status == 202
    done = site.ended(operation)
    assert done["state"] == "done", done
    assert (done["result"]["total"], done["result"]["extra"]) == (1, 1)
    (group,) = done["result"]["groups"]
    assert group["identical"]
    assert {Path(one["path"]).name for one in group["files"]} == {HEARD[1], copy.name}
    page = site.visitor.get("/duplicates").text
    assert "1 recording is in several files" in page
    assert "<script>alert" not in page
    kinds = [one["kind"] for one in site.ask("GET", "/api/v1/operations")[1]["rows"]]
    assert kinds.count("duplicates") == 1


def test_looking_for_duplicates_is_stopped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    long = (sys.executable, "-c", "import time; time.sleep(600)")
    monkeypatch.setattr(alike, "_COMMAND", long)
    site.visitor.post("/duplicates")
    assert "/duplicates/stop" in site.visitor.get("/duplicates").text
    assert site.visitor.post("/duplicates/stop", token="wrong").status_code == 403
    assert "/duplicates/stop" in site.visitor.get("/duplicates/found").text
    assert site.visitor.post("/duplicates/stop").status_code == 303
    wait_until(lambda: "was stopped" in site.visitor.get("/duplicates/found").text, "it stops", 20)
    assert not any(long[2] in one.cmdline() for one in psutil.Process().children())


def test_radio_is_heard_on_the_page_and_its_title_is_only_text(site: Site) -> None:
    station = make_station([DEMO / HEARD[1]], "mp3", 8.0)
    station.speed = 4.0
    station.titles = [(0.0, XSS)]
    assert "Nothing is listened to" in site.visitor.get("/listen").text
    for address in ("/etc/passwd", "file:///etc/passwd", "ftp://a/b", ""):
        assert site.visitor.post("/listen", {"address": address}).status_code == 422
        status = site.ask("PUT", "/api/v1/radio", {"address": address})[0]
        assert status == 422
    for address in ("ftp://u:very-secret@a/", "rtmp://a/?k=very-secret", "u:very-secret://a"):
        told = site.visitor.post("/listen", {"address": address})
        refused = site.ask("PUT", "/api/v1/radio", {"address": address})
        assert (told.status_code, refused[0]) == (422, 422)
        assert "very-secret" not in told.text + repr(refused)
    assert site.visitor.post("/listen", {"address": "http://a/"}, token="x").status_code == 403
    with station.on_air() as url:
        address = url.replace("http://", "http://user:very-secret@")
        wanted = {"address": address, "window": "7.5"}
        assert site.visitor.post("/listen", {**wanted, "window": "0"}).status_code == 422
        assert site.visitor.post("/listen", wanted).status_code == 303
        (heard_by,) = (
            one.cmdline() for one in psutil.Process().children() if "listen" in one.cmdline()
        )
        assert heard_by[heard_by.index("--window") + 1] == "7.5"
        wait_until(
            lambda: site.ask("GET", "/api/v1/radio")[1]["state"] == "playing", "it is heard", 40
        )
        status, radio = site.ask("GET", "/api/v1/radio")
        assert radio["lines"][-1]["genres"][0]["name"] == "Metal"
        assert abs(radio["lines"][-1]["time"] - time.time()) < 10
        wait_until(
            lambda: "&lt;script&gt;" in site.visitor.get("/listen/live").text, "its title", 20
        )
        page = site.visitor.get("/listen").text
        assert "Metal" in page
        assert "<script>alert" not in page
        assert "very-secret" not in page
        assert "very-secret" not in repr(radio)
        assert site.visitor.post("/listen/stop").status_code == 303
        assert site.ask("GET", "/api/v1/radio")[1]["state"] == "off"
        status, radio = site.ask("PUT", "/api/v1/radio", {"address": f"{url}/x", "window": 5})
        assert (status, radio["state"]) == (200, "starting")
        assert site.ask("DELETE", "/api/v1/radio")[0] == 204


def test_the_api_takes_every_input_that_the_command_takes() -> None:
    for device in DEVICES:
        assert RadioRequest(address=f"{device}:default").window == 15.0
