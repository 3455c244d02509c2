"""What a collection holds: counts by label and split, artists, missing files, leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from reclass_plex.training.datasets.collection import SPLITS, Collection, has_audio

_SHOWN = 10  # files, of a list that may be long


@dataclass(frozen=True)
class Leak:
    """Groups that stand on both sides of a split, and some of them."""

    sides: tuple[str, str]
    groups: int
    recordings: int  # on the second side
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """The figures of a collection.

    `counts` has the recordings of each label by split ("train", "valid", "test", "none"). `groups`
    counts the different ones, `ungrouped` the recordings of which nothing is known. `missing` are
    the keys of recordings whose audio should be there and is not; `without_audio` counts those
    that have none by design.
    """

    name: str
    recordings: int
    licence: str
    counts: dict[str, dict[str, int]]
    splits: dict[str, int]
    groups: int
    groups_are_artists: bool
    ungrouped: int
    largest_group: tuple[str, int] | None
    without_audio: int
    missing: tuple[str, ...]
    leaks: tuple[Leak, ...]
    remarks: tuple[str, ...]


def summarise(collection: Collection) -> Summary:
    """Count, and look for every audio file."""
    recordings = collection.recordings
    counts = {label: Counter[str]() for label in collection.labels}
    for recording in recordings:
        for label in recording.labels:
            counts[label][recording.split or "none"] += 1
    groups = Counter(one.group for one in recordings if one.group is not None)
    return Summary(
        name=collection.name,
        recordings=len(recordings),
        licence=collection.licence,
        counts={label: dict(count) for label, count in counts.items()},
        splits=dict(Counter(one.split or "none" for one in recordings)),
        groups=len(groups),
        groups_are_artists=collection.groups_are_artists,
        ungrouped=sum(one.group is None for one in recordings),
        largest_group=groups.most_common(1)[0] if groups else None,
        without_audio=sum(one.path is None for one in recordings),
        missing=tuple(one.key for one in recordings if one.path and not has_audio(one)),
        leaks=find_leaks(collection),
        remarks=collection.remarks,
    )


def find_leaks(collection: Collection) -> tuple[Leak, ...]:
    """Return which groups stand on two sides of the split: what is learned there is recognised."""
    sides: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in collection.recordings:
        if one.split is not None and one.group is not None:
            sides[one.split][one.group] += 1
    leaks = []
    for number, first in enumerate(SPLITS):
        for second in SPLITS[number + 1 :]:
            if shared := sorted(sides[first].keys() & sides[second].keys()):
                affected = sum(sides[second][group] for group in shared)
                leaks.append(Leak((first, second), len(shared), affected, tuple(shared[:5])))
    return tuple(leaks)


def describe(summary: Summary, split: str) -> Iterator[str]:
    """Yield lines for people on all but the counts; `split` says where the split is from."""
    yield f"{summary.recordings:,} recordings. Licence: {summary.licence}"
    yield f"split: {split}"
    what = "artists" if summary.groups_are_artists else "groups (not all of them artists)"
    unknown = f"; of {summary.ungrouped:,} recordings none is known" if summary.ungrouped else ""
    yield f"{summary.groups:,} {what}{unknown}"
    yield from summary.remarks
    if summary.without_audio:
        yield f"{summary.without_audio:,} recordings have no audio here, only labels"


def warn(summary: Summary) -> Iterator[str]:
    """Yield lines for people on what is wrong: missing files, and leaks."""
    if summary.missing:
        shown = ", ".join(summary.missing[:_SHOWN])
        more = "" if len(summary.missing) <= _SHOWN else ", ..."
        yield f"{len(summary.missing):,} audio files are missing or empty: {shown}{more}"
    sure = "" if summary.groups_are_artists else "as far as these groups are artists, "
    for leak in summary.leaks:
        yield (
            f"leak: {leak.groups:,} groups of {leak.sides[0]} are also in {leak.sides[1]}, with"
            f" {leak.recordings:,} recordings there ({', '.join(leak.examples)}): {sure}figures on"
            " this split are too good"
        )
