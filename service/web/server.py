"""Listening: uvicorn in a thread of its own, and bounds for those who connect.

uvicorn waits for ever for a request that does not come to its end. `_Connection` gives each one
`REQUEST_SECONDS`, and lets nobody hold more than `MAX_CONNECTIONS`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import time

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from reclass_plex.config import WebOptions
from reclass_plex.errors import ConfigError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0  # for a request to arrive whole
KEEP_ALIVE_SECONDS = 5  # of an idle connection
MAX_CONNECTIONS = 128
_ACCEPTED_AT_ONCE = 16
START_SECONDS = 10.0
STOP_SECONDS = 3.0
TICK_SECONDS = 0.25  # between looks whether it shall end


class _Connection(H11Protocol):
    """A connection of which one is not waited for beyond measure."""

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._arm()
        if len(self.connections) <= MAX_CONNECTIONS:
            return
        # One that was put out just now is in the list until the loop comes round.
        held = [one for one in self.connections if isinstance(one, _Connection)]
        held = [one for one in held if not one.transport.is_closing()]
        if len(held) > MAX_CONNECTIONS:
            waiting = [one for one in held if not one.is_busy] or [self]
            min(waiting, key=lambda one: one._since).transport.abort()

    @property
    def is_busy(self) -> bool:
        """Whether a request is complete, and its answer not yet."""
        return (
            self._deadline is None and self.cycle is not None and not self.cycle.response_complete
        )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._disarm()
        elif self._deadline is None:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """uvicorn, which wakes up less often while nobody asks."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(TICK_SECONDS)


class WebServer:
    """Serves an application until it is stopped."""

    def __init__(self, app: ASGIApp, options: WebOptions) -> None:
        self._options = options
        self.port = options.port  # after `start` the real one, where this is 0
        self._thread: threading.Thread | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,  # it would show the webhook's key
                proxy_headers=False,
                server_header=False,
                # asyncio accepts so many at a time before a `_Connection` is asked, and out of file
                # descriptors it logs as many errors. `start` lets the kernel keep more in line.
                backlog=_ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )

    @property
    def url(self) -> str:
        """Where this machine reaches it."""
        host = self._options.own_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen, in a thread. Raises ConfigError if the address cannot be had."""
        sockets = _listen(self._options)
        self.port = int(sockets[0].getsockname()[1])
        self._thread = threading.Thread(
            target=self._server.run, args=(sockets,), name="web", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        if not self._server.started:
            raise RuntimeError("the web server did not start")
        for one in sockets:
            one.listen(MAX_CONNECTIONS)
        log.info("answering at %s", self.url)

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End it. Who hangs in a request is left behind after `timeout` seconds."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning("a request did not end in time; left behind")


def _listen(options: WebOptions) -> list[socket.socket]:
    """Return listening sockets for all addresses of the host; with port 0 they share a free one."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"web.host: has value {options.host!r}. No such host is known."
        ) from error
    sockets: list[socket.socket] = []
    for family, _, _, _, address in found:
        port = sockets[0].getsockname()[1] if sockets else options.port
        try:
            sockets.append(socket.create_server((address[0], port, *address[2:]), family=family))
        except OSError as error:
            if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                continue  # localhost has an address for IPv6, and this machine perhaps none
            for one in sockets:
                one.close()
            reason = os.strerror(error.errno or 0).lower()
            raise ConfigError(
                f"web.port: has value {options.port}, where {options.host} cannot be listened on:"
                f" {reason}. Is the daemon running already, or another program there?"
            ) from error
    for one in sockets:
        # Connections inherit it. Else the body of an answer waits 40 ms for its headers to be
        # acknowledged: asyncio sets it only where the socket was made with the protocol's number.
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not sockets:
        raise ConfigError(f"web.host: has value {options.host!r}. This machine is not there.")
    return sockets
