"""Pages of the dashboard that cost most with the library's size: asked alike by all benchmarks."""

from __future__ import annotations

PAGES = (
    "/",
    "/now/live",
    "/library",
    "/library?sort=confidence",
    "/library?genre=Jazz&sure=low",
    "/library?state=failed",
    "/library?q=song+4711",
    "/library?q=nothing+like+that",
    "/library?q=gr%C3%B6%C3%9Fe",
    "/tracks/5000",
    "/tracks/5000/similar",
    "/review",
    "/statistics",
    "/log",
)
