"""Boosted trees (XGBoost; Chen and Guestrin, KDD 2016).

Trees are grown in segments, each begun from the stored trees with a seed of its own, whether or
not the process was stopped in between. So a run that is resumed grows the same trees.

They may begin at the answers of a kernel machine (`infinite`) instead of at nothing. What is added
to are its answers to recordings that it has not learned from: of what it has, it knows too much,
and nothing would be left for the trees to learn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reclass_plex.errors import ConfigError
from reclass_plex.heads import normal_scores
from reclass_plex.training.approaches.base import (
    Examples,
    Fit,
    Keeper,
    Model,
    Round,
    State,
    mean_layers,
    uniform,
)
from reclass_plex.training.approaches.infinite import (
    best_step,
    follow_path,
    kernel_tensors,
    strength,
)
from reclass_plex.training.approaches.kernel_ridge import KernelRidge
from reclass_plex.training.table import ROWS_AT_ONCE

SEGMENT = 50  # rounds between two checkpoints
STEPS = 40  # of the kernel machine's path, at most
HEAD, MARGINS = "head.", "margins."  # of a checkpoint: where the trees begin


@dataclass(frozen=True)
class BoostedTrees:
    """Shallow trees on few features each: what 140 to 2,000 features and few thousand rows bear."""

    rounds: int
    patience: int  # rounds without a better loss
    learning_rate: float
    depth: int
    seed: int
    threads: int
    device: str
    quantiles: int | None = None  # a feature, of a kernel machine to begin at; None has none

    def fit(
        self, train: Examples, tune: Examples | None, rounds: int | None, keeper: Keeper
    ) -> Fit:
        """Grow trees until `tune` gets no better, or `rounds` of them. Raises ConfigError."""
        xgboost = _import()
        kept = keeper.load()
        start = None
        if self.quantiles is not None:
            start = _begin(train, tune, self.quantiles, self.seed) if kept is None else _again(kept)
        matrix = _matrix(train, start, "train")
        watched = [(matrix, "train")]
        if tune is not None:
            watched.append((_matrix(tune, start, "tune"), "tune"))
        most = self.rounds if rounds is None else rounds
        booster, log, losses = None, [], []
        if kept is not None:
            booster = xgboost.Booster()
            booster.load_model(bytearray(kept.tensors["trees"].numpy().tobytes()))
            log = [Round(**line) for line in kept.facts["log"]]
            losses = list(kept.facts["losses"])
        done = booster.num_boosted_rounds() if booster is not None else 0
        while done < most and not (tune is not None and _stalled(losses, self.patience)):
            started = time.monotonic()
            now = min(SEGMENT, most - done)
            history: dict[str, dict[str, list[float]]] = {}
            booster = xgboost.train(
                self._parameters(train, done),
                matrix,
                now,
                evals=watched,
                evals_result=history,
                verbose_eval=False,
                xgb_model=booster,
            )
            booster = _reloaded(xgboost, booster)
            done += now
            train_loss = _only(history["train"])
            if tune is not None:
                losses += _only(history["tune"])
            last = losses[-1] if tune is not None else None
            seconds = time.monotonic() - started
            log.append(Round(done, train_loss[-1], last, self.learning_rate, seconds))
            keeper.tell(log[-1])
            facts = {"log": [line.as_json() for line in log], "losses": losses}
            keeper.save(State({"trees": _bytes(booster), **(start or {})}, facts))
        assert booster is not None  # noqa: S101 - at least one round is asked for
        best = done if tune is None else int(np.argmin(losses)) + 1
        trees = booster[:best].save_raw("json").decode()
        tensors = {"mean": torch.zeros(matrix.num_col()), "deviation": torch.ones(matrix.num_col())}
        for name, tensor in (start or {}).items():
            if name.startswith(HEAD):
                tensors[name.removeprefix(HEAD)] = tensor
        model = Model("xgboost", tensors, layer_weights=uniform(train.layers), trees=trees)
        return Fit(model, best, tuple(log))

    def _parameters(self, train: Examples, done: int) -> dict[str, Any]:
        objective: dict[str, Any] = {"objective": "multi:softprob", "num_class": train.classes}
        if train.multi_label:
            objective = {"objective": "binary:logistic", "eval_metric": "logloss"}
        return objective | {
            "eta": self.learning_rate,
            "max_depth": self.depth,
            "subsample": 0.6,
            "colsample_bynode": 0.1,
            "max_bin": 64,
            "tree_method": "hist",
            "device": self.device,
            "nthread": self.threads,
            "seed": self.seed + done,
        }


class Forgetful:
    """Keeps nothing: where the trees begin is found in seconds, and kept as a whole."""

    def load(self) -> State | None:
        """Return nothing."""
        return None

    def save(self, state: State, *, done: bool = False) -> None:
        """Keep nothing."""

    def tell(self, line: Round) -> None:
        """Say nothing."""


def _stalled(losses: list[float], patience: int) -> bool:
    return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= patience


def _only(history: dict[str, list[float]]) -> list[float]:
    return next(iter(history.values()))


def _begin(
    train: Examples, tune: Examples | None, quantiles: int, seed: int
) -> dict[str, torch.Tensor]:
    """Return where the trees begin: the kernel machine's tensors, its answers to both parts."""
    ridge = KernelRidge(train, quantiles, seed)
    l2 = strength(best_step(follow_path(ridge, tune, STEPS, Forgetful())))
    held_out = ridge.held_out(l2)
    scale = held_out.best_scale()
    start = {f"{HEAD}{name}": tensor for name, tensor in kernel_tensors(ridge, l2).items()}
    start[f"{MARGINS}train"] = (held_out.answers * scale).float()
    if tune is not None:
        start[f"{MARGINS}tune"] = (ridge.ask(tune, l2).answers * scale).float()
    return start


def _again(kept: State) -> dict[str, torch.Tensor]:
    return {n: tensor for n, tensor in kept.tensors.items() if n.startswith((HEAD, MARGINS))}


def _matrix(examples: Examples, start: dict[str, torch.Tensor] | None, part: str) -> Any:  # noqa: ANN401 (xgboost has no types)
    xgboost = _import()
    order = np.arange(len(examples.index))
    parts = [
        mean_layers(examples.take(order[at : at + ROWS_AT_ONCE]))
        for at in range(0, len(order), ROWS_AT_ONCE)
    ]
    rows, margins = np.concatenate(parts), None
    if start is not None:
        rows = normal_scores(torch.from_numpy(rows), start[f"{HEAD}quantiles"]).numpy()
        margins = start[f"{MARGINS}{part}"].numpy()
    return xgboost.DMatrix(rows, examples.targets, weight=examples.weights, base_margin=margins)


def _bytes(booster: Any) -> torch.Tensor:  # noqa: ANN401
    return torch.frombuffer(bytearray(booster.save_raw("ubj")), dtype=torch.uint8)


def _reloaded(xgboost: Any, booster: Any) -> Any:  # noqa: ANN401
    """Return the trees as a resumed run would find them, without what was cached beside them."""
    fresh = xgboost.Booster()
    fresh.load_model(booster.save_raw("ubj"))
    return fresh


def _import() -> Any:  # noqa: ANN401
    try:
        import xgboost
    except ImportError as error:
        raise ConfigError("--approach xgboost: pip install 'reclass-plex[xgboost]'") from error
    return xgboost
