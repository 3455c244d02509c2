"""Putting a trained ensemble in use: what `train --install` and `models install` share."""

from __future__ import annotations

from pathlib import Path

from reclass_plex import console
from reclass_plex.cli_options import configure
from reclass_plex.errors import printable


def install_as(ensemble: Path, profile: str, config_file: Path | None) -> None:
    """Put a written ensemble in use, and say how to turn it on and off."""
    from reclass_plex.models import models_folder
    from reclass_plex.training.cascade import install_ensemble

    config = configure(config_file, {"ensemble": {"profile": profile}})  # is it a name?
    place = install_ensemble(ensemble, profile, models_folder(config.models.folder))
    console.say(
        f"installed in {printable(place)}\n"
        f"try it: reclass-plex classify --profile {profile} --taxonomy"
        f" {place.name.removesuffix(f'-{profile}')} FILE; for good: ensemble.profile and"
        f" ensemble.taxonomy in the configuration; back: reclass-plex models rollback {profile}",
        to=console.err,
    )
