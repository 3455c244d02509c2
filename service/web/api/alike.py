"""Playlists of what sounds alike, and recordings that are there in several files."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.responses import Response

from reclass_plex import browse
from reclass_plex.errors import NotHeard
from reclass_plex.remote import Operation, PlaylistRequest
from service.web.api.context import Api, Id, not_found
from service.web.playlist import M3U, as_m3u, files_like
from service.web.problems import Json


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/v1", redirect_slashes=False, tags=["similar"])

    def files(track_id: int, count: int) -> tuple[Path, ...]:
        found = browse.find_track(api.store, track_id)
        if found is None:
            raise not_found("track")
        try:
            return files_like(api.actions.alike.music, found, count)
        except NotHeard as error:
            raise HTTPException(HTTPStatus.NOT_FOUND, str(error)) from None

    @routes.get(
        "/tracks/{track_id}/similar.m3u8",
        response_class=Response,
        responses={200: {"content": {M3U: {"schema": {"type": "string"}}}}},
    )
    def download(track_id: Id, count: Annotated[int, Query(ge=1, le=200)] = 20) -> Response:
        """Return a playlist of the track and those that sound most like it, one an album."""
        return as_m3u(files(track_id, count))

    @routes.post("/tracks/{track_id}/playlist", response_model=Operation, status_code=202)
    def write(track_id: Id, wanted: PlaylistRequest) -> Response:
        """Begin to write the same playlist to Plex."""
        alike = api.actions.alike
        chosen = files(track_id, wanted.count)
        operation = alike.playlist(wanted.name, chosen, replace=wanted.replace)
        return Json(operation, HTTPStatus.ACCEPTED)

    @routes.post("/duplicates", response_model=Operation, status_code=202)
    def find_duplicates() -> Response:
        """Begin to look for recordings that are there in several files; it may take an hour."""
        return Json(api.actions.alike.duplicates(), HTTPStatus.ACCEPTED)

    return routes
