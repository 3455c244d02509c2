"""The policy against tables of cases, and against what must hold for all cases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclass_plex.config import PolicyOptions
from reclass_plex.genres import DEFAULT, GTZAN, genre_key, is_junk_genre
from reclass_plex.policy import FURTHER_SHARE, INHERITABLE, plan_tags
from reclass_plex.records import GenreScore, TagPlan, Track, Verdict


def sure(**scores: float) -> Verdict:
    """Return a verdict; names are written as in Python (Hip_Hop for Hip-Hop)."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    genres = tuple(GenreScore(name.replace("_", "-"), value) for name, value in ranked)
    return Verdict("default", genres, "features", (), 0.1)


def unsure(why: str = "too close to call", **scores: float) -> Verdict:
    return replace(sure(**scores), unsure=why)


def track(
    *genres: str,
    written: tuple[str, ...] | None = None,
    added: tuple[str, ...] = (),
    undone: bool = False,
) -> Track:
    return Track(Path("/music/a.flac"), genres, written=written, added=added, undone=undone)


def plan_one(one: Track, verdict: Verdict, **options: object) -> TagPlan:
    (plan,) = plan_tags([(one, verdict)], PolicyOptions.model_validate(options), DEFAULT)
    assert plan.path == one.path
    assert plan.before == one.genres
    return plan


def plan_album(
    verdicts: Sequence[Verdict], album: str | None = "A", **options: object
) -> list[tuple[tuple[str, ...] | None, str]]:
    items = [
        (Track(Path(f"/music/{i}.flac"), (), album), verdict) for i, verdict in enumerate(verdicts)
    ]
    plans = plan_tags(items, PolicyOptions.model_validate(options), DEFAULT)
    assert [plan.path for plan in plans] == [item.path for item, _ in items]
    return [(plan.after, plan.reason) for plan in plans]


ROCK = sure(Rock=0.8, Metal=0.1)


@pytest.mark.parametrize(
    ("mode", "before", "after", "reason"),
    [
        ("fill", (), ("Rock",), "Rock 0.80"),
        ("fill", ("Other",), ("Rock",), "Rock 0.80"),
        ("fill", ("Unknown", "", "17"), ("Rock",), "Rock 0.80"),
        ("fill", ("Misc; Other",), ("Rock",), "Rock 0.80"),
        ("fill", ("Jazz",), None, "already has Jazz"),
        ("fill", ("Other", "Jazz", "Funk"), None, "already has Jazz, Funk"),
        ("append", (), ("Rock",), "Rock 0.80"),
        ("append", ("Jazz",), ("Jazz", "Rock"), "Rock 0.80"),
        ("append", ("Jazz", "Other"), ("Jazz", "Rock"), "Rock 0.80"),
        ("append", ("Other",), ("Rock",), "Rock 0.80"),
        ("append", ("rock",), None, "already has Rock"),
        ("append", ("ROCK", "Other"), None, "already has Rock"),
        ("append", ("Jazz; Rock",), None, "already has Rock"),
        ("append", ("Punk Rock",), ("Punk Rock", "Rock"), "Rock 0.80"),
        ("replace", (), ("Rock",), "Rock 0.80"),
        ("replace", ("Jazz", "Funk"), ("Rock",), "Rock 0.80"),
        ("replace", ("rock",), ("Rock",), "Rock 0.80"),
        ("replace", ("Rock",), None, "already has Rock"),
    ],
)
def test_mode(
    mode: str, before: tuple[str, ...], after: tuple[str, ...] | None, reason: str
) -> None:
    plan = plan_one(track(*before), ROCK, mode=mode)
    assert (plan.after, plan.reason, plan.confidence) == (after, reason, 0.8)


@pytest.mark.parametrize("name", ["Hip Hop", "hip-hop", "HipHop", "Rap", "Hip-Hop/Rap"])
def test_append_knows_a_genre_by_its_other_names(name: str) -> None:
    assert plan_one(track(name), sure(Hip_Hop=0.9), mode="append").after is None


def test_min_confidence() -> None:
    verdict = sure(Jazz=0.41, Blues=0.3)
    plan = plan_one(track(), verdict)
    assert (plan.after, plan.reason, plan.confidence) == (None, "below 0.50 (Jazz 0.41)", 0.41)
    assert plan_one(track(), verdict, min_confidence=0.41).after == ("Jazz",)


