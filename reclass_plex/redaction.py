"""Keeping secrets out of what is printed and logged.

The code that says something leaves secrets out by itself (addresses by `http_stream.shown`, errors
of Plex by the client). This is the second line behind it, for what nobody thought of: tracebacks,
texts of libraries, a token that stands in the wrong key of the configuration. It hides what looks
like a secret, and every value that this process has read as one (`remember`).
"""

from __future__ import annotations

import logging
import re
import threading
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "•••"
SHORTEST = 6  # characters of a value that is hidden wherever it stands; fewer are in other words
_MOST = 1000  # values

# An address with a password. The password may hold what should have been escaped, even a "/".
_PASSWORD = re.compile(r"(\w://[^/\s:@]*:)[^\s\"'<>]+(?=@)")
# Values beside a name that says what they are, and keys that are parts of addresses of ours.
_PATTERNS = (
    re.compile(
        r"((?:token|secret|password|passwd|api[_-]?key|authorization|cookie)[\"']?\s*"
        # Behind a colon may stand a sentence: "plex-token: cannot be read".
        r"(?:=\s*|:\s*(?=(?:bearer|basic)\b|[\"']|\S*\d|\S{14}))"
        r"(?:(?:bearer|basic)\s+)?[\"']?)[^\s&\"',;]+",
        re.IGNORECASE,
    ),
    _PASSWORD,
    re.compile(r"(/(?:webhook|login)/)[^\s/?\"']+"),
    re.compile(r"(\b(?:bearer|basic)\s+)\S{8,}", re.IGNORECASE),
)
_known: set[str] = set()
_changing = threading.Lock()


def remember(secret: str) -> None:
    """Hide a value from now on wherever it stands, also where an address has it escaped."""
    with _changing:
        for form in (secret, quote(secret, safe=""), unquote(secret)):
            if len(form) >= SHORTEST and len(_known) < _MOST:
                _known.add(form)


def remember_address(address: str) -> None:
    """Hide an address as a whole, and the password in it."""
    remember(address)
    try:
        parts = urlsplit(address)
        password = parts.password
    except ValueError:
        return
    if password:
        remember(password)


def hide_passwords(text: str) -> str:
    """Return `text` with the passwords in addresses left out, and nothing else."""
    return _PASSWORD.sub(rf"\1{HIDDEN}", text)


def hide_secrets(text: str) -> str:
    """Return `text` without what looks like a secret, and without what is known as one."""
    with _changing:
        known = sorted(_known, key=len, reverse=True)  # one may be part of another
    for value in known:
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


class HidingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, bear no secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return hide_secrets(super().format(record))
