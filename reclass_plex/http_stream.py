"""Internet radio over http and https, as bytes of audio: one connection, read as it comes.

FFmpeg's own client neither checks certificates nor tells of titles here, and waits where nobody can
interrupt it; so the bytes are fetched by this one, which knows what stations speak: HTTP, the "ICY
200 OK" of old servers, redirects, .m3u and .pls files that name the stream, and ICY titles between
the audio (`Icy-MetaData: 1`: after each `icy-metaint` bytes a block of titles). Only http and https
are spoken, also where a redirect or a playlist leads to something else.
"""

from __future__ import annotations

import array
import base64
import fcntl
import re
import socket
import ssl
import sys
import termios
import time
from collections.abc import Callable
from importlib.metadata import version
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from reclass_plex.errors import StreamError, StreamLost, visible

CONNECT_SECONDS = 10.0
STALL_SECONDS = 10.0  # without a byte, after which the connection counts as lost
MAX_HOPS = 6  # redirects and playlists on the way
MAX_HEADER = 64 << 10  # bytes
MAX_PLAYLIST = 64 << 10  # bytes
MAX_TITLE = 300  # characters
_TICK = 0.2  # seconds between looks whether to stop
_BLOCK = 16 << 10  # bytes a read
_TITLE = re.compile(rb"StreamTitle='(.*?)';", re.DOTALL)
_ENTRY = re.compile(r"\s*(?:File\d+\s*=\s*)?([a-z][a-z0-9+.-]*://\S+)", re.IGNORECASE)
_PLAYLIST_TYPES = ("mpegurl", "scpls", "x-pls")
_FOR_GOOD = range(400, 500)  # statuses that mean: not at this address
_EXCEPT = frozenset((408, 425, 429))  # of them, those that pass


class Stopped(Exception):
    """It was asked to stop."""


class HttpStream:
    """An open stream. `title` is what the station says that it plays, None if it does not."""

    def __init__(self, url: str, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Connect. Raises StreamError for what will not work later either, StreamLost, Stopped."""
        self.title: str | None = None
        self._should_stop = should_stop
        self._socket: socket.socket | None = None
        self._until_title = 0
        for _ in range(MAX_HOPS):
            onward = self._connect(url)
            if onward is None:
                return
            self.close()
            url = onward
        raise StreamError(f"{shown(url)}: leads from one address to the next without an end")

    def read(self, size: int) -> bytes:
        """Return some bytes of audio, at most `size`; none when the station ends the stream.

        Raises StreamLost when nothing comes, Stopped.
        """
        if self._interval is None:
            return self._body(size)
        if self._until_title == 0:
            self._read_title()
            self._until_title = self._interval
        data = self._body(min(size, self._until_title))
        self._until_title -= len(data)
        return data

    def backlog(self) -> int:
        """Return how many bytes have arrived and were not read: what we are behind."""
        if self._socket is None:
            return 0
        waiting = array.array("i", [0])
        try:
            fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, waiting)
        except OSError:
            return len(self._buffer)
        return waiting[0] + len(self._buffer)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # One connection

    def _connect(self, url: str) -> str | None:
        """Open an address; return where it leads on, None if the audio begins here."""
        self._buffer = bytearray()
        self._chunk: int | None = None  # bytes left of a chunk; None: not in chunks
        self._interval: int | None = None  # bytes between titles
        self._until_title = 0
        where = _parse(url)
        name = shown(url)
        try:
            self._socket = _dial(where)
            self._socket.sendall(_request(where))
            self._socket.settimeout(_TICK)
            status, headers = self._read_header()
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise StreamError(
                f"{name}: its certificate is refused: {error.verify_message}"
            ) from None
        except OSError as error:
            self.close()
            reason = (error.strerror or str(error) or "no answer").lower()
            raise StreamLost(f"{name}: cannot be reached: {reason}") from None
        except (Stopped, StreamError):
            self.close()
            raise
        if 300 <= status < 400 and "location" in headers:
            try:
                return urljoin(url, headers["location"])
            except ValueError:
                self.close()
                raise StreamError(f"{name}: leads on to what is no address") from None
        if status != 200:
            self.close()
            gone = status in _FOR_GOOD and status not in _EXCEPT
            kind = StreamError if gone else StreamLost
            raise kind(f"{name}: answers with status {status}")
        self._chunk = 0 if headers.get("transfer-encoding", "").lower() == "chunked" else None
        kind_of = headers.get("content-type", "").lower()
        if any(word in kind_of for word in _PLAYLIST_TYPES) or re.search(
            r"\.(m3u8?|pls)$", where.path, re.IGNORECASE
        ):
            return self._read_playlist(url)
        interval = headers.get("icy-metaint", "")
        if interval.isdecimal() and 0 < int(interval) <= 1 << 24:
            self._interval = self._until_title = int(interval)
        return None

    def _read_header(self) -> tuple[int, dict[str, str]]:
        first = self._line()
        found = re.match(rb"(?:HTTP/1\.[01]|ICY) (\d{3})\b", first)
        if found is None:
            raise StreamError("it does not answer as a web server or radio station would")
        headers: dict[str, str] = {}
        total = len(first)
        while line := self._line():
            total += len(line)
            if total > MAX_HEADER:
                raise StreamError("its answer has no end")
            key, _, value = line.partition(b":")
            headers[key.decode("latin-1").strip().lower()] = _text(value.strip())
        return int(found[1]), headers

    def _read_playlist(self, url: str) -> str:
        text = bytearray()
        while len(text) < MAX_PLAYLIST and (data := self._body(_BLOCK)):
            text += data
        self.close()
        if b"#EXT-X-" in text:
            raise StreamError(
                f"{shown(url)}: is HLS, which lies ten seconds and more behind live; name the"
                " station's MP3, AAC or Ogg stream instead"
            )
        for line in text.decode("utf-8", "replace").splitlines():
            if found := _ENTRY.match(line):
                return found[1]
        raise StreamError(f"{shown(url)}: is a playlist that names no stream")

    def _read_title(self) -> None:
        length = self._exactly(1)[0] * 16
        found = _TITLE.search(self._exactly(length)) if length else None
        if found:
            self.title = visible(_text(found[1]))[:MAX_TITLE] or None

    # Bytes

    def _body(self, size: int) -> bytes:
        """Return some bytes of the body, out of its chunks if it comes in them."""
        if self._chunk is None:
            return self._some(size)
        if self._chunk == 0:
            line = self._line() or self._line()  # behind a chunk there is an empty line
            size_of = line.partition(b";")[0].strip()
            if re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size_of) is None:  # int() takes "-1", too
                raise StreamLost("its chunks are damaged")
            self._chunk = int(size_of, 16)
            if self._chunk == 0:
                return b""
        data = self._some(min(size, self._chunk))
        self._chunk -= len(data)
        return data

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            some = self._body(size - len(data))
            if not some:
                raise StreamLost("the station ended the stream")
            data += some
        return bytes(data)

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_HEADER:
                raise StreamError("its answer has no end")
            data = self._receive()
            if not data:
                raise StreamLost("the connection was closed before the answer")
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = bytearray(rest)
        return bytes(line.rstrip(b"\r"))

    def _some(self, size: int) -> bytes:
        if not self._buffer:
            self._buffer += self._receive()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _receive(self) -> bytes:
        until = time.monotonic() + STALL_SECONDS
        while True:
            if self._should_stop():
                raise Stopped
            if self._socket is None:
                raise StreamLost("the connection is closed")
            try:
                return self._socket.recv(_BLOCK)
            except (TimeoutError, ssl.SSLWantReadError):
                if time.monotonic() >= until:
                    raise StreamLost(f"nothing came for {STALL_SECONDS:g} s") from None
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise StreamLost(f"the connection broke: {reason}") from None


def shown(url: str) -> str:
    """Return an address as it may be printed: without passwords and keys."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return visible(f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}")[:MAX_TITLE]
    except ValueError:
        return "the address"


