"""One file over HTTP: asked for, resumed where it broke off, tried again with patience.

Any server of static files will do. What is received is only bytes: the caller checks their digest.

Proxies ($https_proxy, ...), $REQUESTS_CA_BUNDLE and ~/.netrc are honoured, by requests.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from reclass_plex.errors import NoSpace, ReadOnly, ReclassError, visible

log = logging.getLogger(__name__)

T = TypeVar("T")

_BLOCK = 1 << 14  # bytes written at a time: what came of a block when a connection breaks is lost
_REDIRECTS = 10
_BUSY = frozenset({408, 429, 500, 502, 503, 504})  # the same request may work later
_NO_HEAD = frozenset({405, 501})  # a server that knows GET alone
_LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Patience:
    """How long to try. The wait doubles after each failure; progress starts the count anew."""

    failures: int = 5  # without a byte between them
    first_wait: float = 1.0  # seconds
    connect_seconds: float = 10.0
    read_seconds: float = 30.0  # of silence

    @property
    def timeout(self) -> tuple[float, float]:
        """The limits as requests wants them."""
        return self.connect_seconds, self.read_seconds


@dataclass(frozen=True)
class Remote:
    """What a server says of a file before it sends it; None where it does not say."""

    url: str
    size: int | None
    sha256: str | None


class _TryAgain(Exception):
    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds, at least


@dataclass(frozen=True)
class Wording:
    """How a transfer speaks to people: the error it raises, and what else there is to do.

    `instead` are sentences for a server that is not reached; `meanings` says what a status means
    there.
    """

    error: type[ReclassError]
    instead: str
    meanings: Mapping[int, str]


class Transfer:
    """Files from one place: a server, or a folder on it. `name` is what people call the place."""

    def __init__(
        self,
        name: str,
        wording: Wording,
        patience: Patience | None = None,
        auth: AuthBase | None = None,
    ) -> None:
        self.name = name
        self._wording = wording
        self._patience = patience or Patience()
        self._session = requests.Session()
        self._session.auth = auth
        # Sizes and ranges are of the file as it is, so it must not be compressed on the way.
        self._session.headers["Accept-Encoding"] = "identity"

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def ask(self, url: str) -> Remote:
        """Ask for a file's size and digest. Raises the wording's error if it cannot be had."""
        return self._persist(lambda: self._head(url), lambda: 0)

    def fetch(
        self, remote: Remote, part: Path, *, limit: int, on_bytes: Callable[[int], None]
    ) -> None:
        """Fetch a file to `part`, going on after what is there already.

        `limit` is the most bytes to take where the size is not known. `on_bytes` is told how many
        there are. Raises the wording's error if the server has something else, or is not reached in
        the end (`part` then stays for the next call); NoSpace or ReadOnly if it cannot be written.
        """

        def transfer() -> None:
            try:
                self._transfer(remote, part, limit, on_bytes)
            except requests.RequestException:
                raise
            except OSError as error:
                kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else ReadOnly
                raise kind(part, f"cannot be written: {error.strerror}") from error

        self._persist(transfer, lambda: part.stat().st_size if part.exists() else 0)

    def _persist(self, attempt: Callable[[], T], progress: Callable[[], int]) -> T:
        """Try until it works, or nothing came of several tries in a row."""
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except _TryAgain as error:
                reason, wait = str(error), error.wait
            except requests.exceptions.SSLError as error:
                raise self._wording.error(
                    f"{self.name}: no safe connection: {_cause(error)}"
                ) from error
            except (requests.ConnectionError, requests.Timeout) as error:
                reason, wait = _cause(error), 0.0
            except requests.exceptions.ChunkedEncodingError:
                reason, wait = "the connection broke off", 0.0
            except requests.RequestException as error:
                raise self._wording.error(f"{self.name}: {_cause(error)}") from error
            except ValueError as error:  # of urllib, when a redirect leads to "http://[::1"
                raise self._wording.error(
                    f"{self.name}: redirects to what is no address ({error})"
                ) from error
            failures = failures + 1 if progress() <= before else 0
            if failures >= self._patience.failures:
                raise self._wording.error(
                    f"{self.name} cannot be reached: {reason}. Try again later: what is there"
                    f" already is kept. {self._wording.instead}"
                )
            wait = max(wait, self._patience.first_wait * 2 ** max(failures - 1, 0))
            log.info("%s: %s; trying again in %.0f s", self.name, reason, wait)
            time.sleep(min(wait, _LONGEST_WAIT))

    def _head(self, url: str) -> Remote:
        """Follow redirects until one says what the file is: storage behind it need not answer."""
        at = url
        for _ in range(_REDIRECTS):
            # To another host no login goes along, as with the redirects that requests follows.
            foreign = urlsplit(at)[:2] != urlsplit(url)[:2]
            answer = self._session.head(
                at,
                allow_redirects=False,
                timeout=self._patience.timeout,
                auth=(lambda request: request) if foreign else None,
            )
            said = answer.headers.get("X-Linked-Size")
            if said is None and answer.is_redirect:
                at = urljoin(at, answer.headers["Location"])
                continue
            if (foreign and not answer.ok) or answer.status_code in _NO_HEAD:
                return Remote(url, None, None)
            if not answer.is_redirect:
                self._check(answer, url)
                if "Content-Encoding" not in answer.headers:
                    said = said or answer.headers.get("Content-Length")
            tag = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag") or ""
            tag = tag.removeprefix("W/").strip('"').lower()
            return Remote(
                url,
                int(said) if said is not None and said.isdecimal() else None,
                tag if _SHA256.fullmatch(tag) else None,
            )
        raise self._wording.error(f"{self._shown(url)}: is redirected without end")

    def _transfer(
        self, remote: Remote, part: Path, limit: int, on_bytes: Callable[[int], None]
    ) -> None:
        start = part.stat().st_size if part.exists() else 0
        if remote.size is not None and start > remote.size:
            part.unlink()
            start = 0
        on_bytes(start)
        if remote.size is not None and start == remote.size:
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._session.get(
            remote.url, stream=True, headers=headers, timeout=self._patience.timeout
        ) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink(missing_ok=True)  # there is less than we have: it is another file
                raise _TryAgain("the file there is shorter than the part here")
            self._check(answer, remote.url)
            if answer.status_code != requests.codes.partial_content:
                start = 0  # it sends all from the beginning
            elif not _begins_at(start, answer):
                part.unlink(missing_ok=True)
                raise _TryAgain("the server sent another part of the file than asked for")
            length = answer.headers.get("Content-Length", "")
            told = length.isdecimal() and "Content-Encoding" not in answer.headers
            whole = start + int(length) if told else None
            if None not in (whole, remote.size) and whole != remote.size:
                raise self._wording.error(
                    f"{self._shown(remote.url)}: the server sends a file of {whole:,} bytes, where"
                    f" {remote.size:,} are due: it is not the file that was published"
                )
            most = limit if remote.size is None else remote.size
            if whole is not None and whole > most:
                raise self._wording.error(self._too_much(remote.url, most))
            with part.open("ab" if start else "wb") as file:
                for block in answer.iter_content(_BLOCK):
                    file.write(block)
                    start += len(block)
                    on_bytes(start)
                    if start > most:
                        file.truncate(0)
                        raise self._wording.error(self._too_much(remote.url, most))
                file.flush()
                os.fsync(file.fileno())
        due = whole if remote.size is None else remote.size
        if due is not None and start < due:
            raise _TryAgain("the connection broke off")

    def _check(self, answer: requests.Response, url: str) -> None:
        """Raise what a status other than success means."""
        if answer.ok:
            return
        status = answer.status_code
        if status in _BUSY:
            asked = answer.headers.get("Retry-After", "")
            raise _TryAgain(
                f"status {status} ({answer.reason})", float(asked) if asked.isdecimal() else 0.0
            )
        meaning = self._wording.meanings.get(status, visible(str(answer.reason)))
        raise self._wording.error(f"{self._shown(url)}: status {status}: {meaning}")

    def _too_much(self, url: str, most: int) -> str:
        return f"{self._shown(url)}: the server sends more than the {most:,} bytes that are due"

    @staticmethod
    def _shown(url: str) -> str:
        return visible(without_login(url.partition("?")[0]))  # behind it: signatures


def _begins_at(start: int, answer: requests.Response) -> bool:
    said = _RANGE.match(answer.headers.get("Content-Range", ""))
    return said is not None and int(said[1]) == start


def without_login(url: str) -> str:
    """Return an address without the name and password that may stand in it."""
    return re.sub(r"(?<=//)[^/@]*@", "", url)


def _cause(error: BaseException) -> str:
    """Return the system's own words: requests wraps them three times, addresses and all."""
    inner: BaseException | None = error
    found = ""
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            found = inner.strerror
        elif isinstance(inner, TimeoutError | requests.Timeout):
            found = found or "no answer in time"
        inner = inner.__cause__ or inner.__context__
    return found or type(error).__name__
