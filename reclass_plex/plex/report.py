"""What bears on genres at the server: its version, its libraries and their settings."""

from __future__ import annotations

import re

from reclass_plex.plex.client import Plex
from reclass_plex.plex.records import ReportLine


def report_server(plex: Plex) -> tuple[ReportLine, ...]:
    """Describe the server, its music libraries, and settings that bear on genres."""
    lines = [ReportLine("ok", f"Plex server {plex.name}, version {plex.version}, {plex.url}")]
    if plex.options.tracks and not plex.has_track_genres:
        lines.append(
            ReportLine(
                "warning",
                f"version {plex.version} has no genres of tracks, only of albums and artists;"
                " update Plex to 1.40.0 or later",
            )
        )
    libraries = plex.list_libraries()
    found = {library.title.casefold() for library in libraries}
    for title in plex.options.libraries:
        if title.casefold() not in found:
            lines.append(ReportLine("error", f"plex.libraries: no music library {title!r}"))
    if not libraries:
        lines.append(ReportLine("error", "there is no music library to work on"))
    for library in libraries:
        folders = ", ".join(library.folders)
        lines.append(
            ReportLine(
                "ok",
                f"library {library.title}: agent {library.agent}, scanner {library.scanner},"
                f" folders {folders}",
            )
        )
        for name, value in plex.list_settings(library.key):
            if re.search(r"genre|local metadata|respectTags", name, re.IGNORECASE):
                lines.append(ReportLine("ok", f"library {library.title}: {name} is {value}"))
    return tuple(lines)
