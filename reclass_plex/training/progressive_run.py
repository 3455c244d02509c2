"""`train --approach progressive`: a training run for each table, then the ensemble of all.

    FOLDER/progressive.json   what was asked for; with it alone it is resumed
    FOLDER/stages/1-FEATURES/ a training run (`runs`), the cheapest stage first
    FOLDER/ensemble/          weights, exits and heads, ready to be installed (`cascade`)

Stages are judged by cross-validation even where a dataset publishes a split: votes are weighed and
thresholds found on what was said about recordings that were not learned from, and for that the
published test part is too precious. It is left out of everything, for `evaluate`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reclass_plex.encoders.top import parse_top
from reclass_plex.errors import ConfigError, Unreadable, printable
from reclass_plex.files import naming_errors
from reclass_plex.training.approaches import APPROACHES, check_table, make_settings
from reclass_plex.training.cascade import Cascade, combine_runs, write_ensemble
from reclass_plex.training.checkpoints import require_empty, write_json
from reclass_plex.training.extraction import read_manifest
from reclass_plex.training.run_config import RUN, RunConfig, Source, read_tables
from reclass_plex.training.runs import (
    CHECKPOINT_SECONDS,
    Voice,
    alone,
    finish_run,
    is_finished,
    start_run,
)
from reclass_plex.training.table import fingerprint

PROGRESSIVE, STAGES, ENSEMBLE = "progressive.json", "stages", "ensemble"
NAME = "progressive"
ANY_FEATURES = "fma-mlp"  # the approach for features that none is made for


class ProgressiveConfig(BaseModel):
    """A whole progressive run. `tables` are folders of `extract`, the cheapest stage first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    tables: tuple[Path, ...] = Field(min_length=2)
    folds: int = Field(default=5, ge=2, le=100)
    seed: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"]
    threads: int = Field(gt=0)
    licence: str | None = None
    started: str
    command: str
    versions: dict[str, str]


def start_progressive(folder: Path, config: ProgressiveConfig) -> None:
    """Make the folder. Raises FileError if it is in use, ConfigError if a table does not fit."""
    read = [_features(table) for table in config.tables]
    if len(set(read)) != len(read):
        raise ConfigError(f"several tables have the same features: {', '.join(read)}")
    for table in config.tables:
        _run_config(config, table)
    require_empty(folder)
    write_json(folder / PROGRESSIVE, config.model_dump(mode="json"))


def is_progressive(folder: Path) -> bool:
    """Say whether a folder holds a progressive run."""
    return (folder / PROGRESSIVE).exists()


def finish_progressive(
    folder: Path, voice: Voice, *, checkpoint_seconds: float = CHECKPOINT_SECONDS
) -> Cascade:
    """Do what is left, and return the ensemble. Raises ReclassError."""
    config = _read_config(folder)
    with alone(folder):
        runs = _finish_stages(folder, config, voice, checkpoint_seconds)
        cascade = combine_runs(runs)
        fresh = folder / f"{ENSEMBLE}.part"
        with naming_errors(folder, writing=True):
            for old in (fresh, folder / ENSEMBLE):
                shutil.rmtree(old, ignore_errors=True)
            write_ensemble(fresh, cascade)
            fresh.replace(folder / ENSEMBLE)
    return cascade


def _finish_stages(
    folder: Path, config: ProgressiveConfig, voice: Voice, checkpoint_seconds: float
) -> list[Path]:
    """Train what is not finished; return the runs of all stages."""
    runs = []
    for number, table in enumerate(config.tables, 1):
        run = folder / STAGES / f"{number}-{_features(table)}"
        runs.append(run)
        if is_finished(run):
            continue
        settings = _run_config(config, table)
        voice.say(f"stage {number} of {len(config.tables)}: {run.name}, {settings.approach}")
        if not (run / RUN).exists():
            start_run(run, settings)
        finish_run(run, voice, checkpoint_seconds=checkpoint_seconds)
    return runs


def choose_approach(features: str) -> str:
    """Return the approach that is made for such features, or the one that reads any."""
    made_for = (
        name
        for name, recipe in APPROACHES.items()
        if recipe.reads and features.startswith(recipe.reads)
    )
    return next(made_for, ANY_FEATURES)


def _run_config(config: ProgressiveConfig, folder: Path) -> RunConfig:
    """Return a stage's own run. Raises ReclassError if its table cannot be read or has changed."""
    name, source = _features(folder), Source(folder=folder, without_test=True)
    if read_manifest(folder).plan.rate == "native":
        raise ConfigError(
            f"{printable(folder)}: has {name} of whole excerpts at their own rate, and an"
            " ensemble hears windows: reclass-plex extract --features fma-windows"
        )
    if parse_top(name):
        raise ConfigError(
            f"{printable(folder)}: a head on {name} cannot be a stage yet: take the encoder's"
            " own vectors"
        )
    approach = choose_approach(name)
    table, _ = read_tables(approach, (source,))
    check_table(approach, table)
    return RunConfig(
        approach=approach,
        settings=make_settings(approach, {"seed": config.seed}),
        sources=(source,),
        fingerprint=fingerprint(table),
        protocol="folds",
        folds=config.folds,
        device=config.device,
        threads=config.threads,
        licence=config.licence,
        started=config.started,
        command=config.command,
        versions=config.versions,
    )


def _features(folder: Path) -> str:
    """Return what a table's features are called, without reading them."""
    return read_manifest(folder).plan.table_name


def _read_config(folder: Path) -> ProgressiveConfig:
    path = folder / PROGRESSIVE
    try:
        with naming_errors(path, writing=False):
            return ProgressiveConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or PROGRESSIVE
        raise Unreadable(path, f"{key}: {first['msg']}") from None
