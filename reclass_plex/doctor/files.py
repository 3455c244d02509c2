"""May a file be replaced by a changed copy of itself?"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from reclass_plex.errors import FileError, visible
from reclass_plex.files import check_writable, resolve_links

_CAP_CHOWN = 1 << 0  # capabilities(7)


def explain_unwritable(path: Path) -> str | None:
    """Say why a file could not be tagged: its folder, its mode, its disk, its owner; or None.

    As far as can be told without writing: a server that makes root a nobody (NFS) is not seen.
    """
    try:
        real = resolve_links(path)
        status = real.stat()
        check_writable(real, status)
    except FileError as error:
        return visible(error.reason)
    if not can_keep_owner(status, real.parent.stat()):
        return f"belongs to user {status.st_uid}, group {status.st_gid}, which a copy would lose"
    return None


def can_keep_owner(status: os.stat_result, folder: os.stat_result) -> bool:
    """Say whether a new file of ours in `folder` can have the owner and group of `status`."""
    if _may_give_away():
        return True
    if status.st_uid != os.geteuid():
        return False
    groups = {os.getegid(), *os.getgroups()}
    if folder.st_mode & stat.S_ISGID:  # new files have the folder's group
        groups.add(folder.st_gid)
    return status.st_gid in groups


def _may_give_away() -> bool:
    try:
        found = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        found = None
    return os.geteuid() == 0 if found is None else bool(int(found[1], 16) & _CAP_CHOWN)
