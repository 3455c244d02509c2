"""What the daemon does at this moment. Its figures ask for themselves when /api/events has news.

Where no events come through they ask every 2 seconds (static/app.js).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.jobs import HELD, IN_LINE, Job, Jobs, State
from reclass_plex.remote import JobId
from service.web.pages.rendering import Context, go_to
from service.web.texts import text

SHOWN = 8  # tracks a list
IN_HAND = 4
_SAID = {"paused", "resumed", "retried"}


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the first page."""
    jobs = Jobs(context.store)

    def look(seen: str = "") -> dict[str, object] | None:
        """Return what the templates need, None if all of it is as it was `seen`."""
        status = context.control.status()
        in_hand = jobs.list_jobs(*HELD, limit=IN_HAND)
        recent = _newest(jobs, "done", "skipped", "review")
        failed = _newest(jobs, "failed")
        rate = (status.per_minute or 0) * 60
        coarse = {"per_minute": round(rate, -1 if rate > 100 else 0), "seconds_left": None}
        shown = (status.model_copy(update=coarse), in_hand, recent, failed)
        digest = hashlib.sha256(repr(shown).encode("utf-8", "replace")).hexdigest()[:16]
        if digest == seen:
            return None
        return {
            "seen": digest,
            "status": status,
            "current_jobs": in_hand,
            "recent": recent,
            "failed": failed,
            "problems": bool(failed or status.left_out),
            "in_line": sum(status.jobs[state] for state in (*IN_LINE, *HELD)),
            "rate": rate,
            "ids": _track_ids(context, [*in_hand, *recent, *failed]),
        }

    @router.get("/")
    def now(request: Request, said: str = "", n: int = 0) -> Response:
        found = look()
        assert found is not None  # noqa: S101 - nothing was seen before
        told = text(f"now.said.{said}", n=n) if said in _SAID else ""
        return context.page(request, "now.html", {"current": "now", "said": told, **found})

    @router.get("/now/live")
    def live(request: Request, seen: str = "") -> Response:
        found = look(seen)
        if found is None:  # nothing is put in place of the same: focus and selection stay
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return context.page(request, "now_live.html", found)

    @router.post("/now/pause")
    def pause() -> Response:
        context.control.pause()
        return go_to("/?said=paused")

    @router.post("/now/resume")
    def resume() -> Response:
        context.control.resume()
        return go_to("/?said=resumed")

    @router.post("/now/retry")
    def retry(job: Annotated[JobId | None, Form()] = None) -> Response:
        count = context.control.revive(None if job is None else [job])
        return go_to(f"/?said=retried&n={count}")


def _newest(jobs: Jobs, *states: State) -> list[Job]:
    """Return the latest of several states: each is asked alone, as its index is in this order."""
    found = [job for state in states for job in jobs.list_jobs(state, limit=SHOWN)]
    return sorted(found, key=lambda job: -job.changed)[:SHOWN]


def _track_ids(context: Context, jobs: Collection[Job]) -> dict[Path, int]:
    """Return the numbers of those tracks that were read already."""
    known = context.store.known_files([job.path for job in jobs], models="")
    return {track.path: track.id for track in known}