@pytest.mark.parametrize(
    ("max_genres", "after"),
    [(1, ("Rock",)), (2, ("Rock", "Metal")), (3, ("Rock", "Metal")), (10, ("Rock", "Metal"))],
)
def test_further_genres_need_half_of_the_first(max_genres: int, after: tuple[str, ...]) -> None:
    verdict = sure(Rock=0.52, Metal=0.26, Punk=0.22)
    assert plan_one(track(), verdict, max_genres=max_genres).after == after


@pytest.mark.parametrize(
    ("scores", "options", "after"),
    [
        ({"Metal": 0.9}, {}, ("Metal", "Rock")),
        ({"Rock": 0.9}, {}, ("Rock",)),
        ({"Metal": 0.5, "Punk": 0.4}, {"max_genres": 2}, ("Metal", "Punk", "Rock")),
        ({"Metal": 0.5, "Rock": 0.4}, {"max_genres": 2}, ("Metal", "Rock")),
        ({"Metal": 0.9}, {"names": {"Rock": "Guitars"}}, ("Metal", "Guitars")),
        ({"Metal": 0.9}, {"ignore": ("Rock",)}, ("Metal",)),
        ({"Metal": 0.9}, {"allow": ("Metal",)}, ("Metal",)),
    ],
)
def test_add_parents(
    scores: dict[str, float], options: dict[str, Any], after: tuple[str, ...]
) -> None:
    assert plan_one(track(), sure(**scores), add_parents=True, **options).after == after


def test_parents_are_those_of_the_taxonomy() -> None:
    options = PolicyOptions(add_parents=True)
    (plan,) = plan_tags([(track(), sure(Disco=0.9))], options, GTZAN)
    assert plan.after == ("Disco",)  # no Soul/R&B in that taxonomy


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"names": {"Hip-Hop": "Rap"}}, ("Rap",)),
        ({"names": {"hip-hop": "Rap"}}, ("Rap",)),
        ({"names": {"HIP HOP": " Rap "}}, ("Rap",)),
        ({"names": {"Rock": "Guitars"}}, ("Hip-Hop",)),
        ({"names": {"Hip-Hop": ""}}, None),
        ({"names": {"Hip-Hop": "Other"}}, None),
        ({"allow": ("Hip-Hop",)}, ("Hip-Hop",)),
        ({"allow": ("hip hop", "Rock")}, ("Hip-Hop",)),
        ({"allow": ("Rock",)}, None),
        ({"allow": ("Urban",), "names": {"Hip-Hop": "Urban"}}, ("Urban",)),
        ({"allow": ("Hip-Hop",), "names": {"Hip-Hop": "Urban"}}, ("Urban",)),
        ({"ignore": ("Rock",)}, ("Hip-Hop",)),
        ({"ignore": ("HIPHOP",)}, None),
        ({"ignore": ("Urban",), "names": {"Hip-Hop": "Urban"}}, None),
        ({"allow": ("Hip-Hop",), "ignore": ("Hip-Hop",)}, None),
    ],
)
def test_names_allow_and_ignore(options: dict[str, Any], after: tuple[str, ...] | None) -> None:
    plan = plan_one(track(), sure(Hip_Hop=0.9), **options)
    assert plan.after == after
    assert plan.reason == ("Hip-Hop 0.90" if after else "no allowed genre was heard")


def test_what_is_ignored_counts_as_not_heard() -> None:
    verdict = sure(Experimental=0.55, Rock=0.4)
    plan = plan_one(track(), verdict, ignore=("Experimental",))
    assert (plan.after, plan.reason) == (None, "below 0.50 (Rock 0.40)")


def test_two_genres_with_one_name_are_written_once() -> None:
    verdict = sure(Metal=0.5, Punk=0.4)
    plan = plan_one(track(), verdict, max_genres=2, names={"Metal": "Loud", "Punk": "loud"})
    assert plan.after == ("Loud",)


