"""New music in Plex, told by the server's own websocket, which needs no Plex Pass.

The server sends a timeline entry at each step of an item's way into the library: created, being
processed, processed, deleted [plexapi/alert.py]. An edit or a refresh sends "processed" too, ours
included, so only what was created before our eyes is new. It is passed on when it is processed, or
after `PATIENCE_SECONDS`: a library without a metadata agent never says so [plexapi/alert.py].

`NewItems` decides that and knows neither clock nor thread. `AlertListener` keeps the connection, in
a thread. What happens while there is none is for the periodic look at what was added last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import requests
import websocket

from reclass_plex.errors import printable
from service.hints import Hint, Kind, Sink, rating_key_of

log = logging.getLogger(__name__)

GROUP_SECONDS = 3.0  # between "processed" and the hint: several notices are one
PATIENCE_SECONDS = 120.0  # between "created" and the hint if "processed" never comes
MAX_PENDING = 10_000  # items; beyond, the oldest is passed on at once

TICK_SECONDS = 0.5
CONNECT_SECONDS = 2.0  # an address; `stop` waits for it
HANDSHAKE_SECONDS = 15.0  # a server that scans is slow to answer
PING_SECONDS = 20.0
SILENCE_SECONDS = 60.0  # without a frame, not even the answer to a ping: the connection is dead
HEALTHY_SECONDS = 30.0  # a connection that lasted so long was a good one
MAX_PAUSE_SECONDS = 300.0  # between attempts
SIGN_IN_SECONDS = 900.0  # between attempts with a token that was refused
MAX_MESSAGE = 16 << 20  # bytes

_KINDS: dict[str, Kind] = {"8": "artist", "9": "album", "10": "track"}
_LIBRARY = "com.plexapp.plugins.library"


@dataclass(frozen=True)
class TimelineEntry:
    """A step of an item's way into the library, or out of it."""

    rating_key: int
    kind: Kind
    state: Literal["created", "processed", "deleted"]


