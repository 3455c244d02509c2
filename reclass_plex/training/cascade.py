"""Trained heads become an ensemble: how votes are weighed, when one decides, and its folder.

    FOLDER/ensemble.json          the stages (`profiles.EnsembleSpec`)
    FOLDER/heads/FEATURES/        each one's head, as its run wrote it
    FOLDER/held_out.safetensors   what all was fitted to, so that it can be judged again
    FOLDER/SHA256SUMS

Everything is fitted to what the heads said about recordings that they had not learned from: the
weights of a log-linear pool by least log loss, the exits by `exits`. Installed, the folder lies
among the fetched models; the one that it replaces is kept beside it, for one step back.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from reclass_plex.errors import ConfigError, ModelError, printable
from reclass_plex.files import naming_errors
from reclass_plex.heads import CARD, TENSORS, TREES, ModelCard, load_card
from reclass_plex.models import (
    DATA,
    SUMS,
    list_models,
    load_tensors,
    models_folder,
    read_sums,
    write_sums,
)
from reclass_plex.models.swap import replacing, take_back
from reclass_plex.profiles import (
    CPU,
    HEADS,
    SPEC,
    EnsembleSpec,
    Profile,
    StageSpec,
    ensemble_folder,
    find_ensemble,
    read_spec,
)
from reclass_plex.records import Excerpt
from reclass_plex.stage_heads import load_stage_heads
from reclass_plex.training.checkpoints import require_empty, write_whole
from reclass_plex.training.comparison import read_predictions
from reclass_plex.training.exits import Answers as Pooled
from reclass_plex.training.exits import HeldOut, exit_thresholds
from reclass_plex.training.fit import fit_pool, pool
from reclass_plex.training.judging import Answers
from reclass_plex.training.metrics import accuracy
from reclass_plex.training.progressive import labelled_votes

HELD_OUT = "held_out.safetensors"
FEWEST = 30  # recordings: with fewer, weights and thresholds say nothing


@dataclass(frozen=True)
class Cascade:
    """An ensemble, what it was fitted to, and the runs that its heads come from."""

    spec: EnsembleSpec
    held: HeldOut
    runs: tuple[Path, ...]


def combine_runs(runs: Sequence[Path]) -> Cascade:
    """Fit an ensemble to finished training runs, cheapest first.

    Raises ConfigError or FileError, naming the run, if they do not go together.
    """
    if len(runs) < 2:
        raise ConfigError("an ensemble needs two runs or more, the cheapest first")
    cards = [load_card(run) for run in runs]
    answers = [read_predictions(run) for run in runs]
    for run, card in zip(runs, cards, strict=True):
        _check_stage(run, card)
    _check_alike(runs, cards, answers)
    in_all = set(answers[0].keys).intersection(*(one.keys for one in answers[1:]))
    common = [key for key in answers[0].keys if key in in_all]
    if len(common) < FEWEST:
        raise ConfigError(
            f"{len(common)} recordings were asked about in all runs; at least {FEWEST} are needed"
        )
    rows = [_rows(one, common) for one in answers]
    labels = answers[0].labels[rows[0]]
    for run, one, mine in zip(runs, answers, rows, strict=True):
        if not np.array_equal(one.labels[mine], labels):
            raise ConfigError(f"{printable(run)}: contradicts {printable(runs[0])} about labels")
    votes = [one.probabilities[mine] for one, mine in zip(answers, rows, strict=True)]
    held = labelled_votes(votes, labels, [answers[0].groups[i] for i in rows[0]])
    return Cascade(_fit(cards, held), held, tuple(runs))


def _fit(cards: Sequence[ModelCard], held: HeldOut) -> EnsembleSpec:
    weights: list[tuple[float, ...]] = [(1.0,)]
    for count in range(2, len(cards) + 1):
        votes = [vote[0] for vote in held.votes[:count]]
        weights.append(fit_pool(votes, held.labels, held.weights))
    pooled = [pool(held.votes[: len(w)], w) for w in weights]
    exits = exit_thresholds(Pooled.of(pooled, held.labels), held, [True] * len(cards))
    stages = tuple(
        StageSpec(
            name=card.features,
            head=card.features,
            features=card.features,
            rate=int(card.rate),
            windows=_windows(card),
            window_seconds=card.window_seconds,
            sharpness=card.sharpness,
            weights=weights[i],
            exits=exits[i],
        )
        for i, card in enumerate(cards)
    )
    protocol = f"{cards[0].split}; {len(held.labels)} recordings; exits hold for all together"
    return EnsembleSpec(
        taxonomy=cards[0].taxonomy, genres=cards[0].genres, stages=stages, protocol=protocol
    )


def _windows(card: ModelCard) -> int:
    """Return how many windows stand side by side in what the head was trained on."""
    seconds = Excerpt.parse(card.excerpt).seconds
    assert seconds is not None  # noqa: S101 - see _check_stage
    return max(1, math.ceil(seconds / card.window_seconds))


def _check_stage(run: Path, card: ModelCard) -> None:
    if card.rate == "native":
        raise ConfigError(
            f"{printable(run)}: was trained on {card.features} of whole excerpts at their own rate,"
            " and an ensemble hears windows: reclass-plex extract --features fma-windows"
        )
    if Excerpt.parse(card.excerpt).seconds is None:
        raise ConfigError(
            f"{printable(run)}: was trained on whole tracks; extract with --excerpt middle30"
        )


def _check_alike(
    runs: Sequence[Path], cards: Sequence[ModelCard], answers: Sequence[Answers]
) -> None:
    first = cards[0]
    for run, card, one in zip(runs, cards, answers, strict=True):
        if one.multi_label:
            raise ConfigError(f"{printable(run)}: gives several labels at once; an ensemble one")
        if card.genres != first.genres:
            raise ConfigError(f"{printable(run)}: knows other genres than {printable(runs[0])}")
        if card.excerpt != first.excerpt:
            raise ConfigError(f"{printable(run)}: hears {card.excerpt}, not {first.excerpt}")
    names = [card.features for card in cards]
    if len(set(names)) != len(names):
        raise ConfigError(f"several runs read the same features: {', '.join(names)}")


def _rows(answers: Answers, keys: Sequence[str]) -> list[int]:
    place = {key: i for i, key in enumerate(answers.keys)}
    return [place[key] for key in keys]


def summarise(cascade: Cascade) -> dict[str, Any]:
    """Return the ensemble's figures, ready for JSON: accuracies are of held-out recordings."""
    held, labels = cascade.held, cascade.held.labels
    stages = []
    for count, stage in enumerate(cascade.spec.stages, 1):
        pooled = pool(held.votes[:count], stage.weights)[0]
        stages.append(
            {
                "name": stage.name,
                "weights": list(stage.weights),
                "exits": dict(stage.exits),
                "accuracy": accuracy(pooled, labels),
                "alone": accuracy(held.votes[count - 1][0], labels),
            }
        )
    return {"taxonomy": cascade.spec.taxonomy, "recordings": len(labels), "stages": stages}


