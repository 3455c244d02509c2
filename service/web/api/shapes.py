"""What the API answers with. A path that is no UTF-8 has \\udcXX escapes in JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from reclass_plex.browse import AlbumRow, TrackDetail, TrackRow
from reclass_plex.browse_history import ChangeRow, PlexEditRow, RunRow
from reclass_plex.jobs import Job, State
from reclass_plex.records import GenreScore, Verdict


class Shape(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)


class Score(Shape):
    """A genre, mood or style and its confidence, 0 to 1."""

    name: str
    confidence: float


class Counted(Shape):
    """How many have something."""

    name: str
    count: int


class Track(Shape):
    """A track. `tags` are the genres in the file, `genres` what was heard, ranked."""

    id: int
    path: str
    name: str
    album: str | None
    album_id: str | None
    tags: tuple[str, ...]
    genres: tuple[Score, ...]
    confidence: float | None
    decided_by: str | None
    unsure: str | None
    heard: float | None
    written: tuple[str, ...] | None
    undone: bool
    error_kind: str | None
    error_message: str | None
    state: State | None
    message: str | None


class VoteShape(Shape):
    """What one stage said, and the seconds it took."""

    stage: str
    seconds: float
    genres: tuple[Score, ...]


class VerdictShape(Shape):
    """What was heard in a track. `models` names those that heard it."""

    taxonomy: str
    models: str
    genres: tuple[Score, ...]
    unsure: str | None
    decided_by: str
    seconds: float
    votes: tuple[VoteShape, ...]
    moods: tuple[Score, ...]
    styles: tuple[Score, ...]


class JobShape(Shape):
    """A place in the queue. `reasons` are what asked for it, `message` why it is where it is."""

    id: int
    path: str
    state: State
    reasons: tuple[str, ...]
    bulk: bool
    due: float
    attempts: int
    deaths: int
    message: str | None
    changed: float


class Change(Shape):
    """A file that was changed in a run. `exact`: its former bytes can be restored."""

    id: int
    run_id: int
    track_id: int
    path: str
    state: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    moods: tuple[str, ...] | None
    created: float
    exact: bool


class PlexEditShape(Shape):
    """An item that was changed in Plex. `path` is null for an album or artist."""

    id: int
    run_id: int | None
    kind: str
    field: str
    rating_key: int
    path: str | None
    state: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    created: float


class Run(Shape):
    """Changes that can be undone together, and how many of them stand."""

    id: int
    command: str
    started: float
    finished: float | None
    done: int
    undone: int
    pending: int
    plex_done: int
    plex_undone: int


class DecisionShape(Shape):
    """What a person said of a recording. `previous` is what the models had said."""

    id: int
    genres: tuple[str, ...]
    kind: str
    previous: str | None
    created: float
    by: str | None
    run_id: int
    state: str


class TrackWhole(Shape):
    """All that is known of a track. `copies` have the same audio; lists are newest first."""

    track: Track
    digest: str | None
    size: int
    mtime_ns: int
    moods: tuple[str, ...]
    verdict: VerdictShape | None
    job: JobShape | None
    copies: tuple[str, ...]
    changes: tuple[Change, ...]
    plex_edits: tuple[PlexEditShape, ...]
    decisions: tuple[DecisionShape, ...]


class Album(Shape):
    """An album. `confidence` is the least sure track's, `genres` what was heard in its tracks."""

    id: str
    folder: str
    title: str
    tracks: int
    heard: int
    unsure: int
    written: int
    failed: int
    confidence: float | None
    genres: tuple[Counted, ...]


class AlbumWhole(Shape):
    """An album and its tracks."""

    album: Album
    tracks: tuple[Track, ...]


class TrackPage(Shape):
    """A page; `next` is the cursor of the following one, null if this is the last."""

    rows: tuple[Track, ...]
    next: str | None


class AlbumPage(Shape):
    """A page."""

    rows: tuple[Album, ...]
    next: str | None


class JobPage(Shape):
    """A page."""

    rows: tuple[JobShape, ...]
    next: str | None


class RunPage(Shape):
    """A page."""

    rows: tuple[Run, ...]
    next: str | None


class ChangePage(Shape):
    """A page."""

    rows: tuple[Change, ...]
    next: str | None


class PlexEditPage(Shape):
    """A page."""

    rows: tuple[PlexEditShape, ...]
    next: str | None


def scores(genres: tuple[GenreScore, ...]) -> tuple[Score, ...]:
    """Return scores as shown."""
    return tuple(Score(name=one.name, confidence=one.confidence) for one in genres)


def track(row: TrackRow) -> Track:
    """Return a track as shown."""
    plain = {**vars(row), "path": os.fspath(row.path), "genres": scores(row.genres)}
    return Track(**plain, name=row.name, confidence=row.confidence)


def verdict(found: Verdict, models: str) -> VerdictShape:
    """Return a verdict as shown."""
    votes = tuple(
        VoteShape(stage=vote.stage, seconds=vote.seconds, genres=scores(vote.genres))
        for vote in found.votes
    )
    return VerdictShape(
        taxonomy=found.taxonomy,
        models=models,
        genres=scores(found.genres),
        unsure=found.unsure,
        decided_by=found.decided_by,
        seconds=found.seconds,
        votes=votes,
        moods=scores(found.moods),
        styles=scores(found.styles),
    )


def job(found: Job) -> JobShape:
    """Return a job as shown."""
    return JobShape(**_plain(found, JobShape))


def change(row: ChangeRow) -> Change:
    """Return a change as shown."""
    return Change(**_plain(row, Change))


def plex_edit(row: PlexEditRow) -> PlexEditShape:
    """Return an edit in Plex as shown."""
    return PlexEditShape(**_plain(row, PlexEditShape))


def run(row: RunRow) -> Run:
    """Return a run as shown."""
    return Run(**vars(row))


def album(row: AlbumRow) -> Album:
    """Return an album as shown."""
    return Album(**asdict(row))


def whole_track(found: TrackDetail, decisions: tuple[DecisionShape, ...]) -> TrackWhole:
    """Return all of a track as shown."""
    heard = found.verdict
    return TrackWhole(
        track=track(found.row),
        digest=found.digest,
        size=found.size,
        mtime_ns=found.mtime_ns,
        moods=found.moods,
        verdict=None if heard is None else verdict(heard, found.models or ""),
        job=None if found.job is None else job(found.job),
        copies=tuple(os.fspath(path) for path in found.copies),
        changes=tuple(map(change, found.changes)),
        plex_edits=tuple(map(plex_edit, found.plex_edits)),
        decisions=decisions,
    )


def _plain(row: object, shape: type[Shape]) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in shape.model_fields}
    return values | {"path": None if values["path"] is None else os.fspath(values["path"])}
