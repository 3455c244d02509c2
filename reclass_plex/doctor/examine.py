"""All checks, in the order in which they are shown."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from reclass_plex.config import Config, config_path, load_config
from reclass_plex.doctor.checks import Check, within
from reclass_plex.doctor.folders import check_folders
from reclass_plex.doctor.machine import check_machine
from reclass_plex.doctor.process import check_daemon
from reclass_plex.doctor.server import check_plex
from reclass_plex.doctor.storage import check_disks, check_store
from reclass_plex.errors import ConfigError, printable

FOLDER_SECONDS = 30.0  # for one check; a network mount may be slow
PLEX_SECONDS = 60.0
STORE_SECONDS = 120.0
_MOUNT_ADVICE = "Is the server of a network mount away? Look at it with: ls, df, dmesg."


def diagnose(config_file: Path | None = None) -> Iterator[Check]:
    """Load the configuration and run every check; one that cannot be loaded is an error itself.

    Then the others go by the defaults.
    """
    try:
        config = load_config(config_file)
    except ConfigError as error:
        advice = "What follows goes by the defaults. config.example.yaml shows every key."
        yield Check("configuration", "error", str(error), advice)
        config = Config()
    yield from examine(config, config_file)


def examine(config: Config, config_file: Path | None = None) -> Iterator[Check]:
    """Run every check; each is yielded when it is done. `config_file` is the file in use."""
    path = config_file or config_path()
    yield from _check_config_file(path)
    yield from _check_user()
    yield from check_machine(config)
    store = config.store.resolve()
    yield from within(STORE_SECONDS, "store", _MOUNT_ADVICE, lambda: check_store(store))
    yield from within(
        FOLDER_SECONDS, "disk", _MOUNT_ADVICE, lambda: check_disks(store, config.watch.folders)
    )
    yield from within(
        PLEX_SECONDS,
        "plex",
        "Plex, or the disk with its music, is too slow.",
        lambda: check_plex(config.plex, path),
    )
    yield from within(
        FOLDER_SECONDS,
        "folder",
        _MOUNT_ADVICE,
        lambda: check_folders(config.watch, needed=os.path.lexists(path)),
    )
    yield from within(
        FOLDER_SECONDS,
        "daemon",
        "Look at its log: journalctl -u reclass-plex",
        lambda: check_daemon(config.web, store, needed=bool(config.watch.folders)),
    )


def _check_config_file(path: Path) -> Iterator[Check]:
    name = printable(path)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        advice = "reclass-plex init asks a few questions and writes it."
        yield Check("configuration", "ok", f"no {name}: the defaults hold", advice)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = "Let the user that runs this enter its folder."
        yield Check("configuration", "error", f"{name}: {reason}", advice)
    else:
        if mode & 0o022:
            advice = f"It says what is done to your files: chmod go-w {name}"
            text = f"{name}: others may write it (mode {mode:o})"
            yield Check("configuration", "warning", text, advice)
        else:
            yield Check("configuration", "ok", f"{name}, mode {mode:o}")


def _check_user() -> Iterator[Check]:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, in a container
        name = str(os.geteuid())
    if os.geteuid() == 0:
        advice = (
            "What the service may do, its own user sees: sudo -u reclass-plex reclass-plex doctor"
        )
        yield Check("user", "ok", f"{name}, who may read and write nearly everything", advice)
    else:
        yield Check("user", "ok", name)
