"""Nearest tracks by how they sound: cosine similarity of MusiCNN's mean embeddings.

    with Store.open(path) as store:
        music = SimilarMusic.open(store)
        music.update()  # where there is much new: seconds for 100,000 tracks
        for one in music.near(track, 20, Wish(per_album=1)): ...

`ENCODER` is the one that has heard every track, whichever stages voted. Of what was tried (centred,
standardised, whitened to several degrees) nothing was better than the plain cosine.

An index beside the store has most vectors; the newest, which it does not have yet, are compared
one by one, so that a track counts from the moment at which it was heard. A small library needs no
index. `update` makes it, which takes both time and memory: near() never does.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import NotHeard, printable
from reclass_plex.files import hold_lock
from reclass_plex.genres import genre_key
from reclass_plex.heard import HeardFile, HeardRecording, HeardTracks, has_genre, unit_rows
from reclass_plex.learned_genres import DIMS, ENCODER
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.vector_index import (
    IndexCard,
    VectorIndex,
    file_stamp,
    open_index,
    read_card,
    write_index,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reclass_plex.vector_index import Floats, Halves, Ids

FEW = 2000  # vectors that are compared one by one faster than an index is opened
FRESH_SHARE = 0.05  # of the index's vectors that may be missing from it,
DEAD_SHARE = 0.2  # or be in it though the store has them no more, before it is made anew
MOST_ASKED = 4096  # nearest that the index is asked for; beyond, all vectors are compared
_BATCH = 8192  # vectors read or compared at a time
_DESCRIBED = 200  # candidates at most whose names are looked up at a time
_SAMPLES = 16  # rows by which an index is known to be of this store


@dataclass(frozen=True)
class Wish:
    """Which neighbours are wanted.

    `genres` in any spelling: what the file says, or where it says nothing what was heard.
    `per_album` at most so many tracks of one album; `per_artist` of one artist, which is the folder
    that an album's folder lies in. `other_albums`: none of the track's own. `least`: similarity.
    `existing`: only files that are there now.
    """

    genres: tuple[str, ...] = ()
    per_album: int | None = None
    per_artist: int | None = None
    other_albums: bool = False
    least: float = -1.0
    existing: bool = True


@dataclass(frozen=True)
class Neighbour:
    """A recording that sounds like another. `similarity` is -1 to 1, 1 for the same sound.

    `path` is one of its files, `genres` and `album` what that says; `heard` what was heard in it,
    None if that was unsure.
    """

    digest: str
    path: Path
    similarity: float
    genres: tuple[str, ...]
    album: str | None
    heard: GenreScore | None


@dataclass(frozen=True)
class Updated:
    """What `update` found: vectors in the index, and how many of them it added."""

    count: int
    added: int
    seconds: float


@dataclass(frozen=True)
class _Known:
    """All vectors as of some moment: the index, and what it lacks."""

    base: VectorIndex | None
    ids: Ids
    vectors: Halves
    read_to: int  # the highest id that was looked at


class SimilarMusic:
    """Answers which tracks of a store sound alike. For any number of threads."""

    def __init__(self, store: Store) -> None:
        self._heard = HeardTracks(store, ENCODER, DIMS)
        self._path = index_path(store)
        self._lock = threading.Lock()
        self._looked: tuple[int, ...] | None = None  # the file that was looked at last
        self._card: tuple[IndexCard, tuple[int, ...]] | None = None  # of the file with this stamp
        self._known = _nothing()

    @classmethod
    def open(cls, store: Store) -> SimilarMusic:
        """Open what there is, at once; without an index, or with a useless one, all the same."""
        return cls(store)

    def near(
        self,
        track: str | Path | npt.NDArray[np.float32],
        count: int = 10,
        wish: Wish = Wish(),
    ) -> tuple[Neighbour, ...]:
        """Return the most similar tracks, the most similar first, each recording once.

        `track` is an audio digest, a path that the store knows, or a vector (`DIMS`,) of
        `ENCODER`. The track itself is not among them. Raises NotHeard.
        """
        vector, own, albums = self._query(track)
        choice = _Choice(wish, own, albums)
        size = count + count // 2  # few, as most wishes are met by the first; then ever more
        for ids, similarities in self._candidates(vector, count, wish):
            start = 0
            while start < len(ids):
                size = min(_DESCRIBED, max(16, 2 * size if start else size))
                part = [int(key) for key in ids[start : start + size]]
                known = self._heard.describe(part)
                for key, similarity in zip(part, similarities[start:], strict=False):
                    if similarity < wish.least or len(choice.taken) >= count:
                        return tuple(choice.taken[:count])
                    if key in known:
                        choice.offer(known[key], float(similarity))
                start += len(part)
        return tuple(choice.taken[:count])

    def pairs(self, least: float, each: int = 8) -> list[tuple[int, int, float]]:
        """Return pairs of ids that are at least so similar, the most similar first.

        Of each vector's neighbours the nearest `each` are looked at.
        """
        import numpy as np

        known = self._refresh()
        found: dict[tuple[int, int], float] = {}
        for ids, vectors in self._heard.read(0, known.read_to, _DESCRIBED):
            parts = [_nearest(known.ids, known.vectors, vectors, each + 1)]
            if known.base is not None:
                parts.append(known.base.search_many(vectors, each + 1))
            for others, near in parts:
                for row, column in np.argwhere(near >= least):
                    one, other = sorted((int(ids[row]), int(others[row, column])))
                    if one != other:
                        found[one, other] = float(near[row, column])
        ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return [(one, other, near) for (one, other), near in ranked]

    def with_several_files(self) -> list[int]:
        """Return the ids of recordings that were seen at more than one path."""
        return self._heard.with_several_files()

    def describe(self, ids: Collection[int]) -> dict[int, HeardRecording]:
        """Return whose vectors these are, without those of which no file is known."""
        return self._heard.describe(ids)

    def update(
        self,
        *,
        anew: bool = False,
        threads: int = 0,
        progress: Callable[[int], object] = lambda added: None,
    ) -> Updated:
        """Bring the index up to date where it pays; `anew` makes all of it again.

        `threads` 0 means all cores; `progress` hears how many vectors came in. One process works at
        it, others wait. Raises StoreError when it cannot be written.
        """
        began = time.perf_counter()
        with hold_lock(self._path.with_name(self._path.name + ".lock")):
            known = self._refresh()
            until = known.read_to
            anew = anew or self._too_many_dead(known.base)
            base = None if anew else known.base
            have = base.card.count if base is not None else 0
            wanted = len(known.ids) if base is not None else self._heard.count(until)
            if not wanted or (not anew and wanted <= max(FEW, FRESH_SHARE * have)):
                return Updated(have, 0, time.perf_counter() - began)

            def batches() -> Iterator[tuple[Ids, Halves]]:
                mark = base.card.mark if base is not None else 0
                for ids, vectors in self._heard.read(mark, until, _BATCH):
                    yield ids, vectors
                    progress(len(ids))

            card = write_index(
                self._path,
                batches(),
                lambda count: IndexCard(
                    ENCODER, DIMS, until, count, self._heard.sample(until, _SAMPLES)
                ),
                dims=DIMS,
                add_to_it=base is not None,
                threads=threads,
            )
        self._refresh()
        return Updated(card.count, card.count - have, time.perf_counter() - began)

    def needs_update(self) -> bool:
        """Tell whether `update` would do something, but for vectors that are dead.

        Cheap enough to ask every minute: no vector is read, however many are new, and a file is
        checked once.
        """
        stamp = file_stamp(self._path)
        with self._lock:
            if self._card is None or self._card[1] != stamp:
                self._card = read_card(self._path, ENCODER, DIMS)
            card = None if self._card is None else self._card[0]
        if card is not None and self._is_of_another(card, self._heard.newest()):
            card = None
        have, mark = (0, 0) if card is None else (card.count, card.mark)
        return self._heard.count_after(mark) > max(FEW, FRESH_SHARE * have)

    def _is_of_another(self, card: IndexCard, newest: int) -> bool:
        """Tell whether an index is of another store than this, or of one that was newer."""
        return card.mark > newest or self._heard.contradicts(card.samples)

    def _query(
        self, track: str | Path | npt.NDArray[np.float32]
    ) -> tuple[Floats, str | None, frozenset[str]]:
        """Return a track's unit vector, its digest, and the albums it stands on."""
        if not isinstance(track, (str, Path)):
            units, good = unit_rows(track.reshape(1, -1))
            if units.shape[1] != DIMS or not good[0]:
                raise NotHeard(f"a vector of {ENCODER} has {DIMS} values, not all of them 0")
            return units[0], None, frozenset()
        digest = self._heard.digest_at(track) if isinstance(track, Path) else track
        key = None if digest is None else self._heard.id_of(digest)
        ids, vectors = self._heard.vectors_of([] if key is None else [key])
        if not len(ids):
            name = printable(track) if isinstance(track, Path) else f"recording {track!r}"
            raise NotHeard(
                f"{name}: how it sounds is not known: it was not heard yet (reclass-plex tag hears"
                " it), or there was no music in it"
            )
        files = [file for one in self._heard.describe([int(ids[0])]).values() for file in one.files]
        return vectors[0].astype("float32"), digest, frozenset(map(_album_of, files))

    def _candidates(
        self, vector: Floats, count: int, wish: Wish
    ) -> Iterator[tuple[Sequence[int], Floats]]:
        """Yield ids and similarities of ever more vectors, in order, each once."""
        import numpy as np

        known = self._refresh()
        fresh = _cosines(known.vectors, vector)
        seen = np.empty(0, np.int64)
        asked = max(64, 4 * count)
        have = known.base.card.count if known.base is not None else 0
        while True:
            everything = asked >= have
            if asked > MOST_ASKED and not everything:
                yield from self._all(known, vector, fresh, seen, wish)
                return
            ids, near = known.ids, fresh
            if known.base is not None:
                found, similarities = known.base.search(vector, asked, exact=everything)
                # What is fresh and less similar than the last of these comes later.
                now = fresh >= similarities[-1] if len(found) and not everything else slice(None)
                ids = np.concatenate([found, ids[now]])
                near = np.concatenate([similarities, near[now]])
            yield _ranked(ids, near, without=seen)
            if everything:
                return
            seen, asked = np.union1d(seen, ids), asked * 4

    def _all(
        self, known: _Known, vector: Floats, fresh: Floats, seen: Ids, wish: Wish
    ) -> Iterator[tuple[Sequence[int], Floats]]:
        """Yield all that was not seen yet: what is wanted is rare near this track."""
        import numpy as np

        assert known.base is not None  # noqa: S101 - without one, all is seen at once
        ids, near = known.base.search(vector, known.base.card.count, exact=True)
        ids, near = np.concatenate([ids, known.ids]), np.concatenate([near, fresh])
        if wish.genres:
            keys = frozenset(map(genre_key, wish.genres))
            fits = np.isin(ids, self._heard.with_genres(keys))
            ids, near = ids[fits], near[fits]
        yield _ranked(ids, near, without=seen)

    def _refresh(self) -> _Known:
        """Take up an index that was made meanwhile, and tracks that were heard meanwhile."""
        with self._lock:
            known = self._known
            newest = self._heard.newest()
            stamp = file_stamp(self._path)
            if newest < known.read_to:  # the store is another: a backup, perhaps
                known, self._looked = _nothing(), None
            if stamp != self._looked:
                self._looked = stamp
                base = open_index(self._path, ENCODER, DIMS)
                if base is not None and self._is_of_another(base.card, newest):
                    base = None
                known = _rebased(known, base)
            if newest > known.read_to:
                known = self._with_fresh(known, newest)
            self._known = known
            return known

    def _with_fresh(self, known: _Known, newest: int) -> _Known:
        import numpy as np

        batches = list(self._heard.read(known.read_to, newest, _BATCH))
        ids = np.concatenate([known.ids, *(ids for ids, _ in batches)])
        vectors = np.concatenate([known.vectors, *(vectors for _, vectors in batches)])
        return _Known(known.base, ids, vectors, newest)

    def _too_many_dead(self, base: VectorIndex | None) -> bool:
        if base is None:
            return False
        dead = base.card.count - self._heard.count(base.card.mark)
        return dead > DEAD_SHARE * base.card.count


