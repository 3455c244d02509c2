"""Who asks, and what they may do.

Four ways to be known:

- the command line, by the token that the daemon makes at each start (reclass_plex.remote);
- programs, by an API token of their own, as Authorization: Bearer;
- people, by a session's cookie, which a password or a link of `reclass-plex dashboard` begins;
- people whom a trusted reverse proxy names (web.trusted_proxy), if that is configured.

Without a password nobody is let in by one, and there is no other way in for who is only on the
same machine: that would be any user of it. What every request goes through is in service/web/gate.
Handlers ask here: `require(request, scope)`, `csrf_token(request)`, `access_of(request)`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from reclass_plex.config import WebOptions
from reclass_plex.errors import ReclassError
from reclass_plex.password import check_password, has_password
from reclass_plex.store import Store
from reclass_plex.web_keys import SESSION_SECONDS, Scope, WebKeys
from service.web.login_limit import LoginLimit

COOKIE = "reclass-session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"  # of a form
_CHECK_SECONDS = 10.0  # to wait for who tries a password just now
_MAX_USER = 200  # characters of a name that a proxy gives


class WrongPassword(ReclassError):
    """The password is not this one, or none is set."""

    kind = "wrong-password"


class TooManyTries(ReclassError):
    """Passwords were tried too often; `seconds` says when the next may be."""

    kind = "too-many-tries"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many tries: wait {max(1, round(seconds))} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Principal:
    """Who asks. `csrf` is what a browser must send along to change anything; None: no browser."""

    kind: Literal["command", "token", "session", "proxy"]
    name: str
    scope: Scope
    csrf: str | None = field(default=None, repr=False)

    def may(self, scope: Scope) -> bool:
        """Tell whether they may read, or write."""
        return self.scope == "write" or scope == "read"


COMMAND = Principal("command", "reclass-plex", "write")


class Access:
    """Knows who asks, signs people in and out. One an application; methods may wait for the store.

    `command_token` is the one of this start, for the command line.
    """

    def __init__(self, store: Store, options: WebOptions, command_token: str) -> None:
        if not command_token:
            raise ValueError("key and token must not be empty")
        self.keys = WebKeys(store)
        self._store_path = store.path
        self._command_token = command_token
        proxy = options.trusted_proxy
        self._proxies = proxy.addresses if proxy else ()
        self._user_header = proxy.user_header if proxy else None
        self._secret = secrets.token_bytes(32)  # of this start: for those without a session
        self._limit = LoginLimit()
        self._limit_lock = threading.Lock()
        self._check_lock = threading.Lock()  # each check takes 32 MiB

    @property
    def has_password(self) -> bool:
        """Whether one is set."""
        return has_password(self._store_path)

    def is_locked(self) -> bool:
        """Tell whether strangers have to prove who they are: by password, token, or proxy.

        Without any of that nobody is let in on an address that other machines reach.
        """
        if self.has_password or (self._user_header and self._proxies):
            return True
        now = time.time()
        tokens = self.keys.list_keys("token")
        return any(one.expires is None or one.expires >= now for one in tokens)

    # Who asks

    def identify(self, headers: Headers, peer: str) -> Principal | None:
        """Return who asks from the address `peer`, None if it is not known."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":  # others are for a proxy before us
            return self._bearer(given.strip())
        if self._user_header and self.is_proxy(peer):
            user = headers.get(self._user_header, "").strip()
            if user and len(user) <= _MAX_USER and user.isprintable():
                return Principal("proxy", user, "write", _csrf(self._secret, f"proxy {user}"))
        if cookie := session_key(headers):
            found = self.keys.find(cookie, "session", time.time())
            if found is not None:
                csrf = _csrf(cookie.encode("utf-8", "replace"), "session")
                return Principal("session", "password", found.scope, csrf)
        return None

    def is_command(self, headers: Headers) -> bool:
        """Tell whether it is the command line. Waits for nothing."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and same(key.strip(), self._command_token)

    def _bearer(self, key: str) -> Principal | None:
        if same(key, self._command_token):
            return COMMAND
        found = self.keys.find(key, "token", time.time())
        return None if found is None else Principal("token", found.name, found.scope)

    # Where from

    def is_proxy(self, peer: str) -> bool:
        """Tell whether a connection comes from a proxy that is trusted."""
        if not self._proxies:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._proxies)

    def address(self, request: HTTPConnection) -> str:
        """Return from where a request comes: of a trusted proxy what it says, of others the peer.

        Of several forwarded addresses the last that is no trusted proxy counts: what is before it
        anybody can write.
        """
        peer = peer_of(request)
        if not self.is_proxy(peer):
            return peer
        forwarded = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        for one in reversed([part.strip() for part in forwarded if part.strip()]):
            if not self.is_proxy(one):
                return one[:100]
        return peer

    def is_secure(self, request: HTTPConnection) -> bool:
        """Tell whether the browser came by https, to us or to a trusted proxy."""
        if self.is_proxy(peer_of(request)):
            said = request.headers.get("x-forwarded-proto", "")
            return said.split(",")[-1].strip().lower() == "https"
        return request.url.scheme == "https"

    # In and out

    def sign_in(self, request: HTTPConnection, password: str) -> str:
        """Return the key of a new session. Takes 0.1 s.

        Raises WrongPassword, TooManyTries, ConfigError if the password's file is damaged.
        """
        address = self.address(request)
        with self._limit_lock:
            wait = self._limit.take(address, time.monotonic())
        if wait > 0:
            raise TooManyTries(wait)
        if not self._check_lock.acquire(timeout=_CHECK_SECONDS):
            raise TooManyTries(_CHECK_SECONDS)
        try:
            right = check_password(self._store_path, password)
        finally:
            self._check_lock.release()
        if not right:
            raise WrongPassword(
                "the password is wrong"
                if self.has_password
                else "no password is set: reclass-plex password sets one"
            )
        with self._limit_lock:
            self._limit.succeeded(address)
        return self._begin(request)

    def sign_in_by_link(self, request: HTTPConnection, key: str) -> str:
        """Return the key of a new session. Raises WrongPassword for a link that is used up."""
        if not self.keys.use_link(key, time.time()):
            raise WrongPassword(
                "this link was used, or is older than 10 minutes: reclass-plex dashboard makes"
                " another"
            )
        return self._begin(request)

    def _begin(self, request: HTTPConnection) -> str:
        browser = request.headers.get("user-agent", "")
        if old := session_key(request.headers):
            self.keys.end_session(old)
        return self.keys.begin_session(time.time(), browser=browser, address=self.address(request))

    def set_cookie(self, request: HTTPConnection, response: Response, key: str) -> None:
        """Give a session's key to the browser."""
        response.set_cookie(
            COOKIE,
            key,
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=self.is_secure(request),
        )

    def sign_out(self, request: HTTPConnection, response: Response) -> None:
        """End the session of a request, and have the browser forget its key."""
        if key := session_key(request.headers):
            self.keys.end_session(key)
        response.delete_cookie(
            COOKIE, httponly=True, samesite="strict", secure=self.is_secure(request)
        )


