"""Errors of the HTTP interface, as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from reclass_plex.cursors import BadCursor
from reclass_plex.errors import (
    ConfigError,
    PlexUnreachable,
    ReclassError,
    StoreBusy,
    StreamError,
    visible,
)
from reclass_plex.remote import to_json
from reclass_plex.undoing import NoSuchRun
from service.web.access import TooManyTries, WrongPassword
from service.web.track_media import NotDrawn, NotServed

_UNREAD = 64 << 10  # bytes of a refused request that are read away rather than cut off
_STATUS: dict[type[ReclassError], HTTPStatus] = {
    BadCursor: HTTPStatus.NOT_FOUND,  # there is no such page
    NoSuchRun: HTTPStatus.NOT_FOUND,
    NotServed: HTTPStatus.NOT_FOUND,
    NotDrawn: HTTPStatus.UNPROCESSABLE_ENTITY,
    ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    PlexUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    StoreBusy: HTTPStatus.CONFLICT,
    StreamError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyTries: HTTPStatus.TOO_MANY_REQUESTS,
    WrongPassword: HTTPStatus.UNAUTHORIZED,
}


class Json(JSONResponse):
    """JSON in ASCII, so that paths that are no UTF-8 come through."""

    def render(self, content: object) -> bytes:
        """Return the body."""
        return to_json(content)


def problem(
    request: Request,
    status: int,
    detail: str = "",
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> Response:
    """Return problem details. What is left of a large request's body is not waited for."""
    phrase = HTTPStatus(status).phrase
    given = dict(headers or {})
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers or not length.isdigit() or int(length) > _UNREAD:
        given["Connection"] = "close"
    if status == HTTPStatus.UNAUTHORIZED:
        given["WWW-Authenticate"] = "Bearer"
    content = {"title": phrase, "status": int(status), "detail": visible(detail) or phrase, **more}
    return Json(content, status, given, media_type="application/problem+json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    return problem(request, error.status_code, error.detail, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    found = [
        {"at": ".".join(str(part) for part in one["loc"]), "message": one["msg"]}
        for one in error.errors()
    ]
    detail = "; ".join(f"{one['at']}: {one['message']}" for one in found)
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=found)


def status_of(error: ReclassError) -> HTTPStatus:
    """Return the status that an error of ours is answered with, by the API and by pages."""
    return next(
        (_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )


async def _failed(request: Request, error: Exception) -> Response:
    """Say an error of ours: its message is for people."""
    assert isinstance(error, ReclassError)  # noqa: S101 - what it is registered for
    headers = {}
    if isinstance(error, TooManyTries):
        headers["Retry-After"] = str(max(1, round(error.seconds)))
    return problem(request, status_of(error), str(error), headers, kind=error.kind)


async def _broken(request: Request, error: Exception) -> Response:
    """Say that it is our fault; what it was goes into the log, which Starlette sees to."""
    return problem(
        request, HTTPStatus.INTERNAL_SERVER_ERROR, "an error of the daemon; its log says which"
    )


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    HTTPException: _refused,
    RequestValidationError: _invalid,
    ReclassError: _failed,
    Exception: _broken,
}
