"""What a model is, and whether this installation can use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from reclass_plex.errors import ModelError, ReclassError, printable
from reclass_plex.heads import CARD, TENSORS, is_learned, load_card, load_head
from reclass_plex.models import load_catalogue, models_folder, why_missing
from reclass_plex.training.evaluating import load_trained
from reclass_plex.training.run_outputs import TAGGER

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
        trained = load_trained(folder)
        facts = {
            "kind": "tags",
            "labels": ", ".join(trained.label_names),
            "features": f"{trained.features}, {trained.dims} numbers",
            "parameters": str(_parameters(folder / TAGGER)),
        }
        return Inspection(facts, ())
    if not (folder / CARD).exists():
        raise ModelError(f"{printable(folder)}: holds no model: neither {CARD} nor {TAGGER}")
    card = load_card(folder)
    facts = {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in card
        if value not in (None, "", ()) and name not in {"measured", "rests_on"}
    }
    for number, one in enumerate(card.measured, 1):
        facts[f"measured {number}"] = (
            f"{one.accuracy:.3f} ({one.low:.3f} to {one.high:.3f}), {one.clips} recordings:"
            f" {one.protocol}"
        )
    problems = []
    try:
        facts["parameters"] = str(_parameters(folder / TENSORS))
        load_head(folder)
    except ReclassError as error:
        problems.append(str(error))
    if missing := _why_not_heard(card.features):
        problems.append(missing)
    return Inspection(facts, tuple(problems))


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
