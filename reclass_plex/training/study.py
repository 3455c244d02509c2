"""What held-out clips say: grouped cross-validation, and genres that are hidden from the heads.

Each genre that has a tag is hidden in turn (`hide_genres`): heads are fitted on the other nine, and
the hidden one must be found by its tags alone, as Electronic or Folk must be in real libraries,
where no labelled clips of them were at hand. What weighs tags against heads (`Extension`) is fitted
on all those trials together, and judged on a genre that its fit did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from reclass_plex.encoders.musicnn import spread_indices
from reclass_plex.features import COLUMN_NAMES
from reclass_plex.training.datasets.gtzan import NAMES, Clips, grouped_folds
from reclass_plex.training.extract import Table
from reclass_plex.training.fit import Logistic, fit_logistic, log_softmax
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.tag_rules import KNOWN, tag_matrix

FOLDS = 5
EXTENSION_START = (2.5, -5.0, 1.0)  # where the search begins


@dataclass(frozen=True)
class Recipe:
    """How one kind of head is fitted: see `fit_logistic` for what the numbers mean."""

    features: str
    l2: float
    freedom: Floats
    limit: float | None = None

    @property
    def has_tags(self) -> bool:
        """Whether the features begin with MusiCNN's tags."""
        return self.features != "fma518"


def musicnn_recipe(features: str) -> Recipe:
    """Penultimate layers are free; tags speak only as `tag_rules` says (their scale is fitted)."""
    one = np.concatenate([np.zeros(50), np.ones(200)])
    return Recipe(features, 0.3, one if features == "musicnn-msd" else np.tile(one, 2))


def fma518_recipe() -> Recipe:
    """Chroma says little about genre on 300 clips, skew and kurtosis are noisy: held short."""
    freedom = [
        (0.25 if name.startswith(("chroma", "tonnetz")) else 1.0)
        * (0.3 if "kurtosis" in name or "skew" in name else 1.0)
        for name in COLUMN_NAMES
    ]
    return Recipe("fma518", 0.05, np.array(freedom), limit=4.0)


def fit_known(
    recipe: Recipe, table: Table, clips: Clips, train: Labels, genres: Sequence[int]
) -> Logistic:
    """Fit a head on the clips `train` (indices); labels are positions in `genres`.

    Genres count alike, clips of a genre alike, and of each clip's weight the real windows have one
    half and the disturbed ones the other.
    """
    chosen = np.isin(table.clip, train)
    clip, disturbed = table.clip[chosen], table.disturbed[chosen]
    part = 2 * clip + disturbed
    weights = 1 / np.bincount(part)[part]
    label = clips.label[clip]
    weights /= np.bincount(clips.label[train], minlength=len(NAMES))[label]
    position = np.full(len(NAMES), -1)
    position[list(genres)] = np.arange(len(genres))
    width = table.features.shape[1]
    names = [NAMES[genre] for genre in genres]
    prior = np.zeros((width, len(genres)))
    if recipe.has_tags:
        prior = tag_matrix(names, recipe.features, width)
    return fit_logistic(
        table.features[chosen],
        position[label],
        weights / weights.sum(),
        genres=len(genres),
        prior=prior,
        freedom=recipe.freedom,
        l2=recipe.l2,
        limit=recipe.limit,
    )


def choose_rows(table: Table, most: int) -> Labels:
    """Return the rows of at most `most` windows a clip, spread as the ensemble spreads them."""
    rows = [np.flatnonzero(table.clip == clip) for clip in np.unique(table.clip)]
    return np.concatenate([r[list(spread_indices(len(r), most))] for r in rows])


def clip_means(values: Floats, clip: Labels) -> Floats:
    """Return the mean (clips, k) over each clip's windows of `values` (n, k)."""
    sums = np.zeros((int(clip.max()) + 1, values.shape[1]))
    np.add.at(sums, clip, values)
    means: Floats = sums / np.bincount(clip)[:, None]
    return means


def out_of_fold(recipe: Recipe, table: Table, clips: Clips, repeat: int) -> Floats:
    """Return logits (windows, 10) of the real windows, each by a head that saw no neighbour."""
    real = table.real
    logits = np.empty((len(real.clip), len(NAMES)))
    fold = grouped_folds(clips, repeat, FOLDS)
    for k in range(FOLDS):
        model = fit_known(recipe, table, clips, np.flatnonzero(fold != k), range(len(NAMES)))
        held = np.isin(real.clip, np.flatnonzero(fold == k))
        logits[held] = model.logits(real.features[held])
    return logits


@dataclass(frozen=True)
class TagEvidence:
    """For each clip: the known genres' mean log-probability (n, k), the tag scores of further ones
    (n, m), and how high those usually are for the known genres that the clip resembles (n, m).
    """

    log_known: Floats
    score: Floats
    usual: Floats


