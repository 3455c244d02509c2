"""Cursors: where a page of a list ended, as one opaque word that a browser can give back.

A cursor names the list that it belongs to and the sort key of the last row. It is no secret and
needs no signature: whatever is in it only says from where on a reader may read anyway.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from reclass_plex.errors import ReclassError

MAX_CURSOR = 16_384  # characters; a path has at most 4096 bytes
Key = bytes | str | int | float
Row = TypeVar("Row")


class BadCursor(ReclassError):
    """A cursor is damaged, or belongs to another list or order; begin again without one."""

    kind = "cursor"


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows of a list. `next` is the cursor of those after them; None: these are the last."""

    rows: tuple[Row, ...]
    next: str | None


def make_cursor(listed: str, *key: Key) -> str:
    """Return the cursor of a list, by name and order, behind the row with this sort key."""
    values = [part.hex() if isinstance(part, bytes) else part for part in key]
    text = json.dumps([listed, *values], separators=(",", ":")).encode("ascii")
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode("ascii")


def cut_page(
    found: Sequence[Row], limit: int, listed: str, key: Callable[[Row], tuple[Key, ...]]
) -> Page[Row]:
    """Return a page of `limit` rows. `found` has one more where the list goes on."""
    rows = tuple(found[:limit])
    return Page(rows, make_cursor(listed, *key(rows[-1])) if len(found) > limit else None)


def read_cursor(cursor: str, listed: str, *types: type[Key]) -> tuple[Key, ...]:
    """Return the sort key in a cursor of this list. Raises BadCursor."""
    wrong = BadCursor("the cursor is not one of this list: begin again without it")
    if len(cursor) > MAX_CURSOR:
        raise wrong
    try:
        text = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), b"-_", True)
        found = json.loads(text)
    except (ValueError, binascii.Error, RecursionError):
        raise wrong from None
    if not isinstance(found, list) or len(found) != len(types) + 1 or found[0] != listed:
        raise wrong
    return tuple(_checked(value, kind, wrong) for value, kind in zip(found[1:], types, strict=True))


def _checked(value: object, kind: type[Key], wrong: BadCursor) -> Key:
    if kind is bytes and isinstance(value, str):
        try:
            return bytes.fromhex(value)
        except ValueError:
            raise wrong from None
    if kind is str and isinstance(value, str) and value.isprintable() | ("\n" in value):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise wrong from None
        return value
    if kind is int and type(value) is int and abs(value) < 2**63:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return float(value)  # type: ignore[arg-type]
    raise wrong
