"""What the server has, and what is to be written there. Frozen; no behaviour beyond the fields.

Conventions: a rating key is Plex's number of an artist, album or track; times are POSIX seconds;
a Plex path is text as the server reports it, a local path a Path. Genres (moods, styles) are
compared without regard to case and order, because Plex may keep an older spelling of a tag.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

Kind = Literal["artist", "album", "track"]
Field = Literal["genre", "mood", "style"]
FIELDS: tuple[Field, ...] = get_args(Field)

KINDS: dict[str, Kind] = {"artist": "artist", "album": "album", "track": "track"}


@dataclass(frozen=True)
class MusicLibrary:
    """A music library of the server; `folders` are Plex paths."""

    key: int
    title: str
    agent: str
    scanner: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class PlexTrack:
    """A track of the server; `paths` are Plex paths, several where it has several files."""

    rating_key: int
    album_key: int
    artist_key: int
    library_key: int
    title: str
    paths: tuple[str, ...]
    added_at: int


@dataclass(frozen=True)
class PlexItem:
    """The genres of an artist, album or track, and whether someone locked them; so its moods and
    styles, whose locks are in `label_locks`. Tracks have no styles.
    """

    rating_key: int
    kind: Kind
    library_key: int
    genres: tuple[str, ...]
    locked: bool
    title: str = ""
    moods: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    label_locks: frozenset[str] = frozenset()

    def tags(self, field: Field) -> tuple[str, ...]:
        """Return what stands in a field."""
        return {"genre": self.genres, "mood": self.moods, "style": self.styles}[field]

    def is_locked(self, field: Field) -> bool:
        """Say whether someone locked a field."""
        return self.locked if field == "genre" else field in self.label_locks

    def edited(self, field: Field, tags: tuple[str, ...]) -> PlexItem:
        """Return the item after an edit of a field, which locks it."""
        if field == "genre":
            return replace(self, genres=tags, locked=True)
        locks = self.label_locks | {field}
        if field == "mood":
            return replace(self, moods=tags, label_locks=locks)
        return replace(self, styles=tags, label_locks=locks)


@dataclass(frozen=True)
class EditRecord:
    """One edit of a field, to be kept before it is applied: with it alone it can be taken back.

    `before` and `was_locked` are what the item was before our first edit, `replaced` what it had
    when this one was planned (another genre of ours, if it is our second).
    """

    rating_key: int
    kind: Kind
    library_key: int
    before: tuple[str, ...]
    after: tuple[str, ...]
    was_locked: bool
    replaced: tuple[str, ...]
    field: Field = "genre"

    def is_ours(self, genres: Iterable[str]) -> bool:
        """Say whether an item with these genres still has what we wrote.

        A second edit that was planned and never applied, because the process was killed, has
        left our first.
        """
        if same_genres(genres, self.after):
            return True
        return same_genres(genres, self.replaced) and not same_genres(self.replaced, self.before)


@dataclass(frozen=True)
class Skipped:
    """An item that is left as it is, and why."""

    rating_key: int
    reason: str


@dataclass(frozen=True)
class EditPlan:
    """What is to be written; items that have the wanted genres already are in neither."""

    records: tuple[EditRecord, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class EditOutcome:
    """What became of an edit.

    done: read back as intended. gone: the item is no longer on the server. changed: someone
    edited it since, so it was left as it is. failed: the server did something else.
    """

    record: EditRecord
    status: Literal["done", "gone", "changed", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class ReportLine:
    """One line of what was found at start: ok, or a warning or error and what to do."""

    level: Literal["ok", "warning", "error"]
    text: str


def same_genres(some: Iterable[str], others: Iterable[str]) -> bool:
    """Say whether two sets of genres are the same to Plex."""
    return {fold(genre) for genre in some} == {fold(genre) for genre in others}


def fold(genre: str) -> str:
    """Return what is equal for names that are one tag to Plex."""
    return unicodedata.normalize("NFC", genre).strip().casefold()


def without(genres: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Return those of `genres` that are not among `others`."""
    folded = {fold(genre) for genre in others}
    return tuple(genre for genre in genres if fold(genre) not in folded)
