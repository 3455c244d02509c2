"""A stand-in for a Plex media server: real HTTP and websocket, its library in memory.

plexapi talks to it unchanged. It is stricter than the real one: a path or a parameter that it
does not know is answered 400 and kept in `errors`, so that a test can assert that there was none.
It follows what is publicly known of real servers, also where that is awkward: a listing shows
only the first two genres of an item and no locks, a refresh takes back every genre (mood, style)
that is not locked, tracks have no styles, and a folder to scan that it does not know is ignored in
silence. Where the real server's behaviour is not known there is a switch (`tag_edits`,
`one_removal`).

As a script: python tests/plex_server.py --music DIR [--seen-as /music] [--port N] [--token T]
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import queue
import re
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import quoteattr

Kind = Literal["artist", "album", "track"]
Mode = Literal["ok", "slow", "failing", "broken", "refusing", "garbage", "cut", "lost", "down"]
Reply = tuple[int, str]

TYPES: dict[str, Kind] = {"8": "artist", "9": "album", "10": "track"}
TYPE_OF = {kind: int(number) for number, kind in TYPES.items()}
LISTED_GENRES = 2  # a listing shows no more [python-plexapi issue 249]
MAX_REQUEST_LINE = 8192  # bytes; longer ones are answered 414
AUDIO_SUFFIXES = frozenset(
    {".aiff", ".ape", ".dsf", ".flac", ".m4a", ".mp3", ".mpc", ".oga", ".ogg", ".opus", ".tta"}
    | {".wav", ".wma", ".wv"}
)
CREATED, PROCESSED, DELETED = 0, 5, 9  # states of a timeline entry [plexapi/alert.py]
_WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_JPEG = base64.b64decode("/9j/4AAQSkZJRgABAQAAAQABAAD/2Q==")  # a header and an end: a thumb's place


@dataclass(eq=False)
class Item:
    """An artist, an album or a track. `agent_genres` is what a refresh brings back.

    The agent knows no moods or styles. A track has no styles.
    """

    key: int
    kind: Kind
    title: str
    library: Library
    parent: Item | None
    added_at: int
    updated_at: int
    index: int = 1
    genres: list[str] = field(default_factory=list)
    moods: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    agent_genres: tuple[str, ...] = ()
    locked: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    children: list[Item] = field(default_factory=list)

    def tags(self, of: str) -> list[str]:
        """Return the tags of a field, to be changed in place."""
        return {"genre": self.genres, "mood": self.moods, "style": self.styles}[of]

    def ancestor(self, kind: str) -> Item | None:
        """Return the artist or album that this belongs to, or the item itself."""
        item: Item | None = self
        while item is not None and item.kind != kind:
            item = item.parent
        return item


@dataclass(eq=False)
class Library:
    """A music library. `location` is its folder as Plex sees it, `root` where it really is."""

    key: int
    title: str
    location: str
    root: Path | None
    uuid: str
    preferences: dict[str, str]
    artists: dict[str, Item] = field(default_factory=dict)

    def items(self, kind: str) -> Iterator[Item]:
        """Yield all items of a kind."""
        for artist in self.artists.values():
            if kind == "artist":
                yield artist
                continue
            for album in artist.children:
                if kind == "album":
                    yield album
                else:
                    yield from album.children


@dataclass(eq=False)
class Playlist:
    """A playlist of music: entries (id, track). A smart one is a search, and cannot be edited."""

    key: int
    title: str
    smart: bool = False
    entries: list[tuple[int, Item]] = field(default_factory=list)


class BadRequest(Exception):
    """The client asked for something that this server, or the real one, does not know."""


class NotFound(Exception):
    """An item or a library that does not exist (any more); an ordinary answer."""


class PlexStandIn:
    """The server. Everything public may be changed while it runs.

    `mode` slow waits `delay` seconds before each answer, failing answers 503, broken 500, refusing
    401, garbage answers 200 with a page that is not Plex's, cut ends each answer in its middle,
    lost does what it is asked and drops the connection, down drops it at once. `tag_edits` says
    what genre[0].tag.tag=X does to the genres that are there; `one_removal` lets only the first of
    several removals of one request count (reported of real servers).
    """

    def __init__(
        self,
        *,
        token: str = "stand-in-token",
        port: int = 0,
        version: str = "1.41.3.9314-a0bfb8370",
        name: str = "Stand-in",
    ) -> None:
        self.token, self.version, self.name = token, version, name
        self.uuid = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.delay = 1.0  # seconds
        self.tag_edits: Literal["append", "replace"] = "append"
        self.one_removal = False
        self.webhook_url: str | None = None
        self.requests = 0
        self.log: list[str] = []  # "GET /path?query", in order
        self.errors: list[str] = []
        self.libraries: dict[int, Library] = {}
        self.items: dict[int, Item] = {}
        self.playlists: dict[int, Playlist] = {}
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._mode: Mode = "ok"
        self._next_key = 1
        self._files: dict[str, Item] = {}
        self._listeners: set[_Handler] = set()
        self._http = _Server(("127.0.0.1", port), self)
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads = (
            threading.Thread(target=self._http.serve_forever, args=(0.05,)),
            threading.Thread(target=self._work),
        )
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def mode(self) -> Mode:
        """How it answers."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "down":
            self._http.drop_connections()

    def reset_counts(self) -> None:
        """Forget the requests so far."""
        with self.lock:
            self.requests = 0
            self.log.clear()

    def close(self) -> None:
        """Stop listening, drop every connection, and wait for all threads."""
        self.closing.set()
        self._http.shutdown()
        self._http.drop_connections()
        self._http.server_close()
        self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def later(self, task: Callable[[], object]) -> None:
        """Do something after the answer, as the real server scans and notifies."""
        self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def __enter__(self) -> PlexStandIn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # What is in the libraries

    def add_library(
        self, title: str = "Music", location: str = "/music", root: Path | None = None
    ) -> Library:
        """Add an empty music library."""
        with self.lock:
            key = len(self.libraries) + 1
            preferences = {"respectTags": "0", "genres": "1", "albumPosters": "0"}
            library = Library(key, title, location, root, str(uuid.uuid4()), preferences)
            self.libraries[key] = library
            return library

    def add_track(
        self,
        library: Library,
        artist: str,
        album: str,
        title: str,
        *,
        file: str | None = None,
        genres: Iterable[str] = (),
        added_at: int | None = None,
    ) -> Item:
        """Add a track, and its album and artist if they are new. `genres` are the agent's."""
        with self.lock:
            at = int(time.time()) if added_at is None else added_at
            over = library.artists.get(artist)
            if over is None:
                over = library.artists[artist] = self._add(library, "artist", artist, None, at)
            under = next((one for one in over.children if one.title == album), None)
            if under is None:
                under = self._add(library, "album", album, over, at)
            track = self._add(library, "track", title, under, at)
            track.files = [file or f"{library.location}/{artist}/{album}/{title}.flac"]
            self._files[track.files[0]] = track
            track.agent_genres = tuple(genres)
            track.genres = list(genres)
            return track

    def populate(self, library: Library, tracks: int, genres: tuple[str, ...] = ()) -> None:
        """Add tracks: ten an album, four albums an artist. Their genres cycle through `genres`."""
        start = int(time.time()) - tracks - 1
        for number in range(tracks):
            self.add_track(
                library,
                f"Artist {number // 40:04}",
                f"Album {number // 10:05}",
                f"Track {number:06}",
                genres=(genres[number % len(genres)],) if genres else (),
                added_at=start + number,
            )

    def add_playlist(
        self, title: str, items: Iterable[Item] = (), *, smart: bool = False
    ) -> Playlist:
        """Add a playlist. Its key is one of the items', as with the real one."""
        with self.lock:
            playlist = Playlist(self._take_key(), title, smart)
            self.playlists[playlist.key] = playlist
            self.add_to_playlist(playlist, items)
            return playlist

    def add_to_playlist(self, playlist: Playlist, items: Iterable[Item]) -> None:
        """Add items at its end: an item that is in it already is in it twice then."""
        with self.lock:
            playlist.entries += [(self._take_key(), item) for item in items]

    def scan(self, library: Library) -> list[Item]:
        """Look for files that came or went below the library's root, and tell of them.

        A file ARTIST/ALBUM/NAME is filed under these; one that lies flat, under "ARTIST - TITLE".
        Returns the new tracks.
        """
        assert library.root is not None
        seen = {
            f"{library.location}/{path.relative_to(library.root).as_posix()}"
            for path in library.root.rglob("*")
            if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
        }
        with self.lock:
            known = {file for item in library.items("track") for file in item.files}
            before = set(self.items)
            for file in sorted(known - seen):
                self.remove(self._files[file])
            added = [self._add_file(library, file) for file in sorted(seen - known)]
            first_of_each = [
                next(
                    item
                    for kind in ("artist", "album", "track")
                    if (item := track.ancestor(kind)) is not None and item.key not in before
                )
                for track in added
            ]
        for item in {item.key: item for item in first_of_each}.values():
            self.announce(item)
        return added

    def remove(self, item: Item) -> None:
        """Remove an item, what is below it, and parents that are empty then; tell listeners."""
        with self.lock:
            for child in list(item.children):
                self.remove(child)
            if self.items.pop(item.key, None) is None:
                return  # its last child took it along
            for file in item.files:
                del self._files[file]
            if item.parent is None:
                del item.library.artists[item.title]
            else:
                item.parent.children.remove(item)
                if not item.parent.children:
                    self.remove(item.parent)
        self.later(lambda: self.notify([item], DELETED))

    def edit_by_user(self, item: Item, tags: Iterable[str], of: str = "genre") -> None:
        """Do what someone does in Plex's own editor: set a field's tags, and so lock them."""
        with self.lock:
            item.tags(of)[:] = tags
            item.locked.add(of)

    def refresh(self, items: Iterable[Item]) -> None:
        """Fetch the metadata again: every field that is not locked is the agent's again."""
        with self.lock:
            for item in items:
                agent = {"genre": item.agent_genres, "mood": (), "style": ()}
                for of in agent.keys() - item.locked:
                    item.tags(of)[:] = agent[of]

    def _take_key(self) -> int:
        self._next_key += 1
        return self._next_key - 1

    def _add(self, library: Library, kind: Kind, title: str, parent: Item | None, at: int) -> Item:
        item = Item(self._take_key(), kind, title, library, parent, at, at)
        self.items[item.key] = item
        if parent is not None:
            parent.children.append(item)
            item.index = len(parent.children)
        return item

    def _add_file(self, library: Library, file: str) -> Item:
        *folders, name = file.removeprefix(library.location).strip("/").split("/")
        title = name.rpartition(".")[0]
        if len(folders) >= 2:
            artist, album = folders[-2:]
        else:
            artist, dash, rest = title.partition(" - ")
            artist, title = (artist, rest) if dash else ("Unknown Artist", title)
            album = folders[0] if folders else "Unknown Album"
        return self.add_track(library, artist, album, title, file=file)

    # What the server says by itself

    def announce(self, item: Item) -> None:
        """Tell of new music: timeline entries for all that is below, one webhook for `item`.

        So one library.new of an artist stands for all of its tracks, as with the real one.
        """
        with self.lock:
            below = [item, *item.children]
            below += [track for album in item.children for track in album.children]
        self.notify(below, CREATED)
        self.notify(below, PROCESSED)
        self.send_webhook(item)

    def notify(self, items: Iterable[Item], state: int) -> None:
        """Send a timeline entry for each item to all websockets."""
        words = {CREATED: "created", DELETED: "deleted"}
        for item in items if self.listeners else ():
            entry: dict[str, object] = {
                "identifier": "com.plexapp.plugins.library",
                "sectionID": str(item.library.key),
                "itemID": str(item.key),
                "type": TYPE_OF[item.kind],
                "title": item.title,
                "state": state,
                "updatedAt": item.updated_at,
            }
            if state in words:
                entry["metadataState"] = words[state]
            message = {"type": "timeline", "size": 1, "TimelineEntry": [entry]}
            self.send_alert(json.dumps({"NotificationContainer": message}))

    def send_alert(self, text: str) -> None:
        """Send a text to all websockets."""
        with self.lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.send_frame(0x1, text.encode())

    @property
    def listeners(self) -> int:
        """How many websockets are open."""
        with self.lock:
            return len(self._listeners)

    def send_webhook(self, item: Item, event: str = "library.new") -> int | None:
        """POST an event to `webhook_url`. Returns the answer's status, None if none came.

        Like the real one: multipart/form-data, the payload as JSON and a thumb, no secret, and
        an event that cannot be delivered is lost.
        """
        if self.webhook_url is None:
            return None
        boundary = uuid.uuid4().hex
        parts = (
            ('name="payload"', "application/json", json.dumps(self.payload(item, event)).encode()),
            ('name="thumb"; filename="thumb.jpg"', "image/jpeg", _JPEG),
        )
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n"
            f"Content-Type: {media}\r\n\r\n".encode()
            + content
            + b"\r\n"
            for name, media, content in parts
        )
        request = urllib.request.Request(
            self.webhook_url,
            body + f"--{boundary}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return None

    def payload(self, item: Item, event: str = "library.new") -> dict[str, object]:
        """Return a webhook's payload, in the shape of the item's kind."""
        metadata: dict[str, object] = {
            "librarySectionType": "artist",
            "librarySectionTitle": item.library.title,
            "librarySectionID": item.library.key,
            "librarySectionKey": f"/library/sections/{item.library.key}",
            "ratingKey": str(item.key),
            "key": _path(item) + ("" if item.kind == "track" else "/children"),
            "guid": f"plex://{item.kind}/{item.key:024x}",
            "type": item.kind,
            "title": item.title,
            "index": item.index,
            "addedAt": item.added_at,
            "updatedAt": item.updated_at,
        }
        above, prefix = item.parent, "parent"
        while above is not None:
            metadata[f"{prefix}RatingKey"] = str(above.key)
            metadata[f"{prefix}Title"] = above.title
            metadata[f"{prefix}Index"] = above.index
            above, prefix = above.parent, "grandparent"
        return {
            "event": event,
            "user": True,
            "owner": True,
            "Account": {"id": 1, "thumb": "", "title": "owner"},
            "Server": {"title": self.name, "uuid": self.uuid},
            "Player": {"local": True, "publicAddress": "", "title": "", "uuid": ""},
            "Metadata": metadata,
        }

    # What the server answers

    def answer(self, method: str, path: str, query: dict[str, str], page: Paging) -> Reply:
        """Return status and XML. Raises BadRequest and NotFound."""
        for verb, pattern, known, function in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match is None or verb != method:
                continue
            for name in query:
                if name not in known and not any(
                    isinstance(one, re.Pattern) and one.fullmatch(name) for one in known
                ):
                    raise BadRequest(f"unknown parameter {name}")
            return function(self, Call(match, query, page))
        raise BadRequest("unknown path")

    def library_of(self, call: Call) -> Library:
        """Return the library whose key the path names."""
        try:
            return self.libraries[int(call.match["key"])]
        except KeyError:
            raise NotFound from None

    def edit_tags(self, item: Item, of: str, tags: list[str], removals: list[str]) -> None:
        """Add tags to a field or put them in place of its own, and take some away."""
        now = [] if tags and self.tag_edits == "replace" else list(item.tags(of))
        present = {tag.casefold() for tag in now}
        now += [tag for tag in tags if tag.casefold() not in present]
        item.tags(of)[:] = [tag for tag in now if tag not in removals]
        item.updated_at = int(time.time())


@dataclass(frozen=True)
class Paging:
    """The part of a listing that is asked for; size None is all of it."""

    start: int
    size: int | None


@dataclass(frozen=True)
class Call:
    """What a request asks for: the match of its path, its parameters, and the page."""

    match: re.Match[str]
    query: dict[str, str]
    page: Paging


def _path(item: Item) -> str:
    return f"/library/metadata/{item.key}"


def _attributes(**values: object) -> str:
    return "".join(
        f" {name}={quoteattr(str(value))}" for name, value in values.items() if value is not None
    )


def _container(content: str, **attributes: object) -> Reply:
    body = f"<MediaContainer{_attributes(**attributes)}>{content}</MediaContainer>"
    return 200, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'


def _item_xml(item: Item, *, detail: bool, excluded: frozenset[str] = frozenset()) -> str:
    """Return one item; a listing (not `detail`) has only some genres and no locks."""
    tag = "Track" if item.kind == "track" else "Directory"
    above: dict[str, object] = {}
    parent, prefix = item.parent, "parent"
    while parent is not None:
        above[f"{prefix}RatingKey"] = parent.key
        above[f"{prefix}Key"] = _path(parent)
        above[f"{prefix}Title"] = parent.title
        parent, prefix = parent.parent, "grandparent"
    if detail:
        above["librarySectionTitle"] = item.library.title
        above["librarySectionID"] = item.library.key
        above["librarySectionKey"] = f"/library/sections/{item.library.key}"
    attributes = _attributes(
        ratingKey=item.key,
        key=_path(item) + ("" if item.kind == "track" else "/children"),
        guid=f"plex://{item.kind}/{item.key:024x}",
        type=item.kind,
        title=item.title,
        index=item.index,
        leafCount=len(item.children) if item.kind == "album" else None,
        addedAt=item.added_at,
        updatedAt=item.updated_at,
        **above,
    )
    content = ""
    if "Media" not in excluded:
        for number, file in enumerate(item.files):
            part = _attributes(id=item.key * 10 + number, file=file, container="flac")
            content += f'<Media id="{item.key * 10 + number}"><Part{part}/></Media>'
    if "Genre" not in excluded:
        shown = item.genres if detail else item.genres[:LISTED_GENRES]
        content += "".join(f"<Genre tag={quoteattr(genre)}/>" for genre in shown)
    if detail:
        for name, tags in (("Mood", item.moods), ("Style", item.styles)):
            if name not in excluded:
                content += "".join(f"<{name} tag={quoteattr(tag)}/>" for tag in tags)
        content += "".join(f'<Field locked="1" name="{name}"/>' for name in sorted(item.locked))
    return f"<{tag}{attributes}>{content}</{tag}>"


def _listing(items: Iterable[Item], page: Paging, **attributes: object) -> Reply:
    """Return a page of a listing."""
    whole = list(items)
    end = None if page.size is None else page.start + page.size
    shown = whole[page.start : end]
    if page.size is not None:
        attributes |= {"totalSize": len(whole), "offset": page.start}
    content = "".join(_item_xml(item, detail=False) for item in shown)
    return _container(content, size=len(shown), **attributes)


# One function a path: the server and the call in, status and XML out


def _get_root(plex: PlexStandIn, call: Call) -> Reply:
    return _container(
        "",
        size=0,
        friendlyName=plex.name,
        machineIdentifier=plex.uuid,
        version=plex.version,
        myPlexSubscription=0,
        platform="Linux",
    )


def _get_identity(plex: PlexStandIn, call: Call) -> Reply:
    return _container("", size=0, claimed=1, machineIdentifier=plex.uuid, version=plex.version)


def _get_library(plex: PlexStandIn, call: Call) -> Reply:
    return _container("", size=0, identifier="com.plexapp.plugins.library", title1="Plex Library")


def _get_sections(plex: PlexStandIn, call: Call) -> Reply:
    content = ""
    for library in plex.libraries.values():
        attributes = _attributes(
            key=library.key,
            type="artist",
            title=library.title,
            agent="tv.plex.agents.music",
            scanner="Plex Music",
            language="en-US",
            uuid=library.uuid,
            refreshing=0,
        )
        location = f'<Location id="{library.key}" path={quoteattr(library.location)}/>'
        content += f"<Directory{attributes}>{location}</Directory>"
    return _container(content, size=len(plex.libraries))


def _get_prefs(plex: PlexStandIn, call: Call) -> Reply:
    library = plex.library_of(call)
    settings = (
        ("respectTags", "Prefer local metadata", "bool", ""),
        ("genres", "Genres", "int", "0:None|1:Plex Music|2:Embedded Tags"),
        ("albumPosters", "Album Art", "int", "0:Plex Music|1:Local Files Only"),
    )
    content = ""
    for name, label, kind, choices in settings:
        value = library.preferences[name]
        attributes = _attributes(id=name, label=label, summary="", type=kind, default="0")
        attributes += _attributes(value=value, hidden=0, advanced=0, group="")
        attributes += _attributes(enumValues=choices or None)
        content += f"<Setting{attributes}/>"
    return _container(content, size=len(settings))


def _get_all(plex: PlexStandIn, call: Call) -> Reply:
    library = plex.library_of(call)
    attributes = {"librarySectionID": library.key, "librarySectionTitle": library.title}
    if call.query.get("includeMeta") == "1":
        return _container(_meta_xml(library), size=0, totalSize=0, **attributes)
    kind = TYPES.get(call.query.get("type", "8"))
    if kind is None:
        raise BadRequest(f"type {call.query['type']} is not in a music library")
    items = [item for item in library.items(kind) if _matches(item, call.query)]
    for order in reversed(call.query.get("sort", "titleSort").split(",")):
        name, _, direction = order.partition(":")
        if name.rpartition(".")[2] not in _SORTS or direction not in ("", "asc", "desc"):
            raise BadRequest(f"unknown sort {order}")
        items.sort(key=_SORTS[name.rpartition(".")[2]], reverse=direction == "desc")
    if "limit" in call.query:
        items = items[: int(call.query["limit"])]
    return _listing(items, call.page, **attributes)


def _get_albums(plex: PlexStandIn, call: Call) -> Reply:
    library = plex.library_of(call)
    return _listing(library.items("album"), call.page, librarySectionID=library.key)


def _get_collections(plex: PlexStandIn, call: Call) -> Reply:
    library = plex.library_of(call)
    content = '<Meta><Type key="" type="collection" title="Collections"/></Meta>'
    return _container(content if "includeMeta" in call.query else "", librarySectionID=library.key)


def _get_genres(plex: PlexStandIn, call: Call) -> Reply:
    kind = TYPES[call.query.get("type", "8")]
    found = {genre for item in plex.library_of(call).items(kind) for genre in item.genres}
    content = "".join(
        f"<Directory{_attributes(key=_tag_key(genre), title=genre, type='genre')}/>"
        for genre in sorted(found)
    )
    return _container(content, size=len(found))


def _scan(plex: PlexStandIn, call: Call) -> Reply:
    library = plex.library_of(call)
    path = call.query.get("path", library.location)
    known = path == library.location or path.startswith(library.location + "/")
    if call.query.get("force") == "1":
        plex.refresh(item for kind in TYPE_OF for item in library.items(kind))
    elif known and library.root is not None:
        plex.later(lambda: plex.scan(library))
    return 200, ""


def _edit(plex: PlexStandIn, call: Call) -> Reply:
    library = plex.library_of(call)
    kind = TYPES.get(call.query.get("type", ""))
    if kind is None:
        raise BadRequest("an edit needs type 8, 9 or 10")
    keys = [int(key) for key in call.query["id"].split(",")] if "id" in call.query else None
    if keys is not None and any(key not in plex.items for key in keys):
        raise NotFound
    items = list(library.items(kind)) if keys is None else [plex.items[key] for key in keys]
    for item in items:
        if item.library is not library or item.kind != kind:
            raise BadRequest(f"{item.key} is not of type {kind} in library {library.key}")
    edited = {re.split(r"[\[.]", name)[0] for name in call.query if _EDIT.fullmatch(name)}
    for of in sorted(edited):
        _edit_field(plex, call, items, kind, of)
    plex.later(lambda: plex.notify(items, PROCESSED))
    return 200, ""


def _edit_field(plex: PlexStandIn, call: Call, items: list[Item], kind: Kind, of: str) -> None:
    tags = [
        call.query[name]
        for name in sorted(call.query)
        if re.fullmatch(rf"{of}\[\d+\]\.tag\.tag", name)
    ]
    if kind == "track" and of == "style":
        raise BadRequest("tracks have no styles")
    if kind == "track" and of == "genre" and tags and _is_older(plex.version, (1, 40, 0)):
        raise BadRequest("no track genres before 1.40.0")
    removals = [unquote(tag) for tag in call.query.get(f"{of}[].tag.tag-", "").split(",") if tag]
    with plex.lock:
        for item in items:
            plex.edit_tags(item, of, tags, removals[:1] if plex.one_removal else removals)
            if call.query.get(f"{of}.locked") == "1":
                item.locked.add(of)
            elif call.query.get(f"{of}.locked") == "0":
                item.locked.discard(of)


def _get_metadata(plex: PlexStandIn, call: Call) -> Reply:
    keys = [int(key) for key in call.match["keys"].split(",")]
    found = [plex.items[key] for key in keys if key in plex.items]
    if not found:
        raise NotFound
    excluded = frozenset(call.query.get("excludeElements", "").split(","))
    end = None if call.page.size is None else call.page.start + call.page.size
    shown = found[call.page.start : end]
    content = "".join(_item_xml(item, detail=True, excluded=excluded) for item in shown)
    total = len(found) if len(shown) < len(found) else None
    return _container(
        content, size=len(shown), totalSize=total, librarySectionID=found[0].library.key
    )


def _get_children(plex: PlexStandIn, call: Call) -> Reply:
    item = plex.items.get(int(call.match["key"]))
    if item is None:
        raise NotFound
    children = item.children
    if call.match["which"] == "allLeaves" and item.kind == "artist":
        children = [track for album in item.children for track in album.children]
    return _listing(children, call.page, librarySectionID=item.library.key)


def _refresh_item(plex: PlexStandIn, call: Call) -> Reply:
    item = plex.items.get(int(call.match["key"]))
    if item is None:
        raise NotFound
    plex.refresh([item])
    return 200, ""


def _playlist_xml(playlist: Playlist) -> str:
    attributes = _attributes(
        ratingKey=playlist.key,
        key=f"/playlists/{playlist.key}/items",
        guid=f"com.plexapp.agents.none://{playlist.key}",
        type="playlist",
        title=playlist.title,
        summary="",
        smart=int(playlist.smart),
        playlistType="audio",
        leafCount=len(playlist.entries),
    )
    return f"<Playlist{attributes}/>"


def _playlist_of(plex: PlexStandIn, call: Call, *, edited: bool = False) -> Playlist:
    playlist = plex.playlists.get(int(call.match["key"]))
    if playlist is None:
        raise NotFound
    if edited and playlist.smart:
        raise BadRequest("a smart playlist has no items of its own")
    return playlist


def _tracks_of_uri(plex: PlexStandIn, call: Call) -> list[Item]:
    """Return the tracks that a request names; one that is gone is left out in silence."""
    uri = call.query["uri"]
    pattern = rf"server://{plex.uuid}/com\.plexapp\.plugins\.library/library/metadata/([\d,]+)"
    match = re.fullmatch(pattern, uri)
    if match is None:
        raise BadRequest(f"no uri of this server: {uri}")
    found = [plex.items[int(key)] for key in match[1].split(",") if int(key) in plex.items]
    if any(item.kind != "track" for item in found):
        raise BadRequest("only tracks are expected in a playlist here")
    return found


def _get_playlists(plex: PlexStandIn, call: Call) -> Reply:
    whole = list(plex.playlists.values()) if call.query.get("playlistType") != "video" else []
    end = None if call.page.size is None else call.page.start + call.page.size
    shown = whole[call.page.start : end]
    content = "".join(map(_playlist_xml, shown))
    return _container(content, size=len(shown), totalSize=len(whole))


def _make_playlist(plex: PlexStandIn, call: Call) -> Reply:
    if (call.query.get("type"), call.query.get("smart")) != ("audio", "0"):
        raise BadRequest("a playlist of music is of type audio, and not smart")
    if not call.query.get("title"):
        raise BadRequest("a playlist needs a title")
    playlist = plex.add_playlist(call.query["title"], _tracks_of_uri(plex, call))
    return _container(_playlist_xml(playlist), size=1)


def _get_playlist(plex: PlexStandIn, call: Call) -> Reply:
    return _container(_playlist_xml(_playlist_of(plex, call)), size=1)


def _get_playlist_items(plex: PlexStandIn, call: Call) -> Reply:
    playlist = _playlist_of(plex, call)
    whole = [entry for entry in playlist.entries if entry[1].key in plex.items]
    end = None if call.page.size is None else call.page.start + call.page.size
    shown = whole[call.page.start : end]
    content = "".join(
        _item_xml(item, detail=False).replace("<Track", f'<Track playlistItemID="{number}"', 1)
        for number, item in shown
    )
    return _container(content, size=len(shown), totalSize=len(whole), playlistType="audio")


def _add_playlist_items(plex: PlexStandIn, call: Call) -> Reply:
    playlist = _playlist_of(plex, call, edited=True)
    tracks = _tracks_of_uri(plex, call)
    plex.add_to_playlist(playlist, tracks)
    return _container(_playlist_xml(playlist), size=1, leafCountAdded=len(tracks))


def _remove_playlist_item(plex: PlexStandIn, call: Call) -> Reply:
    playlist = _playlist_of(plex, call, edited=True)
    kept = [entry for entry in playlist.entries if entry[0] != int(call.match["item"])]
    if len(kept) == len(playlist.entries):
        raise NotFound
    playlist.entries[:] = kept
    return _container(_playlist_xml(playlist), size=1)


_INCLUDES = (
    re.compile("include[A-Z][A-Za-z]+"),  # plexapi sends some twenty of them with a reload
    *("checkFiles", "excludeElements", "excludeFields", "skipRefresh"),
)
_FILTER = re.compile(r"(?:(artist|album|track)\.)?(title|genre|addedAt|id)(|=|>>|<<)")
_LISTING = frozenset({"type", "sort", "limit", "includeGuids", "includeMeta", "includeAdvanced"})
_LISTING |= {"includeCollections"}
_EDIT = re.compile(r"(genre|mood|style)(\[\d+\]\.tag\.tag|\[\]\.tag\.tag-|\.locked)")
_SECTION = r"/library/sections/(?P<key>\d+)"
_PLAYLIST = r"/playlists/(?P<key>\d+)"
_ITEM = r"/library/metadata/(?P<key>\d+)"

_Route = Callable[[PlexStandIn, Call], Reply]
_ROUTES: tuple[tuple[str, str, Iterable[str | re.Pattern[str]], _Route], ...] = (
    ("GET", "/", (), _get_root),
    ("GET", "/identity", (), _get_identity),
    ("GET", "/library", (), _get_library),
    ("GET", "/library/sections/?", (), _get_sections),
    ("GET", f"{_SECTION}/prefs", (), _get_prefs),
    ("GET", f"{_SECTION}/all", (*_LISTING, _FILTER), _get_all),
    ("PUT", f"{_SECTION}/all", ("type", "id", _EDIT), _edit),
    ("GET", f"{_SECTION}/albums", ("includeGuids",), _get_albums),
    ("GET", f"{_SECTION}/collections", _LISTING, _get_collections),
    ("GET", f"{_SECTION}/genre", ("type",), _get_genres),
    ("GET", f"{_SECTION}/refresh", ("path", "force"), _scan),
    ("GET", r"/library/metadata/(?P<keys>\d+(,\d+)*)", _INCLUDES, _get_metadata),
    ("GET", f"{_ITEM}/(?P<which>children|allLeaves)", _INCLUDES, _get_children),
    ("PUT", f"{_ITEM}/refresh", (), _refresh_item),
    ("GET", "/playlists", ("playlistType", "title", "sectionID", "sort"), _get_playlists),
    ("POST", "/playlists", ("uri", "type", "title", "smart"), _make_playlist),
    ("GET", _PLAYLIST, _INCLUDES, _get_playlist),
    ("GET", f"{_PLAYLIST}/items", _INCLUDES, _get_playlist_items),
    ("PUT", f"{_PLAYLIST}/items", ("uri",), _add_playlist_items),
    ("DELETE", rf"{_PLAYLIST}/items/(?P<item>\d+)", (), _remove_playlist_item),
)
_SORTS: dict[str, Callable[[Item], str | int]] = {
    "titleSort": lambda item: item.title.casefold(),
    "addedAt": lambda item: item.added_at,
    "updatedAt": lambda item: item.updated_at,
    "id": lambda item: item.key,
}


def _is_older(version: str, than: tuple[int, ...]) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < than


def _tag_key(genre: str) -> int:
    return int.from_bytes(hashlib.sha1(genre.casefold().encode()).digest()[:3], "big")


def _matches(item: Item, query: dict[str, str]) -> bool:
    """Say whether an item passes all filters of the query."""
    for name, value in query.items():
        match = None if name in _LISTING else _FILTER.fullmatch(name)
        if match is None:
            continue
        kind, what, operator = match.groups()
        one = item.ancestor(kind or item.kind)
        if one is None:
            return False
        if what == "title":
            fits = one.title == value if operator else value.lower() in one.title.lower()
        elif what == "genre":
            wanted = value.split(",")
            fits = any(str(_tag_key(genre)) in wanted or genre in wanted for genre in one.genres)
        elif what == "id":
            fits = str(one.key) in value.split(",")
        else:
            fits = one.added_at < int(value) if operator == "<<" else one.added_at > int(value)
        if not fits:
            return False
    return True


def _meta_xml(library: Library) -> str:
    """Return the types, filters, sorts and fields that plexapi checks a search against."""
    content = ""
    for kind, number in TYPE_OF.items():
        key = f"/library/sections/{library.key}"
        content += f'<Type key="{key}/all?type={number}" type="{kind}" title="{kind}">'
        content += (
            f'<Filter filter="genre" filterType="string" title="Genre" type="filter"'
            f' key="{key}/genre?type={number}"/>'
        )
        for sort in ("titleSort", "addedAt"):
            content += f'<Sort key="{sort}" descKey="{sort}:desc" defaultDirection="asc" title=""/>'
        for name, type_ in (("title", "string"), ("genre", "tag"), ("addedAt", "date")):
            content += f'<Field key="{kind}.{name}" title="{name}" type="{type_}"/>'
        content += "</Type>"
    operators = {"string": ("=", "=="), "tag": ("=",), "integer": ("=",), "date": ("<<=", ">>=")}
    for type_, keys in operators.items():
        content += f'<FieldType type="{type_}">'
        content += "".join(f"<Operator key={quoteattr(key)} title=''/>" for key in keys)
        content += "</FieldType>"
    return f"<Meta>{content}</Meta>"


class _Server(ThreadingHTTPServer):
    """Threads that are waited for, and connections that can be dropped."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], plex: PlexStandIn) -> None:
        super().__init__(address, _Handler)
        self.plex = plex
        self.connections: set[socket.socket] = set()

    def drop_connections(self) -> None:
        with self.plex.lock:
            connections = list(self.connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was quicker

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error; anything else in here is a bug."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.plex.errors.append(f"bug: {error!r}")


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.plex = self.server.plex
        self._sending = threading.Lock()
        with self.plex.lock:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        with self.plex.lock:
            self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        plex = self.plex
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with plex.lock:
            plex.requests += 1
            plex.log.append(f"{self.command} {self.path}")
        if plex.mode == "down" or plex.closing.is_set():
            self.close_connection = True
            return None
        if plex.mode == "slow":
            plex.closing.wait(plex.delay)
        if plex.mode == "failing":
            return self._reply(503, "<html><body>maintenance</body></html>")
        if plex.mode == "broken":
            return self._reply(500, "<html><body>Internal Server Error</body></html>")
        if plex.mode == "refusing":
            return self._reply(401, "<html><body><h1>401 Unauthorized</h1></body></html>")
        if plex.mode == "garbage":
            return self._reply(200, "<html><body>Please log in<br></body></html>")
        if len(self.path) > MAX_REQUEST_LINE:
            plex.errors.append(f"a request line of {len(self.path)} bytes")
            return self._reply(414, "")
        parts = urlsplit(self.path)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        query = dict(pairs)
        token = query.pop("X-Plex-Token", None) or self.headers.get("X-Plex-Token")
        if token != plex.token and parts.path != "/identity":
            return self._reply(401, "<html><body><h1>401 Unauthorized</h1></body></html>")
        if parts.path == "/:/websockets/notifications":
            return self._listen()
        start = query.pop("X-Plex-Container-Start", self.headers.get("X-Plex-Container-Start"))
        size = query.pop("X-Plex-Container-Size", self.headers.get("X-Plex-Container-Size"))
        page = Paging(int(start or 0), None if size is None else int(size))
        try:
            if len(dict(pairs)) != len(pairs):
                raise BadRequest("a parameter comes twice")
            with plex.lock:
                status, body = plex.answer(self.command, parts.path, query, page)
        except NotFound:
            return self._reply(404, "<html><body><h1>404 Not Found</h1></body></html>")
        except BadRequest as error:
            plex.errors.append(f"{self.command} {self.path}: {error}")
            return self._reply(400, "<html><body><h1>400 Bad Request</h1></body></html>")
        return self._reply(status, body)

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _reply(self, status: int, body: str) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/xml;charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if self.plex.mode == "lost":
            self.close_connection = True
            return
        self.end_headers()
        if self.plex.mode == "cut":
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def _listen(self) -> None:
        """Become a websocket (RFC 6455) until either side leaves."""
        self.close_connection = True
        key = self.headers.get("Sec-WebSocket-Key", "")
        accept = hashlib.sha1((key + _WEBSOCKET_GUID).encode(), usedforsecurity=False).digest()
        with self.plex.lock:  # who knows that it is connected misses nothing
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
            self.end_headers()
            self.plex._listeners.add(self)
        try:
            while (frame := self._read_frame()) is not None:
                opcode, content = frame
                if opcode == 0x8:
                    self.send_frame(0x8, content)
                    return
                if opcode == 0x9:
                    self.send_frame(0xA, content)
        finally:
            with self.plex.lock:
                self.plex._listeners.discard(self)

    def _read_frame(self) -> tuple[int, bytes] | None:
        head = self.rfile.read(2)
        if len(head) < 2:
            return None
        size = head[1] & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self.rfile.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.rfile.read(8))
        mask = self.rfile.read(4) if head[1] & 0x80 else bytes(4)
        masked = self.rfile.read(size)
        content = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
        return head[0] & 0x0F, content

    def send_frame(self, opcode: int, content: bytes) -> None:
        """Send one frame; a client that went away is noticed by its own reader."""
        size = len(content)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([size])
        elif size < 65536:
            head += struct.pack(">BH", 126, size)
        else:
            head += struct.pack(">BQ", 127, size)
        try:
            with self._sending:
                self.connection.sendall(head + content)
        except OSError:
            return


def main() -> None:
    """Serve a folder of music until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--music", type=Path, required=True, help="the folder to serve")
    parser.add_argument("--seen-as", help="its name on the server, to try path maps with")
    parser.add_argument("--port", type=int, default=32400)
    parser.add_argument("--token", default="stand-in-token")
    parser.add_argument("--webhook", help="where library.new is sent to")
    parser.add_argument("--scan-seconds", type=float, default=2.0, help="between looks for files")
    options = parser.parse_args()
    with PlexStandIn(token=options.token, port=options.port) as plex:
        plex.webhook_url = options.webhook
        root = options.music.resolve()
        library = plex.add_library(location=options.seen_as or str(root), root=root)
        print(f"{plex.name} {plex.version} at {plex.url}, token {plex.token}", flush=True)
        try:
            while True:
                for track in plex.scan(library):
                    print(f"new: {track.files[0]}", flush=True)
                time.sleep(options.scan_seconds)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
