"""Genres that the user names and no head knows: heard by CLAP, from their names alone.

CLAP compares the track with the names of all genres, the taxonomy's and the user's. What it gives
to the user's is taken from the others alike; how these stand to each other is left to the vote.
Zero-shot: Wu et al., *Large-scale Contrastive Language-Audio Pretraining*, ICASSP 2023. It ranks,
but its probabilities are calibrated on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reclass_plex.evidence import share_out
from reclass_plex.fetched import ALL_THERE_IS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reclass_plex.encoders.clap import Clap
    from reclass_plex.listening import Listening

MODEL = "clap"
WINDOWS = 3  # of 10 s


def widen_vote(
    vote: npt.NDArray[np.float64],
    genres: Sequence[str],
    further: Sequence[str],
    listening: Listening,
) -> npt.NDArray[np.float64]:
    """Return a vote (k,) on `genres` as one on `genres` and `further`, (k + further,).

    Raises ModelError if CLAP is missing or damaged.
    """
    with listening.hear_fetched(MODEL, ALL_THERE_IS, WINDOWS) as heard:
        clap: Clap = heard.encoder  # type: ignore[assignment]
        audio = heard.states[:, 0].mean(0, keepdim=True)
        scores = clap.score_texts(audio, [*genres, *further])[0].double().cpu().numpy()
    return share_out(vote, scores[len(genres) :])
