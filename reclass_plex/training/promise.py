"""Whether early exits keep what they promise: how often a threshold, fitted anew, breaks it.

    python -m reclass_plex.training.promise [--taxonomy gtzan] [--draws 400]
    python -m reclass_plex.training.promise --clips FOLDER --cache FOLDER

- *Drawn anew*: blocks of tracks are drawn with replacement, as many as there are, genre by genre;
  thresholds are fitted to the sample, and judged by all clips, which here are the truth. The
  promise may be broken in one of ten draws (`exits.CERTAINTY`).
- *Half to half*: thresholds from one half of the blocks, measured on the other. The other half is
  as small, so that it may fall short by chance alone; and the thresholds had half of the clips.
- *Train to valid* (with `--clips`): heads, temperatures, pooling weights and thresholds from the
  published train clips alone, measured on the valid clips, other artists.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclass_plex.models import DATA
from reclass_plex.profiles import EnsembleSpec, load_ensemble
from reclass_plex.training.datasets.gtzan import Clips, read_clips
from reclass_plex.training.exits import (
    GRID,
    WANTED,
    Answers,
    HeldOut,
    Tallies,
    draw_blocks,
    exit_thresholds,
    tally,
)
from reclass_plex.training.extract import Table
from reclass_plex.training.fit import fit_pool, pool
from reclass_plex.training.held_out import held_out_clips, read_held_out
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.progressive import judge
from reclass_plex.training.stages import Stage, cross_validate, train_to_valid


@dataclass(frozen=True)
class Kept:
    """How a promise fared over many draws: shares of the draws, and the mean share that left."""

    wanted: float
    given: float  # a threshold was found
    broken: float  # and of the early exits fewer than wanted were right
    leaving: float


def tally_early_exits(spec: EnsembleSpec, held: HeldOut) -> Tallies:
    """Sum up the early exits of an ensemble; stages without exits may not decide."""
    stages = spec.stages
    pooled = [pool(held.votes[:i], stage.weights) for i, stage in enumerate(stages, 1)]
    may_decide = [bool(stage.exits) for stage in stages]
    answers = Answers.of(pooled, held.labels)
    return tally(answers, held.weights, held.track, held.block, may_decide, [len(stages) - 1])


def draw_anew(tallies: Tallies, wanted: float, draws: int) -> Kept:
    """Fit to blocks drawn with replacement, judge by all."""
    generator = np.random.default_rng(0)
    genre = tallies.blocks // 100
    samples = (draw_blocks(genre, generator) for _ in range(draws))
    everything = np.ones(len(genre))
    return _judge_draws(tallies, wanted, ((sample, everything) for sample in samples))


def half_to_half(tallies: Tallies, wanted: float, draws: int) -> Kept:
    """Fit to one half of each genre's blocks, judge by the other."""
    generator = np.random.default_rng(0)
    genre = tallies.blocks // 100

    def halves() -> Iterator[tuple[Floats, Floats]]:
        for _ in range(draws):
            place = generator.random(len(genre))
            ranks = [(place[genre == g] < place[i]).sum() for i, g in enumerate(genre)]
            half = (np.array(ranks) + generator.integers(2)) % 2
            yield half.astype(float), 1.0 - half

    return _judge_draws(tallies, wanted, halves())


def _judge_draws(tallies: Tallies, wanted: float, draws: Iterator[tuple[Floats, Floats]]) -> Kept:
    given, broken, leaving = [], [], []
    for fit_on, judge_by in draws:
        threshold = tallies.lowest_threshold(wanted, copies=fit_on)
        given.append(threshold is not None)
        weight = right = 0.0
        if threshold is not None:
            step = int(np.flatnonzero(threshold == GRID)[0])
            weight = float(tallies.weight[0, step] @ judge_by)
            right = float(tallies.right[0, step] @ judge_by)
        everybody = tallies.weight[0, -1] @ judge_by
        broken.append(right < wanted * weight)
        leaving.append(weight / everybody)
    return Kept(wanted, *(float(np.mean(each)) for each in (given, broken, leaving)))


