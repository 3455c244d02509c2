"""What is playing on internet radio or at an input, heard as it plays.

It is asked for every second, not told by /api/events: there is something new each second anyway,
and so it ends by itself when nobody looks at the page any more (`service.radio`).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.requests import Request
from starlette.responses import Response

from service.web.pages.rendering import Context, go_to

SHOWN = 12  # of the last lines


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""
    radio = context.control.actions.radio

    def look() -> dict[str, object]:
        status = radio.status()
        heard = [line for line in status.lines if line.notice is None]
        return {
            "radio": status,
            "latest": heard[-1] if heard else None,
            "lines": status.lines[: -SHOWN - 1 : -1],
            "runs": status.state not in ("off", "failed"),
        }

    @router.get("/listen")
    def show(request: Request) -> Response:
        return context.page(request, "listen.html", {"current": "listen", **look()})

    @router.get("/listen/live")
    def live(request: Request) -> Response:
        return context.page(request, "listen_live.html", look())

    @router.post("/listen")
    def start(
        address: Annotated[str, Form(max_length=2000)] = "",
        window: Annotated[float, Form(ge=1, le=3600, allow_inf_nan=False)] = 15.0,
    ) -> Response:
        radio.start(address.strip(), window)
        return go_to("/listen")

    @router.post("/listen/stop")
    def stop() -> Response:
        radio.stop()
        return go_to("/listen")
