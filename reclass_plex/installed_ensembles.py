"""The ensembles that were installed, for who wants to see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reclass_plex.errors import ModelError
from reclass_plex.models.swap import FORMER
from reclass_plex.profiles import (
    ENSEMBLES,
    SPEC,
    EnsembleSpec,
    find_ensemble,
    find_profile,
    read_spec,
)


@dataclass(frozen=True)
class Installed:
    """An ensemble that was installed. `spec` is None if it cannot be read; `notes` say why."""

    taxonomy: str
    profile: str
    folder: Path
    spec: EnsembleSpec | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """TAXONOMY-PROFILE."""
        return f"{self.taxonomy}-{self.profile}"


def list_installed(models: Path) -> list[Installed]:
    """Return all ensembles that were installed, by name."""
    try:
        names = {path.name.removesuffix(FORMER) for path in (models / ENSEMBLES).iterdir()}
    except OSError:
        return []
    found = []
    for name in sorted(name for name in names if "." not in name):
        taxonomy, _, profile = name.partition("-")
        used = find_profile(taxonomy, profile, models)
        folder = find_ensemble(taxonomy, profile, models) or models / ENSEMBLES / name
        try:
            spec = read_spec(folder / SPEC)
        except ModelError:
            spec = None
        found.append(Installed(taxonomy, profile, folder, spec, used.notes))
    return found
