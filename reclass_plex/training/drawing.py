"""Figures: how all plots of training begin, and how they are written. Needs matplotlib, at use.

White behind everything, so that they can be read on a dark page too; text stays text, so that an
SVG is small; the same figure is the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, drawn without a screen. Raises ConfigError."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"plots need matplotlib ({error}): pip install 'reclass-plex[train]'"
        ) from error
    mpl.rcParams["text.parse_math"] = False  # $ in the name of a label begins no formula
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, as SVG or PNG by the file's suffix. Raises ConfigError if it cannot be."""
    import matplotlib as mpl

    metadata = {"Date": None} if path.suffix == ".svg" else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "reclass-plex"}):
            figure.savefig(path, metadata=metadata, dpi=144)
    except OSError as error:
        raise ConfigError(f"{printable(path)}: cannot be written: {error.strerror}") from error