@pytest.mark.parametrize(
    ("before", "fields", "mode", "reason"),
    [
        (("Live",), {"written": ("Rock",)}, "replace", "edited by hand since"),
        (("Rock", "Live"), {"written": ("Rock",)}, "append", "edited by hand since"),
        ((), {"written": ("Rock",)}, "fill", "edited by hand since"),
        (("Other",), {"written": ("Rock",)}, "fill", "edited by hand since"),
        ((), {"undone": True}, "fill", "taken back by undo since"),
        (("Live",), {"written": ("Live",), "undone": True}, "replace", "taken back by undo since"),
    ],
)
def test_what_was_done_by_hand_stays(
    before: tuple[str, ...], fields: dict[str, Any], mode: str, reason: str
) -> None:
    verdict = sure(Jazz=0.9)
    one = track(*before, **fields)
    plan = plan_one(one, verdict, mode=mode)
    assert (plan.after, plan.reason) == (None, reason)
    asked = plan_one(one, verdict, mode=mode, overwrite_user_genres=True)
    assert asked.after == ((*before, "Jazz") if mode == "append" else ("Jazz",))


def test_our_own_genre_may_be_replaced_by_a_better_answer() -> None:
    ours = track("Rock", written=("Rock",), added=("Rock",))
    assert plan_one(ours, sure(Metal=0.9), mode="replace").after == ("Metal",)
    assert plan_one(ours, sure(Metal=0.9), mode="fill").after == ("Metal",)
    assert plan_one(ours, sure(Metal=0.2), mode="fill").after is None
    assert plan_one(track("Rock"), sure(Metal=0.9), mode="fill").after is None
    both = track("Live", "Rock", written=("Live", "Rock"), added=("Rock",))
    assert plan_one(both, sure(Metal=0.9), mode="fill").after is None
    assert plan_one(both, sure(Metal=0.9), mode="append").after == ("Live", "Metal")


@pytest.mark.parametrize("why", ["silence", "speech or noise", *sorted(INHERITABLE)])
@pytest.mark.parametrize("mode", ["fill", "append", "replace"])
def test_unsure_writes_nothing(why: str, mode: str) -> None:
    plan = plan_one(track("Other"), unsure(why, Rock=0.9), mode=mode)
    assert (plan.after, plan.reason) == (None, why)


def test_a_verdict_without_genres_writes_nothing() -> None:
    plan = plan_one(track(), sure())
    assert (plan.after, plan.confidence) == (None, 0.0)
    assert plan_one(track(), unsure("silence")).reason == "silence"


def test_album_consensus_overrules_few() -> None:
    plans = plan_album([sure(Jazz=0.8, Rock=0.1)] * 9 + [sure(Rock=0.6, Jazz=0.3)] * 2)
    assert plans == [(("Jazz",), "album consensus: 9 of 11 tracks")] * 11


def test_the_consensus_can_be_switched_off() -> None:
    verdicts = [sure(Jazz=0.8)] * 9 + [sure(Rock=0.6, Jazz=0.3)] * 2
    off = plan_album(verdicts, album_consensus=False)
    assert [after for after, _ in off] == [("Jazz",)] * 9 + [("Rock",)] * 2
    assert plan_album(verdicts, album=None) == off


def test_a_compilation_keeps_each_tracks_answer() -> None:
    plans = plan_album([sure(Jazz=0.8), sure(Rock=0.7), sure(Jazz=0.9), sure(Folk=0.2)])
    assert plans == [
        (("Jazz",), "Jazz 0.80"),
        (("Rock",), "Rock 0.70"),
        (("Jazz",), "Jazz 0.90"),
        (None, "below 0.50 (Folk 0.20)"),
    ]


def test_three_of_five_are_a_clear_majority() -> None:
    jazz, rock = sure(Jazz=0.9), sure(Rock=0.5, Jazz=0.4)
    reasons = {reason for _, reason in plan_album([jazz, rock, jazz, rock, jazz])}
    assert reasons == {"album consensus: 3 of 5 tracks"}


def test_doubtful_tracks_count_for_less() -> None:
    """The plain mean, 0.48, would leave the whole album without a genre."""
    plans = plan_album([sure(Rock=0.6)] * 3 + [sure(Rock=0.3, Jazz=0.29)] * 2)
    assert plans == [(("Rock",), "album consensus: 5 of 5 tracks")] * 5


