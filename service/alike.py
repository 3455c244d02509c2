"""Music that sounds alike: playlists of it in Plex, and recordings that are in several files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reclass_plex import undoing
from reclass_plex.errors import ConfigError, ReclassError, printable, visible
from reclass_plex.plex import Playlist
from reclass_plex.remote import Operation
from reclass_plex.similarity import SimilarMusic
from reclass_plex.store import Store
from reclass_plex.sync import write_files
from service.operations import Operations, Progress

MAX_GROUPS = 500  # of recordings, in an answer
_COMMAND = (sys.executable, "-m", "reclass_plex", "similar", "--duplicates", "--json")
_LOOK_SECONDS = 0.5


class Alike:
    """Begins the work; any thread may call. `music` is the one index that all of them ask."""

    def __init__(
        self,
        store: Store,
        connect: undoing.Connect,
        operations: Operations,
        config_file: Path | None = None,
    ) -> None:
        self.music = SimilarMusic.open(store)
        self._store = store
        self._connect = connect
        self._operations = operations
        self._config_file = config_file
        self._lock = threading.Lock()
        self._looking: str | None = None

    def playlist(self, name: str, files: Sequence[Path], *, replace: bool = False) -> Operation:
        """Begin to write a playlist to Plex; the result says how many tracks it has.

        One of this name fails the operation unless it may be replaced. Raises ConfigError.
        """
        title = visible(" ".join(name.split()))
        if not title:
            raise ConfigError("name: a playlist needs a name")

        def may_replace(existing: Playlist) -> None:
            if not replace:
                raise ConfigError(
                    f"Plex has a playlist {title} with {existing.count} tracks: choose another"
                    " name, or say that it may be replaced"
                )

        def work(progress: Progress) -> dict[str, object]:
            progress.begin(len(files))
            with self._connect() as plex:
                made = write_files(
                    self._store, plex, title, files, may_replace, progress.should_stop
                )
            for path in made.missing:
                progress.fail(printable(path), "Plex does not have it")
            progress.advance(made.count)
            return {"name": title, "count": made.count}

        return self._operations.start("playlist", work, writes=False)

    def duplicates(self) -> Operation:
        """Begin to look for recordings that are there in several files.

        It decodes music, so it is done by the command, in a process of its own. The result has
        `groups`, of which the first `MAX_GROUPS` are told, and `extra`, files more than needed.
        One at a time: while it goes on, the same operation is returned.
        """
        with self._lock:
            known = self._operations.find(self._looking) if self._looking else None
            if known is None or known.finished is not None:
                known = self._operations.start("duplicates", self._compare, writes=False)
                self._looking = known.id
            return known

    def _compare(self, progress: Progress) -> dict[str, object]:
        progress.begin(None)
        command = [*_COMMAND]
        if self._config_file is not None:
            command += ["--config", str(self._config_file)]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            said = _outcome(process, progress)
        if said is None:
            return {}
        out, err = said
        if process.returncode:
            raise ReclassError(err.strip().removeprefix("error: ")[-1000:] or "it was killed")
        groups: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
        extra = sum(len(group["files"]) - 1 for group in groups)
        progress.advance(len(groups))
        return {"groups": groups[:MAX_GROUPS], "total": len(groups), "extra": extra}


def _outcome(process: subprocess.Popen[str], progress: Progress) -> tuple[str, str] | None:
    """Return what a process wrote; None if it was ended because somebody asked to stop."""
    while True:
        try:
            return process.communicate(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if progress.should_stop():
                process.kill()
                process.communicate()
                return None
