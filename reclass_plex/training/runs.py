"""A training run: a folder that says what was learned, from what, and how far to trust it.

    run.json          the configuration; with it alone the run is resumed
    card.json, head.safetensors, trees.json      the head (`heads`); for tags tagger.json
                 and tagger.safetensors
    metrics.json      every figure; cost.json, what it took
    predictions.csv   what was said about recordings that were not learned from
    recordings.csv    who was trained on, so that a later evaluation can tell
    log.csv           the learning curves
    plots/, report.html
    checkpoint/       only while the run is not finished

Each fold's model is fitted until its tuned part gets no better, then again with that part for as
many rounds, and asked; then the final model, on everything. Of a published split there is one
model, which saw its train part alone. Killed at any point, the run goes on at its last checkpoint
to the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclass_plex.errors import ConfigError, printable
from reclass_plex.files import naming_errors, open_lock, try_lock
from reclass_plex.training import run_outputs
from reclass_plex.training.approaches import Origin, build, check_table
from reclass_plex.training.approaches.base import Examples, Fit, Model, Round, State
from reclass_plex.training.checkpoints import (
    FileKeeper,
    load_state,
    model_state,
    require_empty,
    restore_model,
    save_state,
    write_json,
)
from reclass_plex.training.judging import Answers, Calibration, calibrate, judge, pool
from reclass_plex.training.metrics import Floats, Labels
from reclass_plex.training.run_config import RUN, RunConfig, read_config, read_tables
from reclass_plex.training.splits import Division, Fold, divide, group_numbers
from reclass_plex.training.table import FeatureTable, fingerprint

CHECKPOINT = "checkpoint"
CHECKPOINT_SECONDS = 15.0  # between two, within a fit
LOCK = ".lock"


@dataclass(frozen=True)
class Voice:
    """How a run speaks: remarks, warnings that nobody shall miss, and each line of the curves."""

    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Callable[[str, Round], None]


@dataclass(frozen=True, eq=False)
class FoldResult:
    """A fold's model, how it was tuned, and the logits of the windows that it was asked about."""

    fit: Fit
    tuning: Fit
    asked: Floats


def start_run(folder: Path, config: RunConfig) -> None:
    """Make a run's folder. Raises FileError if it is in use."""
    require_empty(folder)
    write_json(folder / RUN, config.model_dump(mode="json"))


def is_finished(folder: Path) -> bool:
    """Say whether nothing is left to do."""
    return (folder / run_outputs.METRICS).exists() and not (folder / CHECKPOINT).exists()


def finish_run(
    folder: Path, voice: Voice, *, checkpoint_seconds: float = CHECKPOINT_SECONDS
) -> dict[str, Any]:
    """Do what is left of a run, and return its figures. Raises ReclassError."""
    config = read_config(folder)
    with alone(folder):
        if is_finished(folder):
            raise ConfigError(f"{printable(folder)}: this run is finished: see report.html in it")
        with naming_errors(folder, writing=True):
            (folder / CHECKPOINT).mkdir(exist_ok=True)
        table, remarks = read_tables(config.approach, config.sources)
        check_table(config.approach, table)
        if fingerprint(table) != config.fingerprint:
            raise ConfigError(
                f"{printable(folder / RUN)}: the table has changed since this run began; begin a"
                " new one"
            )
        for remark in remarks:
            voice.say(remark)
        division = divide(table, config.protocol, config.folds, config.settings.seed)
        for warning in division.warnings:
            voice.warn(warning)
        with threads(config.threads):
            work = _Work(folder, config, table, division, voice, checkpoint_seconds)
            figures = work.finish()
        shutil.rmtree(folder / CHECKPOINT)
        return figures


