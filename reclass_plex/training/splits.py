"""Who is trained on, who is tuned on, who is only asked: the published split, or folds.

A recording's group (its artist, else its album) never stands on both sides. Where that cannot be
kept, because nothing is known or because the published split breaks it, `Division.warnings` say so:
such an accuracy is worth little for music by other artists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reclass_plex.errors import ConfigError
from reclass_plex.training.metrics import Labels
from reclass_plex.training.table import FeatureTable

TUNING_SHARE = 8  # one in eight of the training recordings is tuned on where no split names them
LEAK = "ARTISTS MAY BE ON BOTH SIDES"


@dataclass(frozen=True)
class Fold:
    """Positions of recordings. `tune` stops the training early; `ask` is only reported on."""

    train: Labels
    tune: Labels
    ask: Labels


@dataclass(frozen=True)
class Division:
    """How a run is judged. `published`: its one fold is the dataset's own split."""

    folds: tuple[Fold, ...]
    protocol: str
    published: bool
    warnings: tuple[str, ...]


def divide(table: FeatureTable, protocol: str, folds: int, seed: int) -> Division:
    """Return the folds by `protocol`: split, folds, or auto (the split where there is one).

    Raises ConfigError if the table cannot be divided so.
    """
    named = set(table.splits) - {None}
    has_split = "train" in named and len(named) > 1
    if protocol == "split" and not has_split:
        raise ConfigError("--protocol split: the table names no recordings to train and to ask")
    if has_split and protocol != "folds":
        return _published(table, seed)
    return _cross_validation(table, folds, seed)


def group_numbers(table: FeatureTable) -> Labels:
    """Return (r,) int64: one number a group; a recording without one is a group of its own."""
    numbers: dict[tuple[bool, str], int] = {}
    names = [
        (group is not None, key if group is None else group)
        for group, key in zip(table.groups, table.keys, strict=True)
    ]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def group_warnings(table: FeatureTable) -> tuple[str, ...]:
    """Return what is doubtful about a table's groups."""
    unknown = sum(group is None for group in table.groups)
    if unknown == len(table):
        return (
            f"{LEAK}: the table does not know whose recordings these are, so songs of one album may"
            " be trained on and asked about; the figures are too good for music by others",
        )
    found = []
    if unknown:
        found.append(f"{LEAK}: of {unknown} of {len(table)} recordings nobody is named")
    if not table.groups_are_artists:
        found.append(f"{LEAK}: groups are kept apart, but they are not known to be artists")
    return tuple(found)


def _published(table: FeatureTable, seed: int) -> Division:
    splits = np.array([split or "" for split in table.splits])
    train, valid, test = (np.flatnonzero(splits == name) for name in ("train", "valid", "test"))
    warnings = list(_only_about_the_unknown(table))
    groups = group_numbers(table)
    if len(test) and len(valid):
        fold = Fold(train, valid, test)
        protocol = "published split: tuned on valid, asked about test"
    else:
        ask, name = (test, "test") if len(test) else (valid, "valid")
        fold = Fold(*_carve(table, train, groups, seed), ask)
        protocol = f"published split: tuned on a part of train, asked about {name}"
    for name, part in (("train", fold.train), ("tuned", fold.tune)):
        shared = np.intersect1d(groups[part], groups[fold.ask])
        if len(shared):
            leaked = int(np.isin(groups[fold.ask], shared).sum())
            warnings.append(
                f"{LEAK}: {leaked} of the {len(fold.ask)} recordings that the published split asks"
                f" about are of groups that it has in {name}, too"
            )
    _check(table, fold)
    return Division((fold,), protocol, True, tuple(warnings))


def _only_about_the_unknown(table: FeatureTable) -> tuple[str, ...]:
    # What a published split does with artists is its own matter; it can be told where they are
    # known, and otherwise not.
    if all(group is None for group in table.groups):
        return (f"{LEAK}: the table does not know whose recordings these are",)
    return ()


def _cross_validation(table: FeatureTable, folds: int, seed: int) -> Division:
    groups = group_numbers(table)
    parts = _stratified(table, np.arange(len(table)), groups, folds, seed)
    made = []
    for number, ask in enumerate(parts):
        rest = np.setdiff1d(np.arange(len(table)), ask)
        fold = Fold(*_carve(table, rest, groups, seed + 1 + number), ask)
        _check(table, fold)
        made.append(fold)
    kind = "grouped " if any(table.groups) else ""
    return Division(
        tuple(made), f"{kind}stratified {folds}-fold cross-validation", False, group_warnings(table)
    )


def _carve(table: FeatureTable, train: Labels, groups: Labels, seed: int) -> tuple[Labels, Labels]:
    """Part some of `train` off to tune on."""
    most = len(np.unique(groups[train]))
    if not table.multi_label:
        most = min(most, int(np.unique(table.labels[train], return_counts=True)[1].min()))
    first = _stratified(table, train, groups, max(2, min(TUNING_SHARE, most)), seed)[0]
    return np.setdiff1d(train, first), first


def _stratified(
    table: FeatureTable, chosen: Labels, groups: Labels, parts: int, seed: int
) -> Sequence[Labels]:
    """Return `chosen` in `parts` that keep groups together, and labels alike."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels, mine = table.labels[chosen], groups[chosen]
    distinct = len(np.unique(mine))
    if distinct < parts:
        raise ConfigError(
            f"{len(chosen)} recordings of {distinct} groups are too few to be parted in {parts}:"
            " take fewer --folds, or more artists"
        )
    if table.multi_label:
        # No part can be stratified by all tags; chance is fair enough, groups are kept.
        drawn = np.random.default_rng(seed).permutation(np.unique(mine))
        return [chosen[np.isin(mine, part)] for part in np.array_split(drawn, parts)]
    counts = np.bincount(labels, minlength=len(table.label_names))
    rarest = int(np.where(counts > 0, counts, len(labels) + 1).argmin())
    if counts[rarest] < parts:
        raise ConfigError(
            f"{counts[rarest]} recordings of {table.label_names[rarest]} are too few to be parted"
            f" in {parts}: take fewer --folds, or leave that label out"
        )
    if distinct == len(chosen):
        made = StratifiedKFold(parts, shuffle=True, random_state=seed).split(chosen, labels)
    else:
        grouped = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        made = grouped.split(chosen, labels, mine)
    return [chosen[np.sort(held)] for _, held in made]


def _check(table: FeatureTable, fold: Fold) -> None:
    for name, part in (("train", fold.train), ("tune", fold.tune), ("ask", fold.ask)):
        if not len(part):
            raise ConfigError(f"no recordings are left to {name}: the groups are too few")
    if table.multi_label:
        return
    missing = np.setdiff1d(table.labels[fold.ask], table.labels[fold.train])
    if len(missing):
        names = ", ".join(table.label_names[i] for i in missing)
        raise ConfigError(
            f"{names}: asked about, but not trained on; all its recordings are of one group, or its"
            " split is odd: leave it out, or take fewer --folds"
        )
