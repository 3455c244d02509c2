"""Heads: from a window's features to calibrated probabilities of genres.

A head standardises its input, (x - mean) / deviation, limits it where the card says so, and passes
it to one of six classifiers (`kind`). Where it has `quantiles`, each feature is first replaced by
its normal score (`normal_scores`), which tames features of any distribution.

- logistic: softmax(z W + b);
- mlp: linear layers with ReLU between them;
- kernel: a network whose inner layer has no bound (`kernels`): k(z, centres) W;
- xgboost: boosted trees, stored as XGBoost's own JSON; where it has `centres`, trees are added to
  the logits of a kernel;
- network: a whole network (`networks`), which hears a spectrogram or hidden states and standardises
  for itself; what it began as is in the card's notes;
- tags: a logistic one for the k known genres, and further genres known only by an encoder's tags.
  With p the known genres' probabilities, the logits are [log p, z V + c - p M]: the tags of a
  further genre must exceed what is usual (M) for the known genre that the window resembles.

Logits (of a tags head: those of its known genres) are divided by a temperature fitted on held-out
clips.

Conventions: features are (n, d) float32, one row a window; probabilities are (n, k) float32 in
the order of `card.genres`, each row summing to 1. A head is a folder with `card.json` and
`head.safetensors` (and `trees.json`): never pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reclass_plex.encoders import Readout
from reclass_plex.errors import ModelError, printable
from reclass_plex.formats import read_file
from reclass_plex.kernels import kernel_logits
from reclass_plex.models import check_shapes, load_tensors
from reclass_plex.networks import NetworkSpec, ask_network, restore_network, tensor_shapes

if TYPE_CHECKING:
    from typing_extensions import Self

GIVEN = {
    "mean", "deviation", "quantiles", "centres", "input_mean", "input_deviation", "input_norm",
    "sign",
}  # fmt: skip
CARD, TENSORS, TREES = "card.json", "head.safetensors", "trees.json"


class Measured(BaseModel):
    """An accuracy with what it means: 95 % confidence interval (Wilson, over clips), protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    clips: int = Field(gt=0)
    spread: float | None = None  # standard deviation over repeated splits
    calibration_error: float | None = None  # expected, ten bins of equal counts
    protocol: str


class ModelCard(BaseModel):
    """What a head is, what it hears, where it comes from and how far to trust it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    kind: Literal["logistic", "mlp", "kernel", "xgboost", "tags", "network"]
    taxonomy: str
    genres: tuple[str, ...] = Field(min_length=2)
    features: str  # fma518, musicnn-msd, musicnn, or the name of a fetched encoder
    dims: int = Field(gt=0)
    readout: Readout | None = None  # of an encoder that has layers or tokens to choose from
    excerpt: str  # middle30, full
    rate: int | Literal["native"]  # Hz at which the features are computed
    window_seconds: float = Field(gt=0)
    limit: float | None = Field(default=None, gt=0)  # of the standardised input, both ways
    quantiles: int | None = Field(default=None, ge=2)  # a feature; set when the head is made
    centres: int | None = Field(default=None, gt=0)  # of a kernel, also below trees; set when made
    temperature: float = Field(default=1.0, gt=0)
    sharpness: float = Field(default=1.0, gt=0)  # of several windows, see evidence.pool_windows
    hidden: tuple[int, ...] = ()  # widths of an mlp's inner layers
    trees_sha256: str | None = None  # of an xgboost head's trees.json, set when it is saved
    network: NetworkSpec | None = None  # of that kind
    known: int | None = None  # of a tags head: how many genres, the first ones, are supervised
    training_data: str
    licence: str  # of the training data, and what follows for this head
    split: str
    measured: tuple[Measured, ...]
    rests_on: Mapping[str, str]  # genre -> its evidence
    date: str
    command: str
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.genres)) != len(self.genres):
            raise ValueError("genres are not distinct")
        if set(self.rests_on) != set(self.genres):
            raise ValueError("rests_on must name exactly the genres")
        if (self.kind == "tags") != (self.known is not None):
            raise ValueError("'known' belongs to a tags head, and only there")
        if (self.kind == "network") != (self.network is not None):
            raise ValueError("'network' belongs to a head of that kind, and only there")
        if self.network is not None and (
            self.network.dims != self.dims or self.quantiles is not None or self.limit is not None
        ):
            raise ValueError("'network' takes as many numbers as 'dims', as they are")
        if self.centres is not None and self.kind not in {"kernel", "xgboost"}:
            raise ValueError("'centres' belong to heads of kind kernel or xgboost, and only there")
        if self.known is not None and not 2 <= self.known < len(self.genres):
            raise ValueError("'known' must leave at least one genre to the tags")
        return self

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes that `head.safetensors` must hold."""
        d, k = self.dims, len(self.genres)
        if self.network is not None:
            return tensor_shapes(self.network, k)
        shapes: dict[str, tuple[int, ...]] = {"mean": (d,), "deviation": (d,)}
        if self.quantiles is not None:
            shapes["quantiles"] = (d, self.quantiles)
        if self.kind == "kernel" or self.centres is not None:
            centres = self.centres or 0
            shapes |= {"centres": (centres, d), "weight": (centres, k)}
        elif self.kind == "logistic":
            shapes |= {"weight": (d, k), "bias": (k,)}
        elif self.kind == "mlp":
            widths = (d, *self.hidden, k)
            for i, (inputs, outputs) in enumerate(pairwise(widths)):
                shapes |= {f"weight{i}": (inputs, outputs), f"bias{i}": (outputs,)}
        elif self.kind == "tags":
            known = self.known or 0
            further = k - known
            shapes |= {"weight": (d, known), "bias": (known,), "tag_weight": (d, further)}
            shapes |= {"tag_bias": (further,), "tag_usual": (known, further)}
        return shapes


