"""Tracks and albums: searched, read, exported; what sounds alike; figures of all of them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path as FilePath
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from reclass_plex import browse
from reclass_plex.browse import Sort, TrackFilter, TrackRow
from reclass_plex.browse_statistics import facets, statistics
from reclass_plex.decided import Decisions
from reclass_plex.errors import NotHeard, printable
from reclass_plex.jobs import State
from reclass_plex.similarity import Wish
from reclass_plex.store import Store
from service.web.api import shapes
from service.web.api.context import Api, Cursor, Id, Limit, not_found
from service.web.api.shapes import Counted, Score, Shape
from service.web.problems import Json

_EXPORT_PAGE = 500
_COLUMNS = (
    *("id", "path", "album", "tags", "genres", "confidence", "decided_by", "unsure"),
    *("written", "state", "error"),
)
AlbumId = Annotated[str, Path(max_length=16_384, pattern=r"^[A-Za-z0-9_-]+$")]
Confidence = Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)]
Words = Annotated[str | None, Query(max_length=1000)]


class Matches(Shape):
    """How many tracks are meant; `more`: there are more than that."""

    count: int
    more: bool


class Similar(Shape):
    """A recording that sounds alike. `similarity` is -1 to 1."""

    path: str
    similarity: float
    genres: tuple[str, ...]
    album: str | None
    heard: Score | None


class SimilarList(Shape):
    """What sounds most alike, the most similar first."""

    rows: tuple[Similar, ...]


class GenreShape(Shape):
    """A genre that verdicts put first, and how surely in the mean."""

    name: str
    count: int
    confidence: float


class AgreementShape(Shape):
    """Of the tracks that came with this genre, how many verdicts put the same first."""

    genre: str
    compared: int
    agreed: int


class StatisticsShape(Shape):
    """Figures of all tracks. `confidence` counts verdicts in 20 steps from 0 to 1."""

    tracks: int
    heard: int
    written: int
    genres: tuple[GenreShape, ...]
    confidence: tuple[int, ...]
    stages: tuple[Counted, ...]
    unsure: tuple[Counted, ...]
    errors: tuple[Counted, ...]
    states: tuple[Counted, ...]
    failures: int
    agreement: tuple[AgreementShape, ...]


class FacetsShape(Shape):
    """By what tracks can be narrowed, and how many each choice has."""

    genres: tuple[Counted, ...]
    stages: tuple[Counted, ...]
    states: tuple[Counted, ...]
    unsure: tuple[Counted, ...]
    errors: tuple[Counted, ...]


def _filter(
    text: Annotated[Words, Query(description="words that must all occur in path or album")] = None,
    genre: Annotated[Words, Query(description="heard first")] = None,
    tag: Annotated[Words, Query(description="in the file")] = None,
    stage: Annotated[Words, Query(description="that decided")] = None,
    album: Annotated[str | None, Query(max_length=16_384, description="an album's id")] = None,
    folder: Annotated[str | None, Query(max_length=4096)] = None,
    min_confidence: Confidence = None,
    max_confidence: Confidence = None,
    unsure: bool | None = None,
    error: bool | None = None,
    error_kind: Words = None,
    state: State | None = None,
    written: bool | None = None,
    heard: bool | None = None,
) -> TrackFilter:
    return TrackFilter(
        text=text,
        genre=genre,
        tag=tag,
        stage=stage,
        album=album,
        folder=None if folder is None else FilePath(folder),
        min_confidence=min_confidence,
        max_confidence=max_confidence,
        unsure=unsure,
        error=error,
        error_kind=error_kind,
        state=state,
        written=written,
        heard=heard,
    )


Wanted = Annotated[TrackFilter, Depends(_filter)]


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/v1", redirect_slashes=False, tags=["library"])
    store = api.store

    @routes.get("/tracks", response_model=shapes.TrackPage)
    def list_tracks(
        wanted: Wanted, sort: Sort = "path", cursor: Cursor = None, limit: Limit = 50
    ) -> Response:
        """List tracks: filtered, sorted, in pages."""
        page = browse.list_tracks(store, wanted, sort=sort, cursor=cursor, limit=limit)
        return Json(shapes.TrackPage(rows=tuple(map(shapes.track, page.rows)), next=page.next))

    @routes.get("/tracks/count", response_model=Matches)
    def count_tracks(wanted: Wanted) -> Response:
        """Count tracks, up to 10,000."""
        count = browse.count_tracks(store, wanted, at_most=10_001)
        return Json(Matches(count=min(count, 10_000), more=count > 10_000))

    @routes.get(
        "/tracks/export",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {
                    "text/csv": {"schema": {"type": "string"}},
                    "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
                }
            }
        },
    )
    def export_tracks(
        wanted: Wanted,
        form: Annotated[Literal["csv", "json"], Query(alias="format")] = "csv",
    ) -> Response:
        """Return all that are meant, however many: CSV with a head line, or a JSON array."""
        rows = _every(api, wanted)
        lines = _csv_lines(rows) if form == "csv" else _json_lines(rows)
        return StreamingResponse(
            lines,
            media_type="text/csv; charset=utf-8" if form == "csv" else "application/json",
            headers={"Content-Disposition": f'attachment; filename="tracks.{form}"'},
        )

    @routes.get("/tracks/{track_id}", response_model=shapes.TrackWhole)
    def show_track(track_id: Id) -> Response:
        """Return all of a track: every stage's vote, moods, history, job."""
        found = browse.find_track(store, track_id)
        if found is None:
            raise not_found("track")
        said = Decisions(store).of_digest(found.digest) if found.digest else []
        names = shapes.DecisionShape.model_fields
        decided = tuple(
            shapes.DecisionShape(**{name: getattr(one, name) for name in names}) for one in said
        )
        return Json(shapes.whole_track(found, decided))

    @routes.get("/tracks/{track_id}/verdict", response_model=shapes.VerdictShape)
    def show_verdict(track_id: Id) -> Response:
        """Return what was heard in a track, with the vote of every stage."""
        found = browse.find_track(store, track_id)
        if found is None or found.verdict is None:
            raise not_found("verdict")
        return Json(shapes.verdict(found.verdict, found.models or ""))

    @routes.get("/tracks/{track_id}/similar", response_model=SimilarList)
    def list_similar(
        track_id: Id,
        count: Annotated[int, Query(ge=1, le=200)] = 20,
        genre: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006 - FastAPI copies it
        other_albums: bool = False,
        per_album: Annotated[int | None, Query(ge=1, le=100)] = None,
    ) -> Response:
        """Return the tracks that sound most alike."""
        found = browse.find_track(store, track_id)
        if found is None or found.digest is None:
            raise not_found("track")
        wish = Wish(genres=tuple(genre), other_albums=other_albums, per_album=per_album)
        try:
            near = api.actions.alike.music.near(found.digest, count, wish)
        except NotHeard as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from None
        rows = tuple(
            Similar(
                path=os.fspath(one.path),
                similarity=one.similarity,
                genres=one.genres,
                album=None if one.album is None else one.album.rpartition("\n")[2],
                heard=None if one.heard is None else shapes.scores((one.heard,))[0],
            )
            for one in near
        )
        return Json(SimilarList(rows=rows))

    _add_albums(routes, store)
    return routes


