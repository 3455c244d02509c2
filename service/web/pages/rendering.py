"""Templates, and what all of them may use: texts, links to static files, numbers for people."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from reclass_plex.errors import printable, visible
from reclass_plex.store import Store
from service.web.access import csrf_token, principal
from service.web.control import Control
from service.web.pages.assets import Assets
from service.web.texts import text

TEMPLATES = Path(__file__).parent.parent / "templates"
THEMES = ("auto", "light", "dark")
THEME_COOKIE = "theme"
HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "media-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Vary": "HX-Request, Cookie",
}
"""Of each page, beside what every answer has (service/web/gate.py): it loads nothing but ours."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


class Context:
    """What every page's routes are made with: the daemon, its store, and templates.

    Everything that is filled into a template is escaped.
    """

    def __init__(
        self,
        control: Control,
        store: Store,
        assets: Assets,
        pages: Sequence[tuple[str, str]],
    ) -> None:
        self.control = control
        self.store = store
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals.update(
            t=text, asset=assets.url, version=version("reclass-plex"), pages=pages, said=""
        )
        self._environment.filters.update(
            percent=percent,
            clock=clock,
            ago=ago,
            duration=duration,
            number=number,
            name=file_name,
            folder=folder_name,
            path=printable,
            visible=visible,
            visible_lines=visible_lines,
        )

    def page(
        self,
        request: Request,
        template: str,
        values: Mapping[str, object],
        status: int = HTTPStatus.OK,
    ) -> Response:
        """Return a page, or a part of one."""
        who = principal(request)
        all_values = {
            "path": request.url.path,
            "theme": theme_of(request),
            "csrf": csrf_token(request),
            "signed_in": who is not None,
            "can_sign_out": who is not None and who.kind == "session",
            "current": "",
            **values,
        }
        html = self._environment.get_template(template).render(all_values)
        # What a tag or a name holds that is no text in UTF-8 (a lone surrogate) is shown as "?".
        return HTMLResponse(html.encode("utf-8", "replace"), status, HEADERS)


def go_to(url: str) -> Response:
    """Send the browser to another of our pages after a form was sent."""
    return RedirectResponse(url, HTTPStatus.SEE_OTHER)


def is_htmx(request: Request) -> bool:
    """Whether only a part of the page is asked for."""
    return request.headers.get("hx-request") == "true"


def theme_of(request: Request) -> str:
    """Return the chosen appearance."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    return chosen if chosen in THEMES else "auto"


# Filters


def percent(share: float) -> str:
    """0.973 -> 97 %. Only what is exactly one is 100 %."""
    shown = math.floor(share * 100 + 0.5)
    return f"{99 if shown == 100 and share < 1 else shown} %"


def number(value: float) -> str:
    """12345 -> 12,345."""
    return f"{value:,.0f}"


def clock(moment: float) -> str:
    """Return date and time of day, local."""
    try:
        return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "-"


def ago(moment: float) -> str:
    """Return how long ago something was."""
    return f"{duration(max(0.0, time.time() - moment))} ago"


def duration(seconds: float) -> str:
    """90 -> 2 min; the greatest unit alone, as it is an estimate most often."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 36 * _HOUR:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} days"


def visible_lines(text: str) -> str:
    """Return a text of several lines with what a reader cannot see made visible."""
    return "\n".join(map(visible, text.split("\n")))


def file_name(path: str | os.PathLike[str]) -> str:
    """Return the last part of a path, printable."""
    return printable(Path(path).name or path)


def folder_name(path: str | os.PathLike[str]) -> str:
    """Return what is before it."""
    return printable(Path(path).parent)
