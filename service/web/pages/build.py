"""Puts the pages together: which there are, in the order of the navigation."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.errors import ReclassError
from reclass_plex.store import Store
from service.web.control import Control
from service.web.pages import (
    duplicates,
    frame,
    library,
    listen,
    log,
    login,
    now,
    review,
    settings,
    statistics,
    track,
)
from service.web.pages.assets import Assets
from service.web.pages.rendering import Context, is_htmx
from service.web.problems import status_of
from service.web.texts import text
from service.web.track_media import TrackMedia

PAGES = (
    ("now", "/"),
    ("library", "/library"),
    ("review", "/review"),
    ("statistics", "/statistics"),
    ("listen", "/listen"),
    ("settings", "/settings"),
    ("log", "/log"),
)


def build_dashboard(
    control: Control, store: Store, roots: Callable[[], Sequence[Path]]
) -> APIRouter:
    """Return all routes of the dashboard. Music is played only from below `roots`."""
    assets = Assets()
    context = Context(control, store, assets, PAGES)

    class PageRoute(APIRoute):
        """A route whose errors are pages."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_or_say(request: Request) -> Response:
                try:
                    return await handle(request)
                except (HTTPException, RequestValidationError, ReclassError) as error:
                    return _error_page(context, request, error)

            return handle_or_say

    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    assets.add_routes(router)
    frame.add_routes(router, assets)
    for page in (login, now, library, duplicates, review, statistics, listen, settings, log):
        page.add_routes(router, context)
    track.add_routes(router, context, TrackMedia(roots))
    return router


def _error_page(context: Context, request: Request, error: Exception) -> Response:
    status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    message = str(error)
    headers = None
    if isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, error.headers
        if status == HTTPStatus.NOT_FOUND:
            message = text("error.404")
    elif isinstance(error, RequestValidationError):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        message = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    elif isinstance(error, ReclassError):
        status = status_of(error)
    template = "error_part.html" if is_htmx(request) else "error.html"
    answer = context.page(request, template, {"message": message}, status)
    answer.headers.update(headers or {})
    return answer
