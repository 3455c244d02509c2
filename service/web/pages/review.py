"""What was not heard surely enough: a key, and the next one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex import browse
from reclass_plex.browse_statistics import Facets, facets
from reclass_plex.cursors import BadCursor
from reclass_plex.remote import JobId, UndoRequest
from service.web.pages.deciding import decide, known_genres, names_in, wait_for
from service.web.pages.remembering import Remembered
from service.web.pages.rendering import Context, go_to, is_htmx
from service.web.texts import text

SHOWN = 10  # tracks a page
CHOICES = 9  # keys 1 to 9


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""
    choices: Remembered[Facets] = Remembered(lambda: facets(context.store), 15.0)

    @router.get("/review")
    def review(
        request: Request,
        said: str = "",
        n: int = 0,
        cursor: Annotated[str, Query(max_length=20_000)] = "",
    ) -> Response:
        wanted = browse.TrackFilter(state="review")
        try:
            page = browse.list_tracks(
                context.store, wanted, sort="confidence", cursor=cursor or None, limit=SHOWN
            )
        except BadCursor:
            page = browse.list_tracks(context.store, wanted, sort="confidence", limit=SHOWN)
        waiting = {one.name: one.count for one in choices.get().states}.get("review", 0)
        values: dict[str, object] = {
            "current": "review",
            "cards": [(row, _choices(row)) for row in page.rows],
            "count": max(waiting, len(page.rows)),
            "genres": known_genres(context.control),
            "next": f"/review?cursor={page.next}" if page.next else "/review",
            "is_last": page.next is None,
            "said": text(f"review.said.{said}", n=n) if said in {"decided", "undone"} else "",
        }
        return context.page(request, "review.html", values)

    def _choices(row: browse.TrackRow) -> list[tuple[str, float]]:
        track = browse.find_track(context.store, row.id)
        heard = track.verdict.genres if track is not None and track.verdict else ()
        return [(one.name, one.confidence) for one in heard[:CHOICES]]

    @router.post("/review/{track_id}")
    def decide_it(
        request: Request,
        track_id: JobId,
        genre: Annotated[str, Form(max_length=700)] = "",
        other: Annotated[str, Form(max_length=700)] = "",
        album: Annotated[bool, Form()] = False,
    ) -> Response:
        names = names_in(genre or other)
        result = decide(context.control, [track_id], names, albums=album)
        if not is_htmx(request):
            return go_to(f"/review?said=decided&n={len(result.track_ids)}")
        track = browse.find_track(context.store, track_id)
        values = {"result": result, "names": names, "row": track.row if track else None}
        return context.page(request, "review_done.html", values)

    @router.post("/review/undo/{run_id}")
    def undo(request: Request, run_id: JobId) -> Response:
        operation = context.control.actions.undo(UndoRequest(run_id=run_id))
        ended = wait_for(context.control, operation)
        if not is_htmx(request):
            return go_to("/review?said=undone")
        return context.page(request, "review_undone.html", {"ended": ended})