def _parse(url: str) -> SplitResult:
    try:
        where = urlsplit(url.strip())
        where.port  # noqa: B018 - raises for one that is none
    except ValueError:  # what it says, and the address, may show a part of a password
        raise StreamError(
            "this is no address of a stream: its port, or a bracket, is wrong; in a password write"
            " %2F for /, %23 for #, and %3F for ?"
        ) from None
    if where.scheme.lower() not in {"http", "https"}:
        raise StreamError(
            f"{shown(url)}: is {visible(where.scheme)[:20]}, and only http and https are spoken"
        )
    if not where.hostname:
        raise StreamError(f"{shown(url)}: names no host")
    return where


def _dial(where: SplitResult) -> socket.socket:
    secure = where.scheme.lower() == "https"
    host = where.hostname or ""
    try:
        port = where.port or (443 if secure else 80)
        plain = socket.create_connection((host, port), CONNECT_SECONDS)
    except UnicodeError:
        raise StreamError(f"{shown(where.geturl())}: names no host") from None
    if not secure:
        return plain
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def _request(where: SplitResult) -> bytes:
    path = quote(where.path or "/", safe="/%:@!$&'()*+,;=~")
    if where.query:
        path += "?" + quote(where.query, safe="/%:@!$&'()*+,;=~?")
    host = where.hostname or ""
    host = f"[{host}]" if ":" in host else host.encode("idna").decode()
    port = f":{where.port}" if where.port else ""
    lines = [
        f"GET {path} HTTP/1.0",
        f"Host: {host}{port}",
        f"User-Agent: reclass-plex/{version('reclass-plex')} (Python {sys.version_info[0]})",
        "Accept: */*",
        "Icy-MetaData: 1",
        "Connection: close",
    ]
    if where.username is not None:
        secret = f"{unquote(where.username)}:{unquote(where.password or '')}".encode()
        lines.append(f"Authorization: Basic {base64.b64encode(secret).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
