"""All tracks: searched, narrowed, in pages that follow one another while one scrolls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex import browse
from reclass_plex.browse_statistics import Facets, facets
from reclass_plex.cursors import BadCursor
from reclass_plex.jobs import STATES
from service.web.pages.remembering import Remembered
from service.web.pages.rendering import Context, is_htmx

SHOWN = 50  # tracks a page
COUNTED = 5000  # exactly; beyond it says "more than"
FACETS_SECONDS = 15.0  # for so long the choices, and how many tracks each has, may be old
Sure = Literal["", "high", "middle", "low", "unsure", "unheard"]
_BANDS: dict[str, dict[str, float | bool]] = {
    "high": {"min_confidence": 0.8},
    "middle": {"min_confidence": 0.5, "max_confidence": 0.7999},
    "low": {"max_confidence": 0.4999},
    "unsure": {"unsure": True},
    "unheard": {"heard": False},
}


@dataclass
class Wanted:
    """What the form asks for; everything may be empty."""

    q: Annotated[str, Query(max_length=200)] = ""
    genre: Annotated[str, Query(max_length=200)] = ""
    stage: Annotated[str, Query(max_length=100)] = ""
    state: Annotated[str, Query(max_length=20)] = ""
    sure: Annotated[str, Query(max_length=20)] = ""
    album: Annotated[str, Query(max_length=20_000)] = ""
    sort: Annotated[str, Query(max_length=20)] = "path"
    cursor: Annotated[str, Query(max_length=20_000)] = ""

    def filter(self) -> browse.TrackFilter:
        """Return it as the store is asked. What is no choice of ours counts as nothing."""
        return browse.TrackFilter(
            text=self.q.strip() or None,
            genre=self.genre or None,
            stage=self.stage or None,
            state=self.state if self.state in STATES else None,
            album=self.album or None,
            **_BANDS.get(self.sure, {}),  # type: ignore[arg-type]
        )

    def link(self, **changed: str) -> str:
        """Return the address of the same list, with something else in it."""
        values = {name: value for name, value in {**vars(self), **changed}.items() if value}
        return "/library?" + urlencode({**values}, errors="replace")


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""
    choices: Remembered[Facets] = Remembered(lambda: facets(context.store), FACETS_SECONDS)

    @router.get("/library")
    def library(request: Request, wanted: Annotated[Wanted, Depends()]) -> Response:
        sort = wanted.sort if wanted.sort in browse.SORTS else "path"
        try:
            page = browse.list_tracks(
                context.store,
                wanted.filter(),
                sort=sort,
                cursor=wanted.cursor or None,
                limit=SHOWN,
            )
        except BadCursor:  # of another order, or an old bookmark
            page = browse.list_tracks(context.store, wanted.filter(), limit=SHOWN)
        values: dict[str, object] = {
            "current": "library",
            "wanted": wanted,
            "rows": page.rows,
            "more": wanted.link(cursor=page.next) if page.next else None,
        }
        if is_htmx(request) and wanted.cursor:
            return context.page(request, "library_rows.html", values)
        if page.next is None and not wanted.cursor:
            values["count"] = len(page.rows)  # all of them: no second search
        else:
            values["count"] = browse.count_tracks(
                context.store, wanted.filter(), at_most=COUNTED + 1
            )
        values["at_most"] = COUNTED
        if is_htmx(request):
            return context.page(request, "library_results.html", values)
        values["facets"] = choices.get()
        values["bands"] = get_args(Sure)[1:]
        values["states"] = STATES
        values["sorts"] = ("path", "confidence", "-confidence", "-heard")
        return context.page(request, "library.html", values)
