"""Plots of a judgement (`progressive`), as SVG or PNG by the file's suffix. Needs matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reclass_plex.training.drawing import new_figure, save_figure
from reclass_plex.training.progressive import Judgement, Progressive, Way

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY, LIGHT = "#3366cc", "#dd7711", "#2a8f5a", "#666666", "#aaaaaa"
STAGE_COLOURS = (BLUE, ORANGE, GREEN, "#aa4499", "#999933", "#882255")


def draw_all(judgement: Judgement, folder: Path) -> list[Path]:
    """Draw every plot into `folder`; return the files. Raises ConfigError."""
    drawings: dict[str, Callable[[Judgement, Path], None]] = {
        "accuracy-cost.svg": draw_accuracy_against_cost,
        "stages.svg": draw_shares,
        "reliability.svg": draw_reliability,
    }
    for name, draw in drawings.items():
        draw(judgement, folder / name)
    return [folder / name for name in drawings]


def draw_accuracy_against_cost(judgement: Judgement, path: Path) -> None:
    """Draw accuracy against seconds a track: the cascade at every threshold, and its rivals.

    Raises ConfigError if the file cannot be written or matplotlib is not there.
    """
    figure = new_figure(7.2, 4.6)
    axes = figure.add_subplot()
    curve = judgement.curve
    axes.plot(
        [p.seconds for p in curve], [p.accuracy.value for p in curve],
        color=BLUE, linewidth=1.4, label="progressive, every threshold", zorder=2,
    )  # fmt: skip
    for points in _at_one_place(judgement.exits):
        one = points[0]
        axes.plot(one.seconds, one.accuracy.value, "o", color=BLUE, markersize=5, zorder=4)
        name = ", ".join(f"{p.wanted:.2f}" for p in points)
        axes.annotate(
            name, (one.seconds, one.accuracy.value), xytext=(0, 7), ha="center",
            textcoords="offset points", color=BLUE, fontsize=8,
        )  # fmt: skip
    axes.plot([], [], "o", color=BLUE, label="… at a wanted accuracy of early exits")
    for number, way in enumerate(judgement.singles):
        _draw_way(axes, way, STAGE_COLOURS[(number + 1) % len(STAGE_COLOURS)], "s")
    for way, marker in zip(judgement.pools, itertools.cycle("DvP*"), strict=False):
        _draw_way(axes, way, GREY if way.name.startswith("full") else LIGHT, marker)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds a track, one core, decoding included")
    axes.set_ylabel("accuracy")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.legend(fontsize=7, loc="lower right", framealpha=0.9)
    axes.set_title(f"{judgement.taxonomy}: accuracy against cost", fontsize=10)
    save_figure(figure, path)


def draw_shares(judgement: Judgement, path: Path) -> None:
    """Draw the share of the tracks that each stage decides, by wanted accuracy."""
    figure = new_figure(6.4, 3.2)
    axes = figure.add_subplot()
    names = [f"{p.wanted:.2f}" for p in judgement.exits]
    before = np.zeros(len(names))
    for number, stage in enumerate(judgement.stages):
        shares = np.array([p.decided[number] for p in judgement.exits])
        colour = STAGE_COLOURS[number % len(STAGE_COLOURS)]
        axes.barh(names, shares, left=before, color=colour, label=stage, height=0.7)
        for row, (start, share) in enumerate(zip(before, shares, strict=True)):
            if share >= 0.05:
                middle = start + share / 2
                axes.text(middle, row, f"{share:.0%}", ha="center", va="center", color="white",
                          fontsize=8)  # fmt: skip
        before += shares
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of tracks decided by")
    axes.set_ylabel("wanted accuracy")
    axes.legend(fontsize=7.5, ncols=len(judgement.stages), loc="lower left",
                bbox_to_anchor=(0, 1), frameon=False)  # fmt: skip
    save_figure(figure, path)


def draw_reliability(judgement: Judgement, path: Path) -> None:
    """Draw how often answers of a confidence are right: each stage, and the pooled votes."""
    count = len(judgement.reliability)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(2.4 * columns, 2.5 * rows)
    for number, diagram in enumerate(judgement.reliability, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        axes.plot(diagram.confidence, diagram.accuracy, "o-", color=BLUE, markersize=3.5)
        axes.set_title(f"{diagram.name}\nexpected error {diagram.error:.3f}", fontsize=7.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("confidence", fontsize=7.5)
        axes.set_ylabel("right", fontsize=7.5)
    save_figure(figure, path)


def _at_one_place(points: tuple[Progressive, ...]) -> list[list[Progressive]]:
    """Group points that would be drawn on top of each other."""
    places: dict[tuple[float, ...], list[Progressive]] = {}
    for point in points:
        places.setdefault(point.thresholds, []).append(point)
    return list(places.values())


def _draw_way(axes: Axes, way: Way, colour: str, marker: str) -> None:
    share = way.accuracy
    bars = [[share.value - share.low], [share.high - share.value]]
    axes.errorbar(
        way.seconds, share.value, yerr=bars, fmt=marker, color=colour, markersize=5,
        elinewidth=0.6, alpha=0.9, label=way.name, zorder=3,
    )  # fmt: skip
