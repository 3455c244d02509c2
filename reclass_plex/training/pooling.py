"""From the stages' held-out votes to an ensemble: weights, and the lines of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from reclass_plex.heads import Measured
from reclass_plex.profiles import EnsembleSpec, StageSpec
from reclass_plex.training.datasets.gtzan import NAMES, Clips
from reclass_plex.training.fit import fit_pool, pool
from reclass_plex.training.held_out import track_weights
from reclass_plex.training.metrics import (
    Floats,
    Labels,
    accuracy,
    balanced_accuracy,
    log_loss,
    wilson_interval,
)
from reclass_plex.training.stages import (
    DEFAULT_GENRES,
    GROUPED,
    Fitted,
    measure,
    sharpen,
    windows_of,
)
from reclass_plex.training.study import fit_extension
from reclass_plex.training.tag_rules import FURTHER

PROTOCOL = (
    f"{GROUPED}. Default taxonomy: the ten by held-out clips, the others by hiding labelled genres."
)
HIDDEN = 9  # the label of a hidden genre, after the nine known ones


def widen(vote: Floats, further: int, strangers: float) -> Floats:
    """Return `evidence.align` of many clips: the known genres are the first ones."""
    rest = np.full((len(vote), further), strangers / vote.shape[1])
    wide = np.concatenate([vote, rest], 1)
    result: Floats = wide / wide.sum(1, keepdims=True)
    return result


def default_votes(fitted: Fitted, strangers: float) -> list[Floats]:
    """Return out-of-fold votes (clips, 18) of each repeat."""
    if fitted.wide is None:
        return [widen(vote, len(FURTHER), strangers) for vote in fitted.votes]
    return list(fitted.wide)


def trial_votes(fitted: Fitted, strangers: float, repeat: int = 0) -> list[Floats]:
    """Return each trial's votes (clips, 10): nine known genres and the hidden one.

    A trial's own genre takes no part in the fit of the extension that judges it.
    """
    votes = []
    trials = fitted.trials[repeat]
    for trial in trials:
        if fitted.extension is None:
            logs = trial.evidence.log_known
            nine = sharpen(logs, windows_of(fitted.stage), fitted.sharpness)
            votes.append(widen(nine, 1, strangers))
        else:
            extension = fit_extension([t for t in trials if t is not trial])
            logs = extension.log_probabilities(trial.evidence)
            votes.append(sharpen(logs, windows_of(fitted.stage), fitted.sharpness))
    return votes


def hidden_votes(fitted: Fitted, strangers: float) -> Floats:
    """Return votes (repeats, h, 10) on the clips of the hidden genres, trial below trial."""
    return np.stack(
        [
            np.concatenate(
                [
                    vote[trial.label == HIDDEN]
                    for vote, trial in zip(
                        trial_votes(fitted, strangers, repeat), trials, strict=True
                    )
                ]
            )
            for repeat, trials in enumerate(fitted.trials)
        ]
    )


def fit_strangers(stages: Sequence[Fitted]) -> float:
    """Return the `strangers` (see `evidence.align`) of least log loss when genres are hidden."""

    def loss(log_strangers: float) -> float:
        votes = [trial_votes(stage, float(np.exp(log_strangers))) for stage in stages]
        return trial_loss(stages, votes, fit_trial_pool(stages, votes))

    return round(float(np.exp(minimize_scalar(loss, bounds=(-1, 2), method="bounded").x)), 3)


def trial_rows(
    stages: Sequence[Fitted], votes: Sequence[Sequence[Floats]]
) -> tuple[list[Floats], Labels, Floats]:
    """Return the votes of all trials below each other, labels, weights: genres count alike."""
    trials = stages[0].trials[0]
    stacked = [np.concatenate(of_stage) for of_stage in votes]
    weights = [1 / np.bincount(t.label)[t.label] / (10 * len(trials)) for t in trials]
    return stacked, np.concatenate([t.label for t in trials]), np.concatenate(weights)


def fit_trial_pool(
    stages: Sequence[Fitted], votes: Sequence[Sequence[Floats]]
) -> tuple[float, ...]:
    """Return the pooling weights of least log loss when genres are hidden."""
    return fit_pool(*trial_rows(stages, votes))


def trial_loss(
    stages: Sequence[Fitted], votes: Sequence[Sequence[Floats]], weights: Sequence[float]
) -> float:
    """Return the log loss over all trials."""
    stacked, labels, rows = trial_rows(stages, votes)
    chosen = pool(stacked, weights)[np.arange(len(labels)), labels]
    return float(-(rows @ np.log(np.maximum(chosen, 1e-12))))


def ten_genre_ensemble(stages: Sequence[Fitted], clips: Clips, report: list[str]) -> EnsembleSpec:
    """Weigh the votes for GTZAN's ten genres. Nobody leaves early: see `shipped.fit_exits`."""
    specs = []
    for last, fitted in enumerate(stages):
        so_far = stages[: last + 1]
        repeats = range(len(fitted.votes))
        votes = [np.concatenate(stage.votes) for stage in so_far]
        labels = np.tile(clips.label, len(repeats))
        pooling = fit_pool(votes, labels, np.ones(len(labels))) if last else (1.0,)
        pooled = [pool([stage.votes[r] for stage in so_far], pooling) for r in repeats]
        published = pool([stage.published for stage in so_far], pooling)
        specs.append(stage_spec(fitted, "gtzan", pooling))
        name = f"ensemble after {fitted.stage.name}"
        report.append(row(name, measure(pooled, clips, ""), pooled, published, clips))
    return EnsembleSpec(taxonomy="gtzan", genres=NAMES, stages=tuple(specs), protocol=PROTOCOL)


