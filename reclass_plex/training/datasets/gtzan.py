"""GTZAN, or a part of it: `labels.csv` (file, genre, gtzan_id, split) and the clips in `audio/`.

Artists are not named in GTZAN, but the numbers of one artist's tracks mostly stand together. So
cross-validation keeps blocks of ten consecutive numbers of a genre together, and with them all
clips of one track.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

GENRES = {
    "blues": "Blues", "classical": "Classical", "country": "Country", "disco": "Disco",
    "hiphop": "Hip-Hop", "jazz": "Jazz", "metal": "Metal", "pop": "Pop", "reggae": "Reggae",
    "rock": "Rock",
}  # fmt: skip
NAMES = tuple(GENRES.values())
BLOCK = 10  # consecutive numbers that may share an artist
LICENCE = (
    "GTZAN has no licence: its audio was used locally and is not distributed; the head holds "
    "figures learned from it, no audio"
)


@dataclass(frozen=True)
class Clips:
    """A labelled collection: one entry a clip in every array. `label` indexes `NAMES`."""

    path: tuple[Path, ...]
    label: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]  # of the track within its genre
    valid: npt.NDArray[np.bool_]  # of the published artist-filtered split

    def __len__(self) -> int:
        return len(self.path)


def read_clips(folder: Path) -> Clips:
    """Read `folder`/labels.csv. Raises OSError or KeyError where it is not such a collection."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return Clips(
        tuple(folder / "audio" / row["file"] for row in rows),
        np.array([NAMES.index(GENRES[row["genre"]]) for row in rows]),
        np.array([int(row["gtzan_id"]) for row in rows]),
        np.array([row["split"] == "valid" for row in rows]),
    )


def grouped_folds(clips: Clips, repeat: int, count: int = 5) -> npt.NDArray[np.int64]:
    """Return each clip's fold (n,): blocks of neighbouring tracks, dealt out genre by genre.

    `repeat` shifts the blocks' borders and shuffles the dealing, so that repeats differ.
    """
    fold = np.empty(len(clips), np.int64)
    generator = np.random.default_rng(repeat)
    for genre in np.unique(clips.label):
        of_genre = np.flatnonzero(clips.label == genre)
        block = (clips.number[of_genre] + repeat) // BLOCK
        blocks = generator.permutation(np.unique(block))
        start = generator.integers(count)
        for place, name in enumerate(blocks):
            fold[of_genre[block == name]] = (start + place) % count
    return fold
