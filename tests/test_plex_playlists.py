"""Playlists on the server: made, filled anew, and never one that is not ours to fill."""

from __future__ import annotations

from typing import Any

import plexapi.server
import pytest
from plex_server import Library, PlexStandIn
from plex_tools import add_album

from reclass_plex.errors import PlexError, PlexUnreachable
from reclass_plex.plex import Plex, find_playlist, list_playlists, write_playlist


def test_a_playlist_is_made_then_filled_anew(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    tracks = [track.key for track in add_album(server, library, tracks=8)]
    title = "Like “Größe #1?” & 100% more"
    assert find_playlist(plex, title) is None
    made = write_playlist(plex, title, tracks[:3])
    (playlist,) = server.playlists.values()
    assert (playlist.title, [item.key for _, item in playlist.entries]) == (title, tracks[:3])
    again = write_playlist(plex, title.upper(), [*tracks[5:], tracks[0]])
    assert again.key == made.key == playlist.key
    assert [item.key for _, item in playlist.entries] == [*tracks[5:], tracks[0]]
    assert playlist.title == title
    found = find_playlist(plex, title)
    assert found is not None
    assert (found.key, found.count, found.smart) == (made.key, 4, False)


def test_a_long_playlist(server: PlexStandIn, library: Library, plex: Plex) -> None:
    server.populate(library, 1200)
    keys = [item.key for item in library.items("track")]
    assert write_playlist(plex, "All", keys).count == 1200
    (playlist,) = server.playlists.values()
    assert [item.key for _, item in playlist.entries] == keys


def test_what_is_not_ours_to_fill(server: PlexStandIn, library: Library, plex: Plex) -> None:
    items = add_album(server, library)
    smart = server.add_playlist("Rock", items, smart=True)
    for _ in range(2):
        server.add_playlist("Twice", items)
    for title, why in (("rock", "smart"), ("Twice", "2 playlists")):
        with pytest.raises(PlexError, match=why):
            write_playlist(plex, title, [items[0].key])
    with pytest.raises(PlexError, match="would be empty"):
        write_playlist(plex, "New", [])
    assert len(smart.entries) == len(items)
    assert [one.title for one in list_playlists(plex)] == ["Rock", "Twice", "Twice"]


def test_a_track_that_is_gone_is_noticed(server: PlexStandIn, library: Library, plex: Plex) -> None:
    items = add_album(server, library)
    server.remove(items[0])
    with pytest.raises(PlexError, match="came out with 1 tracks, not with the 2"):
        write_playlist(plex, "New", [items[0].key, items[1].key])


def test_broken_off_it_has_the_old_tracks_still(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    items = add_album(server, library)
    playlist = server.add_playlist("Mine", items[:2])
    plex.playlist_entries(playlist.key)
    server.mode = "failing"
    with pytest.raises(PlexUnreachable):
        write_playlist(plex, "Mine", [items[4].key])
    server.mode = "ok"
    assert [item for _, item in playlist.entries] == items[:2]


def test_plexapi_makes_and_edits_playlists(server: PlexStandIn, library: Library) -> None:
    """The stand-in answers the library that the real server's users have, unchanged."""
    add_album(server, library)
    client: Any = plexapi.server.PlexServer(server.url, server.token)  # type: ignore[no-untyped-call]
    tracks = client.library.section("Music").searchTracks()
    playlist = client.createPlaylist("Mix", items=tracks[:2])
    playlist.addItems(tracks[2:4])
    playlist.removeItems(tracks[0])
    (read,) = client.playlists(playlistType="audio")
    assert [track.title for track in read.items()] == [track.title for track in tracks[1:4]]
    client._session.close()