class _Choice:
    """Takes the candidates that fit a wish, as they come."""

    def __init__(self, wish: Wish, own: str | None, albums: frozenset[str]) -> None:
        self.taken: list[Neighbour] = []
        self._wish = wish
        self._genres = frozenset(map(genre_key, wish.genres))
        self._own = own
        self._albums = albums if wish.other_albums else frozenset()
        self._of_album: Counter[str] = Counter()
        self._of_artist: Counter[Path | None] = Counter()

    def offer(self, recording: HeardRecording, similarity: float) -> None:
        """Take a recording, if one of its files fits."""
        if recording.digest == self._own:
            return
        wish = self._wish
        for file in recording.files:
            if not self._has_wanted_genre(file, recording):
                continue
            album = _album_of(file)
            if album in self._albums or not _has_room(self._of_album[album], wish.per_album):
                continue
            artist = None if wish.per_artist is None else _artist_of(file)
            if not _has_room(self._of_artist[artist], wish.per_artist):
                continue
            if wish.existing and not os.path.exists(file.raw_path):  # noqa: PTH110
                continue
            self._of_album[album] += 1
            self._of_artist[artist] += 1
            self.taken.append(
                Neighbour(
                    recording.digest,
                    file.path,
                    similarity,
                    file.genres,
                    file.album,
                    recording.heard,
                )
            )
            return

    def _has_wanted_genre(self, file: HeardFile, recording: HeardRecording) -> bool:
        if not self._genres:
            return True
        heard = None if file.genres else recording.heard
        return has_genre(file.genres if heard is None else (heard.name,), self._genres)


