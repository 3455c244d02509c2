"""What the pages need of the daemon."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from reclass_plex.config import Config
from reclass_plex.remote import ReclassifyResult, Status
from reclass_plex.selection import Selection
from service.actions import Actions


class DaemonControl(Protocol):
    """The daemon. Called in threads. Methods may raise ReclassError, whose text is for people."""

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

    def revive(self, ids: Collection[int] | None) -> int:
        """Put dead letters back in line, all of them without `ids`; return how many."""
