"""What the store knows of the genres, moods and styles of files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from reclass_plex.batches import cut
from reclass_plex.genres import is_junk_genre, split_genres
from reclass_plex.plex import spellings
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.tables import Scores, decisions, plex_wanted, tracks, verdicts

OWN_CONFIDENCE = 1.0  # of a genre that the user gave


def known_genres(store: Store, paths: Collection[Path]) -> dict[Path, tuple[GenreScore, ...]]:
    """Return the genres of files: those wanted in Plex, else those that the file has.

    A genre that we wrote has its verdict's confidence, one of the user's own has 1.0. Files that
    are not known or say nothing are left out.
    """
    asked = {spelling: path for path in paths for spelling in spellings(path)}
    found: dict[Path, tuple[GenreScore, ...]] = {}
    written: dict[str, dict[Path, tuple[str, ...]]] = {}  # by digest
    with store.transaction(write=False) as connection:
        for chunk in cut(asked):
            wanted = sa.select(plex_wanted.c.path, plex_wanted.c.genres)
            for path, genres in connection.execute(wanted.where(plex_wanted.c.path.in_(chunk))):
                if genres:  # else moods or styles alone are wanted
                    found[asked[path]] = genres
        rest = [spelling for spelling, path in asked.items() if path not in found]
        for chunk in cut(rest):
            files = sa.select(tracks.c.path, tracks.c.genres, tracks.c.written, tracks.c.digest)
            for row in connection.execute(files.where(tracks.c.path.in_(chunk))):
                names = _names(row.genres)
                if names and row.genres == row.written and row.digest is not None:
                    written.setdefault(row.digest, {})[asked[row.path]] = names
                elif names:
                    found[asked[row.path]] = _scores(names, OWN_CONFIDENCE)
        heard: dict[str, float] = {}
        for digests in cut(written):
            ranked = sa.type_coerce(verdicts.c.genres, Scores)
            query = sa.select(verdicts.c.digest, ranked).order_by(verdicts.c.created)
            for digest, genres in connection.execute(query.where(verdicts.c.digest.in_(digests))):
                heard[digest] = genres[0].confidence if genres else OWN_CONFIDENCE
    for digest, files_of in written.items():
        for path, names in files_of.items():
            found[path] = _scores(names, heard.get(digest, OWN_CONFIDENCE))
    return found


def wanted_labels(
    store: Store, paths: Collection[Path]
) -> dict[Path, tuple[tuple[GenreScore, ...], tuple[GenreScore, ...]]]:
    """Return the moods and styles that are wanted in Plex for files."""
    asked = {spelling: path for path in paths for spelling in spellings(path)}
    found = {}
    columns = (plex_wanted.c.path, plex_wanted.c.moods, plex_wanted.c.styles)
    with store.transaction(write=False) as connection:
        for chunk in cut(asked):
            query = sa.select(*columns).where(plex_wanted.c.path.in_(chunk))
            for path, moods, styles in connection.execute(query):
                found[asked[path]] = (moods, styles)
    return found


def taken_back(store: Store, paths: Collection[Path]) -> set[Path]:
    """Return those of the files whose genre the user took back with undo."""
    found: set[Path] = set()
    with store.transaction(write=False) as connection:
        for chunk in cut(paths):
            query = sa.select(tracks.c.path).where(tracks.c.path.in_(chunk), tracks.c.undone)
            found.update(connection.execute(query).scalars())
    return found


def decided_paths(store: Store, paths: Collection[Path]) -> set[Path]:
    """Return those of the files that say what a person decided of their recording."""
    asked = {spelling: path for path in paths for spelling in spellings(path)}
    said = sa.exists().where(
        decisions.c.digest == tracks.c.digest,
        decisions.c.state == "stands",
        decisions.c.genres == tracks.c.genres,
    )
    found: set[Path] = set()
    with store.transaction(write=False) as connection:
        for chunk in cut(asked):
            query = sa.select(tracks.c.path).where(tracks.c.path.in_(chunk), ~tracks.c.undone, said)
            found.update(asked[path] for path in connection.execute(query).scalars())
    return found


def _names(genres: tuple[str, ...]) -> tuple[str, ...]:
    names = (name for genre in genres for name in split_genres(genre))
    return tuple(name for name in dict.fromkeys(names) if not is_junk_genre(name))


def _scores(names: tuple[str, ...], confidence: float) -> tuple[GenreScore, ...]:
    return tuple(GenreScore(name, confidence) for name in names)
