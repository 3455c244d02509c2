"""How Ray is reached, and what it says, in one line."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from reclass_plex.errors import ClusterError, ConfigError
from reclass_plex.pipeline import count_cores

KNOCK_SECONDS = 5.0  # for an address to answer at all
STORE_BYTES = 80 << 20  # of Ray's memory for objects, where we start it: answers are small


def import_ray() -> Any:  # noqa: ANN401 - it is an extra
    """Return Ray. Raises ConfigError if it is not installed."""
    # Where we start it, or ask it: it shall not report to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            f"--cluster needs Ray ({error}): pip install 'reclass-plex[cluster]'"
        ) from error
    return ray


def connect(ray: Any, address: str) -> None:  # noqa: ANN401 - see import_ray
    """Enter the cluster at `address`. Raises ConfigError, ClusterError."""
    options: dict[str, Any] = {"namespace": "reclass-plex"}
    if not address.startswith("ray://"):
        options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": count_cores(), "include_dashboard": False}
        options |= {"object_store_memory": STORE_BYTES}
    elif address != "auto":
        _knock(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"{address}: Ray cannot be reached: {last_line(error)}") from error


def _knock(address: str) -> None:
    """Raise unless something listens there: Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("", "ray"):
        raise ConfigError(f"--cluster {address}: must be ray://HOST:PORT, HOST:PORT, auto or local")
    try:
        socket.create_connection((host, port), KNOCK_SECONDS).close()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ClusterError(f"{address}: no Ray answers there: {why}") from error


def last_line(error: BaseException) -> str:
    """Return the line that says what is wrong: Ray's texts are long, and end with it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
