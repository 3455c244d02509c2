"""A made-up library of any size, to see how things grow: real directory entries, and a store.

Entries are hard links to few files, so that a million take no more than their names and folders.
What the store knows of them is what `many_tracks` makes up, with an embedding each.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from many_tracks import digest_of, fill_store, path_of
from similar_store import clustered

from reclass_plex.config import Config
from reclass_plex.ensemble import Ensemble
from reclass_plex.learned_genres import ENCODER
from reclass_plex.store import Store
from reclass_plex.tables import embeddings

BATCH = 20_000  # tracks of one step
MTIME_NS = 10**18
LINKS = 50_000  # to one file: ext4 takes 65,000


@dataclass(frozen=True)
class Library:
    """A folder with `music`, and the store that knows all of it."""

    root: Path
    tracks: int

    @property
    def music(self) -> Path:
        """Where the files lie."""
        return self.root / "music"

    @property
    def store(self) -> Path:
        """The database."""
        return self.root / "state" / "store.sqlite"

    @property
    def is_made(self) -> bool:
        """Whether `make` was through."""
        return (self.root / "made").exists()

    def make(self) -> tuple[float, float]:
        """Make files and store; return the seconds of each."""
        began = time.perf_counter()
        size = self._make_files()
        files = time.perf_counter() - began
        _, vectors = clustered(self.tracks)
        models = Ensemble.from_config(Config()).fingerprint
        began = time.perf_counter()
        with Store.open(self.store) as store:
            for first in range(0, self.tracks, BATCH):
                end = min(first + BATCH, self.tracks)
                fill_store(
                    store,
                    end - first,
                    first=first,
                    seed=first,
                    folder=str(self.music),
                    stamp=(size, MTIME_NS),
                    models=models,
                )
                rows = [
                    {"digest": digest_of(n), "encoder": ENCODER, "vector": vectors[n].tobytes()}
                    for n in range(first, end)
                    if n % 500 != 499  # could not be read, says fill_store
                ]
                with store.transaction() as connection:
                    connection.execute(embeddings.insert(), rows)
        filled = time.perf_counter() - began
        (self.root / "made").touch()
        return files, filled

    def _make_files(self) -> int:
        sources = self.root / "sources"
        sources.mkdir(parents=True, exist_ok=True)
        folder, source = Path(), sources / "none"
        for number in range(self.tracks):
            if number % LINKS == 0:
                source = sources / f"{number:08}"
                source.write_bytes(b"fLaC" + bytes(60))
                os.utime(source, ns=(MTIME_NS, MTIME_NS))
            path = path_of(number, str(self.music))
            if path.parent != folder:
                folder = path.parent
                folder.mkdir(parents=True)
            os.link(source, path)
        return source.stat().st_size
