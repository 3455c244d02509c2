"""Guessing a path map: under which local folder do the tracks lie that Plex names otherwise?

A track's path ends alike on both sides: /data/music/A/B/c.flac there, /mnt/nas/music/A/B/c.flac
here. Local folders are walked, and where an entry's name begins such an ending of a sample track,
the rest of it is tried. What is left in front of the longest common ending is the candidate, a
pair of prefixes; the one that finds most of the samples is taken.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from reclass_plex.config import PathMap
from reclass_plex.files import is_junk
from reclass_plex.plex.paths import plain_path, to_local

# Where music is often mounted. The home comes last: it may be large.
COMMON_STARTS = tuple(
    Path(folder)
    for folder in (
        *("/mnt", "/media", "/run/media", "/srv", "/data", "/music", "/storage", "/share"),
        *("/export", "/volume1", "/nas", "/tank", "~"),
    )
)
SAMPLES = 10  # tracks that a folder's map is checked with
SEARCH_SECONDS = 10.0
SEARCH_FOLDERS = 20_000
SEARCH_DEPTH = 4


@dataclass(frozen=True)
class Guess:
    """A map, and how many of the sample tracks are there by it."""

    path_map: PathMap
    found: int
    samples: int

    @property
    def complete(self) -> bool:
        """Say whether all of them are."""
        return self.found == self.samples


def count_found(plex_paths: Iterable[str], maps: Sequence[PathMap]) -> int:
    """Return how many of Plex's paths are there on this machine, by these maps."""
    locals_ = (to_local(path, maps) for path in plex_paths)
    return sum(path is not None and find_spelling(path) is not None for path in locals_)


def find_spelling(path: Path) -> Path | None:
    """Return the path as it exists: macOS and some NAS write accents in two characters."""
    if os.path.exists(path):  # noqa: PTH110 - a folder that may not be entered has nothing
        return path
    if path.parent == path or (folder := find_spelling(path.parent)) is None:
        return None
    for form in ("NFC", "NFD"):
        spelled = folder / unicodedata.normalize(form, path.name)
        if os.path.exists(spelled):  # noqa: PTH110
            return spelled
    return None


def guess_maps(
    folder: str,
    plex_paths: Sequence[str],
    starts: Iterable[Path],
    *,
    seconds: float = SEARCH_SECONDS,
) -> list[Guess]:
    """Return maps for a library's `folder` (a Plex path), those that find most tracks first.

    `plex_paths` are some of its tracks. `starts` and what is below them is looked through, for
    `seconds` at most. Of copies of a library at two places both are returned.
    """
    samples = [plain_path(path) for path in plex_paths]
    votes: Counter[tuple[PurePath, Path]] = Counter()
    for _, pair in dict.fromkeys(_candidates(samples, starts, seconds)):
        votes[pair] += 1
    guesses = []
    for (plex, local), _ in votes.most_common(50):
        one = _at_folder(plain_path(folder), plex, local)
        found = count_found(plex_paths, [one])
        if found:
            guesses.append(Guess(one, found, len(plex_paths)))
    unique = {(guess.path_map.plex, guess.path_map.local): guess for guess in guesses}
    return sorted(unique.values(), key=_rank)


def _rank(guess: Guess) -> tuple[int, int, int]:
    """Order by what is found; then a map of the whole library before one of an album in it."""
    one = guess.path_map
    return -guess.found, len(plain_path(one.plex).parts), len(Path(one.local).parts)


def join_maps(maps: Iterable[PathMap]) -> tuple[PathMap, ...]:
    """Return as few maps as say the same: those of sibling folders become one of their parent.

    Not of anything above a folder that all of them lie in, because nothing is known about it.
    """
    groups: dict[tuple[PurePath, Path], list[PathMap]] = defaultdict(list)
    for one in dict.fromkeys((one.plex, one.local) for one in maps):
        group = _without_common_end(plain_path(one[0]), Path(one[1]))
        groups[group].append(PathMap(plex=one[0], local=one[1]))
    joined: list[PathMap] = []
    for (plex, local), members in groups.items():
        common = _common_folder([plain_path(one.plex) for one in members])
        if len(members) == 1 or len(common.parts) < 2:  # one of / would be about everything
            joined += members
            continue
        rest = common.parts[len(plex.parts) :]
        joined.append(PathMap(plex=str(common), local=str(local.joinpath(*rest))))
    return tuple(joined)


def _common_folder(paths: Sequence[PurePath]) -> PurePath:
    """Return the deepest folder that all of these lie in, or are."""
    common = paths[0]
    while not all(path.is_relative_to(common) for path in paths):
        common = common.parent
    return common


def _candidates(
    samples: Sequence[PurePath], starts: Iterable[Path], seconds: float
) -> Iterator[tuple[int, tuple[PurePath, Path]]]:
    """Yield (sample, pair of prefixes) for every place where an ending of a sample exists."""
    beginnings: dict[str, list[tuple[int, int]]] = defaultdict(list)  # name: sample, its position
    for number, sample in enumerate(samples):
        for at, name in enumerate(sample.parts[1:], 1):
            beginnings[unicodedata.normalize("NFC", name)].append((number, at))
    for folder, names in _walk(starts, seconds):
        for name in names:
            for number, at in beginnings.get(unicodedata.normalize("NFC", name), ()):
                sample = samples[number]
                if find_spelling(folder.joinpath(*sample.parts[at:])) is not None:
                    prefix = type(sample)(*sample.parts[:at])
                    yield number, _without_common_end(prefix, folder)


def _walk(starts: Iterable[Path], seconds: float) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the names in them, breadth first, until time or number are used up."""
    end = time.monotonic() + seconds
    pending = deque((start, 0) for start in starts)
    seen: set[tuple[int, int]] = set()
    while pending and len(seen) < SEARCH_FOLDERS and time.monotonic() < end:
        folder, depth = pending.popleft()
        try:
            folder = folder.expanduser()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            below = [entry.path for entry in found if entry.is_dir() and not is_junk(entry.name)]
        except (OSError, RuntimeError):  # may not be read, or there is no home
            continue
        yield folder, [entry.name for entry in found]
        if depth < SEARCH_DEPTH:
            pending.extend((Path(path), depth + 1) for path in below)


def _without_common_end(plex: PurePath, local: Path) -> tuple[PurePath, Path]:
    """Return both folders without the names that they end alike with: what differs, no more."""
    while len(plex.parts) > 1 and len(local.parts) > 1 and plex.name == local.name:
        plex, local = plex.parent, local.parent
    return plex, local


def _at_folder(folder: PurePath, plex: PurePath, local: Path) -> PathMap:
    """Return the map at a library's folder, if the pair is of one above it, else at the pair's.

    /data -> /mnt says more than is known, if the library is /data/music.
    """
    if folder.is_relative_to(plex):
        return PathMap(
            plex=str(folder), local=str(local.joinpath(*folder.parts[len(plex.parts) :]))
        )
    return PathMap(plex=str(plex), local=str(local))
