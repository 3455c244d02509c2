"""The daemon: does it run, or could it?"""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from reclass_plex.config import WebOptions
from reclass_plex.doctor.checks import Check
from reclass_plex.errors import DaemonError
from reclass_plex.password import has_password
from reclass_plex.remote import DaemonClient, find_daemon

CONNECT_SECONDS = 2.0
_LOG = "Look at its log: journalctl -u reclass-plex"


def check_daemon(options: WebOptions, store: Path, *, needed: bool) -> Iterator[Check]:
    """Ask the daemon how it is; without one, look whether its port is free.

    And whether people can sign in where other machines reach it.
    """
    yield from _check_password(options, store)
    try:
        daemon = find_daemon(store)
        if daemon is not None:
            yield from _check_running(daemon)
            return
    except DaemonError as error:
        yield Check("daemon", "warning", str(error), _LOG)
        return
    advice = "Start it: systemctl start reclass-plex, or reclass-plexd"
    yield Check("daemon", "warning" if needed else "ok", "does not run", advice)
    if options.port and _answers(options):
        where = f"{options.host}:{options.port}"
        advice = "Set web.port to another one, or stop what has it: ss -ltnp"
        yield Check(
            "port", "error" if needed else "warning", f"{where}: another program has it", advice
        )


def _check_password(options: WebOptions, store: Path) -> Iterator[Check]:
    proxy = options.trusted_proxy
    signs_in = proxy is not None and proxy.user_header
    # Whether there is a file can be told only by who may enter its folder.
    if options.is_local or signs_in or not os.access(store.parent, os.X_OK):
        return
    if not has_password(store):
        text = f"web.host is {options.host}, which other machines reach, and there is no password:"
        advice = "reclass-plex password sets one; or set web.host to 127.0.0.1."
        yield Check("web", "warning", f"{text} nobody can sign in to the dashboard", advice)


def _check_running(daemon: DaemonClient) -> Iterator[Check]:
    status = daemon.status()
    why = f" ({status.why})" if status.why else ""
    line = ", ".join(f"{count} {state}" for state, count in status.jobs.items() if count)
    yield Check("daemon", "ok", f"{daemon.url}: {status.state}{why}; jobs: {line or 'none'}")
    ours = importlib.metadata.version("reclass-plex")
    if status.version != ours:
        text = f"is version {status.version}, this command {ours}"
        yield Check("daemon", "warning", text, "Restart it: systemctl restart reclass-plex")
    if failed := status.jobs.get("failed"):
        advice = "reclass-plex jobs --state failed names them."
        yield Check("daemon", "warning", f"{failed} tracks have failed", advice)
    if status.plex.state in ("unreachable", "needs sign-in"):
        text = f"Plex: {status.plex.message or status.plex.state}"
        advice = "reclass-plex init signs in." if status.plex.state == "needs sign-in" else ""
        yield Check("daemon", "warning", text, advice)
    for folder in status.folders:
        if folder.state == "paused":
            text = f"{folder.path}: paused: {folder.why}"
            yield Check("daemon", "warning", text, "Is its disk mounted?")


def _answers(options: WebOptions) -> bool:
    """Say whether something listens there; a port of all addresses is looked at by the local."""
    try:
        socket.create_connection((options.own_host, options.port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
