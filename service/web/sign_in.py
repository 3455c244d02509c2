"""Signing in and out: by the link of `reclass-plex dashboard`, and for programs with a session.

    GET    /login/KEY           begins a session and leads to the dashboard
    GET    /api/v1/session      who is signed in, and the token against cross-site requests
    POST   /api/v1/session      {"password": "..."} begins one; the answer sets its cookie
    DELETE /api/v1/session      ends it

The login page for people is one of the dashboard's.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from reclass_plex.web_keys import Scope
from service.web.access import access_of, csrf_token, require
from service.web.problems import Json


class SignIn(BaseModel):
    """A password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    password: str = Field(min_length=1, max_length=1000, repr=False)


class Session(BaseModel):
    """Who asks. `csrf` goes along, as X-CSRF-Token, with whatever changes something."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["command", "token", "session", "proxy"]
    name: str
    scope: Scope
    csrf: str


def router() -> APIRouter:
    """Return the routes."""
    routes = APIRouter(redirect_slashes=False, tags=["session"])

    @routes.get("/login/{key}", include_in_schema=False)
    def link(key: str, request: Request) -> Response:
        access = access_of(request)
        session = access.sign_in_by_link(request, key)
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        access.set_cookie(request, answer, session)
        return answer

    @routes.get("/api/v1/session", response_model=Session, summary="Who asks")
    def show(request: Request) -> Response:
        who = require(request)
        return Json(
            Session(kind=who.kind, name=who.name, scope=who.scope, csrf=csrf_token(request))
        )

    @routes.post(
        "/api/v1/session",
        status_code=HTTPStatus.NO_CONTENT,
        summary="Sign in",
        openapi_extra={"security": []},
    )
    def begin(wanted: SignIn, request: Request) -> Response:
        access = access_of(request)
        key = access.sign_in(request, wanted.password)
        answer = Response(status_code=HTTPStatus.NO_CONTENT)
        access.set_cookie(request, answer, key)
        return answer

    @routes.delete("/api/v1/session", status_code=HTTPStatus.NO_CONTENT, summary="Sign out")
    def end(request: Request) -> Response:
        answer = Response(status_code=HTTPStatus.NO_CONTENT)
        access_of(request).sign_out(request, answer)
        return answer

    return routes
