"""Plex: which tracks a server has, where they lie, and their genres. The only importer of plexapi.

Conventions: a rating key is Plex's number of an artist, album or track; times are POSIX seconds;
a Plex path is text as the server reports it, a local path a Path. Genres are compared without
regard to case and order, because Plex may keep an older spelling of a tag.

Answers are read here as XML and not as plexapi's objects: those ask the server again, one request
each, whenever an attribute that is read is empty (a track without genres), and a listing of them
keeps every element in memory. Listings show only the first genres of an item and no locks
[python-plexapi issue 249], so that genres and locks are always read from /library/metadata.

Nothing is retried here, that is the caller's: PlexUnreachable may work later, PlexUnauthorized
needs the user, any other PlexError will come again.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import TracebackType
from typing import Literal, TypeVar
from urllib.parse import quote
from xml.etree.ElementTree import Element, ParseError

import requests
from plexapi.exceptions import BadRequest, NotFound, Unauthorized
from plexapi.server import PlexServer

from reclass_plex.config import PathMap, PlexOptions
from reclass_plex.errors import ConfigError, PlexError, PlexUnauthorized, PlexUnreachable
from reclass_plex.records import GenreScore

Kind = Literal["artist", "album", "track"]

T = TypeVar("T")

KINDS: dict[str, Kind] = {"artist": "artist", "album": "album", "track": "track"}
TYPE_NUMBERS: dict[Kind, int] = {"artist": 8, "album": 9, "track": 10}  # plexapi.utils.SEARCHTYPES
TRACK_GENRES_SINCE = (1, 40, 0)  # server version [python-plexapi pull request 1318]
LIST_PAGE = 1000  # tracks of one answer
RECENT_PAGE = 200  # tracks of one answer; usually few are new
READ_CHUNK = 400  # items of one answer with all details: 400 keys are 3 kB of address
EDIT_CHUNK = 100  # items of one edit, as Kometa does
MAX_REMOVALS = 2000  # characters of the genres to remove in one edit: addresses have limits
RUNNER_UP_SHARE = 0.5  # of the first genre's votes, for an album to have a second
_SIGN_IN = "sign in again with reclass-plex init"
_DETAILS = "excludeElements=Media&excludeFields=summary,tagline&skipRefresh=1"


@dataclass(frozen=True)
class MusicLibrary:
    """A music library of the server; `folders` are Plex paths."""

    key: int
    title: str
    agent: str
    scanner: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class PlexTrack:
    """A track of the server. `genres` and `locked` are None where only a listing was read."""

    rating_key: int
    album_key: int
    artist_key: int
    library_key: int
    title: str
    paths: tuple[str, ...]
    added_at: int
    genres: tuple[str, ...] | None = None
    locked: bool | None = None


@dataclass(frozen=True)
class PlexItem:
    """The genres of an artist, album or track, and whether someone locked them."""

    rating_key: int
    kind: Kind
    library_key: int
    genres: tuple[str, ...]
    locked: bool


@dataclass(frozen=True)
class EditRecord:
    """One edit, to be kept before it is applied: with it alone the edit can be taken back.

    `before` and `was_locked` are what the item was before our first edit, `replaced` what it had
    when this one was planned (another genre of ours, if it is our second).
    """

    rating_key: int
    kind: Kind
    library_key: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    was_locked: bool
    replaced: tuple[str, ...]

    def is_ours(self, genres: Iterable[str]) -> bool:
        """Say whether an item with these genres still has what we wrote.

        A second edit that was planned and never applied, because the process was killed, has
        left our first.
        """
        if same_genres(genres, self.after):
            return True
        return same_genres(genres, self.replaced) and not same_genres(self.replaced, self.before)


@dataclass(frozen=True)
class Skipped:
    """An item that is left as it is, and why."""

    rating_key: int
    reason: str


@dataclass(frozen=True)
class EditPlan:
    """What is to be written; items that have the wanted genres already are in neither."""

    records: tuple[EditRecord, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class EditOutcome:
    """What became of an edit.

    done: read back as intended. gone: the item is no longer on the server. changed: someone
    edited it since, so it was left as it is. failed: the server did something else.
    """

    record: EditRecord
    status: Literal["done", "gone", "changed", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class ReportLine:
    """One line of what was found at start: ok, or a warning or error and what to do."""

    level: Literal["ok", "warning", "error"]
    text: str


@dataclass(frozen=True)
class _Change:
    """How the item of a record shall be; `remove` is what it has and must lose."""

    record: EditRecord
    genres: tuple[str, ...]
    locked: bool
    remove: tuple[str, ...]


class _Gone(PlexError):
    """There is no such item; internal, because only the caller knows whether that is an error."""


class Plex:
    """A connection to a Plex server. Not for several threads at once; close it after use.

    Raises ConfigError without an address, PlexUnauthorized, PlexUnreachable or PlexError, as do
    all methods.
    """

    def __init__(self, options: PlexOptions, token: str) -> None:
        if options.url is None:
            raise ConfigError("plex.url: is not set. It must be the server's address.")
        self.options = options
        self.url = options.url.rstrip("/")
        token = token.strip()
        if not re.fullmatch(r"[!-~]+", token):  # without one plexapi looks in its own files
            raise PlexUnauthorized(f"{self.url}: there is no token, or it is none; {_SIGN_IN}")
        self._session = requests.Session()
        try:
            with _named_errors(self.url):
                self._server = PlexServer(  # type: ignore[no-untyped-call]
                    self.url, token, self._session, options.timeout_seconds
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
            MusicLibrary(
                int(one.get("key", 0)),
                one.get("title", ""),
                one.get("agent", ""),
                one.get("scanner", ""),
                tuple(folder.get("path", "") for folder in one.iter("Location")),
            )
            for one in self._query("/library/sections")
            if one.get("type") == "artist"
            and (not named or one.get("title", "").casefold() in named)
        )

    def report(self) -> tuple[ReportLine, ...]:
        """Describe the server, its music libraries, and settings that bear on genres."""
        lines = [ReportLine("ok", f"Plex server {self.name}, version {self.version}, {self.url}")]
        if self.options.tracks and not self.has_track_genres:
            lines.append(
                ReportLine(
                    "warning",
                    f"version {self.version} has no genres of tracks, only of albums and artists;"
                    " update Plex to 1.40.0 or later",
                )
            )
        libraries = self.list_libraries()
        found = {library.title.casefold() for library in libraries}
        for title in self.options.libraries:
            if title.casefold() not in found:
                lines.append(ReportLine("error", f"plex.libraries: no music library {title!r}"))
        if not libraries:
            lines.append(ReportLine("error", "there is no music library to work on"))
        for library in libraries:
            folders = ", ".join(library.folders)
            lines.append(
                ReportLine(
                    "ok",
                    f"library {library.title}: agent {library.agent}, scanner {library.scanner},"
                    f" folders {folders}",
                )
            )
            for setting in self._query(f"/library/sections/{library.key}/prefs"):
                label = f"{setting.get('label', '')} ({setting.get('id', '')})"
                if re.search(r"genre|local metadata|respectTags", label, re.IGNORECASE):
                    value = _setting_text(setting)
                    lines.append(ReportLine("ok", f"library {library.title}: {label} is {value}"))
        return tuple(lines)

    def list_tracks(self, library_key: int, *, with_genres: bool = False) -> Iterator[PlexTrack]:
        """Yield all tracks of a library, oldest first, with one request for LIST_PAGE of them.

        With `with_genres` also genres and locks, at one more request for READ_CHUNK tracks.
        A track that is deleted meanwhile may hide another; the next run finds it.
        """
        tracks = self._list(library_key, "track.id:asc", LIST_PAGE)
        if not with_genres:
            yield from tracks
            return
        for chunk in _cut(tracks, READ_CHUNK):
            items = self.read_items([track.rating_key for track in chunk])
            for track in chunk:
                if (item := items.get(track.rating_key)) is not None:
                    yield replace(track, genres=item.genres, locked=item.locked)

    def recently_added(self, library_key: int, since: float) -> Iterator[PlexTrack]:
        """Yield the tracks that were added at `since` or later, the newest first."""
        seen = set()  # what is added between two pages moves tracks on into the next
        for track in self._list(library_key, "track.addedAt:desc", RECENT_PAGE):
            if track.added_at < int(since):
                return
            if track.rating_key not in seen:
                seen.add(track.rating_key)
                yield track

    def find_tracks(self, library_key: int, paths: Collection[Path]) -> dict[Path, PlexTrack]:
        """Return the tracks that are these local files, as far as the server knows them.

        The newest tracks are looked at first, and the search ends with the last of `paths`.
        """
        wanted = {_normal(path): path for path in paths}
        found: dict[Path, PlexTrack] = {}
        for track in self._list(library_key, "track.addedAt:desc", LIST_PAGE) if wanted else ():
            for plex_path in track.paths:
                local = to_local(plex_path, self.options.path_map)
                if local is not None and (path := wanted.get(_normal(local))) is not None:
                    found.setdefault(path, track)
            if len(found) == len(wanted):
                break
        return found

    def expand(self, rating_key: int) -> tuple[PlexTrack, ...]:
        """Return the tracks of an artist, an album or a track; none if it is gone, or no music."""
        key = f"/library/metadata/{rating_key}"
        try:
            item = next(self._pages(key, 1), None)
            if item is not None and item.get("type") == "track":
                return (_read_track(item),)
            if item is not None and item.get("type") in ("artist", "album"):
                leaves = "children" if item.get("type") == "album" else "allLeaves"
                return tuple(_read_track(one) for one in self._pages(f"{key}/{leaves}", LIST_PAGE))
        except _Gone:
            return ()
        return ()

    def read_items(self, rating_keys: Collection[int]) -> dict[int, PlexItem]:
        """Return genres and locks by rating key; items that are gone are left out."""
        items = {}
        for chunk in _cut(dict.fromkeys(rating_keys), READ_CHUNK):
            path = f"/library/metadata/{','.join(map(str, chunk))}?{_DETAILS}"
            try:
                elements = list(self._pages(path, READ_CHUNK))
            except _Gone:  # all of them; a part is left out of the answer
                continue
            for element in elements:
                if (item := _read_item(element)) is not None:
                    items[item.rating_key] = item
        return items

    def plan_edits(
        self,
        wanted: Mapping[int, Sequence[str]],
        former: Mapping[int, EditRecord] | None = None,
    ) -> EditPlan:
        """Decide which items (rating key: genres) must be written, and which must not.

        `former` are the records of our own edits by rating key: a lock that one of them set is
        ours. Keep the plan's records, each in the place of the item's former one, before they
        are applied; without them our own lock would be taken for the user's.
        """
        items = self.read_items(wanted)
        records: list[EditRecord] = []
        skipped: list[Skipped] = []
        for key, genres in wanted.items():
            decision = self._decide(key, items.get(key), tuple(genres), (former or {}).get(key))
            if isinstance(decision, EditRecord):
                records.append(decision)
            elif decision is not None:
                skipped.append(decision)
        return EditPlan(tuple(records), tuple(skipped))

    def apply_edits(self, records: Iterable[EditRecord]) -> tuple[EditOutcome, ...]:
        """Write planned edits, lock them, read them back, and repair what is not as intended.

        Locked, because a refresh of the metadata takes back what is not. If the connection is
        lost, PlexUnreachable is raised with some edits written: plan again, then apply.
        """
        return self._write(
            [
                _Change(record, record.after, True, _without(record.replaced, record.after))
                for record in records
            ]
        )

    def undo_edits(self, records: Iterable[EditRecord]) -> tuple[EditOutcome, ...]:
        """Restore genres and lock as they were before, where an item still has our genres."""
        kept = tuple(records)
        items = self.read_items([record.rating_key for record in kept])
        changes = []
        outcomes = {}
        for record in kept:
            item = items.get(record.rating_key)
            if item is None:
                outcomes[record] = EditOutcome(record, "gone")
            elif not record.is_ours(item.genres):
                now = ", ".join(item.genres) or "no genre"
                outcomes[record] = EditOutcome(record, "changed", f"it has {now} by now")
            else:
                remove = _without(item.genres, record.before)
                changes.append(_Change(record, record.before, record.was_locked, remove))
        outcomes |= {outcome.record: outcome for outcome in self._write(changes)}
        return tuple(outcomes[record] for record in kept)

    def _decide(
        self, key: int, item: PlexItem | None, genres: tuple[str, ...], former: EditRecord | None
    ) -> EditRecord | Skipped | None:
        """Return the edit of one item, why there is none, or None if it is as wanted."""
        options = self.options
        if item is None:
            return Skipped(key, "it is no longer on the server")
        if not {"track": options.tracks, "album": options.albums, "artist": options.artists}[
            item.kind
        ]:
            return Skipped(key, f"plex.{item.kind}s is off")
        if item.kind == "track" and not self.has_track_genres:
            return Skipped(key, f"Plex {self.version} has no track genres; 1.40.0 has")
        if not genres:
            return Skipped(key, "there is no genre to write")
        if same_genres(item.genres, genres):
            return None
        if former is not None and former.is_ours(item.genres):
            return replace(former, after=genres, replaced=item.genres)
        if item.locked and not options.overwrite_locked:
            return Skipped(key, "its genre was edited in Plex, which locked it")
        where = (item.rating_key, item.kind, item.library_key)
        return EditRecord(*where, item.genres, genres, item.locked, item.genres)

    def _write(self, changes: Sequence[_Change]) -> tuple[EditOutcome, ...]:
        """Put changes in as few requests as can be, then read back, repair, and read again."""
        refusals: dict[int, str] = {}
        for chunk, remove in _cut_edits(changes):
            if reason := self._put(chunk, chunk[0].genres, remove):
                refusals |= {change.record.rating_key: reason for change in chunk}
        items = self.read_items([change.record.rating_key for change in changes])
        wrong = [
            change
            for change in changes
            if (item := items.get(change.record.rating_key)) and not _reached(change, item)
        ]
        if wrong:
            self._repair(wrong, items)
            for change in wrong:
                items.pop(change.record.rating_key, None)
            items |= self.read_items([change.record.rating_key for change in wrong])
        outcomes = []
        for change in changes:
            key = change.record.rating_key
            if key not in items:
                outcomes.append(EditOutcome(change.record, "gone"))
            elif _reached(change, items[key]):
                outcomes.append(EditOutcome(change.record, "done"))
            else:
                kept = ", ".join(items[key].genres) or "no genre"
                reason = refusals.get(key) or f"Plex kept {kept}, locked: {items[key].locked}"
                outcomes.append(EditOutcome(change.record, "failed", reason))
        return tuple(outcomes)

    def _repair(self, wrong: Sequence[_Change], items: Mapping[int, PlexItem]) -> None:
        """Write again what did not come out right, one thing a request.

        It is said of some servers that of several removals in one request only one counts, and
        one item that is gone may have its whole chunk refused.
        """
        adding = defaultdict(list)
        removing = defaultdict(list)
        for change in wrong:
            item = items[change.record.rating_key]
            group = (item.library_key, item.kind, change.genres, change.locked)
            if _without(change.genres, item.genres) or item.locked != change.locked:
                adding[group].append(change)
            for genre in _without(item.genres, change.genres):
                removing[(group, genre)].append(change)
        for group, changes in adding.items():
            for chunk in _cut(changes, EDIT_CHUNK):
                self._put(chunk, group[2], ())
        for (_, genre), changes in removing.items():
            for chunk in _cut(changes, EDIT_CHUNK):
                self._put(chunk, (), (genre,))

    def _put(
        self, chunk: Sequence[_Change], genres: tuple[str, ...], remove: tuple[str, ...]
    ) -> str:
        """Edit items of one library, kind and lock. Returns why it was refused, or nothing.

        This is the request of plexapi's saveMultiEdits. What is to be removed is encoded twice,
        because the server splits it at commas after the first decoding.
        """
        record = chunk[0].record
        keys = ",".join(str(change.record.rating_key) for change in chunk)
        arguments = [f"type={TYPE_NUMBERS[record.kind]}", f"id={quote(keys, safe='')}"]
        arguments += [
            f"genre[{number}].tag.tag={quote(genre, safe='')}"
            for number, genre in enumerate(genres)
        ]
        if remove:
            removals = ",".join(quote(genre) for genre in remove)
            arguments.append(f"genre[].tag.tag-={quote(removals, safe='')}")
        arguments.append(f"genre.locked={int(chunk[0].locked)}")
        path = f"/library/sections/{record.library_key}/all?{'&'.join(arguments)}"
        try:
            self._query(path, method=self._session.put)
        except (PlexUnauthorized, PlexUnreachable):
            raise
        except PlexError as error:
            return str(error)
        return ""

    def _list(self, library_key: int, sort: str, size: int) -> Iterator[PlexTrack]:
        path = f"/library/sections/{library_key}/all?type=10&sort={quote(sort, safe='')}"
        for element in self._pages(path, size):
            yield _read_track(element)

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
        """Send one request, with the time limit of the options, and return the answer."""
        with _named_errors(self.url):
            answer: Element | None = self._server.query(  # type: ignore[no-untyped-call]
                path, method=method, headers=headers
            )
        if answer is None and method is not None:  # an edit has an empty answer
            return Element("MediaContainer")
        if answer is None or answer.tag != "MediaContainer":
            raise PlexUnreachable(f"{self.url}: the answer is not Plex's, but perhaps a proxy's")
        return answer


def to_local(plex_path: str, maps: Sequence[PathMap]) -> Path | None:
    """Return the local path of a Plex path: the longest prefix wins.

    A path that no prefix fits is the same on both sides, except one of Windows, which is None,
    as is a path that climbs (..).
    """
    path = _plex_path(plex_path)
    if ".." in path.parts or not path.is_absolute():
        return None
    best: tuple[int, Path] | None = None
    for one in maps:
        prefix = _plex_path(one.plex)
        if path.is_relative_to(prefix):
            length = len(prefix.parts)
            if best is None or length > best[0]:
                best = length, Path(one.local, *path.parts[length:])
    if best is not None:
        return best[1]
    return None if isinstance(path, PureWindowsPath) else Path(path)


def to_plex(path: Path, maps: Sequence[PathMap]) -> str | None:
    """Return the Plex path of a local path: the longest prefix wins that leads back to it.

    None if there is none, so that a path never becomes another file's.
    """
    if ".." in path.parts or not path.is_absolute():
        return None
    candidates = []
    for one in maps:
        if path.is_relative_to(one.local):
            length = len(Path(one.local).parts)
            candidates.append((length, str(_plex_path(one.plex).joinpath(*path.parts[length:]))))
    candidates.sort(key=lambda candidate: -candidate[0])
    for _, plex_path in (*candidates, (0, str(path))):
        if to_local(plex_path, maps) == path:
            return plex_path
    return None


def vote_genres(tracks: Iterable[Sequence[GenreScore]], max_genres: int = 1) -> tuple[str, ...]:
    """Return the genres of an album, or an artist, from those of its tracks.

    Each track votes for its genres with their confidence. The genre with the most votes is
    first; others need at least RUNNER_UP_SHARE of its votes. Nothing for no tracks.
    """
    votes: dict[str, float] = defaultdict(float)
    for genres in tracks:
        for genre in genres:
            votes[genre.name] += genre.confidence
    ranked = sorted(votes, key=lambda name: (-votes[name], name))[:max_genres]
    return tuple(name for name in ranked if votes[name] >= RUNNER_UP_SHARE * votes[ranked[0]])


def same_genres(some: Iterable[str], others: Iterable[str]) -> bool:
    """Say whether two sets of genres are the same to Plex."""
    return {_fold(genre) for genre in some} == {_fold(genre) for genre in others}


def parse_version(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a server version: 1.40.0.7775-456fbaf97 is (1, 40, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _plex_path(path: str) -> PurePath:
    """Tell paths of a server on Windows (D:\\Music, \\\\nas\\music) from the others."""
    windows = re.match(r"[A-Za-z]:[\\/]|\\\\", path)
    return PureWindowsPath(path) if windows else PurePosixPath(path)


def _normal(path: Path) -> str:
    """Return a path to compare with: macOS and some NAS write accents in two characters."""
    return unicodedata.normalize("NFC", str(path))


def _fold(genre: str) -> str:
    return unicodedata.normalize("NFC", genre).strip().casefold()


def _without(genres: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    folded = {_fold(genre) for genre in others}
    return tuple(genre for genre in genres if _fold(genre) not in folded)


def _reached(change: _Change, item: PlexItem) -> bool:
    return same_genres(item.genres, change.genres) and item.locked == change.locked


def _cut(whole: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield `whole` in lists of `size`."""
    rest = iter(whole)
    while chunk := list(islice(rest, size)):
        yield chunk


