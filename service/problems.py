"""What of the daemon's state needs the user, as problems to tell of. Pure, but for the free space.

What mends itself is none: Plex that is away, a track that is tried again, a GPU that the CPU stands
in for. The texts say what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from reclass_plex.backups import DAY, describe_age
from reclass_plex.errors import printable
from reclass_plex.files import SPACE_MARGIN
from reclass_plex.jobs import State
from reclass_plex.notices import Problem
from reclass_plex.remote import Status

FIRST_LOOK = "it is being looked through first"  # why a folder is paused that is well
FOLDER_PATIENCE = 300.0  # seconds: a NAS that restarts is back by then
LEAST_FREE = 8 * SPACE_MARGIN  # bytes, 64 MiB: a store that cannot write loses no work, but stops
MANY_FAILURES = 20  # in the last hour,
FAILURE_SHARE = 0.5  # if they are this part of what came to an end
MANY_DEATHS = 3  # of the worker, in a row
FAILURE_SECONDS = 3600.0
OLD_BACKUP = 3 * DAY  # seconds: two nights failed, and so did each attempt after these


def find_problems(
    status: Status,
    *,
    outcomes: Mapping[State, int],
    no_space: int,
    deaths: int,
    store: Path,
    free: int | None,
    now: float,
) -> list[Problem]:
    """Return what needs the user.

    `outcomes` are of the last `FAILURE_SECONDS`, `no_space` counts tracks that wait because of a
    full disk, `deaths` the worker's in a row, `free` are the bytes free beside `store`.
    """
    found = [*_of_plex(status), *_of_folders(status), *_of_models(status, deaths)]
    if free is not None and free < LEAST_FREE:
        text = f"The disk of the store ({printable(store.parent)}) is full: {free >> 20} MiB are"
        found.append(Problem("disk:store", f"{text} free. Free some space; nothing is lost.", 0.0))
    if (age := now - (status.backup or status.since)) > OLD_BACKUP:
        text = f"The store was not backed up for {describe_age(age)}. The log says why:"
        found.append(Problem("backup", f"{text} journalctl -u reclass-plex | grep maintenance."))
    if no_space:
        text = f"{no_space} tracks cannot be written: their disk is full. Free some space; they"
        found.append(Problem("disk:music", f"{text} are tried again by themselves."))
    ended = sum(outcomes.get(state, 0) for state in ("done", "skipped", "review", "failed"))
    failed = outcomes.get("failed", 0)
    if failed >= MANY_FAILURES and failed >= FAILURE_SHARE * ended:
        text = f"{failed} of the last {ended} tracks failed. reclass-plex jobs --state failed says"
        found.append(Problem("failures", f"{text} why, reclass-plex doctor checks everything."))
    return found


def free_bytes(folder: Path) -> int | None:
    """Return what is free on a folder's disk; None if it cannot be told."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def _of_plex(status: Status) -> list[Problem]:
    plex = status.plex
    said = f": {plex.message}" if plex.message else ""
    if plex.state == "needs sign-in":
        text = f"Plex refuses the token{said}. Files go on being tagged; Plex is left alone. Sign"
        return [Problem("plex:token", f"{text} in again: sudo reclass-plex init.", 0.0)]
    if plex.state == "off" and plex.message and plex.message != "plex.url is not set":
        return [Problem("plex:config", f"Plex is left alone until this is changed: {plex.message}")]
    return []


def _of_folders(status: Status) -> list[Problem]:
    return [
        Problem(
            f"folder:{printable(folder.path)}",
            f"The folder {printable(folder.path)} is paused: {folder.why}. Nothing of it is taken"
            " for deleted; work there goes on by itself when it is back.",
            FOLDER_PATIENCE,
        )
        for folder in status.folders
        if folder.state == "paused" and folder.why != FIRST_LOOK
    ]


def _of_models(status: Status, deaths: int) -> list[Problem]:
    found = []
    if status.state == "waiting" and status.why:
        found.append(Problem("worker", f"Nothing is classified: {status.why}."))
    elif deaths >= MANY_DEATHS:
        text = f"The process that listens died {deaths} times in a row. Its log says why:"
        found.append(Problem("worker", f"{text} journalctl -u reclass-plex.", 0.0))
    if status.left_out:
        text = "Models are missing or damaged: " + "; ".join(status.left_out)
        found.append(Problem("models", f"{text}. reclass-plex models verify checks them."))
    return found
