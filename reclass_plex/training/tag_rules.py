"""Which of MusiCNN's 100 tags speak for which genre, and how loudly. Fixed before any fitting.

A genre's tag score is the weighted sum of its tags' standardised logits: each tag's mean and
deviation are measured on the training clips with every genre counted alike, so that a tag that is
always high (rock) and one that rarely is (metal) start level. Weights sum to 1.

Disco and Reggae have no tag of their own, so they rest on labelled clips alone. International is
left out: only "indian" and "sitar" speak for it, and they know Indian music alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from reclass_plex.encoders.musicnn import TAGS

KNOWN: Mapping[str, Mapping[str, float]] = {
    "Blues": {"msd:blues": 1},
    "Classical": {"mtt:classical": 0.5, "mtt:classic": 0.25, "mtt:strings": 0.25},
    "Country": {"msd:country": 0.75, "mtt:country": 0.25},
    "Disco": {},
    "Hip-Hop": {"msd:Hip-Hop": 1},
    "Jazz": {"msd:jazz": 1},
    "Metal": {"msd:metal": 0.4, "msd:heavy metal": 0.4, "mtt:metal": 0.2},
    "Pop": {"msd:pop": 1},
    "Reggae": {},
    "Rock": {"msd:rock": 0.5, "msd:classic rock": 0.5},
}
FURTHER: Mapping[str, Mapping[str, float]] = {
    "Electronic": {
        "msd:electronic": 0.4, "msd:electronica": 0.2, "msd:electro": 0.1, "msd:House": 0.1,
        "mtt:techno": 0.1, "mtt:electronic": 0.1,
    },
    "Folk": {"msd:folk": 0.8, "msd:acoustic": 0.2},
    "Soul/R&B": {"msd:soul": 0.5, "msd:rnb": 0.5},
    "Funk": {"msd:funk": 1},
    "Punk": {"msd:punk": 1},
    "Ambient": {"msd:ambient": 0.6, "mtt:ambient": 0.2, "mtt:new age": 0.2},
    "Easy Listening": {"msd:easy listening": 1},
    "Experimental": {"msd:experimental": 0.8, "mtt:weird": 0.2},
}  # fmt: skip


def tag_matrix(genres: Sequence[str], features: str, width: int) -> npt.NDArray[np.float64]:
    """Return (width, genres): the weights of the tags within a window's features.

    `features` is "musicnn-msd" (50 logits first) or "musicnn" (the same, then those of `mtt` from
    column 250 on). Tags of the missing checkpoint are left out and the rest scaled to sum to 1;
    a genre without any tag left gets a column of zeros.
    """
    columns = {f"msd:{tag}": i for i, tag in enumerate(TAGS["msd"])}
    if features == "musicnn":
        columns |= {f"mtt:{tag}": 250 + i for i, tag in enumerate(TAGS["mtt"])}
    matrix = np.zeros((width, len(genres)))
    for j, genre in enumerate(genres):
        rule = {**KNOWN, **FURTHER}[genre]
        for tag, weight in rule.items():
            if tag in columns:
                matrix[columns[tag], j] = weight
    totals = matrix.sum(0)
    scaled: npt.NDArray[np.float64] = matrix / np.where(totals > 0, totals, 1)
    return scaled


def describe(genre: str) -> str:
    """Return the tags of a genre in words, for a model card."""
    rule = {**KNOWN, **FURTHER}[genre]
    return ", ".join(f"{tag} ({weight:g})" for tag, weight in rule.items()) or "no tag"
