"""What Plex has told of, taken up: its tracks become local files, and the new ones jobs."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reclass_plex.batches import cut
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, is_leftover
from reclass_plex.jobs import Jobs
from reclass_plex.plex import Plex, PlexTrack, spellings, to_local
from reclass_plex.store import Store
from reclass_plex.sync import Places, Wanted

TRACKS_AT_ONCE = 500


@dataclass(frozen=True)
class News:
    """How many tracks were told of, and how many of them were new here."""

    tracks: int = 0
    new: int = 0

    def __add__(self, other: News) -> News:
        return News(self.tracks + other.tracks, self.new + other.new)


def take_up(
    tracks: Iterable[PlexTrack], plex: Plex, places: Places, store: Store, jobs: Jobs, now: float
) -> News:
    """Remember where tracks lie, and ask for those that exist here and are not known unchanged.

    What waited for Plex to know a file is due then.
    """
    news = News()
    wanted = Wanted(store)
    ours = (track for track in tracks if track.library_key in places.libraries)
    for chunk in cut(ours, TRACKS_AT_ONCE):
        places.remember(chunk, now)
        files = {
            file.path: file
            for track in chunk
            for path in track.paths
            if (file := _find_file(to_local(path, plex.options.path_map))) is not None
        }
        wanted.hasten(now, files)
        known = {track.path: track for track in store.known_files(list(files), "")}
        new = [
            path
            for path, file in files.items()
            if (track := known.get(path)) is None
            or (track.size, track.mtime_ns) != (file.size, file.mtime_ns)
        ]
        jobs.enqueue(new, "plex", now)
        news += News(len(chunk), len(new))
    return news


def _find_file(local: Path | None) -> FoundFile | None:
    """Return the music file at a path, however its accents are written on this disk."""
    if local is None or local.suffix.lower() not in AUDIO_SUFFIXES or is_leftover(local.name):
        return None
    for path in spellings(local):
        try:
            status = path.stat()
        except (OSError, ValueError):  # not there; or a name that no file can have
            continue
        if stat.S_ISREG(status.st_mode):
            return FoundFile(path, status.st_size, status.st_mtime_ns)
    return None
