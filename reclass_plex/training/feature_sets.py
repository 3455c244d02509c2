"""The same approach on several sets of features: the same recordings, the same folds, one table.

Every set is a whole training run in a folder of its own, so the comparison can be interrupted, and
each run has its report. Recordings that one of the tables lacks are left out of all.

    OUT/1-NAME/, OUT/2-NAME/   the runs
    OUT/comparison.csv, OUT/comparison.svg
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from reclass_plex.errors import ConfigError, printable
from reclass_plex.training import runs
from reclass_plex.training.checkpoints import read_json
from reclass_plex.training.comparison import compare, read_predictions
from reclass_plex.training.report_plots import draw_sets
from reclass_plex.training.run_config import RUN, RunConfig, Source, read_config
from reclass_plex.training.run_outputs import COST, METRICS, write_csv
from reclass_plex.training.splits import divide
from reclass_plex.training.table import FeatureTable

TABLE, PLOT = "comparison.csv", "comparison.svg"
OF_THE_MOMENT = {"started", "command", "versions"}  # of a configuration: they may differ


@dataclass(frozen=True)
class SetResult:
    """A set's figures on the same recordings; `gain` is against the first set, paired.

    `measure` is accuracy, or for tags the mean average precision; intervals are 95 %, by bootstrap
    over groups; `p` is McNemar's exact one (None for tags, and of the first set).
    """

    name: str
    columns: int
    recordings: int
    measure: str
    value: float
    low: float
    high: float
    macro_f1: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    p: float | None
    parameters: int
    seconds: float


def plan_sets(
    sources: Sequence[Source],
    *,
    joined: bool = False,
    columns: Sequence[str] = (),
    without: Sequence[str] = (),
) -> list[tuple[str, Source]]:
    """Return the sets by name: each table, all of them side by side, or parts of one table.

    Each of `columns` and `without` is names of groups, with commas between. Raises ConfigError.
    """
    parts = bool(columns or without)
    if parts and len(sources) > 1:
        raise ConfigError("--columns and --without take parts of one table; give one")
    if joined and len(sources) < 2:
        raise ConfigError("--joined puts tables side by side; give two or more")
    if not parts and len(sources) < 2:
        raise ConfigError(
            "one set is no comparison: give several tables, or parts of one by --columns or"
            " --without"
        )
    folders = tuple(source.folder for source in sources if source.folder is not None)
    found: list[tuple[str, Source]] = []
    for source in sources:
        shared = source.model_copy(update={"common_with": folders if len(folders) > 1 else ()})
        table, _ = source.read()
        found.append((table.name, shared))
    if joined:
        first = found[0][1].model_copy(update={"beside": folders[1:]})
        found.append(("+".join(name for name, _ in found), first))
    for option, kept in ((columns, True), (without, False)):
        for text in option:
            groups = tuple(part.strip() for part in text.split(",") if part.strip())
            chosen = {"columns": groups} if kept else {"without": groups}
            name = ",".join(groups) if kept else f"without {','.join(groups)}"
            found.append((name, sources[0].model_copy(update=chosen)))
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"several of the sets are called {twice[0]}: give each once")
    return found


def compare_sets(
    out: Path,
    sets: Sequence[tuple[str, RunConfig]],
    voice: runs.Voice,
    on_set: Callable[[str], None],
) -> list[SetResult]:
    """Train what is not finished, write the table and the plot, and return the figures.

    Raises ConfigError if `out` holds another comparison, or if the tables do not agree about
    labels, artists or splits.
    """
    folders = [out / f"{i}-{_slug(name)}" for i, (name, _) in enumerate(sets, 1)]
    known = {path.name for path in folders}
    for path in sorted(out.glob("*")) if out.is_dir() else []:
        if path.is_dir() and path.name not in known:
            raise ConfigError(f"{printable(path)}: is none of these sets; name another --out")
    for folder, (_, config) in zip(folders, sets, strict=True):
        if (folder / RUN).exists() and _lasting(read_config(folder)) != _lasting(config):
            raise ConfigError(
                f"{printable(folder)}: was begun with other options; name another --out"
            )
    _check_folds(sets)
    for folder, (name, config) in zip(folders, sets, strict=True):
        on_set(name)
        if not (folder / RUN).exists():
            runs.start_run(folder, config)
        if not runs.is_finished(folder):
            runs.finish_run(folder, voice)
    named = list(zip(folders, (name for name, _ in sets), strict=True))
    results = [_result(folder, name, folders[0]) for folder, name in named]
    fields = list(SetResult.__dataclass_fields__)
    lines = [["" if v is None else v for v in asdict(one).values()] for one in results]
    write_csv(out / TABLE, fields, lines)
    draw_sets([(one.name, one.value, one.low, one.high) for one in results],
              results[0].measure, out / PLOT)  # fmt: skip
    return results


def _check_folds(sets: Sequence[tuple[str, RunConfig]]) -> None:
    """Raise ConfigError unless all sets are divided alike."""
    first: tuple[object, ...] | None = None
    for name, config in sets:
        table, _ = config.sources[0].read()
        division = divide(table, config.protocol, config.folds, config.settings.seed)
        parts = [part.tolist() for fold in division.folds for part in (fold.train, fold.ask)]
        told = (_facts(table), parts)
        if first is not None and told != first:
            raise ConfigError(
                f"{name}: its table has other labels, artists or splits than that of {sets[0][0]}:"
                " extract both from the same collection"
            )
        first = told


def _facts(table: FeatureTable) -> tuple[object, ...]:
    labels = np.asarray(table.labels).tolist()
    return (table.keys, table.label_names, labels, table.groups, table.splits)


def _result(folder: Path, name: str, first: Path) -> SetResult:
    figures, cost = read_json(folder / METRICS), read_json(folder / COST)
    measure = "mean_average_precision" if figures["multi_label"] else "accuracy"
    one = figures[measure]
    gain = None
    if folder != first:
        gain = compare(read_predictions(first), read_predictions(folder))
    config = read_config(folder)
    table, _ = config.sources[0].read()
    return SetResult(
        name=name,
        columns=table.dims,
        recordings=figures["recordings"],
        measure=measure.replace("_", " "),
        value=one["value"],
        low=one["low"],
        high=one["high"],
        macro_f1=None if figures["multi_label"] else figures["macro_f1"]["value"],
        gain=None if gain is None else gain.second - gain.first,
        gain_low=None if gain is None else gain.low,
        gain_high=None if gain is None else gain.high,
        p=None if gain is None or gain.test is None else gain.test.exact,
        parameters=cost["parameters"],
        seconds=cost["training_seconds"],
    )


def _lasting(config: RunConfig) -> dict[str, object]:
    return config.model_dump(mode="json", exclude=OF_THE_MOMENT)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9+.-]+", "-", name.lower()).strip("-")[:60] or "set"
