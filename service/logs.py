"""How the daemon and its worker log: one line an event, on standard error."""

from __future__ import annotations

import logging
import os
import sys

from reclass_plex.redaction import HidingFormatter
from service.recent_lines import recent_lines

_CHATTY = ("alembic", "apscheduler", "asyncio", "multipart", "plexapi", "urllib3", "watchdog")


def log_format() -> str:
    """Return the form of a line. Under systemd the journal has its own times."""
    return "%(message)s" if "JOURNAL_STREAM" in os.environ else "%(asctime)s %(message)s"


def set_up_log(level: int, dashboard: logging.Handler = recent_lines) -> None:
    """Log to standard error, and for the dashboard; of the libraries only what is wrong."""
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(HidingFormatter(log_format()))
    logging.basicConfig(level=level, handlers=[shown])
    logging.getLogger().addHandler(dashboard)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
