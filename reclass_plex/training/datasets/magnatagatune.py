"""MagnaTagATune: clips with any number of 188 tags, and the Echo Nest's analysis of each.

Law, West, Mandel, Bay, Downie, *Evaluation of algorithms using games*, 2009. Papers split it by its
sixteen folders (a folder holds whole albums, but not whole artists) and use its 50 commonest tags.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from reclass_plex.encoders.musicnn_tags import MTT_TAGS
from reclass_plex.errors import FileError
from reclass_plex.training.datasets.collection import Collection, Recording, Split

LICENCE = "CC BY-NC-SA"
_SPLITS: dict[str, Split] = {
    **dict.fromkeys("0123456789ab", "train"), "c": "valid", **dict.fromkeys("def", "test")
}  # fmt: skip


def read_magnatagatune(
    labels: Path, audio: Path | None = None, *, tags: Literal["top50", "all"] = "top50"
) -> Collection:
    """Read the tags of all clips; `audio` is the folder with 0/ to f/.

    `labels` is the folder with annotations_final.csv and clip_info_final.csv. A clip may have none
    of the tags. Raises FileError.
    """
    path = labels / "annotations_final.csv"
    artists = {
        row["clip_id"]: row["artist"]
        for row in _rows(labels / "clip_info_final.csv", ("clip_id", "artist"))
    }
    recordings: list[Recording] = []
    names: tuple[str, ...] = MTT_TAGS
    for number, row in enumerate(_rows(path, ("clip_id", "mp3_path", *MTT_TAGS)), 2):
        if tags == "all" and not recordings:
            names = tuple(column for column in row if column not in ("clip_id", "mp3_path"))
        file = PurePosixPath(row["mp3_path"])
        if len(file.parts) != 2 or file.parts[0] not in _SPLITS or ".." in file.parts:
            raise FileError(path, f"line {number}: {str(file)!r} is no clip in a folder 0 to f")
        artist = " ".join(artists.get(row["clip_id"], "").casefold().split())
        recordings.append(
            Recording(
                str(file.with_suffix("")),
                None if audio is None else audio / file,
                tuple(name for name in names if row[name] == "1"),
                artist or None,
                _SPLITS[file.parts[0]],
            )
        )
    bare = sum(not recording.labels for recording in recordings)
    return Collection(
        "magnatagatune",
        names,
        tuple(recordings),
        LICENCE,
        multi_label=True,
        groups_are_artists=all(recording.group for recording in recordings),
        remarks=(f"{bare} clips have none of the {len(names)} tags.",) if bare else (),
    )


def analysis_path(folder: Path, key: str) -> Path:
    """Return where the Echo Nest's analysis of a clip is: `folder` has 0/ to f/."""
    return folder / f"{key}.mp3.xml"


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t")
            if missing := set(columns) - set(reader.fieldnames or ()):
                raise FileError(path, f"has no column {', '.join(sorted(missing)[:5])}")
            for row in reader:
                if None in row or None in row.values():
                    raise FileError(path, f"line {reader.line_num}: has not as many fields as due")
                yield row
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise FileError(path, f"is damaged: {error}") from error
