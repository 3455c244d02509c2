"""The progressive ensemble: stages vote, cheapest first, until they are sure enough.

Which stages there are, their order, weights and thresholds are data (`profiles.EnsembleSpec`),
fitted and calibrated by `reclass_plex.training`. The thresholds follow from how often an early
exit must be right, which the user states. A stage whose model is missing or damaged is left out,
which is said, and the others go on.

Genres that the user taught (`learned_genres`) are heard after the vote by a head of their own: what
it gives them is taken from all other genres alike. So is what CLAP then gives to genres that the
user names by text alone (`text_genres`); it ranks, but nobody has calibrated it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from reclass_plex.config import Config, EnsembleOptions
from reclass_plex.errors import ModelError
from reclass_plex.genres import Taxonomy, genre_key
from reclass_plex.learned_genres import LearnedGenres, find_learned
from reclass_plex.models import why_missing
from reclass_plex.profiles import EnsembleSpec, exit_threshold, find_profile, model_digest
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
LEARNED_STAGE = "learned"  # for genres that the user taught

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
        self._lock = threading.RLock()
        self._opened: FetchedEncoders | None = None
        self._loaded: dict[str, Head] | None = None  # the profile's, by stage
        self._profile = find_profile(options.taxonomy, options.profile, models)
        self._warned: set[str] = set()
        self._learned: LearnedGenres | None = None
        self._no_learned: str | None = None  # why the user's own genres are not heard
        if options.learned_genres:
            try:
                self._learned = find_learned(models)
            except ModelError as error:
                self._no_learned = str(error)
        self._no_texts: str | None = None  # why nothing is heard from names
        if self._wanted_texts:
            self._no_texts = why_missing(TEXT_MODEL, models)

    @classmethod
    def from_config(cls, config: Config, device: Device = "cpu") -> Ensemble:
        """Return the ensemble that the configuration asks for. Raises ModelError."""
        return cls(config.ensemble, device, config.models.folder, config.worker.memory_gib)

    @property
    def spec(self) -> EnsembleSpec:
        """The stages, without those that are left out."""
        return self._profile.spec

    @property
    def taxonomy(self) -> Taxonomy:
        """The genres that are heard; those that are known by name alone are beyond it."""
        return self._profile.taxonomy

    @property
    def notes(self) -> tuple[str, ...]:
        """What of that which was asked for is left out, why, and what to do about it."""
        notes = self._profile.notes
        if self._no_learned is not None:
            advice = "reclass-plex learn --rollback, or learn again"
            why = f"{self._no_learned}. To mend it: {advice}"
            notes = (*notes, f"stage {LEARNED_STAGE} is left out: {why}")
        if self._no_texts is not None:
            notes = (*notes, f"stage {TEXT_STAGE} is left out: {self._no_texts}")
        return notes

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the models and with what is asked of them."""
        texts = self._texts
        digest = hashlib.blake2b(self._profile.digest.encode(), digest_size=8)
        stages = [stage.name for stage in self.spec.stages]
        if self._learned is not None:
            stages += [LEARNED_STAGE, self._learned.digest]
        if texts:
            stages += [TEXT_STAGE, model_digest(TEXT_MODEL, self._models)]
        # What is asked for and left out changes no verdict.
        heard = {"taxonomy": self.spec.taxonomy, "profile": self._profile.name}
        options = self.options.model_copy(update={**heard, "text_genres": texts})
        asked = options.model_dump_json(exclude={"learned_genres"})
        digest.update(f"{VERSION} {asked} {stages}".encode())
        return digest.hexdigest()

    @property
    def excerpt(self) -> Excerpt:
        """The part of a track that the heads' cards ask for. Raises ModelError."""
        return Excerpt.parse(next(iter(self._heads.values())).card.excerpt)

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
            heads = self._heads
            for stage in self.spec.stages:
                _guard(stage.features)
                if stage.model is not None:
                    card = heads[stage.name].card
                    try:
                        self._encoders.load(stage.model, card.readout or ALL_THERE_IS, card.dims)
                    except ModelError as error:
                        self._leave_out({stage.name: str(error)})
            if self._learned is not None:
                try:
                    self._learned.load()
                except ModelError as error:
                    self._learned, self._no_learned = None, str(error)
            if self._texts:
                try:
                    self._encoders.load(TEXT_MODEL, ALL_THERE_IS)
                except ModelError as error:
                    self._no_texts = str(error)
            assert self._heads  # noqa: S101 - also those of `cpu`, where it took over

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
            heads = self._heads
            listening = Listening(waveform, self._encoders, self.device)
            verdict = self._listen(waveform, listening, self.spec, heads)
            heard = moods.hear(listening.msd, verdict.genres, verdict.unsure)
        seconds = time.perf_counter() - started
        verdict = replace(verdict, moods=heard.moods, styles=heard.styles, seconds=seconds)
        return verdict, listening.embeddings()

    def classify_windows(self, waveform: Waveform) -> tuple[tuple[GenreScore, ...], ...]:
        """Say what is heard window by window, evenly spread over the excerpt, in time's order.

        By the last stage that needs nothing fetched, alone: its probabilities are calibrated for
        the whole excerpt, and for a single window only a hint. Raises DeviceError, ModelError.
        """
        from reclass_plex import evidence
        from reclass_plex.device import device_errors
        from reclass_plex.listening import Listening

        _compute_on_one_core()
        stages = [stage for stage in self.spec.stages if stage.features.startswith("musicnn")]
        if not stages:
            raise ModelError("no stage of this ensemble hears window by window")
        stage = stages[-1]
        with device_errors():
            head = self._heads[stage.name]
            listening = Listening(waveform, self._encoders, self.device)
            rows = head.predict(listening.features(stage, head))
        genres = self.spec.genres
        votes = (
            evidence.pool_windows(rows[at : at + 1], stage.sharpness) for at in range(len(rows))
        )
        return tuple(
            _rank(evidence.align(vote, head.card.genres, genres, stage.strangers), genres)
            for vote in votes
        )

    def _listen(
        self,
        waveform: Waveform,
        listening: Listening,
        spec: EnsembleSpec,
        heads: Mapping[str, Head],
    ) -> Verdict:
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
            head = heads[stage.name]
            try:
                features = listening.features(stage, head)
            except ModelError as error:
                if stage.model is None or len(spec.stages) == 1:
                    raise
                self._warn_once(stage.name, error)
                return self._listen(waveform, listening, spec.without([stage.name]), heads)
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
        if votes and self._learned is not None:
            pooled, genres = self._hear_learned(self._learned, pooled, genres, listening, votes)
        taught = genres[len(spec.genres) :]
        if votes and self._texts:
            pooled, genres = self._hear_texts(pooled, genres, listening, votes)
        ranked = _rank(pooled, genres)
        if votes and ranked[0].name in taught:
            decided_by = LEARNED_STAGE
        elif ranked[0].name in self._texts:
            decided_by = TEXT_STAGE
        if unsure is None and ranked[0].confidence - ranked[1].confidence < CLOSE:
            unsure = "too close to call"
        return Verdict(
            taxonomy=spec.taxonomy,
            genres=ranked,
            decided_by=decided_by,
            votes=tuple(votes),
            seconds=0.0,
            unsure=unsure,
        )

    def _hear_learned(
        self,
        learned: LearnedGenres,
        pooled: npt.NDArray[np.float64],
        genres: tuple[str, ...],
        listening: Listening,
        votes: list[Vote],
    ) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
        """Return the vote on more genres, those that the user taught, and add it to `votes`."""
        from reclass_plex.learned_genres import widen_vote

        started = time.perf_counter()
        further = learned.without(genres)
        try:
            wide = widen_vote(pooled, learned, further, listening)
        except ModelError as error:
            self._warn_once(LEARNED_STAGE, error)
            return pooled, genres
        genres = (*genres, *further)
        votes.append(Vote(LEARNED_STAGE, _rank(wide, genres), time.perf_counter() - started))
        return wide, genres

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
                heads = self._heads
                needs = [
                    (stage.model, heads[stage.name].card.readout or ALL_THERE_IS)
                    for stage in self.spec.stages
                    if stage.model is not None
                ]
                if self._texts:
                    needs.append((TEXT_MODEL, ALL_THERE_IS))
                self._opened = FetchedEncoders(self._models, self.device, needs, self._memory_gib)
            return self._opened

    @property
    def _heads(self) -> dict[str, Head]:
        """The stages' heads; a stage whose head does not fit it is left out."""
        from reclass_plex.stage_heads import load_stage_heads

        with self._lock:
            while self._loaded is None:
                heads, faults = load_stage_heads(self._profile)
                if faults:
                    self._leave_out(faults)
                else:
                    self._loaded = heads
            return self._loaded

    @property
    def _wanted_texts(self) -> tuple[str, ...]:
        """The genres that the user named and the vote does not know, each once."""
        taught = () if self._learned is None else self._learned.names
        heard = (*self.taxonomy.genres, *self.spec.genres, *taught)
        found = {genre_key(genre): "" for genre in heard}
        for name in self.options.text_genres:
            found.setdefault(genre_key(name), name)
        return tuple(filter(None, found.values()))

    @property
    def _texts(self) -> tuple[str, ...]:
        """Those of them that are heard."""
        return self._wanted_texts if self._no_texts is None else ()

    def _warn_once(self, stage: str, error: ModelError) -> None:
        """Say that a track is heard without a stage; not again for each track, if it goes on."""
        text = f"heard without the stage {stage}: {error}"
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def _leave_out(self, faults: Mapping[str, str]) -> None:
        """Do without stages from now on, or with the profile `cpu` where none is left."""
        for stage, why in faults.items():
            log.warning("the stage %s is left out: %s", stage, why)
        with self._lock:
            self._profile = self._profile.without(faults)
            self._loaded = None


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
