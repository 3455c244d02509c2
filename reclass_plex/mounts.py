"""Which folders are on network file systems, and which mounts are missing: from the kernel's table.

Nothing here touches the folders themselves more than to resolve links: a mount whose server is
away would make the caller wait.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from reclass_plex.errors import printable

# Of these a change made elsewhere sends no event here (watchdog 409, 458, 504).
_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "ceph", "coda", "9p"),
        *("lustre", "beegfs", "glusterfs", "gpfs", "virtiofs", "vboxsf", "prl_fs", "drvfs"),
        *("vmhgfs", "orangefs", "davfs", "fuse"),
    )
)
# FUSE that is a local disk, or a view of one. Any other FUSE may be a network.
_LOCAL_FUSE = frozenset(
    f"fuse.{name}"
    for name in ("mergerfs", "bindfs", "encfs", "gocryptfs", "cryfs", "ntfs-3g", "exfat", "zfs")
)

# Where ? or : cannot be in a name, or only in a way that Windows does not read.
_FOREIGN = frozenset(
    (
        *("vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "fuse.ntfs-3g", "fuse.exfat"),
        *("cifs", "smb2", "smb3", "smbfs", "drvfs", "vboxsf", "vmhgfs"),
    )
)


def network_mounts(root: Path, mountinfo: str | None = None) -> list[str]:
    """Return the network file systems at or below `root`, as "/mount/point (type)".

    `mountinfo` is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
    """
    real = os.path.realpath(root)
    mounted = _mounted(mountinfo)
    below = {point: kind for point, kind in mounted if point != real and _is_in(point, real)}
    return [
        f"{printable(point)} ({kind})"
        for point, kind in (_mount_of(real, mounted), *below.items())
        if kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
    ]


def missing_mounts(root: Path, fstab: str | None = None, mountinfo: str | None = None) -> list[str]:
    """Return the mount points of /etc/fstab at or above `root` that are not mounted now.

    `fstab` is the text of /etc/fstab (fstab(5)); a machine without one misses nothing.
    """
    if fstab is None:
        try:
            fstab = os.fsdecode(Path("/etc/fstab").read_bytes())
        except OSError:
            return []
    real = os.path.realpath(root)
    mounted = {point for point, _ in _mounted(mountinfo)}
    missing = []
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#") or fields[2] == "swap":
            continue
        point = os.path.normpath(_unescape(fields[1]))
        if not point.startswith("/") or point in mounted:
            continue
        if _is_in(real, point):
            missing.append(printable(point))
    return missing


def _mounted(mountinfo: str | None) -> list[tuple[str, str]]:
    """Return mount points and types of file system, in the order of mounting."""
    if mountinfo is None:
        mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    found = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        found.append((_unescape(fields.split(" ")[4]), rest.split(" ")[0]))
    return found


def _mount_of(path: str, mounted: list[tuple[str, str]]) -> tuple[str, str]:
    """Return the mount point that a path is on, and its type; of several at one point the last."""
    above = ("", "")
    for point, kind in mounted:
        if _is_in(path, point) and len(point) >= len(above[0]):
            above = (point, kind)
    return above


def _unescape(text: str) -> str:
    """Return a path of these tables as it is: blanks and the like come as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def is_foreign(folder: Path, mountinfo: str | None = None) -> bool:
    """Tell whether the file system that `folder` is on takes only the names that Windows takes."""
    return _mount_of(os.path.realpath(folder), _mounted(mountinfo))[1] in _FOREIGN
