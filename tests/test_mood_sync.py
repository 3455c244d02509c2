"""Moods and styles in Plex: only where nothing is, with undo; real HTTP to the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plex_server import Item, Library, PlexStandIn, Reply
from plex_tools import add_album, connect, list_wanted

from reclass_plex.config import PolicyOptions
from reclass_plex.errors import PlexUnreachable
from reclass_plex.plex import Plex, plan_edits, vote_labels
from reclass_plex.records import GenreScore
from reclass_plex.store import Store
from reclass_plex.sync import Wanted, WantedGenres, standing_edits, sync_once, undo_plex

NOW = 1_800_000_000.0
BOTH = PolicyOptions(moods=True, styles=True)
SAD = (GenreScore("Sad", 0.95),)
INDIE = (GenreScore("Indie Rock", 0.95),)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def want(
    store: Store,
    items: list[Item],
    moods: tuple[GenreScore, ...] = SAD,
    styles: tuple[GenreScore, ...] = INDIE,
    *,
    genres: tuple[GenreScore, ...] = (),
    run: int | None = None,
) -> None:
    wishes = [WantedGenres(Path(item.files[0]), genres, run, moods, styles) for item in items]
    Wanted(store).want(wishes, NOW)


def shown(item: Item) -> tuple[list[str], list[str], list[str], set[str]]:
    return item.genres, item.moods, item.styles, item.locked


def undo(plex: Plex, store: Store, **which: Any) -> dict[tuple[int, str], str]:
    return {
        (edit.record.rating_key, edit.record.field): outcome.status
        for edit, outcome in undo_plex(plex, store, **which)
    }


def message(store: Store, item: Item) -> str | None:
    row = list_wanted(store)[Path(item.files[0])]
    assert row.state == "done"
    return row.message


def test_moods_of_tracks_and_styles_of_albums_and_all_is_taken_back(
    server: PlexStandIn, library: Library, store: Store
) -> None:
    tracks = add_album(server, library, ())
    album, run = tracks[0].parent, store.start_run("tag")
    assert album is not None
    rock = (GenreScore("Rock", 0.9),)
    want(store, tracks, genres=rock, run=run)
    with connect(server, artists=True) as plex:
        result = sync_once(plex, store, BOTH, NOW)
        assert (result.done, result.failed) == (5, 0)
        assert result.written == {"track": 5, "album": 1, "artist": 1}
        for track in tracks:
            assert shown(track) == (["Rock"], ["Sad"], [], {"genre", "mood"})
        everything = (["Rock"], ["Sad"], ["Indie Rock"], {"genre", "mood", "style"})
        assert shown(album) == everything
        assert album.parent is not None
        assert shown(album.parent) == everything
        server.refresh(tracks)
        assert tracks[0].moods == ["Sad"]  # locked
        server.reset_counts()
        want(store, tracks, genres=rock, run=run)
        assert sync_once(plex, store, BOTH, NOW).written == {}
        assert not [line for line in server.log if line.startswith("PUT")]
        assert standing_edits(store) == {run: 5 * 2 + 3 + 3}

        assert set(undo(plex, store, run_id=run).values()) == {"done"}
        for item in (*tracks, album, album.parent):
            assert shown(item) == ([], [], [], set())
        assert standing_edits(store) == {}


def test_nothing_but_genres_where_both_are_off(
    server: PlexStandIn, library: Library, plex: Plex, store: Store
) -> None:
    tracks = add_album(server, library, ())
    want(store, tracks, genres=(GenreScore("Rock", 0.9),))
    sync_once(plex, store, PolicyOptions(), NOW)
    assert shown(tracks[0]) == (["Rock"], [], [], {"genre"})
    assert not [line for line in server.log if "mood" in line or "style" in line]


def test_moods_alone_are_wanted(
    server: PlexStandIn, library: Library, plex: Plex, store: Store
) -> None:
    tracks = add_album(server, library)
    want(store, tracks, styles=())
    sync_once(plex, store, BOTH, NOW)
    assert shown(tracks[0]) == (["Pop/Rock"], ["Sad"], [], {"mood"})
    undo(plex, store)
    assert shown(tracks[0]) == (["Pop/Rock"], [], [], set())


def test_the_users_own_stay_locked_or_not(
    server: PlexStandIn, library: Library, store: Store
) -> None:
    tracks = add_album(server, library, (), tracks=4)
    tracks[0].moods = ["calm"]  # by another program, unlocked
    server.edit_by_user(tracks[1], ["gloomy"], "mood")
    server.edit_by_user(tracks[2], [], "mood")  # emptied on purpose
    want(store, tracks, styles=())
    with connect(server, overwrite_locked=True, albums=False) as plex:
        assert sync_once(plex, store, BOTH, NOW).written == {"track": 1}
        assert [track.moods for track in tracks] == [["calm"], ["gloomy"], [], ["Sad"]]
        assert message(store, tracks[0]) == "track: mood: has calm already"
        assert (
            message(store, tracks[2]) == "track: mood: its mood was edited in Plex, which locked it"
        )
        undo(plex, store)
    assert [track.moods for track in tracks] == [["calm"], ["gloomy"], [], []]
    assert [track.locked for track in tracks] == [set(), {"mood"}, {"mood"}, set()]


def test_what_the_user_did_with_ours_stays(
    server: PlexStandIn, library: Library, store: Store
) -> None:
    tracks = add_album(server, library, (), tracks=3)
    want(store, tracks, styles=())
    with connect(server, overwrite_locked=True, albums=False) as plex:
        sync_once(plex, store, BOTH, NOW)
        server.edit_by_user(tracks[0], [], "mood")
        server.edit_by_user(tracks[1], ["Sad", "gloomy"], "mood")
        want(store, tracks, (GenreScore("Happy", 0.99),), ())
        sync_once(plex, store, BOTH, NOW)
        assert [track.moods for track in tracks] == [[], ["Sad", "gloomy"], ["Happy"]]
        assert message(store, tracks[0]) == "track: mood: ours were removed in Plex"
        statuses = undo(plex, store)
        assert statuses[(tracks[1].key, "mood")] == "changed"
    assert [track.moods for track in tracks] == [[], ["Sad", "gloomy"], []]


def test_an_album_has_what_at_least_half_of_its_tracks_have(
    server: PlexStandIn, library: Library, plex: Plex, store: Store
) -> None:
    tracks = add_album(server, library, (), tracks=6)
    album = tracks[0].parent
    assert album is not None
    want(store, tracks[:2])
    sync_once(plex, store, BOTH, NOW)
    assert shown(album) == ([], [], [], set())
    want(store, tracks[2:3])  # half of them, with those of the first round
    sync_once(plex, store, BOTH, NOW)
    assert shown(album) == ([], ["Sad"], ["Indie Rock"], {"mood", "style"})


def test_votes_rank_by_how_many_tracks_then_by_how_pronounced() -> None:
    sad, happy = GenreScore("Sad", 0.92), GenreScore("Happy", 0.99)
    assert vote_labels([(sad, happy), (sad,), (happy,)], 2) == ("Happy", "Sad")
    assert vote_labels([(sad, happy), (sad,), ()], 2) == ("Sad",)
    assert vote_labels([(sad,), (), ()], 2) == ()
    assert vote_labels([], 2) == ()


def test_a_track_never_gets_a_style_and_the_stand_in_would_refuse_it(
    server: PlexStandIn, library: Library, plex: Plex
) -> None:
    (track,) = add_album(server, library, (), tracks=1)
    plan = plan_edits(plex, {track.key: ("House",)}, field="style")
    assert plan.records == ()
    assert plan.skipped[0].reason == "Plex has no styles of tracks"
    path = f"/library/sections/{library.key}/all?type=10&id={track.key}"
    with pytest.raises(Exception, match="400"):
        plex._query(f"{path}&style%5B0%5D.tag.tag=House", method=plex._session.put)
    assert server.errors.pop().endswith("tracks have no styles")


def test_plexapi_sees_what_we_wrote_and_its_own_edit_is_the_users(
    server: PlexStandIn, library: Library, plex: Plex, store: Store
) -> None:
    from plexapi.server import PlexServer

    tracks = add_album(server, library, (), tracks=2)
    want(store, tracks)
    sync_once(plex, store, BOTH, NOW)
    witness = PlexServer(server.url, server.token)  # type: ignore[no-untyped-call]
    album = witness.library.sectionByID(library.key).albums()[0].reload()
    assert [mood.tag for mood in album.moods] == ["Sad"]
    assert [style.tag for style in album.styles] == ["Indie Rock"]
    assert {field.name for field in album.fields if field.locked} == {"mood", "style"}
    album.addMood("gloomy")
    album.addStyle("Shoegaze")
    statuses = undo(plex, store)
    assert statuses[(album.ratingKey, "mood")] == statuses[(album.ratingKey, "style")] == "changed"
    assert {mood.tag for mood in album.reload().moods} == {"Sad", "gloomy"}
    witness._session.close()


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_connection_lost_between_edits_loses_nothing(
    server: PlexStandIn,
    library: Library,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    after: bool,
) -> None:
    tracks = add_album(server, library, (), tracks=2)
    album, run = tracks[0].parent, store.start_run("tag")
    assert album is not None
    want(store, tracks, genres=(GenreScore("Rock", 0.9),), run=run)
    whole, puts = server.answer, []

    def answer(method: str, *request: Any) -> Reply:
        puts.append(method)
        if method != "PUT" or puts.count("PUT") != number:
            return whole(method, *request)
        if after:
            whole(method, *request)
        server.mode = "failing"
        return (503, "")

    monkeypatch.setattr(server, "answer", answer)
    with connect(server) as plex:
        with pytest.raises(PlexUnreachable):
            sync_once(plex, store, BOTH, NOW)
        server.mode = "ok"
        if number % 2:  # undo of what is half done, at once
            undo(plex, store)
            for item in (*tracks, album):
                assert shown(item) == ([], [], [], set())
            want(store, tracks, genres=(GenreScore("Rock", 0.9),), run=run)
        assert sync_once(plex, store, BOTH, NOW).failed == 0
        for track in tracks:
            assert shown(track) == (["Rock"], ["Sad"], [], {"genre", "mood"})
        assert shown(album)[1:3] == (["Sad"], ["Indie Rock"])
        undo(plex, store)
    for item in (*tracks, album):
        assert shown(item) == ([], [], [], set())
