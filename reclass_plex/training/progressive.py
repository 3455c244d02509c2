"""What leaving early is worth: accuracy against seconds a track, judged on held-out votes.

`judge` is pure: votes, an ensemble as data and the seconds of its stages in, figures out. Votes
come from `held_out.read_held_out`, or of any labelled music from `labelled_votes`; seconds from
`reclass-plex calibrate`.

Conventions: accuracy is a weighted share (`HeldOut.weights`), the mean over repeats. Intervals are
95 %, by Wilson's formula on the effective count of clips (`exits.effective_count`). Seconds are of
one core, a track, decoding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reclass_plex.profiles import EnsembleSpec, exit_threshold
from reclass_plex.training.exits import (
    GRID,
    KINSHIP,
    WANTED,
    Answers,
    HeldOut,
    draw_blocks,
    effective_count,
    leave_early,
)
from reclass_plex.training.fit import pool
from reclass_plex.training.metrics import Floats, Labels, wilson_interval

BINS = 10  # of a reliability diagram, of equal weight
DRAWS = 2000  # samples of blocks for an interval of a difference
FORMER_WEIGHTS = {2: (0.4, 0.6), 3: (0.25, 0.35, 0.40)}
"""Fixed weights that the first version of this program gave to two and three votes: to compare."""


@dataclass(frozen=True)
class Share:
    """A share, its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Way:
    """A way to decide without early exits: `accuracy` at `seconds` a track."""

    name: str
    accuracy: Share
    seconds: float


@dataclass(frozen=True)
class Progressive:
    """The cascade at one wanted accuracy of early exits, or at one threshold for all stages.

    `decided` has each stage's share of the clips; `early` is the share of early exits that is
    right, None where nobody leaves early.
    """

    wanted: float | None
    thresholds: tuple[float, ...]  # of all stages but the last, infinity for never
    accuracy: Share
    seconds: float
    decided: tuple[float, ...]
    early: Share | None


@dataclass(frozen=True)
class Reliability:
    """How often answers of a confidence are right, in bins of equal weight; `error` is the ECE."""

    name: str
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Gain:
    """By how much the cascade at `wanted` is more accurate than the best single stage.

    Clip by clip, so its interval is narrower than those of the two; by drawing blocks anew.
    """

    wanted: float
    against: str
    accuracy: Share
    seconds: float  # that it costs less


@dataclass(frozen=True)
class Judgement:
    """All figures of one ensemble. `curve` follows one threshold for all stages down the grid."""

    taxonomy: str
    stages: tuple[str, ...]
    clips: int
    effective: float  # clips that the intervals count on
    decode: float  # seconds
    seconds: tuple[float, ...]  # of each stage
    exits: tuple[Progressive, ...]
    curve: tuple[Progressive, ...]
    singles: tuple[Way, ...]
    pools: tuple[Way, ...]
    reliability: tuple[Reliability, ...]
    gains: tuple[Gain, ...]


def labelled_votes(
    votes: Sequence[Floats], labels: Labels, groups: Sequence[str | None] | None = None
) -> HeldOut:
    """Return one vote (n, k) a stage on any labelled music; all recordings count alike.

    Recordings of one group (artist) may be correlated; without one each stands for itself.
    """
    alone = np.arange(len(labels))
    names = [
        f"recording {number}" if group is None else f"group {group}"
        for number, group in enumerate(groups or [None] * len(labels))
    ]
    block = np.unique(names, return_inverse=True)[1]
    rows = tuple(np.asarray(vote, float)[None] for vote in votes)
    return HeldOut(rows, labels, np.ones(len(labels)), alone, block)


def judge(
    held: HeldOut,
    spec: EnsembleSpec,
    seconds: Sequence[float],
    decode: float = 0.0,
    wanted: Sequence[float] = WANTED,
) -> Judgement:
    """Judge an ensemble. `seconds` has one number a stage of `spec`, `decode` that of reading.

    A later stage builds on what the earlier ones computed: alone it would take a little longer than
    its seconds say. Raises ValueError if votes, stages and seconds are not equally many.
    """
    stages = spec.stages
    if not len(held.votes) == len(stages) == len(seconds):
        raise ValueError(
            f"{len(held.votes)} votes, {len(stages)} stages, {len(seconds)} costs: must be alike"
        )
    pooled = [pool(held.votes[:i], stage.weights) for i, stage in enumerate(stages, 1)]
    answers = Answers.of(pooled, held.labels)
    alone = Answers.of(held.votes, held.labels)
    measure = _Measure(held, tuple(seconds), decode)
    singles = tuple(
        Way(stage.name, measure.share(alone.right[i]), decode + seconds[i])
        for i, stage in enumerate(stages)
    )
    exits = tuple(
        measure.cascade(answers, [exit_threshold(stage, each) for stage in stages[:-1]], each)
        for each in wanted
    )
    may_decide = [bool(stage.exits) for stage in stages[:-1]]
    curve = tuple(
        measure.cascade(answers, [float(t) if may else np.inf for may in may_decide], None)
        for t in GRID
    )
    best = max(range(len(stages)), key=lambda i: singles[i].accuracy.value)
    return Judgement(
        spec.taxonomy,
        tuple(stage.name for stage in stages),
        len(held.labels),
        measure.count(held.weights),
        decode,
        tuple(seconds),
        exits,
        curve,
        singles,
        tuple(_pools(held, pooled, measure)),
        tuple(_diagrams(held, spec, answers, alone)),
        tuple(
            Gain(
                each.wanted or 0.0,
                singles[best].name,
                measure.difference(leave_early(answers, each.thresholds)[1] - alone.right[best]),
                singles[best].seconds - each.seconds,
            )
            for each in exits
        ),
    )


