"""Static files, from memory, under names that change with their content: cached for ever.

Only what lies in service/web/static is served: a name is looked up in a table, never on the disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

STATIC = Path(__file__).parent.parent / "static"
_YEAR = 365 * 24 * 3600
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".LICENSE": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """One file: where it is, what it holds."""

    url: str
    content: bytes
    media_type: str


class Assets:
    """All static files."""

    def __init__(self) -> None:
        files = sorted(path for path in STATIC.rglob("*") if path.is_file())
        self._by_name: dict[str, Asset] = {}
        for path in files:
            name = path.relative_to(STATIC).as_posix()
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            media_type = _TYPES[path.suffix]
            self._by_name[name] = Asset(f"/static/{digest}/{name}", content, media_type)
        self._by_url = {asset.url: asset for asset in self._by_name.values()}

    def url(self, name: str) -> str:
        """Return where a file is served. Raises KeyError for one that is not there."""
        return self._by_name[name].url

    def add_routes(self, router: APIRouter) -> None:
        """Serve them, to anyone: they hold nothing of anybody's music."""

        @router.get("/static/{rest:path}", include_in_schema=False)
        async def static(request: Request) -> Response:
            asset = self._by_url.get(request.scope["path"])
            if asset is None:
                raise HTTPException(HTTPStatus.NOT_FOUND)
            caching = f"public, max-age={_YEAR}, immutable"
            return Response(
                asset.content, media_type=asset.media_type, headers={"Cache-Control": caching}
            )

        @router.get("/favicon.ico", include_in_schema=False)
        async def favicon() -> Response:
            return Response(self._by_name["icon.svg"].content, media_type="image/svg+xml")