# What handlers ask


def access_of(request: HTTPConnection) -> Access:
    """Return the application's Access."""
    found = request.app.state.access
    assert isinstance(found, Access)  # noqa: S101 - create_app put it there
    return found


def principal(request: HTTPConnection) -> Principal | None:
    """Return who asks, as the gate found; None where nobody needs to be known (the login page)."""
    found = getattr(request.state, "principal", None)
    return found if isinstance(found, Principal) else None


def require(request: HTTPConnection, scope: Scope = "read") -> Principal:
    """Return who asks, if they may. Raises HTTPException 401 or 403."""
    found = principal(request)
    if found is None:
        raise HTTPException(HTTPStatus.UNAUTHORIZED, "sign in first")
    if not found.may(scope):
        raise HTTPException(HTTPStatus.FORBIDDEN, f"needs a token of scope {scope}")
    return found


def csrf_token(request: HTTPConnection) -> str:
    """Return what a page must send with whatever changes something; "" if nobody is signed in.

    As the header X-CSRF-Token, or as the field csrf_token of a form (urlencoded).
    """
    found = principal(request)
    return (found.csrf or "") if found else ""


def session_key(headers: Headers) -> str | None:
    """Return the session's key in a request's cookies. Of several the first."""
    for part in ";".join(headers.getlist("cookie")).split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and value:
            return value
    return None


def peer_of(request: HTTPConnection) -> str:
    """Return the other end's address, "" if there is none (a Unix socket)."""
    return request.client.host if request.client else ""


def same(given: str, expected: str) -> bool:
    """Compare in a time that does not tell how much is right."""
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _csrf(secret: bytes, what: str) -> str:
    found = hmac.digest(secret, b"csrf " + what.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode("ascii")