def default_ensemble(stages: Sequence[Fitted], clips: Clips, report: list[str]) -> EnsembleSpec:
    """Weigh the votes for the default taxonomy, ten genres and eight by tags. Nobody leaves early.

    The ten are judged by held-out clips; the eight by hidden genres, each of which stands for one.
    """
    specs = []
    strangers = fit_strangers(stages)
    known_votes = [default_votes(stage, strangers)[0] for stage in stages]
    unknown_votes = [trial_votes(stage, strangers) for stage in stages]
    for last, fitted in enumerate(stages):
        so_far, votes = stages[: last + 1], unknown_votes[: last + 1]
        pooling = fit_trial_pool(so_far, votes) if last else (1.0,)
        specs.append(stage_spec(fitted, "default", pooling, strangers))
        known = pool(known_votes[: last + 1], pooling)
        found = []
        for index, trial in enumerate(fitted.trials[0]):
            hidden = trial.label == HIDDEN
            answer = pool([of_stage[index] for of_stage in votes], pooling)[hidden].argmax(1)
            weights = track_weights(clips.label[hidden], clips.number[hidden])
            found.append(weights @ (answer == HIDDEN))
        report.append(
            f"- default, after {fitted.stage.name}: of the ten's clips "
            f"{accuracy(known, clips.label):.3f} right, {(known.argmax(1) >= 10).mean():.3f} named "
            f"one of the eight; hidden genres found {np.mean(found):.3f}"
        )
    return EnsembleSpec(
        taxonomy="default", genres=DEFAULT_GENRES, stages=tuple(specs), protocol=PROTOCOL
    )


def stage_spec(
    fitted: Fitted,
    taxonomy: str,
    weights: tuple[float, ...],
    strangers: float = 1.0,
) -> StageSpec:
    """Return a stage as data, without exits."""
    stage = fitted.stage
    head = "gtzan" if fitted.extension is None else taxonomy
    return StageSpec(
        name=stage.name, head=f"{head}-{stage.recipe.features}", features=stage.recipe.features,
        rate=stage.rate, windows=stage.windows, window_seconds=stage.window_seconds,
        sharpness=round(fitted.sharpness, 4), weights=weights, exits={},
        strangers=1.0 if fitted.extension is not None else strangers,
    )  # fmt: skip


def row(
    name: str, measured: Measured, votes: Sequence[Floats], published: Floats, clips: Clips
) -> str:
    """Return a row of the report's table."""
    balanced = np.mean([balanced_accuracy(vote, clips.label) for vote in votes])
    loss = np.mean([log_loss(vote, clips.label) for vote in votes])
    valid = clips.label[clips.valid]
    low, high = wilson_interval(accuracy(published, valid) * len(valid), len(valid))
    return (
        f"| {name} | {measured.accuracy:.3f} ± {measured.spread:.3f} | {balanced:.3f} "
        f"| {loss:.3f} | {measured.calibration_error:.3f} "
        f"| {accuracy(published, valid):.3f} ({low:.2f} to {high:.2f}) |"
    )
