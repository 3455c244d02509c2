"""The card of a model of tags, `tagger.json`: what it is, what it hears, how far to trust it.

A head's card (`heads.ModelCard`) promises that the answers exclude each other; those of tags do
not, so theirs is a card of its own, and nothing that needs a head takes a tagger for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reclass_plex.encoders import Readout
from reclass_plex.errors import ModelError, printable
from reclass_plex.models.installed import hash_file

if TYPE_CHECKING:
    from typing_extensions import Self

CARD, TENSORS = "tagger.json", "tagger.safetensors"


class TagMeasure(BaseModel):
    """A figure on recordings that were not learned from: 95 %, bootstrap over groups."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None
    low: float | None
    high: float | None


class TaggerCard(BaseModel):
    """`sha256` is that of `tagger.safetensors`; `rests_on` and `average_precision` go by tag.

    An average precision is None where no recording that was asked about has the tag. Thresholds
    are the caller's: probabilities are calibrated by one `temperature`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    kind: Literal["logistic", "mlp", "kernel", "xgboost", "network"]
    tags: tuple[str, ...] = Field(min_length=2)
    features: str
    dims: int = Field(gt=0)
    readout: Readout | None = None
    excerpt: str
    rate: int | Literal["native"]
    window_seconds: float = Field(gt=0)
    temperature: float = Field(gt=0)
    sha256: str
    training_data: str
    licence: str
    split: str
    recordings: int = Field(gt=0)  # that were asked
    roc_auc: TagMeasure
    mean_average_precision: TagMeasure
    average_precision: Mapping[str, float | None]
    calibration_error: float | None
    rests_on: Mapping[str, str]
    date: str
    command: str
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("rests_on", "average_precision"):
            if set(getattr(self, name)) != set(self.tags):
                raise ValueError(f"{name} must name exactly the tags")
        return self


def load_tagger_card(folder: Path) -> TaggerCard | None:
    """Read the card of a run of tags; None if it has none, as runs before 2026-11-26.

    Raises ModelError, naming the file and the key, also if the model is not the one that it names.
    """
    path = folder / CARD
    if not path.exists():
        return None
    try:
        card = TaggerCard.model_validate_json(path.read_bytes())
        if hash_file(folder / TENSORS) != card.sha256:
            raise ModelError(f"{printable(path)}: {TENSORS} is not the file that the card names")
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot read: {error.strerror}") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "card"
        raise ModelError(f"{printable(path)}: {key}: {first['msg']}") from error
    return card
