"""A large library in a store, made up: for tests and benchmarks of what people look at."""

from __future__ import annotations

import json
import random
from pathlib import Path

from reclass_plex.genres import DEFAULT
from reclass_plex.store import Store
from reclass_plex.tables import jobs, tracks, verdicts

STAGES = ("musicnn-few", "fma518", "musicnn-full")
TRACKS_AN_ALBUM = 12


def path_of(number: int, folder: str = "/music") -> Path:
    """Return where a track lies: a dozen an album, five albums an artist."""
    album = number // TRACKS_AN_ALBUM
    place = f"{folder}/Artist {album // 5:05d}/Album {album:05d} Größe"
    return Path(f"{place}/{number % TRACKS_AN_ALBUM + 1:02d} Song {number}.flac")


def digest_of(number: int) -> str:
    """Return a track's audio digest."""
    return f"{number:064x}"


def fill_store(
    store: Store,
    count: int,
    *,
    first: int = 0,
    seed: int = 1,
    folder: str = "/music",
    stamp: tuple[int, int] | None = None,
    models: str = "models-1",
) -> None:
    """Put `count` tracks with tags, verdicts and jobs into a store, always the same ones.

    `first` is the number of the first, `stamp` the size and mtime (ns) that all files have, and
    `models` whose verdicts they are.
    """
    chance = random.Random(seed)
    for start in range(first, first + count, 2000):
        numbers = range(start, min(start + 2000, first + count))
        made = [_track(chance, n, folder, stamp, models) for n in numbers]
        with store.transaction() as connection:
            heard = [verdict for _, verdict, _ in made if verdict is not None]
            connection.execute(verdicts.insert(), heard)
            connection.execute(jobs.insert(), [job for _, _, job in made])
            connection.execute(tracks.insert(), [track for track, _, _ in made])


def _track(
    chance: random.Random,
    number: int,
    folder: str,
    stamp: tuple[int, int] | None,
    models: str,
) -> tuple[dict[str, object], dict[str, object] | None, dict[str, object]]:
    album = number // TRACKS_AN_ALBUM
    path = path_of(number, folder)
    size, mtime_ns = stamp or (30_000_000 + number, 10**18 + number)
    genre = DEFAULT.genres[(album * 7 + (number % 3 == 0)) % len(DEFAULT.genres)]
    digest = digest_of(number)
    confidence = chance.betavariate(4, 1.5)
    unsure = "too close to call" if confidence < 0.3 else None
    failed = number % 500 == 499
    ranked = [genre, *chance.sample([g for g in DEFAULT.genres if g != genre], 17)]
    left = (1 - confidence) / 17
    scores = [[name, round(left if at else confidence, 6)] for at, name in enumerate(ranked)]
    stage = STAGES[number % 10 // 4]
    tags = (genre,) if chance.random() < 0.5 else ("Other",) if chance.random() < 0.3 else ("Pop",)
    written = (genre,) if number % 4 == 0 and not failed else None
    track: dict[str, object] = {
        "path": path,
        "size": size,
        "mtime_ns": mtime_ns,
        "digest": None if failed else digest,
        "genres": () if failed else written or tags,
        "album": None if failed else f"{path.parent}\nAlbum {album:05d}",
        "written": written,
        "added": written or (),
        "undone": False,
        "error_kind": "not-audio" if failed else None,
        "error_message": "is empty" if failed else None,
    }
    verdict: dict[str, object] = {
        "digest": digest,
        "models": models,
        "taxonomy": "default",
        "genres": json.dumps(scores),
        "unsure": unsure,
        "decided_by": stage,
        "votes": json.dumps([[name, 0.1, scores] for name in STAGES]),
        "seconds": 0.3,
        "created": 1.7e9 + number,
    }
    state = "failed" if failed else "review" if unsure else "done"
    job: dict[str, object] = {
        "path": path,
        "folder": path.parent,
        "state": state,
        "reasons": ("watch",),
        "bulk": False,
        "due": 1.7e9,
        "attempts": 0,
        "deaths": 0,
        "message": None if state == "done" else unsure or "is empty",
        "changed": 1.7e9 + number,
    }
    return track, None if failed else verdict, job
