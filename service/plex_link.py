"""The connection to Plex: made when there is none, given up when it fails, made again later.

Unreachable is tried again by itself, ever more rarely. A refused token is the user's to change: it
is tried again when there is another one, or after ten minutes. Each is said once, not per attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

from reclass_plex.config import PlexOptions
from reclass_plex.errors import ConfigError, PlexUnauthorized, ReclassError
from reclass_plex.plex import Connections, Plex, ReportLine, report_server

log = logging.getLogger(__name__)

State = Literal["connected", "unreachable", "needs sign-in", "off"]

FIRST_RETRY_SECONDS = 5.0  # when Plex is away; doubled for each further attempt
MAX_RETRY_SECONDS = 300.0
SIGN_IN_SECONDS = 600.0  # between attempts with a token that was refused
_LEVELS = {"ok": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_NEEDS_USER = "Files go on being tagged; Plex is left alone until there is another token"
_TRIED_AGAIN = "It is tried again by itself; files go on being tagged, and Plex catches up"
_NEEDS_CHANGE = "Plex is left alone until that is changed"


class PlexLink:
    """One server, and how things are with it: `state`, and `message` if they are not well.

    `read_token` may raise ConfigError. `break_off` is for any thread, the rest for one.
    """

    def __init__(self, options: PlexOptions, read_token: Callable[[], str]) -> None:
        self.plex: Plex | None = None
        self.state: State = "off" if options.url is None else "unreachable"
        self.message = "plex.url is not set" if options.url is None else "not connected yet"
        self.next_attempt = 0.0
        self._options = options
        self._read_token = read_token
        self._connections = Connections()
        self._attempts = 0  # in a row that failed
        self._token = ""  # of the last attempt
        self._refused: str | None = None  # the token that was
        self._said = ""  # the state that a line was logged about
        self._report: tuple[ReportLine, ...] = ()

    def connect(self, now: float) -> Plex | None:
        """Return the connection, made if it is time to; None while it is not.

        Raises ConfigError and PlexError: tell `lose`.
        """
        if self.plex is not None or self.state == "off":
            return self.plex
        waits = now < self.next_attempt
        if waits and self._refused is None:
            return None
        problem = ""
        try:
            token = self._read_token()
        except ConfigError as error:
            token, problem = "", str(error)
        if waits and token == self._refused:
            return None
        self._token = token
        if problem:
            raise PlexUnauthorized(problem)
        self.plex = Plex(self._options, token, self._connections)
        report = report_server(self.plex)
        for line in report:
            if line not in self._report:  # a reconnection says only what is new
                log.log(_LEVELS[line.level], "Plex: %s", line.text)
        self._report = report
        return self.plex

    def keep(self) -> None:
        """All that there was to do went well."""
        if self.state != "connected" and self.plex is not None:
            if self._said:
                log.info("Plex: %s answers again", self.plex.url)
            self.state, self.message, self._said = "connected", "", ""
            self._attempts, self._refused = 0, None

    def lose(self, error: ReclassError, now: float) -> None:
        """Drop the connection, say once why, and decide when to try again."""
        self.close()
        if self._connections.broken:
            return
        self.message, self._refused = str(error), None
        if isinstance(error, PlexUnauthorized):
            self.state, what_next = "needs sign-in", _NEEDS_USER
            self._refused, self.next_attempt = self._token, now + SIGN_IN_SECONDS
        elif isinstance(error, ConfigError):
            self.state, what_next = "off", _NEEDS_CHANGE
        else:
            self.state, what_next = "unreachable", _TRIED_AGAIN
            pause = FIRST_RETRY_SECONDS * 2.0 ** min(self._attempts, 10)
            self.next_attempt = now + min(pause, MAX_RETRY_SECONDS)
            self._attempts += 1
        if self._said != self.state:
            log.warning("Plex: %s. %s", error, what_next)
            self._said = self.state

    def break_off(self) -> None:
        """End what waits for an answer, for good."""
        self._connections.break_off()

    def close(self) -> None:
        """Drop the connection."""
        plex, self.plex = self.plex, None
        if plex is not None:
            plex.close()
