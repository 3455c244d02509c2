"""What the networks of `deep` begin as: by chance, or as an encoder that knows music already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from reclass_plex.errors import ModelError
from reclass_plex.networks import ResnetSpec
from reclass_plex.training.approaches.base import Examples, plain_moments
from reclass_plex.training.approaches.deep import Beginning

MEL_SHAPE = (187, 96)  # frames and bands of MusiCNN's patches

Backbone = Literal["msd", "mtt", "both"]


def begin_resnet(train: Examples, width: int) -> Beginning:
    """Return a residual network that knows how loud each band is, and nothing else."""
    frames, bands = MEL_SHAPE
    mean, deviation = plain_moments(train)
    # Of a band, over all frames: the mean of variances, and the variance of means besides.
    means = mean.reshape(frames, bands)
    variance = (deviation.reshape(frames, bands) ** 2).mean(0) + means.var(0)
    tensors = {"input_mean": means.mean(0), "input_deviation": np.sqrt(variance)}
    return Beginning(
        ResnetSpec(frames=frames, bands=bands, width=width),
        {name: torch.from_numpy(values).float() for name, values in tensors.items()},
        trained=False,
    )


def begin_musicnn(backbone: Backbone, whole: bool) -> Beginning:
    """Return MusiCNN; unless `whole`, its front end stays as it is. Raises ModelError."""
    from reclass_plex.networks.musicnn import MusicnnNetwork, published_bodies

    def freeze(network: nn.Module) -> None:
        if not whole and isinstance(network, MusicnnNetwork):
            network.freeze_front()

    spec, tensors = published_bodies(("msd", "mtt") if backbone == "both" else (backbone,))
    return Beginning(spec, tensors, trained=True, freeze=freeze)


def begin_blocks(
    features: str, versions: Mapping[str, str], models: Path | None, dims: int
) -> Beginning:
    """Return the last blocks of the encoder whose hidden states `features` are.

    Its weights must be those that the features were computed with, as `versions` has them. Raises
    ModelError.
    """
    from reclass_plex.encoders.top import parse_top
    from reclass_plex.models import find_model, models_folder, read_manifest, why_missing
    from reclass_plex.networks.blocks import published_blocks

    top = parse_top(features)
    if top is None:
        raise ModelError(f"{features}: are no hidden states that an encoder here goes on from")
    folder = models_folder(models)
    found = find_model(top.model, folder)
    if found is None:
        raise ModelError(why_missing(top.model, folder) or f"{top.model} is not there")
    manifest = read_manifest(top.model, folder)
    here = {file.name: file.sha256 for file in manifest.files} if manifest else {}
    if any(versions.get(name, digest) != digest for name, digest in here.items()):
        raise ModelError(f"{top.model}: has other weights here than {features} was computed with")
    spec, tensors = published_blocks(top, found, dims)
    return Beginning(spec, tensors, trained=True)
