"""A rolling genre: what is playing now, from a stream that has no end.

    stream -> 3 s of audio, every second -> MusiCNN -> head -> pooled over the last seconds

Every `HOP_SECONDS` MusiCNN hears the last 3 s. Its genres are pooled as those of a track are (the
mean of their logarithms), but with weights that fade: what is `window` seconds old counts 1/e. Two
pools, a quick and a slow one, tell when the music changes; then the slow one begins anew. Silence
and speech are unsure and are not pooled. Memory is bounded by the last 3 s, however long it runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reclass_plex.errors import StreamError, StreamLost
from reclass_plex.profiles import StageSpec, find_profile
from reclass_plex.records import FloatArray, GenreScore

if TYPE_CHECKING:
    import torch

    from reclass_plex.evidence import OpenSet
    from reclass_plex.heads import Head

RATE = 16_000  # Hz, MusiCNN's
PATCH_SAMPLES = 47_872  # what one of its windows hears: 187 frames of 256 samples, 2.992 s
HOP_SECONDS = 1.0
WINDOW_SECONDS = 15.0  # after so long a window counts 1/e
QUICK_SECONDS = 3.0  # the same of the quick pool
GUARD_WINDOWS = 4  # windows that tell music from speech together
CHANGE = 0.35  # distance of the pools, 0 to 1, from which on the music is another,
CHANGE_HOPS = 2  # if it lasts so long
SETTLED_HOPS = 5  # windows before a change can be told
SILENT_HOPS = 2  # of silence, after which what comes is another piece
LEAST = 0.001  # probability; see ensemble.LEAST
FEATURES = "musicnn-msd"
BEHIND_SECONDS = 1.0  # of audio that waits: then windows are left out until it is caught up with
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a lost stream is asked for again
GIVE_UP = 5  # attempts in a row, of a stream that never gave any audio
SOUND_SECONDS = 10.0  # of audio, after which the next loss is the first again

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LiveResult:
    """What plays now. `at` counts seconds of audio since the start.

    `genres` are ranked; empty where nothing was heard yet. `unsure` is None or why no genre counts
    now. `changed`: another piece begins here. `title` is what the station says.
    """

    at: float
    genres: tuple[GenreScore, ...]
    unsure: str | None
    changed: bool
    title: str | None = None


@dataclass(frozen=True)
class LiveNotice:
    """What happens to the stream itself: it was lost, and is asked for again."""

    at: float
    text: str


class RollingGenre:
    """The pools. `add` takes the features of one window after another."""

    def __init__(
        self,
        predict: Callable[[torch.Tensor], Probabilities],
        judge: Callable[[torch.Tensor], str | None],
        genres: tuple[str, ...],
        sharpness: float,
        *,
        window: float = WINDOW_SECONDS,
        hop: float = HOP_SECONDS,
    ) -> None:
        """`predict` maps (1, d) to probabilities (k,) of `genres`, `judge` (n, d) to why not."""
        self._predict = predict
        self._judge = judge
        self._genres = genres
        self._sharpness = sharpness
        self._slow = _Pool(len(genres), math.exp(-hop / window))
        self._quick = _Pool(len(genres), math.exp(-hop / min(window, QUICK_SECONDS)))
        self._recent: deque[torch.Tensor] = deque(maxlen=GUARD_WINDOWS)
        self._apart = 0  # windows in a row in which the pools were apart
        self._silent = 0

    def add(self, features: torch.Tensor | None) -> tuple[tuple[GenreScore, ...], str | None, bool]:
        """Take (1, d), or None for silence; return genres, why they do not count, and a change."""
        import torch

        if features is None:
            self._silent += 1
            self._recent.clear()
            return self._ranked(), "silence", False
        changed = self._silent >= SILENT_HOPS and self._slow.weight > 0
        self._silent = 0
        if changed:
            self.begin_anew()
        self._recent.append(features)
        unsure = self._judge(torch.cat(list(self._recent)))
        if unsure is not None:
            return self._ranked(), unsure, changed
        heard = np.log(np.maximum(self._predict(features), 1e-12))
        self._slow.add(heard)
        self._quick.add(heard)
        if self._slow.count >= SETTLED_HOPS:
            apart = _distance(self._pooled(self._slow), self._pooled(self._quick))
            self._apart = self._apart + 1 if apart >= CHANGE else 0
            if self._apart >= CHANGE_HOPS:
                self._slow.take(self._quick)
                self._apart = 0
                changed = True
        return self._ranked(), None, changed

    def begin_anew(self) -> None:
        """Forget what was heard: another piece begins."""
        self._slow.clear()
        self._quick.clear()
        self._recent.clear()
        self._apart = 0

    def _pooled(self, pool: _Pool) -> Probabilities:
        several = 1 - 1 / max(1.0, pool.weight)  # a window alone deserves no more trust than that
        logs = pool.mean() * (1 + (self._sharpness - 1) * several)
        odds = np.exp(logs - logs.max())
        pooled: Probabilities = odds / odds.sum()
        return pooled

    def _ranked(self) -> tuple[GenreScore, ...]:
        if not self._slow.weight:
            return ()
        pooled = self._pooled(self._slow)
        order = (-pooled).argsort(kind="stable")
        heard = [index for index in order if pooled[index] >= LEAST]
        return tuple(GenreScore(self._genres[index], float(pooled[index])) for index in heard)


class _Pool:
    """A mean of logarithms whose weights fade."""

    def __init__(self, size: int, fade: float) -> None:
        self._fade = fade
        self._sum = np.zeros(size)
        self.weight = 0.0
        self.count = 0  # since it began

    def add(self, logs: npt.NDArray[np.float64]) -> None:
        self._sum = self._fade * self._sum + logs
        self.weight = self._fade * self.weight + 1
        self.count += 1

    def mean(self) -> npt.NDArray[np.float64]:
        return self._sum / self.weight

    def take(self, other: _Pool) -> None:
        self._sum, self.weight, self.count = other._sum.copy(), other.weight, 1

    def clear(self) -> None:
        self._sum[:] = 0
        self.weight, self.count = 0.0, 0


def _distance(one: Probabilities, other: Probabilities) -> float:
    """Return the Jensen-Shannon distance of two distributions, 0 (equal) to 1 (disjoint)."""
    middle = (one + other) / 2
    parts = [
        float((p * np.log2(np.maximum(p, 1e-12) / np.maximum(middle, 1e-12))).sum())
        for p in (one, other)
    ]
    return math.sqrt(max(0.0, sum(parts) / 2))


class LiveEars:
    """What hears one window: MusiCNN's MSD checkpoint and the head of the quickest stage on it."""

    def __init__(self, taxonomy: str = "default") -> None:
        """Find the models, which are in the package. Raises ModelError."""
        self._profile = find_profile(taxonomy, "cpu", None)

    def rolling(self, window: float) -> RollingGenre:
        """Return empty pools for these ears."""
        from reclass_plex import evidence

        stage, head, guard = self._stage, self._head, self._guard
        genres = self._profile.spec.genres

        def predict(features: torch.Tensor) -> Probabilities:
            vote = evidence.pool_windows(head.predict(features), 1.0)
            return evidence.align(vote, head.card.genres, genres, stage.strangers)

        return RollingGenre(predict, guard.judge, genres, stage.sharpness, window=window)

    def hear(self, samples: FloatArray) -> torch.Tensor | None:
        """Return what is heard in `PATCH_SAMPLES` at `RATE`: (1, 250), None if that is silence."""
        import torch

        from reclass_plex.encoders.musicnn import load_musicnn, log_mel_patches
        from reclass_plex.evidence import is_silent

        if is_silent(samples, RATE):
            return None
        patches = log_mel_patches(torch.from_numpy(samples), count=1)
        return load_musicnn("msd").encode(patches).features

    @cached_property
    def _stage(self) -> StageSpec:
        return next(one for one in self._profile.spec.stages if one.features == FEATURES)

    @cached_property
    def _head(self) -> Head:
        from reclass_plex.stage_heads import load_stage_heads

        return load_stage_heads(self._profile)[0][self._stage.name]

    @cached_property
    def _guard(self) -> OpenSet:
        from reclass_plex.evidence import load_open_set

        return load_open_set(FEATURES)


