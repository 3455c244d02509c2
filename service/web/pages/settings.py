"""The settings in use, and what others would mean: checked, and compared, but never written here.

Who may change the configuration file can make the daemon write anywhere, so that stays with those
who have the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Annotated

import yaml
from fastapi import APIRouter, Form
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.config import Config, parse_config
from reclass_plex.errors import ConfigError, printable
from reclass_plex.redaction import hide_passwords
from reclass_plex.remote import PreviewRequest
from service.web.pages.deciding import wait_for
from service.web.pages.rendering import Context
from service.web.texts import text

MAX_TEXT = 200_000  # characters
SHOWN = 12  # files of a preview
_FROM_THE_START = ("store", "web")  # these count from the next restart on


def add_routes(router: APIRouter, context: Context) -> None:
    """Add the page."""

    def show(request: Request, status: int = 200, **more: object) -> Response:
        config = context.control.config()
        file = context.control.config_file()
        values: dict[str, object] = {
            "current": "settings",
            "file": printable(file) if file else None,
            "given": as_yaml(config),
            "changed": None,
            "problem": "",
            **more,
        }
        return context.page(request, "settings.html", values, status)

    @router.get("/settings")
    def settings(request: Request) -> Response:
        return show(request)

    @router.post("/settings/check")
    def check(
        request: Request,
        given: Annotated[str, Form(max_length=MAX_TEXT)] = "",
        preview: Annotated[bool, Form()] = False,
    ) -> Response:
        now = context.control.config()
        try:
            config = parse_config(given, text("settings.given"))
        except ConfigError as error:
            return show(request, 422, given=given, problem=str(error))
        restart = [name for name in _FROM_THE_START if getattr(now, name) != getattr(config, name)]
        operation = None
        if preview:
            wanted = PreviewRequest(policy=config.policy.model_dump(mode="json"), sample=SHOWN)
            operation = wait_for(context.control, context.control.actions.preview(wanted))
        changed = list(differences(now, config))
        return show(request, given=given, changed=changed, restart=restart, operation=operation)

    @router.get("/settings/preview/{operation_id}")
    def follow(request: Request, operation_id: str) -> Response:
        operation = context.control.actions.operations.find(operation_id)
        if operation is None or operation.kind != "preview":
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return context.page(request, "settings_preview.html", {"operation": operation})


def as_yaml(config: Config) -> str:
    """Return all settings as a file would say them; passwords in addresses are left out."""
    shown = yaml.safe_dump(
        config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )
    return hide_passwords(shown)


def differences(former: Config, latter: Config) -> Iterator[tuple[str, str, str]]:
    """Yield key, former and latter value of every setting that is not the same."""
    one, other = (_flat(config.model_dump(mode="json")) for config in (former, latter))
    for key in one | other:
        if one.get(key) != other.get(key):
            yield key, _short(one.get(key)), _short(other.get(key))


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def _short(value: object) -> str:
    text = hide_passwords(yaml.safe_dump(value, allow_unicode=True))
    return text.removesuffix("...\n").strip()