def published_split(
    stages: Sequence[Stage], clips: Clips, spec: EnsembleSpec
) -> tuple[EnsembleSpec, HeldOut]:
    """Return the ensemble as the train clips alone make it, and its votes on the valid clips.

    All valid clips count alike: some genres have one or none.
    """
    train = np.flatnonzero(~clips.valid)
    known = _only(clips, train)
    calibrated = [cross_validate(_hear_only(stage, train), known) for stage in stages]
    held = held_out_clips(
        tuple(np.stack(each.votes) for each in calibrated), known.label, known.number
    )
    repeats = held.votes[0].shape[0]
    flat = [vote.reshape(-1, vote.shape[-1]) for vote in held.votes]
    labels = np.tile(known.label, repeats)
    weights = [(1.0,)] + [
        fit_pool(flat[:i], labels, np.ones(len(labels))) for i in range(2, len(stages) + 1)
    ]
    pooled = [pool(held.votes[: i + 1], each) for i, each in enumerate(weights)]
    answers = Answers.of(pooled, held.labels)
    tables = exit_thresholds(answers, held, [True] * len(stages))
    fitted = [
        stage.model_copy(update={"weights": each, "exits": table})
        for stage, each, table in zip(spec.stages, weights, tables, strict=True)
    ]
    valid = clips.valid
    votes = tuple(
        train_to_valid(stage, clips, each.temperature, each.sharpness)[None]
        for stage, each in zip(stages, calibrated, strict=True)
    )
    judged = held_out_clips(votes, clips.label[valid], clips.number[valid])
    alike = HeldOut(votes, judged.labels, np.ones(valid.sum()), judged.track, judged.block)
    return spec.model_copy(update={"stages": tuple(fitted)}), alike


def _only(clips: Clips, chosen: Labels) -> Clips:
    path = tuple(clips.path[i] for i in chosen)
    return Clips(path, clips.label[chosen], clips.number[chosen], clips.valid[chosen])


def _hear_only(stage: Stage, chosen: Labels) -> Stage:
    """Return the stage with the windows of the `chosen` clips, numbered anew."""
    table = stage.table.rows(np.isin(stage.table.clip, chosen))
    clip = np.searchsorted(chosen, table.clip)
    renumbered = Table(table.features, clip, table.disturbed)
    return Stage(
        stage.name, stage.recipe, renumbered, stage.rate, stage.window_seconds, stage.windows
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--taxonomy", choices=("gtzan", "default"), default="gtzan")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("training-cache"))
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    spec = load_ensemble(options.taxonomy, options.data)
    if options.clips is None:
        tallies = tally_early_exits(spec, read_held_out(spec, options.data))
        for name, check in (("drawn anew", draw_anew), ("half to half", half_to_half)):
            print(f"| {name} | given | broken | leave early |\n|---|---|---|---|")
            for wanted in WANTED:
                kept = check(tallies, wanted, options.draws)
                shares = f"{kept.given:.1%} | {kept.broken:.1%} | {kept.leaving:.1%}"
                print(f"| {wanted:.2f} | {shares} |")
        return
    import torch

    from reclass_plex.training.shipped import plan_stages

    torch.set_num_threads(1)  # many small products: threads only wait for each other
    clips = read_clips(options.clips)
    _, stages = plan_stages(clips, options.cache)
    trained, held = published_split(stages, clips, load_ensemble("gtzan", options.data))
    judged = judge(held, trained, [0.0] * len(stages))
    print("| wanted | thresholds | leave early | of them right | all | best single |")
    print("|---|---|---|---|---|---|")
    best = max(way.accuracy.value for way in judged.singles)
    for point in judged.exits:
        early = point.early
        right = "" if early is None else f"{early.value:.3f} ({early.low:.2f} to {early.high:.2f})"
        limits = ", ".join(f"{threshold:.2f}" for threshold in point.thresholds)
        print(
            f"| {point.wanted:.2f} | {limits} | {1 - point.decided[-1]:.1%} | {right} "
            f"| {point.accuracy.value:.3f} | {best:.3f} |"
        )


if __name__ == "__main__":
    main()
