"""Recordings that lie there twice: the same audio in two files, or encoded in two ways.

    nearest by embedding -> of the same length -> of the same fingerprint

Embeddings alone cannot tell: encoded anew, a track keeps a similarity of 0.90 in 97 of 100 cases,
but so similar are two tracks of one pianist, too. The fingerprint can (see `MOST_BITS`), and costs
the decoding of 30 s, so that only the few that embedding and length leave are asked for it.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reclass_plex.decoders import Decoders, Limits
from reclass_plex.errors import FileError
from reclass_plex.fingerprint import Fingerprint, differing_bits, take_fingerprint
from reclass_plex.heard import HeardRecording
from reclass_plex.records import Excerpt
from reclass_plex.similarity import SimilarMusic

log = logging.getLogger(__name__)

LEAST = 0.9  # similarity of the embeddings of two that are compared
SECONDS = 2.0  # that their lengths may differ: silence at the ends
MOST_BITS = 0.25  # that may differ: measured, 0.11 for the same recording, 0.46 for any other
EXCERPT = Excerpt(30.0)
_KEPT = 500  # fingerprints in memory, 40 kB each


@dataclass(frozen=True)
class DuplicateFile:
    """A file of a group; `seconds` is None where nothing had to be measured."""

    path: Path
    digest: str
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Duplicates:
    """Files of one recording. `bits` is the largest share of bits in which two that were compared
    differ: 0 for the same audio, byte for byte.
    """

    files: tuple[DuplicateFile, ...]
    bits: float

    @property
    def identical(self) -> bool:
        """Whether all of them have the same audio, byte for byte."""
        return len({file.digest for file in self.files}) == 1


def find_duplicates(
    music: SimilarMusic,
    least: float = LEAST,
    *,
    limits: Limits | None = None,
    progress: Callable[[int], object] = lambda compared: None,
) -> tuple[Duplicates, ...]:
    """Return the groups of files that hold the same recording, among those that are there now.

    A file that cannot be read within `limits` is left out. `progress` hears of pairs that were
    compared.
    """
    several = music.with_several_files()
    pairs = music.pairs(least)
    ids = {key for one, other, _ in pairs for key in (one, other)} | set(several)
    recordings = {key: one for key, one in music.describe(ids).items() if _files(one)}
    groups = _Groups()
    bits: dict[int, float] = defaultdict(float)
    for key in several:
        groups.add(key)
    with Decoders(1, limits) as apart:
        listener = _Listener(recordings, apart)
        for one, other, _ in pairs:
            progress(1)
            if one not in recordings or other not in recordings or groups.joined(one, other):
                continue
            share = listener.differing_bits(one, other)
            if share <= MOST_BITS:
                most = max(share, bits[groups.add(one)], bits[groups.add(other)])
                bits[groups.join(one, other)] = most
    found = []
    for root, members in groups.all().items():
        files = [
            DuplicateFile(path, recordings[key].digest, size, listener.known_seconds(key))
            for key in members
            if key in recordings
            for path, size in _files(recordings[key])
        ]
        if len(files) > 1:
            found.append(Duplicates(tuple(sorted(files, key=lambda one: one.path)), bits[root]))
    return tuple(sorted(found, key=lambda one: one.files[0].path))


class _Listener:
    """Compares recordings by length and fingerprint, each of which it takes once."""

    def __init__(self, recordings: dict[int, HeardRecording], apart: Decoders) -> None:
        self._recordings = recordings
        self._apart = apart
        self._seconds: dict[int, float | None] = {}
        self._prints: OrderedDict[int, Fingerprint | None] = OrderedDict()

    def differing_bits(self, one: int, other: int) -> float:
        """Return the share of bits that differ; 1 where the lengths do, or nothing can be read."""
        some, others = self._length(one), self._length(other)
        if some is None or others is None or abs(some - others) > SECONDS:
            return 1.0
        first, second = self._fingerprint(one), self._fingerprint(other)
        if first is None or second is None:
            return 1.0
        return differing_bits(first, second)

    def known_seconds(self, key: int) -> float | None:
        """Return a recording's length, if it was looked at."""
        return self._seconds.get(key)

    def _length(self, key: int) -> float | None:
        if key not in self._seconds:
            try:
                self._seconds[key] = self._apart.seconds(_files(self._recordings[key])[0][0])
            except (FileError, IndexError) as error:
                log.info("not compared: %s", error)
                self._seconds[key] = None
        return self._seconds[key]

    def _fingerprint(self, key: int) -> Fingerprint | None:
        if key in self._prints:
            self._prints.move_to_end(key)
            return self._prints[key]
        taken = None
        try:
            path = _files(self._recordings[key])[0][0]
            taken = take_fingerprint(self._apart.decode(path, EXCERPT))
        except (FileError, IndexError) as error:
            log.info("not compared: %s", error)
        self._prints[key] = taken
        if len(self._prints) > _KEPT:
            self._prints.popitem(last=False)
        return taken


class _Groups:
    """Which keys belong together."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def add(self, key: int) -> int:
        """Return the key that stands for the group of this one, alone at first."""
        root = self._parent.setdefault(key, key)
        while root != self._parent[root]:
            root = self._parent[root]
        self._parent[key] = root
        return root

    def joined(self, one: int, other: int) -> bool:
        """Tell whether two are in one group already."""
        return one in self._parent and other in self._parent and self.add(one) == self.add(other)

    def join(self, one: int, other: int) -> int:
        """Put two groups together, and return the key that stands for it."""
        root = self.add(one)
        self._parent[self.add(other)] = root
        return root

    def all(self) -> dict[int, list[int]]:
        """Return the members of each group by the key that stands for it."""
        groups: dict[int, list[int]] = defaultdict(list)
        for key in list(self._parent):
            groups[self.add(key)].append(key)
        return groups


def _files(recording: HeardRecording) -> Sequence[tuple[Path, int]]:
    """Return the files that are there, with their sizes; one with several names once."""
    found: dict[tuple[int, int], tuple[Path, int]] = {}
    for file in recording.files:
        try:
            status = os.stat(file.path)  # noqa: PTH116 - may be a link to it
        except (OSError, ValueError):
            continue
        found.setdefault((status.st_dev, status.st_ino), (file.path, status.st_size))
    return list(found.values())