def index_path(store: Store) -> Path:
    """Return where the index of a store lies."""
    return index_file(store.path)


def index_file(store_path: Path) -> Path:
    """Return the same of the store at a path."""
    return store_path.with_name(store_path.name + ".similar")


def _has_room(taken: int, most: int | None) -> bool:
    return most is None or taken < most


def _album_of(file: HeardFile) -> str:
    """Return what tracks of one album share: its key, or where it has none the folder."""
    return file.album or os.fsdecode(os.path.dirname(file.raw_path))  # noqa: PTH120


def _artist_of(file: HeardFile) -> Path:
    """Return the folder above the album's: Artist/Album/track, where music is kept like that."""
    if file.album is not None:  # its first line is the album's folder, discs left out
        return Path(file.album.partition("\n")[0]).parent
    return file.path.parent.parent


def _nothing() -> _Known:
    import numpy as np

    return _Known(None, np.empty(0, np.int64), np.empty((0, DIMS), np.float16), 0)


def _rebased(known: _Known, base: VectorIndex | None) -> _Known:
    """Return what is known with another index: what it lacks stays, if all of that is known."""
    nothing = _nothing()
    if base is None:
        return nothing
    mark = base.card.mark
    former = known.base.card.mark if known.base is not None else 0
    if mark < former or mark > known.read_to:
        return _Known(base, nothing.ids, nothing.vectors, mark)
    beyond = known.ids > mark
    return _Known(base, known.ids[beyond], known.vectors[beyond], known.read_to)


def _cosines(vectors: Halves, vector: Floats) -> Floats:
    import numpy as np

    parts = [
        vectors[start : start + _BATCH].astype(np.float32) @ vector
        for start in range(0, len(vectors), _BATCH)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _nearest(
    ids: Ids, vectors: Halves, queries: Halves, count: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return ids and similarities (n, at most count) of the nearest to each of the queries (n, d).

    In no order.
    """
    import numpy as np

    if not len(ids):
        nothing = np.empty((len(queries), 0), np.int64)
        return nothing, nothing.astype(np.float32)
    near = queries.astype(np.float32) @ vectors.astype(np.float32).T
    if near.shape[1] > count:
        best = np.argpartition(-near, count - 1, axis=1)[:, :count]
    else:
        best = np.broadcast_to(np.arange(near.shape[1]), near.shape)
    return ids[best], np.take_along_axis(near, best, axis=1)


def _ranked(ids: Ids, near: Floats, *, without: Ids) -> tuple[Sequence[int], Floats]:
    """Return ids and similarities, the most similar first, and of equals the first that came."""
    import numpy as np

    fresh = ~np.isin(ids, without)
    ids, near = ids[fresh], near[fresh]
    order = np.lexsort((ids, -near))
    return ids[order].tolist(), near[order]
