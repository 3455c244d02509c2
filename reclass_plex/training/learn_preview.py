"""What a learned head would change in the library: from verdicts and embeddings that are kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reclass_plex.batches import cut
from reclass_plex.evidence import share_out
from reclass_plex.genres import genre_key
from reclass_plex.heads import Head
from reclass_plex.learned_genres import DIMS, ENCODER, user_genres
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.store import KnownTrack, Store

_PAGE = 500  # tracks that the store is asked about at once


@dataclass(frozen=True)
class Change:
    """A track that would be heard as another genre."""

    path: Path
    now: GenreScore
    then: GenreScore


@dataclass(frozen=True)
class Preview:
    """The changes, the surest first; of `tracks` that were looked at.

    `unknown` tracks were left out: their verdict is by other models, or nothing else was kept.
    """

    changes: tuple[Change, ...]
    tracks: int
    unknown: int


def preview(
    store: Store,
    head: Head,
    models: Sequence[str],
    former: Collection[str],
    texts: Collection[str],
) -> Preview:
    """Ask the head about all tracks that one of `models` (fingerprints) heard, the best first.

    `former` are genres that a learned head which is in use gave, `texts` those by name alone. What
    was unsure stays so, and is no change.
    """
    changes, tracks = [], 0
    keys = {genre_key(name) for name in former}
    kept = {genre_key(name) for name in texts}
    for page in cut(_heard_tracks(store, models), _PAGE):
        found = [(track, store.find_embedding(track.digest or "", ENCODER)) for track in page]
        known = [
            (track, track.verdict, heard.vector)
            for track, heard in found
            if heard is not None and heard.vector.shape == (DIMS,) and track.verdict is not None
        ]
        tracks += len(known)
        if not known:
            continue
        heard_now = head.predict(torch.from_numpy(np.stack([one[2] for one in known])))
        for (track, verdict, _), row in zip(known, heard_now.double().numpy(), strict=True):
            if verdict.unsure is not None:
                continue
            then = _then(verdict, dict(zip(head.card.genres, row, strict=True)), keys, kept)
            if genre_key(then.name) != genre_key(verdict.genres[0].name):
                changes.append(Change(track.path, verdict.genres[0], then))
    total = sum(1 for track in store.iter_tracks(models="") if track.digest is not None)
    changes.sort(key=lambda change: -change.then.confidence)
    return Preview(tuple(changes), tracks, total - tracks)


def _heard_tracks(store: Store, models: Sequence[str]) -> Iterator[KnownTrack]:
    paths = (track.path for track in store.iter_tracks(models="") if track.digest is not None)
    for left in cut(paths, _PAGE):
        for fingerprint in models:
            heard = {one.path: one for one in store.known_files(left, fingerprint) if one.verdict}
            yield from heard.values()
            left = [path for path in left if path not in heard]  # noqa: PLW2901 - for the next


def _then(
    verdict: Verdict, heard: dict[str, float], former: Collection[str], texts: Collection[str]
) -> GenreScore:
    """Return the first genre that the verdict would have with what the head heard."""
    names = user_genres(tuple(heard))
    mine = {genre_key(name) for name in names}
    left_over = [s for s in verdict.genres if genre_key(s.name) not in {*former, *mine}]
    apart = [score for score in left_over if genre_key(score.name) in texts]
    rest = [score for score in left_over if score not in apart]
    left = max(0.0, 1 - sum(score.confidence for score in apart))
    vote = np.array([score.confidence for score in rest])
    vote = vote / vote.sum() if vote.sum() > 0 else vote
    wide = share_out(vote, np.array([heard[name] for name in names])) * left
    every = [
        *(GenreScore(name, float(p)) for name, p in zip(
            (*(score.name for score in rest), *names), wide, strict=True)),
        *apart,
    ]  # fmt: skip
    return max(every, key=lambda score: score.confidence)
