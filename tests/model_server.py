"""A real HTTP server of models on 127.0.0.1, which can also fail in every way that networks know.

Three styles:
- hub: as huggingface_hub wants it. Large files are redirected to a storage of another address,
  whose signed links answer GET only; X-Repo-Commit, X-Linked-Size and X-Linked-Etag are told.
- plain: static files, as nginx serves them: Content-Length, Accept-Ranges, an ETag of its own.
- bare: no length, no ranges, no HEAD.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

_BLOCK = 1 << 14  # bytes sent at a time
_PATH = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Seen:
    """A request that came: on the hub or the storage, for which file, from which byte."""

    method: str
    place: Literal["hub", "storage"]
    file: str
    range: str | None
    token: str | None
    agent_encoding: str | None


@dataclass
class ModelServer:
    """Files by "repository/revision/name", and what goes wrong with them, by file name.

    The lists are used up from the front, one entry a GET; the other faults stay.
    """

    style: Literal["hub", "plain", "bare"] = "hub"
    files: dict[str, bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    # faults
    break_after: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    hang_after: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, int] = field(default_factory=dict)  # a status
    contents: dict[str, bytes] = field(default_factory=dict)  # sent instead of the right ones
    sizes: dict[str, int] = field(default_factory=dict)  # told, true or not
    no_ranges: bool = False
    wrong_ranges: list[int] = field(default_factory=list)  # sent from there instead
    retry_after: str | None = None
    hanging: threading.Event = field(default_factory=threading.Event)
    _end: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ModelServer:
        self._servers = [self._make("hub"), self._make("storage")]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.storage_url = f"http://127.0.0.1:{self._servers[1].server_port}"
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def add(self, repository: str, revision: str, name: str, content: bytes) -> None:
        """Publish a file."""
        self.files[f"{repository}/{revision}/{name}"] = content

    def got(self, name: str) -> list[str | None]:
        """Return the ranges of every GET of a file's contents, None for the whole."""
        places = ("storage",) if self._redirects(name) else ("hub",)
        return [
            one.range
            for one in self.seen
            if one.method == "GET" and one.file == name and one.place in places
        ]

    def _redirects(self, name: str) -> bool:
        return self.style == "hub" and not name.endswith((".json", ".txt"))

    def _make(self, place: Literal["hub", "storage"]) -> ThreadingHTTPServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                outer._answer(self, place)

            def do_GET(self) -> None:
                outer._answer(self, place)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = False  # joined by server_close
        return server

    def _answer(self, handler: BaseHTTPRequestHandler, place: Literal["hub", "storage"]) -> None:
        match = _PATH.fullmatch(unquote(handler.path.partition("?")[0]))
        key = "/".join(match.groups()) if match else ""
        name = key.rpartition("/")[2]
        head = handler.command == "HEAD"
        self.seen.append(
            Seen(
                handler.command,
                place,
                name,
                handler.headers.get("Range"),
                handler.headers.get("Authorization"),
                handler.headers.get("Accept-Encoding"),
            )
        )
        handler.close_connection = True
        if head and self.style == "bare":
            self._refuse(handler, 501)
        elif head and place == "storage":
            self._refuse(handler, 403)  # the link is signed for GET
        elif name in self.always:
            self._refuse(handler, self.always[name])
        elif not head and self.statuses[name]:
            self._refuse(handler, self.statuses[name].pop(0))
        elif key not in self.files:
            self._refuse(handler, 404)
        elif place == "hub" and self._redirects(name):
            self._redirect(handler, key, name)
        else:
            self._send(handler, key, name, head=head)

    def _refuse(self, handler: BaseHTTPRequestHandler, status: int) -> None:
        handler.send_response(status)
        if status == 404:
            handler.send_header("X-Error-Code", "EntryNotFound")
        if self.retry_after is not None:
            handler.send_header("Retry-After", self.retry_after)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _redirect(self, handler: BaseHTTPRequestHandler, key: str, name: str) -> None:
        content = self.files[key]
        handler.send_response(302)
        handler.send_header("Location", f"{self.storage_url}{handler.path}?signature=secret")
        handler.send_header("X-Repo-Commit", key.split("/")[2])
        handler.send_header("X-Linked-Size", str(self.sizes.get(name, len(content))))
        handler.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _send(self, handler: BaseHTTPRequestHandler, key: str, name: str, *, head: bool) -> None:
        content = self.contents.get(name, self.files[key])
        start = self._start(handler, len(content))
        if start > 0 and start >= len(content):
            self._refuse(handler, 416)
            return
        handler.send_response(206 if start else 200)
        if self.style == "hub" and not self._redirects(name):
            handler.send_header("X-Repo-Commit", key.split("/")[2])
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            handler.send_header("ETag", f'"{git}"')
        elif self.style == "plain":
            handler.send_header("ETag", f'"{len(content):x}-5e8b9c"')
        length = len(content) - start
        if self.style != "bare":
            handler.send_header("Content-Length", str(self.sizes.get(name, length)))
            handler.send_header("Accept-Ranges", "bytes")
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if not head:
            for block in self._blocks(name, content, start):
                try:
                    handler.wfile.write(block)
                    handler.wfile.flush()
                except OSError:  # the other side hung up, or was killed
                    return

    def _start(self, handler: BaseHTTPRequestHandler, size: int) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if asked is None or self.no_ranges or self.style == "bare":
            return 0
        return self.wrong_ranges.pop(0) if self.wrong_ranges else int(asked[1])

    def _blocks(self, name: str, content: bytes, start: int) -> Iterator[bytes]:
        stop, hang = len(content), False
        if self.break_after[name]:
            stop = self.break_after[name].pop(0)
        elif self.hang_after[name]:
            stop, hang = self.hang_after[name].pop(0), True
        for at in range(start, stop, _BLOCK):
            yield content[at : min(at + _BLOCK, stop)]
        if hang:
            self.hanging.set()
            self._end.wait(20)
