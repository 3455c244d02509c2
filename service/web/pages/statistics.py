"""Figures of the whole library, as charts that the server draws, each beside its numbers."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.browse_statistics import Statistics, statistics
from service.web.pages.remembering import Remembered
from service.web.pages.rendering import Context

KEPT_SECONDS = 20.0


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""
    figures: Remembered[Statistics] = Remembered(lambda: statistics(context.store), KEPT_SECONDS)

    @router.get("/statistics")
    def show(request: Request) -> Response:
        found = figures.get()
        return context.page(
            request,
            "statistics.html",
            {"current": "statistics", "found": found, "highest": max(found.confidence, default=0)},
        )