class _Work:
    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        table: FeatureTable,
        division: Division,
        voice: Voice,
        checkpoint_seconds: float,
    ) -> None:
        self.folder, self.config, self.table = folder, config, table
        self.division, self.voice, self.every = division, voice, checkpoint_seconds
        settings = config.settings
        self.approach = build(
            config.approach,
            settings,
            device=config.device,
            threads=config.threads,
            origin=Origin(table.name, table.versions, config.models),
        )

    def finish(self) -> dict[str, Any]:
        """Fit what is left, then write everything."""
        folds = self.division.folds
        results = [self._fold(i, fold) for i, fold in enumerate(folds)]
        answers, calibration = self._answers(results)
        if self.division.published:
            final = Fit(results[0].fit.model, results[0].fit.rounds)
        else:
            rounds = max(1, round(float(np.mean([one.tuning.rounds for one in results]))))
            final = self._fit("final", np.arange(len(self.table)), None, rounds)
        figures = judge(answers)
        figures |= {
            "protocol": self.division.protocol,
            "warnings": list(self.division.warnings),
            "temperature": calibration.temperature,
            "sharpness": calibration.sharpness,
            "rounds": final.rounds,
        }
        logs = {f"fold {i + 1}": one.tuning.log for i, one in enumerate(results)}
        run_outputs.write_outputs(
            self.folder,
            run_outputs.Outputs(
                self.config, self.table, self.division, final.model, calibration, answers, figures,
                logs | ({"final": final.log} if final.log else {}),
            ),
        )  # fmt: skip
        return figures

    def _fold(self, number: int, fold: Fold) -> FoldResult:
        tuning = fit = self._fit(f"fold-{number + 1}-tuning", fold.train, fold.tune, None)
        if not self.division.published:
            both = np.sort(np.concatenate([fold.train, fold.tune]))
            fit = self._fit(f"fold-{number + 1}", both, None, tuning.rounds)
        return FoldResult(fit, tuning, self._logits(fit.model, fold.ask))

    def _logits(self, model: Model, recordings: Labels) -> Floats:
        return model.logits(self.table.rows, _rows_of(self.table, recordings))

    def _fit(self, name: str, train: Labels, tune: Labels | None, rounds: int | None) -> Fit:
        """Return the fit called `name`, as it was kept or made now."""
        path = self.folder / CHECKPOINT / f"{name}.safetensors"
        in_hand = self.folder / CHECKPOINT / "in-hand.safetensors"
        if kept := load_state(path):
            return _restore_fit(kept)
        keeper = FitKeeper(in_hand, name, self.every, self.voice.progress)
        held_out = None if tune is None else self._examples(tune)
        fit = self.approach.fit(self._examples(train), held_out, rounds, keeper)
        save_state(path, _keep_fit(fit))
        in_hand.unlink(missing_ok=True)
        return fit

    def _examples(self, recordings: Labels) -> Examples:
        return examples(self.table, recordings, self.config.settings.class_weights == "balanced")

    def _answers(self, results: list[FoldResult]) -> tuple[Answers, Calibration]:
        """Pool what was said of the asked recordings; calibrated on others, never on themselves."""
        table, folds = self.table, self.division.folds
        if self.division.published:
            tuned = self._logits(results[0].fit.model, folds[0].tune)
            calibrations = [_calibrate(table, folds[0].tune, tuned)]
            whole = calibrations[0]
        else:
            asked = [fold.ask for fold in folds]
            calibrations = []
            for left_out in range(len(folds)):
                others = [i for i in range(len(folds)) if i != left_out]
                calibrations.append(
                    _calibrate(
                        table,
                        np.concatenate([asked[i] for i in others]),
                        np.concatenate([results[i].asked for i in others]),
                    )
                )
            whole = _calibrate(
                table, np.concatenate(asked), np.concatenate([one.asked for one in results])
            )
        pooled = [
            pool(one.asked, _numbered(table, fold.ask), calibration, table.multi_label)
            for one, fold, calibration in zip(results, folds, calibrations, strict=True)
        ]
        order = np.concatenate([fold.ask for fold in folds])
        fold_of = np.concatenate([np.full(len(f.ask), i + 1) for i, f in enumerate(folds)])
        place = np.argsort(order, kind="stable")
        chosen = order[place]
        answers = Answers(
            tuple(table.keys[i] for i in chosen),
            table.label_names,
            table.labels[chosen],
            np.concatenate(pooled)[place],
            tuple(table.groups[i] for i in chosen),
            fold_of[place],
        )
        return answers, whole


class FitKeeper(FileKeeper):
    """Keeps the fit in hand under its name: another fit's state is not its own."""

    def __init__(
        self, path: Path, name: str, every: float, progress: Callable[[str, Round], None]
    ) -> None:
        super().__init__(path, every, lambda line: progress(name, line))
        self._name = name

    def load(self) -> State | None:
        """Return what was kept last of this fit."""
        kept = super().load()
        return kept if kept is not None and kept.facts["fit"] == self._name else None

    def save(self, state: State, *, done: bool = False) -> None:
        """Keep a state, unless the last one is young."""
        super().save(State(state.tensors, {**state.facts, "fit": self._name}), done=done)


def examples(table: FeatureTable, recordings: Labels, balanced: bool) -> Examples:
    """Return the windows of `recordings`: recordings count alike; labels too, if `balanced`."""
    rows = _rows_of(table, recordings)
    owner = table.recording[rows]
    weights = 1 / np.bincount(table.recording, minlength=len(table))[owner]
    labels = table.labels[owner]
    targets = labels.astype(np.float32) if table.multi_label else labels.astype(np.int64)
    if balanced and not table.multi_label:
        weights /= np.bincount(table.labels[recordings])[labels]
    weights *= len(weights) / weights.sum()
    groups = group_numbers(table)[owner]
    return Examples(table.rows, rows, targets, weights, groups, len(table.label_names))


def _rows_of(table: FeatureTable, recordings: Labels) -> Labels:
    """Return the rows of `recordings`, in their order."""
    order = np.argsort(table.recording, kind="stable")
    starts = np.searchsorted(table.recording[order], np.arange(len(table) + 1))
    return np.concatenate([order[starts[i] : starts[i + 1]] for i in recordings])


def _numbered(table: FeatureTable, recordings: Labels) -> Labels:
    """Return for each of `_rows_of` which of `recordings` it belongs to, from 0."""
    counts = np.bincount(table.recording, minlength=len(table))[recordings]
    return np.repeat(np.arange(len(recordings)), counts)


def _calibrate(table: FeatureTable, recordings: Labels, logits: Floats) -> Calibration:
    return calibrate(logits, table.labels[recordings], _numbered(table, recordings))


def _keep_fit(fit: Fit) -> State:
    tensors, facts = model_state(fit.model)
    log = [line.as_json() for line in fit.log]
    return State(tensors, {"model": facts, "rounds": fit.rounds, "log": log})


def _restore_fit(kept: State) -> Fit:
    model = restore_model(State(kept.tensors, kept.facts["model"]))
    return Fit(model, kept.facts["rounds"], tuple(Round(**line) for line in kept.facts["log"]))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let no second process work on the same run."""
    with naming_errors(folder, writing=True):
        file = open_lock(folder / LOCK)
    with file:
        if not try_lock(file):
            raise ConfigError(f"{printable(folder)}: another process is at work on this run")
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch, BLAS and OpenMP use `count` threads: the same sums, and no waiting for others."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
