"""What the HTTP interface needs of the daemon: `create_app` and `build_dashboard` are given it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from reclass_plex.config import Config
from reclass_plex.jobs import Job, State
from reclass_plex.remote import ReclassifyResult, Status
from reclass_plex.selection import Selection
from service.actions import Actions
from service.hints import Hint


class Control(Protocol):
    """The daemon. Called in threads, save what says otherwise.

    Methods may raise ReclassError, whose text is for people.
    """

    @property
    def actions(self) -> Actions:
        """What people do to tracks."""

    def config(self) -> Config:
        """Return the configuration as it is now."""

    def config_file(self) -> Path | None:
        """Return where it was read from."""

    def status(self) -> Status:
        """Return what the daemon does."""

    def pause(self) -> None:
        """Stop after the tracks in hand."""

    def resume(self) -> None:
        """Go on."""

    def reclassify(self, selection: Selection, dry_run: bool) -> ReclassifyResult:
        """Put tracks in line again, or only count them."""

    def list_jobs(self, states: Collection[State], limit: int, offset: int) -> list[Job]:
        """Return jobs in these states, the latest change first."""

    def revive(self, ids: Collection[int] | None) -> int:
        """Put dead letters back in line, all of them without `ids`; return how many."""

    def hint(self, hint: Hint) -> None:
        """Take a hint. In the event loop: must not wait for anything."""

    def server_uuid(self) -> str | None:
        """Return our Plex server's machineIdentifier, if known. In the event loop."""

    def ready(self) -> bool:
        """Tell whether the daemon has started. In the event loop."""
