"""The daemon's HTTP interface: health, Plex's webhook, and the API, which also serves commands.

    GET  /healthz  /readyz     anyone
    POST /webhook/KEY          who knows the key; any Host
    /api/...                   with a token, as Authorization: Bearer, or a session

Who may ask what is in service/web/access.py and gate.py, which every request goes through. Bodies
and answers are the models of `reclass_plex.remote`, errors problem details (RFC 9457). The
webhook is answered from the event loop alone and never waits for the store or for Plex; the rest
runs in threads. `create_app` makes the application; service/web/server.py listens.
"""

from __future__ import annotations

import os
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.config import WebOptions
from reclass_plex.jobs import State
from reclass_plex.remote import (
    MAX_JOBS,
    JobList,
)
from reclass_plex.store import Store
from service.web import sign_in
from service.web.access import Access, same
from service.web.api import alike, docs, history, live, metrics, radio, tracks
from service.web.api import control as control_api
from service.web.api.context import PROBLEMS, Api, given_once
from service.web.control import Control
from service.web.gate import Gate
from service.web.problems import HANDLERS, Json
from service.webhook import Malformed, TooLarge, receive


def create_app(
    control: Control,
    store: Store,
    *,
    webhook_key: str,
    api_token: str,
    options: WebOptions | None = None,
) -> FastAPI:
    """Return the application. `api_token` is the command line's; the store has all other keys."""
    if not webhook_key:
        raise ValueError("key and token must not be empty")
    options = options or WebOptions()
    access = Access(store, options, api_token)
    app = FastAPI(
        title="reclass-plex",
        openapi_url=None,  # and so no pages of documentation
        redirect_slashes=False,  # the redirect would repeat the webhook's key
        default_response_class=Json,
        exception_handlers=HANDLERS,
    )
    app.state.access = access
    app.include_router(sign_in.router(), responses=PROBLEMS)
    on_answer = add_api(app, control, store).observe
    app.add_middleware(Gate, access=access, options=options, on_answer=on_answer)
    app.include_router(_api(control))

    @app.get("/healthz", tags=["health"], openapi_extra={"security": []})
    async def healthz() -> Response:
        return Json({"pid": os.getpid()})  # tells the command that it is not some other program

    @app.get("/readyz", tags=["health"], openapi_extra={"security": []})
    async def readyz() -> Response:
        if not control.ready():
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "still starting, or stopping")
        return Json({"ready": True})

    @app.post("/webhook/{key}", include_in_schema=False)
    async def webhook(key: str, request: Request) -> Response:
        if not same(key, webhook_key):
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


def add_api(app: FastAPI, control: Control, store: Store) -> metrics.Metrics:
    """Add the REST API (service/web/api), and return what counts its answers."""
    api = Api(control, store)
    figures = metrics.Metrics(api)
    for routes in (
        tracks.router(api),
        history.router(api),
        control_api.router(api),
        alike.router(api),
        radio.router(api),
        live.router(api),
        metrics.router(figures),
    ):
        app.include_router(routes, responses=PROBLEMS, dependencies=[Depends(given_once)])
    app.include_router(docs.router(app, version("reclass-plex")))
    return figures


def _api(control: Control) -> APIRouter:
    """Return the route that the command line alone uses; all others are below /api/v1."""
    api = APIRouter(prefix="/api", redirect_slashes=False, include_in_schema=False)

    @api.get("/jobs")
    def list_jobs(
        state: Annotated[tuple[State, ...], Query()] = ("failed",),
        limit: Annotated[int, Query(ge=1, le=MAX_JOBS)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> Response:
        return Json(JobList(jobs=tuple(control.list_jobs(state, limit, offset))))

    return api
