"""The daemon's HTTP interface: health, Plex's webhook, and what the command line asks.

    GET  /healthz  /readyz                                 anyone
    POST /webhook/KEY                                      who knows the key; any Host
    GET  /api/status  /api/jobs?state=failed&limit=&offset=     with the token, as
    POST /api/pause  /api/resume  /api/reclassify  /api/jobs/revive     Authorization: Bearer

Bodies and answers are the models of `reclass_plex.remote`, errors problem details (RFC 9457). The
webhook is answered from the event loop alone and never waits for the store or for Plex; the rest
runs in threads. `create_app` makes the application; service/web/server.py listens.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated, Protocol

from fastapi import APIRouter, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reclass_plex.errors import ConfigError, PlexUnreachable, ReclassError, visible
from reclass_plex.jobs import Job, State
from reclass_plex.remote import (
    MAX_JOBS,
    Count,
    JobList,
    ReclassifyRequest,
    ReclassifyResult,
    ReviveRequest,
    Status,
    to_json,
)
from reclass_plex.selection import Selection
from service.hints import Hint
from service.webhook import Malformed, TooLarge, receive

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes: a selection of some ten thousand paths
_UNREAD = 64 << 10  # bytes of a refused request that are read away rather than cut off
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not listened on


class Control(Protocol):
    """What the interface needs of the daemon. Called in threads, save what says otherwise."""

    def status(self) -> Status:
        """Return what the daemon does."""

    def pause(self) -> None:
        """Stop after the tracks in hand."""

    def resume(self) -> None:
        """Go on."""

    def reclassify(self, selection: Selection, dry_run: bool) -> ReclassifyResult:
        """Put tracks in line again, or only count them. Raises ReclassError."""

    def list_jobs(self, states: Collection[State], limit: int, offset: int) -> list[Job]:
        """Return jobs in these states, the latest change first."""

    def revive(self, ids: Collection[int] | None) -> int:
        """Put dead letters back in line, all of them without `ids`; return how many."""

    def hint(self, hint: Hint) -> None:
        """Take a hint. In the event loop: must not wait for anything."""

    def server_uuid(self) -> str | None:
        """Return our Plex server's machineIdentifier, if known. In the event loop."""

    def ready(self) -> bool:
        """Tell whether the daemon has started. In the event loop."""


class Json(Response):
    """JSON in ASCII, so that paths that are no UTF-8 come through."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the body."""
        return to_json(content)


def create_app(
    control: Control, *, webhook_key: str, api_token: str, host: str = "127.0.0.1"
) -> FastAPI:
    """Return the application. `host` is what it listens on, as configured."""
    if not webhook_key or not api_token:
        raise ValueError("key and token must not be empty")
    app = FastAPI(
        title="reclass-plex",
        openapi_url=None,  # and so no pages of documentation
        redirect_slashes=False,  # the redirect would repeat the webhook's key
        default_response_class=Json,
        exception_handlers={
            HTTPException: _refused,
            RequestValidationError: _invalid,
            ReclassError: _failed,
            Exception: _broken,
        },
    )
    app.add_middleware(_Gate, token=api_token, host=host)
    app.include_router(_api(control))

    @app.get("/healthz")
    async def healthz() -> Response:
        return Json({"pid": os.getpid()})  # tells the command that it is not some other program

    @app.get("/readyz")
    async def readyz() -> Response:
        if not control.ready():
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "still starting, or stopping")
        return Json({"ready": True})

    @app.post("/webhook/{key}")
    async def webhook(key: str, request: Request) -> Response:
        if not _same(key, webhook_key):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        try:
            hint = await receive(request, control.server_uuid())
        except TooLarge as error:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error)) from None
        except Malformed as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
        if hint is None:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        control.hint(hint)
        return Response(status_code=HTTPStatus.ACCEPTED)

    return app


