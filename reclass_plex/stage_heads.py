"""The heads of an ensemble's stages, each checked against what its stage says that it hears."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from reclass_plex.encoders.musicnn import N_MELS, PATCH_FRAMES
from reclass_plex.errors import ModelError, printable
from reclass_plex.heads import Head, load_head
from reclass_plex.profiles import CPU, Profile, StageSpec

# of features that need no fetched model
DIMS = {"fma518": 518, "musicnn-msd": 250, "musicnn": 500, "mel": PATCH_FRAMES * N_MELS}


def load_stage_heads(profile: Profile) -> tuple[dict[str, Head], dict[str, str]]:
    """Return the heads by stage, and why the others cannot be used: {stage: why}.

    All that are returned hear the same excerpt. Raises ModelError where the package is damaged.
    """
    heads: dict[str, Head] = {}
    faults: dict[str, str] = {}
    for stage in profile.spec.stages:
        folder = profile.head_folder(stage.head)
        try:
            head = _load(folder, profile.sums)
            check_head(folder, head, stage, profile.spec.genres)
            first = next(iter(heads.values()), head).card.excerpt
            _refuse(head.card.excerpt != first, folder, f"hears {head.card.excerpt}, not {first}")
            heads[stage.name] = head
        except ModelError as error:
            if profile.name == CPU:
                raise
            faults[stage.name] = str(error)
    return heads, faults


def check_head(folder: Path, head: Head, stage: StageSpec, genres: Sequence[str]) -> None:
    """Raise ModelError, naming its folder, for a head that cannot vote in this stage."""
    card = head.card
    other = card.features != stage.features
    _refuse(other, folder, f"reads {card.features}, and the stage {stage.features}")
    dims = DIMS.get(stage.features, card.dims)
    _refuse(card.dims != dims, folder, f"takes {card.dims} features, and there are {dims}")
    unknown = sorted(set(card.genres) - set(genres))
    _refuse(bool(unknown), folder, f"knows genres that are not the ensemble's: {unknown}")


@lru_cache(maxsize=32)
def _load(folder: Path, sums: str) -> Head:
    """Load a head, once for each list of files that it comes with."""
    return load_head(folder)


def _refuse(wrong: bool, folder: Path, why: str) -> None:
    if wrong:
        raise ModelError(f"{printable(folder)}: {why}")
