"""The index of similar music, kept up to date in a process of its own.

At night, and as soon as too much is missing from it (see `similarity.FRESH_SHARE`), as in a large
import. Its memory (60 MB for 100,000 tracks, and what numpy and usearch take) is given back with
the process. Until it has run, new tracks are compared one by one, so that nothing is missing.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from reclass_plex.errors import ReclassError, printable

log = logging.getLogger(__name__)

_PAUSE = 0.1  # seconds between looks at whether it is done
_NICENESS = 10
FAILED = 1  # exit status


def update_index(store_path: Path, should_stop: Callable[[], bool] = lambda: False) -> bool:
    """Bring the index of a store up to date, and return whether that is done.

    Told to stop, it leaves the former index. Raises OSError if no process can be started.
    """
    command = [sys.executable, "-m", "service.similar_index", os.fspath(store_path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if should_stop():
                process.kill()  # the index is replaced as a whole, or not at all
                process.wait()
                return False
            time.sleep(_PAUSE)
    if process.returncode:
        log.warning("the index of similar music was not updated: exit %d", process.returncode)
    return process.returncode == 0


def main(arguments: Sequence[str]) -> int:
    """Update the index of the store that is named."""
    from reclass_plex.similarity import SimilarMusic
    from reclass_plex.store import Store

    (path,) = map(Path, arguments)
    os.nice(_NICENESS)
    try:
        with Store.open(path) as store:
            SimilarMusic.open(store).update(threads=1)
    except ReclassError as error:
        print(f"{printable(path)}: {error}", file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
