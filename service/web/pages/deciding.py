"""A person's word on tracks, as pages give it: genres from a form, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from reclass_plex.errors import ConfigError
from reclass_plex.genres import TAXONOMIES
from reclass_plex.remote import DecideResult, Operation
from service.web.control import Control
from service.web.texts import text

WAIT_SECONDS = 3.0  # for files to be written, before the page is shown again


def known_genres(control: Control) -> tuple[str, ...]:
    """Return the genres that are offered: the taxonomy's, by name."""
    taxonomy = TAXONOMIES.get(control.config().ensemble.taxonomy, TAXONOMIES["default"])
    return tuple(sorted(taxonomy.genres))


def names_in(entry: str) -> tuple[str, ...]:
    """Return the genres that were typed, separated by semicolons."""
    names = tuple(name.strip() for name in entry.split(";") if name.strip())
    if not names:
        raise ConfigError(text("decide.no_genre"))
    return names


def decide(
    control: Control,
    track_ids: Sequence[int],
    genres: Collection[str],
    *,
    albums: bool = False,
) -> DecideResult:
    """Accept what was heard, or correct it if there are genres; wait a moment for the files.

    Raises ConfigError where nothing could be decided.
    """
    kind: Literal["accept", "correct"] = "correct" if genres else "accept"
    result = control.actions.decide(track_ids, kind, tuple(genres), albums=albums)
    if result.operation is None:
        reasons = {one.reason for one in result.refused}
        raise ConfigError(text("decide.refused", why="; ".join(sorted(reasons))))
    wait_for(control, result.operation)
    return result


def wait_for(control: Control, operation: Operation) -> Operation:
    """Wait a moment until an operation has ended; return it as it is then."""
    return control.actions.operations.wait(operation.id, WAIT_SECONDS) or operation
