"""Two models on the same recordings: who is right where the other is wrong, and is it chance?"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reclass_plex.errors import ConfigError, FileError, ModelError, printable
from reclass_plex.files import naming_errors
from reclass_plex.training import metrics
from reclass_plex.training.judging import Answers
from reclass_plex.training.metrics import McNemar, Truth
from reclass_plex.training.run_outputs import PREDICTIONS
from reclass_plex.training.table_csv import split_labels

FIXED = {"key,group,label,fold,answer": False, "key,group,labels,fold,answer": True}


@dataclass(frozen=True)
class Comparison:
    """`first` and `second` are accuracies on the recordings that both were asked about.

    `low` and `high` bound second - first: 95 %, bootstrap over groups, paired. For tags the figures
    are mean average precisions, and there is no McNemar test.
    """

    recordings: int
    only_one: int  # recordings that only one model was asked about
    measure: str
    first: float
    second: float
    low: float
    high: float
    test: McNemar | None
    warnings: tuple[str, ...]


def read_predictions(folder: Path) -> Answers:
    """Read a run's, or an evaluation's, predictions. Raises FileError or ModelError."""
    path = folder / PREDICTIONS
    if not path.exists():
        raise ModelError(f"{printable(folder)}: has no {PREDICTIONS}: no run that is finished")
    with naming_errors(path, writing=False):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if len(lines) < 2 or (multi_label := FIXED.get(",".join(lines[0][:5]))) is None:
        raise FileError(path, "is not what a training run writes")
    names = tuple(name.removeprefix("p ") for name in lines[0][5:])
    place = {name: i for i, name in enumerate(names)}
    try:
        probabilities = np.array([[float(value) for value in line[5:]] for line in lines[1:]])
        named = [split_labels(line[2]) if multi_label else [line[2]] for line in lines[1:]]
        sets = [[place[one] for one in names_of] for names_of in named]
        fold = np.array([int(line[3]) for line in lines[1:]], np.int64)
    except (ValueError, KeyError, IndexError) as error:
        raise FileError(path, f"is damaged: {error}") from None
    if probabilities.shape != (len(lines) - 1, len(names)):
        raise FileError(path, "is damaged: rows differ in length")
    labels = np.zeros(probabilities.shape, np.bool_)
    for row, one in enumerate(sets):
        labels[row, one] = True
    if not multi_label and not (labels.sum(1) == 1).all():
        raise FileError(path, "is damaged: a recording has not exactly one label")
    keys = tuple(line[0] for line in lines[1:])
    groups = tuple(line[1] or None for line in lines[1:])
    true = labels if multi_label else labels.argmax(1)
    return Answers(keys, names, true, probabilities, groups, fold)


def compare(first: Answers, second: Answers, repeats: int = 2000) -> Comparison:
    """Compare two models. Raises ConfigError if they were not asked about the same."""
    place = {key: i for i, key in enumerate(second.keys)}
    mine = np.array([i for i, key in enumerate(first.keys) if key in place], np.int64)
    theirs = np.array([place[first.keys[i]] for i in mine], np.int64)
    if not len(mine):
        raise ConfigError("the two models were asked about no common recording")
    if first.multi_label != second.multi_label:
        raise ConfigError("only one of the two models gives several labels at once")
    names = [np.array(answers.label_names) for answers in (first, second)]
    groups = first.group_numbers[mine]
    warnings = []
    if all(group is None for group in first.groups):
        warnings.append("groups are not known: the interval takes recordings for independent")
    only_one = len(first.keys) + len(second.keys) - 2 * len(mine)
    if first.multi_label:
        if first.label_names != second.label_names or not np.array_equal(
            first.labels[mine], second.labels[theirs]
        ):
            raise ConfigError("the two models disagree about what is true")
        truth = first.labels[mine]
        scores = [first.probabilities[mine], second.probabilities[theirs]]

        def precision(which: int, rows: metrics.Labels) -> float:
            return metrics.mean_over_tags(
                metrics.average_precision(scores[which][rows], truth[rows])
            )

        everyone = np.arange(len(mine))
        values = precision(0, everyone), precision(1, everyone)
        low, high = metrics.bootstrap_interval(
            lambda rows: precision(1, rows) - precision(0, rows), groups, repeats=min(repeats, 200)
        )
        return Comparison(
            len(mine), only_one, "mean average precision", *values, low, high, None, tuple(warnings)
        )
    true = [names[0][first.labels[mine]], names[1][second.labels[theirs]]]
    if (differ := int((true[0] != true[1]).sum())) > 0:
        raise ConfigError(f"the two models disagree about the true label of {differ} recordings")
    right: list[Truth] = [
        names[0][first.probabilities[mine].argmax(1)] == true[0],
        names[1][second.probabilities[theirs].argmax(1)] == true[1],
    ]
    gain = right[1].astype(np.float64) - right[0]
    low, high = metrics.bootstrap_interval(
        lambda rows: float(gain[rows].mean()), groups, repeats=repeats
    )
    return Comparison(
        len(mine), only_one, "accuracy", float(right[0].mean()), float(right[1].mean()),
        low, high, metrics.mcnemar(right[0], right[1]), tuple(warnings),
    )  # fmt: skip