class Head:
    """A trained head. `trees` is XGBoost's model as JSON text, for that kind only."""

    def __init__(
        self, card: ModelCard, tensors: Mapping[str, Tensor], trees: str | None = None
    ) -> None:
        """Check the parts against the card. Raises ModelError."""
        quantiles = tensors.get("quantiles")
        if quantiles is not None and quantiles.ndim == 2 and card.quantiles is None:
            card = card.model_copy(update={"quantiles": quantiles.shape[-1]})
        if "centres" in tensors and card.centres is None:
            card = card.model_copy(update={"centres": len(tensors["centres"])})
        check_shapes(tensors, card.tensor_shapes())
        if card.kind != "network" and bool((tensors["deviation"] <= 0).any()):
            raise ModelError("deviation holds values that are not positive")
        if quantiles is not None and not bool((quantiles.diff(dim=1) >= 0).all()):
            raise ModelError("quantiles do not ascend")
        if (card.kind == "xgboost") != (trees is not None):
            raise ModelError(f"a head of kind {card.kind} and {TREES} do not go together")
        if trees is not None:
            # XGBoost ends the whole process on some damaged files, so it is shown none.
            digest = hashlib.sha256(trees.encode()).hexdigest()
            if card.trees_sha256 not in {None, digest}:
                raise ModelError(f"{TREES} is damaged: it is not the file that the card names")
            card = card.model_copy(update={"trees_sha256": digest})
        self.card = card
        self._tensors = {name: tensor.float() for name, tensor in tensors.items()}
        self._trees = trees
        self._network = (
            None
            if card.network is None
            else restore_network(card.network, len(card.genres), self._tensors)
        )
        self._booster: Any = None if trees is None else _load_booster(trees, card)

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return calibrated probabilities (n, k) for `features` (n, d). Raises ValueError."""
        if features.ndim != 2 or features.shape[1] != self.card.dims:
            shape = tuple(features.shape)
            raise ValueError(f"{self.card.name} takes (n, {self.card.dims}) features, not {shape}")
        x = features.float()
        if self._network is not None and self.card.network is not None:
            logits = ask_network(self._network, self.card.network, x)
            return torch.softmax(logits / self.card.temperature, 1)
        if self.card.quantiles is not None:
            x = normal_scores(x, self._tensors["quantiles"])
        z = (x - self._tensors["mean"]) / self._tensors["deviation"]
        if self.card.limit is not None:
            z = z.clamp(-self.card.limit, self.card.limit)
        logits = self._logits(z) / self.card.temperature
        if self.card.kind == "tags":
            logits = self._with_tags(z, torch.log_softmax(logits, 1))
        return torch.softmax(logits, 1)

    def _logits(self, z: Tensor) -> Tensor:
        t = self._tensors
        if self.card.kind == "xgboost":
            import xgboost

            start = kernel_logits(z, t["centres"], t["weight"]).numpy() if "centres" in t else None
            matrix = xgboost.DMatrix(z.numpy(), base_margin=start)
            margins = self._booster.predict(matrix, output_margin=True)
            return torch.from_numpy(margins.reshape(len(z), -1))
        if self.card.kind == "kernel":
            return kernel_logits(z, t["centres"], t["weight"])
        if self.card.kind == "mlp":
            for i in range(len(self.card.hidden)):
                z = torch.relu(z @ t[f"weight{i}"] + t[f"bias{i}"])
            last = len(self.card.hidden)
            return z @ t[f"weight{last}"] + t[f"bias{last}"]
        return z @ t["weight"] + t["bias"]

    def _with_tags(self, z: Tensor, log_known: Tensor) -> Tensor:
        t = self._tensors
        further = z @ t["tag_weight"] + t["tag_bias"] - log_known.exp() @ t["tag_usual"]
        return torch.cat([log_known, further], 1)

    def save(self, folder: Path) -> None:
        """Write the head into `folder`, which is made if need be."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors, folder / TENSORS)
        if self._trees is not None:
            (folder / TREES).write_text(self._trees, encoding="utf-8")
        card = self.card.model_dump_json(indent=2) + "\n"
        (folder / CARD).write_text(card, encoding="utf-8")


