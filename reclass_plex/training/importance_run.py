"""What the model of a finished run looks at: measured, written into the run, shown in its report.

    importance/groups.csv    each group of columns: what is lost without it, with intervals
    importance/columns.csv   each column: gain, SHAP by label

Permutation needs models that did not learn from who is asked. Of a published split that is the
run's own; of folds each fold is fitted again, for as many rounds as the run's model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from reclass_plex.errors import ConfigError, printable
from reclass_plex.training import runs
from reclass_plex.training.approaches import build
from reclass_plex.training.approaches.base import Model, NoKeeper
from reclass_plex.training.checkpoints import read_json
from reclass_plex.training.columns import column_names, find_groupings
from reclass_plex.training.evaluating import load_model
from reclass_plex.training.importance import Asked, Effect, gain, measure_groups, shap_values
from reclass_plex.training.judging import Calibration
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.report import write_report
from reclass_plex.training.report_plots import IMPORTANCE
from reclass_plex.training.run_config import RunConfig, read_config, read_tables
from reclass_plex.training.run_outputs import METRICS, write_csv
from reclass_plex.training.splits import Division, divide, group_numbers
from reclass_plex.training.table import FeatureTable, fingerprint

MOST_ASKED = 2000  # recordings of a fold that are asked; drawn by the run's seed
EXPLAINED = 400  # rows whose SHAP values are averaged


@dataclass(frozen=True, eq=False)
class Importance:
    """`effects` of groups of columns; `gain` (d,) and `shap` (d, k) where the model has them."""

    names: tuple[str, ...]
    label_names: tuple[str, ...]
    effects: tuple[Effect, ...]
    gain: Floats | None
    shap: Floats | None

    def top_columns(self, count: int) -> list[tuple[str, float | None, float | None]]:
        """Return (name, gain, mean SHAP) of those that matter most, by SHAP, else by gain."""
        mean = None if self.shap is None else self.shap.mean(1)
        key = mean if mean is not None else self.gain
        if key is None:
            return []
        order = np.argsort(-key, kind="stable")[:count]
        gains = self.gain
        return [
            (
                self.names[i],
                None if gains is None else float(gains[i]),
                None if mean is None else float(mean[i]),
            )
            for i in order
        ]


def measure_importance(
    folder: Path, *, repeats: int, say: Callable[[str], None], step: Callable[[int], None]
) -> Importance:
    """Measure a finished run's model, write the files and draw the report anew.

    Raises ConfigError if the run is not finished, its table has changed or has nothing to tell
    apart; FileError, naming the file.
    """
    config = read_config(folder)
    if not runs.is_finished(folder):
        raise ConfigError(
            f"{printable(folder)}: this run is not finished: reclass-plex train --resume it first"
        )
    table, _ = read_tables(config.approach, config.sources)
    if fingerprint(table) != config.fingerprint:
        raise ConfigError(f"{printable(folder)}: the table has changed since this run learned")
    groupings = find_groupings(table)
    if not groupings:
        raise ConfigError(f"table {table.name}: nothing is known of its columns, nor has it layers")
    figures = read_json(folder / METRICS)
    calibration = Calibration(figures["temperature"], figures["sharpness"])
    division = divide(table, config.protocol, config.folds, config.settings.seed)
    final = load_model(folder)
    with runs.threads(config.threads):
        models = _held_out(config, table, division, final, figures["rounds"], say)
        effects = measure_groups(
            models, groupings, calibration, repeats=repeats, seed=config.settings.seed,
            step=lambda: step(1),
        )  # fmt: skip
        generator = np.random.default_rng(config.settings.seed)
        chosen = np.sort(generator.permutation(len(table.rows))[:EXPLAINED])
        rows = np.asarray(table.rows[chosen])
        shap = shap_values(final, rows, generator.permutation(rows))
    found = Importance(
        column_names(table), table.label_names, tuple(effects), gain(final, table.dims), shap
    )
    _write(folder, found)
    write_report(folder)
    return found


def _held_out(
    config: RunConfig,
    table: FeatureTable,
    division: Division,
    final: Model,
    rounds: int,
    say: Callable[[str], None],
) -> list[tuple[Model, Asked]]:
    balanced = config.settings.class_weights == "balanced"
    groups = group_numbers(table)
    generator = np.random.default_rng(config.settings.seed)
    models = []
    for number, fold in enumerate(division.folds, 1):
        model = final
        if not division.published:
            say(f"fold {number} of {len(division.folds)}: fitting for {rounds} rounds")
            approach = build(
                config.approach, config.settings, device=_device(config), threads=config.threads
            )
            both = np.sort(np.concatenate([fold.train, fold.tune]))
            learned = runs.examples(table, both, balanced)
            model = approach.fit(learned, None, rounds, NoKeeper()).model
        asked = np.sort(generator.permutation(fold.ask)[:MOST_ASKED])
        models.append((model, _asked(table, asked, groups)))
    return models


def _asked(table: FeatureTable, recordings: Labels, groups: Labels) -> Asked:
    position = np.full(len(table), -1)
    position[recordings] = np.arange(len(recordings))
    rows = np.flatnonzero(position[table.recording] >= 0)
    return Asked(
        np.asarray(table.rows[rows]), position[table.recording[rows]], table.labels[recordings],
        groups[recordings],
    )  # fmt: skip


def _device(config: RunConfig) -> str:
    from reclass_plex.device import choose_device

    return choose_device("cpu" if config.device == "cpu" else "auto")


def _write(folder: Path, found: Importance) -> None:
    names = [field.name for field in fields(Effect)]
    lines: list[list[Any]] = [
        ["" if value is None else value for value in (getattr(one, name) for name in names)]
        for one in found.effects
    ]
    write_csv(folder / IMPORTANCE / "groups.csv", names, lines)
    labels = [f"shap {name}" for name in found.label_names] if found.shap is not None else []
    lines = []
    for i, name in enumerate(found.names):
        share = "" if found.gain is None else f"{found.gain[i]:.6g}"
        if found.shap is None:
            lines.append([name, share, ""])
        else:
            each = [f"{value:.6g}" for value in found.shap[i]]
            lines.append([name, share, f"{found.shap[i].mean():.6g}", *each])
    write_csv(folder / IMPORTANCE / "columns.csv", ("column", "gain", "shap", *labels), lines)
