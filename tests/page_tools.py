"""What the tests of the dashboard share: it, over real HTTP, and a visitor who is signed in.

`PageDaemon` is the daemon's part that pages see, with a real store, queue and real `Actions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import test_web

from reclass_plex.config import Config, WatchOptions, WebOptions
from reclass_plex.plex import Plex
from reclass_plex.store import Store
from reclass_plex.web_keys import WebKeys
from service.actions import Actions
from service.events import Events
from service.web.app import create_app
from service.web.pages import build_dashboard
from service.web.server import WebServer


class PageDaemon(test_web.Daemon):
    """A daemon without a worker and without Plex."""

    def __init__(self, store: Store, music: Path) -> None:
        super().__init__(store)
        self.music = music
        self.actions = Actions(store, self.config, self._no_plex, events=Events())

    def config(self) -> Config:
        return Config(watch=WatchOptions(folders=(self.music,)))

    def _no_plex(self) -> Plex:
        raise AssertionError("there is no Plex here")


@dataclass
class Visitor:
    """A browser without scripts: cookies, forms with their token, no redirects unless asked."""

    url: str
    session: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str, **headers: str) -> requests.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.get(
            self.url + path,
            headers={"Accept": "text/html", **given},
            timeout=60,
            allow_redirects=False,
        )

    def token(self, path: str = "/") -> str:
        found = re.search(r'name="csrf_token" value="([^"]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def post(
        self,
        path: str,
        data: dict[str, Any] | None = None,
        *,
        token: str | None = None,
        **headers: str,
    ) -> requests.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        form = {"csrf_token": self.token() if token is None else token, **(data or {})}
        return self.session.post(
            self.url + path, form, headers=given, timeout=60, allow_redirects=False
        )


@contextmanager
def dashboard(store: Store, music: Path) -> Iterator[tuple[PageDaemon, Visitor]]:
    """Serve the dashboard of a store; yield the daemon and a visitor who is signed in."""
    daemon = PageDaemon(store, music)
    options = WebOptions(port=0)
    app = create_app(daemon, store, webhook_key="a-key", api_token="a-token", options=options)
    app.include_router(build_dashboard(daemon, store, lambda: daemon.config().watch.folders))
    server = WebServer(app, options)
    server.start()
    try:
        with requests.Session() as session:
            visitor = Visitor(server.url, session)
            sign_in(visitor, store)
            yield daemon, visitor
    finally:
        server.stop()
        daemon.actions.close()


def sign_in(visitor: Visitor, store: Store) -> None:
    """Begin a session as `reclass-plex dashboard` does."""
    import time

    key = WebKeys(store).make_link(time.time())
    assert visitor.get(f"/login/{key}").status_code == 303
