"""A first look at a feature table: what it holds, what its features are like, a map of it.

A recording counts once, as the mean of its windows (and of its layers). The map needs
scikit-learn and matplotlib; it is drawn with a fixed seed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import ConfigError
from reclass_plex.training.drawing import new_figure, save_figure
from reclass_plex.training.table import LONG_ROW, FeatureTable, average_layers, recording_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "overview.svg"
MOST_POINTS = 3000  # in the map, of which t-SNE takes a minute
MOST_LABELS = 20  # with a colour or a bar of their own: the most frequent
LIMIT = 10.0  # deviations: what lies further away is drawn, and projected, there
SAME = 0.99  # correlation, either way, from which a feature says nothing new
VARIANCE = 0.95  # of it, that the counted principal components hold

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overview:
    """The figures. `labels` and `splits` count recordings; one with two labels counts in both.

    `constant` features never vary, `redundant` ones repeat an earlier one (correlation `SAME`),
    `components` principal components hold `VARIANCE` of the standardised features.
    """

    recordings: int
    rows: int
    most_rows: int  # of a recording
    dims: int
    layers: int
    labels: dict[str, int]
    splits: dict[str, int]
    groups: int
    constant: int
    redundant: int
    components: int


def summarise_table(table: FeatureTable) -> Overview:
    """Count what a table holds, and look at its features.

    Raises ConfigError if its rows are whole windows: they are compared pair by pair.
    """
    if table.dims >= LONG_ROW:
        raise ConfigError(f"{table.name}: no overview, as a row is no vector but a whole window")
    names = table.label_names
    if table.multi_label:
        counts = table.labels.sum(0)
    else:
        counts = np.bincount(table.labels, minlength=len(names))
    z = _standardised(table)
    repeated = np.triu(np.abs(z.T @ z / len(z)) >= SAME, 1).any(0)
    spread = np.square(np.linalg.svd(z, compute_uv=False))
    held = np.cumsum(spread) / max(spread.sum(), np.finfo(float).tiny)
    return Overview(
        recordings=len(table),
        rows=len(table.rows),
        most_rows=int(np.bincount(table.recording).max()),
        dims=table.dims,
        layers=len(table.layers),
        labels={name: int(count) for name, count in zip(names, counts, strict=True)},
        splits=dict(Counter(split or "none" for split in table.splits)),
        groups=len(set(table.groups) - {None}),
        constant=table.dims - z.shape[1],
        redundant=int(repeated.sum()),
        components=int(np.searchsorted(held, VARIANCE) + 1) if z.size else 0,
    )


def draw_overview(table: FeatureTable, path: Path) -> None:
    """Draw the labels' counts, and the recordings by PCA and by t-SNE. Raises ConfigError."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigError(
            f"--overview needs scikit-learn ({error}): pip install 'reclass-plex[train]'"
        ) from error
    z = _standardised(table)
    if len(z) < 4 or not z.size:
        raise ConfigError(f"--overview: {len(z)} recordings of {table.name} are too few for a map")
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.permutation(len(z))[:MOST_POINTS])
    count = min(50, len(chosen), z.shape[1])
    components = PCA(count, random_state=0).fit_transform(z[chosen])
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    neighbours = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
    counts = summarise_table(table).labels
    shown = sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS]
    figure = new_figure(13, 4.6)
    bars, by_variance, by_neighbours = figure.subplots(1, 3)
    bars.barh(shown[::-1], [counts[label] for label in shown[::-1]], color="#3366cc")
    bars.set_title("recordings")
    by_variance.set_title("PCA")
    by_neighbours.set_title("t-SNE")
    _scatter(by_variance, components[:, :2], table, chosen, shown)
    _scatter(by_neighbours, neighbours, table, chosen, shown)
    by_neighbours.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_figure(figure, path)


def _scatter(
    axes: Axes,
    points: npt.NDArray[np.floating],
    table: FeatureTable,
    chosen: npt.NDArray[np.int64],
    shown: list[str],
) -> None:
    """Draw points (n, 2) of the chosen recordings in the colours of their labels; others grey."""
    import matplotlib as mpl

    labels = table.labels[chosen]
    axes.scatter(points[:, 0], points[:, -1], s=5, color="#cccccc")
    colours = mpl.colormaps["tab10" if len(shown) <= 10 else "tab20"]
    for place, label in enumerate(shown):
        number = table.label_names.index(label)
        its = labels[:, number] if table.multi_label else labels == number
        axes.scatter(points[its, 0], points[its, -1], s=5, color=colours(place), label=label)
    axes.set_xticks([])
    axes.set_yticks([])


def _standardised(table: FeatureTable) -> Floats:
    """Return (r, features that vary): zero mean, deviation 1, cut off at `LIMIT`."""
    means = recording_means(average_layers(table)).astype(np.float64)
    deviation = means.std(0)
    varies = deviation > 1e-7 * np.abs(means).max(0, initial=1e-30)
    z: Floats = (means[:, varies] - means[:, varies].mean(0)) / deviation[varies]
    return z.clip(-LIMIT, LIMIT)
