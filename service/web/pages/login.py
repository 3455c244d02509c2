"""Signing in with the password, and out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import Response

from service.web.access import TooManyTries, WrongPassword, access_of, principal
from service.web.pages.frame import own_path
from service.web.pages.rendering import Context, go_to


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""

    def show(request: Request, following: str, problem: str = "", status: int = 200) -> Response:
        access = access_of(request)
        values = {"next": following, "problem": problem, "has_password": access.has_password}
        return context.page(request, "login.html", values, status)

    @router.get("/login")
    def login(request: Request, next: str = "/") -> Response:
        if principal(request) is not None:
            return go_to(own_path(next))
        return show(request, own_path(next))

    @router.post("/login")
    def sign_in(
        request: Request,
        password: Annotated[str, Form(max_length=1000)] = "",
        next: Annotated[str, Form(max_length=5000)] = "/",
    ) -> Response:
        access = access_of(request)
        try:
            key = access.sign_in(request, password)
        except WrongPassword as error:
            return show(request, own_path(next), str(error), HTTPStatus.FORBIDDEN)
        except TooManyTries as error:
            answer = show(request, own_path(next), str(error), HTTPStatus.TOO_MANY_REQUESTS)
            answer.headers["Retry-After"] = str(max(1, round(error.seconds)))
            return answer
        answer = go_to(own_path(next))
        access.set_cookie(request, answer, key)
        return answer

    @router.post("/logout")
    def sign_out(request: Request) -> Response:
        answer = go_to("/login")
        access_of(request).sign_out(request, answer)
        return answer
