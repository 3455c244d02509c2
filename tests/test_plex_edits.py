"""Writing genres to the stand-in over real HTTP, whatever it makes of our edits."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import requests
from plex_server import Library, PlexStandIn, Reply
from plex_tools import TRICKY, add_album, connect, edit, statuses

from reclass_plex.errors import PlexUnreachable
from reclass_plex.plex import (
    Plex,
    apply_edits,
    plan_edits,
    undo_edits,
)
from reclass_plex.plex.client import READ_CHUNK
from reclass_plex.plex.edits import EDIT_CHUNK


@pytest.mark.parametrize("tag_edits", ["append", "replace"])
@pytest.mark.parametrize("one_removal", [False, True])
def test_genres_are_replaced_and_locked(
    server: PlexStandIn,
    library: Library,
    plex: Plex,
    tag_edits: Literal["append", "replace"],
    one_removal: bool,
) -> None:
    """Whatever the server makes of several tags in one edit of several items."""
    server.tag_edits, server.one_removal = tag_edits, one_removal
    tracks = add_album(server, library, tracks=8)
    for track, former in zip(
        tracks, ([], ["Pop"], ["Pop", "Rock"], [*TRICKY], ["Jazz"]), strict=False
    ):
        track.genres = former
    wanted: dict[int, tuple[str, ...]] = {track.key: ("Jazz", "Blues") for track in tracks[:5]}
    wanted |= {track.key: TRICKY for track in tracks[5:]}
    plan = plan_edits(plex, wanted)
    assert statuses(apply_edits(plex, plan.records)) == ["done"] * 8
    for track in tracks:
        assert set(track.genres) == set(wanted[track.key])
        assert track.locked == {"genre"}


def test_albums_and_artists_are_written_where_it_is_on(
    server: PlexStandIn, library: Library
) -> None:
    (track,) = add_album(server, library, tracks=1)
    album = track.parent
    assert album is not None and album.parent is not None
    wanted = {item.key: ["Jazz"] for item in (track, album, album.parent)}
    with connect(server) as plex:
        plan = plan_edits(plex, wanted)
        assert [record.kind for record in plan.records] == ["track", "album"]
        assert [(one.rating_key, one.reason) for one in plan.skipped] == [
            (album.parent.key, "plex.artists is off")
        ]
    with connect(server, tracks=False, albums=False, artists=True) as plex:
        plan = plan_edits(plex, wanted)
        assert [record.kind for record in plan.records] == ["artist"]
        assert statuses(apply_edits(plex, plan.records)) == ["done"]
    assert (track.genres, album.genres, album.parent.genres) == (["Pop/Rock"], [], ["Jazz"])


def test_an_old_server_is_not_sent_genres_of_tracks() -> None:
    with PlexStandIn(version="1.39.0.1") as server, connect(server) as plex:
        (track,) = add_album(server, server.add_library(), tracks=1)
        assert track.parent is not None
        plan = plan_edits(plex, {track.key: ["Jazz"], track.parent.key: ["Jazz"]})
        assert [record.kind for record in plan.records] == ["album"]
        assert "1.40.0" in plan.skipped[0].reason
        assert statuses(apply_edits(plex, plan.records)) == ["done"]
        assert server.errors == []


def test_only_differences_are_written(server: PlexStandIn, library: Library, plex: Plex) -> None:
    tracks = add_album(server, library, ("jazz", "Blues"))
    server.reset_counts()
    plan = plan_edits(plex, {track.key: ["Blues", "Jazz"] for track in tracks})
    assert (plan.records, plan.skipped) == ((), ())
    assert apply_edits(plex, plan.records) == ()
    assert server.requests == 1
    plan = plan_edits(plex, {tracks[0].key: []})
    assert plan.skipped[0].reason == "there is no genre to write"


def test_what_is_locked_survives_a_refresh_and_the_rest_does_not(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    ours, loose = add_album(server, library, tracks=2)
    edit(plex, [ours], "Jazz")
    loose.genres = ["Jazz"]
    requests.get(
        f"{server.url}/library/sections/1/refresh?force=1",
        headers={"X-Plex-Token": server.token},
        timeout=5,
    )
    assert (ours.genres, loose.genres) == (["Jazz"], ["Pop/Rock"])


def test_what_the_user_locked_is_left_alone(server: PlexStandIn, library: Library) -> None:
    theirs, free = add_album(server, library, tracks=2)
    server.edit_by_user(theirs, ["Shoegaze"])
    wanted = {theirs.key: ["Rock"], free.key: ["Rock"]}
    with connect(server) as plex:
        plan = plan_edits(plex, wanted)
        assert [record.rating_key for record in plan.records] == [free.key]
        assert "locked" in plan.skipped[0].reason
        apply_edits(plex, plan.records)
    assert theirs.genres == ["Shoegaze"]
    with connect(server, overwrite_locked=True) as plex:
        plan = plan_edits(plex, wanted)
        assert [(one.rating_key, one.was_locked) for one in plan.records] == [(theirs.key, True)]
        apply_edits(plex, plan.records)
        assert theirs.genres == ["Rock"]
        assert statuses(undo_edits(plex, plan.records)) == ["done"]
    assert (theirs.genres, theirs.locked) == (["Shoegaze"], {"genre"})


def test_our_own_lock_does_not_keep_us_out(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    (track,) = add_album(server, library, tracks=1)
    (first,) = edit(plex, [track], "Jazz")
    assert plan_edits(plex, {track.key: ["Blues"]}).records == ()  # without the record: the user's
    (second,) = plan_edits(plex, {track.key: ["Blues"]}, {track.key: first}).records
    assert (second.before, second.after, second.was_locked) == (("Pop/Rock",), ("Blues",), False)
    assert statuses(apply_edits(plex, [second])) == ["done"]
    assert statuses(undo_edits(plex, [second])) == ["done"]
    assert (track.genres, track.locked) == (["Pop/Rock"], set())


def test_an_edit_that_was_planned_and_never_applied_is_no_obstacle(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    """The process was killed after the record was kept, before the request."""
    (track,) = add_album(server, library, tracks=1)
    (never,) = plan_edits(plex, {track.key: ["Jazz"]}).records
    (first,) = plan_edits(plex, {track.key: ["Blues"]}, {track.key: never}).records
    assert first.before == ("Pop/Rock",)
    apply_edits(plex, [first])
    (never,) = plan_edits(plex, {track.key: ["Soul"]}, {track.key: first}).records
    (third,) = plan_edits(plex, {track.key: ["Funk"]}, {track.key: never}).records
    assert statuses(apply_edits(plex, [third])) == ["done"]
    assert statuses(undo_edits(plex, [third])) == ["done"]
    assert (track.genres, track.locked) == (["Pop/Rock"], set())


def test_a_genre_that_the_user_edited_after_us_is_theirs(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    (track,) = add_album(server, library, tracks=1)
    (record,) = edit(plex, [track], "Jazz")
    server.edit_by_user(track, ["Free Jazz"])
    plan = plan_edits(plex, {track.key: ["Blues"]}, {track.key: record})
    assert (plan.records, len(plan.skipped)) == ((), 1)
    (outcome,) = undo_edits(plex, [record])
    assert (outcome.status, outcome.reason) == ("changed", "it has Free Jazz by now")
    assert track.genres == ["Free Jazz"]


def test_undo_restores_genres_and_locks(server: PlexStandIn, library: Library, plex: Plex) -> None:
    tracks = add_album(server, library, tracks=6)
    formers: list[list[str]] = [[], ["Pop"], ["Pop", "Rock"], [*TRICKY], ["Jazz"], ["Pop"]]
    for track, former in zip(tracks, formers, strict=True):
        track.genres = list(former)
    album = tracks[0].parent
    assert album is not None
    records = edit(plex, [*tracks, album], "Jazz", "R&B")
    server.remove(tracks[5])
    outcomes = undo_edits(plex, records)
    assert [outcome.record for outcome in outcomes] == list(records)
    assert statuses(outcomes) == ["done"] * 5 + ["gone", "done"]
    for track, former in zip(tracks[:5], formers, strict=False):
        assert (sorted(track.genres), track.locked) == (sorted(former), set())
    assert (album.genres, album.locked) == ([], set())
    assert statuses(undo_edits(plex, records[:1])) == ["changed"]  # it is done already


def test_one_item_that_vanished_does_not_stop_the_others(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    tracks = add_album(server, library)
    plan = plan_edits(plex, {track.key: ["Jazz"] for track in tracks} | {99999: ["Jazz"]})
    assert [one.rating_key for one in plan.skipped] == [99999]
    server.remove(tracks[2])
    outcomes = apply_edits(plex, plan.records)
    assert statuses(outcomes) == ["done", "done", "gone", "done", "done"]
    assert tracks[4].genres == ["Jazz"]


def test_a_lock_that_did_not_hold_is_set_again(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks = add_album(server, library)
    whole, puts = server.answer, []

    def answer(method: str, path: str, query: dict[str, str], *page: Any) -> Reply:
        puts.append(method)
        if puts.count("PUT") == 1:
            query.pop("genre.locked", None)
        return whole(method, path, query, *page)

    monkeypatch.setattr(server, "answer", answer)
    edit(plex, tracks, "Jazz")
    assert puts.count("PUT") == 2
    assert all(track.locked for track in tracks)


def test_items_with_the_same_genres_to_lose_go_together(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    """So that a server that heeds one removal a request needs few repairs."""
    server.one_removal = True
    server.populate(library, 1000, ("Pop", "Rock", "Soul", "Funk"))
    server.reset_counts()
    edit(plex, list(library.items("track")), "Jazz")
    assert server.requests <= 3 * (-(-1000 // READ_CHUNK)) + 1000 // EDIT_CHUNK + 3


def test_a_server_that_will_not_is_reported(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    (track,) = add_album(server, library, tracks=1)
    records = plan_edits(plex, {track.key: ["Jazz"]}).records
    monkeypatch.setattr(server, "edit_tags", lambda *_: None)
    (outcome,) = apply_edits(plex, records)
    assert (outcome.status, outcome.reason) == ("failed", "Plex kept Pop/Rock, locked: True")
    monkeypatch.undo()
    server.version = "1.39.0"  # put back behind the connection's back: now it refuses
    (outcome,) = apply_edits(plex, records)
    assert outcome.status == "failed" and "(400)" in outcome.reason
    server.errors.clear()


def test_a_connection_lost_half_way_is_made_good(
    server: PlexStandIn, library: Library, plex: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.populate(library, 450, ("Pop/Rock",))
    wanted = {track.key: ("Jazz",) for track in library.items("track")}
    plan = plan_edits(plex, wanted)
    assert len(plan.records) == 450
    whole, puts = server.answer, []

    def answer(method: str, *request: Any) -> Reply:
        puts.append(method)
        if puts.count("PUT") == 3:
            server.mode = "down"
        return whole(method, *request)

    monkeypatch.setattr(server, "answer", answer)
    with pytest.raises(PlexUnreachable):
        apply_edits(plex, plan.records)
    monkeypatch.undo()
    server.mode = "ok"
    kept = {record.rating_key: record for record in plan.records}
    again = plan_edits(plex, wanted, kept)
    assert len(again.records) == 450 - 3 * EDIT_CHUNK
    assert set(statuses(apply_edits(plex, again.records))) == {"done"}
    assert set(statuses(undo_edits(plex, plan.records))) == {"done"}
    assert all(item.genres == ["Pop/Rock"] for item in library.items("track"))


def test_long_lists_of_former_genres_stay_within_an_address(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    tracks = add_album(server, library, tracks=200)
    for number, track in enumerate(tracks):
        track.genres = [f"Größenwahnsinn Nr. {number}, Teil {part} & mehr" for part in range(3)]
    edit(plex, tracks, "Jazz")
    assert {tuple(track.genres) for track in tracks} == {("Jazz",)}


def test_ten_thousand_edits_take_at_most_300_requests(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    """16 genres where 12 others were, the albums too, planning and reading back included."""
    server.populate(library, 10_000, tuple(f"Former {number}" for number in range(12)))
    wanted = {
        track.key: (f"Genre {number * 7 % 16}",)
        for number, track in enumerate(library.items("track"))
    }
    wanted |= {
        album.key: (f"Genre {number % 16}",) for number, album in enumerate(library.items("album"))
    }
    server.reset_counts()
    plan = plan_edits(plex, wanted)
    assert len(plan.records) == 11_000
    assert set(statuses(apply_edits(plex, plan.records))) == {"done"}
    assert server.requests <= 300, server.requests
    assert all(server.items[key].genres == list(genres) for key, genres in wanted.items())


def test_an_undo_reads_and_writes_in_chunks(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    server.populate(library, 1000, ("Pop", "Rock", "Soul"))
    records = edit(plex, list(library.items("track")), "Jazz")
    server.reset_counts()
    assert set(statuses(undo_edits(plex, records))) == {"done"}
    reads = -(-1000 // READ_CHUNK)
    assert server.requests <= 2 * reads + 3 * (-(-334 // EDIT_CHUNK))
    assert all(item.genres == list(item.agent_genres) for item in library.items("track"))
