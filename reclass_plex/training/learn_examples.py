"""The user's own genres as a table to learn from: labels and embeddings that the store has.

Nothing is decoded: what the encoder heard of a track was kept with its verdict. A track with one of
the genres is an example of it, one with any other genre that says something is an example of
`OTHER`; one with two of the genres, or without any, is none. Genres that we wrote do not count.
What a person decided of a recording counts before all that files say, and is never left out for
there being enough others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclass_plex.batches import cut
from reclass_plex.errors import ConfigError, printable, visible
from reclass_plex.genres import (
    Taxonomy,
    genre_key,
    is_junk_genre,
    split_genres,
)
from reclass_plex.learned_genres import DIMS, ENCODER, FEATURES, OTHER
from reclass_plex.store import Store
from reclass_plex.training.datasets.library import LabelledTrack
from reclass_plex.training.datasets.own_files import LICENCE, artist_of
from reclass_plex.training.table import FeatureTable

FEWEST_GROUPS = 3  # artists or albums of a genre: learned from, tuned on, asked about
MOST_OTHERS = 3000  # tracks of other genres that are looked at; the rest count through their weight
_PAGE = 500  # tracks that the store is asked about at once


@dataclass(frozen=True)
class Lesson:
    """A table of single rows, a track each. `OTHER`, if there are enough of it, is the last label.

    `others` is how many tracks of the library one of the table's other tracks stands for. `remarks`
    say what was left out, and `warnings` what makes the outcome doubtful.
    """

    table: FeatureTable
    others: float
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def genres(self) -> tuple[str, ...]:
        """The user's genres that can be learned."""
        return tuple(name for name in self.table.label_names if name != OTHER)


@dataclass(frozen=True)
class _Example:
    path: Path
    digest: str
    label: str
    group: str | None  # its album, say, where its artist is not known
    decided: bool = False


