"""A store that has heard many tracks: what the tests and the benchmark of similar music share."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reclass_plex.learned_genres import DIMS, ENCODER
from reclass_plex.store import Store
from reclass_plex.tables import embeddings, tracks, verdicts

GENRES = ("Rock", "Pop", "Jazz", "Metal", "Classical", "Hip-Hop", "Electronic", "Folk")
CLUSTERS = 300  # ways to sound
SPREAD = 0.6  # of the tracks of a cluster, in deviations of the clusters' middles


def clustered(count: int, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """Return the clusters (count,) and the vectors (count, DIMS) of tracks."""
    random = np.random.default_rng(seed)
    middles = random.standard_normal((CLUSTERS, DIMS), np.float32)
    which = random.integers(0, CLUSTERS, count)
    vectors = np.empty((count, DIMS), np.float16)
    for start in range(0, count, 10_000):
        part = which[start : start + 10_000]
        noise = SPREAD * random.standard_normal((len(part), DIMS), np.float32)
        vectors[start : start + len(part)] = middles[part] + noise
    return which, vectors


def digest_of(number: int) -> str:
    return f"{number:032x}"


def fill(
    store: Store,
    vectors: npt.NDArray[np.float16],
    genres: Sequence[tuple[str, ...]] = (),
    *,
    root: Path = Path("/music"),
    first: int = 0,
    album_size: int = 10,
) -> list[Path]:
    """Put heard tracks into the store, as the pipeline does, and return their paths.

    Ten tracks an album, five albums an artist; by default the genres take turns.
    """
    paths = []
    rows: list[tuple[dict[str, object], dict[str, object], dict[str, object]]] = []
    for number, vector in enumerate(vectors, first):
        album = number // album_size
        folder = root / f"Artist {album // 5:05}" / f"Album {album:06}"
        path = folder / f"{number:07}.flac"
        paths.append(path)
        mine = genres[number - first] if genres else (GENRES[album % len(GENRES)],)
        digest = digest_of(number)
        rows.append(
            (
                {
                    "path": path,
                    "size": 1,
                    "mtime_ns": 1,
                    "digest": digest,
                    "genres": mine,
                    "album": f"{folder}\nAlbum {album}",
                    "undone": False,
                },
                {"digest": digest, "encoder": ENCODER, "vector": vector.tobytes()},
                {
                    "digest": digest,
                    "models": "m",
                    "taxonomy": "default",
                    "genres": json.dumps([[GENRES[album % len(GENRES)], 0.8], ["Pop", 0.1]]),
                    "decided_by": "musicnn-full",
                    "votes": "[]",
                    "seconds": 0.1,
                    "created": 1.0,
                },
            )
        )
    with store.transaction() as connection:
        for table, values in zip(
            (tracks, embeddings, verdicts), zip(*rows, strict=True), strict=True
        ):
            connection.execute(table.insert(), list(values))
    return paths


def touch(paths: Sequence[Path]) -> None:
    for path in paths:
        os.makedirs(path.parent, exist_ok=True)
        path.touch()
