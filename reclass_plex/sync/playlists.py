"""Playlists of files in Plex: those of them that the server has."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reclass_plex.plex import Playlist, Plex, find_playlist, write_playlist
from reclass_plex.store import Store
from reclass_plex.sync.places import Places
from reclass_plex.sync.undo import LOCK_SECONDS


@dataclass(frozen=True)
class PlexPlaylist:
    """A playlist that was written: how many tracks it has, and the files that Plex has not."""

    count: int
    missing: tuple[Path, ...]


def write_files(
    store: Store,
    plex: Plex,
    name: str,
    files: Sequence[Path],
    may_replace: Callable[[Playlist], object],
    should_stop: Callable[[], bool] = lambda: False,
) -> PlexPlaylist:
    """Make a playlist of files, in order. One of this name is given to `may_replace` first, which
    raises what it likes. Raises PlexError, and StoreBusy if a round of edits takes very long.
    """
    existing = find_playlist(plex, name)
    if existing is not None:
        may_replace(existing)
    # Who lists a library drops what is not in that list: two at once would drop each other's.
    with store.writing_plex(LOCK_SECONDS, should_stop):
        now = time.time()
        places = Places(store, plex)
        places.complete(now)
        found = places.find(files, now)
    keys = {path: found[path][0].rating_key for path in files if found.get(path)}
    made = write_playlist(plex, name, list(dict.fromkeys(keys.values())))
    return PlexPlaylist(made.count, tuple(path for path in files if path not in keys))
