"""The progressive ensemble: stages vote, cheapest first, until they are sure enough.

Which stages there are, their order, weights and thresholds are data (`evidence.EnsembleSpec`),
fitted and calibrated by `reclass_plex.training`. The thresholds follow from how often an early
exit must be right, which the user states.
"""

from __future__ import annotations

import hashlib
import threading
import time
from functools import cache, cached_property
from typing import TYPE_CHECKING

from reclass_plex import models
from reclass_plex.config import EnsembleOptions
from reclass_plex.errors import ModelError
from reclass_plex.genres import TAXONOMIES, Taxonomy
from reclass_plex.records import Embedding, Excerpt, GenreScore, Verdict, Vote, Waveform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from reclass_plex.device import Device
    from reclass_plex.encoders.musicnn import Checkpoint
    from reclass_plex.evidence import EnsembleSpec, OpenSet, StageSpec
    from reclass_plex.heads import Head

VERSION = 1  # of what is computed here and in features: raise it when verdicts may change
SHORTEST = 1.0  # seconds; less is a sound, not a piece of music
CLOSE = 0.02  # probability; two genres nearer to each other are too close to call
LEAST = 0.001  # probability; what is less probable is not listed, save for the first two

_thread = threading.local()


class Ensemble:
    """Turns a waveform into a verdict. Cheap to make: weights are loaded with the first track.

    `fingerprint` names the models and options, so that the store knows which verdicts are theirs.
    The device does not belong to it: a GPU's verdicts differ in digits that nobody writes.
    """

    def __init__(self, options: EnsembleOptions, device: Device = "cpu") -> None:
        self.options = options
        self.device = device
        self.taxonomy: Taxonomy = TAXONOMIES[options.taxonomy]
        self.fingerprint = _fingerprint(options)

    @cached_property
    def spec(self) -> EnsembleSpec:
        """The stages. Raises ModelError."""
        from reclass_plex.evidence import load_ensemble

        return load_ensemble(self.options.taxonomy)

    @cached_property
    def excerpt(self) -> Excerpt:
        """The part of a track that the heads' cards ask for. Raises ModelError."""
        named = {_head(stage.head).card.excerpt for stage in self.spec.stages}
        if len(named) != 1:
            raise ModelError(f"the heads of one ensemble want several excerpts: {sorted(named)}")
        return Excerpt.parse(named.pop())

    def load(self) -> None:
        """Load everything that a verdict may need, so that a fault shows now. Raises ModelError."""
        from reclass_plex.encoders.musicnn import CHECKPOINTS, load_musicnn

        for stage in self.spec.stages:
            _head(stage.head)
            _guard(stage.features)
        for checkpoint in CHECKPOINTS:
            load_musicnn(checkpoint, self.device)

    def classify(self, waveform: Waveform) -> tuple[Verdict, tuple[Embedding, ...]]:
        """Let the stages vote on an excerpt until they are sure enough.

        Thread-safe; each thread computes on one core, so run as many as there are cores. Raises
        DeviceError when the GPU fails.
        """
        from reclass_plex.device import device_errors

        with device_errors():
            return self._classify(waveform)

    def _classify(self, waveform: Waveform) -> tuple[Verdict, tuple[Embedding, ...]]:
        import numpy as np

        from reclass_plex import evidence

        _compute_on_one_core()
        started = time.perf_counter()
        listening = _Listening(waveform, self.device)
        genres = self.spec.genres
        votes: list[Vote] = []
        heard: list[npt.NDArray[np.float64]] = []
        pooled = np.full(len(genres), 1 / len(genres))
        unsure = _unfit(waveform)
        for stage in () if unsure else self.spec.stages:
            stage_started = time.perf_counter()
            features = listening.features(stage)
            head = _head(stage.head)
            vote = evidence.pool_windows(head.predict(features), stage.sharpness)
            heard.append(evidence.align(vote, head.card.genres, genres, stage.strangers))
            pooled = evidence.pool_votes(heard, stage.weights)
            if (guard := _guard(stage.features)) is not None:
                unsure = guard.judge(features)
            seconds = time.perf_counter() - stage_started
            votes.append(Vote(stage.name, _rank(heard[-1], genres), seconds))
            # What does not sound like music may not leave early: later stages hear more of it.
            wanted = self.options.early_exit_accuracy
            if unsure is None and pooled.max() >= evidence.exit_threshold(stage, wanted):
                break
        ranked = _rank(pooled, genres)
        if unsure is None and ranked[0].confidence - ranked[1].confidence < CLOSE:
            unsure = "too close to call"
        verdict = Verdict(
            taxonomy=self.options.taxonomy,
            genres=ranked,
            decided_by=votes[-1].stage if votes else "level",
            votes=tuple(votes),
            seconds=time.perf_counter() - started,
            unsure=unsure,
        )
        return verdict, listening.embeddings()


