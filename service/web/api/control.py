"""What the daemon does, told and controlled: status, pause, reclassify, models."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter
from starlette.responses import Response

from reclass_plex.ensemble import Ensemble
from reclass_plex.remote import (
    Count,
    ReclassifyRequest,
    ReclassifyResult,
    ReviveRequest,
    Status,
)
from service.web.api.context import Api
from service.web.api.shapes import Shape
from service.web.problems import Json

if TYPE_CHECKING:
    from reclass_plex import models


class InUse(Shape):
    """What votes now. `left_out` are stages that cannot vote here, and why."""

    taxonomy: str
    profile: str
    stages: tuple[str, ...]
    genres: tuple[str, ...]
    left_out: tuple[str, ...]
    fingerprint: str


class ModelShape(Shape):
    """Weights that can be fetched. `problem` says why they cannot be used; null: they can."""

    name: str
    purpose: str
    licence: str
    terms: str
    size: int
    state: Literal["fetched", "damaged", "not fetched"]
    problem: str | None


class EnsembleShape(Shape):
    """An ensemble that was trained and installed here."""

    name: str
    stages: tuple[str, ...]
    problems: tuple[str, ...]


class Models(Shape):
    """The models: in use, to be fetched, trained here."""

    in_use: InUse
    models: tuple[ModelShape, ...]
    ensembles: tuple[EnsembleShape, ...]


def router(api: Api) -> APIRouter:
    """Return the routes."""
    control = api.control
    routes = APIRouter(prefix="/api/v1", redirect_slashes=False, tags=["daemon"])

    @routes.get("/status", response_model=Status)
    def show_status() -> Response:
        """Say what the daemon does."""
        return Json(control.status())

    @routes.post("/pause", status_code=204)
    def pause() -> Response:
        """Stop after the tracks in hand."""
        control.pause()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @routes.post("/resume", status_code=204)
    def resume() -> Response:
        """Go on."""
        control.resume()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @routes.post("/reclassify", response_model=ReclassifyResult)
    def reclassify(wanted: ReclassifyRequest) -> Response:
        """Put tracks in line to be classified again, or in a dry run only count them."""
        return Json(control.reclassify(wanted.selection, wanted.dry_run))

    @routes.post("/jobs/revive", response_model=Count)
    def revive(wanted: ReviveRequest) -> Response:
        """Try tracks again that were given up, all of them without ids."""
        return Json(Count(count=control.revive(wanted.ids)))

    @routes.get("/models", response_model=Models)
    def show_models() -> Response:
        """Say what votes, what could be fetched, and what was trained here."""
        return Json(_models(api))

    return routes


def _models(api: Api) -> Models:
    from reclass_plex.installed_ensembles import list_installed
    from reclass_plex.models import load_catalogue, models_folder

    config = api.control.config()
    ensemble = Ensemble.from_config(config)
    folder = models_folder(config.models.folder)
    return Models(
        in_use=InUse(
            taxonomy=config.ensemble.taxonomy,
            profile=config.ensemble.profile,
            stages=tuple(stage.name for stage in ensemble.spec.stages),
            genres=ensemble.taxonomy.genres,
            left_out=ensemble.notes,
            fingerprint=ensemble.fingerprint,
        ),
        models=tuple(_model(model, folder) for model in load_catalogue(folder).values()),
        ensembles=tuple(
            EnsembleShape(
                name=one.name,
                stages=tuple(stage.name for stage in one.spec.stages) if one.spec else (),
                problems=tuple(one.notes),
            )
            for one in list_installed(folder)
        ),
    )


def _model(model: models.Model, folder: Path) -> ModelShape:
    from reclass_plex.models import why_missing

    problem = why_missing(model.name, folder)
    state: Literal["fetched", "damaged", "not fetched"] = "fetched"
    if problem is not None:
        state = "damaged" if (folder / model.name).is_dir() else "not fetched"
    return ModelShape(
        name=model.name,
        purpose=model.purpose,
        licence=model.licence,
        terms=model.terms,
        size=model.length,
        state=state,
        problem=problem,
    )
