"""A connection to a Plex server: what it has, page by page. The only importer of plexapi.

Answers are read here as XML and not as plexapi's objects: those ask the server again, one request
each, whenever an attribute that is read is empty (a track without genres), and a listing of them
keeps every element in memory. Listings show only the first genres of an item and no locks
[python-plexapi issue 249], so that genres and locks are always read from /library/metadata.

Nothing is retried here, that is the caller's: PlexUnreachable may work later, PlexUnauthorized
needs the user, any other PlexError will come again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote
from xml.etree.ElementTree import Element, ParseError

import requests
from plexapi.exceptions import BadRequest, NotFound, Unauthorized
from plexapi.server import PlexServer

from reclass_plex.batches import cut
from reclass_plex.config import PlexOptions
from reclass_plex.errors import ConfigError, PlexError, PlexUnauthorized, PlexUnreachable
from reclass_plex.plex.answers import read_item, read_library, read_setting, read_track
from reclass_plex.plex.connections import Connections
from reclass_plex.plex.paths import to_local
from reclass_plex.plex.records import Field, Kind, MusicLibrary, PlexItem, PlexTrack

T = TypeVar("T")

TYPE_NUMBERS: dict[Kind, int] = {"artist": 8, "album": 9, "track": 10}  # plexapi.utils.SEARCHTYPES
TRACK_GENRES_SINCE = (1, 40, 0)  # server version [python-plexapi pull request 1318]
CONNECT_SECONDS = 3.05  # for a connection to be made: a bit more than one lost packet costs TCP
LIST_PAGE = 1000  # tracks of one answer
RECENT_PAGE = 200  # tracks of one answer; usually few are new
READ_CHUNK = 400  # items of one answer with all details: 400 keys are 3 kB of address
_SIGN_IN = "sign in again with reclass-plex init"
_DETAILS = "excludeElements=Media&excludeFields=summary,tagline&skipRefresh=1"


class _Gone(PlexError):
    """There is no such item; internal, because only the caller knows whether that is an error."""


class Plex:
    """A connection to a Plex server. Not for several threads at once; close it after use.

    With `connections` another thread can break off what it waits for (PlexUnreachable). Raises
    ConfigError without an address, PlexUnauthorized, PlexUnreachable or PlexError, as do all
    methods.
    """

    def __init__(
        self, options: PlexOptions, token: str, connections: Connections | None = None
    ) -> None:
        if options.url is None:
            raise ConfigError("plex.url: is not set. It must be the server's address.")
        self.options = options
        self.url = options.url.rstrip("/")
        token = token.strip()
        if not re.fullmatch(r"[!-~]+", token):  # without one plexapi looks in its own files
            raise PlexUnauthorized(f"{self.url}: there is no token, or it is none; {_SIGN_IN}")
        self._connections = connections or Connections()
        self._session = self._connections.open_session()
        limits = min(CONNECT_SECONDS, options.timeout_seconds), options.timeout_seconds
        try:
            with _named_errors(self.url):
                self._server = PlexServer(  # type: ignore[no-untyped-call]
                    self.url, token, self._session, limits
                )
            self.uuid = str(getattr(self._server, "machineIdentifier", None) or "")
            if not self.uuid:
                raise PlexUnreachable(f"{self.url}: something answers there, but it is not Plex")
        except BaseException:
            self._session.close()
            raise
        self.name = str(self._server.friendlyName)
        self.version = str(self._server.version)

    def close(self) -> None:
        """Drop the connection."""
        self._session.close()

    def __enter__(self) -> Plex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def has_track_genres(self) -> bool:
        """Say whether the server's version knows genres of tracks."""
        return parse_version(self.version) >= TRACK_GENRES_SINCE

    def list_libraries(self) -> tuple[MusicLibrary, ...]:
        """Return the music libraries that the options name, or all of them."""
        named = {title.casefold() for title in self.options.libraries}
        return tuple(
            read_library(one)
            for one in self._query("/library/sections")
            if one.get("type") == "artist"
            and (not named or one.get("title", "").casefold() in named)
        )

    def list_settings(self, library_key: int) -> Iterator[tuple[str, str]]:
        """Yield name and value of each setting of a library, in words."""
        yield from map(read_setting, self._query(f"/library/sections/{library_key}/prefs"))

    def list_tracks(self, library_key: int) -> Iterator[PlexTrack]:
        """Yield all tracks of a library, oldest first, with one request for LIST_PAGE of them.

        A track that is deleted meanwhile may hide another; the next listing has it.
        """
        return self._list(library_key, "track.id:asc", LIST_PAGE)

    def recently_added(self, library_key: int, since: float) -> Iterator[PlexTrack]:
        """Yield the tracks that were added at `since` or later, the newest first."""
        seen = set()  # what is added between two pages moves tracks on into the next
        for track in self._list(library_key, "track.addedAt:desc", RECENT_PAGE):
            if track.added_at < int(since):
                return
            if track.rating_key not in seen:
                seen.add(track.rating_key)
                yield track

    def expand(self, rating_keys: Collection[int]) -> Iterator[PlexTrack]:
        """Yield the tracks that are, or are below, these artists, albums and tracks; each once.

        What is gone, or is no music, is left out.
        """
        seen = set()
        for element in self._read(rating_keys, "skipRefresh=1"):
            path = f"/library/metadata/{element.get('ratingKey')}"
            kind = element.get("type")
            found: Iterable[Element] = ()
            if kind == "track":
                found = (element,)
            elif kind == "artist":
                found = self._existing(f"{path}/allLeaves")
            elif kind == "album" and int(element.get("parentRatingKey", 0)) not in rating_keys:
                found = self._existing(f"{path}/children")
            for track in map(read_track, found):
                if track.rating_key not in seen:
                    seen.add(track.rating_key)
                    yield track

    def read_items(self, rating_keys: Collection[int]) -> dict[int, PlexItem]:
        """Return genres, moods, styles and locks by rating key; what is gone is left out."""
        items = (read_item(element) for element in self._read(rating_keys, _DETAILS))
        return {item.rating_key: item for item in items if item is not None}

    def edit_tags(
        self,
        library_key: int,
        kind: Kind,
        rating_keys: Iterable[int],
        field: Field,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        locked: bool,
    ) -> None:
        """Add and remove tags of items of one library and kind, and set the field's lock.

        One request, that of plexapi's saveMultiEdits. What is to be removed is encoded twice,
        because the server splits it at commas after the first decoding.
        """
        keys = ",".join(map(str, rating_keys))
        arguments = [f"type={TYPE_NUMBERS[kind]}", f"id={quote(keys, safe='')}"]
        arguments += [
            f"{field}[{number}].tag.tag={quote(tag, safe='')}" for number, tag in enumerate(add)
        ]
        if removals := ",".join(quote(tag) for tag in remove):
            arguments.append(f"{field}[].tag.tag-={quote(removals, safe='')}")
        arguments.append(f"{field}.locked={int(locked)}")
        path = f"/library/sections/{library_key}/all?{'&'.join(arguments)}"
        self._query(path, method=self._session.put)

    def list_playlists(self) -> Iterator[Element]:
        """Yield the account's playlists of music, as the server describes them."""
        yield from self._pages("/playlists?playlistType=audio", LIST_PAGE)

    def playlist_entries(self, key: int) -> list[tuple[int, int]]:
        """Return the entries of a playlist in order: the entry's id, and its track's key."""
        return [
            (int(one.get("playlistItemID", 0)), int(one.get("ratingKey", 0)))
            for one in self._pages(f"/playlists/{key}/items", LIST_PAGE)
        ]

    def create_playlist(self, title: str, rating_keys: Iterable[int]) -> int:
        """Make a playlist of tracks, and return its key."""
        uri = quote(self._uri_of(rating_keys), safe="")
        path = f"/playlists?uri={uri}&type=audio&title={quote(title, safe='')}&smart=0"
        for made in self._query(path, method=self._session.post):
            return int(made.get("ratingKey", 0))
        raise PlexError(f"{self.url}: no playlist was made, and no reason given")

    def add_to_playlist(self, key: int, rating_keys: Iterable[int]) -> None:
        """Add tracks at the end of a playlist."""
        uri = quote(self._uri_of(rating_keys), safe="")
        self._query(f"/playlists/{key}/items?uri={uri}", method=self._session.put)

    def remove_from_playlist(self, key: int, entry: int) -> None:
        """Take one entry out of a playlist; it may be gone already."""
        with suppress(_Gone):
            self._query(f"/playlists/{key}/items/{entry}", method=self._session.delete)

    def _uri_of(self, rating_keys: Iterable[int]) -> str:
        keys = ",".join(map(str, rating_keys))
        return f"server://{self.uuid}/com.plexapp.plugins.library/library/metadata/{keys}"

    def _list(self, library_key: int, sort: str, size: int) -> Iterator[PlexTrack]:
        path = f"/library/sections/{library_key}/all?type=10&sort={quote(sort, safe='')}"
        for element in self._pages(path, size):
            yield read_track(element)

    def _read(self, rating_keys: Collection[int], parameters: str) -> Iterator[Element]:
        """Yield the items that exist, with all details, READ_CHUNK of them a request."""
        for chunk in cut(dict.fromkeys(rating_keys), READ_CHUNK):
            yield from self._existing(f"/library/metadata/{','.join(map(str, chunk))}?{parameters}")

    def _existing(self, path: str) -> list[Element]:
        """Return the items of a listing; none if what the path names is gone."""
        try:
            return list(self._pages(path, LIST_PAGE))
        except _Gone:  # of several, those that are gone are only left out
            return []

    def _pages(self, path: str, size: int) -> Iterator[Element]:
        """Yield the items of a listing, asking for `size` at a time."""
        start = 0
        while True:
            page = {"X-Plex-Container-Start": str(start), "X-Plex-Container-Size": str(size)}
            container = self._query(path, headers=page)
            elements = [one for one in container if one.get("ratingKey")]
            for element in elements:
                if "librarySectionID" not in element.attrib:  # a listing says it once for all
                    element.set("librarySectionID", container.get("librarySectionID", "0"))
                yield element
            start += len(elements)
            total = int(container.get("totalSize") or container.get("size") or 0)
            if start >= total:
                return
            if not elements:
                raise PlexUnreachable(f"{self.url}{path}: ended after {start} of {total} items")

    def _query(
        self,
        path: str,
        *,
        method: Callable[..., requests.Response] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Element:
        """Send one request, with the time limit of the options, and return the answer's XML."""
        if self._connections.broken:
            raise PlexUnreachable(f"{self.url}: the connection was broken off")
        with _named_errors(self.url):
            answer: Element | None = self._server.query(  # type: ignore[no-untyped-call]
                path, method=method, headers=headers
            )
        if answer is None and method is not None:  # an edit has an empty answer
            return Element("MediaContainer")
        if answer is None or answer.tag != "MediaContainer":
            raise PlexUnreachable(f"{self.url}: the answer is not Plex's, but perhaps a proxy's")
        return answer


def library_folders(plex: Plex, title: str) -> tuple[Path, ...]:
    """Return the local folders of the library with this name. Raises ConfigError if there is none.

    A folder that the path map leads nowhere is left out.
    """
    libraries = {library.title.casefold(): library for library in plex.list_libraries()}
    if title.casefold() not in libraries:
        known = ", ".join(library.title for library in libraries.values()) or "none"
        raise ConfigError(
            f"library {title!r}: Plex has no music library of this name; it has {known}"
        )
    folders = libraries[title.casefold()].folders
    local = (to_local(folder, plex.options.path_map) for folder in folders)
    return tuple(folder for folder in local if folder is not None)


def parse_version(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a server version: 1.40.0.7775-456fbaf97 is (1, 40, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Turn what plexapi and requests raise into the named errors.

    No message may hold the token: plexapi sends it as a header, so that addresses do not.
    """
    try:
        yield
    except Unauthorized:
        raise PlexUnauthorized(f"{url}: the token is not accepted (401); {_SIGN_IN}") from None
    except NotFound as error:
        raise _Gone(f"{url}: {error}") from None
    except BadRequest as error:
        status = re.match(r"\((\d{3})\)", str(error))  # plexapi: "(503) service_unavailable; ..."
        code = int(status[1]) if status else 0
        if code == 403:
            text = f"{url}: the account may not do this (403); sign in as the server's owner"
            raise PlexUnauthorized(text) from None
        if code >= 500 or code in (408, 429):
            raise PlexUnreachable(f"{url}: the server is in trouble: {error}") from None
        raise PlexError(f"{url}: {error}") from None
    except requests.exceptions.InvalidURL as error:
        raise ConfigError(f"plex.url: {url} is no address: {error}") from None
    except requests.Timeout as error:
        raise PlexUnreachable(f"{url}: no answer in time: {error}") from None
    except requests.RequestException as error:
        found = re.search(r"\[Errno -?\d+\] [^'\")]+", str(error))
        raise PlexUnreachable(f"{url}: {found[0] if found else error}") from None
    except ParseError as error:
        text = f"{url}: the answer is not Plex's, but perhaps a proxy's: {error}"
        raise PlexUnreachable(text) from None