def test_a_consensus_that_is_too_weak_leaves_each_its_own() -> None:
    plans = plan_album([sure(Rock=0.55)] + [sure(Rock=0.3)] * 6)
    assert plans == [(("Rock",), "Rock 0.55")] + [(None, "below 0.50 (Rock 0.30)")] * 6


@pytest.mark.parametrize("why", sorted(INHERITABLE))
def test_an_unsure_track_inherits_from_a_clear_majority(why: str) -> None:
    plans = plan_album([sure(Rock=0.9)] * 3 + [unsure(why, Jazz=0.3)] * 2)
    assert plans[-1] == (("Rock",), f"{why}; album consensus: 3 of 5 tracks")
    plans = plan_album([sure(Rock=0.9)] * 2 + [unsure(why, Jazz=0.3)] * 2)
    assert plans == [(("Rock",), "album consensus: 2 of 4 tracks")] * 2 + [(None, why)] * 2


@pytest.mark.parametrize("why", ["silence", "speech or noise", "some new reason"])
def test_silence_and_speech_do_not_inherit(why: str) -> None:
    plans = plan_album([sure(Rock=0.9)] * 9 + [unsure(why)])
    assert plans[-1] == (None, why)
    assert plans[0] == (("Rock",), "album consensus: 9 of 10 tracks")


def test_unsure_tracks_do_not_vote() -> None:
    plans = plan_album([sure(Rock=0.9)] * 2 + [unsure(Jazz=0.49)] * 9)
    assert [after for after, _ in plans] == [("Rock",)] * 2 + [None] * 9


def test_one_voter_is_no_album() -> None:
    plans = plan_album([sure(Rock=0.9), unsure()])
    assert plans == [(("Rock",), "Rock 0.90"), (None, "too close to call")]


def test_albums_vote_apart() -> None:
    items = [
        (Track(Path(f"/{album}{i}"), (), album), verdict)
        for album, verdict in (("A", sure(Rock=0.9)), ("B", sure(Jazz=0.9)), ("", sure(Pop=0.9)))
        for i in range(3)
    ]
    items.append((track(), sure(Folk=0.9)))
    plans = plan_tags(items, PolicyOptions(), DEFAULT)
    expected = [("Rock",)] * 3 + [("Jazz",)] * 3 + [("Pop",)] * 3 + [("Folk",)]
    assert [plan.after for plan in plans] == expected


def test_equal_votes_fall_by_the_taxonomy() -> None:
    two = [sure(Rock=0.4, Folk=0.3, Jazz=0.3), sure(Rock=0.4, Jazz=0.3, Folk=0.3)]
    for heard in (two, two[::-1]):
        plans = plan_album(heard, min_confidence=0.3, max_genres=2)
        assert [after for after, _ in plans] == [("Rock", "Jazz")] * 2


JUNK = ["Other", "unknown", "", "17"]
EXISTING = st.lists(
    st.sampled_from([*JUNK, "Rock", "rock", "Hip Hop", "Live", "Jazz; Pop", "R&B", "Metal"]),
    max_size=3,
).map(tuple)
NAMES = ["Loud", "Rap", "rock", "Other", "Soul", "A; B"]


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    genres = draw(st.lists(st.sampled_from(DEFAULT.genres), unique=True, max_size=5))
    weights = [draw(st.floats(0, 1)) for _ in genres]
    total = sum(weights) or 1.0
    ranked = sorted(zip(genres, weights, strict=True), key=lambda item: -item[1])
    scores = tuple(GenreScore(name, weight / total) for name, weight in ranked)
    why = draw(st.sampled_from([None, None, None, "silence", *INHERITABLE]))
    return Verdict("default", scores, "features", (), 0.1, why)


@st.composite
def tracks(draw: st.DrawFn) -> Track:
    genres = draw(EXISTING)
    return Track(
        Path(f"/{draw(st.integers(0, 10**9))}"),
        genres,
        album=draw(st.sampled_from(["A", "B", None])),
        written=draw(st.one_of(st.none(), st.just(genres), EXISTING)),
        added=draw(st.sampled_from([(), genres, genres[1:]])),
        undone=draw(st.booleans()) and draw(st.booleans()),
    )


