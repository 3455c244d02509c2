"""The watched folders: there, mounted, readable, writable, and within what the kernel watches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from reclass_plex.config import WatchOptions
from reclass_plex.doctor.checks import Check
from reclass_plex.doctor.files import explain_unwritable
from reclass_plex.errors import FileError, printable
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files
from reclass_plex.mounts import missing_mounts, network_mounts

LOOKED_AT = 50  # files of each folder
COUNT_SECONDS = 10.0  # for counting folders
NEARLY = 0.9  # of a limit of the kernel
_INOTIFY = Path("/proc/sys/fs/inotify")


def check_folders(options: WatchOptions, *, needed: bool) -> Iterator[Check]:
    """Look at each watched folder, then at inotify's limits; `needed`: none is a warning."""
    if not options.folders:
        advice = "reclass-plex init asks for them. Only the daemon needs any."
        yield Check("folder", "warning" if needed else "ok", "none is watched", advice)
        return
    listened = []
    for folder in options.folders:
        checks = list(_check_folder(folder, options))
        yield from checks
        if all(check.level != "error" for check in checks) and not network_mounts(folder):
            listened.append(folder)
    if listened and not options.always_poll:
        yield from _check_inotify(listened)


def _check_folder(folder: Path, options: WatchOptions) -> Iterator[Check]:
    name = printable(folder)
    away = missing_mounts(folder)
    if away:
        advice = f"Mount it: mount {away[0]}. Until then the daemon leaves the folder alone."
        yield Check("folder", "error", f"{name}: {away[0]} is in /etc/fstab, not mounted", advice)
        return
    try:
        with os.scandir(folder) as entries:
            empty = next(entries, None) is None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = "Correct watch.folders, mount its disk, or let this user read and enter it."
        yield Check("folder", "error", f"{name}: {reason}", advice)
        return
    if empty:
        advice = "Is its disk mounted?"
        yield Check("folder", "warning", f"{name}: is empty", advice)
    for mount in network_mounts(folder):
        text = f"{name}: {mount} does not tell of new files; looked through"
        yield Check("network", "ok", f"{text} every {options.poll_seconds:g} s instead")
    files: list[FoundFile] = []
    broken: list[FileError] = []
    for found in islice(find_audio_files([folder], AUDIO_SUFFIXES), LOOKED_AT):
        if isinstance(found, FoundFile):
            files.append(found)
        else:
            broken.append(found)
    unreadable = [str(error) for error in broken]
    unreadable += [printable(one.path) for one in files if not os.access(one.path, os.R_OK)]
    if unreadable:
        advice = "Let this user read the files and enter the folders."
        text = f"{name}: {len(unreadable)} cannot be read, such as {unreadable[0]}"
        yield Check("folder", "warning", text, advice)
    problems = [
        f"{printable(one.path)}: {why}" for one in files if (why := explain_unwritable(one.path))
    ]
    if problems:
        advice = "Run as the owner of the music, and let that user write its folders."
        text = f"{name}: {len(problems)} of {len(files)} files could not be tagged: {problems[0]}"
        yield Check("folder", "error" if len(problems) == len(files) else "warning", text, advice)
    elif not files and not os.access(folder, os.W_OK | os.X_OK):
        advice = "Let this user write it, or give its files' folders to that user."
        yield Check("folder", "warning", f"{name}: may not be written", advice)
    elif not unreadable:
        seen = f"the first {len(files)} files are" if files else "it is"
        yield Check("folder", "ok", f"{name}: {seen} readable and writable")


def _check_inotify(folders: Sequence[Path]) -> Iterator[Check]:
    """Compare what is to be watched with what the kernel allows this user."""
    watches, instances = _limit("watches"), _limit("instances")
    if watches is None or instances is None:
        yield Check("inotify", "ok", "this kernel has none: folders are looked through instead")
        return
    count, counted = _count_folders(folders)
    text = f"{count:,}{'' if counted else ' and more'} folders to watch, {watches:,} allowed"
    if count > NEARLY * watches:
        advice = (
            "sysctl fs.inotify.max_user_watches=1048576, and the same line in"
            " /etc/sysctl.d/90-inotify.conf; without it folders are looked through instead."
        )
        yield Check("inotify", "warning", text, advice)
    else:
        yield Check("inotify", "ok", text)
    used = _instances_in_use()
    if used + len(folders) > instances:
        advice = "sysctl fs.inotify.max_user_instances=1024, and the same in /etc/sysctl.d."
        text = f"{used} instances in use, {len(folders)} needed, {instances} allowed"
        yield Check("inotify", "warning", text, advice)


def _limit(what: str) -> int | None:
    """Return the smaller of the kernel's limit and that of this user namespace."""
    found = []
    for path in (_INOTIFY / f"max_user_{what}", Path(f"/proc/sys/user/max_inotify_{what}")):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _count_folders(roots: Sequence[Path]) -> tuple[int, bool]:
    """Return how many folders there are, and whether all could be counted in time."""
    end = time.monotonic() + COUNT_SECONDS
    count = 0
    for root in roots:
        for _ in os.walk(root):
            count += 1
            if time.monotonic() > end:
                return count, False
    return count, True


def _instances_in_use() -> int:
    """Count this user's inotify instances, as far as /proc shows them."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid != os.geteuid():
                continue
            for link in (process / "fd").iterdir():
                count += os.readlink(link) == "anon_inode:inotify"  # noqa: PTH115
        except OSError:
            continue  # it has ended, or may not be looked at
    return count