class _Listening:
    """What has been computed of one excerpt so far: later stages build on earlier ones."""

    def __init__(self, waveform: Waveform, device: Device) -> None:
        self._waveform = waveform
        self._device = device
        self._msd: torch.Tensor | None = None  # (windows, 250): logits, penultimate layer

    def features(self, stage: StageSpec) -> torch.Tensor:
        """Return what the stage's head reads: (windows, d) float32 on the CPU."""
        if stage.features == "fma518":
            return self._fma(stage)
        return self._musicnn(stage)

    def embeddings(self) -> tuple[Embedding, ...]:
        """Return the encoders' means over the windows that they listened to."""
        if self._msd is None:
            return ()
        from reclass_plex.encoders.musicnn import PENULTIMATE

        return (Embedding("musicnn-msd", self._msd[:, PENULTIMATE].mean(0).numpy()),)

    def _fma(self, stage: StageSpec) -> torch.Tensor:
        import torch

        from reclass_plex.audio import resample
        from reclass_plex.device import run_in_halves
        from reclass_plex.evidence import cut_windows
        from reclass_plex.features import extract_fma_features

        samples = resample(self._waveform, stage.rate).samples
        windows = cut_windows(samples, round(stage.window_seconds * stage.rate), stage.windows)
        batch = torch.from_numpy(windows).to(self._device)
        return run_in_halves(lambda part: extract_fma_features(part, stage.rate), batch).cpu()

    def _musicnn(self, stage: StageSpec) -> torch.Tensor:
        import torch

        from reclass_plex.encoders.musicnn import spread_indices

        indices = list(spread_indices(len(self._patches), stage.windows))
        patches = self._patches[indices]
        self._msd = self._encode("msd", patches)
        if stage.features == "musicnn-msd":
            return self._msd
        return torch.cat([self._msd, self._encode("mtt", patches)], 1)

    def _encode(self, checkpoint: Checkpoint, patches: torch.Tensor) -> torch.Tensor:
        from reclass_plex.device import run_in_halves
        from reclass_plex.encoders.musicnn import load_musicnn

        model = load_musicnn(checkpoint, self._device)
        return run_in_halves(lambda part: model.encode(part).features, patches).cpu()

    @cached_property
    def _patches(self) -> torch.Tensor:
        import torch

        from reclass_plex.audio import resample
        from reclass_plex.encoders.musicnn import RATE, log_mel_patches

        samples = torch.from_numpy(resample(self._waveform, RATE).samples)
        return log_mel_patches(samples.to(self._device))


@cache
def _head(name: str) -> Head:
    from reclass_plex.heads import load_head

    return load_head(models.DATA / "heads" / name)


@cache
def _guard(features: str) -> OpenSet | None:
    """Return what tells music from the rest by these features, where that was fitted."""
    from reclass_plex.evidence import load_open_set

    return load_open_set(features) if features.startswith("musicnn") else None


def _unfit(waveform: Waveform) -> str | None:
    from reclass_plex.evidence import is_silent

    if waveform.seconds < SHORTEST:
        return "too short"
    return "silence" if is_silent(waveform.samples, waveform.rate) else None


def _rank(
    probabilities: npt.NDArray[np.float64], genres: tuple[str, ...]
) -> tuple[GenreScore, ...]:
    order = (-probabilities).argsort(kind="stable")
    heard = [index for index in order if probabilities[index] >= LEAST or index in order[:2]]
    return tuple(GenreScore(genres[index], float(probabilities[index])) for index in heard)


def _compute_on_one_core() -> None:
    """Keep torch from starting a pool of its own in each of our threads."""
    if not getattr(_thread, "ready", False):
        import torch

        torch.set_num_threads(1)
        _thread.ready = True


def _fingerprint(options: EnsembleOptions) -> str:
    """Return 16 hexadecimal digits that change with the models and with what is asked of them."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(models.SUMS.read_bytes())
    digest.update(f"{VERSION} {options.model_dump_json()}".encode())
    return digest.hexdigest()
