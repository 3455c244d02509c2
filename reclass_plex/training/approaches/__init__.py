"""The ways to learn genres from features. One file each, one protocol (`base.Approach`).

`APPROACHES` says for each what it reads and with which settings it begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reclass_plex.encoders.top import parse_top
from reclass_plex.errors import ConfigError
from reclass_plex.training.approaches.base import Approach
from reclass_plex.training.table import LONG_ROW, FeatureTable

QUANTILES = 200  # a feature, to give it a normal distribution
MEL = "mel"  # log-mel windows, as MusiCNN hears them


class Settings(BaseModel):
    """Everything about a fit that is not data. What an approach does not use, it ignores."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: tuple[int, ...] = ()  # widths of inner layers; none is a logistic head
    infinite: bool = False  # one inner layer of infinite width instead; trees begin at it
    # At most. Of trees their rounds, of logistic and infinite heads steps to a weaker penalty.
    epochs: int = Field(default=60, gt=0, le=100_000)
    patience: int = Field(default=10, gt=0)
    batch: int = Field(default=128, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    input_dropout: float = Field(default=0.1, ge=0, lt=1)
    mixup: float = Field(default=0.4, ge=0)
    limit: float = Field(default=4.0, gt=0)
    quantiles: int | None = Field(default=None, ge=2)  # give each feature a normal distribution
    depth: int = Field(default=4, gt=0, le=16)
    width: int = Field(default=24, gt=0, le=512)  # channels of the cnn's first stage
    backbone: Literal["msd", "mtt", "both"] = "both"  # MusiCNN's checkpoints
    unfreeze: Literal["top", "all"] = "top"  # all: MusiCNN's front end learns, too
    body_rate: float = Field(default=0.1, gt=0)  # times the rate, for what was trained before
    disturb: bool = True  # spectrograms: SpecAugment
    average: float = Field(default=0.25, ge=0, lt=1)  # share of the epochs: SWA
    class_weights: Literal["none", "balanced"] = "none"
    seed: int = Field(default=0, ge=0)
    amp: bool = True


@dataclass(frozen=True)
class Recipe:
    """An approach: the features it reads begin with one of `reads` (any, if empty)."""

    purpose: str
    learner: Literal["centroid", "trees", "network", "cnn", "transfer"]
    reads: tuple[str, ...] = ()
    joins: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_ON_EMBEDDINGS = {"learning_rate": 3e-3, "batch": 256, "epochs": 40}
_ON_BLOCKS = {
    "epochs": 12, "patience": 4, "batch": 16, "dropout": 0.2, "mixup": 0.2, "body_rate": 0.03,
}  # fmt: skip

APPROACHES: Mapping[str, Recipe] = {
    "baseline": Recipe("nearest centroid, beside the commonest label; a second", "centroid"),
    "xgboost": Recipe(
        "boosted trees, begun at a network of infinite width; made for the 518 features",
        "trees",
        defaults={"infinite": True, "epochs": 1000, "patience": 100, "learning_rate": 0.05},
    ),
    "fma-mlp": Recipe(
        "the 518 features into a network of infinite width: the two-minute model",
        "network",
        defaults={"infinite": True, "learning_rate": 3e-3, "epochs": 40, "quantiles": QUANTILES},
    ),
    "musicnn": Recipe("a head on MusiCNN", "network", ("musicnn",), defaults=_ON_EMBEDDINGS),
    "mert": Recipe(
        "a head on MERT, its layers' weights learned", "network", ("mert",), defaults=_ON_EMBEDDINGS
    ),
    "jmla": Recipe(
        "a head on JMLA, its layers' weights learned", "network", ("jmla",), defaults=_ON_EMBEDDINGS
    ),
    "transfer": Recipe(
        "MusiCNN learns on, from spectrograms, or JMLA's last blocks from their hidden states",
        "transfer",
        (MEL, "jmla-top"),
        defaults={"epochs": 20, "patience": 5, "batch": 32, "mixup": 0.2},
    ),
    "cnn": Recipe(
        "a residual network that learns from spectrograms alone",
        "cnn",
        (MEL,),
        defaults={"epochs": 40, "batch": 32, "dropout": 0.5, "weight_decay": 0.05},
    ),
    "fusion": Recipe(
        "one network on the features of several tables",
        "network",
        joins=True,
        defaults={"hidden": (256,), **_ON_EMBEDDINGS},
    ),
}


def make_settings(approach: str, given: Mapping[str, Any], features: str = "") -> Settings:
    """Return an approach's settings for features, what is `given` on top. Raises ConfigError."""
    from pydantic import ValidationError

    recipe = find_approach(approach)
    defaults = _ON_BLOCKS if parse_top(features) else recipe.defaults
    if "hidden" in given:
        defaults = {**defaults, "infinite": False}
    try:
        return Settings.model_validate({**defaults, **given})
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option}: {first['msg']}, not {first['input']!r}") from None


