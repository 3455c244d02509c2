"""What happens, as server-sent events: /api/events, for as long as somebody listens.

The first event, `status`, is the whole state; then come `jobs`, `operation`, `state` and others as
the daemon publishes them. `lost` says that the listener was too slow: ask for the state anew. A
comment every 15 s keeps proxies from closing the connection. Who is no longer signed in hears no
more, and all ends when the daemon stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from http import HTTPStatus

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from reclass_plex.remote import to_json
from service.events import Listener, TooManyListeners
from service.web.access import access_of, peer_of
from service.web.api.context import Api

LOOK_SECONDS = 0.2  # between looks for events: listeners share one thread, so nobody may wait
HEARTBEAT_SECONDS = 15.0
_EVENT = {
    "type": "object",
    "description": "One event; `data` is JSON",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
    "required": ["event", "data"],
}


def router(api: Api) -> APIRouter:
    """Return the route."""
    routes = APIRouter(redirect_slashes=False, tags=["daemon"])

    @routes.get("/api/v1/events", include_in_schema=False)
    @routes.get(
        "/api/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
    )
    async def follow(request: Request) -> Response:
        """Follow what happens, as server-sent events."""
        status = to_json(await run_in_threadpool(api.control.status))
        stack = ExitStack()
        try:
            listener = stack.enter_context(api.actions.events.listen())
        except TooManyListeners:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many listen already: close a page"
            ) from None
        return StreamingResponse(
            _Stream(request, listener, stack, status),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return routes


class _Stream:
    """The events of one listener, as text. Gives its place back however it ends."""

    def __init__(
        self, request: Request, listener: Listener, stack: ExitStack, status: bytes
    ) -> None:
        self._request = request
        self._listener = listener
        self._stack = stack
        self._status = status

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._stack:
            yield b"retry: 3000\nevent: status\ndata: " + self._status + b"\n\n"
            beat = time.monotonic() + HEARTBEAT_SECONDS
            while not self._listener.closed:
                for event in self._listener.take(0):
                    head = f"id: {event.number}\nevent: {event.kind}\ndata: ".encode("ascii")
                    yield head + to_json(dict(event.data)) + b"\n\n"
                if time.monotonic() >= beat:
                    if not await self._may_listen():
                        return
                    beat = time.monotonic() + HEARTBEAT_SECONDS
                    yield b": still here\n\n"
                await asyncio.sleep(LOOK_SECONDS)

    async def _may_listen(self) -> bool:
        """Tell whether who began to listen still may: sessions end, tokens are revoked."""
        access, peer = access_of(self._request), peer_of(self._request)
        found = await run_in_threadpool(access.identify, self._request.headers, peer)
        return found is not None
