"""Ensembles as data: which stages vote, in what order, with what weight, and when one decides.

    data/ensemble/TAXONOMY.json                             profile `cpu`, in the package
    MODELS' FOLDER/ensembles/TAXONOMY-PROFILE/ensemble.json any other one: trained and installed
                                              .../heads/    its heads; SHA256SUMS names every file

A profile whose models are not all there loses those stages and goes on; one that is not trained, or
has lost all that it has beyond `cpu`, gives way to `cpu`. That is said (`Profile.notes`), never an
error: new music is tagged meanwhile.

No arrays here: the daemon's main process reads this, and stays small.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reclass_plex.errors import ModelError, printable
from reclass_plex.genres import DEFAULT, GTZAN, TAXONOMIES, Taxonomy
from reclass_plex.models import DATA, SUMS, models_folder, read_manifest, why_missing

CPU = "cpu"
SHIPPED = (DEFAULT.name, GTZAN.name)  # taxonomies that the package has an ensemble for
ENSEMBLES, SPEC, HEADS = "ensembles", "ensemble.json", "heads"
OWN_FEATURES = ("fma518", "musicnn-msd", "musicnn")  # computed with what is in the package


class StageSpec(BaseModel):
    """One stage: cheap ones first. `weights` has one weight for each vote so far, its own last.

    `features` is one of `OWN_FEATURES`, or the name of a fetched model. `exits` maps a wanted
    accuracy ("0.90") to the pooled probability from which this stage may decide; an accuracy that
    it cannot promise at any probability is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    head: str  # folder below heads/, of the ensemble or of the package
    features: str
    rate: int = Field(gt=0)  # Hz
    windows: int = Field(gt=0)  # at most, evenly spread over the excerpt
    window_seconds: float = Field(gt=0)
    sharpness: float = Field(gt=0)
    weights: tuple[float, ...]
    strangers: float = Field(default=1.0, gt=0)  # see `evidence.align`
    exits: Mapping[str, float]

    @property
    def model(self) -> str | None:
        """The fetched model that it needs, None if it needs none."""
        return None if self.features in OWN_FEATURES else self.features


class EnsembleSpec(BaseModel):
    """The stages of one taxonomy. `genres` may be fewer than the taxonomy's, never others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taxonomy: str
    genres: tuple[str, ...]
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    protocol: str  # how weights and exits were fitted

    def without(self, names: Collection[str]) -> EnsembleSpec:
        """Return the ensemble without some of its stages, of which at least one must stay.

        The votes that are left keep their weights relative to each other and their sum. Where an
        earlier vote is missing a stage can no longer promise what its exits say, so has none.
        """
        stages = []
        for number, stage in enumerate(self.stages):
            if stage.name in names:
                continue
            kept = [earlier.name not in names for earlier in self.stages[: number + 1]]
            if all(kept):
                stages.append(stage)
                continue
            left = [weight for weight, here in zip(stage.weights, kept, strict=True) if here]
            scale = math.fsum(stage.weights) / math.fsum(left) if math.fsum(left) > 0 else 0.0
            weights = tuple(weight * scale for weight in left) if scale else (1.0,) * len(left)
            stages.append(stage.model_copy(update={"weights": weights, "exits": {}}))
        return self.model_copy(update={"stages": tuple(stages)})


@dataclass(frozen=True)
class Profile:
    """An ensemble as it can be used here.

    `heads` are the folders in which its heads are looked for, in order. `notes` say what of the
    profile asked for cannot be used, why, and what to do. `digest` changes with any of its files.
    """

    spec: EnsembleSpec
    heads: tuple[Path, ...]
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def taxonomy(self) -> Taxonomy:
        """The genres that its verdicts are of; where they are the user's own, as they learned."""
        name = self.spec.taxonomy
        if name in TAXONOMIES:
            return TAXONOMIES[name]
        return Taxonomy(
            name, self.spec.genres, {g: DEFAULT.parents.get(g) for g in self.spec.genres}
        )

    def head_folder(self, name: str) -> Path:
        """Return the folder of a head; the package's where none of them has it."""
        return next((f / name for f in self.heads if (f / name).is_dir()), self.heads[-1] / name)

    def without(self, stage: str) -> Profile:
        """Return the profile without a stage that proved unusable, or `cpu` where that was all."""
        left = [other for other in self.spec.stages if other.name != stage]
        if all(other.model is None for other in left):
            return _cpu_profile(self.spec.taxonomy, self.notes)
        return replace(self, spec=self.spec.without([stage]))