def parse_genres(text: str, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return the genres of a list that commas separate. Raises ConfigError, naming those in doubt.

    What the taxonomy has is heard already.
    """
    names = split_genres(text)
    if not names:
        raise ConfigError("--genres: names no genre; give them as K-Pop,Anime,Lo-Fi")
    known = {genre_key(genre): genre for genre in taxonomy.genres}
    keys: dict[str, str] = {}
    for name in names:
        shown = visible(name)
        if not name.isprintable() or len(name) > 60:
            raise ConfigError(
                f"--genres: {shown}: a genre's name is one line of at most 60 letters"
            )
        if is_junk_genre(name):
            raise ConfigError(f"--genres: {shown}: names no genre")
        key = genre_key(name)
        if key in known:
            raise ConfigError(
                f"--genres: {shown}: is heard already, as {known[key]}; only genres that the"
                f" taxonomy {taxonomy.name} does not have can be taught. To have it written by"
                " another name, use policy.names"
            )
        if key in keys:
            raise ConfigError(f"--genres: {shown}: is the same genre as {visible(keys[key])}")
        keys[key] = name
    return names


def read_lesson(
    store: Store, tracks: Iterable[LabelledTrack], genres: Sequence[str], minimum: int
) -> Lesson:
    """Return what the store has to learn these genres from.

    A genre of fewer than `minimum` tracks, or of fewer than `FEWEST_GROUPS` artists or albums, is
    left out. Raises ConfigError, with the counts, if none is left.
    """
    left_out: Counter[str] = Counter()
    examples = _examples(store, tracks, genres, left_out)
    chosen, vectors, unheard = _with_embeddings(store, examples)
    artists = {one.path: artist_of(one.path) for one in chosen}
    groups = {one.path: artists[one.path] or one.group for one in chosen}
    counts = Counter(one.label for one in chosen)
    refused = {
        genre: why
        for genre in (*genres, OTHER)
        if (why := _why_not(genre, chosen, groups, minimum, unheard[genre]))
    }
    labels = [genre for genre in (*genres, OTHER) if genre not in refused]
    faults = [f"{visible(genre)}: {why}" for genre, why in refused.items() if genre != OTHER]
    if labels in ([], [OTHER]):
        raise ConfigError("nothing to learn from. " + "; ".join(faults))
    if len(labels) == 1:
        raise ConfigError(
            f"{visible(labels[0])} alone cannot be told from anything: {refused[OTHER]}; other"
            " tracks need a genre in their files, too"
        )
    warnings = [f"left out: {fault}" for fault in faults]
    if OTHER in refused:
        warnings.append(
            f"EVERY TRACK WILL BE TAKEN FOR ONE OF {', '.join(map(visible, labels))}: of any other"
            f" genre the library has too little to learn from ({refused[OTHER]})"
        )
    remarks = [f"{count} tracks are left out: {why}." for why, count in left_out.items()]
    if unheard.total():
        remarks.append(
            f"{unheard.total()} tracks are left out: nothing was kept of how they sound."
        )
    kept = [row for row, one in enumerate(chosen) if one.label in labels]
    table = FeatureTable(
        name=FEATURES,
        rows=np.stack([vectors[row] for row in kept]),
        recording=np.arange(len(kept)),
        keys=tuple(chosen[row].digest for row in kept),
        labels=np.array([labels.index(chosen[row].label) for row in kept], np.int64),
        label_names=tuple(labels),
        groups=tuple(groups[chosen[row].path] for row in kept),
        splits=(None,) * len(kept),
        excerpt="middle30",
        rate=16000,
        window_seconds=3.0,
        collection="your library",
        licence=LICENCE,
        groups_are_artists=all(artists[chosen[row].path] for row in kept),
    )
    all_others = sum(one.label == OTHER for one in examples)
    others = all_others / counts[OTHER] if counts[OTHER] else 1.0
    return Lesson(table, others, tuple(remarks), tuple(warnings))


def _examples(
    store: Store, tracks: Iterable[LabelledTrack], genres: Sequence[str], left_out: Counter[str]
) -> list[_Example]:
    """Return the tracks with one label, each audio once, in the order of their digests."""
    wanted = {genre_key(genre): genre for genre in genres}
    labels: dict[Path, tuple[str, str | None, bool]] = {}
    for track in tracks:
        label, why = _label(track, wanted)
        if label is None:
            left_out[why] += 1
        else:
            labels[track.path] = label, track.group, track.decided
    if not labels and not left_out:
        raise ConfigError(
            f"{printable(store.path)}: knows no track that has a genre; let it hear your music"
            " first: reclass-plex tag --dry-run FOLDER"
        )
    found: dict[str, _Example] = {}
    contradicted = set()
    for page in cut(labels, _PAGE):
        for known in store.known_files(page, models=""):
            if known.digest is None:
                continue
            label, group, decided = labels[known.path]
            example = _Example(known.path, known.digest, label, group, decided)
            first = found.setdefault(known.digest, example)
            if first.label != label:
                contradicted.add(known.digest)
    if contradicted:
        left_out["their copies have another genre"] += len(contradicted)
    return [found[digest] for digest in sorted(found) if digest not in contradicted]


def _label(track: LabelledTrack, wanted: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the label that a track's genres give it, else why it has none."""
    ours = {genre_key(genre) for genre in track.ours}
    names = [name for text in track.genres for name in split_genres(text)]
    theirs = {genre_key(name) for name in names if not is_junk_genre(name)} - ours
    found = [genre for key, genre in wanted.items() if key in theirs]
    if len(found) > 1:
        return None, "they have several of these genres"
    if found:
        return found[0], ""
    if theirs:
        return OTHER, ""
    return None, "we wrote their genre" if ours else "their genre says nothing"


def _with_embeddings(
    store: Store, examples: Sequence[_Example]
) -> tuple[list[_Example], list[np.ndarray[tuple[int], np.dtype[np.float32]]], Counter[str]]:
    """Return the examples that were heard, at most `MOST_OTHERS` of `OTHER`, and the labels of
    those that were not.
    """
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    order.sort(key=lambda place: not examples[place].decided)  # the others stay as they were dealt
    chosen, vectors = [], []
    unheard: Counter[str] = Counter()
    others = 0
    for one in (examples[place] for place in order):
        if one.label == OTHER and others == MOST_OTHERS:
            continue
        heard = store.find_embedding(one.digest, ENCODER)
        if heard is None or heard.vector.shape != (DIMS,) or not np.isfinite(heard.vector).all():
            unheard[one.label] += 1
            continue
        others += one.label == OTHER
        chosen.append(one)
        vectors.append(heard.vector)
    return chosen, vectors, unheard


def _why_not(
    genre: str,
    chosen: Sequence[_Example],
    groups: Mapping[Path, str | None],
    minimum: int,
    unheard: int,
) -> str | None:
    """Return why a genre cannot be learned, None if it can."""
    mine = [one for one in chosen if one.label == genre]
    what = "of another genre" if genre == OTHER else "of it"
    if not mine and not unheard:
        return f"no track {what}, save what we wrote" if genre != OTHER else f"no track {what}"
    if len(mine) < minimum:
        more = (
            f" ({unheard} more were not heard yet: reclass-plex tag --dry-run)" if unheard else ""
        )
        return f"{len(mine)} tracks {what}{more}, and {minimum} are needed"
    distinct = len({groups[one.path] or one.digest for one in mine})
    if distinct < FEWEST_GROUPS:
        return (
            f"its {len(mine)} tracks are of {distinct} artists or albums, and {FEWEST_GROUPS} are"
            " needed to tell the genre from the artist"
        )
    return None
