"""The password of the dashboard: kept as a hash (scrypt) in a file of mode 600 beside the store.

There is no default one. Whoever may read the file can try passwords against it, no more; whoever
may write it is the daemon's own user.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import unicodedata
from pathlib import Path

from reclass_plex.credentials import write_secret
from reclass_plex.errors import ConfigError, StoreError, printable

FILE_NAME = "web-password"
MIN_LENGTH = 10  # characters
MAX_LENGTH = 1000
_COST = 2**15  # scrypt's n: with r = 8 it takes 32 MiB and about 0.1 s
_BLOCK = 8
_SALT_BYTES = 16
_MAX_MEMORY = 64 << 20
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that look alike


def make_password() -> str:
    """Return a new one that can be typed: 20 letters and digits in groups, 99 bits."""
    groups = ("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))
    return "-".join(groups)


def password_file(store_path: Path) -> Path:
    """Return where the hash is kept."""
    return store_path.with_name(FILE_NAME)


def has_password(store_path: Path) -> bool:
    """Tell whether one is set."""
    return os.path.lexists(password_file(store_path))


def set_password(store_path: Path, password: str) -> None:
    """Set the password. Raises ConfigError for one that is too short, StoreError."""
    password = _plain(password)
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise ConfigError(f"the password: must have {MIN_LENGTH} to {MAX_LENGTH} characters")
    salt = secrets.token_bytes(_SALT_BYTES)
    parts = (base64.b64encode(part).decode() for part in (salt, _hash(password, salt, _COST)))
    path = password_file(store_path)
    try:
        write_secret(path, "$".join(("scrypt", str(_COST), *parts)) + "\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"{printable(path)}: the password cannot be kept: {reason}") from error


def check_password(store_path: Path, password: str) -> bool:
    """Tell whether this is the password; with none set no password is right.

    Takes as long for a wrong one. Raises ConfigError if the file is damaged or cannot be read.
    """
    path = password_file(store_path)
    given = _plain(password[: 2 * MAX_LENGTH])
    try:
        kind, cost, salt, expected = path.read_text("ascii").strip().split("$")
        parts = base64.b64decode(salt, validate=True), base64.b64decode(expected, validate=True)
        if kind != "scrypt" or not 2 <= int(cost) <= _COST or len(parts[1]) < 32:
            raise ValueError("not as written by set_password")
        return hmac.compare_digest(_hash(given, parts[0], int(cost)), parts[1])
    except FileNotFoundError:
        _hash(given, b"-" * _SALT_BYTES, _COST)
        return False
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{printable(path)}: the password cannot be checked ({error}): set another with"
            " reclass-plex password"
        ) from error


def _plain(password: str) -> str:
    """Return the same text for the same keys, whatever the keyboard sends for an accent."""
    return unicodedata.normalize("NFKC", password)


def _hash(password: str, salt: bytes, cost: int) -> bytes:
    text = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=cost, r=_BLOCK, p=1, maxmem=_MAX_MEMORY, dklen=32)
