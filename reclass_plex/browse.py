"""The library for people to search and read: tracks and albums, with what was heard in them.

Reading only, in pages (see `cursors`), quick at 100,000 tracks: searching and sorting go by
`listing`, a table that the database keeps up to date, and only a page's rows are looked up whole.
A track's verdict here is the newest one. What was done is in `browse_history`, figures of the
whole library are in `browse_statistics`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from reclass_plex.browse_history import ChangeRow, PlexEditRow, track_changes
from reclass_plex.browse_statistics import NameCount
from reclass_plex.cursors import Key, Page, make_cursor, read_cursor
from reclass_plex.jobs import Job, Jobs, State
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.store import Store, at_or_below, fold
from reclass_plex.tables import jobs, listing, plex_edits, tracks, verdicts

Sort = Literal["path", "-path", "confidence", "-confidence", "heard", "-heard", "id", "-id"]
SORTS: tuple[Sort, ...] = get_args(Sort)
MAX_WORDS = 8  # of a search; what comes after them is left out
MAX_ALBUM_TRACKS = 1000
_SHOWN = 5  # genres of a verdict in a list


@dataclass(frozen=True)
class TrackFilter:
    """Which tracks are meant: those that meet all that is set.

    `text`: words that must all occur in path or album, in any case. `genre` is the verdict's
    first, `tag` one that the file has, `stage` the deciding one, `album` an album's id,
    `error_kind` that of a file that could not be read, `state` that of its job. Confidences are
    inclusive bounds. `heard`: whether there is a verdict at all.
    """

    text: str | None = None
    genre: str | None = None
    tag: str | None = None
    stage: str | None = None
    album: str | None = None
    folder: Path | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    unsure: bool | None = None
    error: bool | None = None
    error_kind: str | None = None
    state: State | None = None
    written: bool | None = None
    heard: bool | None = None


@dataclass(frozen=True)
class TrackRow:
    """A track in a list. `genres` are what was heard, ranked, the first five; `tags` what it says.

    `album` is the album's title, `album_id` names it to `find_album`. `written` is what we wrote
    last (None: nothing, or `undone`). `state` and `message` are those of its job, if it has one.
    """

    id: int
    path: Path
    album: str | None
    album_id: str | None
    tags: tuple[str, ...]
    genres: tuple[GenreScore, ...]
    decided_by: str | None
    unsure: str | None
    heard: float | None
    written: tuple[str, ...] | None
    undone: bool
    error_kind: str | None
    error_message: str | None
    state: State | None
    message: str | None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def confidence(self) -> float | None:
        """Of the first genre."""
        return self.genres[0].confidence if self.genres else None


@dataclass(frozen=True)
class TrackDetail:
    """All that is known of a track. `verdict` has every stage's vote and its seconds.

    `copies` are other files with the same audio. `changes` and `plex_edits` are newest first.
    """

    row: TrackRow
    digest: str | None
    size: int
    mtime_ns: int
    moods: tuple[str, ...]
    models: str | None
    verdict: Verdict | None
    job: Job | None
    copies: tuple[Path, ...]
    changes: tuple[ChangeRow, ...]
    plex_edits: tuple[PlexEditRow, ...]


@dataclass(frozen=True)
class AlbumRow:
    """An album in a list. `genres` are what was heard in its tracks, most of them first."""

    id: str
    folder: str
    title: str
    tracks: int
    heard: int
    unsure: int
    written: int
    failed: int
    confidence: float | None  # the least sure track's
    genres: tuple[NameCount, ...]


@dataclass(frozen=True)
class AlbumDetail:
    """An album and its tracks by path, at most `MAX_ALBUM_TRACKS`."""

    row: AlbumRow
    tracks: tuple[TrackRow, ...]


# Tracks


def list_tracks(
    store: Store,
    wanted: TrackFilter = TrackFilter(),
    *,
    sort: Sort = "path",
    cursor: str | None = None,
    limit: int = 50,
) -> Page[TrackRow]:
    """Return a page of tracks. Raises BadCursor for one that is not of this order.

    A sort is a key, with "-" before it from the greatest down; "heard" is the verdict's time and
    "id" the order in which tracks came to be known.
    """
    name = sort.removeprefix("-")
    down = sort.startswith("-")
    column, kind = _SORT_COLUMNS[name]
    keys = [column] if name in {"path", "id"} else [column, listing.c.track_id]
    query = sa.select(listing.c.track_id, column.label("key")).where(*_conditions(wanted))
    if cursor is not None:
        types: list[type[Key]] = [kind, int][: len(keys)]
        last = read_cursor(cursor, f"tracks {sort}", *types)
        here = sa.tuple_(*keys) if len(keys) > 1 else keys[0]
        there = sa.tuple_(*last) if len(keys) > 1 else sa.literal(last[0], keys[0].type)
        query = query.where(here < there if down else here > there)
    if name in {"confidence", "heard"} and _is_rare(wanted):
        keys[0] = column + 0.0  # or SQLite walks the whole library in this order, to find few
    query = query.order_by(*(key.desc() if down else key for key in keys)).limit(limit + 1)
    with store.transaction(write=False) as connection:
        found = connection.execute(query).all()
        rows = _track_rows(connection, [row.track_id for row in found[:limit]])
    following = None
    if len(found) > limit:
        end = found[limit - 1]
        following = make_cursor(f"tracks {sort}", *(end.key, end.track_id)[: len(keys)])
    return Page(rows, following)


def count_tracks(
    store: Store, wanted: TrackFilter = TrackFilter(), *, at_most: int = 10_000
) -> int:
    """Count the tracks that are meant, up to `at_most`."""
    query = sa.select(listing.c.track_id).where(*_conditions(wanted)).limit(at_most).subquery()
    with store.transaction(write=False) as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(query)).scalar_one()
    return int(count)


def find_track(store: Store, track_id: int) -> TrackDetail | None:
    """Return all that is known of one track, None if there is no such."""
    with store.transaction(write=False) as connection:
        rows = _track_rows(connection, [track_id])
        if not rows:
            return None
        row = rows[0]
        known = connection.execute(sa.select(tracks).where(tracks.c.id == track_id)).one()
        models = connection.execute(
            sa.select(listing.c.models).where(listing.c.track_id == track_id)
        ).scalar()
        copies = ()
        if known.digest is not None:
            query = sa.select(tracks.c.path).where(
                tracks.c.digest == known.digest, tracks.c.id != track_id
            )
            copies = tuple(connection.execute(query.order_by(tracks.c.path).limit(100)).scalars())
        edits = sa.select(*(plex_edits.c[name] for name in PlexEditRow.__dataclass_fields__))
        edits = edits.where(plex_edits.c.path == row.path).order_by(plex_edits.c.id.desc())
        edited = tuple(PlexEditRow(**e._mapping) for e in connection.execute(edits.limit(100)))
    return TrackDetail(
        row=row,
        digest=known.digest,
        size=known.size,
        mtime_ns=known.mtime_ns,
        moods=known.moods or (),
        models=models,
        verdict=store.find_verdict(known.digest, models) if known.digest and models else None,
        job=Jobs(store).find(row.path),
        copies=copies,
        changes=track_changes(store, track_id),
        plex_edits=edited,
    )


def find_track_id(store: Store, path: Path) -> int | None:
    """Return the id of the track at a path."""
    with store.transaction(write=False) as connection:
        return connection.execute(sa.select(tracks.c.id).where(tracks.c.path == path)).scalar()


_raw_path = sa.type_coerce(listing.c.path, sa.LargeBinary)
_SORT_COLUMNS: dict[str, tuple[sa.ColumnElement[Any], type[Key]]] = {
    "path": (_raw_path, bytes),
    "confidence": (listing.c.confidence, float),
    "heard": (listing.c.heard, float),
    "id": (listing.c.track_id, int),
}


def _is_rare(wanted: TrackFilter) -> bool:
    """Tell whether few tracks are likely meant, so that to sort these is less work."""
    few = wanted.text is not None and wanted.text.isascii()
    return bool(few or wanted.unsure or wanted.error or wanted.error_kind or wanted.tag)


def _conditions(wanted: TrackFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if wanted.text is not None:
        found += _text_conditions(wanted.text)
    for column, value in (
        (listing.c.genre, wanted.genre),
        (listing.c.decided_by, wanted.stage),
        (listing.c.error_kind, wanted.error_kind),
        (listing.c.state, wanted.state),
    ):
        if value is not None:
            # With words to find, all are looked at anyway, which is dear in the order of an index.
            by_index = wanted.text is None or column is listing.c.genre
            found.append((column if by_index else sa.func.coalesce(column, "")) == value)
    if wanted.album is not None:
        key = _album_key(wanted.album)
        found.append(sa.false() if key is None else listing.c.album == key)
    if wanted.tag is not None:
        found.append(sa.func.instr(listing.c.tags, json.dumps(wanted.tag)) > 0)
    if wanted.folder is not None:
        found.append(at_or_below(listing.c.path, wanted.folder))
    if wanted.min_confidence is not None:
        found.append(listing.c.confidence >= wanted.min_confidence)
    if wanted.max_confidence is not None:
        found.append(listing.c.confidence.between(0, wanted.max_confidence))
    for column, yes in ((listing.c.unsure, wanted.unsure), (listing.c.error_kind, wanted.error)):
        if yes is not None:
            found.append(column.is_not(None) if yes else column.is_(None))
    if wanted.written is not None:
        found.append(listing.c.written if wanted.written else ~listing.c.written)
    if wanted.heard is not None:
        found.append(listing.c.heard > 0 if wanted.heard else listing.c.heard == 0)
    return found


def _text_conditions(text: str) -> list[sa.ColumnElement[bool]]:
    """Words are left to SQLite where it knows their cases; else it is asked to call `has_text`."""
    found: list[sa.ColumnElement[bool]] = []
    path = sa.cast(listing.c.path, sa.Text)
    for word in text.split()[:MAX_WORDS]:
        forms = {unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)}
        exact = word.isascii() or word.lower() == word.upper() == word
        if not exact:  # what of it can be looked for before: no S, as ß is ss, too
            plain = re.findall(r"[!-RT-rt-~]*", unicodedata.normalize("NFC", word))
            forms = {max(plain, key=len)}
            found.append(sa.func.has_text(listing.c.path, listing.c.album, fold(word)) == 1)
        patterns = ["%" + re.sub(r"([%_~])", r"~\1", form) + "%" for form in forms]
        columns = (path, listing.c.album)
        found.append(sa.or_(*(c.like(one, escape="~") for c in columns for one in patterns)))
    return found


def _track_rows(connection: sa.Connection, ids: Sequence[int]) -> tuple[TrackRow, ...]:
    """Look the rows of a page up, in this order."""
    query: sa.Select[Any] = (
        sa.select(
            *(tracks.c.id, tracks.c.path, tracks.c.album, tracks.c.genres, tracks.c.written),
            *(tracks.c.undone, tracks.c.error_kind, tracks.c.error_message),
            *(listing.c.heard, verdicts.c.genres.label("said"), verdicts.c.decided_by),
            *(verdicts.c.unsure, jobs.c.state, jobs.c.message),
        )
        .select_from(
            tracks.join(listing, listing.c.track_id == tracks.c.id)
            .outerjoin(
                verdicts,
                sa.and_(
                    verdicts.c.digest == tracks.c.digest, verdicts.c.models == listing.c.models
                ),
            )
            .outerjoin(jobs, jobs.c.path == tracks.c.path)
        )
        .where(tracks.c.id.in_(ids))
    )
    found = {row.id: row for row in connection.execute(query)}
    return tuple(_track_row(found[track_id]) for track_id in ids if track_id in found)


def _track_row(row: sa.Row[Any]) -> TrackRow:
    said = json.loads(row.said)[:_SHOWN] if row.said is not None else ()
    return TrackRow(
        id=row.id,
        path=row.path,
        album=None if row.album is None else _split(row.album)[1],
        album_id=None if row.album is None else _album_id(row.album),
        tags=row.genres,
        genres=tuple(map(GenreScore._make, said)),
        decided_by=row.decided_by,
        unsure=row.unsure,
        heard=row.heard or None,
        written=None if row.undone else row.written,
        undone=row.undone,
        error_kind=row.error_kind,
        error_message=row.error_message,
        state=row.state,
        message=row.message,
    )


# Albums


def list_albums(
    store: Store,
    *,
    text: str | None = None,
    genre: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page[AlbumRow]:
    """Return a page of albums by folder: those with a track that meets what is set.

    Raises BadCursor.
    """
    query = sa.select(listing.c.album).where(listing.c.album.is_not(None)).distinct()
    query = query.where(*_conditions(TrackFilter(text=text, genre=genre)))
    if cursor is not None:
        query = query.where(listing.c.album > read_cursor(cursor, "albums", str)[0])
    with store.transaction(write=False) as connection:
        keys = list(connection.execute(query.order_by(listing.c.album).limit(limit + 1)).scalars())
        rows = _album_rows(connection, keys[:limit])
    return Page(rows, make_cursor("albums", keys[limit - 1]) if len(keys) > limit else None)


def find_album(store: Store, album_id: str) -> AlbumDetail | None:
    """Return an album and its tracks, None if there is no such."""
    key = _album_key(album_id)
    if key is None:
        return None
    query = sa.select(listing.c.track_id).where(listing.c.album == key)
    query = query.order_by(listing.c.path).limit(MAX_ALBUM_TRACKS)
    with store.transaction(write=False) as connection:
        rows = _album_rows(connection, [key])
        if not rows:
            return None
        ids = list(connection.execute(query).scalars())
        return AlbumDetail(rows[0], _track_rows(connection, ids))


def _album_rows(connection: sa.Connection, keys: Sequence[str]) -> tuple[AlbumRow, ...]:
    count = sa.func.count()
    heard = listing.c.confidence >= 0
    query = (
        sa.select(
            *(listing.c.album, listing.c.genre, count.label("tracks")),
            count.filter(heard).label("heard"),
            count.filter(listing.c.unsure.is_not(None)).label("unsure"),
            count.filter(listing.c.written).label("written"),
            count.filter(listing.c.error_kind.is_not(None)).label("failed"),
            sa.func.min(listing.c.confidence).filter(heard).label("confidence"),
        )
        .where(listing.c.album.in_(keys))
        .group_by(listing.c.album, listing.c.genre)
    )
    found: defaultdict[str, list[sa.Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.album].append(row)
    return tuple(_album_row(key, found[key]) for key in keys if found[key])


def _album_row(key: str, rows: Sequence[sa.Row[Any]]) -> AlbumRow:
    folder, title = _split(key)
    said = sorted((row for row in rows if row.genre), key=lambda row: (-row.tracks, row.genre))
    return AlbumRow(
        id=_album_id(key),
        folder=folder,
        title=title,
        tracks=sum(row.tracks for row in rows),
        heard=sum(row.heard for row in rows),
        unsure=sum(row.unsure for row in rows),
        written=sum(row.written for row in rows),
        failed=sum(row.failed for row in rows),
        confidence=min((r.confidence for r in rows if r.confidence is not None), default=None),
        genres=tuple(NameCount(row.genre, row.tracks) for row in said),
    )


def _split(key: str) -> tuple[str, str]:
    """Return an album's folder and title from the key that its tracks share."""
    folder, _, title = key.partition("\n")
    return folder, title or folder.rpartition("/")[2]


def _album_id(key: str) -> str:
    """Return a name for an album that stands in any address."""
    text = base64.urlsafe_b64encode(key.encode("utf-8", "surrogatepass"))
    return text.rstrip(b"=").decode("ascii")


def _album_key(album_id: str) -> str | None:
    try:
        padded = album_id.encode("ascii") + b"=" * (-len(album_id) % 4)
        return base64.b64decode(padded, b"-_", True).decode("utf-8")
    except (ValueError, binascii.Error):
        return None
