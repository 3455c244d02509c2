"""What the routers share: the daemon and its store, kinds of parameters, documented errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, get_origin

from fastapi import Path, Query
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from reclass_plex.cursors import MAX_CURSOR
from reclass_plex.remote import MAX_ID
from reclass_plex.store import Store
from service.actions import Actions
from service.web.control import Control

Id = Annotated[int, Path(ge=1, le=MAX_ID)]
Cursor = Annotated[
    Annotated[str, Field(max_length=MAX_CURSOR, pattern=r"^[A-Za-z0-9_-]+$")] | None,
    Query(description="`next` of the page before"),
]
Limit = Annotated[int, Query(ge=1, le=500, description="rows of a page, at most")]


@dataclass
class Api:
    """The daemon behind the routers."""

    control: Control
    store: Store

    @property
    def actions(self) -> Actions:
        """What people do to tracks."""
        return self.control.actions


class Problem(BaseModel):
    """What went wrong (RFC 9457). `detail` is for people, `kind` a stable word for programs."""

    model_config = ConfigDict(frozen=True)

    title: str
    status: int
    detail: str
    kind: str | None = None
    errors: tuple[dict[str, str], ...] | None = None


_WHY = {
    400: "The body is no JSON, or no text",
    401: "No token, or a wrong one",
    403: "The token may only read, or a page of another site asks",
    404: "There is no such thing",
    409: "Another process changes files now",
    413: "The body is too large",
    415: "The body is of another type",
    421: "Another host was asked for",
    422: "A parameter, or what was asked for, makes no sense; the detail says which",
    429: "Too often",
    500: "An error of the daemon",
    503: "Not now: the daemon stops, or Plex is away",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": why,
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    for status, why in _WHY.items()
}


# A request that is no HTTP is answered before any of this.
PROBLEMS[400]["content"]["text/plain"] = {"schema": {"type": "string"}}


def given_once(request: Request) -> None:
    """Refuse a query that names a parameter twice, of which only one would count."""
    lists = set(_list_names(request.scope["route"].dependant))
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if count > 1 and name not in lists:
            why = f"query.{name}: is given {count} times"
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, why)


def _list_names(dependant: Dependant) -> Iterator[str]:
    for one in dependant.query_params:
        if get_origin(one.field_info.annotation) is list:
            yield one.alias
    for other in dependant.dependencies:
        yield from _list_names(other)


def not_found(what: str) -> HTTPException:
    """Return the error that there is no such thing."""
    return HTTPException(HTTPStatus.NOT_FOUND, f"there is no such {what}")
