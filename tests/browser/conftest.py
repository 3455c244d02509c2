"""A real daemon with a Plex stand-in, and a real Chromium that must have nothing to complain of."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from daemon_tools import DEMO, TOKEN, Daemon, Site, cut_track, running, wait_until
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from plex_server import Item, Library, PlexStandIn

from reclass_plex.password import set_password
from reclass_plex.store import Store
from reclass_plex.web_keys import WebKeys

PASSWORD = "a-password-of-the-tests"
SEEN_AS = "/data/music"
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"


@dataclass
class Home:
    """A daemon, its music, its Plex."""

    site: Site
    daemon: Daemon
    plex: PlexStandIn
    library: Library
    url: str
    cuts: int = 0

    def drop(self, name: str, source: str = "HSR - Rock.mp3") -> Path:
        """Put a new piece of music, which nobody has heard, into the watched folder."""
        self.cuts += 1
        made = cut_track(DEMO / source, self.site.root / name, 40 * self.cuts, 8.0)
        path = self.site.music / "Artist" / "Album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, path)
        self.plex.scan(self.library)
        return path

    def in_plex(self, path: Path) -> list[str]:
        """Return the genres that the server shows of a file."""
        file = f"{SEEN_AS}/{path.relative_to(self.site.music)}"
        found: list[Item] = [one for one in self.library.items("track") if file in one.files]
        return found[0].tags("genre") if found else []

    def track_id(self, path: Path) -> int | None:
        """Return the number by which pages name a file, once it is known and settled."""
        from reclass_plex.browse import find_track, find_track_id

        with Store.open(self.site.store) as store:
            found = find_track_id(store, path)
            track = find_track(store, found) if found is not None else None
            settled = track is not None and track.row.state in {"review", "done"}
            return found if settled else None

    def settled(self, path: Path) -> int:
        """Wait until a file was heard; return its number."""
        found: list[int] = []

        def look() -> bool:
            if (number := self.track_id(path)) is not None:
                found.append(number)
            return bool(found)

        wait_until(look, f"{path.name} was heard", pause=0.2)
        return found[0]


@dataclass
class Visit:
    """A page of a browser that is signed in, and what it complained of."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def faults(self) -> list[dict[str, Any]]:
        """Return what axe-core finds that is serious or critical."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        return [{"id": one["id"], "at": [n["html"] for n in one["nodes"]][:3]} for one in grave]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    site = Site(tmp_path_factory.mktemp("home"))
    with PlexStandIn(token=TOKEN) as plex:
        site.music.mkdir(parents=True)
        library = plex.add_library(location=SEEN_AS, root=site.music)
        site.configure(
            # Nothing is sure enough, so that everything waits for a person's word.
            policy={"min_confidence": 1.0, "album_consensus": False},
            plex={
                "url": plex.url,
                "path_map": [{"plex": SEEN_AS, "local": str(site.music)}],
            },
        )
        site.store.parent.mkdir(parents=True)
        set_password(site.store, PASSWORD)
        with running(site) as daemon:
            yield Home(site, daemon, plex, library, daemon.wait_ready().url)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def stranger(browser: Browser, home: Home) -> Iterator[Visit]:
    """A browser that was never here."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    yield from _visit(context, home)


@pytest.fixture
def visit(browser: Browser, home: Home) -> Iterator[Visit]:
    """A browser that is signed in."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    sign_in(context, home)
    yield from _visit(context, home)


@pytest.fixture
def phone(browser: Browser, home: Home) -> Iterator[Visit]:
    """A phone in the dark, signed in."""
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        color_scheme="dark",
        reduced_motion="reduce",
    )
    sign_in(context, home)
    yield from _visit(context, home)


def sign_in(context: BrowserContext, home: Home) -> None:
    """Begin a session by a link, as `reclass-plex dashboard` does."""
    with Store.open(home.site.store) as store:
        key = WebKeys(store).make_link(time.time())
    answer = context.request.get(f"{home.url}/login/{key}")
    assert answer.ok


def _visit(context: BrowserContext, home: Home) -> Iterator[Visit]:
    context.set_default_timeout(20_000)
    page = context.new_page()
    made = Visit(page, home.url)
    keep: Callable[[Any], None] = lambda one: (  # noqa: E731
        made.complaints.append(one.text) if one.type in ("error", "warning") else None
    )
    page.on("console", keep)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on("requestfailed", lambda one: _failed(made, one))
    yield made
    context.close()
    assert made.complaints == []


def _failed(visit: Visit, request: Any) -> None:
    if request.failure != "net::ERR_ABORTED":  # by going to another page
        visit.complaints.append(f"{request.url}: {request.failure}")
