"""What one stage hands to the next. Frozen; no behaviour beyond what the fields imply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:  # a run over a known library needs no arrays, and starts faster without them
    import numpy as np
    import numpy.typing as npt

FloatArray: TypeAlias = "npt.NDArray[np.float32]"


@dataclass(frozen=True)
class Excerpt:
    """The part of a track that a model listens to: its middle `seconds`, or all of it (None)."""

    seconds: float | None

    @property
    def name(self) -> str:
        """ "full", or "middle30" for the middle 30 s."""
        return "full" if self.seconds is None else f"middle{self.seconds:g}"

    @classmethod
    def parse(cls, name: str) -> Excerpt:
        """Invert `name`. Raises ValueError for anything else."""
        if name == "full":
            return cls(None)
        if name.startswith("middle"):
            seconds = float(name.removeprefix("middle"))
            if seconds > 0:
                return cls(seconds)
        raise ValueError(f"excerpt {name!r} is neither 'full' nor 'middle' and seconds (middle30)")


@dataclass(frozen=True)
class Waveform:
    """Mono audio: `samples` (n,) float32, nominally in [-1, 1], at `rate` Hz.

    `start` is where the excerpt begins in the track, `track_seconds` how long the track is.
    """

    samples: FloatArray
    rate: int
    start: float
    track_seconds: float

    @property
    def seconds(self) -> float:
        """Length of the excerpt in seconds."""
        return len(self.samples) / self.rate


class GenreScore(NamedTuple):
    """A genre of a taxonomy and its calibrated probability, 0 to 1.

    A tuple, because a known library of 10,000 tracks has 180,000 of them.
    """

    name: str
    confidence: float


@dataclass(frozen=True)
class Vote:
    """What one stage said: its ranked genres, and the seconds it took (features included)."""

    stage: str
    genres: tuple[GenreScore, ...]
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """The ensemble's answer for one track.

    `genres` is ranked, most probable first. `unsure` is None, or why no genre should be
    written ("silence", "too short", "speech or noise", "unlike any known genre", "too close to
    call"). `moods` and `styles` are ranked too; what their confidence means, see
    `reclass_plex.moods`.
    """

    taxonomy: str
    genres: tuple[GenreScore, ...]
    decided_by: str
    votes: tuple[Vote, ...]
    seconds: float
    unsure: str | None = None
    moods: tuple[GenreScore, ...] = ()
    styles: tuple[GenreScore, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """What an encoder heard in a track: `vector` (dims,) float32, the mean over its windows."""

    encoder: str
    vector: FloatArray


@dataclass(frozen=True)
class Track:
    """A file as the policy sees it: what it says now and what happened to it before.

    `album` groups tracks that should agree (folder and album tag). `written` is the genre that
    we wrote last (None: never), `added` what of it had not been there before, `undone` whether the
    user took our last write back. `moods` and `moods_written` are the same of its moods. `decided`
    are the genres that a person decided on (None: nobody did).
    """

    path: Path
    genres: tuple[str, ...]
    album: str | None = None
    written: tuple[str, ...] | None = None
    added: tuple[str, ...] = ()
    undone: bool = False
    moods: tuple[str, ...] = ()
    moods_written: tuple[str, ...] | None = None
    decided: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TagPlan:
    """What should happen to one file, and why. Nothing is to be written if `after` is None.

    `moods` are to be written besides (None: the file's moods stay); then `after` is never None,
    but `before` where the genre stays. `undecided`: the track has no genre and none was heard
    surely enough, so that a person may want to decide. `decided`: a person did.
    `plex_moods` and `plex_styles` are what Plex shall show of it.
    """

    path: Path
    before: tuple[str, ...]
    after: tuple[str, ...] | None
    confidence: float
    reason: str
    undecided: bool = False
    moods: tuple[str, ...] | None = None
    plex_moods: tuple[GenreScore, ...] = ()
    plex_styles: tuple[GenreScore, ...] = ()
    decided: bool = False
