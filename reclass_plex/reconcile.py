"""Comparing folders with the store and the queue, in case something was missed.

Put in line are files that
1. the store does not know, or knows with another size or mtime, unless they failed and did not
   change since: that is for a person to look at;
2. it knows, but of which nothing came yet: nothing was written, taken back or found wrong, and no
   job tells why not. So after a dry run, or when their disk was away.

What is in line already stays as it is. Jobs of files that are gone are dropped, if the folder is
healthy: an empty mount point is no deletion. Everything goes in batches, whatever the folders hold.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from reclass_plex.errors import FileError, printable
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files
from reclass_plex.jobs import HELD, IN_LINE, Jobs
from reclass_plex.store import KnownTrack, Store

log = logging.getLogger(__name__)

REASON = "reconcile"
_BATCH = 500  # files that the store is asked about at once
_PAGE = 5000  # jobs whose files are looked for at once


@dataclass(frozen=True)
class Reconciled:
    """What a comparison found: files, those put in line, jobs dropped, paths that no one may read.

    `finished` is false if it was stopped, or a folder was left out as it is not healthy.
    """

    found: int
    queued: int
    forgotten: int
    unreadable: int
    finished: bool


def reconcile(
    folders: Collection[Path],
    store: Store,
    jobs: Jobs,
    *,
    is_healthy: Callable[[Path], bool],
    settle_seconds: float = 0.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_gone: Callable[[Collection[Path]], object] = lambda paths: None,
    on_leftover: Callable[[Path], object] = lambda path: None,
) -> Reconciled:
    """Compare `folders` with what is known, and put in line what is new or changed.

    Files that changed within `settle_seconds` wait that long. May be stopped, or killed, at any
    time; the next one begins anew. `on_gone` is told of files that had jobs and are gone,
    `on_leftover` of temporary copies of ours on the way.
    """
    began = time.perf_counter()
    healthy = [folder for folder in folders if is_healthy(folder)]
    found = queued = unreadable = 0
    walk = find_audio_files(healthy, AUDIO_SUFFIXES, on_leftover)
    while not should_stop() and (batch := list(islice(walk, _BATCH))):
        files = [item for item in batch if isinstance(item, FoundFile)]
        for item in batch:
            if isinstance(item, FileError):
                unreadable += 1
                log.debug("%s", item)
        found += len(files)
        queued += _queue(_missed(files, store, jobs), jobs, settle_seconds)
    forgotten = 0
    for folder in healthy:
        for gone in _vanished(folder, jobs, should_stop):
            # After they were missed: a mount that went away meanwhile shows now.
            if not is_healthy(folder):
                break
            missing = [path for path in gone if not os.path.lexists(path)]
            on_gone(missing)
            forgotten += jobs.forget_files(missing)
    log.info(
        "compared %d files with the store in %.1f s: %d put in line, %d jobs dropped,"
        " %d paths unreadable",
        *(found, time.perf_counter() - began, queued, forgotten, unreadable),
    )
    finished = not should_stop() and len(healthy) == len(folders)
    return Reconciled(found, queued, forgotten, unreadable, finished)


def _missed(files: Sequence[FoundFile], store: Store, jobs: Jobs) -> list[FoundFile]:
    """Return the files that should be worked on, and are not in line."""
    known = {track.path: track for track in store.known_files([file.path for file in files], "")}
    new = [file for file in files if not _is_same(file, known.get(file.path))]
    dormant = [
        file
        for file in files
        if _is_same(file, known.get(file.path)) and _came_nothing_of(known[file.path])
    ]
    outcomes = jobs.outcomes([file.path for file in (*new, *dormant)])
    missed = [file for file in dormant if file.path not in outcomes]
    for file in new:
        state, since = outcomes.get(file.path, (None, 0.0))
        if state in (*HELD, *IN_LINE) or (
            state == "failed" and not _changed_since(file.path, since)
        ):
            continue
        missed.append(file)
    return missed


def _is_same(file: FoundFile, known: KnownTrack | None) -> bool:
    return known is not None and (known.size, known.mtime_ns) == (file.size, file.mtime_ns)


def _came_nothing_of(track: KnownTrack) -> bool:
    return track.error is None and track.written is None and not track.undone


def _changed_since(path: Path, since: float) -> bool:
    """Tell whether a file changed after a time, by what no program can set (ctime)."""
    try:
        return path.stat().st_ctime > since
    except OSError:
        return False


def _queue(files: Sequence[FoundFile], jobs: Jobs, settle_seconds: float) -> int:
    now = time.time()
    fresh = (now - settle_seconds) * 1e9
    young = [file.path for file in files if file.mtime_ns > fresh]
    old = [file.path for file in files if file.mtime_ns <= fresh]
    queued = jobs.enqueue(young, REASON, now, settle=settle_seconds, bulk=True) if young else 0
    return queued + (jobs.enqueue(old, REASON, now, bulk=True) if old else 0)


def _vanished(folder: Path, jobs: Jobs, should_stop: Callable[[], bool]) -> Iterator[list[Path]]:
    """Yield the paths with jobs below a folder that are not there, a page at a time.

    A folder is listed once for all its tracks: on a network that is much faster than a look at
    each.
    """
    last: bytes | None = None
    while not should_stop() and (page := jobs.paths_below(folder, last, _PAGE)):
        last = page[-1]
        places = [os.path.split(path) for path in page]  # bytes: see `paths_below`
        names = {parent: _names(parent) for parent in {parent for parent, _ in places}}
        gone = [
            Path(os.fsdecode(path))
            for path, (parent, name) in zip(page, places, strict=True)
            if (there := names[parent]) is not None and name not in there
        ]
        if gone:
            yield gone


def _names(folder: bytes) -> set[bytes] | None:
    """Return what lies in a folder: nothing if it is not there, None if that cannot be told."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - the names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        log.debug("%s: cannot be read: %s", printable(os.fsdecode(folder)), error.strerror)
        return None
