"""What belongs to no page: the appearance, and what a phone needs to install the dashboard."""

from __future__ import annotations

import json
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form
from starlette.responses import Response

from service.web.pages.assets import Assets
from service.web.pages.rendering import THEME_COOKIE, THEMES, go_to
from service.web.texts import text

_YEAR = 365 * 24 * 3600


def add_routes(router: APIRouter, assets: Assets) -> None:
    """Add them."""
    icons = (
        ("icon-192.png", "192x192", "any"),
        ("icon-512.png", "512x512", "any"),
        ("icon-maskable.png", "512x512", "maskable"),
    )
    manifest = json.dumps(
        {
            "name": text("app.name"),
            "short_name": text("app.name"),
            "description": text("app.description"),
            "start_url": "/",
            "id": "/",
            "scope": "/",
            "display": "standalone",
            "background_color": "#14171a",
            "theme_color": "#0b6b60",
            "icons": [
                {"src": assets.url(name), "sizes": sizes, "type": "image/png", "purpose": purpose}
                for name, sizes, purpose in icons
            ],
        }
    )

    @router.get("/manifest.webmanifest")
    async def web_manifest() -> Response:
        return Response(manifest, media_type="application/manifest+json")

    @router.post("/theme")
    async def choose_theme(
        theme: Annotated[str, Form()] = "auto", back: Annotated[str, Form()] = "/"
    ) -> Response:
        answer = go_to(own_path(back))
        chosen = theme if theme in THEMES else "auto"
        answer.set_cookie(THEME_COOKIE, chosen, max_age=_YEAR, samesite="lax", httponly=True)
        return answer


def own_path(url: str) -> str:
    """Return an address of ours: nobody is sent elsewhere by a link that names us."""
    try:
        parts = urlsplit(url) if url.isascii() and url.isprintable() else None
    except ValueError:
        parts = None
    if parts is None or parts.scheme or parts.netloc or not parts.path.startswith("/"):
        return "/"
    path = "/" + parts.path.lstrip("/\\")
    return path + (f"?{parts.query}" if parts.query else "")
