"""Playlists on the server: made, or filled anew so that their old tracks go last.

Nothing else of a playlist is touched: its key, picture and summary stay, and so does its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reclass_plex.batches import cut
from reclass_plex.errors import PlexError, visible
from reclass_plex.plex.client import Plex

_CHUNK = 300  # tracks of one request: their keys are part of an address


@dataclass(frozen=True)
class Playlist:
    """A playlist of music. A smart one is a search, and has no tracks of its own."""

    key: int
    title: str
    smart: bool
    count: int


def find_playlist(plex: Plex, title: str) -> Playlist | None:
    """Return the playlist of this name. Raises PlexError if it is smart, or if there are several.

    Only the account's own are seen, as in Plex itself.
    """
    found = [one for one in list_playlists(plex) if one.title.casefold() == title.casefold()]
    if not found:
        return None
    if len(found) > 1:
        raise PlexError(f"Plex has {len(found)} playlists {visible(title)}: choose another name")
    if found[0].smart:
        raise PlexError(
            f"the playlist {visible(title)} is a smart one, which Plex fills by itself: choose"
            " another name"
        )
    return found[0]


def list_playlists(plex: Plex) -> list[Playlist]:
    """Return the playlists of music."""
    return [
        Playlist(
            int(one.get("ratingKey", 0)),
            one.get("title", ""),
            one.get("smart") == "1",
            int(one.get("leafCount") or 0),
        )
        for one in plex.list_playlists()
    ]


def write_playlist(plex: Plex, title: str, rating_keys: Sequence[int]) -> Playlist:
    """Make a playlist of these tracks, in order, or put them in place of what one has.

    The new ones come in before the old ones go: broken off in between, it has both. Raises
    PlexError, also if the server then has something else in it; PlexUnreachable, PlexUnauthorized.
    """
    if not rating_keys:
        raise PlexError(
            f"the playlist {visible(title)} would be empty: Plex has none of its tracks"
        )
    existing = find_playlist(plex, title)
    chunks = list(cut(rating_keys, _CHUNK))
    if existing is None:
        key = plex.create_playlist(title, chunks.pop(0))
        old: list[int] = []
    else:
        key = existing.key
        old = [entry for entry, _ in plex.playlist_entries(key)]
    for chunk in chunks:
        plex.add_to_playlist(key, chunk)
    for entry in old:
        plex.remove_from_playlist(key, entry)
    now = [track for _, track in plex.playlist_entries(key)]
    if now != list(rating_keys):
        raise PlexError(
            f"{plex.url}: the playlist {visible(title)} came out with {len(now)} tracks, not with"
            f" the {len(rating_keys)} that were sent"
        )
    return Playlist(key, title, False, len(now))
