"""Small disks of their own for music and store, which fill up, turn read-only, and go away.

They are tmpfs: only root may mount. `Disks.possible` tells; without, nothing is mounted, and a full
or read-only disk is told by the shim (`faults.shim`) alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

GRACE_SECONDS = 5.0  # for who has a file open for writing, before a disk can turn read-only


class Disks:
    """`music` on one disk, `state` on another, below `root`."""

    def __init__(self, root: Path, megabytes: int) -> None:
        self.music, self.state = root / "music", root / "state"
        self._disk = root / "disk"
        self._filler = self._disk / "filler"
        self._state_filler = self.state / "filler"
        self._mounted: list[Path] = []
        for folder in (self.music, self.state, self._disk):
            folder.mkdir(parents=True, exist_ok=True)
        self._mount("-t", "tmpfs", "-o", f"size={megabytes}m", "none", at=self._disk)
        self._mount("-t", "tmpfs", "-o", "size=256m", "none", at=self.state)
        (self._disk / "music").mkdir()
        self._mount("--bind", str(self._disk / "music"), at=self.music)

    @staticmethod
    def possible() -> bool:
        return os.geteuid() == 0 and shutil.which("mount") is not None and _may_mount()

    def fill(self, which: str) -> None:
        """Leave no byte free on the disk of "music" or "state"."""
        filler = self._filler if which == "music" else self._state_filler
        block = bytes(1 << 20)
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                block = block[: file.write(block)] or block
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def empty(self) -> None:
        """Give the space back."""
        for filler in (self._filler, self._state_filler):
            filler.unlink(missing_ok=True)

    def set_readonly(self, readonly: bool) -> bool:
        """Turn the music's disk read-only, or writable; return whether that worked."""
        option = "ro" if readonly else "rw"
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until:
            command = ["mount", "-o", f"remount,bind,{option}", str(self.music)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return True
            time.sleep(0.02)
        return False

    def take_away(self) -> None:
        """Remove the music's mount: an empty folder is there."""
        _run("umount", "-l", str(self.music))
        self._mounted.remove(self.music)

    def bring_back(self) -> None:
        self._mount("--bind", str(self._disk / "music"), at=self.music)

    def close(self) -> None:
        """Unmount all."""
        for place in reversed(self._mounted):
            _run("umount", "-l", str(place))
        self._mounted.clear()

    def _mount(self, *options: str, at: Path) -> None:
        _run("mount", *options, str(at))
        self._mounted.append(at)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _may_mount() -> bool:
    """Say whether this root may mount: those of containers often may not."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
