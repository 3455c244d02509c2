"""A process that forks a child for each training run that it is told to finish.

Reads the folder of a run a line; prints the child's process id, then its status. Forking spares
every run the seconds that torch takes to load.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import jinja2
import matplotlib.backends.backend_svg
import sklearn.model_selection
import torch
import xgboost

from reclass_plex.training import extraction, report, runs
from reclass_plex.training.report_plots import Point, draw_cost

LOADED = (jinja2, matplotlib.backends.backend_svg, sklearn.model_selection, xgboost)
LOADED_OF_OURS = (extraction, report)


def quiet(*told: object) -> None:
    """Say nothing."""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # a first plot takes a second
        draw_cost([Point("one", 1.0, 0.5, 0.4, 0.6, True)], "accuracy", Path(folder, "cost.svg"))
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            runs.finish_run(
                Path(line.rstrip("\n")), runs.Voice(quiet, quiet, quiet), checkpoint_seconds=0.0
            )
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