def _api(control: Control) -> APIRouter:
    """Return the routes that need the token."""
    api = APIRouter(prefix="/api", redirect_slashes=False)

    @api.get("/status")
    def status() -> Response:
        return Json(control.status())

    @api.post("/pause")
    def pause() -> Response:
        control.pause()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @api.post("/resume")
    def resume() -> Response:
        control.resume()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @api.post("/reclassify")
    def reclassify(wanted: ReclassifyRequest) -> Response:
        return Json(control.reclassify(wanted.selection, wanted.dry_run))

    @api.get("/jobs")
    def list_jobs(
        state: Annotated[tuple[State, ...], Query()] = ("failed",),
        limit: Annotated[int, Query(ge=1, le=MAX_JOBS)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> Response:
        return Json(JobList(jobs=tuple(control.list_jobs(state, limit, offset))))

    @api.post("/jobs/revive")
    def revive(wanted: ReviveRequest) -> Response:
        return Json(Count(count=control.revive(wanted.ids)))

    return api


class _Gate:
    """Lets requests for /api through that name us as host, bear the token and are not too large.

    Before anything of the body is read. A page in a browser that was led here by its own host name
    (DNS rebinding) names that as Host.
    """

    def __init__(self, app: ASGIApp, *, token: str, host: str) -> None:
        self._app = app
        self._token = token
        self._hosts = {"localhost", "127.0.0.1", "::1", host.lower()}
        self._any_address = host in _WILDCARDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == "/api" or path.startswith("/api/")):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is not None:
            await _problem(request, *refusal)(scope, receive, send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LARGE)
            return message

        try:
            await self._app(scope, bounded, send)
        except asyncio.CancelledError:  # by uvicorn, when it stops; what runs in a thread runs on
            log.warning("%s %s was cut off: stopping", request.method, path)
            stopping = HTTPStatus.SERVICE_UNAVAILABLE, "stopping; it may yet be done"
            await _problem(request, *stopping)(scope, receive, send)

    def _refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        if not self._is_us(request.headers.get("host", "")):
            return HTTPStatus.MISDIRECTED_REQUEST, "this is not the host that was asked for"
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not _same(token.strip(), self._token):
            return HTTPStatus.UNAUTHORIZED, "the token is missing or wrong"
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LARGE
        return None

    def _is_us(self, host: str) -> bool:
        name = _without_port(host).lower()
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address  # an address was not looked up, so nobody can have rebound it


_TOO_LARGE = f"more than {MAX_BODY} bytes"


def _without_port(host: str) -> str:
    """Return the name or address of a Host header: [::1]:8787 is ::1."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _same(given: str, expected: str) -> bool:
    """Compare in a time that does not tell how much is right."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


# Errors


def _problem(request: Request, status: int, detail: str = "", **more: object) -> Response:
    """Return problem details. What is left of a large request's body is not waited for."""
    phrase = HTTPStatus(status).phrase
    headers = {}
    length = request.headers.get("content-length", "0")
    if "transfer-encoding" in request.headers or not length.isdigit() or int(length) > _UNREAD:
        headers["Connection"] = "close"
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"title": phrase, "status": int(status), "detail": visible(detail) or phrase, **more}
    return Json(content, status, headers, media_type="application/problem+json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    answer = _problem(request, error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    found = [
        {"at": ".".join(str(part) for part in one["loc"]), "message": one["msg"]}
        for one in error.errors()
    ]
    detail = "; ".join(f"{one['at']}: {one['message']}" for one in found)
    return _problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=found)


async def _failed(request: Request, error: Exception) -> Response:
    """Say an error of ours: its message is for people."""
    assert isinstance(error, ReclassError)  # noqa: S101 - what it is registered for
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    if isinstance(error, ConfigError):
        status = HTTPStatus.UNPROCESSABLE_ENTITY
    elif isinstance(error, PlexUnreachable):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return _problem(request, status, str(error), kind=error.kind)


async def _broken(request: Request, error: Exception) -> Response:
    """Say that it is our fault; what it was goes into the log, which Starlette sees to."""
    return _problem(
        request, HTTPStatus.INTERNAL_SERVER_ERROR, "an error of the daemon; its log says which"
    )