@dataclass(frozen=True)
class _Measure:
    held: HeldOut
    seconds: tuple[float, ...]
    decode: float

    def count(self, weights: Floats) -> float:
        return effective_count(weights, self.held.track, self.held.block, KINSHIP)

    def share(self, right: Floats, chosen: Floats | None = None) -> Share:
        """Return the share of (r, n) that is right, among the `chosen` (r, n)."""
        chosen = np.ones(right.shape) if chosen is None else chosen
        weights = self.held.weights * chosen.mean(0)
        value = float((self.held.weights * (right * chosen).mean(0)).sum() / weights.sum())
        count = self.count(weights)
        return Share(value, *wilson_interval(value * count, count))

    def cascade(
        self, answers: Answers, thresholds: Sequence[float], wanted: float | None
    ) -> Progressive:
        """Return the figures of the cascade."""
        stage, right = leave_early(answers, thresholds)
        share = self.held.weights / self.held.weights.sum()
        decided = [float(share @ (stage == s).mean(0)) for s in range(len(self.seconds))]
        until = self.decode + np.cumsum(self.seconds)
        early = (stage < len(thresholds)).astype(float)
        return Progressive(
            wanted,
            tuple(thresholds),
            self.share(right),
            float(np.dot(decided, until)),
            tuple(decided),
            self.share(right, early) if early.any() else None,
        )

    def difference(self, gain: Floats) -> Share:
        """Return the mean of `gain` (r, n), its interval by drawing blocks anew."""
        blocks, index = np.unique(self.held.block, return_inverse=True)
        weight = np.bincount(index, self.held.weights)
        total = np.bincount(index, self.held.weights * gain.mean(0))
        generator = np.random.default_rng(0)
        drawn = [draw_blocks(np.zeros(len(blocks), int), generator) for _ in range(DRAWS)]
        means = [float(total @ copies / (weight @ copies)) for copies in drawn]
        low, high = np.quantile(means, [0.025, 0.975])
        return Share(float(total.sum() / weight.sum()), float(low), float(high))


def _pools(held: HeldOut, pooled: Sequence[Floats], measure: _Measure) -> list[Way]:
    """Judge the full vote, and the first two, by the fitted weights and by others."""
    ways = []
    for count in sorted({2, len(pooled)} & set(range(2, len(pooled) + 1))):
        votes = held.votes[:count]
        name = "full vote" if count == len(pooled) else f"first {count} votes"
        answers = [
            ("fitted weights", pooled[count - 1]),
            ("equal weights", pool(votes, [1 / count] * count)),
        ]
        if count in FORMER_WEIGHTS:
            fixed = FORMER_WEIGHTS[count]
            numbers = "/".join(f"{weight:.2f}" for weight in fixed)
            answers.append((f"fixed {numbers}, log-linear", pool(votes, fixed)))
            answers.append((f"fixed {numbers}, mean", np.tensordot(fixed, np.stack(votes), 1)))
        seconds = measure.decode + sum(measure.seconds[:count])
        for how, vote in answers:
            right = Answers.of([vote], held.labels).right[0]
            ways.append(Way(f"{name}, {how}", measure.share(right), seconds))
    return ways


def _diagrams(
    held: HeldOut, spec: EnsembleSpec, answers: Answers, alone: Answers
) -> list[Reliability]:
    """Return diagrams of each stage alone, and of the pooled votes after each stage."""
    diagrams = [
        reliability(stage.name, alone.confidence[i], alone.right[i], held.weights)
        for i, stage in enumerate(spec.stages)
    ]
    for i, stage in enumerate(spec.stages[1:], 1):
        name = f"all votes up to {stage.name}"
        diagrams.append(reliability(name, answers.confidence[i], answers.right[i], held.weights))
    return diagrams


def reliability(name: str, confidence: Floats, right: Floats, weights: Floats) -> Reliability:
    """Compare confidence (r, n) with how often it is right (r, n), in `BINS` of equal weight."""
    w = np.broadcast_to(weights, confidence.shape).ravel()
    c, is_right = confidence.ravel(), right.ravel()
    order = np.argsort(c, kind="stable")
    place = (np.cumsum(w[order]) - w[order] / 2) / w.sum()
    bins = np.empty(len(c), np.int64)
    bins[order] = np.minimum((place * BINS).astype(np.int64), BINS - 1)
    mass = np.bincount(bins, w, BINS)
    filled = mass > 0
    sure = np.bincount(bins, w * c, BINS)[filled] / mass[filled]
    good = np.bincount(bins, w * is_right, BINS)[filled] / mass[filled]
    error = float(np.abs(sure - good) @ mass[filled] / mass.sum())
    return Reliability(name, tuple(sure.tolist()), tuple(good.tolist()), error)
