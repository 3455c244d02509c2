"""Real commands of `reclass-plex` in forked children that are killed.

Forking from a process that has imported everything makes a command take a tenth of a second instead
of two, so that hundreds of kills fit into minutes. Each line of standard input is a command as a
JSON list; for each the child's pid is printed at once and its wait status at its end.
Arguments: the file that takes what the commands say.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def run(arguments: list[str], log: Path) -> None:
    """Do what `reclass-plex ARGUMENTS` does, and exit as it does."""
    from reclass_plex.cli import main

    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["reclass-plex", *arguments]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


def main() -> None:
    """Serve until standard input ends."""
    import plexapi.server

    import reclass_plex.audio
    import reclass_plex.cli
    import reclass_plex.placing
    import reclass_plex.sync
    import reclass_plex.tags
    import reclass_plex.undoing

    assert (
        plexapi.server and reclass_plex.audio and "torch" not in sys.modules
    )  # a fork stays cheap
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(json.loads(line), Path(sys.argv[1]))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