@dataclass(frozen=True)
class Extension:
    """logit = `slope` * score + `offset` - `usual` * usual score, beside the known log p."""

    slope: float
    offset: float
    usual: float

    def log_probabilities(self, evidence: TagEvidence) -> Floats:
        """Return (n, k + m)."""
        further = self.slope * evidence.score + self.offset - self.usual * evidence.usual
        return log_softmax(np.concatenate([evidence.log_known, further], 1))


def usual_scores(
    model: Logistic, rule: Floats, table: Table, clips: Clips, train: Labels, genres: Sequence[int]
) -> Floats:
    """Return (k, m): the mean tag scores of the real windows of each known genre's clips."""
    real = table.real
    scores = clip_means(model.standardise(real.features) @ rule, real.clip)
    return np.stack([scores[train[clips.label[train] == genre]].mean(0) for genre in genres])


def gather_evidence(
    model: Logistic, temperature: float, rule: Floats, usual: Floats, table: Table, rows: Labels
) -> TagEvidence:
    """Return the evidence of every clip from the chosen `rows` of real windows."""
    features, clip = table.features[rows], table.clip[rows]
    log_known = log_softmax(model.logits(features) / temperature)
    return TagEvidence(
        clip_means(log_known, clip),
        clip_means(model.standardise(features) @ rule, clip),
        clip_means(np.exp(log_known), clip) @ usual,
    )


def evidence_out_of_fold(
    recipe: Recipe,
    table: Table,
    clips: Clips,
    repeat: int,
    *,
    temperature: float,
    windows: int,
    further: Sequence[str],
    hidden: int | None = None,
) -> TagEvidence:
    """Return every clip's evidence, by heads that saw neither its neighbours nor genre `hidden`.

    Clips of the hidden genre, which no fold needs to leave out, get the mean over the folds.
    """
    real = table.real
    rows = choose_rows(real, windows)
    genres = [g for g in range(len(NAMES)) if g != hidden]
    width = table.features.shape[1]
    rule = tag_matrix(further, recipe.features, width) if recipe.has_tags else np.zeros((width, 1))
    fold = grouped_folds(clips, repeat, FOLDS)
    unseen = clips.label == hidden
    parts: list[TagEvidence] = []
    for k in range(FOLDS):
        train = np.flatnonzero((fold != k) & ~unseen)
        model = fit_known(recipe, table, clips, train, genres)
        usual = usual_scores(model, rule, table, clips, train, genres)
        parts.append(gather_evidence(model, temperature, rule, usual, real, rows))

    def assemble(values: Sequence[Floats]) -> Floats:
        stacked = np.stack(values)
        whole = stacked[fold, np.arange(len(clips))]
        whole[unseen] = stacked[:, unseen].mean(0)
        return whole

    return TagEvidence(
        assemble([part.log_known for part in parts]),
        assemble([part.score for part in parts]),
        assemble([part.usual for part in parts]),
    )


@dataclass(frozen=True)
class Trial:
    """A genre hidden from the heads: its label is 9, after the nine known ones."""

    genre: str
    evidence: TagEvidence
    label: Labels


def hide_genres(
    recipe: Recipe, table: Table, clips: Clips, repeat: int, *, temperature: float, windows: int
) -> list[Trial]:
    """Hide each genre that any tag names, one after another."""
    trials = []
    for hidden, name in enumerate(NAMES):
        if not KNOWN[name]:
            continue
        evidence = evidence_out_of_fold(
            recipe, table, clips, repeat, temperature=temperature, windows=windows,
            further=[name], hidden=hidden,
        )  # fmt: skip
        label = np.where(clips.label == hidden, 9, clips.label - (clips.label > hidden))
        trials.append(Trial(name, evidence, label))
    return trials


def fit_extension(trials: Sequence[Trial]) -> Extension:
    """Return the extension of least log loss over the trials, genres counting alike.

    Trials in which the features' tags cannot name the genre (all scores 0) teach nothing.
    """
    trials = [trial for trial in trials if trial.evidence.score.any()]

    def loss(values: Floats) -> float:
        total = 0.0
        for trial in trials:
            logs = Extension(*values).log_probabilities(trial.evidence)
            chosen = logs[np.arange(len(trial.label)), trial.label]
            weights = 1 / np.bincount(trial.label)[trial.label] / 10
            total -= float(weights @ chosen)
        return total / len(trials)

    found = minimize(loss, EXTENSION_START, method="Nelder-Mead", options={"maxiter": 2000})
    return Extension(*(round(float(value), 4) for value in found.x))
