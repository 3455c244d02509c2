"""What people search and read: lists, details and figures over a real store of some thousand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from many_tracks import fill_store
from timing import timed

from reclass_plex.browse import (
    SORTS,
    Sort,
    TrackFilter,
    TrackRow,
    count_tracks,
    find_album,
    find_track,
    find_track_id,
    list_albums,
    list_tracks,
)
from reclass_plex.browse_history import find_run, list_journal, list_plex_edits, list_runs
from reclass_plex.browse_statistics import facets, statistics
from reclass_plex.cursors import BadCursor, make_cursor
from reclass_plex.errors import NotAudio
from reclass_plex.jobs import Jobs
from reclass_plex.placements import Placements
from reclass_plex.records import GenreScore, Verdict, Vote
from reclass_plex.store import Store

COUNT = 3000
STRANGE = Path(os.fsdecode(b"/music/caf\xe9 \xff 100%_ x.mp3"))  # no UTF-8


def heard(genre: str, confidence: float, unsure: str | None = None) -> Verdict:
    scores = (GenreScore(genre, confidence), GenreScore("Jazz", 0.01))
    votes = (Vote("fma518", scores, 0.125),)
    return Verdict("default", scores, "fma518", votes, 0.25, unsure, (GenreScore("calm", 0.5),))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("library") / "store.sqlite") as store:
        fill_store(store, COUNT)
        yield store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.sqlite") as store:
        yield store


def all_rows(store: Store, wanted: TrackFilter, sort: Sort, limit: int) -> list[TrackRow]:
    rows: list[TrackRow] = []
    cursor = None
    while True:
        page = list_tracks(store, wanted, sort=sort, cursor=cursor, limit=limit)
        rows += page.rows
        cursor = page.next
        if cursor is None:
            return rows
        assert len(page.rows) == limit


@pytest.mark.parametrize("sort", SORTS)
def test_pages_show_every_track_once_in_order(library: Store, sort: Sort) -> None:
    rows = all_rows(library, TrackFilter(), sort, 700)
    assert len({row.id for row in rows}) == len(rows) == COUNT
    keys = {
        "path": lambda row: (os.fsencode(row.path),),
        "confidence": lambda row: (-1 if row.confidence is None else row.confidence, row.id),
        "heard": lambda row: (row.heard or 0, row.id),
        "id": lambda row: (row.id,),
    }
    key = keys[sort.removeprefix("-")]
    assert rows == sorted(rows, key=key, reverse=sort.startswith("-"))


@pytest.mark.parametrize(
    "wanted",
    [
        TrackFilter(text="SONG 29"),
        TrackFilter(text="größe song"),
        TrackFilter(text="GRÖSSE"),
        TrackFilter(genre="Jazz"),
        TrackFilter(tag="Pop"),
        TrackFilter(stage="musicnn-full", min_confidence=0.5, max_confidence=0.7),
        TrackFilter(max_confidence=0.3),
        TrackFilter(unsure=True),
        TrackFilter(unsure=False, written=True),
        TrackFilter(error=True),
        TrackFilter(error_kind="not-audio"),
        TrackFilter(state="review"),
        TrackFilter(heard=False),
        TrackFilter(heard=True, error=False),
        TrackFilter(folder=Path("/music/Artist 00003")),
        TrackFilter(text="nothing of this"),
    ],
)
def test_a_filter_finds_what_meets_it_and_nothing_else(library: Store, wanted: TrackFilter) -> None:
    def meets(row: TrackRow) -> bool:
        text = f"{row.path}\n{row.album}".casefold()
        first = row.genres[0].name if row.genres else None
        sure = -1 if row.confidence is None else row.confidence
        has_written = row.written is not None
        return (
            all(word in text for word in (wanted.text or "").casefold().split())
            and wanted.genre in {None, first}
            and (wanted.tag is None or wanted.tag in row.tags)
            and wanted.stage in {None, row.decided_by}
            and (wanted.min_confidence is None or sure >= wanted.min_confidence)
            and (wanted.max_confidence is None or 0 <= sure <= wanted.max_confidence)
            and wanted.unsure in {None, row.unsure is not None}
            and wanted.error in {None, row.error_kind is not None}
            and wanted.error_kind in {None, row.error_kind}
            and wanted.state in {None, row.state}
            and wanted.written in {None, has_written}
            and wanted.heard in {None, row.heard is not None}
            and (wanted.folder is None or wanted.folder in row.path.parents)
        )

    every = all_rows(library, TrackFilter(), "path", 1000)
    expected = [row for row in every if meets(row)]
    assert all_rows(library, wanted, "path", 100) == expected
    assert {r.id for r in all_rows(library, wanted, "-confidence", 90)} == {r.id for r in expected}
    assert count_tracks(library, wanted) == len(expected)
    assert bool(expected) == (wanted.text != "nothing of this")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "ä",
        "A" * 20_000,
        make_cursor("tracks -path", b"x"),
        make_cursor("tracks path", 1),
        make_cursor("tracks path"),
        make_cursor("runs", 1),
        "W10",
        "bnVsbA",
        "W1tbW1tbW1tbW1tb",
    ],
)
def test_a_cursor_of_another_list_is_refused(library: Store, cursor: str) -> None:
    with pytest.raises(BadCursor):
        list_tracks(library, cursor=cursor)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**70, True, "1"])
def test_a_cursor_holds_no_number_that_sqlite_cannot(library: Store, value: float) -> None:
    with pytest.raises(BadCursor):
        list_tracks(library, sort="confidence", cursor=make_cursor("tracks confidence", 0.5, value))
    with pytest.raises(BadCursor):
        list_runs(library, cursor=make_cursor("runs", value))


def test_the_listing_follows_whatever_changes(store: Store) -> None:
    def row() -> TrackRow:
        (only,) = list_tracks(store).rows
        return only

    store.save_verdict("d", "models-0", heard("Blues", 0.2), now=1)
    track = store.save_track(STRANGE, 1, 1, digest="d", genres=("Pop",), album="/music\nA")
    assert (row().path, row().album, row().tags, row().confidence) == (STRANGE, "A", ("Pop",), 0.2)
    store.save_verdict("d", "models-1", heard("Rock", 0.8, "silence"), now=5)
    assert (row().genres[0].name, row().unsure, row().heard) == ("Rock", "silence", 5)
    assert list_tracks(store, TrackFilter(genre="Blues")).rows == ()
    jobs = Jobs(store)
    jobs.enqueue([STRANGE], "watch", 1.0)
    (held,) = jobs.claim(1, 2.0, owner="me", lease=60)
    assert row().state == "running"
    jobs.finish([held.id], "me", "review", 3.0, message="too close")
    assert (row().state, row().message) == ("review", "too close")
    jobs.forget(STRANGE)
    assert row().state is None
    run = store.start_run("tag", now=10)
    entry = store.begin_change(
        run,
        track,
        path=STRANGE,
        temp_path=Path("/music/t"),
        digest="d",
        before=("Pop",),
        after=("Rock",),
        before_hash="a",
        after_hash="b",
        before_mtime_ns=1,
        delta=b"x",
    )
    store.finish_change(entry, 2, 2)
    assert (row().tags, row().written, row().undone) == (("Rock",), ("Rock",), False)
    assert statistics(store).written == 1
    store.finish_undo(entry, STRANGE, 3, 3)
    assert (row().tags, row().written, row().undone) == (("Pop",), None, True)
    store.save_track(STRANGE, 9, 9, error=NotAudio(STRANGE, "is empty"))
    assert (row().error_kind, row().genres) == ("not-audio", ())
    assert [n.name for n in facets(store).errors] == ["not-audio"]
    for text in ("caf", "100%_ X", "_ x.MP3", "%"):
        assert list_tracks(store, TrackFilter(text=text)).rows == (row(),), text
    assert list_tracks(store, TrackFilter(text="1%0")).rows == ()
    assert find_track_id(store, STRANGE) == track


def test_accents_are_found_however_they_are_encoded(store: Store) -> None:
    for number, name in enumerate(("Gro\u0308ße.mp3", "GRÖSSE.mp3", "音楽.mp3", "Groß.mp3")):
        store.save_track(Path("/m") / name, 1, 1, digest=str(number))

    def found(text: str) -> list[str]:
        return [row.name for row in list_tracks(store, TrackFilter(text=text), sort="id").rows]

    assert found("größe") == found("GRO\u0308SSE") == ["Gro\u0308ße.mp3", "GRÖSSE.mp3"]
    assert found("楽") == ["音楽.mp3"]
    assert found("") == found(" ") and len(found("")) == 4


def test_a_track_comes_with_its_votes_and_its_history(store: Store) -> None:
    path = Path("/music/a.mp3")
    store.save_verdict("d", "models-1", heard("Rock", 0.8))
    track = store.save_track(path, 11, 22, digest="d", genres=("Pop",), moods=("calm",))
    store.save_track(Path("/music/copy.mp3"), 11, 22, digest="d")
    run = store.start_run("tag")
    for _ in range(3):
        store.begin_change(
            run,
            track,
            path=path,
            temp_path=Path("/music/t"),
            digest="d",
            before=("Pop",),
            after=("Rock",),
            before_hash="a",
            after_hash="b",
            before_mtime_ns=1,
            delta=b"",
        )
    found = find_track(store, track)
    assert found is not None
    assert found.verdict == heard("Rock", 0.8)
    assert (found.size, found.mtime_ns, found.moods, found.models) == (
        11,
        22,
        ("calm",),
        "models-1",
    )
    assert found.copies == (Path("/music/copy.mp3"),)
    assert [change.exact for change in found.changes] == [False] * 3
    assert find_track(store, track + 99) is None
    page = list_journal(store, run, limit=2)
    rest = list_journal(store, run, limit=2, cursor=page.next)
    assert [c.id for c in (*page.rows, *rest.rows)] == [c.id for c in found.changes]
    assert rest.next is None
    (summary,) = list_runs(store).rows
    assert (summary.pending, summary.done, summary.command) == (3, 0, "tag")
    assert find_run(store, run) == summary
    assert find_run(store, 99) is None
    assert list_plex_edits(store, run).rows == ()


def test_albums_are_listed_in_pages_and_found(library: Store) -> None:
    first = list_albums(library, limit=100)
    second = list_albums(library, limit=200, cursor=first.next)
    assert second.next is None
    albums = (*first.rows, *second.rows)
    assert sum(album.tracks for album in albums) == COUNT - statistics(library).errors[0].count
    found = find_album(library, albums[7].id)
    assert found is not None
    assert found.row == albums[7]
    assert {track.album for track in found.tracks} == {albums[7].title}
    assert len(found.tracks) == albums[7].tracks == sum(n.count for n in albums[7].genres)
    chosen = TrackFilter(album=albums[7].id)
    assert list_tracks(library, chosen).rows == found.tracks
    for wrong in ("", "x", "////", "Ä", "L211"):
        assert find_album(library, wrong) is None
        assert list_tracks(library, TrackFilter(album=wrong)).rows == ()
    (by_text,) = list_albums(library, text="ALBUM 00242").rows
    assert by_text.title == "Album 00242"


def test_figures_agree_with_the_lists(library: Store) -> None:
    figures = statistics(library)
    every = all_rows(library, TrackFilter(), "id", 1000)
    assert figures.tracks == COUNT
    assert figures.heard == sum(figures.confidence) == sum(row.heard is not None for row in every)
    assert figures.written == sum(row.written is not None for row in every)
    for genre in figures.genres:
        assert genre.count == count_tracks(library, TrackFilter(genre=genre.name))
    for stage in figures.stages:
        assert stage.count == count_tracks(library, TrackFilter(stage=stage.name))
    assert 0 < figures.agreed < figures.compared < figures.heard
    assert figures.failures == count_tracks(library, TrackFilter(state="failed"))


def test_figures_of_an_empty_store(store: Store) -> None:
    figures = statistics(store)
    assert (figures.tracks, figures.compared, sum(figures.confidence)) == (0, 0, 0)
    assert not (list_tracks(store).rows or list_albums(store).rows or list_runs(store).rows)


@timed
def test_a_deep_page_costs_no_more_than_the_first(library: Store) -> None:
    def seconds(cursor: str | None) -> float:
        began = time.process_time()
        list_tracks(library, sort="-confidence", cursor=cursor, limit=20)
        return time.process_time() - began

    deep = make_cursor("tracks -confidence", 0.2, 1)
    assert min(seconds(deep) for _ in range(5)) < 5 * min(seconds(None) for _ in range(5))


def test_a_run_that_sorted_files_has_as_many_as_history_says(store: Store) -> None:
    run_id = store.start_run("organize")
    book = Placements(store)
    placed = [
        book.begin(
            run_id,
            *(Path(f"/in/{name}.mp3"), Path(f"/tree/Jazz/{name}.mp3"), "copy"),
            size=1,
            hash="00",
            temp_path=None,
            made=None,
        )
        for name in "abc"
    ]
    book.settle("done", *placed[:2])
    book.settle("undone", placed[1])
    row = find_run(store, run_id)
    assert row is not None
    assert (row.done, row.undone, row.pending) == (1, 1, 1)
    (summary,) = list_runs(store).rows
    assert (summary.done, summary.undone) == (row.done, row.undone)
