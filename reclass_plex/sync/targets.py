"""Which items of the server a round is about, and what they shall have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from reclass_plex.config import PolicyOptions
from reclass_plex.genres import genre_key, is_junk_genre, split_genres
from reclass_plex.plex import (
    EditRecord,
    Field,
    Plex,
    PlexItem,
    same_genres,
    vote_genres,
    vote_labels,
)
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.sync.known import decided_paths, known_genres, wanted_labels
from reclass_plex.sync.places import Place, Places
from reclass_plex.sync.wanted import WantedRow

T = TypeVar("T")

MANY_ARTISTS = "various artists"  # as Plex names those of a compilation: no genre fits them


@dataclass(frozen=True)
class Target:
    """An item that shall have tags, and the wanted rows and the tracks that it stands for.

    `decided`: a person decided on the genre of all of its tracks.
    """

    genres: tuple[str, ...]
    rows: tuple[WantedRow, ...]
    tracks: tuple[int, ...]
    moods: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    decided: bool = False

    def tags(self, field: Field) -> tuple[str, ...]:
        """Return what a field shall have."""
        return {"genre": self.genres, "mood": self.moods, "style": self.styles}[field]

    @property
    def run_id(self) -> int | None:
        """The newest run of the rows: undoing that run takes the item's edit back."""
        return max((row.run_id for row in self.rows if row.run_id is not None), default=None)


def fields_of(policy: PolicyOptions) -> tuple[Field, ...]:
    """Return the fields that are written."""
    fields: list[Field] = ["genre"]
    if policy.moods:
        fields.append("mood")
    if policy.styles:
        fields.append("style")
    return tuple(fields)


def find_targets(
    plex: Plex,
    store: Store,
    places: Places,
    found: Sequence[tuple[Place, WantedRow]],
    policy: PolicyOptions,
) -> dict[int, Target]:
    """Return by rating key the tracks of the rows, and the albums and artists they belong to."""
    targets: dict[int, Target] = {}
    if plex.options.tracks:
        said = decided_paths(store, [row.path for _, row in found])
        for key, rows in _group((place.rating_key, row) for place, row in found).items():
            genres = tuple(genre.name for genre in rows[0].genres)
            if len(rows) > 1:  # several files of one track
                genres = vote_genres([row.genres for row in rows], len(genres))
            moods = tuple(mood.name for mood in rows[0].moods)
            decided = any(row.path in said for row in rows)
            targets[key] = Target(genres, tuple(rows), (key,), moods, decided=decided)
    if plex.options.albums:
        above = [(place.album_key, place, row) for place, row in found]
        targets |= _vote("album", above, store, places, policy)
    if plex.options.artists:
        above = [(place.artist_key, place, row) for place, row in found]
        targets |= _vote("artist", above, store, places, policy)
    return targets


def _vote(
    kind: Literal["album", "artist"],
    above: Sequence[tuple[int, Place, WantedRow]],
    store: Store,
    places: Places,
    policy: PolicyOptions,
) -> dict[int, Target]:
    """Let all tracks of the albums, or artists, vote, whether they are due or not."""
    rows = _group((key, row) for key, _, row in above)
    tracks = _group((key, place.rating_key) for key, place, _ in above)
    files = places.below(kind, rows)
    known = known_genres(
        store, [path for of_key in files.values() for track in of_key for path in track]
    )
    known |= {place.path: row.genres for _, place, row in above}
    said = decided_paths(
        store, [path for of_key in files.values() for track in of_key for path in track]
    )
    labels = {}
    if policy.moods or policy.styles:
        labels = wanted_labels(
            store, [path for of_key in files.values() for track in of_key for path in track]
        )
    targets = {}
    for key, of_key in files.items():
        votes: list[Sequence[GenreScore]] = [
            next((known[path] for path in track if path in known), ()) for track in of_key
        ]
        genres = vote_genres(votes, policy.max_genres)
        heard = [
            next((labels[path] for path in track if path in labels), ((), ())) for track in of_key
        ]
        moods = vote_labels([moods for moods, _ in heard], policy.max_moods)
        styles = vote_labels([styles for _, styles in heard], policy.max_moods)
        decided = all(any(path in said for path in track) for track in of_key)
        targets[key] = Target(genres, tuple(rows[key]), tuple(tracks[key]), moods, styles, decided)
    return targets


def choose_genres(
    item: PlexItem,
    genres: tuple[str, ...],
    former: EditRecord | None,
    policy: PolicyOptions,
    *,
    decided: bool = False,
) -> tuple[str, ...] | str:
    """Return what an item shall have by the policy's mode, or why it is left as it is.

    fill: an item without a genre that says something, or with ours, gets `genres`. append: they
    are added to what it had before us. replace, or what a person `decided`: they take its place.
    """
    if item.kind == "artist" and item.title.casefold() == MANY_ARTISTS:
        return "stands for many artists"
    ours = former is not None and former.is_ours(item.genres)
    had = former.before if former is not None and ours else item.genres
    theirs = tuple(genre for genre in had if not _is_junk(genre))
    if policy.mode == "replace" or decided or not theirs:
        return genres
    if policy.mode == "append":
        present = {genre_key(part) for genre in theirs for part in (genre, *split_genres(genre))}
        return theirs + tuple(genre for genre in genres if genre_key(genre) not in present)
    if ours or same_genres(item.genres, genres):
        return genres
    return f"has {', '.join(theirs)} already"


def choose_labels(
    item: PlexItem, field: Field, labels: tuple[str, ...], former: EditRecord | None
) -> tuple[str, ...] | str:
    """Return the moods or styles that an item shall have, or why it is left as it is.

    Only a field that is empty, or has ours, is written.
    """
    if item.kind == "artist" and item.title.casefold() == MANY_ARTISTS:
        return "stands for many artists"
    now = item.tags(field)
    ours = former is not None and former.is_ours(now)
    if now and not ours:
        return f"has {', '.join(now)} already"
    if former is not None and not ours:
        return "ours were removed in Plex"
    return labels


def _is_junk(genre: str) -> bool:
    return is_junk_genre(genre) or all(map(is_junk_genre, split_genres(genre)))


def _group(pairs: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
    groups: dict[int, list[T]] = defaultdict(list)
    for key, one in pairs:
        groups[key].append(one)
    return groups
