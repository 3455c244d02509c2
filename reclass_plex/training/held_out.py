"""The held-out votes that ship with the package, so that everybody can judge the ensembles.

`data/ensemble/out_of_fold.safetensors` has, for each stage and five repeats of the cross-validation
(r = 5, n = 412 clips of ten genres, h of them of a genre that has a tag):
- STAGE (r, n, 10): ten genres;
- STAGE-default (r, n, 18): the same clips, any of the default taxonomy's genres may be answered;
- STAGE-hidden (r, h, 10): clips of a genre that was hidden from the heads, the answer for it last:
  what stands for the genres that no labelled clip was at hand for;
- label, number (n,): the genre and the number of the track within it; hidden (h,): which clips.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reclass_plex.errors import ModelError, printable
from reclass_plex.models import DATA, load_tensors
from reclass_plex.profiles import EnsembleSpec
from reclass_plex.training.datasets.gtzan import BLOCK
from reclass_plex.training.exits import HeldOut
from reclass_plex.training.metrics import Floats, Labels

FILE = Path("ensemble") / "out_of_fold.safetensors"


def read_held_out(spec: EnsembleSpec, data: Path = DATA) -> HeldOut:
    """Read the votes of the stages of `spec`. Raises ModelError, naming the file.

    Genres weigh alike, tracks of a genre alike. For the default taxonomy the hidden genres together
    weigh as much as the genres that they stand for.
    """
    path = data / FILE
    arrays = {name: tensor.double().numpy() for name, tensor in load_tensors(path).items()}
    ten = spec.taxonomy == "gtzan"
    try:
        label, number = arrays["label"].astype(np.int64), arrays["number"].astype(np.int64)
        if ten:
            votes = tuple(normalise(arrays[stage.name]) for stage in spec.stages)
            return held_out_clips(votes, label, number)
        hidden = arrays["hidden"].astype(np.int64)
        known = [arrays[f"{stage.name}-default"] for stage in spec.stages]
        found = [arrays[f"{stage.name}-hidden"] for stage in spec.stages]
    except KeyError as error:
        raise ModelError(
            f"{printable(path)}: has no {error}: it is not of this ensemble; reinstall reclass-plex"
        ) from error
    votes = tuple(normalise(stack_hidden(k, h)) for k, h in zip(known, found, strict=True))
    return held_out_with_hidden(votes, label, number, hidden)


def normalise(votes: Floats) -> Floats:
    """Return the votes with sums of 1: half precision has rounded them."""
    result: Floats = votes / votes.sum(-1, keepdims=True)
    return result


def stack_hidden(known: Floats, hidden: Floats) -> Floats:
    """Put the votes on hidden genres (r, h, j) below the others (r, n, k >= j), no chance beside.

    The genres of a hidden clip's vote are others than those of the columns that they stand in; only
    which is the largest, and how large, is asked of them.
    """
    spare = known.shape[-1] - hidden.shape[-1]
    return np.concatenate([known, np.pad(hidden, ((0, 0), (0, 0), (0, spare)))], 1)


def held_out_clips(votes: tuple[Floats, ...], label: Labels, number: Labels) -> HeldOut:
    """Return GTZAN's clips, held out (r, n, k): genres alike, tracks of a genre alike."""
    weights = track_weights(label, number)
    return HeldOut(votes, label, weights, label * 1000 + number, label * 100 + number // BLOCK)


def held_out_with_hidden(
    votes: tuple[Floats, ...], label: Labels, number: Labels, hidden: Labels
) -> HeldOut:
    """Return the clips, and below them those `hidden` (h,) clips again, their answer the tenth.

    A clip and its hidden self are different questions, asked of one artist's music: two tracks of
    one block.
    """
    known = held_out_clips(votes, label, number)
    further = votes[0].shape[-1] - len(np.unique(label))
    own = track_weights(label[hidden], number[hidden])
    again = held_out_clips(votes, label[hidden], number[hidden])
    return HeldOut(
        votes,
        np.concatenate([label, np.full(len(hidden), len(np.unique(label)) - 1)]),
        np.concatenate([known.weights, own * further / len(np.unique(label[hidden]))]),
        np.concatenate([known.track, again.track + 1_000_000]),
        np.concatenate([known.block, again.block]),
    )


def track_weights(label: Labels, number: Labels) -> Floats:
    """Return weights (n,) that sum to 1 a genre: tracks count alike, whatever their clips."""
    track = label * 1000 + number
    weights = 1 / np.bincount(track)[track]
    result: Floats = weights / np.bincount(label, weights)[label]
    return result
