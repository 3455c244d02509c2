"""Genres that the user taught: a head on MusiCNN's embedding, asked after the vote.

    MODELS' FOLDER/learned/card.json, head.safetensors, SHA256SUMS

`reclass_plex.training.learn` fits it to the user's own library. It tells the user's genres from
each other and from `OTHER`, all that the library has besides. What it gives to the user's genres
is taken from all others alike; how these stand to each other is left to the vote.

No arrays at import: the daemon's main process reads which genres there are, and stays small.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import ModelError, printable
from reclass_plex.genres import genre_key
from reclass_plex.models import SUMS, models_folder
from reclass_plex.models.swap import in_use
from reclass_plex.profiles import check_files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reclass_plex.heads import Head
    from reclass_plex.listening import Listening

FOLDER, CARD = "learned", "card.json"
FEATURES, DIMS = "musicnn-msd-mean", 200  # the mean of the penultimate layer over a track's windows
ENCODER, WINDOWS = "musicnn-msd", 3  # whose embedding it is; windows, where no stage heard any
OTHER = "Other"  # the last genre of a head that knows more than the user's


@dataclass(frozen=True)
class LearnedGenres:
    """An installed head: the user's genres, and what changes with any of its files."""

    folder: Path
    names: tuple[str, ...]
    digest: str

    def without(self, known: Collection[str]) -> tuple[str, ...]:
        """Return the names that are none of the genres `known`, in any spelling."""
        keys = {genre_key(genre) for genre in known}
        return tuple(name for name in self.names if genre_key(name) not in keys)

    def load(self) -> Head:
        """Load the head, once. Raises ModelError if it is damaged or was replaced since."""
        head = _load(self.folder, self.digest)
        card = head.card
        if user_genres(card.genres) != self.names or (card.features, card.dims) != (FEATURES, DIMS):
            raise ModelError(f"{printable(self.folder)}: is not the head that its card described")
        return head


def learned_place(models: Path) -> Path:
    """Return where a learned head is installed."""
    return models / FOLDER


def find_learned(models: Path | None = None) -> LearnedGenres | None:
    """Return the installed head, None if there is none. Raises ModelError if it is damaged."""
    place = learned_place(models_folder(models))
    try:
        found = in_use(place)
    except OSError as error:
        raise ModelError(f"{printable(place)}: cannot be read: {error.strerror}") from error
    return None if found is None else _read(found)


def _read(folder: Path) -> LearnedGenres:
    try:
        check_files(folder, CARD)
        card = json.loads((folder / CARD).read_bytes())
        names = user_genres(tuple(card["genres"]))
        digest = (folder / SUMS.name).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{printable(folder)}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{printable(folder / CARD)}: is no card of a learned head") from None
    return LearnedGenres(folder, names, digest)


def user_genres(genres: tuple[str, ...]) -> tuple[str, ...]:
    """Return a head's genres without `OTHER`."""
    return tuple(genre for genre in genres if genre != OTHER)


def widen_vote(
    vote: npt.NDArray[np.float64],
    learned: LearnedGenres,
    further: Sequence[str],
    listening: Listening,
) -> npt.NDArray[np.float64]:
    """Return a vote (k,) as one on its genres and on `further`, some of the learned: (k + f,).

    Raises ModelError if the head is damaged.
    """
    import torch

    from reclass_plex.evidence import share_out

    head = learned.load()
    if listening.msd is None:
        listening.musicnn(ENCODER, WINDOWS)
    (vector,) = (one.vector for one in listening.embeddings() if one.encoder == ENCODER)
    heard = head.predict(torch.from_numpy(vector)[None])[0].double().numpy()
    columns = [head.card.genres.index(name) for name in further]
    return share_out(vote, heard[columns])


@functools.lru_cache(maxsize=4)
def _load(folder: Path, digest: str) -> Head:
    """Load a head, once for each list of files that it comes with."""
    from reclass_plex.heads import load_head

    return load_head(folder)
