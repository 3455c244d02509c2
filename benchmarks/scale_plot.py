"""The picture of `benchmarks/scale.py`: its figures over the size of the library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

PANELS: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    (
        "the whole library, s",
        "s",
        (
            "store filled, s",
            "reconcile, s",
            "known files asked about, s",
            "all put in line, s",
            "index made, processor s",
            "watched and compared, s",
        ),
        True,
    ),
    (
        "one of it, ms of processor",
        "ms",
        (
            "one track looked up, ms",
            "one track recorded, ms",
            "one claim of 32, ms",
            "one finish of 32, ms",
            "one query, ms",
        ),
        False,
    ),
    (
        "memory, MB",
        "MB",
        ("reconcile's memory, MB", "their memory, MB", "making it, MB", "daemon at rest, MB"),
        False,
    ),
)
NAMES = {"their memory, MB": "known files asked about", "making it, MB": "index being made"}


def plot(table: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Draw `table` (size, then figure) into an SVG file, n log n dashed beside."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "reclass", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    sizes = sorted(table)
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.6), layout="constrained")
    for panel, (title, unit, names, with_growth) in zip(axes, PANELS, strict=True):
        for name in names:
            points = [(size, table[size][name]) for size in sizes if name in table[size]]
            label = NAMES.get(name, name.rpartition(", ")[0])
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        panel.set(xscale="log", yscale="log", xlabel="tracks", title=title, ylabel=unit)
        if with_growth:
            _draw_growth(panel, sizes)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=6)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _draw_growth(panel: object, sizes: Sequence[int]) -> None:
    """Draw n log n through the lower left corner."""
    low, high = panel.get_ylim()  # type: ignore[attr-defined]
    first = sizes[0] * math.log(sizes[0])
    line = [low * size * math.log(size) / first for size in sizes]
    panel.plot(sizes, line, "--", color="grey", linewidth=1, label="n log n")  # type: ignore[attr-defined]
    panel.set_ylim(low, high)  # type: ignore[attr-defined]
