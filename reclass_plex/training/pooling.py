"""From the stages' held-out votes to an ensemble: weights, exits, and the lines of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from reclass_plex.evidence import EnsembleSpec, StageSpec
from reclass_plex.heads import Measured
from reclass_plex.training.datasets.gtzan import NAMES, Clips
from reclass_plex.training.fit import exit_thresholds, fit_pool, softmax
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
    REPEATS,
    Fitted,
    measure,
    sharpen,
    windows_of,
)
from reclass_plex.training.study import fit_extension
from reclass_plex.training.tag_rules import FURTHER

PROTOCOL = (
    f"{GROUPED}. Exits: fixed-sequence tests, one-sided Clopper-Pearson bound at 90 %. "
    "Default taxonomy: the ten by held-out clips, the others by hiding labelled genres."
)


def pool(votes: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return `evidence.pool_votes` of many clips at once."""
    logs = [w * np.log(np.maximum(v, 1e-12)) for v, w in zip(votes, weights, strict=True)]
    return softmax(np.sum(logs, axis=0))


def widen(vote: Floats, further: int, strangers: float) -> Floats:
    """Return `evidence.align` of many clips: the known genres are the first ones."""
    rest = np.full((len(vote), further), strangers / vote.shape[1])
    wide = np.concatenate([vote, rest], 1)
    result: Floats = wide / wide.sum(1, keepdims=True)
    return result


def default_votes(fitted: Fitted, strangers: float) -> Floats:
    """Return out-of-fold votes (clips, 18) of repeat 0."""
    if fitted.wide is None:
        return widen(fitted.votes[0], len(FURTHER), strangers)
    return fitted.wide


def trial_votes(fitted: Fitted, strangers: float) -> list[Floats]:
    """Return each trial's votes (clips, 10): nine known genres and the hidden one.

    A trial's own genre takes no part in the fit of the extension that judges it.
    """
    votes = []
    for trial in fitted.trials:
        if fitted.extension is None:
            logs = trial.evidence.log_known
            nine = sharpen(logs, windows_of(fitted.stage), fitted.sharpness)
            votes.append(widen(nine, 1, strangers))
        else:
            extension = fit_extension([t for t in fitted.trials if t is not trial])
            logs = extension.log_probabilities(trial.evidence)
            votes.append(sharpen(logs, windows_of(fitted.stage), fitted.sharpness))
    return votes


def clip_weights(clips: Clips, chosen: Floats) -> Floats:
    """Return weights of the chosen clips: genres alike, tracks of a genre alike."""
    track = clips.label * 1000 + clips.number
    weights = np.where(chosen, 1 / np.bincount(track)[track], 0.0)
    per_genre = np.bincount(clips.label, weights, minlength=len(NAMES))
    result: Floats = weights / np.maximum(per_genre, 1e-12)[clips.label]
    return result


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
    trials = stages[0].trials
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
    """Weigh the votes and set the exits for GTZAN's ten genres."""
    specs = []
    weights = clip_weights(clips, np.ones(len(clips)))
    for last, fitted in enumerate(stages):
        so_far = stages[: last + 1]
        votes = [np.concatenate(stage.votes) for stage in so_far]
        labels = np.tile(clips.label, REPEATS)
        pooling = fit_pool(votes, labels, np.ones(len(labels))) if last else (1.0,)
        pooled = [pool([stage.votes[r] for stage in so_far], pooling) for r in range(REPEATS)]
        published = pool([stage.published for stage in so_far], pooling)
        right = (pooled[0].argmax(1) == clips.label).astype(float)
        exits = exit_thresholds(pooled[0].max(1), right, weights)
        specs.append(stage_spec(fitted, "gtzan", pooling, exits))
        name = f"ensemble after {fitted.stage.name}"
        report.append(row(name, measure(pooled, clips, ""), pooled, published, clips))
        report.append(exit_line("gtzan", fitted, exits, pooled[0].max(1), right, weights))
    return EnsembleSpec(taxonomy="gtzan", genres=NAMES, stages=tuple(specs), protocol=PROTOCOL)


def default_ensemble(stages: Sequence[Fitted], clips: Clips, report: list[str]) -> EnsembleSpec:
    """Weigh the votes and set the exits for the default taxonomy, ten genres and eight by tags.

    The ten are judged by held-out clips; the eight by hidden genres, each of which stands for one.
    """
    specs = []
    strangers = fit_strangers(stages)
    known_votes = [default_votes(stage, strangers) for stage in stages]
    hidden_votes = [trial_votes(stage, strangers) for stage in stages]
    for last, fitted in enumerate(stages):
        so_far, votes = stages[: last + 1], hidden_votes[: last + 1]
        pooling = fit_trial_pool(so_far, votes) if last else (1.0,)
        known = pool(known_votes[: last + 1], pooling)
        confidence = [known.max(1)]
        right = [(known.argmax(1) == clips.label).astype(float)]
        weights = [clip_weights(clips, np.ones(len(clips)))]
        for index, trial in enumerate(fitted.trials):
            vote = pool([of_stage[index] for of_stage in votes], pooling)
            hidden = trial.label == 9
            confidence.append(vote[hidden].max(1))
            right.append((vote[hidden].argmax(1) == 9).astype(float))
            own = clip_weights(clips, hidden.astype(float))[hidden]
            weights.append(own * len(FURTHER) / len(fitted.trials))
        c, r, w = np.concatenate(confidence), np.concatenate(right), np.concatenate(weights)
        exits = exit_thresholds(c, r, w)
        specs.append(stage_spec(fitted, "default", pooling, exits, strangers))
        found = np.average(r[len(clips) :], weights=w[len(clips) :])
        report.append(
            f"{exit_line('default', fitted, exits, c, r, w)}; of the ten's clips "
            f"{accuracy(known, clips.label):.3f} right, {(known.argmax(1) >= 10).mean():.3f} named "
            f"one of the eight; hidden genres found {found:.3f}; all, genres alike "
            f"{np.average(r, weights=w):.3f}"
        )
    return EnsembleSpec(
        taxonomy="default", genres=DEFAULT_GENRES, stages=tuple(specs), protocol=PROTOCOL
    )


def stage_spec(
    fitted: Fitted,
    taxonomy: str,
    weights: tuple[float, ...],
    exits: dict[str, float],
    strangers: float = 1.0,
) -> StageSpec:
    """Return a stage as data."""
    stage = fitted.stage
    head = "gtzan" if fitted.extension is None else taxonomy
    return StageSpec(
        name=stage.name, head=f"{head}-{stage.recipe.features}", features=stage.recipe.features,
        rate=stage.rate, windows=stage.windows, window_seconds=stage.window_seconds,
        sharpness=round(fitted.sharpness, 4), weights=weights, exits=exits,
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


def exit_line(
    taxonomy: str,
    fitted: Fitted,
    exits: dict[str, float],
    confidence: Floats,
    right: Floats,
    weights: Floats,
) -> str:
    """Return a line of the report: thresholds, and what share of clips leaves at each."""
    parts = []
    for wanted, threshold in exits.items():
        leaves = confidence >= threshold
        share = weights[leaves].sum() / weights.sum()
        good = np.average(right[leaves], weights=weights[leaves])
        parts.append(f"{wanted}: from {threshold:.3f}, {share:.0%} leave, {good:.3f} right")
    return f"- {taxonomy}, exits after {fitted.stage.name}: {'; '.join(parts) or 'none'}"