def find_approach(name: str) -> Recipe:
    """Return an approach. Raises ConfigError."""
    if name not in APPROACHES:
        raise ConfigError(f"--approach {name}: is none of {', '.join(APPROACHES)}")
    return APPROACHES[name]


def check_table(name: str, table: FeatureTable) -> None:
    """Raise ConfigError if an approach cannot read a table's features."""
    recipe = find_approach(name)
    if not recipe.reads and table.dims >= LONG_ROW:
        raise ConfigError(
            f"--approach {name}: {table.name} is no vector but a whole window of it: take cnn,"
            " transfer, or the encoder's own approach; or other features"
        )
    if recipe.reads and not table.name.startswith(recipe.reads):
        raise ConfigError(
            f"--approach {name} reads features of {' or '.join(recipe.reads)}, not {table.name}:"
            f" take another table, or fma-mlp, which reads any"
        )


@dataclass(frozen=True)
class Origin:
    """Whose features are learned from: their table's name and versions, and the fetched models."""

    features: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    models: Path | None = None


def build(
    name: str, settings: Settings, *, device: str, threads: int, origin: Origin | None = None
) -> Approach:
    """Return what fits."""
    origin = origin or Origin()
    learner = find_approach(name).learner
    s = settings
    if learner == "centroid":
        from reclass_plex.training.approaches.centroid import NearestCentroid

        return NearestCentroid()
    if learner == "trees":
        from reclass_plex.training.approaches.boosted import BoostedTrees

        quantiles = (s.quantiles or QUANTILES) if s.infinite else None
        return BoostedTrees(
            s.epochs, s.patience, s.learning_rate, s.depth, s.seed, threads, device, quantiles
        )
    if learner in {"cnn", "transfer"} or parse_top(origin.features):
        return _deep(learner, s, device, origin)
    if s.infinite:
        from reclass_plex.training.approaches.infinite import InfiniteNetwork

        return InfiniteNetwork(s.quantiles or QUANTILES, s.epochs, s.seed)
    from reclass_plex.training.approaches.descent import DescentApproach
    from reclass_plex.training.approaches.logistic import LogisticApproach
    from reclass_plex.training.approaches.network import NetworkOptions

    names = NetworkOptions.__dataclass_fields__.keys() - {"device"}
    options = NetworkOptions(**{name: getattr(s, name) for name in names}, device=device)
    return DescentApproach(options) if s.hidden else LogisticApproach(options)


def _deep(learner: str, settings: Settings, device: str, origin: Origin) -> Approach:
    from reclass_plex.training.approaches import beginnings
    from reclass_plex.training.approaches.base import Examples
    from reclass_plex.training.approaches.deep import Beginning, DeepApproach, DeepOptions

    hears_blocks = parse_top(origin.features) is not None
    names = DeepOptions.__dataclass_fields__.keys() - {"device", "disturb"}
    options = DeepOptions(
        **{name: getattr(settings, name) for name in names},
        disturb=settings.disturb and not hears_blocks,  # hidden states have no bars to hide
        device=device,
    )

    def begin(train: Examples) -> Beginning:
        if hears_blocks:
            dims = int(train.rows.shape[-1])
            return beginnings.begin_blocks(origin.features, origin.versions, origin.models, dims)
        if learner == "cnn":
            return beginnings.begin_resnet(train, settings.width)
        return beginnings.begin_musicnn(settings.backbone, settings.unfreeze == "all")

    return DeepApproach(options, begin)
