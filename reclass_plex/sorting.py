"""Which genre's folder a track belongs into, and what goes with it.

Albums stay together: the tracks that share a folder and an album tag go where most of them belong,
weighted by how sure they are; with `by_folder` all tracks of a folder do. What lies beside them
(covers, cue sheets, lyrics, logs) comes along. Nothing here changes a file.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path

from reclass_plex.config import Config, PolicyOptions
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import FileError
from reclass_plex.files import is_junk, is_leftover
from reclass_plex.genres import Taxonomy, is_junk_genre
from reclass_plex.names import file_name, folder_name
from reclass_plex.pipeline import Analysed, album_folder
from reclass_plex.policy import plan_tags
from reclass_plex.records import Track

UNSURE = "Unsure"
COMPANIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".pdf", ".txt"),
        *(".cue", ".log", ".lrc", ".nfo", ".m3u", ".m3u8", ".toc", ".accurip", ".sfv", ".md5"),
        *(".ffp", ".st5", ".html"),
    )
)
MOST_COMPANIONS = 1000  # of one folder


@dataclass(frozen=True)
class Choice:
    """Where a file shall go. `genre` None: nobody is sure. `reason` is for people.

    `error`: it was not heard. A companion has no `confidence`.
    """

    path: Path
    genre: str | None
    confidence: float | None
    reason: str
    error: FileError | None = None


def sort_folders(
    albums: Iterable[Sequence[Analysed]],
    config: Config,
    ensemble: Ensemble,
    *,
    by_folder: bool = False,
    trust_tags: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[list[Choice]]:
    """Yield the choices of one album's folder after another, tracks first, then their companions.

    `albums` are of `pipeline.analyse_albums`. With `trust_tags` a track that has a genre keeps it.
    When stopped, the folder in hand is left out: it may not be heard wholly.
    """
    policy = config.policy.model_copy(
        update={
            "mode": "replace",
            "max_genres": 1,
            "add_parents": False,
            "overwrite_user_genres": True,
            "moods": False,
            "styles": False,
        }
    )
    items = itertools.chain.from_iterable(albums)
    for folder, group in itertools.groupby(items, key=lambda item: album_folder(item.path)):
        heard = list(group)
        if should_stop():
            return
        choices = _sort(heard, policy, ensemble.taxonomy, by_folder, trust_tags)
        yield [*choices, *_companions(folder, choices)]


def target_of(choice: Choice, root: Path, tree: Path, *, foreign: bool) -> Path:
    """Return where in `tree` a file of `root` shall go: tree/Genre/its path below root."""
    genre = folder_name(choice.genre or UNSURE, foreign=foreign)
    parts = choice.path.relative_to(root).parts
    return tree.joinpath(genre, *(file_name(part, foreign=foreign) for part in parts))


def _sort(
    items: Sequence[Analysed],
    policy: PolicyOptions,
    taxonomy: Taxonomy,
    by_folder: bool,
    trust_tags: bool,
) -> list[Choice]:
    choices = [
        Choice(item.path, None, None, "", item.error) for item in items if item.error is not None
    ]
    pairs = [
        (item.known, item.known.verdict)
        for item in items
        if item.error is None and item.known is not None and item.known.verdict is not None
    ]
    tracks = [Track(known.path, (), known.album) for known, _ in pairs]
    plans = plan_tags(
        [(track, verdict) for track, (_, verdict) in zip(tracks, pairs, strict=True)],
        policy,
        taxonomy,
    )
    units: dict[object, list[Choice]] = defaultdict(list)
    for (known, _), plan in zip(pairs, plans, strict=True):
        genre = plan.after[0] if plan.after else None
        choice = Choice(known.path, genre, plan.confidence, plan.reason)
        theirs = [genre for genre in known.genres if not is_junk_genre(genre)]
        if trust_tags and theirs:
            choice = Choice(known.path, theirs[0], 1.0, "its tag says so")
        units[None if by_folder else known.album or known.path].append(choice)
    for unit in units.values():
        choices += _together(unit)
    return sorted(choices, key=lambda choice: os.fsencode(choice.path))


def _together(unit: Sequence[Choice]) -> list[Choice]:
    """Return the choices of tracks that stay together: all go where most of them belong."""
    weights: dict[str, list[float]] = defaultdict(list)
    for choice in unit:
        if choice.genre is not None:
            weights[choice.genre].append(choice.confidence or 0.0)
    if len(unit) == 1 or not weights:
        return list(unit)
    genre = min(weights, key=lambda name: (-fsum(weights[name]), name))
    agreeing = len(weights[genre])
    return [
        choice
        if choice.genre == genre
        else Choice(
            choice.path,
            genre,
            choice.confidence,
            f"stays with its album, {agreeing} of {len(unit)} {genre} ({choice.reason})",
        )
        for choice in unit
    ]


def _companions(folder: Path, choices: Sequence[Choice]) -> list[Choice]:
    """Return what goes with the tracks of an album's folder.

    Lyrics and the like that have a track's name go with it. The rest goes with the album, if the
    folder holds one; of a folder whose tracks part it stays.
    """
    heard = [choice for choice in choices if choice.error is None]
    if not heard:
        return []
    stems = {os.path.splitext(choice.path)[0]: choice for choice in heard}  # noqa: PTH122
    genres = {choice.genre for choice in heard}
    whole = len(genres) == 1
    found = []
    folders = {choice.path.parent for choice in choices}
    for place in sorted(folders | {folder}, key=os.fsencode):
        for path in _extras(place, folders, whole=whole):
            mate = stems.get(os.path.splitext(path)[0])  # noqa: PTH122
            if mate is not None:
                found.append(Choice(path, mate.genre, None, "goes with its track"))
            elif whole:
                found.append(Choice(path, heard[0].genre, None, "goes with its album"))
    return found


def _extras(place: Path, folders: set[Path], *, whole: bool) -> Iterator[Path]:
    """Yield the companions in a folder, and if the album is whole in its folders of scans, too."""
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries[:MOST_COMPANIONS]:
        if is_junk(entry.name) or is_leftover(entry.name) or entry.is_symlink():
            continue
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a name, not a path
        path = Path(entry.path)
        if entry.is_file(follow_symlinks=False) and suffix in COMPANIONS:
            yield path
        elif whole and entry.is_dir(follow_symlinks=False) and path not in folders:
            yield from _scans(path)


def _scans(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder beside an album that holds companions and nothing else."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    plain = [entry for entry in entries if not is_junk(entry.name)]
    if all(
        entry.is_file(follow_symlinks=False)
        and os.path.splitext(entry.name)[1].lower() in COMPANIONS  # noqa: PTH122
        for entry in plain
    ):
        yield from (Path(entry.path) for entry in plain[:MOST_COMPANIONS])
