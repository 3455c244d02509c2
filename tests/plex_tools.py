"""What the tests of Plex share: a connection, an album, an edit that must succeed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from plex_server import Item, Library, PlexStandIn

from reclass_plex.config import PlexOptions
from reclass_plex.plex import (
    EditOutcome,
    EditRecord,
    Plex,
    apply_edits,
    plan_edits,
)
from reclass_plex.store import Store
from reclass_plex.sync import WantedRow
from reclass_plex.tables import plex_wanted

TRICKY = ("R&B", "Folk, World, & Country", "Drum/Bass", "100% Pop+", "Größe #1?", "a%2Cb", "J=z")


def connect(server: PlexStandIn, **options: Any) -> Plex:
    return Plex(PlexOptions(url=server.url, **options), server.token)


def add_album(
    server: PlexStandIn, library: Library, genres: tuple[str, ...] = ("Pop/Rock",), tracks: int = 5
) -> list[Item]:
    return [
        server.add_track(library, "Artist", "Album", f"Track {number}", genres=genres)
        for number in range(tracks)
    ]


def edit(plex: Plex, items: list[Item], *genres: str) -> tuple[EditRecord, ...]:
    """Write genres to items, and expect that all comes out right."""
    plan = plan_edits(plex, {item.key: genres for item in items})
    assert plan.skipped == ()
    assert statuses(apply_edits(plex, plan.records)) == ["done"] * len(plan.records)
    return plan.records


def list_wanted(store: Store) -> dict[Path, WantedRow]:
    """What shall stand in Plex, by file."""
    with store.transaction(write=False) as connection:
        rows = connection.execute(sa.select(plex_wanted).order_by(plex_wanted.c.asked)).all()
    return {row.path: WantedRow(**row._mapping) for row in rows}


def statuses(outcomes: tuple[EditOutcome, ...]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def wait_until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
