"""Plex: which tracks a server has, where they lie, and their genres, moods and styles.

`client` connects and reads, `edits` plans, writes and takes back, `paths` maps paths in both
directions, `playlists` writes these, `votes` finds an album's genres, `report` describes the
server. What of all this is wanted and was done is kept by `reclass_plex.sync`.
"""

from reclass_plex.plex.client import Plex, library_folders, parse_version
from reclass_plex.plex.connections import Connections
from reclass_plex.plex.edits import apply_edits, plan_edits, undo_edits
from reclass_plex.plex.paths import spellings, to_local, to_plex
from reclass_plex.plex.playlists import Playlist, find_playlist, list_playlists, write_playlist
from reclass_plex.plex.records import (
    EditOutcome,
    EditPlan,
    EditRecord,
    Field,
    Kind,
    MusicLibrary,
    PlexItem,
    PlexTrack,
    ReportLine,
    Skipped,
    same_genres,
)
from reclass_plex.plex.report import report_server
from reclass_plex.plex.votes import vote_genres, vote_labels

__all__ = [
    "Connections",
    "EditOutcome",
    "EditPlan",
    "EditRecord",
    "Field",
    "Kind",
    "MusicLibrary",
    "Playlist",
    "Plex",
    "PlexItem",
    "PlexTrack",
    "ReportLine",
    "Skipped",
    "apply_edits",
    "find_playlist",
    "library_folders",
    "list_playlists",
    "parse_version",
    "plan_edits",
    "report_server",
    "same_genres",
    "spellings",
    "to_local",
    "to_plex",
    "undo_edits",
    "vote_genres",
    "vote_labels",
    "write_playlist",
]
