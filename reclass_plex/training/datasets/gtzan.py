"""GTZAN: all of it, or a part with a `labels.csv` (file, genre, gtzan_id, split) beside `audio/`.

Artists are not named in GTZAN, but the numbers of one artist's tracks mostly stand together. So
cross-validation keeps blocks of ten consecutive numbers of a genre together, and with them all
clips of one track. Who is to be told apart by artist needs Sturm's index (`read_index`).

Its faults (repetitions, mislabellings, distortions) are listed by Sturm, *The GTZAN dataset: its
contents, its faults, their effects on evaluation, and its future use*, 2013 (arXiv:1306.1461). The
published split, which is in the package, leaves out the repetitions and the distortions.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import FileError
from reclass_plex.models import DATA
from reclass_plex.training.datasets.collection import SPLITS, Collection, Recording, Split

GENRES = {
    "blues": "Blues", "classical": "Classical", "country": "Country", "disco": "Disco",
    "hiphop": "Hip-Hop", "jazz": "Jazz", "metal": "Metal", "pop": "Pop", "reggae": "Reggae",
    "rock": "Rock",
}  # fmt: skip
NAMES = tuple(GENRES.values())
BLOCK = 10  # consecutive numbers that may share an artist
PER_GENRE = 100
LICENCE = (
    "GTZAN has no licence: its audio was used locally and is not distributed; the head holds "
    "figures learned from it, no audio"
)

_SPLIT = DATA / "datasets" / "gtzan"
_CLIP = re.compile(rf"({'|'.join(GENRES)})\.(\d{{5}})\.(?:wav|au|flac|mp3|ogg)")


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


def read_gtzan(folder: Path, *, index: Path | None = None, faults: bool = False) -> Collection:
    """Read GTZAN: the clips of `folder`, or of what an archive of it has below.

    `index` is Sturm's index.txt (github.com/boblsturm/GTZAN), which names the artists; without it
    groups are blocks of ten consecutive numbers. The 70 excerpts that the published split leaves
    out, as they repeat others or are distorted, are left out unless `faults`. Raises FileError.
    """
    if (folder / "labels.csv").is_file():
        return _read_part(folder)
    place = _find_genres(folder)
    splits = published_split()
    artists = {} if index is None else read_index(index)
    found: dict[str, Path] = {}
    for genre in GENRES:
        for path in sorted((place / genre).glob("*")):
            if match := _CLIP.fullmatch(path.name):
                if (key := f"{genre}.{match[2]}") in found:
                    raise FileError(path, f"there is also {found[key].name}; keep one of them")
                found[key] = path
    suffix = next((path.suffix for path in found.values()), ".wav")
    recordings = []
    for genre, name in GENRES.items():
        for number in range(PER_GENRE):
            key = f"{genre}.{number:05d}"
            if key not in splits and not faults:
                continue
            recordings.append(
                Recording(
                    key,
                    found.get(key, place / genre / f"{key}{suffix}"),
                    (name,),
                    artists.get(key) or f"{genre}/{number // BLOCK}",
                    splits.get(key),
                )
            )
    left_out = len(GENRES) * PER_GENRE - len(splits)
    remark = f"{left_out} excerpts that repeat others or are distorted are left out."
    return Collection(
        "gtzan",
        NAMES,
        tuple(recordings),
        LICENCE,
        groups_are_artists=all(recording.key in artists for recording in recordings),
        remarks=() if faults else (remark,),
    )


def published_split() -> dict[str, Split]:
    """Return the side of each excerpt ("jazz.00005") in the published artist-filtered split."""
    splits: dict[str, Split] = {}
    for split in SPLITS:
        lines = (_SPLIT / f"gtzan_{split}_filtered.txt").read_text(encoding="utf-8").split()
        splits |= {Path(line).stem: split for line in lines}
    return splits


def read_index(path: Path) -> dict[str, str]:
    """Return the artist of each excerpt ("jazz.00005") that Sturm's index knows. Raises FileError.

    Its lines are `jazz.00005.wav ::: artist ::: title`; the artist is empty where nobody knows.
    """
    artists = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    for line in lines:
        name, *fields = (field.strip() for field in line.split(":::"))
        if (match := _CLIP.fullmatch(name)) and fields and fields[0]:
            artists[f"{match[1]}.{match[2]}"] = " ".join(fields[0].casefold().split())
    if not artists:
        raise FileError(path, "is not Sturm's index.txt: no line is 'file ::: artist ::: title'")
    return artists


def _find_genres(folder: Path) -> Path:
    places = [folder / below for below in ("", "genres", "genres_original", "Data/genres_original")]
    for place in places:
        if any((place / genre).is_dir() for genre in GENRES):
            return place
    raise FileError(folder, f"is not GTZAN: it has no folder {', '.join(GENRES)}")


def _read_part(folder: Path) -> Collection:
    """Read some of its clips, as labels.csv lists them."""
    path = folder / "labels.csv"
    recordings = []
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                split: Split = "valid" if row["split"] == "valid" else "train"
                group = f"{row['genre']}/{int(row['gtzan_id']) // BLOCK}"
                label = (GENRES[row["genre"]],)
                file = row["file"]
                recordings.append(Recording(file, folder / "audio" / file, label, group, split))
    except (OSError, KeyError, ValueError) as error:
        raise FileError(path, f"is not a list of GTZAN's clips: {error!r}") from error
    return Collection("gtzan", NAMES, tuple(recordings), LICENCE)
