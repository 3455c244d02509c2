"""What Plex says of new music, by webhook or websocket: where to look, and no more than that.

One hint may stand for one track or for a whole artist; what is really new there is for the one
who takes the hints out of their queue to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["artist", "album", "track"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Hint:
    """Something is new at or below this item of the server's library."""

    rating_key: int
    kind: Kind
    added_at: int | None = None  # seconds since the epoch, by the server's clock


Sink = Callable[
    [Hint], object
]  # must only put the hint into a queue: it is called where none waits


def rating_key_of(value: object) -> int | None:
    """Return a ratingKey as a number, None if it is none. Plex sends it as text, 1 to 18 digits."""
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