def _add_albums(routes: APIRouter, store: Store) -> None:
    @routes.get("/albums", response_model=shapes.AlbumPage)
    def list_albums(
        text: Words = None, genre: Words = None, cursor: Cursor = None, limit: Limit = 50
    ) -> Response:
        """List albums by folder."""
        page = browse.list_albums(store, text=text, genre=genre, cursor=cursor, limit=limit)
        return Json(shapes.AlbumPage(rows=tuple(map(shapes.album, page.rows)), next=page.next))

    @routes.get("/albums/{album_id}", response_model=shapes.AlbumWhole)
    def show_album(album_id: AlbumId) -> Response:
        """Return an album and its tracks."""
        found = browse.find_album(store, album_id)
        if found is None:
            raise not_found("album")
        tracks = tuple(map(shapes.track, found.tracks))
        return Json(shapes.AlbumWhole(album=shapes.album(found.row), tracks=tracks))

    @routes.get("/facets", response_model=FacetsShape)
    def show_facets() -> Response:
        """Say by what tracks can be narrowed."""
        return Json(FacetsShape(**asdict(facets(store))))

    @routes.get("/statistics", response_model=StatisticsShape)
    def show_statistics() -> Response:
        """Return figures of the whole library."""
        return Json(StatisticsShape(**asdict(statistics(store))))


def _every(api: Api, wanted: TrackFilter) -> Iterator[TrackRow]:
    cursor = None
    while True:
        page = browse.list_tracks(api.store, wanted, sort="id", cursor=cursor, limit=_EXPORT_PAGE)
        yield from page.rows
        cursor = page.next
        if cursor is None:
            return


def _csv_lines(rows: Iterator[TrackRow]) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for number, row in enumerate(rows, 1):
        writer.writerow(
            [
                *(row.id, _cell(printable(row.path)), _cell(row.album or "")),
                *(_cell("; ".join(row.tags)), _cell("; ".join(one.name for one in row.genres[:1]))),
                "" if row.confidence is None else f"{row.confidence:.4f}",
                *(row.decided_by or "", row.unsure or "", _cell("; ".join(row.written or ()))),
                *(row.state or "", row.error_kind or ""),
            ]
        )
        if number % 100 == 0:
            yield text.getvalue().encode("utf-8", "replace")
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode("utf-8", "replace")


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _json_lines(rows: Iterator[TrackRow]) -> Iterator[bytes]:
    opening = b"["
    for row in rows:
        yield opening + json.dumps(shapes.track(row).model_dump(mode="json")).encode("ascii")
        opening = b",\n"
    yield b"[]" if opening == b"[" else b"]"
