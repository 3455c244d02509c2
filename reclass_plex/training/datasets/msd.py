"""The Million Song Dataset with tagtraum's genres: no audio, but the Echo Nest's features.

Schreiber, *Improving genre annotations for the Million Song Dataset*, 2015. CD1 has the 13 genres
of Top-MAGD; CD2 and CD2C have 15, with Rock, Pop, Metal and Punk apart, and without Vocal. A line
of a .cls file is a track, its genre, and perhaps a second one that a minority gave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import FileError, visible
from reclass_plex.training.datasets.collection import Collection, Recording

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LICENCE = "The Echo Nest's and tagtraum's data, published for research without a licence"
_NAMES = {  # tagtraum's: ours
    "Blues": "Blues", "Country": "Country", "Electronic": "Electronic", "Folk": "Folk",
    "International": "International", "World": "International", "Jazz": "Jazz", "Latin": "Latin",
    "Metal": "Metal", "New Age": "New Age", "New": "New Age", "New_Age": "New Age", "Pop": "Pop",
    "Pop_Rock": "Pop/Rock", "Punk": "Punk", "Rap": "Hip-Hop", "Reggae": "Reggae",
    "RnB": "Soul/R&B", "Rock": "Rock", "Vocal": "Vocal",
}  # fmt: skip


def read_msd(labels: Path, songs: Path | None = None, name: str = "msd") -> Collection:
    """Read tagtraum's labels (.cls), and the artists from `songs`.

    `songs` is msd_summary_file.h5, or a folder of the dataset's files (A/B/C/TRABC....h5), whose
    tracks then are all; without it nothing is known of the artists. Raises FileError.
    """
    genres = dict(_read_labels(labels))
    artists: dict[str, str] = {}
    if songs is not None:
        artists = dict(_read_songs(songs))
        if songs.is_dir():
            genres = {track: genre for track, genre in genres.items() if track in artists}
    recordings = tuple(
        Recording(track, None, (genre,), artists.get(track)) for track, genre in genres.items()
    )
    there = set(genres.values())
    unknown = sum(recording.group is None for recording in recordings)
    return Collection(
        name,
        tuple(genre for genre in dict.fromkeys(_NAMES.values()) if genre in there),
        recordings,
        LICENCE,
        groups_are_artists=bool(artists) and not unknown,
        remarks=(f"The artists of {unknown} songs are not known.",) if unknown else (),
    )


def song_path(folder: Path, track: str) -> Path:
    """Return where a track's file is: TRABCD... is A/B/C/TRABCD....h5 of `folder`."""
    return folder / track[2] / track[3] / track[4] / f"{track}.h5"


def find_songs(folder: Path) -> Path:
    """Return the folder that has A/, B/, ...: `folder`, or "data" in it, as in older archives."""
    below = folder / "data"
    return below if below.is_dir() else folder


def _read_labels(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("#") or not line.strip():
                    continue
                track, *genres = line.rstrip("\n").split("\t")
                if not genres or genres[0].strip() not in _NAMES or len(track) != 18:
                    raise FileError(
                        path, f"line {number}: {visible(line.strip())!r} is no track and its genre"
                    )
                yield track, _NAMES[genres[0].strip()]
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(path, f"is no list of labels: {error}") from error


def _read_songs(songs: Path) -> Iterator[tuple[str, str]]:
    """Yield track and artist of every song of a file (one song, or all of them) or a folder."""
    import h5py

    paths = sorted(find_songs(songs).glob("?/?/?/TR*.h5")) if songs.is_dir() else [songs]
    if not paths:
        raise FileError(songs, "has no files of the Million Song Dataset (A/B/C/TRABC....h5)")
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                tracks = _texts(file["analysis/songs"].fields("track_id")[:])
                artists = _texts(file["metadata/songs"].fields("artist_id")[:])
        except (OSError, KeyError, ValueError) as error:
            raise FileError(path, f"is no file of the Million Song Dataset: {error}") from error
        yield from zip(tracks, artists, strict=False)


def _texts(values: npt.NDArray[np.bytes_]) -> list[str]:
    return [value.decode("ascii", "replace") for value in values.tolist()]
