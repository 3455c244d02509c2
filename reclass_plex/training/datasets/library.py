"""The user's own library as a dataset: genres from the files' tags, or from Plex, as labels.

Only what the user, a shop or a database wrote may teach: genres that we wrote ourselves are left
out, in files as in Plex. Names are brought into the taxonomy (`canonical_genre`); where several
genres remain of a track, it is left out, and so are genres that are too rare to learn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclass_plex.batches import cut
from reclass_plex.decided import Decisions
from reclass_plex.errors import printable
from reclass_plex.genres import Taxonomy, canonical_genre, genre_key, is_junk_genre, split_genres
from reclass_plex.plex import Plex, PlexTrack, to_local
from reclass_plex.plex.records import without
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.sync.ledger import Ledger
from reclass_plex.training.datasets.collection import Collection, Recording
from reclass_plex.training.datasets.confident import find_suspicious
from reclass_plex.training.datasets.own_files import LICENCE, artist_of

MINIMUM = 20  # recordings of a genre, below which it is too rare
_PAGE = 500  # tracks asked for at once


@dataclass(frozen=True)
class LabelledTrack:
    """A track with the genres that somebody gave it; `ours` are those that we wrote there.

    `decided`: a person said so of this very recording (`reclass_plex.decisions`).
    """

    path: Path
    genres: tuple[str, ...]
    group: str | None
    ours: tuple[str, ...] = ()
    decided: bool = False


@dataclass(frozen=True)
class DoubtfulTrack:
    """A track whose label is probably wrong; `margin` is by how much another is more probable."""

    path: Path
    label: str
    suggested: str
    margin: float


def tracks_of_store(
    store: Store, artist: Callable[[Path], str | None] = artist_of
) -> Iterator[LabelledTrack]:
    """Yield the known tracks that have a genre, by artist (else by album).

    What a person decided of a recording counts in place of what its files say.
    """
    decided = Decisions(store).all_standing()
    for page in cut((track.path for track in store.iter_tracks(models="")), _PAGE):
        for track in store.known_files(page, models=""):
            said = decided.get(track.digest or "")
            if said is not None:
                group = artist(track.path) or track.album
                yield LabelledTrack(track.path, said.genres, group, decided=True)
            elif track.genres:
                group = artist(track.path) or track.album
                ours = () if track.undone else track.added
                yield LabelledTrack(track.path, track.genres, group, ours)


def heard_genres(
    store: Store, paths: Iterable[Path], models: str
) -> dict[Path, tuple[GenreScore, ...]]:
    """Return what `models` (a fingerprint) said of these files, as far as they heard them."""
    return {
        track.path: track.verdict.genres
        for page in cut(paths, _PAGE)
        for track in store.known_files(page, models)
        if track.verdict is not None
    }


def tracks_of_plex(plex: Plex, store: Store | None = None) -> Iterator[LabelledTrack]:
    """Yield the tracks of the server's music libraries: their genres, else those of their album.

    A track that is nowhere on this machine is left out. With `store`, what we wrote to the server
    counts as ours. Raises PlexError.
    """
    piles = Ledger(store, plex.uuid).all_piles() if store is not None else {}
    ours = {
        key: tuple(g for edit in pile for g in without(edit.record.after, edit.record.before))
        for key, pile in piles.items()
    }
    for library in plex.list_libraries():
        for tracks in cut(plex.list_tracks(library.key), _PAGE):
            yield from _page_of_plex(plex, tracks, ours)


def _page_of_plex(
    plex: Plex, tracks: list[PlexTrack], ours: dict[int, tuple[str, ...]]
) -> Iterator[LabelledTrack]:
    keys = dict.fromkeys(key for track in tracks for key in (track.rating_key, track.album_key))
    items = plex.read_items(keys)
    for track in tracks:
        for key in (track.rating_key, track.album_key):
            if key in items and items[key].genres:
                paths = (to_local(path, plex.options.path_map) for path in track.paths)
                group = f"plex artist {track.artist_key}"
                yield from (
                    LabelledTrack(path, items[key].genres, group, ours.get(key, ()))
                    for path in paths
                    if path is not None
                )
                break


def read_library(
    tracks: Iterable[LabelledTrack], taxonomy: Taxonomy, minimum: int = MINIMUM
) -> Collection:
    """Return the tracks whose genres lead to one genre of the taxonomy, with remarks on the rest.

    Genres of fewer than `minimum` tracks are left out.
    """
    left_out: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    recordings: dict[str, Recording] = {}
    for track in tracks:
        label, reason = _label(track, taxonomy, unknown)
        if label is None:
            left_out[reason] += 1
            continue
        key = printable(track.path)
        recordings.setdefault(key, Recording(key, track.path, (label,), track.group))
    counts = Counter(one.labels[0] for one in recordings.values())
    rare = [genre for genre in taxonomy.genres if 0 < counts[genre] < minimum]
    kept = tuple(one for one in recordings.values() if one.labels[0] not in rare)
    remarks = [f"{count} tracks are left out: {reason}." for reason, count in left_out.items()]
    if unknown:
        names = ", ".join(f"{name} ({count})" for name, count in unknown.most_common(10))
        remarks.append(f"Genres that the taxonomy {taxonomy.name} does not know: {names}.")
    if rare:
        names = ", ".join(f"{genre} ({counts[genre]})" for genre in rare)
        remarks.append(f"Genres of fewer than {minimum} tracks are left out: {names}.")
    return Collection(
        "library",
        tuple(genre for genre in taxonomy.genres if counts[genre] >= max(1, minimum)),
        kept,
        LICENCE,
        groups_are_artists=False,  # some groups may be albums
        remarks=tuple(remarks),
    )


def find_doubtful(
    collection: Collection, heard: Mapping[Path, tuple[GenreScore, ...]]
) -> list[DoubtfulTrack]:
    """Return the recordings whose label the models doubt, the most doubtful first.

    `heard` is what models that did not learn from these labels say of a file; of files that are
    not in it nothing is known.
    """
    labels, rows, known = [], [], []
    columns = {genre_key(label): number for number, label in enumerate(collection.labels)}
    for recording in collection.recordings:
        scores = heard.get(recording.path) if recording.path is not None else None
        if not scores:
            continue
        row = np.zeros(len(columns))
        for score in scores:
            if (column := columns.get(genre_key(score.name))) is not None:
                row[column] = score.confidence
        rows.append(row)
        labels.append(columns[genre_key(recording.labels[0])])
        known.append(recording)
    if not known:
        return []
    return [
        DoubtfulTrack(
            known[one.index].path or Path(),
            collection.labels[one.given],
            collection.labels[one.suggested],
            one.margin,
        )
        for one in find_suspicious(np.array(labels), np.stack(rows))
    ]


def _label(
    track: LabelledTrack, taxonomy: Taxonomy, unknown: Counter[str]
) -> tuple[str | None, str]:
    """Return the one genre that a track's genres lead to, else why there is none."""
    names = [name for text in track.genres for name in split_genres(text)]
    ours = {genre_key(genre) for genre in track.ours}
    theirs = [name for name in names if genre_key(name) not in ours]
    if names and not theirs:
        return None, "we wrote their genre"
    telling = [name for name in theirs if not is_junk_genre(name)]
    if not telling:
        return None, "their genre says nothing"
    found = {name: canonical_genre(name, taxonomy) for name in telling}
    unknown.update(name for name, genre in found.items() if genre is None)
    genres = set(found.values()) - {None}
    genres -= {taxonomy.parents[genre] for genre in genres if genre is not None}  # Rock of Metal
    if len(genres) == 1:
        return genres.pop(), ""
    if genres:
        return None, "they have several genres"
    return None, "their genre is none of the taxonomy's"
