"""What the stages hear: from one excerpt to the features that each stage's head reads.

Conventions: features are (windows, d) float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, cached_property
from typing import TYPE_CHECKING

import torch

from reclass_plex.audio import resample
from reclass_plex.device import Device, run_in_halves
from reclass_plex.encoders.batching import Batcher
from reclass_plex.encoders.musicnn import (
    PENULTIMATE,
    RATE,
    Checkpoint,
    load_musicnn,
    log_mel_patches,
    spread_indices,
)
from reclass_plex.errors import ModelError
from reclass_plex.evidence import cut_windows
from reclass_plex.features import extract_fma_features
from reclass_plex.fetched import ALL_THERE_IS, FetchedEncoders, Heard
from reclass_plex.profiles import StageSpec
from reclass_plex.records import Embedding, Waveform

if TYPE_CHECKING:
    from reclass_plex.encoders import Readout
    from reclass_plex.heads import Head

FMA_ROWS = 16  # windows of a batch on a GPU


class Listening:
    """What has been computed of one excerpt so far: later stages build on earlier ones.

    `msd` (windows, 250) is what MusiCNN's MSD checkpoint heard last, logits and penultimate layer;
    None if it was not asked.
    """

    def __init__(self, waveform: Waveform, encoders: FetchedEncoders, device: Device) -> None:
        self.msd: torch.Tensor | None = None
        self._waveform = waveform
        self._encoders = encoders
        self._device = device
        self._means: dict[str, torch.Tensor] = {}  # of fetched encoders, by name
        self._heard: dict[Checkpoint, dict[int, torch.Tensor]] = {}  # rows (250,) by patch

    def features(self, stage: StageSpec, head: Head) -> torch.Tensor:
        """Return what the stage's head reads: (w, d). Raises ModelError for a fetched encoder."""
        if stage.features == "fma518":
            return self._fma(stage)
        if stage.features == "mel":
            patches = self._patches[list(spread_indices(len(self._patches), stage.windows))]
            return patches.flatten(1).cpu()
        if stage.model is None:
            return self.musicnn(stage.features, stage.windows)
        readout = head.card.readout or ALL_THERE_IS
        with self.hear_fetched(stage.model, readout, stage.windows) as heard:
            features = readout.combine(heard.states, heard.encoder.layers)
        if features.shape[1] != head.card.dims:
            given = features.shape[1]
            raise ModelError(f"{stage.model} gives {given} values; its head takes {head.card.dims}")
        self._means[stage.model] = features.mean(0)
        return features

    def musicnn(self, features: str, windows: int) -> torch.Tensor:
        """Return what MusiCNN hears: `musicnn-msd` (w, 250), or `musicnn` (w, 500) with MTT's."""
        chosen = spread_indices(len(self._patches), windows)
        self.msd = self._encode("msd", chosen)
        if features == "musicnn-msd":
            return self.msd
        return torch.cat([self.msd, self._encode("mtt", chosen)], 1)

    def hear_fetched(
        self, name: str, readout: Readout, windows: int
    ) -> AbstractContextManager[Heard]:
        """Give a fetched encoder with its states on at most so many windows of the excerpt.

        Raises ModelError if it is missing or damaged, or answers with values that are not finite.
        """
        return self._encoders.hear(name, readout, self._waveform, windows)

    def embeddings(self) -> tuple[Embedding, ...]:
        """Return the encoders' means over the windows that they listened to."""
        means = dict(self._means)
        if self.msd is not None:
            means["musicnn-msd"] = self.msd[:, PENULTIMATE].mean(0)
        return tuple(Embedding(name, mean.numpy()) for name, mean in means.items())

    def _fma(self, stage: StageSpec) -> torch.Tensor:
        samples = resample(self._waveform, stage.rate).samples
        windows = cut_windows(samples, round(stage.window_seconds * stage.rate), stage.windows)
        if self._device == "cuda":
            return _fma_batcher(stage.rate)(torch.from_numpy(windows).to(self._device)).cpu()
        return extract_fma_features(torch.from_numpy(windows), stage.rate)

    def _encode(self, checkpoint: Checkpoint, chosen: Sequence[int]) -> torch.Tensor:
        """Return what a checkpoint hears in these patches; what it heard before it does not again.

        The few that an earlier stage hears are spread like the many of a later one.
        """
        heard = self._heard.setdefault(checkpoint, {})
        if new := [place for place in chosen if place not in heard]:
            model = load_musicnn(checkpoint, self._device)
            rows = run_in_halves(lambda part: model.encode(part).features, self._patches[new]).cpu()
            heard.update(zip(new, rows, strict=True))
        return torch.stack([heard[place] for place in chosen])

    @cached_property
    def _patches(self) -> torch.Tensor:
        samples = torch.from_numpy(resample(self._waveform, RATE).samples)
        return log_mel_patches(samples.to(self._device))


@cache
def _fma_batcher(rate: int) -> Batcher:
    """Return the features for a GPU, on which many small steps want several tracks at once."""
    return Batcher(lambda rows: extract_fma_features(rows, rate), most_rows=FMA_ROWS)
