"""Run real `tag` and `undo` runs in forked children that a test kills.

Forking from a process that has imported everything makes a run take milliseconds instead of
seconds, so that hundreds of kills fit into a test. Commands come on standard input, one a line
(`tag` or `undo`); for each the child's pid is printed at once and its wait status at its end.
`warm` runs both here, so that what is loaded at first use is there for all who are forked later.
Arguments: the store's file, the music folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from reclass_plex import changes
from reclass_plex.config import Config, PolicyOptions
from reclass_plex.ensemble import Ensemble
from reclass_plex.files import AUDIO_SUFFIXES, find_audio_files
from reclass_plex.pipeline import tag_files
from reclass_plex.store import Store

# Confidence does not matter here, and neither does what the last trial took back.
CONFIG = Config(policy=PolicyOptions(min_confidence=0, overwrite_user_genres=True))


def run(command: str, store_path: Path, music: Path) -> None:
    """Do what the command line does, without its printing."""
    with Store.open(store_path) as store, store.writing_files():
        for line in changes.repair(store):
            print(line, file=sys.stderr)
        if command == "undo":
            for _ in changes.undo_changes(
                store, changes.find_changes(store, path=music), CONFIG.tags
            ):
                pass
            return
        leftovers: list[Path] = []
        found = list(find_audio_files([music], AUDIO_SUFFIXES, leftovers.append))
        changes.remove_leftovers(store, leftovers)
        run_id = store.start_run("tag")
        ensemble = Ensemble.from_config(CONFIG)
        for _ in tag_files(
            found, store=store, ensemble=ensemble, config=CONFIG, run_id=run_id, workers=2
        ):
            pass
        store.finish_run(run_id)


def main() -> None:
    """Serve commands until standard input ends."""
    store_path, music = map(Path, sys.argv[1:])
    for line in sys.stdin:
        if line.strip() == "warm":
            run("tag", store_path, music)
            run("undo", store_path, music)
            # With torch every fork would copy the page tables of half a gigabyte.
            assert "torch" not in sys.modules, "verdicts are known, so nothing is listened to"
            print(0, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            run(line.strip(), store_path, music)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
