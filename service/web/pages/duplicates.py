"""Recordings that are there in several files. Looking for them may take an hour.

The page hears of its end by /api/events, as the first page does of its news.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.remote import Operation
from service.web.pages.deciding import wait_for
from service.web.pages.rendering import Context, go_to


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""
    actions = context.control.actions

    def latest() -> Operation | None:
        asked = (one for one in actions.operations.all() if one.kind == "duplicates")
        return next(asked, None)

    @router.get("/duplicates")
    def show(request: Request) -> Response:
        values = {"current": "library", "operation": latest()}
        return context.page(request, "duplicates.html", values)

    @router.get("/duplicates/found")
    def found(request: Request) -> Response:
        return context.page(request, "duplicates_found.html", {"operation": latest()})

    @router.post("/duplicates/stop")
    def stop() -> Response:
        asked = latest()
        if asked is not None:
            actions.operations.ask_to_stop(asked.id)
            wait_for(context.control, asked)
        return go_to("/duplicates")

    @router.post("/duplicates")
    def look() -> Response:
        actions.alike.duplicates()
        return go_to("/duplicates")