ITEMS = st.lists(st.tuples(tracks(), verdicts()), max_size=8, unique_by=lambda item: item[0].path)
SOME = st.lists(st.sampled_from([*DEFAULT.genres, *NAMES]), max_size=6).map(tuple)
OPTIONS = st.builds(
    PolicyOptions,
    mode=st.sampled_from(["fill", "append", "replace"]),
    min_confidence=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    max_genres=st.integers(1, 4),
    album_consensus=st.booleans(),
    add_parents=st.booleans(),
    overwrite_user_genres=st.booleans(),
    names=st.dictionaries(st.sampled_from(DEFAULT.genres), st.sampled_from(NAMES), max_size=4),
    allow=st.one_of(st.just(()), SOME),
    ignore=st.one_of(st.just(()), SOME),
)


@given(ITEMS, OPTIONS)
def test_planning_again_plans_nothing(
    items: list[tuple[Track, Verdict]], options: PolicyOptions
) -> None:
    plans = plan_tags(items, options, DEFAULT)
    carried_out = [
        (
            replace(
                one, genres=plan.after, written=plan.after, added=_added(one, plan), undone=False
            ),
            verdict,
        )
        if plan.after is not None
        else (one, verdict)
        for (one, verdict), plan in zip(items, plans, strict=True)
    ]
    again = plan_tags(carried_out, options, DEFAULT)
    assert [plan.after for plan in again] == [None] * len(items)


def _added(before: Track, plan: TagPlan) -> tuple[str, ...]:
    """Return what the store keeps as ours (Store.finish_change)."""
    ours = before.added if before.genres == before.written and not before.undone else ()
    theirs = set(before.genres) - set(ours)
    return tuple(genre for genre in plan.after or () if genre not in theirs)


@given(ITEMS, OPTIONS)
def test_what_holds_for_every_plan(
    items: list[tuple[Track, Verdict]], options: PolicyOptions
) -> None:
    for (one, _), plan in zip(items, plan_tags(items, options, DEFAULT), strict=True):
        assert plan.path == one.path
        assert plan.before == one.genres
        assert plan.reason
        if plan.after is None:
            continue
        assert plan.after not in ((), plan.before)
        assert plan.confidence >= options.min_confidence
        if not options.overwrite_user_genres:
            assert not one.undone
            assert one.written in (None, one.genres)
        ours = one.added if one.written == one.genres and not one.undone else ()
        users = [g for g in one.genres if not is_junk_genre(g) and g not in ours]
        if options.mode == "fill":
            assert not users
        if options.mode == "append":
            assert list(plan.after[: len(users)]) == users
        added = plan.after[len(users) if options.mode == "append" else 0 :]
        assert len({genre_key(genre) for genre in added}) == len(added)
        assert not any(is_junk_genre(genre) for genre in added)
        assert 1 <= len(added) <= options.max_genres * (2 if options.add_parents else 1)
        for genre in added:
            assert genre_key(genre) not in {genre_key(name) for name in options.ignore}
            meant = {name for name, theirs in options.names.items() if theirs == genre} | {genre}
            allowed = {genre_key(name) for name in options.allow}
            assert not allowed or allowed & {genre_key(name) for name in meant}


@given(st.lists(verdicts(), max_size=8), OPTIONS)
def test_every_genre_that_is_added_was_heard_clearly(
    heard: list[Verdict], options: PolicyOptions
) -> None:
    options = options.model_copy(
        update={"names": {}, "add_parents": False, "album_consensus": False, "mode": "replace"}
    )
    items = [(track(), verdict) for verdict in heard]
    for verdict, plan in zip(heard, plan_tags(items, options, DEFAULT), strict=True):
        assert verdict.unsure is None or plan.after is None
        scores = {score.name: score.confidence for score in verdict.genres}
        for rank, genre in enumerate(plan.after or ()):
            share = FURTHER_SHARE if rank else 1
            assert scores[genre] >= share * plan.confidence >= share * options.min_confidence


@given(ITEMS, OPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_tracks_makes_no_difference(
    items: list[tuple[Track, Verdict]], options: PolicyOptions, shuffler: random.Random
) -> None:
    shuffled = list(items)
    shuffler.shuffle(shuffled)
    plans = {plan.path: plan for plan in plan_tags(items, options, DEFAULT)}
    assert {plan.path: plan for plan in plan_tags(shuffled, options, DEFAULT)} == plans