def _cut_edits(changes: Iterable[_Change]) -> Iterator[tuple[list[_Change], tuple[str, ...]]]:
    """Yield changes that one request can make, with all the genres that it must remove.

    They end alike, so that a removal for one of them cannot hurt another, and it does not
    matter whether the server adds the genres that are sent to the others or replaces them.
    Items with the same genres to lose are kept together, so that a request has few of them.
    """
    groups = defaultdict(list)
    for change in changes:
        where = (change.record.library_key, change.record.kind)
        groups[(where, change.genres, change.locked)].append(change)
    for group in groups.values():
        chunk: list[_Change] = []
        remove: dict[str, None] = {}
        for change in sorted(group, key=lambda change: change.remove):
            more = remove | dict.fromkeys(change.remove)
            length = sum(len(quote(quote(genre), safe="")) for genre in more)
            if chunk and (len(chunk) == EDIT_CHUNK or length > MAX_REMOVALS):
                yield chunk, tuple(remove)
                chunk, more = [], dict.fromkeys(change.remove)
            chunk.append(change)
            remove = more
        yield chunk, tuple(remove)


def _read_track(element: Element) -> PlexTrack:
    files = (part.get("file", "") for part in element.iter("Part"))
    return PlexTrack(
        rating_key=int(element.get("ratingKey", 0)),
        album_key=int(element.get("parentRatingKey", 0)),
        artist_key=int(element.get("grandparentRatingKey", 0)),
        library_key=int(element.get("librarySectionID", 0)),
        title=element.get("title", ""),
        paths=tuple(dict.fromkeys(file for file in files if file)),
        added_at=int(element.get("addedAt", 0)),
    )


def _read_item(element: Element) -> PlexItem | None:
    kind = KINDS.get(element.get("type", ""))
    if kind is None:
        return None
    locks = (one.get("name") for one in element.iter("Field") if one.get("locked") == "1")
    return PlexItem(
        rating_key=int(element.get("ratingKey", 0)),
        kind=kind,
        library_key=int(element.get("librarySectionID", 0)),
        genres=tuple(genre.get("tag", "") for genre in element.iter("Genre")),
        locked="genre" in locks,
    )


def _setting_text(setting: Element) -> str:
    """Return a setting's value in the words of the server: its choices are 0:None|1:Plex Music."""
    value = setting.get("value", "")
    if setting.get("type") == "bool":
        return "on" if value.lower() in ("1", "true") else "off"
    choices = (choice.partition(":") for choice in setting.get("enumValues", "").split("|"))
    return next((f"{text!r}" for key, _, text in choices if key == value and text), repr(value))


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
