"""A live stream, listened to on request: one at a time."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from starlette.responses import Response

from reclass_plex.remote import RadioRequest, RadioStatus
from service.web.api.context import Api
from service.web.problems import Json


def router(api: Api) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/v1/radio", redirect_slashes=False, tags=["radio"])

    @routes.get("", response_model=RadioStatus)
    def show() -> Response:
        """Say what is listened to, and what was heard in the last two minutes."""
        return Json(api.actions.radio.status())

    @routes.put("", response_model=RadioStatus)
    def listen(wanted: RadioRequest) -> Response:
        """Listen to internet radio or an input, instead of what is listened to.

        It ends when nobody has asked about it for ten minutes. Lines also come as events.
        """
        return Json(api.actions.radio.start(wanted.address, wanted.window))

    @routes.delete("", status_code=204)
    def stop() -> Response:
        """Listen no more."""
        api.actions.radio.stop()
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return routes