def is_learned(name: str) -> bool:
    """Say whether a tensor of a head was learned, and is no statistic of what it hears."""
    last = name.rpartition(".")[2]
    return last not in GIVEN


def quantile_levels(count: int) -> Tensor:
    """Return the levels (count,) at which `normal_scores` expects quantiles, between 0 and 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def normal_scores(x: Tensor, quantiles: Tensor) -> Tensor:
    """Return (n, d): the normal deviates whose share in a normal distribution x (n, d) has here.

    `quantiles` (d, q) ascend and are at `quantile_levels(q)`; between them is a straight line,
    beyond them nothing grows. A value that is shared by many stands in the middle of them.
    """
    levels = quantile_levels(quantiles.shape[1]).to(x)
    columns = x.T.contiguous()
    found = torch.zeros_like(columns)
    for right in (False, True):  # the lower and the upper end of a run of equal quantiles
        above = torch.searchsorted(quantiles, columns, right=right)
        above = above.clamp(1, quantiles.shape[1] - 1)
        low, high = quantiles.gather(1, above - 1), quantiles.gather(1, above)
        passed = columns >= low if right else columns > low
        share = torch.where(high > low, ((columns - low) / (high - low)).clamp(0, 1), passed.to(x))
        found += torch.lerp(levels[above - 1], levels[above], share) / 2
    scores: Tensor = torch.special.ndtri(found)
    return scores.T


def load_card(folder: Path) -> ModelCard:
    """Read a head's card. Raises ModelError, naming the file and the key."""
    path = folder / CARD
    try:
        return read_file(path, ModelCard)
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot read the model card: {error}") from error


def load_head(folder: Path) -> Head:
    """Load the head in `folder`. Raises ModelError, naming the file, if anything does not fit."""
    card = load_card(folder)
    trees = None
    if card.kind == "xgboost":
        try:
            trees = (folder / TREES).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{printable(folder / TREES)}: cannot read: {error}") from error
        if card.trees_sha256 is None:
            raise ModelError(f"{printable(folder / CARD)}: trees_sha256 is missing")
    tensors = load_tensors(folder / TENSORS)
    try:
        return Head(card, tensors, trees)
    except ModelError as error:
        raise ModelError(f"{printable(folder)}: {error}") from error


def _load_booster(trees: str, card: ModelCard) -> Any:  # noqa: ANN401 (xgboost has no types)
    try:
        import xgboost
    except ImportError as error:
        raise ModelError(
            f"{card.name} is a head of boosted trees: pip install 'reclass-plex[xgboost]'"
        ) from error
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(trees, "utf-8"))
    except xgboost.core.XGBoostError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"{TREES} is damaged: {reason}") from error
    if booster.num_features() != card.dims:
        raise ModelError(f"{TREES} takes {booster.num_features()} features, not {card.dims}")
    outputs = booster.inplace_predict(torch.zeros(1, card.dims).numpy()).size
    if outputs != len(card.genres):
        raise ModelError(f"{TREES} knows {outputs} genres, not {len(card.genres)}")
    return booster
