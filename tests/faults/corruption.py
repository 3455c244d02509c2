"""The database is damaged, and restored from its backup."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from faults.checker import Violation
from faults.world import World

RUN_SECONDS = 6.0  # that a daemon runs on a damaged database, if it does


def corrupt_and_restore(world: World) -> None:
    """In a calm moment: back up, damage, let a daemon try, restore, and judge."""
    from reclass_plex.backups import make_backup

    world.calm()
    backup = make_backup(world.site.store)
    assert backup is not None
    kind = world.random.choice(("pages", "header", "cut", "wal", "shm"))
    assert world.daemon is not None
    world.daemon.end() if kind in ("wal", "shm") else world.stop()
    damaged = _damage(world.site.store, kind, world.random)
    world.note(f"condition database damaged: {kind}", f"{damaged} bytes")
    size = world.site.log.stat().st_size
    daemon = world.start()
    until = time.monotonic() + RUN_SECONDS
    while time.monotonic() < until and daemon.process.poll() is None:
        time.sleep(0.1)
    status = daemon.process.poll()
    daemon.end()
    with world.site.log.open("rb") as log:
        log.seek(size)
        said = log.read().decode(errors="replace")
    world.say(f"the daemon {'ran on' if status is None else f'ended with {status}'}")
    if "Traceback" in said:
        world.violations.append(Violation("damaged database", f"{kind}: a traceback in the log"))
    if status is not None and not any(word in said for word in ("damaged", "restore", "cannot")):
        world.violations.append(Violation("damaged database", f"{kind}: no advice: {said[-300:]}"))
    _restore(world, backup)
    world.calm()


def _damage(store: Path, kind: str, generator: random.Random) -> int:
    wal, shm = (store.with_name(store.name + suffix) for suffix in ("-wal", "-shm"))
    path = {"wal": wal, "shm": shm}.get(kind, store)
    if not path.exists():
        return 0
    size = path.stat().st_size
    with path.open("r+b") as file:
        if kind == "cut":
            file.truncate(size // 2 // 4096 * 4096 + 100)
            return size // 2
        count = 1 if kind == "header" else max(1, size // 4096 // 3)
        for _ in range(count):
            page = 0 if kind == "header" else generator.randrange(max(1, size // 4096))
            file.seek(page * 4096)
            file.write(generator.randbytes(min(4096, size)))
        file.flush()
        os.fsync(file.fileno())
    return count * 4096


def _restore(world: World, backup: Path) -> None:
    """Put the backup in the store's place, as a person would."""
    command = [sys.executable, "-m", "reclass_plex", "restore", backup.name, "--yes"]
    done = subprocess.run(
        [*command, "--config", str(world.site.config)], capture_output=True, text=True, check=False
    )
    world.say(done.stdout.strip())
    if done.returncode:
        world.violations.append(Violation("damaged database", f"restore: {done.stderr[-300:]}"))
