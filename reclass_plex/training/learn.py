"""A head for the user's own genres, from as few as 20 tracks each: fitted, calibrated, judged.

Logistic regression on frozen embeddings, all labels weighted alike so that rare genres are not
drowned; how strong its L2 must be is tuned. Artists (else albums) are never on both sides of the
cross-validation. What the models of its folds said is calibrated by temperature and biases together
(Alexandari, Kundaje and Shrikumar, *Maximum likelihood with bias-corrected calibration is hard to
beat at label shift adaptation*, 2020), which brings back how rare each genre is in the library;
the labels are softened as Platt did (1999), for few examples are easily separated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from reclass_plex.errors import ConfigError, printable
from reclass_plex.heads import Head, Measured, ModelCard, load_card
from reclass_plex.learned_genres import OTHER, learned_place
from reclass_plex.models import write_sums
from reclass_plex.models.swap import in_use, replacing, take_back
from reclass_plex.training.approaches import build, make_settings
from reclass_plex.training.approaches.base import Approach, Fit, Model, NoKeeper
from reclass_plex.training.fit import log_softmax, softmax
from reclass_plex.training.learn_examples import FEWEST_GROUPS, Lesson
from reclass_plex.training.metrics import (
    Floats,
    Labels,
    calibration_error,
    class_scores,
    wilson_interval,
)
from reclass_plex.training.runs import examples
from reclass_plex.training.splits import Division, divide, group_numbers

FOLDS, DRAWS = 5, 4  # at most; how often chance may divide before fewer folds are tried
STEPS = 13  # towards weaker L2: to 0.001; few examples, once parted, bear any certainty
STRAY = 0.01  # nats for a squared unit by which a bias leaves what the counts say
BOUNDS = (-2.5, 2.5)  # of the temperature's logarithm


@dataclass(frozen=True)
class GenreFigures:
    """What cross-validation says of a genre, at the rate at which the library has it."""

    name: str
    tracks: int
    groups: int
    precision: float
    recall: float


@dataclass(frozen=True)
class Learned:
    """A fitted head, what it is worth, and what is doubtful about that."""

    head: Head
    genres: tuple[GenreFigures, ...]  # `OTHER` last, where the head has it
    calibration_error: float
    protocol: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Scale:
    """Probabilities are softmax(logits / temperature + bias)."""

    temperature: float
    bias: Floats

    def apply(self, logits: Floats) -> Floats:
        return softmax(logits / self.temperature + self.bias)


def learn(lesson: Lesson, taxonomy: str, command: str) -> Learned:
    """Fit a head to the lesson, and judge it. Raises ConfigError if it cannot be divided."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    table, labels = lesson.table, lesson.table.labels.astype(np.int64)
    counts = np.ones(len(table))
    if table.label_names[-1] == OTHER:
        counts[labels == len(table.label_names) - 1] = lesson.others
    division = _divide(lesson)
    with threadpool_limits(1):  # many small products: a second thread would only be waited for
        logits, model = _cross_validate(lesson, division)
        # Calibrated on the other folds, never on what it is asked about.
        said = np.zeros_like(logits)
        for fold in division.folds:
            rest = np.setdiff1d(np.arange(len(table)), fold.ask)
            scale = _calibrate(logits[rest], labels[rest], counts[rest])
            said[fold.ask] = scale.apply(logits[fold.ask])
        scale = _calibrate(logits, labels, counts)
    tensors = dict(model.tensors)
    # A head divides by its temperature last.
    tensors["bias"] = tensors["bias"] + torch.from_numpy(scale.bias * scale.temperature).float()
    error = calibration_error(said, labels)
    right = float(counts @ (said.argmax(1) == labels) / counts.sum())
    low, high = wilson_interval(right * len(table), len(table))
    protocol = division.protocol
    measured = Measured(
        accuracy=right,
        low=min(low, right),
        high=max(high, right),
        clips=len(table),
        calibration_error=error,
        protocol=protocol,
    )
    figures = _figures(lesson, said, labels, counts)
    card = ModelCard(
        name="learned",
        kind="logistic",
        taxonomy=taxonomy,
        genres=table.label_names,
        features=table.name,
        dims=table.dims,
        excerpt=table.excerpt,
        rate=table.rate,
        window_seconds=table.window_seconds,
        limit=model.limit,
        temperature=scale.temperature,
        training_data=f"{table.collection}: {len(table)} tracks",
        licence=table.licence,
        split=protocol,
        measured=(measured,),
        rests_on={one.name: f"{one.tracks} tracks of {one.groups} groups" for one in figures},
        date=datetime.now(timezone.utc).date().isoformat(),
        command=command,
    )
    warnings = (*lesson.warnings, *division.warnings)
    return Learned(Head(card, tensors), figures, error, protocol, warnings)