def parse(message: bytes | str) -> list[TimelineEntry]:
    """Return the steps of music that a message tells; none if it is about anything else."""
    try:
        data = json.loads(message.decode() if isinstance(message, bytes) else message)
        container = data["NotificationContainer"]
        entries = container["TimelineEntry"] if container["type"] == "timeline" else []
        found = [_parse_entry(entry) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return [entry for entry in found if entry is not None]


def _parse_entry(entry: dict[str, object]) -> TimelineEntry | None:
    kind = _KINDS.get(str(entry.get("type")))
    rating_key = rating_key_of(entry.get("itemID"))
    if kind is None or rating_key is None or entry.get("identifier", _LIBRARY) != _LIBRARY:
        return None
    match str(entry.get("state")), entry.get("metadataState"):
        case "0", "created":
            return TimelineEntry(rating_key, kind, "created")
        case "5", _:
            return TimelineEntry(rating_key, kind, "processed")
        case "9", _:
            return TimelineEntry(rating_key, kind, "deleted")
    return None


class NewItems:
    """Items that were created, until they are processed. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._pending: dict[int, tuple[Kind, float]] = {}  # and when it is due

    def __len__(self) -> int:
        return len(self._pending)

    def notice(self, entry: TimelineEntry, now: float) -> None:
        """Something happened to an item."""
        known = entry.rating_key in self._pending
        if entry.state == "deleted":
            self._pending.pop(entry.rating_key, None)
        elif entry.state == "created" and not known:
            self._pending[entry.rating_key] = entry.kind, now + PATIENCE_SECONDS
        elif entry.state == "processed" and known:
            self._pending[entry.rating_key] = entry.kind, now + GROUP_SECONDS

    def step(self, now: float) -> list[Hint]:
        """Return what is due, and of too many the oldest; the order is that of creation."""
        excess = len(self._pending) - MAX_PENDING
        due = [
            (rating_key, kind)
            for place, (rating_key, (kind, at)) in enumerate(self._pending.items())
            if at <= now or place < excess
        ]
        for rating_key, _ in due:
            del self._pending[rating_key]
        return [Hint(rating_key, kind) for rating_key, kind in due]


class AlertListener:
    """Listens to one server until it is stopped.

    `on_connect` is called after each connection: something may have been missed before it.
    `on_unauthorized` is called when the server refuses the token, which needs the user.
    Both, and `sink`, are called in the listener's thread and must not wait.
    """

    def __init__(
        self,
        url: str,
        token: str,
        sink: Sink,
        *,
        on_connect: Callable[[], object] = lambda: None,
        on_unauthorized: Callable[[], object] = lambda: None,
    ) -> None:
        self.problem: str | None = None  # why there is no connection
        self._url = url.rstrip("/") + "/:/websockets/notifications"
        self._token = token
        self._sink = sink
        self._on_connect = on_connect
        self._on_unauthorized = on_unauthorized
        self._new = NewItems()
        self._outgoing: list[Hint] = []
        self._next_step = 0.0
        self._connected = False
        self._stopping = threading.Event()
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # of _socket
        self._thread = threading.Thread(target=self._run, name="plex alerts", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether it hears the server now."""
        return self._connected

    def start(self) -> None:
        """Begin to listen, in a thread."""
        self._thread.start()

    def stop(self, timeout: float = 3.0) -> None:
        """End it. A thread that hangs in the look-up of a name is left behind."""
        self._stopping.set()
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def step(self, now: float) -> None:
        """Pass on what is due; an item leaves only after the sink has taken it."""
        self._next_step = now + TICK_SECONDS
        self._outgoing += self._new.step(now)
        while self._outgoing:
            self._sink(self._outgoing[0])
            del self._outgoing[0]

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            pause = None
            try:
                self._listen()
            except websocket.WebSocketBadStatusException as error:
                if error.status_code == requests.codes.unauthorized:
                    pause = SIGN_IN_SECONDS
                    self._say("the server refuses the token: sign in again")
                    self._on_unauthorized()
                else:
                    self._say(f"the server answers {error.status_code}")
            except (websocket.WebSocketException, OSError) as error:
                self._say(_reason(error))
            except Exception:
                log.exception("alerts of Plex failed")
                self.problem = "an error of ours; see the log"
            self._connected = False
            healthy = time.monotonic() - began >= HEALTHY_SECONDS
            failures = 1 if healthy else failures + 1
            self._pause(pause or pause_after(failures, random.random()))  # noqa: S311 - jitter

    def _say(self, problem: str) -> None:
        """Log why there is no connection, once."""
        if problem != self.problem and not self._stopping.is_set():
            log.warning("no alerts of Plex: %s; trying again", problem)
        self.problem = problem

    def _pause(self, seconds: float) -> None:
        """Wait, and pass on meanwhile."""
        end = time.monotonic() + seconds
        while not self._stopping.is_set() and (now := time.monotonic()) < end:
            try:
                self.step(now)
            except Exception:
                log.exception("a hint could not be passed on")
            self._stopping.wait(min(TICK_SECONDS, end - now))

    def _listen(self) -> None:
        """Connect, and hear until the connection ends. Raises OSError and WebSocketException."""
        connection = _Connection(skip_utf8_validation=True)  # garbage is for `parse`
        raw = _connect(self._url)
        with self._lock:
            self._socket = raw
        try:
            if self._stopping.is_set():
                return
            raw.settimeout(HANDSHAKE_SECONDS)
            connection.connect(  # type: ignore[no-untyped-call]
                "ws" + self._url.removeprefix("http"),
                header=[f"X-Plex-Token: {self._token}"],  # not in the address, which is logged
                timeout=HANDSHAKE_SECONDS,
                socket=raw,
                suppress_origin=True,
                redirect_limit=0,  # the token is for this server only
            )
            connection.settimeout(TICK_SECONDS)
            self._connected, self.problem = True, None
            log.info("listening to the alerts of Plex")
            self._on_connect()
            self._hear(connection)
        finally:
            with self._lock:
                self._socket = None
                raw.close()

    def _hear(self, connection: _Connection) -> None:
        heard = pinged = time.monotonic()
        while not self._stopping.is_set():
            try:
                opcode, message = connection.recv_data(control_frame=True)
            except websocket.WebSocketTimeoutException:
                now = time.monotonic()
                if now - heard > SILENCE_SECONDS:
                    raise websocket.WebSocketTimeoutException("no answer to our pings") from None
            else:
                now = heard = time.monotonic()
                connection.unfinished = 0
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    raise websocket.WebSocketConnectionClosedException("closed by the server")
                if opcode == websocket.ABNF.OPCODE_TEXT:
                    for entry in parse(message):
                        self._new.notice(entry, now)
            if now - pinged > PING_SECONDS:
                pinged = now
                connection.ping()
            if now >= self._next_step:
                self.step(now)


class _Connection(websocket.WebSocket):
    """A websocket whose messages are bounded."""

    unfinished = 0  # bytes since the last whole message

    def _recv(self, bufsize: int) -> bytes:
        data: bytes = super()._recv(bufsize)  # type: ignore[no-untyped-call]
        self.unfinished += len(data)
        if self.unfinished > MAX_MESSAGE:
            raise websocket.WebSocketPayloadException(f"a message of more than {MAX_MESSAGE} bytes")
        return data


def _connect(url: str) -> socket.socket:
    """Return a connection to the server of `url`, verified as requests would."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    context = _context(url) if secure else None
    plain = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    return plain if context is None else context.wrap_socket(plain, server_hostname=host)


def _context(url: str) -> ssl.SSLContext:
    """Trust what requests trusts: $REQUESTS_CA_BUNDLE, $CURL_CA_BUNDLE, else certifi's."""
    with requests.Session() as session:
        trusted = session.merge_environment_settings(url, {}, None, None, None)["verify"]
    where = Path(trusted if isinstance(trusted, str) else requests.utils.DEFAULT_CA_BUNDLE_PATH)
    if not where.exists():
        raise OSError(f"{printable(where)}: the trusted certificates are not there")
    if where.is_dir():
        return ssl.create_default_context(capath=where)
    return ssl.create_default_context(cafile=where)


def pause_after(failures: int, chance: float) -> float:
    """Return how long to wait, in seconds: 1, 2, 4 ... 300, less up to a half by `chance`."""
    longest = min(2.0 ** min(failures - 1, 16), MAX_PAUSE_SECONDS)
    return float(longest * (1 - chance / 2))


def _reason(error: Exception) -> str:
    """Say an error of the connection in one line; it never holds the token."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200].rstrip(".")