def write_ensemble(folder: Path, cascade: Cascade) -> None:
    """Write the ensemble into a new folder. Raises ConfigError or FileError."""
    require_empty(folder)
    with naming_errors(folder, writing=True):
        for run, stage in zip(cascade.runs, cascade.spec.stages, strict=True):
            target = folder / HEADS / stage.head
            target.mkdir(parents=True)
            for name in (CARD, TENSORS, TREES):
                if (run / name).exists():
                    shutil.copyfile(run / name, target / name)
        text = cascade.spec.model_dump_json(indent=2) + "\n"
        (folder / SPEC).write_text(text, encoding="utf-8")
        held = cascade.held
        votes = {f"votes {i}": vote for i, vote in enumerate(held.votes)}
        save_file({**votes, "labels": held.labels, "block": held.block}, folder / HELD_OUT)
        write_sums(folder)


def read_installed(taxonomy: str, profile: str, models: Path | None) -> HeldOut:
    """Return what an installed ensemble was fitted to. Raises ModelError, naming the file."""
    models = models_folder(models)
    folder = find_ensemble(taxonomy, profile, models) or ensemble_folder(taxonomy, profile, models)
    path = folder / HELD_OUT
    arrays = load_tensors(path)
    try:
        votes = tuple(arrays[f"votes {i}"].double().numpy() for i in range(len(arrays) - 2))
        labels, block = (arrays[name].long().numpy() for name in ("labels", "block"))
    except KeyError as error:
        raise ModelError(f"{printable(path)}: has no {error}: train the ensemble again") from None
    return HeldOut(votes, labels, np.ones(len(labels)), np.arange(len(labels)), block)


def install_ensemble(folder: Path, profile: str, models: Path) -> Path:
    """Put a written ensemble in use as `profile`; return where. The former one can come back.

    Raises ConfigError or ModelError if it is damaged or `profile` is the package's own, FileError
    if it cannot be copied: then what was in use stays so.
    """
    if profile == CPU:
        raise ConfigError(f"{CPU} is the package's own profile: choose another name")
    spec = read_spec(folder / SPEC)
    place = ensemble_folder(spec.taxonomy, profile, models)
    with replacing(place) as fresh:
        _copy(folder, fresh)
        _check(folder, fresh)
    return place


def roll_back(taxonomy: str, profile: str, models: Path) -> bool:
    """Take an installed ensemble back: the former one counts again, or none.

    Returns whether there was a former one. Raises ConfigError if nothing is installed.
    """
    place = ensemble_folder(taxonomy, profile, models)
    if find_ensemble(taxonomy, profile, models) is None:
        raise ConfigError(f"{printable(place)}: there is no ensemble to take back")
    return take_back(place)


def _copy(folder: Path, fresh: Path) -> None:
    """Copy an ensemble's own files: those that its list names, and the list."""
    for name in (SUMS.name, *read_sums(folder / SUMS.name)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"{printable(folder / SUMS.name)}: {name} is no file of the ensemble")
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        with naming_errors(folder / name, writing=False):
            content = (folder / name).read_bytes()
        write_whole(fresh / name, content)


def _check(folder: Path, fresh: Path) -> None:
    """Raise ConfigError or ModelError unless a copied ensemble is whole and its heads fit."""
    for file in list_models(fresh / SUMS.name):
        if file.problem is not None:
            path = folder / file.name
            raise ConfigError(f"{printable(path)}: is not as it was written; train it again")
    spec = read_spec(fresh / SPEC)
    sums = (fresh / SUMS.name).read_text(encoding="utf-8")
    _, faults = load_stage_heads(Profile("", spec, (fresh / HEADS, DATA / HEADS), sums))
    for why in faults.values():
        raise ConfigError(f"{why}; train the ensemble again")