def install(head: Head, models: Path) -> Path:
    """Put a head in use, and return where. The former one can come back. Raises FileError."""
    place = learned_place(models)
    with replacing(place) as fresh:
        head.save(fresh)
        write_sums(fresh)
    return place


def roll_back(models: Path) -> tuple[str, ...] | None:
    """Take the installed head back; return what the former one, which now counts, knows.

    None if there was none. Raises ConfigError if nothing is installed, FileError if the folder
    cannot be changed, ModelError if the former one is damaged.
    """
    place = learned_place(models)
    if in_use(place) is None:
        raise ConfigError(f"{printable(place)}: no genres were learned: there is nothing to undo")
    return load_card(place).genres if take_back(place) else None


def _cross_validate(lesson: Lesson, division: Division) -> tuple[Floats, Model]:
    """Return logits (n, k) by models that had not learned from the rows, and one that has."""
    table = lesson.table
    settings = make_settings("musicnn", {"class_weights": "balanced", "epochs": STEPS})
    approach = build("musicnn", settings, device="cpu", threads=1)
    logits = np.zeros((len(table), len(table.label_names)))
    rounds = []
    for fold in division.folds:
        tuning = _fit(lesson, approach, fold.train, fold.tune, None)
        both = np.sort(np.concatenate([fold.train, fold.tune]))
        fit = _fit(lesson, approach, both, None, tuning.rounds)
        logits[fold.ask] = fit.model.logits(table.rows[fold.ask])
        rounds.append(tuning.rounds)
    usual = max(1, round(float(np.mean(rounds))))
    return logits, _fit(lesson, approach, np.arange(len(table)), None, usual).model


def _fit(
    lesson: Lesson, approach: Approach, train: Labels, tune: Labels | None, rounds: int | None
) -> Fit:
    held_out = None if tune is None else examples(lesson.table, tune, balanced=True)
    train_on = examples(lesson.table, train, balanced=True)
    return approach.fit(train_on, held_out, rounds, NoKeeper())


def _divide(lesson: Lesson) -> Division:
    """Divide into as many folds as the genre of the fewest groups has, if it can be done."""
    groups, labels = group_numbers(lesson.table), lesson.table.labels
    fewest = min(
        len(np.unique(groups[labels == label])) for label in range(len(lesson.table.label_names))
    )
    fault: ConfigError | None = None
    for folds in range(max(2, min(FOLDS, fewest)), 1, -1):
        for seed in range(DRAWS):
            try:
                return divide(lesson.table, "folds", folds, seed)
            except ConfigError as error:
                fault = error
    raise ConfigError(
        f"the tracks cannot be divided so that each genre is learned from some artists and asked"
        f" about with others: name more than {FEWEST_GROUPS} artists a genre ({fault})"
    )


def _calibrate(logits: Floats, labels: Labels, counts: Floats) -> _Scale:
    """Fit temperature and biases to held-out logits; `counts` (n,) is what each row stands for."""
    classes = logits.shape[1]
    rows = np.bincount(labels, minlength=classes)
    share = np.bincount(labels, counts, classes) / counts.sum()
    usual = np.log(np.maximum(share, 1e-9))
    usual -= usual.mean()
    softened = 1 / (rows[labels] + 2)  # Platt's, of each row's label
    targets = np.repeat(softened[:, None] / (classes - 1), classes, 1)
    targets[np.arange(len(labels)), labels] = 1 - softened
    weighted = targets * (counts / counts.sum())[:, None]

    def loss(values: Floats) -> float:
        logs = log_softmax(logits / np.exp(values[0]) + usual + values[1:])
        return float(-(weighted * logs).sum() + STRAY * np.square(values[1:]).sum())

    start = np.zeros(classes + 1)
    limits = [BOUNDS] + [(-5.0, 5.0)] * classes
    found = minimize(loss, start, bounds=limits).x
    return _Scale(float(np.exp(found[0])), usual + found[1:])


def _figures(
    lesson: Lesson, said: Floats, labels: Labels, counts: Floats
) -> tuple[GenreFigures, ...]:
    names: Sequence[str] = lesson.table.label_names
    matrix = np.zeros((len(names), len(names)))
    np.add.at(matrix, (labels, said.argmax(1)), counts)
    scores = class_scores(np.rint(matrix).astype(np.int64))
    groups = group_numbers(lesson.table)
    return tuple(
        GenreFigures(
            name,
            int((labels == i).sum()),
            len(np.unique(groups[labels == i])),
            float(scores.precision[i]),
            float(scores.recall[i]),
        )
        for i, name in enumerate(names)
    )
