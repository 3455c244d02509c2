"""`make screenshots`: the demo's daemon and music, photographed for the README.

Real pages of the real daemon with the demo library, in Chromium; each PNG has few colours, so that
it is small.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from pathlib import Path

import run

from reclass_plex.browse import TrackFilter, list_tracks
from reclass_plex.store import Store

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "docs" / "screenshots"
MOST_BYTES = 150_000
COLOURS = 128


def main() -> None:
    """Run the demo, and take pictures instead of undoing it."""
    from playwright.sync_api import Browser, sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: chromium is not installed (apt install chromium)")
    shutil.rmtree(run.SCRATCH, ignore_errors=True)
    run.MUSIC.mkdir(parents=True)
    tracks = run.find_music()
    with run.plex_server() as url, run.daemon(url, min_confidence=0.6):
        run.wait_until(run.is_running, "the daemon's start")
        for track in tracks[:-1]:
            shutil.copy(track, run.MUSIC)
        run.wait_until(lambda: run.ended(len(tracks) - 1), "that every track was heard")
        link = run.dashboard_link()
        base = link.partition("/login/")[0]

        def shoot(browser: Browser, name: str, path: str, dark: bool, phone: bool = False) -> None:
            context = browser.new_context(
                viewport={"width": 390, "height": 780} if phone else {"width": 1180, "height": 800},
                color_scheme="dark" if dark else "light",
                storage_state=state,
            )
            page = context.new_page()
            page.goto(base + path)
            for image in page.locator("img").all():
                image.scroll_into_view_if_needed()
            page.wait_for_load_state("networkidle" if path != "/" else "load")
            time.sleep(0.5)
            page.evaluate("window.scrollTo(0, 0)")
            save(SHOTS / f"{name}.png", page.screenshot(full_page=name == "track"))
            context.close()

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            first = browser.new_context()
            first.request.get(link)
            state = first.storage_state()
            shoot(browser, "library", "/library", dark=False)
            number = track_number("HSR Rock")
            shoot(browser, "track", f"/tracks/{number}", dark=False)
            shoot(browser, "review", "/review", dark=True)
            shoot(browser, "statistics", "/statistics", dark=True)
            shutil.copy(tracks[-1], run.MUSIC)
            shoot(browser, "now", "/", dark=False)
            shoot(browser, "phone", "/library", dark=True, phone=True)
            browser.close()


def track_number(words: str) -> int:
    """Return the number by which pages name the track with these words in its name."""
    with Store.open(run.SCRATCH / "state" / "reclass-plex" / "store.sqlite") as store:
        return list_tracks(store, TrackFilter(text=words)).rows[0].id


def save(path: Path, png: bytes) -> None:
    """Write a picture with few colours."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    few = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    size = path.stat().st_size
    if size > MOST_BYTES:
        sys.exit(f"error: {path} has {size} bytes, more than {MOST_BYTES}")
    print(f"{path.relative_to(ROOT)}: {size // 1000} kB")


if __name__ == "__main__":
    main()
