"""File operations that fail and a clock that is wrong, in processes that load shim.c first."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
OPERATIONS = {"read": 1, "write": 2, "sync": 4, "rename": 8, "open": 16}
_HEAD = struct.Struct("<q4I2048s")  # as struct control in shim.c


class Shim:
    """Its control, and the environment of the processes that shall obey it."""

    def __init__(self, folder: Path) -> None:
        """Compile it into `folder`. Raises OSError where there is no C compiler."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise FileNotFoundError(errno.ENOENT, "there is no C compiler")
        library = folder / "shim.so"
        command = [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        subprocess.run([*command, "-ldl"], check=True)
        self._control = folder / "shim.control"
        self._control.write_bytes(bytes(_HEAD.size))
        self._file = self._control.open("r+b")
        self._mapped = mmap.mmap(self._file.fileno(), _HEAD.size)
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_CONTROL": str(self._control)}

    def fail(self, operations: str, below: Path, permille: int, error: int = errno.EIO) -> None:
        """Let operations ("read write") on what lies below a path fail, by chance."""
        mask = sum(OPERATIONS[name] for name in operations.split())
        prefix = os.fsencode(below)
        self._mapped[24 : 24 + len(prefix) + 1] = prefix + b"\0"
        self._mapped[8:20] = struct.pack("<3I", permille, mask, error)

    def heal(self) -> None:
        self._mapped[8:20] = bytes(12)

    def set_clock(self, seconds: int) -> None:
        """Let the clock of the day be off by so much."""
        self._mapped[0:8] = struct.pack("<q", seconds)

    @property
    def clock(self) -> int:
        return int(struct.unpack("<q", self._mapped[0:8])[0])

    @property
    def hits(self) -> int:
        """Count the operations that failed so far."""
        return int(struct.unpack("<I", self._mapped[20:24])[0])

    def close(self) -> None:
        self._mapped.close()
        self._file.close()
