"""What every request goes through before anything of it is handled.

In this order: it names us as host; where other machines reach us there is a password or token; it
is not too large; who asks is known, but for what anybody may see; what a browser sends to change
something comes from a page of ours; who asks may do so. A page in a browser that was led here by
its own host name (DNS rebinding) names that as Host. Health and the webhook, which has a key of its
own, are let through as they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reclass_plex.config import WebOptions
from reclass_plex.errors import ReclassError
from service.web.access import (
    COMMAND,
    CSRF_FIELD,
    CSRF_HEADER,
    Access,
    Principal,
    peer_of,
    same,
)
from service.web.problems import HANDLERS, problem

log = logging.getLogger(__name__)

MAX_BODY = 4 << 20  # bytes: a selection of some ten thousand paths
MAX_FORM = 1 << 20  # bytes of a form that is read to find its token
SIGN_IN = "/login"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = ("/healthz", "/readyz")
# What anybody may see or send: the way in, and what its page is made of.
_PUBLIC = (SIGN_IN, "/favicon.ico", "/manifest.webmanifest", "/service-worker.js", "/robots.txt")
_PUBLIC_BELOW = ("/login/", "/static/")
_SESSION = "/api/v1/session"
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not listened on
_TOO_LARGE = f"more than {MAX_BODY} bytes"
_UNLOCKED = (
    "other machines reach this address, and there is no password: set one with reclass-plex"
    " password, or set web.host to 127.0.0.1"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Gate:
    """Lets requests through, with `state.principal` for the handlers, or refuses them."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        options: WebOptions,
        on_answer: Callable[[str, int, float], object] = lambda method, status, seconds: None,
    ) -> None:
        self._app = app
        self._on_answer = on_answer
        self._access = access
        self._hosts = {"localhost", "127.0.0.1", "::1", options.host.lower(), *options.names}
        self._is_local = options.is_local
        self._any_address = options.host in _WILDCARDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "")
        if path.startswith("/webhook/"):  # a wrong key looks like any other unknown address
            send = _harden(send)
        if scope["type"] != "http" or path in _OPEN or path.startswith("/webhook/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        began = False
        since = time.perf_counter()
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LARGE)
            return message

        async def hardened(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                self._on_answer(request.method, message["status"], time.perf_counter() - since)
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not path.startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            inner: Receive = bounded
            refusal = self._refuse_at_once(request)
            if refusal is None:
                refusal, inner = await self._check(request, bounded)
            if refusal is not None:
                await refusal(scope, receive, hardened)
                return
            await self._app(scope, inner, hardened)
        except HTTPException as error:  # of what is read here
            answer = problem(request, error.status_code, error.detail)
            await answer(scope, receive, hardened)
        except ReclassError as error:
            await (await HANDLERS[ReclassError](request, error))(scope, receive, hardened)
        except asyncio.CancelledError:  # by uvicorn, when it stops; what runs in a thread runs on
            if began:
                return
            log.warning("%s %s was cut off: stopping", request.method, path)
            stopping = HTTPStatus.SERVICE_UNAVAILABLE, "stopping; it may yet be done"
            await problem(request, *stopping)(scope, receive, hardened)

    def _refuse_at_once(self, request: Request) -> Response | None:
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # A proxy may have gone by the other of the two, and what follows be somebody else's.
            why = "of Content-Length and Transfer-Encoding only one may be there"
            return problem(request, HTTPStatus.BAD_REQUEST, why)
        if self._is_us(request.headers.get("host", "")):
            return None
        return problem(
            request, HTTPStatus.MISDIRECTED_REQUEST, "this is not the host that was asked for"
        )

    async def _check(self, request: Request, receive: Receive) -> tuple[Response | None, Receive]:
        """Return a refusal if there is one, and from where the body is to be had now."""
        found: Principal | None
        if self._access.is_command(request.headers):
            found = COMMAND  # without waiting for the store
        elif not self._is_local and not await run_in_threadpool(self._access.is_locked):
            return _forbid(request, _UNLOCKED), receive
        else:
            peer = peer_of(request)
            found = await run_in_threadpool(self._access.identify, request.headers, peer)
        request.scope.setdefault("state", {})["principal"] = found
        if found is None and not _is_public(request):
            return _unknown(request), receive
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > MAX_BODY:
            return problem(request, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _TOO_LARGE), receive
        if request.method in _SAFE:
            return None, receive
        if (found is None or found.csrf is not None) and not self._is_same_origin(request):
            return _forbid(request, "this came from a page of another site"), receive
        if _is_public(request):
            return None, receive
        if found is not None and found.csrf is not None:
            given, receive = await _csrf_of(request, receive)
            if not same(given, found.csrf):
                return _forbid(request, "the page is too old: load it again"), receive
        if found is not None and not found.may("write"):
            return _forbid(request, "the token may only read"), receive
        return None, receive

    def _is_same_origin(self, request: Request) -> bool:
        """Tell whether a browser sent this from a page of ours, or it was no browser."""
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site == "same-origin"
        origin = request.headers.get("origin")
        if origin is None:
            return True
        ours = {request.headers.get("host", "").lower()}
        if self._access.is_proxy(peer_of(request)):
            ours.add(request.headers.get("x-forwarded-host", "").lower())
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return bool(place) and place in ours

    def _is_us(self, host: str) -> bool:
        name = _without_port(host).lower()
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address  # an address was not looked up, so nobody can have rebound it


def _is_public(request: Request) -> bool:
    path = request.scope["path"]  # what is routed by; request.url takes a %3F in it for a "?"
    if path == _SESSION:
        return request.method == "POST"
    return path in _PUBLIC or path.startswith(_PUBLIC_BELOW)


def _unknown(request: Request) -> Response:
    """Send a browser to the login page, and tell all others what they lack."""
    path = request.scope["path"]
    is_api = path == "/api" or path.startswith("/api/")
    looks = request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", "")
    if is_api or not looks:
        return problem(request, HTTPStatus.UNAUTHORIZED, "the token is missing or wrong")
    back = path + (f"?{request.url.query}" if request.url.query else "")
    target = SIGN_IN if back == "/" else f"{SIGN_IN}?next={quote(back, safe='/')}"
    return RedirectResponse(target, HTTPStatus.SEE_OTHER)


def _forbid(request: Request, why: str) -> Response:
    return problem(request, HTTPStatus.FORBIDDEN, why)


async def _csrf_of(request: Request, receive: Receive) -> tuple[str, Receive]:
    """Return the token that came along, in the header or in a form, which is then read again."""
    if (given := request.headers.get(CSRF_HEADER)) is not None:
        return given, receive
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return "", receive
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return "", receive
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_FORM:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_FORM} bytes")
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=1000)
    except ValueError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "too many fields") from error
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return fields.get(CSRF_FIELD, [""])[0], again


def _without_port(host: str) -> str:
    """Return the name or address of a Host header: [::1]:8787 is ::1."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _harden(send: Send) -> Send:
    """Return a `send` that adds what any answer has here."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in (*_HEADERS.items(), ("Cache-Control", "no-store")):
                headers.setdefault(name, value)
        await send(message)

    return hardened
