"""Plots of a training run or an evaluation, as SVG. Needs matplotlib, at use.

They are drawn from the files that the run wrote, so that a report can be drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reclass_plex.training.drawing import new_figure, save_figure
from reclass_plex.training.judging import Answers
from reclass_plex.training.metrics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#3366cc", "#dd7711", "#2a8f5a", "#777777"
MOST_LABELS = 60  # in one plot
MOST_COLUMNS = 30
IMPORTANCE = "importance"  # folder of a run


@dataclass(frozen=True)
class Point:
    """A model in the plot of accuracy against cost."""

    name: str
    microseconds: float
    accuracy: float
    low: float
    high: float
    ours: bool


def draw_confusion(figures: Mapping[str, Any], path: Path) -> None:
    """Draw each true label's shares of answers."""
    matrix = np.array(figures["confusion"], np.float64)
    names = [one["label"] for one in figures["labels"]]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(names)
    figure, axes = _figure(side + 0.6, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour,
                          fontsize=7)  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    save_figure(figure, path)


def draw_labels(figures: Mapping[str, Any], path: Path) -> None:
    """Draw each label's F1, or of tags the average precision."""
    measure = "average_precision" if figures["multi_label"] else "f1"
    known = [one for one in figures["labels"] if one[measure] is not None]
    shown = sorted(known, key=lambda one: -one["recordings"])[:MOST_LABELS]
    shown.sort(key=lambda one: one[measure])
    figure, axes = _figure(6.4, 1.2 + 0.24 * len(shown))
    axes.barh([one["label"] for one in shown], [one[measure] for one in shown], color=BLUE)
    for place, one in enumerate(shown):
        axes.text(one[measure] + 0.01, place, str(one["recordings"]), va="center", fontsize=7,
                  color=GREY)  # fmt: skip
    axes.set_xlim(0, 1.08)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(f"{measure.replace('_', ' ')} (grey: recordings)")
    save_figure(figure, path)


def draw_reliability(answers: Answers, path: Path, bins: int = 10) -> None:
    """Draw how often answers of some confidence are right, in bins of equal counts."""
    said, right = _stated(answers)
    parts = [p for p in np.array_split(np.argsort(said, kind="stable"), bins) if len(p)]
    figure, axes = _figure(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    axes.plot([said[p].mean() for p in parts], [right[p].mean() for p in parts], "o-", color=BLUE)
    axes.set_xlabel("confidence")
    axes.set_ylabel("share that is right")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    save_figure(figure, path)


def draw_curves(lines: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the losses of log.csv; dashed on what is learned, drawn through on what is held out."""
    figure, axes = _figure(6.4, 3.8)
    fits = list(dict.fromkeys(line["fit"] for line in lines))
    for number, fit in enumerate(fits):
        mine = [line for line in lines if line["fit"] == fit]
        colour = GREY if fit == "final" else f"C{number}"
        rounds = [int(line["number"]) for line in mine]
        axes.plot(rounds, [float(line["train_loss"]) for line in mine], "--", color=colour,
                  linewidth=0.9)  # fmt: skip
        held = [line["tune_loss"] for line in mine]
        if all(held):
            axes.plot(rounds, [float(v) for v in held], color=colour, linewidth=1.4, label=fit)
    axes.set_xlabel("epochs, or rounds of boosting")
    axes.set_ylabel("loss in nats")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7.5)
    save_figure(figure, path)


def draw_cost(points: Sequence[Point], measure: str, path: Path) -> None:
    """Draw accuracy against what an answer takes: this run, and finished runs beside it."""
    figure, axes = _figure(6.4, 3.8)
    for point in points:
        colour = BLUE if point.ours else GREY
        spread = [[point.accuracy - point.low], [point.high - point.accuracy]]
        axes.errorbar(point.microseconds, point.accuracy, np.maximum(spread, 0), fmt="o",
                      color=colour, capsize=3)  # fmt: skip
        axes.annotate(point.name, (point.microseconds, point.accuracy), xytext=(6, 5),
                      textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("microseconds a window, features not counted")
    axes.set_ylabel(measure)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    save_figure(figure, path)


def draw_sets(results: Sequence[tuple[str, float, float, float]], measure: str, path: Path) -> None:
    """Draw (name, value, low, high) of sets of features, one below the other."""
    figure, axes = _figure(6.4, 1.2 + 0.3 * len(results))
    for place, (_, value, low, high) in enumerate(reversed(results)):
        spread = np.maximum([[value - low], [high - value]], 0)
        axes.errorbar(value, place, xerr=spread, fmt="o", color=BLUE, capsize=3)
    axes.set_yticks(range(len(results)), [name for name, *_ in reversed(results)], fontsize=8)
    axes.set_xlabel(f"{measure} (95 %)")
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    save_figure(figure, path)


def draw_groups(lines: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw what is lost without each group of columns, by the lines of importance/groups.csv."""
    kinds = list(dict.fromkeys(line["by"] for line in lines))
    ordered = [
        line
        for kind in reversed(kinds)
        for line in sorted(
            (one for one in lines if one["by"] == kind), key=lambda one: float(one["loss"])
        )[-MOST_COLUMNS:]
    ]
    figure, axes = _figure(6.4, 1.2 + 0.26 * len(ordered))
    for place, line in enumerate(ordered):
        value, low, high = (float(line[name]) for name in ("loss", "loss_low", "loss_high"))
        colour = f"C{kinds.index(line['by'])}"
        spread = np.maximum([[value - low], [high - value]], 0)
        axes.barh(place, value, color=colour, xerr=spread, ecolor=GREY)
    axes.set_yticks(
        range(len(ordered)),
        [f"{line['group']} ({line['columns']})" for line in ordered],
        fontsize=8,
    )
    axes.set_xlabel(f"loss in nats when exchanged between recordings (by {', '.join(kinds)})")
    save_figure(figure, path)


def draw_columns(lines: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the columns that matter most: mean SHAP by label, or the gain without it."""
    parts = [name for name in lines[0] if name.startswith("shap ")] or ["gain"]
    key = "shap" if parts != ["gain"] else "gain"
    shown = sorted(lines, key=lambda one: float(one[key]))[-MOST_COLUMNS:]
    figure, axes = _figure(6.4, 1.2 + 0.24 * len(shown))
    before = np.zeros(len(shown))
    for number, part in enumerate(parts):
        # each label's part of the bar, so that the whole bar is the mean over labels
        values = np.array([float(line[part]) for line in shown]) / len(parts)
        axes.barh([line["column"] for line in shown], values, left=before,
                  color=f"C{number % 10}", label=part.removeprefix("shap "))  # fmt: skip
        before += values
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_xlabel("mean |SHAP| in logits" if key == "shap" else "share of the gain")
    if 1 < len(parts) <= 20:
        axes.legend(fontsize=7, loc="lower right")
    save_figure(figure, path)


def _stated(answers: Answers) -> tuple[Floats, Floats]:
    if answers.multi_label:
        return answers.probabilities.ravel(), answers.labels.ravel().astype(np.float64)
    right = answers.probabilities.argmax(1) == answers.labels
    return answers.probabilities.max(1), right.astype(np.float64)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    return figure, figure.add_subplot()