def listen(
    address: str,
    *,
    window: float = WINDOW_SECONDS,
    taxonomy: str = "default",
    seconds: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[LiveResult | LiveNotice]:
    """Yield what plays, once a second of audio, until it ends, `seconds` of it, or a stop.

    `address` is what `audio_stream.parse_source` takes. A live stream that breaks off is asked for
    again, ever more rarely. Raises StreamError where that is of no use.
    """
    import torch

    from reclass_plex.audio_stream import AudioStream, parse_source, wait
    from reclass_plex.http_stream import Stopped

    torch.set_num_threads(1)
    source = parse_source(address)
    ears = LiveEars(taxonomy)
    rolling = ears.rolling(window)
    ears.hear(np.zeros(PATCH_SAMPLES, np.float32) + np.float32(0.01))  # loads the models now
    tape = _Tape()
    attempts, title = 0, None
    while True:
        begun = tape.at
        try:
            with AudioStream(source, RATE, should_stop) as stream:
                for block in stream:
                    for samples in tape.add(block):
                        if stream.seconds_behind() > BEHIND_SECONDS:
                            continue
                        another = title not in {None, stream.title}
                        title = stream.title
                        if another:
                            rolling.begin_anew()
                        genres, unsure, changed = rolling.add(ears.hear(samples))
                        yield LiveResult(tape.at, genres, unsure, changed or another, title)
                        if seconds is not None and tape.at >= seconds:
                            return
            if not source.is_live:
                return
            why = "the station ended the stream"
        except Stopped:
            return
        except StreamLost as error:
            why = str(error)
        except StreamError as error:
            if not tape.at:
                raise
            why = str(error)  # it played once: the station may be changing something
        attempts = 0 if tape.at - begun >= SOUND_SECONDS else attempts + 1
        if not tape.at and attempts >= GIVE_UP:
            raise StreamError(f"{why}; given up after {attempts} attempts")
        pause = min(FIRST_PAUSE * 2.0 ** max(0, attempts - 1), LONGEST_PAUSE)
        yield LiveNotice(tape.at, f"{why}; asked for again in {pause:g} s")
        try:
            wait(pause, should_stop)
        except Stopped:
            return
        tape.cut()


class _Tape:
    """The last 3 s of audio, handed out every hop."""

    def __init__(self) -> None:
        self._kept = np.zeros(0, np.float32)
        self._new = 0  # samples since they were handed out
        self._total = 0

    @property
    def at(self) -> float:
        """Seconds of audio so far."""
        return self._total / RATE

    def add(self, block: FloatArray) -> Iterator[FloatArray]:
        """Take a block; yield the last 3 s (`PATCH_SAMPLES`,) each time that a hop is full."""
        hop = round(HOP_SECONDS * RATE)
        while len(block):
            part = block[: hop - self._new]
            block = block[len(part) :]
            self._kept = np.concatenate([self._kept, part])[-PATCH_SAMPLES:]
            self._new += len(part)
            self._total += len(part)
            if self._new >= hop:
                self._new = 0
                if len(self._kept) == PATCH_SAMPLES:
                    yield self._kept

    def cut(self) -> None:
        """Forget the audio: what comes does not join it."""
        self._kept = np.zeros(0, np.float32)
        self._new = 0
