"""What systemd wants to hear of a service (sd_notify(3)): one datagram each to $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Tell systemd ("READY=1", "STATUS=..."); nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # in Linux's abstract namespace, whose names begin with NUL
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            return  # a daemon does not end because nobody hears how it is


def watchdog_seconds() -> float | None:
    """Return how often systemd wants to hear that we live, None if it does not."""
    period = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID") or str(os.getpid())
    if not period.isdecimal() or owner != str(os.getpid()):
        return None
    return int(period) / 1e6
