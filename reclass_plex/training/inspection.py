"""What a model is, and whether this installation can use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from reclass_plex.errors import ModelError, ReclassError, printable
from reclass_plex.heads import CARD, TENSORS, TREES, is_learned, load_card, load_head
from reclass_plex.models import load_catalogue, models_folder, why_missing
from reclass_plex.training.evaluating import load_model, load_trained
from reclass_plex.training.run_outputs import TAGGER
from reclass_plex.training.tagger_card import load_tagger_card

BUNDLED = ("fma518", "musicnn-msd", "musicnn", "mel")  # features that need nothing to be fetched


@dataclass(frozen=True)
class Inspection:
    """Facts by name, for people; `problems` are why it cannot be used here."""

    facts: dict[str, str]
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return all of it."""
        return {"facts": self.facts, "problems": list(self.problems)}


def inspect_model(folder: Path) -> Inspection:
    """Look at a head's or a run's folder. Raises ModelError or FileError if it holds no model."""
    if (folder / TAGGER).exists():
        return _inspect_tagger(folder)
    if not (folder / CARD).exists():
        raise ModelError(f"{printable(folder)}: holds no model: neither {CARD} nor {TAGGER}")
    card = load_card(folder)
    facts = _told(card, {"measured", "rests_on"})
    for number, one in enumerate(card.measured, 1):
        facts[f"measured {number}"] = (
            f"{one.accuracy:.3f} ({one.low:.3f} to {one.high:.3f}), {one.clips} recordings:"
            f" {one.protocol}"
        )
    facts["size"] = _size(folder)
    problems = []
    try:
        if card.kind == "xgboost":
            load_head(folder)
            facts["parameters"] = f"{load_model(folder).parameters} (nodes of trees)"
        else:
            facts["parameters"] = str(_parameters(folder / TENSORS))
            load_head(folder)
    except ReclassError as error:
        problems.append(str(error))
    if missing := _why_not_heard(card.features):
        problems.append(missing)
    return Inspection(facts, tuple(problems))


def _inspect_tagger(folder: Path) -> Inspection:
    trained = load_trained(folder)
    card = load_tagger_card(folder)
    if card is None:
        facts = {
            "tags": ", ".join(trained.label_names),
            "features": trained.features,
            "dims": str(trained.dims),
        }
    else:
        hidden = {"rests_on", "roc_auc", "mean_average_precision", "average_precision"}
        facts = _told(card, hidden)
        measures = {"ROC-AUC": card.roc_auc, "mAP": card.mean_average_precision}
        for name, one in measures.items():
            if one.value is not None:
                facts[f"measured {name}"] = (
                    f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f}),"
                    f" {card.recordings} recordings"
                )
    facts["kind"] = f"tags, {card.kind}" if card is not None else "tags, without a card"
    facts["parameters"] = str(load_model(folder).parameters)
    facts["size"] = _size(folder)
    problem = _why_not_heard(trained.features)
    return Inspection(facts, () if problem is None else (problem,))


def _told(card: BaseModel, left_out: set[str]) -> dict[str, str]:
    """Return what a card says, as text."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in card
        if value not in (None, "", ()) and name not in left_out
    }


def _size(folder: Path) -> str:
    names = (TENSORS, TREES, TAGGER)
    held = sum((folder / name).stat().st_size for name in names if (folder / name).exists())
    return f"{held:,} bytes"


def _parameters(path: Path) -> int:
    """Return how many numbers were learned."""
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if is_learned(name)]  # noqa: SIM118
            return sum(file.get_tensor(name).numel() for name in names)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error}") from error


def _why_not_heard(features: str) -> str | None:
    """Return why these features cannot be computed here, None if they can."""
    if features in BUNDLED:
        return None
    folder = models_folder()
    for name in load_catalogue(folder):
        if features == name or features.startswith(f"{name}-"):
            return why_missing(name, folder)
    return f"{features}: nothing here computes these features; only tables of them can be answered"
