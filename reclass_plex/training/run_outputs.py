"""What a finished run writes: the head with its card, figures, predictions, curves, the report."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclass_plex.encoders import Readout
from reclass_plex.files import naming_errors
from reclass_plex.genres import TAXONOMIES
from reclass_plex.heads import Head, Measured, ModelCard
from reclass_plex.models.installed import hash_file
from reclass_plex.training import metrics, tagger_card
from reclass_plex.training.approaches.base import Model, Round, State
from reclass_plex.training.checkpoints import model_state, save_state, write_json, write_whole
from reclass_plex.training.judging import Answers, Calibration
from reclass_plex.training.run_config import RunConfig
from reclass_plex.training.splits import Division
from reclass_plex.training.table import FeatureTable
from reclass_plex.training.table_csv import join_labels

METRICS, COST, PREDICTIONS = "metrics.json", "cost.json", "predictions.csv"
RECORDINGS, LOG, TAGGER = "recordings.csv", "log.csv", tagger_card.TENSORS
TIMED_ROWS, TIMED_WINDOWS = 1000, 64


@dataclass(frozen=True, eq=False)
class Outputs:
    """Everything that a run ends with."""

    config: RunConfig
    table: FeatureTable
    division: Division
    model: Model
    calibration: Calibration
    answers: Answers
    figures: Mapping[str, Any]
    logs: Mapping[str, tuple[Round, ...]]


def write_outputs(folder: Path, out: Outputs) -> None:
    """Write all files of a run; metrics.json comes last. Raises FileError."""
    from reclass_plex.training.report import write_report

    if out.table.multi_label:
        save_tagger(folder, out)
    else:
        with naming_errors(folder, writing=True):
            make_head(out).save(folder)
    write_predictions(folder / PREDICTIONS, out.answers)
    write_csv(folder / RECORDINGS, ("key", "group", "role"), _roles(out.table, out.division))
    curve = ("fit", *Round.__dataclass_fields__)
    lines = [
        (fit, *(_blank(value) for value in line.as_json().values()))
        for fit, log in out.logs.items()
        for line in log
    ]
    write_csv(folder / LOG, curve, lines)
    write_json(folder / COST, measure_cost(out))
    write_json(folder / METRICS, out.figures)
    write_report(folder)


def make_head(out: Outputs) -> Head:
    """Return the head that a run of single labels ends with."""
    table, config, model = out.table, out.config, out.model
    counts = np.bincount(table.labels, minlength=len(table.label_names))
    accuracy = out.figures["accuracy"]["value"]
    recordings = len(out.answers.keys)
    low, high = metrics.wilson_interval(accuracy * recordings, recordings)
    folds = list(out.figures["folds"].values())
    measured = Measured(
        accuracy=accuracy,
        low=low,
        high=high,
        clips=recordings,
        spread=float(np.std(folds)) if len(folds) > 1 else None,
        calibration_error=out.figures["calibration_error"],
        protocol="; ".join((out.division.protocol, *out.division.warnings)),
    )
    names = set(table.label_names)
    exactly = [name for name, one in TAXONOMIES.items() if names == set(one.genres)]
    within = [name for name, one in TAXONOMIES.items() if names <= set(one.genres)]
    collection = table.collection or "an unnamed collection"
    return Head(
        ModelCard(
            name=f"{config.approach}-{table.collection or table.name}",
            kind=model.kind,
            taxonomy=next(iter(exactly + within), "own"),
            genres=table.label_names,
            features=table.name,
            dims=table.dims,
            readout=_readout(table, model),
            excerpt=table.excerpt,
            rate=table.rate,
            window_seconds=table.window_seconds,
            limit=model.limit,
            temperature=out.calibration.temperature,
            sharpness=out.calibration.sharpness,
            hidden=model.hidden,
            network=model.network,
            training_data=f"{collection}: {len(table)} recordings",
            licence=_licence(out),
            split=out.division.protocol,
            measured=(measured,),
            rests_on={
                name: f"{counts[i]} recordings of {collection}"
                for i, name in enumerate(table.label_names)
            },
            date=config.started,
            command=config.command,
            notes=_notes(table),
        ),
        dict(model.tensors),
        model.trees,
    )


def _readout(table: FeatureTable, model: Model) -> Readout | None:
    if not table.layers:
        return None
    return Readout(table.layers, model.layer_weights if len(model.layer_weights) > 1 else ())


def _licence(out: Outputs) -> str:
    return out.config.licence or out.table.licence or "not stated by the data"


def _notes(table: FeatureTable) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    return f"Features by {versions or '?'}."


def save_tagger(folder: Path, out: Outputs) -> None:
    """Write a model of tags, whose answers do not exclude each other, and its card."""
    table, model, figures = out.table, out.model, out.figures
    tensors, facts = model_state(model)
    told = {
        "model": facts,
        "features": table.name,
        "dims": table.dims,
        "layers": list(table.layers),
        "label_names": list(table.label_names),
        "temperature": out.calibration.temperature,
    }
    save_state(folder / TAGGER, State(tensors, told))
    collection = table.collection or "an unnamed collection"
    counts = table.labels.sum(0)
    card = tagger_card.TaggerCard(
        name=f"{out.config.approach}-{table.collection or table.name}",
        kind=model.kind,
        tags=table.label_names,
        features=table.name,
        dims=table.dims,
        readout=_readout(table, model),
        excerpt=table.excerpt,
        rate=table.rate,
        window_seconds=table.window_seconds,
        temperature=out.calibration.temperature,
        sha256=hash_file(folder / TAGGER),
        training_data=f"{collection}: {len(table)} recordings",
        licence=_licence(out),
        split="; ".join((out.division.protocol, *out.division.warnings)),
        recordings=len(out.answers.keys),
        roc_auc=figures["roc_auc"],
        mean_average_precision=figures["mean_average_precision"],
        average_precision={one["label"]: one["average_precision"] for one in figures["labels"]},
        calibration_error=figures["calibration_error"],
        rests_on={
            name: f"{counts[i]} recordings of {collection}"
            for i, name in enumerate(table.label_names)
        },
        date=out.config.started,
        command=out.config.command,
        notes=_notes(table),
    )
    write_json(folder / tagger_card.CARD, card.model_dump(mode="json"))


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_predictions(path: Path, answers: Answers) -> None:
    """Write who was asked, what is true, and every probability."""
    lines = []
    for i, key in enumerate(answers.keys):
        p = answers.probabilities[i]
        if answers.multi_label:
            has = zip(answers.label_names, answers.labels[i], strict=True)
            truth = join_labels([name for name, it_has in has if it_has])
        else:
            truth = answers.label_names[int(answers.labels[i])]
        answer = answers.label_names[int(p.argmax())]
        lines.append(
            (key, answers.groups[i] or "", truth, int(answers.fold[i]), answer,
             *(f"{value:.6g}" for value in p))
        )  # fmt: skip
    true = "labels" if answers.multi_label else "label"
    header = ("key", "group", true, "fold", "answer", *(f"p {n}" for n in answers.label_names))
    write_csv(path, header, lines)


def measure_cost(out: Outputs) -> dict[str, Any]:
    """Return what the fit took, and what an answer takes, features not counted."""
    most = TIMED_ROWS if out.model.network is None else TIMED_WINDOWS
    rows = np.asarray(out.table.rows[: min(most, len(out.table.rows))])
    started = time.perf_counter()
    out.model.logits(rows)
    seconds = time.perf_counter() - started
    lines = [line for log in out.logs.values() for line in log]
    memory = [line.gpu_mebibytes for line in lines if line.gpu_mebibytes is not None]
    return {
        "parameters": out.model.parameters,
        "training_seconds": round(sum(line.seconds for line in lines), 3),
        "microseconds_a_window": round(seconds / len(rows) * 1e6, 3),
        "gpu_mebibytes": max(memory, default=None),
        "device": out.config.device,
        "threads": out.config.threads,
    }


def _roles(table: FeatureTable, division: Division) -> list[tuple[str, str, str]]:
    roles = ["trained"] * len(table)  # the final model of a cross-validation has seen all
    if division.published:
        fold = division.folds[0]
        roles = ["unused"] * len(table)
        for name, part in (("trained", fold.train), ("tuned", fold.tune), ("asked", fold.ask)):
            for i in part:
                roles[i] = name
    return [
        (key, group or "", role)
        for key, group, role in zip(table.keys, table.groups, roles, strict=True)
    ]


def _blank(value: float | None) -> object:
    return "" if value is None else value
