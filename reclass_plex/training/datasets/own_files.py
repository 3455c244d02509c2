"""Labelled music of one's own: a folder for each genre, or a CSV of paths and labels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from reclass_plex.errors import FileError, printable
from reclass_plex.files import AUDIO_SUFFIXES, find_audio_files
from reclass_plex.tags import read_tags
from reclass_plex.training.datasets.collection import SPLITS, Collection, Recording, our_name

LICENCE = "your own files"
AUDIO = AUDIO_SUFFIXES | {".au"}  # which GTZAN has
_VARIOUS = {"various artists", "various", "va", "verschiedene interpreten", "v.a."}
_SPLIT_NAMES = {"training": "train", "validation": "valid", "val": "valid", "dev": "valid"} | {
    split: split for split in SPLITS
}
_MOST_FAULTS = 5  # that an error lists


def artist_of(path: Path) -> str | None:
    """Return who a file's tags say made it, in lower case: the album's artist, else the track's.

    None if they do not say, or cannot be read.
    """
    try:
        tags = read_tags(path)
    except FileError:
        return None
    for name in (tags.album_artist, tags.artist):
        plain = " ".join((name or "").casefold().split())
        if plain and plain not in _VARIOUS:
            return plain
    return None


def read_folders(root: Path, artist: Callable[[Path], str | None] = artist_of) -> Collection:
    """Read a folder that has a folder for each genre, with files at any depth.

    Groups are artists by the files' tags; where these do not say, the first folder below the
    genre's; else None. Raises FileError if there is no audio.
    """
    if not root.is_dir():
        raise FileError(root, "is not a folder")
    recordings, unreadable, without = [], 0, 0
    labels = []
    for folder in sorted(one for one in root.iterdir() if one.is_dir() and one.name[0] != "."):
        name = printable(folder.name)  # whose bytes may be no UTF-8, which no manifest holds
        label = our_name(name)
        for found in find_audio_files([folder], AUDIO):
            if isinstance(found, FileError):
                unreadable += 1
                continue
            path = found.path
            inner = path.relative_to(folder).parts
            group = artist(path)
            if group is None:
                without += 1
                group = f"{name}/{printable(inner[0])}" if len(inner) > 1 else None
            key = printable(path.relative_to(root))
            recordings.append(Recording(key, path, (label,), group))
            labels.append(label)
    if not recordings:
        raise FileError(root, "has no folders with audio files in them: one for each genre is due")
    remarks = (f"{unreadable} files cannot be read.",) if unreadable else ()
    return Collection(
        root.name or "folders",
        tuple(dict.fromkeys(labels)),
        tuple(recordings),
        LICENCE,
        groups_are_artists=not without,
        remarks=remarks,
    )


def read_listed(path: Path) -> Collection:
    """Read a CSV (or .tsv) with the columns path and label, and if there are any, group and split.

    Paths are relative to its folder. Several labels are separated by ";"; if any row has several,
    or none, the collection has many labels a recording. A column "artist" is a group that is an
    artist. Raises FileError, naming the first lines that are wrong.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    recordings: dict[str, Recording] = {}
    faults: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter=delimiter)
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            if not {"path", "label"} <= set(columns):
                raise FileError(path, f"needs the columns path and label; it has {columns}")
            reader.fieldnames = columns
            for row in reader:
                try:
                    one = _listed(row, path.parent)
                    if one.key in recordings:
                        raise ValueError(f"{one.key} stands there twice")
                    recordings[one.key] = one
                except ValueError as error:
                    faults.append(f"line {reader.line_num}: {error}")
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(path, f"is no CSV: {error}") from error
    if not recordings and not faults:
        faults.append("it has no rows")
    if faults:
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise FileError(path, "; ".join(faults[:_MOST_FAULTS]) + more)
    listed = tuple(recordings.values())
    return Collection(
        path.stem,
        tuple(dict.fromkeys(label for one in listed for label in one.labels)),
        listed,
        LICENCE,
        multi_label=any(len(one.labels) != 1 for one in listed),
        groups_are_artists="artist" in columns and all(one.group for one in listed),
    )


def _listed(row: dict[str, str], folder: Path) -> Recording:
    if None in row or None in row.values():
        raise ValueError("has not as many fields as the first line")
    name = row["path"].strip()
    if not name or "\0" in name:
        raise ValueError("has no path")
    given = (row.get("split") or "").strip().lower()
    if given and given not in _SPLIT_NAMES:
        raise ValueError(f"split {given!r} is none of {', '.join(SPLITS)}")
    labels = dict.fromkeys(
        our_name(part.strip()) for part in row["label"].split(";") if part.strip()
    )
    group = (row.get("artist") or row.get("group") or "").strip()
    return Recording(
        name,
        folder / name,
        tuple(labels),
        group.casefold() or None,
        _SPLIT_NAMES[given] if given else None,  # type: ignore[arg-type]
    )
