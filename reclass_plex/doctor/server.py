"""Plex: is it reached, does it accept us, and are its tracks the files that we see?"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from reclass_plex import credentials
from reclass_plex.config import PlexOptions
from reclass_plex.doctor.checks import Check
from reclass_plex.doctor.files import explain_unwritable
from reclass_plex.errors import ConfigError, PlexError, PlexUnauthorized, PlexUnreachable, visible
from reclass_plex.plex import Plex, PlexTrack, report_server, to_local

RECENT_TRACKS = 10
REQUEST_SECONDS = 10.0


def check_plex(options: PlexOptions, config_file: Path) -> Iterator[Check]:
    """Look at the token, the server, its libraries, and its newest tracks."""
    if options.url is None:
        advice = "reclass-plex init connects to a server, if you have one."
        yield Check("plex", "ok", "not set up: genres go into the files only", advice)
        return
    remarks: list[str] = []
    try:
        secret = credentials.find_plex_token(options, config_file, remarks.append)
    except ConfigError as error:
        yield Check("plex token", "error", str(error), "reclass-plex init signs in.")
        return
    for remark in remarks:
        yield Check("plex token", "warning", remark)
    try:
        quick = {"timeout_seconds": min(options.timeout_seconds, REQUEST_SECONDS)}
        with Plex(options.model_copy(update=quick), secret.value) as plex:
            yield Check("plex token", "ok", f"{secret.place} is accepted")
            for line in report_server(plex):
                yield Check("plex", line.level, visible(line.text))
            yield from _check_tracks(plex)
    except PlexUnauthorized as error:
        advice = "Sign in with reclass-plex init, as the owner of the server."
        yield Check("plex token", "error", f"{secret.place}: {error}", advice)
    except PlexUnreachable as error:
        advice = "Is it running, is plex.url right, and does a firewall let us through?"
        yield Check("plex", "error", visible(str(error)), advice)
    except (PlexError, ConfigError) as error:
        yield Check(
            "plex", "error", visible(str(error)), "Is plex.url the address of a Plex server?"
        )


def _check_tracks(plex: Plex) -> Iterator[Check]:
    newest = heapq.nlargest(
        RECENT_TRACKS,
        (
            track
            for library in plex.list_libraries()
            for track in islice(plex.recently_added(library.key, 0), RECENT_TRACKS)
        ),
        key=lambda track: track.added_at,
    )
    if not newest:
        yield Check("plex track", "ok", "there is none yet")
    for track in newest:
        yield _check_track(track, plex.options)


def _check_track(track: PlexTrack, options: PlexOptions) -> Check:
    """Say what Plex calls a track's file, what it is here, and what may be done with it."""
    if not track.paths:
        advice = "Let Plex scan the library."
        return Check("plex track", "warning", f"{visible(track.title)}: Plex knows no file", advice)
    name = visible(track.paths[0])
    path = to_local(track.paths[0], options.path_map)
    if path is None:
        advice = "Say in plex.path_map where that folder is on this machine."
        return Check("plex track", "error", f"{name}: has no path on this machine", advice)
    text = name if str(path) == track.paths[0] else f"{name} is {visible(os.fspath(path))}"
    try:
        path.stat()
    except FileNotFoundError:
        advice = (
            "Is plex.path_map right, and is its disk mounted? If the file was deleted, Plex forgets"
            " it with its next scan."
        )
        return Check("plex track", "error", f"{text}: is not there", advice)
    except OSError as error:
        advice = "Let this user enter the folders above it."
        reason = (error.strerror or str(error)).lower()
        return Check("plex track", "error", f"{text}: {reason}", advice)
    if not os.access(path, os.R_OK):
        advice = "Let this user read it."
        return Check("plex track", "error", f"{text}: may not be read", advice)
    if problem := explain_unwritable(path):
        advice = "Its genre can be written into Plex, but not into the file."
        return Check("plex track", "warning", f"{text}: readable, but {problem}", advice)
    return Check("plex track", "ok", f"{text}: readable, writable")
