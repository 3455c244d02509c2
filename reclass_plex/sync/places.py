"""Where the server's tracks lie, kept, so that a file's track is found without listing all of them.

The rows of `plex_items` follow the server: a library is listed once, in pages; later only what was
recently added is read. When a track is deleted, or its file is moved within Plex, that shows when
it is looked for: then the library is listed again, at most once in `RELIST_SECONDS`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from reclass_plex.batches import cut
from reclass_plex.plex import Plex, PlexTrack, spellings, to_local
from reclass_plex.plex.client import LIST_PAGE
from reclass_plex.store import Store
from reclass_plex.tables import plex_items, plex_libraries

RECENT_OVERLAP = 600  # seconds before the newest known track: several come in at once
RELIST_SECONDS = 3600.0
STALE_SECONDS = 86400.0  # after which tracks may have moved to other albums


@dataclass(frozen=True)
class Place:
    """A track of the server, where one of its files is."""

    path: Path
    rating_key: int
    library_key: int
    album_key: int
    artist_key: int


class Places:
    """The tracks of the server that `plex` is connected to, in its libraries that are in use.

    `libraries` are these, by key.
    """

    def __init__(self, store: Store, plex: Plex) -> None:
        self._store = store
        self._plex = plex
        self._path_map = json.dumps([one.model_dump() for one in plex.options.path_map])
        self.libraries = tuple(library.key for library in plex.list_libraries())

    def complete(self, now: float) -> bool:
        """List the libraries of which not all is known, or that were listed long ago.

        Returns whether there was a new one, or one whose paths are mapped in another way by now:
        files may be found that were not before.
        """
        known = self._known()
        fresh = False
        for key in self.libraries:
            library = known.get(key)
            if library is None or library.path_map != self._path_map:
                fresh = True
            elif 0 <= now - library.listed < STALE_SECONDS:
                continue
            self._list(key, now)
        return fresh

    def find(self, paths: Collection[Path], now: float) -> dict[Path, list[Place]]:
        """Return the tracks of files, asking the server about those that are not known yet."""
        found = self._find(paths)
        if len(found) == len(set(paths)):
            return found
        for key, library in self._known().items():
            if key in self.libraries:
                recent = self._plex.recently_added(key, library.newest - RECENT_OVERLAP)
                self._read(key, recent, now)
        found = self._find(paths)
        if len(found) == len(set(paths)):
            return found
        for key, library in self._known().items():
            if key in self.libraries and not 0 <= now - library.listed < RELIST_SECONDS:
                self._list(key, now)
        return self._find(paths)

    def remember(self, tracks: Iterable[PlexTrack], now: float) -> None:
        """Keep where tracks are that were just read."""
        for page in cut(tracks, LIST_PAGE):  # no transaction waits for the server
            with self._store.transaction() as connection:
                _keep(connection, self._plex, page, now)

    def look_again(self, rating_keys: Collection[int], now: float) -> None:
        """Read anew where tracks are that are gone, or whose album or artist is."""
        self.forget(rating_keys)
        self.remember(self._plex.expand(rating_keys), now)

    def forget(self, rating_keys: Collection[int]) -> None:
        """Drop tracks that are no longer on the server."""
        mine = plex_items.c.server == self._plex.uuid
        with self._store.transaction() as connection:
            for chunk in cut(rating_keys):
                condition = plex_items.c.rating_key.in_(chunk)
                connection.execute(plex_items.delete().where(mine, condition))

    def below(
        self, kind: Literal["album", "artist"], keys: Collection[int]
    ) -> dict[int, list[list[Path]]]:
        """Return the tracks of albums, or of artists, by rating key: each track as its files."""
        column = plex_items.c[f"{kind}_key"]
        files: dict[int, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
        with self._store.transaction(write=False) as connection:
            for chunk in cut(keys):
                query = sa.select(column, plex_items.c.rating_key, plex_items.c.path).where(
                    plex_items.c.server == self._plex.uuid, column.in_(chunk)
                )
                for key, track, path in connection.execute(query):
                    files[key][track].append(path)
        return {key: list(tracks.values()) for key, tracks in files.items()}

    def _known(self) -> dict[int, sa.Row[Any]]:
        query = sa.select(plex_libraries).where(plex_libraries.c.server == self._plex.uuid)
        with self._store.transaction(write=False) as connection:
            return {row.library_key: row for row in connection.execute(query)}

    def _find(self, paths: Collection[Path]) -> dict[Path, list[Place]]:
        wanted = {spelling: path for path in paths for spelling in spellings(path)}
        found: dict[Path, list[Place]] = defaultdict(list)
        with self._store.transaction(write=False) as connection:
            for chunk in cut(wanted):
                query = sa.select(
                    *(plex_items.c[name] for name in Place.__dataclass_fields__)
                ).where(
                    plex_items.c.path.in_(chunk),
                    plex_items.c.server == self._plex.uuid,
                    plex_items.c.library_key.in_(self.libraries),
                )
                for row in connection.execute(query):
                    found[wanted[row.path]].append(Place(**row._mapping))
        return found

    def _list(self, library_key: int, now: float) -> None:
        """Read a whole library, and drop what is no longer there."""
        where = {"server": self._plex.uuid, "library_key": library_key}
        began = insert(plex_libraries).values(**where, path_map="", listed=0, newest=0)
        with self._store.transaction() as connection:
            connection.execute(began.on_conflict_do_nothing())
        self._read(library_key, self._plex.list_tracks(library_key), now)
        with self._store.transaction() as connection:
            connection.execute(
                plex_libraries.update()
                .filter_by(**where)
                .values(path_map=self._path_map, listed=now)
            )
            connection.execute(
                plex_items.delete().filter_by(**where).where(plex_items.c.seen != now)
            )

    def _read(self, library_key: int, tracks: Iterable[PlexTrack], now: float) -> None:
        """Keep tracks, and when all are read, which of them is the newest."""
        newest = 0

        def watched() -> Iterator[PlexTrack]:
            nonlocal newest
            for track in tracks:
                newest = max(newest, track.added_at)
                yield track

        self.remember(watched(), now)
        newest = min(newest, int(now))  # Plex takes some from the files, whose clocks may be wrong
        with self._store.transaction() as connection:
            connection.execute(
                plex_libraries.update()
                .filter_by(server=self._plex.uuid, library_key=library_key)
                .where(plex_libraries.c.newest < newest)
                .values(newest=newest)
            )


def _keep(connection: sa.Connection, plex: Plex, tracks: Collection[PlexTrack], now: float) -> None:
    for chunk in cut(track.rating_key for track in tracks):
        connection.execute(
            plex_items.delete().where(
                plex_items.c.server == plex.uuid, plex_items.c.rating_key.in_(chunk)
            )
        )
    rows = [
        {
            "server": plex.uuid,
            "rating_key": track.rating_key,
            "path": local,
            "library_key": track.library_key,
            "album_key": track.album_key,
            "artist_key": track.artist_key,
            "seen": now,
        }
        for track in tracks
        for path in track.paths
        if (local := to_local(path, plex.options.path_map)) is not None
    ]
    if rows:
        # Two Plex paths may lead to one local file.
        connection.execute(insert(plex_items).on_conflict_do_nothing(), rows)
