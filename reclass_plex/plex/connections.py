"""HTTP connections that another thread can break off, so that a request which hangs stops nobody.

Closing a requests.Session leaves the request that is under way waiting for its answer. They lead to
one server: where it sends us on to another, the token, a header of Plex's own, would go along.
"""

from __future__ import annotations

import socket
import weakref
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Connections:
    """All connections of the sessions that it opens. `broken` once they were broken off."""

    def __init__(self) -> None:
        self.broken = False
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()

    def open_session(self) -> requests.Session:
        """Return a new session; close it after use."""
        session = _Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self))
        return session

    def break_off(self) -> None:
        """End every request with an error, those that are made later too. From any thread."""
        self.broken = True
        for connection in list(self._open):
            _shut_down(connection)

    def watch(self, connection: HTTPConnection) -> None:
        """Take up a connection that was just made."""
        self._open.add(connection)
        if self.broken:  # in between
            _shut_down(connection)


class _Session(requests.Session):
    """Follows redirects within one server only."""

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Refuse to ask another host, where requests drops a login of its own kinds alone."""
        former, latter = response.request.url or "", prepared_request.url or ""
        if self.should_strip_auth(former, latter):
            place = urlsplit(latter)
            raise requests.RequestException(
                f"the server sends us on to {place.scheme}://{place.netloc}, which does not get the"
                " token; if that is your server, set plex.url to it"
            )
        super().rebuild_auth(prepared_request, response)


class _Adapter(HTTPAdapter):
    """Makes connections that are watched."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*arguments, **options)
        watch = self._connections.watch

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                watch(self)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                watch(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


def _shut_down(connection: HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):  # it has ended already
            # Not the method of an SSLSocket: that takes the TLS away under the reader's feet.
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
