"""One track: what it says, what each stage heard, how it sounds, what was done to it, and undo."""

from __future__ import annotations

import json
import pathlib
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex import browse
from reclass_plex.errors import ConfigError, NotHeard
from reclass_plex.remote import MAX_ID, UndoRequest
from reclass_plex.selection import Selection
from reclass_plex.similarity import Wish
from service.web.pages.deciding import decide, known_genres, names_in, wait_for
from service.web.pages.rendering import Context, go_to, is_htmx
from service.web.playlist import as_m3u, files_like
from service.web.texts import text
from service.web.track_media import MEDIA_TYPES, FileAnswer, Kind, TrackMedia

SIMILAR = 8
IN_PLAYLIST = 20  # besides the track itself
_LINES = 5  # genres drawn over time
_SAID = {"corrected", "accepted", "undone", "reclassified", "kept", "playlist", "writing"}

TrackId = Annotated[int, Path(ge=1, le=MAX_ID)]


def add_routes(router: APIRouter, context: Context, media: TrackMedia) -> None:
    """Add the page, and what it shows of a track's audio."""
    music = context.control.actions.alike.music

    def find(track_id: int) -> browse.TrackDetail:
        track = browse.find_track(context.store, track_id)
        if track is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return track

    def like(track_id: int) -> tuple[pathlib.Path, ...]:
        try:
            return files_like(music, find(track_id), IN_PLAYLIST)
        except NotHeard:
            raise ConfigError(text("track.similar.unheard")) from None

    @router.get("/tracks/{track_id}")
    def show(
        request: Request, track_id: TrackId, said: str = "", over_time: bool = False
    ) -> Response:
        track = find(track_id)
        values: dict[str, object] = {
            "current": "library",
            "track": track,
            "row": track.row,
            "genres": known_genres(context.control),
            "plays": MEDIA_TYPES.get(track.row.path.suffix.lower()),
            "over_time": _over_time(media, track) if over_time else None,
            "said": text(f"track.said.{said}") if said in _SAID else "",
        }
        return context.page(request, "track.html", values)

    @router.get("/tracks/{track_id}/similar")
    def similar(request: Request, track_id: TrackId) -> Response:
        track = find(track_id)
        near: list[tuple[int | None, Any]] = []
        message = ""
        try:
            wish = Wish(per_album=1)
            for one in music.near(track.digest or "", SIMILAR, wish):
                near.append((browse.find_track_id(context.store, one.path), one))
        except NotHeard:
            message = text("track.similar.unheard")
        values = {"near": near, "message": message, "row": track.row}
        return context.page(request, "track_similar.html", values)

    @router.get("/tracks/{track_id}/similar.m3u8")
    def download(track_id: TrackId) -> Response:
        return as_m3u(like(track_id))

    @router.post("/tracks/{track_id}/playlist")
    def playlist(
        track_id: TrackId,
        name: Annotated[str, Form(max_length=200)] = "",
        replace: Annotated[bool, Form()] = False,
    ) -> Response:
        alike = context.control.actions.alike
        operation = alike.playlist(name, like(track_id), replace=replace)
        ended = wait_for(context.control, operation)
        if ended.state == "failed":
            raise ConfigError(ended.message or "")
        said = "playlist" if ended.state == "done" else "writing"
        return go_to(f"/tracks/{track_id}?said={said}")

    @router.get("/tracks/{track_id}/over-time")
    def over_time(request: Request, track_id: TrackId) -> Response:
        if not is_htmx(request):
            return go_to(f"/tracks/{track_id}?over_time=true")
        return context.page(
            request, "track_over_time.html", {"over_time": _over_time(media, find(track_id))}
        )

    @router.get("/tracks/{track_id}/spectrogram.png")
    def spectrogram(request: Request, track_id: TrackId) -> Response:
        return _drawn(request, media, find(track_id), "spectrogram", "image/png")

    @router.get("/tracks/{track_id}/excerpt.wav")
    def excerpt(request: Request, track_id: TrackId) -> Response:
        return _drawn(request, media, find(track_id), "excerpt", "audio/wav")

    @router.api_route("/tracks/{track_id}/audio", methods=["GET", "HEAD"])
    def audio(request: Request, track_id: TrackId) -> Response:
        path = find(track_id).row.path
        media_type = MEDIA_TYPES.get(path.suffix.lower())
        if media_type is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return FileAnswer(request, media.open(path), media_type)

    @router.post("/tracks/{track_id}/decide")
    def decide_it(
        track_id: TrackId,
        kind: Annotated[str, Form()] = "correct",
        genre: Annotated[str, Form(max_length=700)] = "",
        other: Annotated[str, Form(max_length=700)] = "",
        album: Annotated[bool, Form()] = False,
    ) -> Response:
        names = names_in(other.strip() or genre) if kind == "correct" else ()
        decide(context.control, [track_id], names, albums=album)
        return go_to(f"/tracks/{track_id}?said={'corrected' if names else 'accepted'}")

    @router.post("/tracks/{track_id}/undo")
    def undo(track_id: TrackId) -> Response:
        operation = context.control.actions.undo(UndoRequest(track_ids=(track_id,)))
        ended = wait_for(context.control, operation)
        kept = ended.state == "failed" or ended.failed
        return go_to(f"/tracks/{track_id}?said={'kept' if kept else 'undone'}")

    @router.post("/tracks/{track_id}/reclassify")
    def reclassify(track_id: TrackId) -> Response:
        path = find(track_id).row.path
        context.control.reclassify(Selection(paths=(path,)), False)
        return go_to(f"/tracks/{track_id}?said=reclassified")


def _drawn(
    request: Request, media: TrackMedia, track: browse.TrackDetail, kind: Kind, media_type: str
) -> Response:
    etag = f'"{kind}-{track.size:x}-{track.mtime_ns:x}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=600"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(media.draw(track.row.path, kind), media_type=media_type, headers=headers)


def _over_time(media: TrackMedia, track: browse.TrackDetail) -> dict[str, Any]:
    """Return what is drawn over time: the greatest genres, a value from 0 to 1 a window each."""
    found = json.loads(media.draw(track.row.path, "windows"))
    windows = [dict(one) for one in found["windows"]]  # what is hardly there is left out
    names = {name for one in windows for name in one}
    most = sorted(names, key=lambda name: (-max(one.get(name, 0) for one in windows), name))
    return {
        "start": found["start"],
        "seconds": found["seconds"],
        "lines": [(name, [one.get(name, 0) for one in windows]) for name in most[:_LINES]],
    }
