"""A process that forks a child for each training run that it is told to finish, to be
killed; of a progressive one, too.

Reads the folder of a run a line; prints the child's process id, then its status. Forking spares
every run the seconds that torch takes to load; what only a finished run needs is not loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import sklearn.model_selection
import torch

from reclass_plex.training import progressive_run, runs
from reclass_plex.training.approaches import descent

LOADED = (sklearn.model_selection, descent)


def quiet(*told: object) -> None:
    """Say nothing."""


def main() -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # the first one loads a compiler
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            folder, voice = Path(line.rstrip("\n")), runs.Voice(quiet, quiet, quiet)
            if progressive_run.is_progressive(folder):
                progressive_run.finish_progressive(folder, voice, checkpoint_seconds=0.0)
            else:
                runs.finish_run(folder, voice, checkpoint_seconds=0.0)
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
