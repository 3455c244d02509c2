"""The progressive ensemble: stages vote, cheapest first, until they are sure enough.

Which stages there are, their order, weights and thresholds are data (`profiles.EnsembleSpec`),
fitted and calibrated by `reclass_plex.training`. The thresholds follow from how often an early
exit must be right, which the user states. A stage whose model is missing or damaged is left out,
which is said, and the others go on.

Genres that the user names by text alone (`text_genres`) are heard by CLAP after the vote: what it
gives them is taken from all other genres alike. It ranks, but nobody has calibrated it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.config import Config, EnsembleOptions
from reclass_plex.errors import ModelError
from reclass_plex.genres import Taxonomy, genre_key
from reclass_plex.models import why_missing
from reclass_plex.profiles import (
    EnsembleSpec,
    StageSpec,
    exit_threshold,
    find_profile,
    model_digest,
)
from reclass_plex.records import Embedding, Excerpt, GenreScore, Verdict, Vote, Waveform

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from reclass_plex.device import Device
    from reclass_plex.evidence import OpenSet
    from reclass_plex.fetched import FetchedEncoders
    from reclass_plex.heads import Head
    from reclass_plex.listening import Listening

log = logging.getLogger(__name__)

VERSION = 1  # of what is computed here and in features: raise it when verdicts may change
SHORTEST = 1.0  # seconds; less is a sound, not a piece of music
CLOSE = 0.02  # probability; two genres nearer to each other are too close to call
LEAST = 0.001  # probability; what is less probable is not listed, save for the first two
GUARD, GUARD_WINDOWS = "musicnn-msd", 3  # tell music from the rest where no stage does
TEXT_STAGE, TEXT_MODEL = "text", "clap"  # for genres that are known by name alone

_thread = threading.local()


class Ensemble:
    """Turns a waveform into a verdict. Cheap to make: weights are loaded with the first track.

    `models` is the folder of fetched models, None for the usual one; profile `cpu` needs none.
    `memory_gib` is the memory that these may take, None for what is free on a GPU.
    `fingerprint` names the models and options, so that the store knows which verdicts are theirs.
    The device does not belong to it: a GPU's verdicts differ in digits that nobody writes.
    """

    def __init__(
        self,
        options: EnsembleOptions,
        device: Device = "cpu",
        models: Path | None = None,
        memory_gib: float | None = None,
    ) -> None:
        """Find the stages. Raises ModelError if what is in the package is damaged."""
        self.options = options
        self.device = device
        self._models = models
        self._memory_gib = memory_gib
        self._lock = threading.Lock()
        self._opened: FetchedEncoders | None = None
        self._profile = find_profile(options.taxonomy, options.profile, models)
        self.taxonomy: Taxonomy = self._profile.taxonomy
        self._lost: dict[str, str] = {}  # stages that proved unusable: name -> why
        self._warned: set[str] = set()
        known = {genre_key(genre) for genre in (*self.taxonomy.genres, *self.spec.genres)}
        self._texts = tuple(name for name in options.text_genres if genre_key(name) not in known)
        if self._texts and (why := why_missing(TEXT_MODEL, models)) is not None:
            self._lost[TEXT_STAGE] = why

    @classmethod
    def from_config(cls, config: Config, device: Device = "cpu") -> Ensemble:
        """Return the ensemble that the configuration asks for. Raises ModelError."""
        return cls(config.ensemble, device, config.models.folder, config.worker.memory_gib)

    @property
    def spec(self) -> EnsembleSpec:
        """The stages, without those that are left out."""
        return self._profile.spec

    @property
    def notes(self) -> tuple[str, ...]:
        """What of that which was asked for is left out, why, and what to do about it."""
        lost = (f"stage {name} is left out: {why}" for name, why in self._lost.items())
        return (*self._profile.notes, *lost)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the models and with what is asked of them."""
        digest = hashlib.blake2b(self._profile.digest.encode(), digest_size=8)
        stages = [stage.name for stage in self.spec.stages]
        if self._texts and TEXT_STAGE not in self._lost:
            stages += [TEXT_STAGE, model_digest(TEXT_MODEL, self._models)]
        digest.update(f"{VERSION} {self.options.model_dump_json()} {stages}".encode())
        return digest.hexdigest()

    @property
    def excerpt(self) -> Excerpt:
        """The part of a track that the heads' cards ask for. Raises ModelError."""
        named = {self._head(stage).card.excerpt for stage in self.spec.stages}
        if len(named) != 1:
            raise ModelError(f"the heads of one ensemble want several excerpts: {sorted(named)}")
        return Excerpt.parse(named.pop())

    def load(self) -> None:
        """Load everything that a verdict may need, so that a fault shows now.

        Raises ModelError for what is in the package, DeviceError when the GPU fails; a stage whose
        fetched model is at fault is left out.
        """
        from reclass_plex.device import device_errors
        from reclass_plex.encoders.musicnn import CHECKPOINTS, load_musicnn
        from reclass_plex.fetched import ALL_THERE_IS

        with device_errors():
            for checkpoint in CHECKPOINTS:
                load_musicnn(checkpoint, self.device)
            for stage in self.spec.stages:
                readout = self._head(stage).card.readout or ALL_THERE_IS
                _guard(stage.features)
                if stage.model is not None:
                    try:
                        self._encoders.load(stage.model, readout)
                    except ModelError as error:
                        self._leave_out(stage.name, str(error))
            if self._texts and TEXT_STAGE not in self._lost:
                try:
                    self._encoders.load(TEXT_MODEL, ALL_THERE_IS)
                except ModelError as error:
                    self._leave_out(TEXT_STAGE, str(error))

    def classify(self, waveform: Waveform) -> tuple[Verdict, tuple[Embedding, ...]]:
        """Let the stages vote on an excerpt until they are sure enough.

        Thread-safe; on the CPU each thread computes on one core, so run as many as there are cores.
        Raises DeviceError when the GPU fails, ModelError if no stage is left.
        """
        from reclass_plex import moods
        from reclass_plex.device import device_errors
        from reclass_plex.listening import Listening

        _compute_on_one_core()
        started = time.perf_counter()
        with device_errors():
            listening = Listening(waveform, self._encoders, self.device)
            verdict = self._listen(waveform, listening, self.spec)
            heard = moods.hear(listening.msd, verdict.genres, verdict.unsure)
        seconds = time.perf_counter() - started
        verdict = replace(verdict, moods=heard.moods, styles=heard.styles, seconds=seconds)
        return verdict, listening.embeddings()

    def _listen(self, waveform: Waveform, listening: Listening, spec: EnsembleSpec) -> Verdict:
        import numpy as np

        from reclass_plex import evidence

        genres = spec.genres
        votes: list[Vote] = []
        heard: list[npt.NDArray[np.float64]] = []
        pooled = np.full(len(genres), 1 / len(genres))
        unfit = unsure = _unfit(waveform)
        if not unfit and not any(_guard(stage.features) for stage in spec.stages):
            unsure = _music_guard().judge(listening.musicnn(GUARD, GUARD_WINDOWS))
        for stage in () if unfit else spec.stages:
            started = time.perf_counter()
            head = self._head(stage)
            try:
                features = listening.features(stage, head)
            except ModelError as error:
                if stage.model is None or len(spec.stages) == 1:
                    raise
                self._warn_once(stage.name, error)
                return self._listen(waveform, listening, spec.without([stage.name]))
            vote = evidence.pool_windows(head.predict(features), stage.sharpness)
            heard.append(evidence.align(vote, head.card.genres, genres, stage.strangers))
            pooled = evidence.pool_votes(heard, stage.weights)
            if (guard := _guard(stage.features)) is not None:
                unsure = guard.judge(features)
            votes.append(Vote(stage.name, _rank(heard[-1], genres), time.perf_counter() - started))
            # What does not sound like music may not leave early: later stages hear more of it.
            wanted = self.options.early_exit_accuracy
            if unsure is None and pooled.max() >= exit_threshold(stage, wanted):
                break
        decided_by = votes[-1].stage if votes else "level"
        if votes and self._texts and TEXT_STAGE not in self._lost:
            pooled, genres = self._hear_texts(pooled, genres, listening, votes)
        ranked = _rank(pooled, genres)
        if unsure is None and ranked[0].confidence - ranked[1].confidence < CLOSE:
            unsure = "too close to call"
        return Verdict(
            taxonomy=spec.taxonomy,
            genres=ranked,
            decided_by=TEXT_STAGE if ranked[0].name in self._texts else decided_by,
            votes=tuple(votes),
            seconds=0.0,
            unsure=unsure,
        )

    def _hear_texts(
        self,
        pooled: npt.NDArray[np.float64],
        genres: tuple[str, ...],
        listening: Listening,
        votes: list[Vote],
    ) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
        """Return the vote on more genres, those that the user named, and add it to `votes`."""
        from reclass_plex.text_genres import widen_vote

        started = time.perf_counter()
        try:
            wide = widen_vote(pooled, genres, self._texts, listening)
        except ModelError as error:
            self._warn_once(TEXT_STAGE, error)
            return pooled, genres
        genres = (*genres, *self._texts)
        votes.append(Vote(TEXT_STAGE, _rank(wide, genres), time.perf_counter() - started))
        return wide, genres

    @property
    def _encoders(self) -> FetchedEncoders:
        from reclass_plex.fetched import ALL_THERE_IS, FetchedEncoders

        with self._lock:
            if self._opened is None:
                needs = [
                    (stage.model, self._head(stage).card.readout or ALL_THERE_IS)
                    for stage in self.spec.stages
                    if stage.model is not None
                ]
                if self._texts:
                    needs.append((TEXT_MODEL, ALL_THERE_IS))
                self._opened = FetchedEncoders(self._models, self.device, needs, self._memory_gib)
            return self._opened

    def _head(self, stage: StageSpec) -> Head:
        return _load_head(self._profile.head_folder(stage.head))

    def _warn_once(self, stage: str, error: ModelError) -> None:
        """Say that a track is heard without a stage; not again for each track, if it goes on."""
        text = f"heard without the stage {stage}: {error}"
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def _leave_out(self, stage: str, why: str) -> None:
        """Do without a stage from now on, or with the profile `cpu` where none is left."""
        log.warning("the stage %s is left out: %s", stage, why)
        self._lost[stage] = why
        if stage != TEXT_STAGE:
            self._profile = self._profile.without(stage)


@cache
def _load_head(folder: Path) -> Head:
    from reclass_plex.heads import load_head

    return load_head(folder)


def _music_guard() -> OpenSet:
    guard = _guard(GUARD)
    assert guard is not None  # noqa: S101 - fitted, and in the package
    return guard


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
