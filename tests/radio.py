"""A radio station for the tests: a real HTTP server that sends demo music in real time, for ever.

It breaks off, stands still and sends rubbish when it is told to, and notes when it sent which
second of audio.
"""

from __future__ import annotations

import bisect
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import av

ICY_INTERVAL = 4096


class Station:
    """What is sent: `pieces` of (seconds, bytes), again and again.

    `mode`: play, break (close after `limit` seconds), stall, rubbish, or a status to refuse with.
    """

    def __init__(self, pieces: list[tuple[float, bytes]], head: bytes, kind: str) -> None:
        self.pieces = pieces
        self.head = head
        self.kind = kind
        self.mode = "play"
        self.limit = 1e9
        self.speed = 1.0
        self.icy = True
        self.chunked = False
        self.first_line = "HTTP/1.0 200 OK"
        self.titles: list[tuple[float, str]] = [(0.0, "First")]
        self.sent_at: list[float] = []  # seconds of audio, and
        self.sent_when: list[float] = []  # when they had been sent
        self.connections = 0
        self.requests: list[str] = []
        self.redirects: dict[str, str] = {}
        self.playlists: dict[str, tuple[str, bytes]] = {}
        self.closing = threading.Event()

    def delay(self, at: float, now: float) -> float:
        """Return how long after it was sent a second of audio is known at `now`."""
        return (
            now - self.sent_when[min(bisect.bisect_left(self.sent_at, at), len(self.sent_at) - 1)]
        )

    @contextmanager
    def on_air(self) -> Iterator[str]:
        """Serve; yield the address."""
        station = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    station.serve(self.request)
                except OSError:
                    return

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        with Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                self.closing.set()
                server.shutdown()
                thread.join()

    def serve(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        self.requests.append(request.decode())
        path = request.split()[1].decode()
        if path in self.redirects:
            connection.sendall(
                f"HTTP/1.0 302 Found\r\nLocation: {self.redirects[path]}\r\n\r\n".encode()
            )
            return
        if path in self.playlists:
            kind, body = self.playlists[path]
            connection.sendall(f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode() + body)
            return
        if self.mode.isdigit():
            connection.sendall(f"HTTP/1.0 {self.mode} No\r\n\r\n".encode())
            return
        self.connections += 1
        headers = [self.first_line, f"Content-Type: {self.kind}", "icy-name: Test\x1b[31m Radio"]
        if self.icy:
            headers.append(f"icy-metaint: {ICY_INTERVAL}")
        if self.chunked:
            headers.append("Transfer-Encoding: chunked")
        connection.sendall(("\r\n".join(headers) + "\r\n\r\n").encode())
        out = _Out(self, connection)
        if self.mode == "rubbish":
            generator = random.Random(1)
            while not self.closing.is_set():
                out.send(generator.randbytes(8192), 0.0)
                time.sleep(0.001)
            return
        began, at = time.monotonic(), 0.0
        out.send(self.head, at)
        while not self.closing.is_set():
            for seconds, data in self.pieces:
                out.send(data, at)
                at += seconds
                self.sent_at.append(at)
                self.sent_when.append(time.time())
                if at >= self.limit:
                    if self.mode == "stall":
                        self.closing.wait(60)
                    return
                pause = began + at / self.speed - time.monotonic()
                if pause > 0 and self.closing.wait(pause):
                    return


class _Out:
    """Sends bytes, with titles between them and in chunks if the station does that."""

    def __init__(self, station: Station, connection: socket.socket) -> None:
        self._station = station
        self._connection = connection
        self._left = ICY_INTERVAL
        self._said = ""

    def send(self, data: bytes, at: float) -> None:
        if not self._station.icy:
            self._raw(data)
            return
        while data:
            part, data = data[: self._left], data[self._left :]
            self._raw(part)
            self._left -= len(part)
            if not self._left:
                self._left = ICY_INTERVAL
                self._raw(self._title(at))

    def _title(self, at: float) -> bytes:
        title = [name for since, name in self._station.titles if since <= at][-1]
        if title == self._said:
            return b"\0"
        self._said = title
        text = f"StreamTitle='{title}';StreamUrl='';".encode()
        blocks = -(-len(text) // 16)
        return bytes([blocks]) + text.ljust(16 * blocks, b"\0")

    def _raw(self, data: bytes) -> None:
        if data and self._station.chunked:
            data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
        self._connection.sendall(data)


def make_station(paths: list[Path], kind: str, seconds: float = 24.0) -> Station:
    """Return a station that plays the beginnings of some files, as mp3, aac or ogg."""
    muxer, encoder, mime = {
        "mp3": ("mp3", "libmp3lame", "audio/mpeg"),
        "aac": ("adts", "aac", "audio/aac"),
        "ogg": ("ogg", "libopus", "application/ogg"),
    }[kind]
    pieces: list[tuple[float, bytes]] = []
    sink = _Sink()
    options: dict[str, Any] = {"mp3": {"id3v2_version": "0", "write_xing": "0"}}.get(kind, {})
    options |= {"page_duration": "200000"} if kind == "ogg" else {}
    with av.open(sink, "w", format=muxer, container_options=options) as out:
        stream = out.add_stream(encoder, rate=48000)
        stream.layout = "stereo"
        stream.bit_rate = 96000
        head = b""
        written, pts = 0.0, 0
        for path in paths:
            heard = 0
            resampler = av.AudioResampler("fltp" if kind != "ogg" else "flt", "stereo", 48000)
            with av.open(str(path)) as source:
                for frame in source.decode(audio=0):
                    for part in resampler.resample(frame):
                        part.pts = pts
                        pts += part.samples
                        heard += part.samples
                        for packet in stream.encode(part):
                            out.mux(packet)
                    at = pts / 48000
                    if sink.size and at - written >= 0.1:
                        pieces.append((at - written, sink.take()))
                        written = at
                    if heard >= seconds * 48000:
                        break
    return Station(pieces, head, mime)


class _Sink(BytesIO):
    @property
    def size(self) -> int:
        return len(self.getbuffer())

    def take(self) -> bytes:
        data = self.getvalue()
        super().seek(0)
        self.truncate()
        return data

    def seekable(self) -> bool:
        return False
