"""Thresholds of early exits, whose promise holds for all early exits of a cascade together.

Learn then test (Angelopoulos and others, "Learn then Test: Calibrating Predictive Algorithms to
Achieve Risk Control", arXiv 2110.01052), by fixed-sequence testing. One threshold for all stages
falls step by step along `GRID`; at each step the hypothesis that fewer than the wanted share of the
early exits are right, whichever stage made them, must be rejected. The first failure ends the walk.
The order is fixed beforehand, so the certainty is that of one single test.

Two things would make such a test too sure of itself. Tests of single stages promise nothing about
their union: a later stage decides only about what the earlier ones found hard. And clips are not
independent: those of a track hardly differ, those of an artist resemble each other. So tracks count
once and clips of a block of tracks are taken as correlated (`KINSHIP`), which lowers the number of
clips that the test may count on (`effective_count`).

Conventions: s stages, r repeats of a cross-validation, n clips, b blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reclass_plex.training.metrics import Floats, Labels, lower_bound

WANTED = (0.70, 0.75, 0.80, 0.85, 0.90, 0.95)  # accuracies that the tables of a stage promise
CERTAINTY = 0.9
GRID: Floats = np.arange(99, 19, -1) / 100  # thresholds, surest first
STEP = 4.0  # effective clips between two tests: fewer tests, fewer unlucky ones
KINSHIP = 0.1  # correlation of being right within a block, the highest measured: 0.04 to 0.10


@dataclass(frozen=True)
class HeldOut:
    """What each stage said about clips that it had not learned from.

    `votes` has one array (r, n, k) a stage, aligned to the ensemble's genres; `labels` (n,) index
    them. `weights` (n,) say how much a clip stands for. `track` and `block` (n,) are numbers: what
    belongs to one track, and to tracks that may share an artist.
    """

    votes: tuple[Floats, ...]
    labels: Labels
    weights: Floats
    track: Labels
    block: Labels


@dataclass(frozen=True)
class Answers:
    """The pooled answer after each stage: `confidence` and `right`, both (s, r, n)."""

    confidence: Floats
    right: Floats

    @classmethod
    def of(cls, pooled: Sequence[Floats], labels: Labels) -> Answers:
        """Take the pooled probabilities (r, n, k) after each stage."""
        confidence = np.stack([each.max(-1) for each in pooled])
        right = np.stack([each.argmax(-1) == labels for each in pooled]).astype(float)
        return cls(confidence, right)


def leave_early(answers: Answers, thresholds: Sequence[float]) -> tuple[Labels, Floats]:
    """Return (r, n): the stage after which a clip leaves, and whether that answer is right.

    `thresholds` has one for each stage that may decide early, the first ones; what is sure enough
    for none of them gets the stage after them, and the answer there if there is one, else 0.
    """
    early = len(thresholds)
    stage = np.full(answers.right.shape[1:], early)
    right = answers.right[early] if early < len(answers.right) else np.zeros(stage.shape)
    right = right.copy()
    for number in reversed(range(early)):
        leaves = answers.confidence[number] >= thresholds[number]
        stage[leaves] = number
        right[leaves] = answers.right[number][leaves]
    return stage, right


def effective_count(weights: Floats, track: Labels, block: Labels, kinship: float) -> float:
    """Return of how many independent clips the weighted mean is as certain (Kish's count).

    Clips of a track count as one, tracks of a block are correlated by `kinship`.
    """
    of_track = np.bincount(np.unique(track, return_inverse=True)[1], weights)
    of_block = np.bincount(np.unique(block, return_inverse=True)[1], weights)
    return float(_effective(weights.sum(), (of_track**2).sum(), (of_block**2).sum(), kinship))


def _effective(total: float, tracks: float, blocks: float, kinship: float) -> float:
    variance = (1 - kinship) * tracks + kinship * blocks
    return total**2 / variance if variance > 0 else 0.0


@dataclass(frozen=True)
class Tallies:
    """Early exits at each threshold of `GRID`, summed by block: (cascades, thresholds, b) each.

    `weight` of what leaves, `right` of it, and the sum of the squared weights of its tracks. Sums
    are all that a test needs, so that drawing blocks anew (`copies`) costs nothing.
    """

    weight: Floats
    right: Floats
    track_squares: Floats
    blocks: Labels  # (b,) their numbers

    def lowest_threshold(
        self,
        wanted: float,
        certainty: float = CERTAINTY,
        kinship: float = KINSHIP,
        copies: Floats | None = None,
    ) -> float | None:
        """Walk down the grid; return the last threshold that passed, None if the first failed.

        All cascades must pass. The first test is made on so many clips that, all being right, the
        bound would have a third of the way from the wanted accuracy to 1 to spare.
        """
        copies = np.ones(len(self.blocks)) if copies is None else copies
        weight, right = self.weight @ copies, self.right @ copies
        tracks, blocks = self.track_squares @ copies, self.weight**2 @ copies
        first = np.log(1 - certainty) / np.log((1 + 2 * wanted) / 3)
        found, tested = None, -np.inf
        for step, threshold in enumerate(GRID):
            counts = [
                _effective(*sums, kinship)
                for sums in zip(weight[:, step], tracks[:, step], blocks[:, step], strict=True)
            ]
            if min(counts) < max(first, tested + STEP):
                continue
            tested = min(counts)
            shares = right[:, step] / weight[:, step]
            bounds = [lower_bound(s * c, c, certainty) for s, c in zip(shares, counts, strict=True)]
            if min(bounds) < wanted:
                break
            found = float(threshold)
        return found


def tally(
    answers: Answers,
    weights: Floats,
    track: Labels,
    block: Labels,
    may_decide: Sequence[bool],
    ends: Sequence[int],
) -> Tallies:
    """Sum the early exits of the cascades that leave after at most `ends` stages, each of them."""
    blocks, of_block = np.unique(block, return_inverse=True)
    tracks, first, of_track = np.unique(track, return_index=True, return_inverse=True)
    shape = (len(ends), len(GRID), len(blocks))
    weight, right, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row, end in enumerate(ends):
        for step, threshold in enumerate(GRID):
            limits = [threshold if may else np.inf for may in may_decide[:end]]
            stage, is_right = leave_early(answers, limits)
            early = stage < end
            leaving = weights * early.mean(0)
            by_track = np.bincount(of_track, leaving, len(tracks))
            weight[row, step] = np.bincount(of_block, leaving, len(blocks))
            right[row, step] = np.bincount(
                of_block, weights * (is_right * early).mean(0), len(blocks)
            )
            squares[row, step] = np.bincount(of_block[first], by_track**2, len(blocks))
    return Tallies(weight, right, squares, blocks)


def exit_thresholds(
    answers: Answers,
    held: HeldOut,
    may_decide: Sequence[bool],
    *,
    ends: Sequence[int] | None = None,
    wanted: Sequence[float] = WANTED,
    certainty: float = CERTAINTY,
) -> list[dict[str, float]]:
    """Return for each stage {wanted accuracy: threshold}; what cannot be promised is left out.

    With `certainty`, of all early exits together at least the wanted share is right, on music like
    these clips. `may_decide` (s,) excludes stages. `ends` are the numbers of stages after which the
    promise shall hold, should the later ones be missing; by default all but the last stage, which
    needs no threshold.
    """
    last = max(len(may_decide) - 1, 1)
    ends = (last,) if ends is None else ends
    tallies = tally(answers, held.weights, held.track, held.block, may_decide, ends)
    found = {f"{each:.2f}": tallies.lowest_threshold(each, certainty) for each in wanted}
    table = {name: threshold for name, threshold in found.items() if threshold is not None}
    return [
        dict(table) if may and number < max(ends) else {} for number, may in enumerate(may_decide)
    ]


def draw_blocks(stratum: Labels, generator: np.random.Generator) -> Floats:
    """Return how often each block (b,) stands in a sample of as many, drawn stratum by stratum."""
    copies = np.zeros(len(stratum))
    for each in np.unique(stratum):
        own = np.flatnonzero(stratum == each)
        copies[own] += np.bincount(generator.integers(len(own), size=len(own)), minlength=len(own))
    return copies
