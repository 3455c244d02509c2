"""The genres, moods and styles of an album or an artist, from those of its tracks. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from reclass_plex.records import GenreScore

RUNNER_UP_SHARE = 0.5  # of the first genre's votes, for an album to have a second


def vote_genres(tracks: Iterable[Sequence[GenreScore]], max_genres: int = 1) -> tuple[str, ...]:
    """Return the genres of an album, or an artist, from those of its tracks.

    Each track votes for its genres with their confidence. The genre with the most votes is
    first; others need at least RUNNER_UP_SHARE of its votes. Nothing for no tracks.
    """
    votes: dict[str, float] = defaultdict(float)
    for genres in tracks:
        for genre in genres:
            votes[genre.name] += genre.confidence
    ranked = sorted(votes, key=lambda name: (-votes[name], name))[:max_genres]
    return tuple(name for name in ranked if votes[name] >= RUNNER_UP_SHARE * votes[ranked[0]])


def vote_labels(tracks: Sequence[Sequence[GenreScore]], most: int) -> tuple[str, ...]:
    """Return the moods, or styles, of an album or an artist: at most `most`.

    Those that at least half of all its tracks have, heard or not; the most frequent first, then
    the most pronounced.
    """
    count = Counter(label.name for labels in tracks for label in labels)
    total: dict[str, float] = defaultdict(float)
    for labels in tracks:
        for label in labels:
            total[label.name] += label.confidence
    common = [name for name, number in count.items() if 2 * number >= len(tracks)]
    return tuple(sorted(common, key=lambda name: (-count[name], -total[name], name))[:most])
