"""Ensembles as data: which stages vote, in what order, with what weight, and when one decides.

    data/ensemble/TAXONOMY.json                             profile `cpu`, in the package
    MODELS' FOLDER/ensembles/TAXONOMY-PROFILE/ensemble.json any other one: trained and installed
                                              .../heads/    its heads; SHA256SUMS names every file

A profile whose models are not all there loses those stages and goes on; one that is not trained, is
not as it was installed, or has lost all that it has beyond `cpu`, gives way to `cpu`. That is said
(`Profile.notes`), never an error: new music is tagged meanwhile.

No arrays here: the daemon's main process reads this, and stays small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reclass_plex.errors import ModelError, printable
from reclass_plex.formats import read_file
from reclass_plex.genres import DEFAULT, GTZAN, TAXONOMIES, Taxonomy
from reclass_plex.models import (
    DATA,
    SUMS,
    models_folder,
    read_manifest,
    read_sums,
    why_missing,
)
from reclass_plex.models.installed import hash_file
from reclass_plex.models.swap import in_use

if TYPE_CHECKING:
    from typing_extensions import Self

CPU = "cpu"
SHIPPED = (DEFAULT.name, GTZAN.name)  # taxonomies that the package has an ensemble for
ENSEMBLES, SPEC, HEADS = "ensembles", "ensemble.json", "heads"
OWN_FEATURES = ("fma518", "musicnn-msd", "musicnn", "mel")  # computed with what is in the package

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of a folder, too: no path
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[str, Field(pattern=r"^0\.\d+$")]


class StageSpec(BaseModel):
    """One stage: cheap ones first. `weights` has one weight for each vote so far, its own last.

    `features` is one of `OWN_FEATURES`, or the name of a fetched model. `exits` maps a wanted
    accuracy ("0.90") to the pooled probability from which this stage may decide; an accuracy that
    it cannot promise at any probability is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    head: Name  # folder below heads/, of the ensemble or of the package
    features: Name
    rate: int = Field(gt=0)  # Hz
    windows: int = Field(gt=0)  # at most, evenly spread over the excerpt
    window_seconds: float = Field(gt=0)
    sharpness: float = Field(gt=0)
    weights: tuple[Finite, ...]
    strangers: float = Field(default=1.0, gt=0)  # see `evidence.align`
    exits: Mapping[Share, Finite]

    @property
    def model(self) -> str | None:
        """The fetched model that it needs, None if it needs none."""
        return None if self.features in OWN_FEATURES else self.features


class EnsembleSpec(BaseModel):
    """The stages of one taxonomy. `genres` may be fewer than the taxonomy's, never others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taxonomy: Name
    genres: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2)
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    protocol: str  # how weights and exits were fitted

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.genres)) != len(self.genres):
            raise ValueError("genres are not distinct")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages have one name")
        for number, stage in enumerate(self.stages, 1):
            if len(stage.weights) != number:
                raise ValueError(f"stage {stage.name} needs {number} weights")
        return self

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

    `heads` are the folders in which its heads are looked for, in order; `sums` lists its files with
    their digests, and `models` has those of the fetched models, by stage. `notes` say what of the
    profile asked for cannot be used, why, and what to do.
    """

    name: str
    spec: EnsembleSpec
    heads: tuple[Path, ...]
    sums: str
    models: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What changes with any file that its verdicts rest on."""
        return "".join([self.sums, *(self.models.get(one.name, "") for one in self.spec.stages)])

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

    def without(self, faults: Mapping[str, str]) -> Profile:
        """Return the profile without stages that cannot be used, {name: why}.

        That is `cpu` where nothing is left that `cpu` would not have: neither a fetched model nor a
        head of the profile's own.
        """
        notes = (*self.notes, *(f"stage {name} is left out: {why}" for name, why in faults.items()))
        left = [stage for stage in self.spec.stages if stage.name not in faults]
        if faults and not any(
            stage.model or self.head_folder(stage.head).parent == self.heads[0] for stage in left
        ):
            notes = (*notes, f"profile {self.name} has no stage left; {CPU} decides")
            return _cpu_profile(self.spec.taxonomy, notes)
        return replace(self, spec=self.spec.without(faults), notes=notes)


def load_ensemble(taxonomy: str, data: Path = DATA) -> EnsembleSpec:
    """Read the package's ensemble of a taxonomy. Raises ModelError, naming the file."""
    return read_spec(data / "ensemble" / f"{taxonomy}.json")


def read_spec(path: Path) -> EnsembleSpec:
    """Read an ensemble's JSON. Raises ModelError, naming the file."""
    try:
        return read_file(path, EnsembleSpec)
    except OSError as error:
        raise ModelError(f"{printable(path)}: cannot be read: {error}") from error


def find_profile(taxonomy: str, name: str, models: Path | None = None) -> Profile:
    """Return the ensemble of a profile, as far as it can be used; see the module.

    `models` is the folder of fetched models, None for the usual one. Raises ModelError if the
    package itself is damaged.
    """
    if name == CPU:
        return _cpu_profile(taxonomy)
    models = models_folder(models)
    try:
        folder = find_ensemble(taxonomy, name, models)
        if folder is None:
            train = f"reclass-plex train --approach progressive --install {name}"
            note = f"profile {name} is not trained here; {CPU} decides. To have it: {train}"
            return _cpu_profile(taxonomy, (note,))
        check_files(folder)
        spec = read_spec(folder / SPEC)
        sums = (folder / SUMS.name).read_text(encoding="utf-8")
    except (ModelError, OSError) as error:
        advice = f"reclass-plex models install FOLDER --profile {name}, or models rollback {name}"
        note = f"profile {name}: {error}; {CPU} decides. To mend it: {advice}"
        return _cpu_profile(taxonomy, (note,))
    missing = {
        stage.name: why
        for stage in spec.stages
        if stage.model is not None and (why := why_missing(stage.model, models)) is not None
    }
    digests = {
        stage.name: model_digest(stage.model, models)
        for stage in spec.stages
        if stage.model is not None and stage.name not in missing
    }
    # Its own stages hear through what is in the package, too.
    sums += SUMS.read_text(encoding="utf-8")
    return Profile(name, spec, (folder / HEADS, DATA / HEADS), sums, digests).without(missing)


def find_ensemble(taxonomy: str, name: str, models: Path) -> Path | None:
    """Return the folder of the ensemble that a profile has in use, None if it has none.

    An installation that broke off after it had put the former one aside counts as not begun.
    Raises OSError where the folders may not be looked at.
    """
    return in_use(ensemble_folder(taxonomy, name, models))


def check_files(folder: Path, needed: str = SPEC) -> None:
    """Compare a model's files with its list. Raises ModelError, naming the first that differs.

    The list must name the file `needed`. A file is read again only once it has changed.
    """
    sums = read_sums(folder / SUMS.name)
    if needed not in sums:
        raise ModelError(f"{printable(folder / SUMS.name)}: does not name {needed}")
    for name, digest in sums.items():
        path = folder / name
        try:
            status = path.stat()
            same = _hash_once(path, status.st_ino, status.st_size, status.st_mtime_ns) == digest
        except OSError as error:
            raise ModelError(f"{printable(path)}: cannot be read: {error.strerror}") from error
        if not same:
            raise ModelError(f"{printable(path)}: is not as it was written")


@functools.lru_cache(maxsize=128)
def _hash_once(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    return hash_file(path)


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
    sums = SUMS.read_text(encoding="utf-8")
    return Profile(CPU, spec, (DATA / HEADS,), sums, notes=notes)


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
