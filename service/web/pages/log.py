"""What was done: runs, each of which can be taken back, and the last lines of the daemon's log."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.browse_history import list_journal, list_runs
from reclass_plex.remote import JobId, UndoRequest
from service.recent_lines import recent_lines
from service.web.pages.deciding import wait_for
from service.web.pages.rendering import Context, go_to, is_htmx
from service.web.texts import text

RUNS = 10
CHANGES = 30
LINES = 200
_LEVELS = {"all": logging.NOTSET, "warning": logging.WARNING, "error": logging.ERROR}
_SAID = {"undone", "undoing", "kept"}


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""

    @router.get("/log")
    def log(
        request: Request,
        said: str = "",
        level: Annotated[str, Query(max_length=20)] = "all",
        run: Annotated[JobId | None, Query()] = None,
        cursor: Annotated[str, Query(max_length=20_000)] = "",
        older: Annotated[str, Query(max_length=20_000)] = "",
    ) -> Response:
        lines = recent_lines.newest(LINES, _LEVELS.get(level, logging.NOTSET))
        values: dict[str, object] = {
            "current": "log",
            "lines": lines,
            "level": level if level in _LEVELS else "all",
            "levels": tuple(_LEVELS),
        }
        if is_htmx(request):
            return context.page(request, "log_lines.html", values)
        values |= {
            "runs": list_runs(context.store, cursor=older or None, limit=RUNS),
            "changes": list_journal(context.store, run, cursor=cursor or None, limit=CHANGES),
            "run": run,
            "said": text(f"log.said.{said}") if said in _SAID else "",
        }
        return context.page(request, "log.html", values)

    @router.post("/log/undo/{run_id}")
    def undo(run_id: JobId) -> Response:
        operation = context.control.actions.undo(UndoRequest(run_id=run_id))
        ended = wait_for(context.control, operation)
        if ended.finished is None:
            return go_to("/log?said=undoing")
        kept = ended.state == "failed" or ended.failed
        return go_to(f"/log?said={'kept' if kept else 'undone'}")
