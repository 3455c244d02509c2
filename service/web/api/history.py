"""The queue, runs and their journal, undo, decisions, and operations to follow."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex import browse_history, browse_jobs
from reclass_plex.jobs import Jobs, State
from reclass_plex.remote import (
    MAX_ID,
    Count,
    DecideRequest,
    DecideResult,
    Message,
    Operation,
    PreviewRequest,
    TrackIds,
    UndoCount,
    UndoRequest,
)
from service.operations import Operations
from service.web.access import require
from service.web.api import shapes
from service.web.api.context import Api, Cursor, Id, Limit, not_found
from service.web.problems import Json

OperationId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,32}$")]


class Queue(Message):
    """How many tracks are in each state of the queue."""

    counts: dict[State, int]


class Tracks(Message):
    """Which tracks are meant."""

    track_ids: TrackIds


class OperationList(Message):
    """Operations, the newest first. They are known until an hour after their end."""

    rows: tuple[Operation, ...]


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/v1", redirect_slashes=False)
    store = api.store

    @routes.get("/queue", response_model=Queue, tags=["queue"])
    def show_queue() -> Response:
        """Count the tracks in each state."""
        return Json(Queue(counts=Jobs(store).counts()))

    @routes.get("/jobs", response_model=shapes.JobPage, tags=["queue"])
    def list_jobs(
        state: Annotated[list[State], Query(max_length=8)] = [],  # noqa: B006 - FastAPI copies it
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Response:
        """List jobs, the latest change first."""
        page = browse_jobs.list_jobs(store, state, cursor=cursor, limit=limit)
        return Json(shapes.JobPage(rows=tuple(map(shapes.job, page.rows)), next=page.next))

    @routes.get("/jobs/{job_id}", response_model=shapes.JobShape, tags=["queue"])
    def show_job(job_id: Id) -> Response:
        """Return one job."""
        found = browse_jobs.find_job(store, job_id)
        if found is None:
            raise not_found("job")
        return Json(shapes.job(found))

    @routes.get("/runs", response_model=shapes.RunPage, tags=["history"])
    def list_runs(cursor: Cursor = None, limit: Limit = 50) -> Response:
        """List runs, the newest first."""
        page = browse_history.list_runs(store, cursor=cursor, limit=limit)
        return Json(shapes.RunPage(rows=tuple(map(shapes.run, page.rows)), next=page.next))

    @routes.get("/runs/{run_id}", response_model=shapes.Run, tags=["history"])
    def show_run(run_id: Id) -> Response:
        """Return one run."""
        found = browse_history.find_run(store, run_id)
        if found is None:
            raise not_found("run")
        return Json(shapes.run(found))

    @routes.get("/journal", response_model=shapes.ChangePage, tags=["history"])
    def list_journal(
        run: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Response:
        """List files that were changed, in one run or in any, the newest first."""
        page = browse_history.list_journal(store, run, cursor=cursor, limit=limit)
        return Json(shapes.ChangePage(rows=tuple(map(shapes.change, page.rows)), next=page.next))

    @routes.get("/plex-edits", response_model=shapes.PlexEditPage, tags=["history"])
    def list_plex_edits(
        run: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
        cursor: Cursor = None,
        limit: Limit = 50,
    ) -> Response:
        """List what was changed in Plex, in one run or in any, the newest first."""
        page = browse_history.list_plex_edits(store, run, cursor=cursor, limit=limit)
        rows = tuple(map(shapes.plex_edit, page.rows))
        return Json(shapes.PlexEditPage(rows=rows, next=page.next))

    @routes.post("/undo/count", response_model=UndoCount, tags=["history"])
    def count_undo(wanted: UndoRequest) -> Response:
        """Say what an undo would take back."""
        return Json(api.actions.count_undo(wanted))

    @routes.post("/undo", response_model=Operation, status_code=202, tags=["history"])
    def undo(wanted: UndoRequest) -> Response:
        """Begin to take back a run, what was done to tracks, or what was done since a time."""
        return Json(api.actions.undo(wanted), HTTPStatus.ACCEPTED)

    @routes.post("/decisions", response_model=DecideResult, status_code=202, tags=["review"])
    def decide(wanted: DecideRequest, request: Request) -> Response:
        """Accept what was heard in tracks, or correct it; files are written meanwhile."""
        who = require(request, "write")
        result = api.actions.decide(
            *(wanted.track_ids, wanted.kind, wanted.genres),
            albums=wanted.albums,
            by=f"{who.kind} {who.name}",
        )
        return Json(result, HTTPStatus.ACCEPTED)

    @routes.post("/decisions/forget", response_model=Count, tags=["review"])
    def forget(wanted: Tracks) -> Response:
        """Withdraw what was decided on tracks: the models decide again."""
        return Json(Count(count=api.actions.forget(wanted.track_ids)))

    @routes.post("/preview", response_model=Operation, status_code=202, tags=["review"])
    def preview(wanted: PreviewRequest) -> Response:
        """Begin to find out what other settings of the policy would change; changes nothing."""
        return Json(api.actions.preview(wanted), HTTPStatus.ACCEPTED)

    _add_operations(routes, api.actions.operations)
    return routes


def _add_operations(routes: APIRouter, operations: Operations) -> None:
    @routes.get("/operations", response_model=OperationList, tags=["operations"])
    def list_operations() -> Response:
        """List long work that was asked for."""
        return Json(OperationList(rows=tuple(operations.all())))

    @routes.get("/operations/{operation_id}", response_model=Operation, tags=["operations"])
    def show_operation(operation_id: OperationId) -> Response:
        """Say how far an operation is."""
        found = operations.find(operation_id)
        if found is None:
            raise not_found("operation")
        return Json(found)

    @routes.delete("/operations/{operation_id}", status_code=204, tags=["operations"])
    def stop_operation(operation_id: OperationId) -> Response:
        """Ask an operation to stop after what it has in hand."""
        if not operations.ask_to_stop(operation_id):
            raise not_found("operation")
        return Response(status_code=HTTPStatus.NO_CONTENT)