def load_ensemble(taxonomy: str, data: Path = DATA) -> EnsembleSpec:
    """Read the package's ensemble of a taxonomy. Raises ModelError, naming the file."""
    return read_spec(data / "ensemble" / f"{taxonomy}.json")


def read_spec(path: Path) -> EnsembleSpec:
    """Read an ensemble's JSON. Raises ModelError, naming the file."""
    try:
        spec = EnsembleSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error}") from error
    except ValidationError as error:
        raise ModelError(f"{printable(path)}: {error.errors()[0]['msg']}") from error
    for number, stage in enumerate(spec.stages, 1):
        if len(stage.weights) != number:
            raise ModelError(f"{printable(path)}: stage {stage.name} needs {number} weights")
    return spec


def find_profile(taxonomy: str, name: str, models: Path | None = None) -> Profile:
    """Return the ensemble of a profile, as far as it can be used; see the module.

    `models` is the folder of fetched models, None for the usual one. Raises ModelError if the
    package itself is damaged.
    """
    if name == CPU:
        return _cpu_profile(taxonomy)
    models = models_folder(models)
    folder = ensemble_folder(taxonomy, name, models)
    try:
        spec = read_spec(folder / SPEC)
        sums = (folder / SUMS.name).read_text(encoding="utf-8")
    except (ModelError, OSError) as error:
        fault = str(error) if folder.is_dir() else "is not trained here"
        train = f"reclass-plex train --approach progressive --profile {name}"
        return _cpu_profile(
            taxonomy, (f"profile {name}: {fault}; {CPU} decides. To have it: {train}",)
        )
    missing = {
        stage.name: why
        for stage in spec.stages
        if stage.model is not None and (why := why_missing(stage.model, models)) is not None
    }
    notes = tuple(f"stage {stage} is left out: {why}" for stage, why in missing.items())
    left = [stage for stage in spec.stages if stage.name not in missing]
    if missing and all(stage.model is None for stage in left):
        return _cpu_profile(taxonomy, (*notes, f"profile {name} has no stage left; {CPU} decides"))
    digest = "".join([sums, *(model_digest(stage.model, models) for stage in left if stage.model)])
    heads = (folder / HEADS, DATA / HEADS)
    return Profile(spec.without(missing), heads, digest, notes)


def ensemble_folder(taxonomy: str, name: str, models: Path) -> Path:
    """Return where the ensemble of a profile is installed."""
    return models / ENSEMBLES / f"{taxonomy}-{name}"


def _cpu_profile(taxonomy: str, notes: tuple[str, ...] = ()) -> Profile:
    if taxonomy not in SHIPPED:
        notes = (
            *notes,
            f"taxonomy {taxonomy}: the package has no ensemble for it; default decides",
        )
        taxonomy = DEFAULT.name
    spec = load_ensemble(taxonomy)
    return Profile(spec, (DATA / HEADS,), SUMS.read_text(encoding="utf-8"), notes)


def model_digest(name: str, models: Path | None = None) -> str:
    """Return the digests of a fetched model's files, one after another; "" if it is not there."""
    manifest = read_manifest(name, models_folder(models))
    return "".join(file.sha256 for file in manifest.files) if manifest else ""


def exit_threshold(stage: StageSpec, wanted_accuracy: float) -> float:
    """Return the pooled probability from which `stage` may decide, infinity for never.

    The table's next higher accuracy applies, so the promise is at least what was asked.
    """
    fitting = [
        (float(accuracy), threshold)
        for accuracy, threshold in stage.exits.items()
        if float(accuracy) >= wanted_accuracy - 1e-9
    ]
    return min(fitting)[1] if fitting else math.inf
