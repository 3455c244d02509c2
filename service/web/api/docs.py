"""The API's own description: /api/openapi.json, and /api/docs, a page made of it here.

The page has no script and asks no other machine for anything.
"""

from __future__ import annotations

import secrets
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.web.api.context import Problem
from service.web.problems import Json

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color-scheme: light dark }
h2 { margin-top: 2.5rem; text-transform: capitalize } details { margin: .3rem 0 }
summary { cursor: pointer } code { font-size: .95em } b { display: inline-block; min-width: 4.5rem }
table { border-collapse: collapse } td { padding: .15rem .8rem .15rem 0; vertical-align: top }
pre { overflow: auto }
"""


def describe(app: FastAPI, version: str) -> dict[str, Any]:
    """Return the description (OpenAPI 3.1), made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title="reclass-plex",
            version=version,
            summary="What the daemon knows of your music, and what it can do to it.",
            routes=app.routes,
        )
        parts = schema.setdefault("components", {})
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        shapes = parts.setdefault("schemas", {})
        shapes["Problem"] = problem
        for unused in ("HTTPValidationError", "ValidationError"):
            shapes.pop(unused, None)
        parts["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": "reclass-session"},
        }
        schema["security"] = [{"token": []}, {"session": []}]
        for path in schema["paths"].values():
            for operation in path.values():
                answers = operation["responses"]
                if "422" in answers:  # FastAPI's own, which we do not answer with
                    answers["422"]["content"] = {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"}
                        }
                    }
        app.openapi_schema = schema
    return app.openapi_schema


def router(app: FastAPI, version: str) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(redirect_slashes=False)

    @routes.get("/api/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return Json(describe(app, version))

    @routes.get("/api/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; frame-ancestors 'none'"
        page = _page(describe(app, version), nonce)
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return routes


def _page(schema: dict[str, Any], nonce: str) -> str:
    groups: dict[str, list[str]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            group = (operation.get("tags") or ["other"])[0]
            groups.setdefault(group, []).append(_operation(method, path, operation))
    sections = "".join(
        f"<section><h2>{escape(name)}</h2>{''.join(parts)}</section>"
        for name, parts in sorted(groups.items())
    )
    title = f"{escape(schema['info']['title'])} API"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<style nonce="{nonce}">{_STYLE}</style></head><body><main><h1>{title}</h1>'
        "<p>Send a token as <code>Authorization: Bearer</code>; <code>reclass-plex token create"
        "</code> makes one. For machines: <a href='/api/openapi.json'>openapi.json</a>.</p>"
        f"{sections}</main></body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    text = operation.get("description") or operation.get("summary") or ""
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{escape(one.get('description') or '')}</td></tr>"
        for one in operation.get("parameters", ())
    )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    wants = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
    answers = ", ".join(operation["responses"])
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code></summary>"
        f"<p>{escape(text)}</p>{f'<p>Body: <code>{escape(wants)}</code></p>' if wants else ''}"
        f"<table>{rows}</table><p>Answers: {escape(answers)}</p></details>"
    )
