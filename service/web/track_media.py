"""What there is to hear and to see of a track: its file, and what a child process draws of it.

Only a regular file that lies below one of the music folders is opened, wherever links lead: what
was opened is asked where it really is, so that nothing can change in between.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from reclass_plex.errors import ReclassError, visible

Kind = Literal["spectrogram", "excerpt", "windows"]

MEDIA_TYPES = {
    ".aac": "audio/aac",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".mp4": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}
"""What browsers play, by suffix; everything else is played as the excerpt that a child decodes."""

CHILD_SECONDS = 90.0
WAIT_SECONDS = 30.0  # for another child to end
KEPT_BYTES = 4 << 20  # some 45 spectrograms: what a browser was given it keeps itself
_BLOCK = 256 << 10  # bytes read and sent at once


class NotServed(ReclassError):
    """The file of a track is not there, or lies in none of the music folders."""

    kind = "not-served"


class NotDrawn(ReclassError):
    """A child process could not make of a track what was asked for."""

    kind = "not-drawn"


class TrackMedia:
    """Opens tracks that lie below `roots`, and has things drawn of them, one at a time."""

    def __init__(self, roots: Callable[[], Sequence[Path]]) -> None:
        self._roots = roots
        self._one = threading.Semaphore(1)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    def open(self, path: Path) -> int:
        """Return a descriptor of the file. Raises NotServed."""
        try:
            # non-blocking: a fifo in its place holds nobody up
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise NotServed("the file is not there, or cannot be read") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotServed("this is no file")
            real = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not any(real.is_relative_to(root) for root in self._real_roots()):
                raise NotServed("the file lies in none of the watched folders and libraries")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def draw(self, path: Path, kind: Kind) -> bytes:
        """Return what a child process makes of a file. Raises NotServed and NotDrawn."""
        descriptor = self.open(path)
        try:
            status = os.fstat(descriptor)
            key = (kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            if not self._one.acquire(timeout=WAIT_SECONDS):
                raise NotDrawn("others are waiting for the same; try again in a minute")
            try:
                made = _run_child(kind, descriptor)
            finally:
                self._one.release()
        finally:
            os.close(descriptor)
        with self._lock:
            self._kept[key] = made
            while sum(map(len, self._kept.values())) > KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return made

    def _real_roots(self) -> list[Path]:
        found = []
        for root in self._roots():
            real = Path(os.path.realpath(root))
            if real != Path(
                "/"
            ):  # a mistake in the configuration is no reason to serve all there is
                found.append(real)
        return found


def _run_child(kind: Kind, descriptor: int) -> bytes:
    command = [sys.executable, "-m", "service.web.child", kind, str(descriptor)]
    try:
        done = subprocess.run(
            command,
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHILD_SECONDS,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise NotDrawn(f"it took more than {CHILD_SECONDS:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[-1] if said and done.returncode == 1 else "the process ended"
        raise NotDrawn(f"the file could not be decoded: {visible(why)[:300]}")
    return done.stdout


class FileAnswer(Response):
    """A file, or the one range of it that is asked for (RFC 9110). Closes the descriptor."""

    def __init__(self, request: Request, descriptor: int, media_type: str) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._start, self._end = 0, status.st_size
        etag = f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
        super().__init__(media_type=media_type)
        self.headers.update(
            {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "private, no-cache"}
        )
        wanted = request.headers.get("range")
        if wanted is not None and request.headers.get("if-range", etag) == etag:
            found = parse_range(wanted, status.st_size)
            if found is None:
                self.status_code = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                self.headers["Content-Range"] = f"bytes */{status.st_size}"
                self._end = 0
            elif found != (0, 0):
                self._start, self._end = found
                self.status_code = HTTPStatus.PARTIAL_CONTENT
                shown = f"bytes {self._start}-{self._end - 1}/{status.st_size}"
                self.headers["Content-Range"] = shown
        self.headers["Content-Length"] = str(self._end - self._start)
        self._only_head = request.method == "HEAD"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, block by block, as fast as the other side takes it."""
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            at = self._end if self._only_head else self._start
            while at < self._end:
                size = min(_BLOCK, self._end - at)
                block = await run_in_threadpool(os.pread, self._descriptor, size, at)
                if not block:  # it was cut short meanwhile; the length was promised
                    raise OSError("the file was cut short while it was sent")
                at += len(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(self._descriptor)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return start and end (exclusive) of a Range header, None if it cannot be satisfied.

    What is not understood, and several ranges, count as no range at all: (0, 0).
    """
    unit, _, ranges = text.partition("=")
    first, dash, last = ranges.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or len(ranges) > 60:
        return 0, 0
    if not all(part == "" or (part.isascii() and part.isdigit()) for part in (first, last)):
        return 0, 0
    if first == "":
        if last == "":
            return 0, 0
        length = min(int(last), size)
        return (size - length, size) if length else None
    start, end = int(first), int(last) + 1 if last else size
    if last and end <= start:
        return 0, 0
    return (start, min(end, size)) if start < size else None
