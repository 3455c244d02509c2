"""What the store has for similar music: vectors in the order they came, and whose they are.

An id is a row of `embeddings`: of one recording (audio digest), which may lie at several paths.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.genres import genre_key
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.tables import embeddings, tracks, verdicts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reclass_plex.vector_index import Halves, Ids

_raw_path = sa.type_coerce(tracks.c.path, sa.LargeBinary)


@dataclass(frozen=True)
class HeardFile:
    """A file of a recording: what it says, and the album it belongs to (see `tables.tracks`)."""

    raw_path: bytes
    genres: tuple[str, ...]
    album: str | None

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(os.fsdecode(self.raw_path))


@dataclass(frozen=True)
class HeardRecording:
    """A recording with its files, in the order in which they came.

    `said` is the last verdict's ranked genres, as the store has them; None where it was unsure.
    Most are only passed by on the way to a few, so that little is unpacked.
    """

    id: int
    digest: str
    files: tuple[HeardFile, ...]
    said: str | None

    @property
    def heard(self) -> GenreScore | None:
        """What was heard in it; None where that was unsure."""
        ranked = json.loads(self.said)[:1] if self.said is not None else ()
        return GenreScore(*ranked[0]) if ranked else None


class HeardTracks:
    """What one encoder heard of the tracks in the store. `dims` is the length of its vectors."""

    def __init__(self, store: Store, encoder: str, dims: int) -> None:
        self._store = store
        self._mine = embeddings.c.encoder == encoder
        self._dims = dims

    def newest(self) -> int:
        """Return the highest id that there is; it never goes back, but in a restored backup."""
        with self._store.transaction(write=False) as connection:
            return connection.execute(sa.select(sa.func.max(embeddings.c.id))).scalar() or 0

    def count(self, until: int) -> int:
        """Return how many vectors there are with ids up to this one."""
        query = sa.select(sa.func.count()).where(self._mine, embeddings.c.id <= until)
        with self._store.transaction(write=False) as connection:
            return int(connection.execute(query).scalar_one())

    def count_after(self, mark: int) -> int:
        """Return how many vectors there are with higher ids than this one."""
        query = sa.select(sa.func.count()).where(self._mine, embeddings.c.id > mark)
        with self._store.transaction(write=False) as connection:
            return int(connection.execute(query).scalar_one())

    def read(self, after: int, until: int, size: int) -> Iterator[tuple[Ids, Halves]]:
        """Yield ids and unit vectors in batches of at most `size`, in order.

        A vector that is no direction (damaged, or all zero) is left out. No transaction is open
        between batches.
        """
        while True:
            query = (
                sa.select(embeddings.c.id, embeddings.c.vector)
                .where(self._mine, embeddings.c.id > after, embeddings.c.id <= until)
                .order_by(embeddings.c.id)
                .limit(size)
            )
            with self._store.transaction(write=False) as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            after = rows[-1][0]
            ids, vectors = self._unit_vectors([(row[0], row[1]) for row in rows])
            if len(ids):
                yield ids, vectors
            if len(rows) < size:
                return

    def vectors_of(self, ids: Sequence[int]) -> tuple[Ids, Halves]:
        """Return those of these ids that there are, and their unit vectors."""
        pairs: list[tuple[int, bytes]] = []
        with self._store.transaction(write=False) as connection:
            for chunk in cut(ids):
                query = sa.select(embeddings.c.id, embeddings.c.vector)
                rows = connection.execute(query.where(self._mine, embeddings.c.id.in_(chunk)))
                pairs += [(row[0], row[1]) for row in rows]
        return self._unit_vectors(pairs)

    def id_of(self, digest: str) -> int | None:
        """Return the id of a recording."""
        query = sa.select(embeddings.c.id).where(self._mine, embeddings.c.digest == digest)
        with self._store.transaction(write=False) as connection:
            return connection.execute(query).scalar()

    def digest_at(self, path: Path) -> str | None:
        """Return the recording that was last seen at a path."""
        query = sa.select(tracks.c.digest).where(tracks.c.path == path)
        with self._store.transaction(write=False) as connection:
            return connection.execute(query).scalar()

    def sample(self, until: int, size: int) -> tuple[tuple[int, str], ...]:
        """Return (id, digest) of the last `size`, and of as many that are spread over all ids."""
        last = (
            sa.select(embeddings.c.id, embeddings.c.digest)
            .where(embeddings.c.id <= until)
            .order_by(embeddings.c.id.desc())
            .limit(size)
        )
        spread = [until * number // (size + 1) for number in range(1, size + 1)]
        some = sa.select(embeddings.c.id, embeddings.c.digest).where(embeddings.c.id.in_(spread))
        with self._store.transaction(write=False) as connection:
            rows = [*connection.execute(last), *connection.execute(some)]
        return tuple(sorted({(row[0], row[1]) for row in rows}))

    def contradicts(self, samples: Sequence[tuple[int, str]]) -> bool:
        """Tell whether an id has become another recording's: this is another store, or older."""
        known = dict(samples)
        query = sa.select(embeddings.c.id, embeddings.c.digest).where(embeddings.c.id.in_(known))
        with self._store.transaction(write=False) as connection:
            return any(known[row[0]] != row[1] for row in connection.execute(query))

    def describe(self, ids: Collection[int]) -> dict[int, HeardRecording]:
        """Return whose vectors these are, without those of which no file is known."""
        files: dict[int, list[HeardFile]] = defaultdict(list)
        digests: dict[int, str] = {}
        heard: dict[str, str | None] = {}
        with self._store.transaction(write=False) as connection:
            for chunk in cut(ids):
                query = (
                    sa.select(
                        *(embeddings.c.id, embeddings.c.digest),
                        *(_raw_path.label("raw_path"), tracks.c.genres, tracks.c.album),
                    )
                    .join(tracks, tracks.c.digest == embeddings.c.digest)
                    .where(embeddings.c.id.in_(chunk))
                    .order_by(tracks.c.id)
                )
                for row in connection.execute(query):
                    digests[row.id] = row.digest
                    files[row.id].append(HeardFile(row.raw_path, row.genres, row.album))
            for some in cut(digests.values()):
                said = (
                    sa.select(verdicts.c.digest, verdicts.c.genres, verdicts.c.unsure)
                    .where(verdicts.c.digest.in_(some))
                    .order_by(verdicts.c.created)
                )
                heard |= {
                    row.digest: None if row.unsure is not None else row.genres
                    for row in connection.execute(said)
                }
        return {
            key: HeardRecording(key, digest, tuple(files[key]), heard.get(digest))
            for key, digest in digests.items()
        }

    def with_several_files(self) -> list[int]:
        """Return the ids of recordings that were seen at more than one path."""
        query = (
            sa.select(embeddings.c.id)
            .join(tracks, tracks.c.digest == embeddings.c.digest)
            .where(self._mine)
            .group_by(embeddings.c.id)
            .having(sa.func.count() > 1)
        )
        with self._store.transaction(write=False) as connection:
            return list(connection.execute(query).scalars())

    def with_genres(self, genres: Collection[str]) -> Ids:
        """Return the ids of all recordings with one of these genres (`genre_key`) in a file.

        Those without any genre are among them: what was heard in them is to be looked at.
        """
        import numpy as np

        with self._store.transaction(write=False) as connection:
            lists = connection.execute(sa.select(tracks.c.genres).distinct()).scalars().all()
            fitting = [one for one in lists if has_genre(one, genres) or not one]
            found: set[int] = set()
            for chunk in cut(fitting):
                query = (
                    sa.select(embeddings.c.id)
                    .join(tracks, tracks.c.digest == embeddings.c.digest)
                    .where(self._mine, tracks.c.genres.in_(chunk))
                )
                found.update(connection.execute(query).scalars())
        return np.array(sorted(found), np.int64)

    def _unit_vectors(self, pairs: Sequence[tuple[int, bytes]]) -> tuple[Ids, Halves]:
        import numpy as np

        length = 2 * self._dims
        whole = [(key, blob) for key, blob in pairs if len(blob) == length]
        ids = np.array([key for key, _ in whole], np.int64)
        raw = np.frombuffer(b"".join(blob for _, blob in whole), "<f2").reshape(-1, self._dims)
        units, good = unit_rows(raw.astype(np.float32))
        return ids[good], units[good].astype(np.float16)


def unit_rows(
    rows: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return rows at length 1, and which of them (n,) could be brought to it."""
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        norms = np.sqrt(np.sum(rows.astype(np.float64) ** 2, axis=1))
        good = np.isfinite(norms) & (norms > 1e-6)
        units = rows / np.where(good, norms, 1)[:, None]
    return units.astype(np.float32), good


def has_genre(genres: Sequence[str], keys: Collection[str]) -> bool:
    """Tell whether one of these names is among the genres `keys` (see `genres.genre_key`)."""
    return any(genre_key(name) in keys for name in genres)
