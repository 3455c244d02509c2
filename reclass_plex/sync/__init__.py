"""What shall stand in Plex, what we changed there, and what brings the two together.

`wanted` holds the genres that files have and Plex shall show, `places` where the server's tracks
lie, `ledger` our edits. `once` makes Plex agree, in one round; `undo` takes our edits back. All
tables are in the store's database; SQL for them is here only.
"""

from reclass_plex.sync.ledger import PlexEdit, standing_edits
from reclass_plex.sync.once import SyncResult, sync_once
from reclass_plex.sync.places import Places
from reclass_plex.sync.playlists import PlexPlaylist, write_files
from reclass_plex.sync.undo import undo_plex
from reclass_plex.sync.wanted import Wanted, WantedGenres, WantedRow

__all__ = [
    "Places",
    "PlexEdit",
    "PlexPlaylist",
    "SyncResult",
    "Wanted",
    "WantedGenres",
    "WantedRow",
    "standing_edits",
    "sync_once",
    "undo_plex",
    "write_files",
]
