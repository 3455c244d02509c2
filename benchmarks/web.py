"""How fast the dashboard answers with 100,000 tracks, and whether it scrolls smoothly.

    .venv/bin/python benchmarks/web.py [--tracks 100000] [--times 30] [--no-browser]

A real store, the real application over HTTP on this machine; no worker runs. Prints the median and
the 95th percentile of each page, whole (as text: its static files are cached). With Chromium it
scrolls through 2,000 rows of the library, which load as they come, and prints how long frames took
and how many tasks blocked the page for over 50 ms.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from many_tracks import fill_store  # noqa: E402
from page_tools import Visitor, dashboard  # noqa: E402
from pages import PAGES  # noqa: E402

from reclass_plex.store import Store  # noqa: E402

ASKED = (
    *PAGES,
    "/library?stage=fma518&sort=-confidence",
    "/listen",
    "/listen/live",
    "/duplicates",
    "/duplicates/found",
    "/settings",
)
SCROLL = """
async () => {
  const frames = []; const long = [];
  new PerformanceObserver(seen => seen.getEntries().forEach(one => long.push(one.duration)))
    .observe({type: 'longtask'});
  const start = performance.now(); let last = start;
  const rows = () => document.querySelectorAll('#results tbody tr').length;
  while (rows() < 2000 && last - start < 60000) {
    window.scrollBy(0, 120);
    await new Promise(requestAnimationFrame);
    const now = performance.now(); frames.push(now - last); last = now;
  }
  return [rows(), window.scrollY, frames, long];
}
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tracks", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=30, help="requests a page")
    parser.add_argument("--no-browser", action="store_true", help="do not measure scrolling")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Store.open(Path(scratch) / "store.sqlite") as store,
    ):
        began = time.perf_counter()
        fill_store(store, options.tracks)
        print(f"{options.tracks} tracks in {time.perf_counter() - began:.0f} s")
        with dashboard(store, Path(scratch)) as (_, visitor):
            print(f"{'page':42} {'median':>8} {'p95':>8}   ms")
            for page in ASKED:
                median, late = measure(visitor, page, options.times)
                print(f"{page:42} {median:8.0f} {late:8.0f}")
            if not options.no_browser and shutil.which("chromium"):
                scroll(visitor)


def measure(visitor: Visitor, page: str, times: int) -> tuple[float, float]:
    """Return median and 95th percentile in ms."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        answer = visitor.get(page)
        taken.append((time.perf_counter() - began) * 1000)
        assert answer.status_code == 200, (page, answer.status_code)
    return statistics.median(taken), statistics.quantiles(taken, n=20)[-1]


def scroll(visitor: Visitor) -> None:
    """Scroll through the library in a browser, and print how long frames took."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        context = browser.new_context()
        key = visitor.session.cookies["reclass-session"] or ""
        context.add_cookies([{"name": "reclass-session", "value": key, "url": visitor.url}])
        page = context.new_page()
        page.goto(visitor.url + "/library")
        rows, moved, frames, long = page.evaluate(SCROLL)
        assert moved > 0, "the page did not scroll"
        late = statistics.quantiles(frames, n=100)
        print(
            f"scrolled {moved:.0f} px through {rows} rows in {len(frames)} frames: median"
            f" {statistics.median(frames):.0f} ms, 95 % within {late[94]:.0f} ms,"
            f" 99 % within {late[98]:.0f} ms, longest {max(frames):.0f} ms;"
            f" {len(long)} tasks over 50 ms, longest {max(long, default=0):.0f} ms"
        )
        browser.close()


if __name__ == "__main__":
    main()
