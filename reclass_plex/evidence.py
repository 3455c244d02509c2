"""How windows, heads and stages are put together: the arithmetic on what `profiles` describes.

`data/openset/` holds what tells music from speech and noise, fitted on held-out clips by
`reclass_plex.training.shipped`.

Conventions: a vote is (k,) float64, the probabilities of `EnsembleSpec.genres`, summing to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reclass_plex.errors import ModelError, printable
from reclass_plex.models import DATA, check_shapes, load_tensors

Probabilities = npt.NDArray[np.float64]

SILENCE_DBFS = -60.0
"""An excerpt is silence if its loudest 0.1 s stays below this (RMS against full scale, 1.0)."""

SILENCE_FRAME_SECONDS = 0.1
SMALLEST = 1e-12  # probability, before a logarithm


def cut_windows(
    samples: npt.NDArray[np.float32], length: int, count: int
) -> npt.NDArray[np.float32]:
    """Return (w <= count, length): pieces of mono `samples` (n,), evenly spread from end to end.

    No more than fit side by side; one from the middle if only one does. Shorter audio comes whole.
    """
    count = max(1, min(count, len(samples) // length))
    spare = max(0, len(samples) - length)
    starts = [spare // 2] if count == 1 else [round(i * spare / (count - 1)) for i in range(count)]
    return np.stack([samples[start : start + length] for start in starts])


def pool_windows(probabilities: Tensor, sharpness: float) -> Probabilities:
    """Return one vote (k,) from the probabilities (w, k) of a track's windows.

    The mean of their logarithms, times `sharpness` if there is more than one: how much more trust
    the windows of a track deserve together than one of them alone.
    """
    logs = np.log(np.maximum(probabilities.double().numpy(), SMALLEST)).mean(0)
    return _softmax(logs * (sharpness if len(probabilities) > 1 else 1.0))


def align(
    vote: Probabilities, genres: Sequence[str], wanted: Sequence[str], strangers: float = 1.0
) -> Probabilities:
    """Return a vote on `genres` as one on the wider `wanted`.

    The head knows nothing about the others: each of them gets `strangers` times what a genre it
    knows gets on average. (More than once, because a head is too sure of itself on music of genres
    that it does not know.)
    """
    if tuple(genres) == tuple(wanted):
        return vote
    aligned = np.full(len(wanted), strangers / len(genres))
    aligned[[wanted.index(genre) for genre in genres]] = vote
    result: Probabilities = aligned / aligned.sum()
    return result


def pool_votes(votes: Sequence[Probabilities], weights: Sequence[float]) -> Probabilities:
    """Return the log-linear pool (k,) of `votes`: the weighted product, normalised."""
    logs = [w * np.log(np.maximum(v, SMALLEST)) for v, w in zip(votes, weights, strict=True)]
    return _softmax(np.sum(logs, axis=0))


def share_out(vote: Probabilities, theirs: Probabilities) -> Probabilities:
    """Return (k + f,): `theirs` (f,) as they are, and what they leave of one shared by `vote`."""
    wide: Probabilities = np.concatenate([vote * max(0.0, 1 - theirs.sum()), theirs])
    return wide


def _softmax(logits: npt.NDArray[np.float64]) -> Probabilities:
    odds = np.exp(logits - logits.max())
    probabilities: Probabilities = odds / odds.sum()
    return probabilities


def is_silent(samples: npt.NDArray[np.float32], rate: int) -> bool:
    """Tell whether mono `samples` (n,) never reach `SILENCE_DBFS` over 0.1 s."""
    frame = max(1, round(SILENCE_FRAME_SECONDS * rate))
    padded = np.zeros(-(-max(len(samples), 1) // frame) * frame, np.float64)
    padded[: len(samples)] = samples
    loudest = np.square(padded).reshape(-1, frame).mean(1).max()
    return bool(loudest < 10 ** (SILENCE_DBFS / 10))


class OpenSet:
    """Whether features are of music that resembles what the heads were trained on.

    `music` is a logistic score, music against speech and noise; `distance` the Mahalanobis distance
    to the training music within its first principal components. Both average over windows.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors that training wrote. Raises ModelError."""
        if "axes" not in tensors or tensors["axes"].ndim != 2:
            raise ModelError("missing tensor: axes")
        d, components = tensors["axes"].shape
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "deviation", "weight"), (d,))
        shapes |= {"axes": (d, components), "bias": (), "min_music": (), "max_distance": ()}
        check_shapes(tensors, shapes)
        self._tensors = tensors

    @torch.no_grad()
    def score(self, features: Tensor) -> tuple[float, float]:
        """Return (music, distance) of a track's features (w, d)."""
        t = self._tensors
        z = (features - t["mean"]) / t["deviation"]
        z = z.clamp(-5, 5)
        music = float((z @ t["weight"] + t["bias"]).mean())
        distance = float((z.mean(0) @ t["axes"]).square().mean().sqrt())
        return music, distance

    def judge(self, features: Tensor) -> str | None:
        """Return None for music, or why no genre should be written."""
        music, distance = self.score(features)
        if music < float(self._tensors["min_music"]):
            return "speech or noise"
        if distance > float(self._tensors["max_distance"]):
            return "unlike any known genre"
        return None


def load_open_set(features: str, data: Path = DATA) -> OpenSet:
    """Load `data/openset/<features>.safetensors` (musicnn-msd, musicnn). Raises ModelError."""
    path = data / "openset" / f"{features}.safetensors"
    tensors = load_tensors(path)
    try:
        return OpenSet(tensors)
    except ModelError as error:
        raise ModelError(f"{printable(path)}: {error}") from error
