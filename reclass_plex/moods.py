"""Moods and styles of a track, from the tags that MusiCNN's `msd` checkpoint hears in its windows.

A label's score is the mean logit of its tags, over all windows. It is given where that score is
higher than nine in ten pieces of reference music have it; its confidence is the share of them that
have less of it. That is a rank, not a probability of being right: no mood labels exist here to
measure that with. A style is given only where it fits a genre that was heard, see `LabelSpec`.

Only `msd` is asked, because every track is heard by it: `mtt` is reached by few, and labels would
then depend on how early a track was decided. `data/moods.json` holds tags and reference levels;
`reclass_plex.training.moods` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reclass_plex.encoders.musicnn_tags import MSD_TAGS
from reclass_plex.errors import ModelError, printable
from reclass_plex.models import DATA
from reclass_plex.records import GenreScore

if TYPE_CHECKING:
    from torch import Tensor

MOST = 3  # labels of a kind; who is told more than that is told nothing
GENRE_SHARE = 0.5  # of the first genre's probability: a style may belong to a genre from there on
NO_MUSIC = frozenset({"silence", "too short", "speech or noise"})  # verdicts without labels


class LabelSpec(BaseModel):
    """A mood or a style: the MSD tags that speak for it, and how strongly they do elsewhere.

    `levels` are the scores that shares `Vocabulary.shares` of the reference music do not reach.
    `genres` are those that the style belongs to; a mood belongs to any. The rest is for people:
    `expected` is the model's own mean probability of the tags, `held_out` the share of unheard
    music that gets the label when the levels are those of other artists' music, and `heard_in` the
    genres of the reference music that has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    kind: Literal["mood", "style"]
    tags: tuple[str, ...] = Field(min_length=1)
    genres: tuple[str, ...] = ()
    levels: tuple[float, ...]
    expected: float
    held_out: float
    heard_in: dict[str, float]


class Vocabulary(BaseModel):
    """All labels, and how their levels were measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    command: str
    date: str
    clips: int
    shares: tuple[float, ...] = Field(min_length=2)
    labels: tuple[LabelSpec, ...]


class Heard(NamedTuple):
    """A track's moods and styles, the most pronounced first."""

    moods: tuple[GenreScore, ...]
    styles: tuple[GenreScore, ...]


def hear(features: Tensor | None, genres: Sequence[GenreScore], unsure: str | None) -> Heard:
    """Return the moods and styles of a track, at most `MOST` of each.

    `features` (w, 50 or more) are MSD's outputs for its windows, logits first; None if none were
    computed. `genres` are the verdict's, ranked, and `unsure` its reason: what is no music has no
    mood. Raises ModelError where the data file is missing or damaged.
    """
    if features is None or not len(features) or unsure in NO_MUSIC:
        return Heard((), ())
    vocabulary = load_vocabulary()
    logits = features[:, : len(MSD_TAGS)].double().mean(0).cpu().numpy()
    least = GENRE_SHARE * genres[0].confidence if genres else 0.0
    near = {genre.name for genre in genres if genre.confidence >= least}
    found: dict[str, list[GenreScore]] = {"mood": [], "style": []}
    for label in vocabulary.labels:
        score = logits[[MSD_TAGS.index(tag) for tag in label.tags]].mean()
        fits = label.kind == "mood" or not near.isdisjoint(label.genres)
        if fits and score >= label.levels[0]:
            share = np.interp(score, label.levels, vocabulary.shares)
            found[label.kind].append(GenreScore(label.name, round(float(share), 4)))
    return Heard(*(_rank(found[kind]) for kind in ("mood", "style")))


@cache
def load_vocabulary(data: Path = DATA) -> Vocabulary:
    """Read `data/moods.json`. Raises ModelError, naming the file."""
    path = data / "moods.json"
    name = printable(path)
    try:
        vocabulary = Vocabulary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{name}: no moods and styles: {error}; reinstall") from error
    except ValidationError as error:
        raise ModelError(f"{name}: {error.errors()[0]['msg']}") from error
    for label in vocabulary.labels:
        if unknown := set(label.tags) - set(MSD_TAGS):
            raise ModelError(f"{name}: {label.name}: MusiCNN has no tag {sorted(unknown)}")
        rising = all(np.isfinite(label.levels)) and list(label.levels) == sorted(label.levels)
        if len(label.levels) != len(vocabulary.shares) or not rising:
            raise ModelError(f"{name}: {label.name}: needs a rising level for each share")
    return vocabulary


def _rank(labels: list[GenreScore]) -> tuple[GenreScore, ...]:
    """Return the most pronounced, equals in the vocabulary's order."""
    return tuple(sorted(labels, key=lambda label: -label.confidence)[:MOST])
