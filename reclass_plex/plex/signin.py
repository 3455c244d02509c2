"""Signing in at plex.tv with a code, and finding the servers of the account.

The account's services are asked here only, and only when the user signs in: the daemon talks to
the server alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.etree.ElementTree import ParseError

import requests
from plexapi import BASE_HEADERS
from plexapi.exceptions import BadRequest
from plexapi.myplex import MyPlexPinLogin
from plexapi.utils import parseXMLString

from reclass_plex.errors import PlexUnauthorized, PlexUnreachable

PLEX_TV = "https://plex.tv"
LINK = "https://plex.tv/link"  # where the user types the code
PATIENCE_SECONDS = 600.0  # plex.tv forgets a code after 15 minutes
POLL_SECONDS = 2.0
REQUEST_SECONDS = 10.0
PROBE_SECONDS = 3.0  # an address of another network does not answer at all
MAX_FAILURES = 5  # answers in a row that make no sense, or do not come
_PRODUCT = {"X-Plex-Product": "reclass-plex", "X-Plex-Device-Name": "reclass-plex"}


@dataclass(frozen=True)
class AccountServer:
    """A Plex server of the account; `addresses` are those it said of itself, the nearest first."""

    name: str
    uuid: str
    addresses: tuple[str, ...]
    token: str = field(repr=False)


def sign_in(
    show: Callable[[str, str], object],
    *,
    plex_tv: str = PLEX_TV,
    patience_seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> str:
    """Return the account's token, once the user has typed the code at plex.tv.

    `show` is called with that address and the code. Raises PlexUnauthorized if that did not
    happen in time, PlexUnreachable if plex.tv is not reached.
    """
    with requests.Session() as session:
        login = MyPlexPinLogin(  # type: ignore[no-untyped-call]
            session, requestTimeout=REQUEST_SECONDS, headers=_PRODUCT
        )
        login.PINS = f"{plex_tv}/api/v2/pins"
        try:
            code = login.pin
        except (requests.RequestException, BadRequest, ParseError, TypeError) as error:
            # TypeError: plexapi stumbles over a status without a name (Cloudflare's 52x)
            raise PlexUnreachable(_failure(plex_tv, error)) from None
        if not code:
            raise PlexUnreachable(f"{plex_tv}: gave no code to sign in with; try again later")
        show(LINK, str(code))
        end = time.monotonic() + patience_seconds
        failures = 0
        while time.monotonic() < end:
            if login.checkLogin():  # type: ignore[no-untyped-call]
                return str(login.token)
            failures = failures + 1 if login.expired else 0
            login.expired = False  # plexapi says so of one lost request, too
            if failures == MAX_FAILURES:
                text = f"{plex_tv}: the code has expired, or the connection is lost; try again"
                raise PlexUnauthorized(text)
            time.sleep(max(0.0, min(poll_seconds, end - time.monotonic())))
    raise PlexUnauthorized(
        f"nobody typed the code {code} at {LINK} within {patience_seconds / 60:.0f} minutes;"
        " try again"
    )


def list_servers(token: str, *, plex_tv: str = PLEX_TV) -> tuple[AccountServer, ...]:
    """Return the servers that the account owns: only its owner may edit a server's genres.

    Raises PlexUnauthorized or PlexUnreachable.
    """
    headers = {**BASE_HEADERS, **_PRODUCT, "X-Plex-Token": token, "Accept": "application/xml"}
    url = f"{plex_tv}/api/v2/resources?includeHttps=1&includeIPv6=1"
    try:
        # No redirects: the token is for plex.tv alone.
        answer = requests.get(url, headers=headers, timeout=REQUEST_SECONDS, allow_redirects=False)
        if answer.status_code in (401, 403, 422):  # 422: a token that cannot be one
            raise PlexUnauthorized(f"{plex_tv}: the token is not accepted; sign in again")
        if answer.status_code != 200:
            raise PlexUnreachable(f"{plex_tv}: is in trouble ({answer.status_code}); try later")
        resources = parseXMLString(answer.text)
    except (requests.RequestException, ParseError) as error:
        raise PlexUnreachable(_failure(plex_tv, error)) from None
    servers = []
    for resource in () if resources is None else resources.iter("resource"):
        provides = resource.get("provides", "").split(",")
        if "server" not in provides or resource.get("owned") != "1":
            continue
        addresses = []
        for one in resource.iter("connection"):
            if one.get("relay") == "1":  # slow, by way of plex.tv
                continue
            near = one.get("local") == "1"
            if near and resource.get("httpsRequired") != "1":
                # Without TLS first: its name needs the Internet to be looked up, and changes.
                host = one.get("address", "")
                host = f"[{host}]" if ":" in host else host
                addresses.append((0, f"http://{host}:{one.get('port', '32400')}"))
            addresses.append((1 if near else 2, one.get("uri", "")))
        addresses.sort(key=lambda address: address[0])  # stable: else in plex.tv's order
        servers.append(
            AccountServer(
                name=resource.get("name", ""),
                uuid=resource.get("clientIdentifier", ""),
                addresses=tuple(dict.fromkeys(url for _, url in addresses if url)),
                token=resource.get("accessToken") or token,
            )
        )
    return tuple(servers)


def find_address(server: AccountServer, *, timeout_seconds: float = PROBE_SECONDS) -> str | None:
    """Return the first of a server's addresses at which just this server answers.

    The token is not sent: behind an old address may be another machine by now.
    """
    for address in server.addresses:
        try:
            answer = requests.get(f"{address}/identity", timeout=timeout_seconds)
        except requests.RequestException:
            continue
        found = re.search(r'machineIdentifier="([^"]+)"', answer.text)
        if found is not None and found[1] == server.uuid:
            return address
    return None


def _failure(url: str, error: Exception) -> str:
    """Say why there was no answer, without the objects' addresses that requests puts into it."""
    if isinstance(error, requests.Timeout):
        return f"{url}: no answer in time"
    found = re.search(r"\[Errno -?\d+\] [^'\")]+", str(error))
    return f"{url}: {found[0] if found else error}"
