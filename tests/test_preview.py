"""Preview: what it says is what `tag` would do, and it touches nothing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from decision_tools import CONFIG, ENSEMBLE

from reclass_plex import preview as preview_module
from reclass_plex.config import PolicyOptions
from reclass_plex.decided import Decisions, Word
from reclass_plex.errors import ConfigError
from reclass_plex.policy import plan_tags
from reclass_plex.preview import Preview, change_policy, preview
from reclass_plex.records import GenreScore, Track, Verdict
from reclass_plex.remote import PreviewRequest
from reclass_plex.store import Store
from service.actions import Actions
from service.events import Events

FILL = PolicyOptions()
GENRES = ENSEMBLE.taxonomy.genres


COUNT = 130
Made = list[tuple[Track, Verdict | None]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Made]]:
    with Store.open(tmp_path_factory.mktemp("preview") / "store.sqlite") as opened:
        yield opened, fill(opened)


@pytest.fixture
def store(filled: tuple[Store, Made]) -> Store:
    return filled[0]


def fill(store: Store, count: int = COUNT) -> list[tuple[Track, Verdict | None]]:
    """Let the store know tracks of all sorts; return them as the policy should see them."""
    rng = random.Random(7)
    made: list[tuple[Track, Verdict | None]] = []
    for number in range(count):
        path = Path(f"/music/{number // 12}/{number}\udcff.mp3")
        album = f"/music/{number // 12}\nAlbum" if number % 5 else None
        tags = rng.choice([(), ("Pop",), ("Unknown",), ("Jazz", "Blues")])
        names = rng.sample(GENRES, 4)
        first = rng.uniform(0.3, 0.95)
        shares = [first, *[(1 - first) / 3] * 3]
        scores = tuple(GenreScore(*one) for one in zip(names, shares, strict=True))
        unsure = "silence" if number % 17 == 0 else None
        verdict = None
        digest = f"{number:032x}"
        if number % 11:
            verdict = Verdict("default", scores, "test", (), 0.1, unsure)
            models = ENSEMBLE.fingerprint if number % 7 else "older"
            store.save_verdict(digest, models, verdict, now=1.0)
        store.save_track(path, 1, 1, digest=digest, genres=tags, album=album)
        made.append((Track(path, tags, album), verdict))
    return made


def ask(
    store: Store, policy: PolicyOptions, current: PolicyOptions = FILL, sample: int = 1000
) -> Preview:
    return preview(store, ENSEMBLE.fingerprint, ENSEMBLE.taxonomy, policy, current, sample=sample)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "replace", "min_confidence": 0.7},
        {"mode": "append", "max_genres": 3, "names": {"Metal": "Heavy"}, "ignore": ["Jazz"]},
        {"mode": "replace", "album_consensus": False, "allow": ["Rock", "Pop"]},
    ],
)
@pytest.mark.parametrize("page", [7, 2000])
def test_it_says_what_would_be_done(
    filled: tuple[Store, Made],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    page: int,
) -> None:
    store, made = filled
    monkeypatch.setattr(preview_module, "_PAGE", page)
    policy = change_policy(FILL, changes)
    found = ask(store, policy)
    pairs = [(track, verdict) for track, verdict in made if verdict is not None]
    plans = plan_tags(pairs, policy, ENSEMBLE.taxonomy)
    wanted = {plan.path: (plan.before, plan.after) for plan in plans if plan.after is not None}
    assert {one.path: (one.before, one.after) for one in found.sample} == wanted
    assert (found.tracks, found.unheard) == (len(made), len(made) - len(pairs))
    assert found.then.written + found.then.changed == len(wanted)
    assert found.then.review == sum(plan.undecided for plan in plans)
    assert found.then.kept == len(pairs) - len(wanted) - found.then.review
    assert dict(found.genres) == Counter(name for _, after in wanted.values() for name in after)
    now = plan_tags(pairs, FILL, ENSEMBLE.taxonomy)
    assert found.differs == sum(a.after != b.after for a, b in zip(plans, now, strict=True))
    assert sum(count for _, count in found.reasons) == found.then.review + found.then.kept
    assert found == ask(store, policy)  # the same question, the same answer


def test_a_sample_is_small_and_a_decision_counts(store: Store) -> None:
    few = ask(store, change_policy(FILL, {"mode": "replace"}), sample=5)
    assert len(few.sample) == 5
    assert few.then.changed > 5
    shown = few.sample[0]
    [track] = store.find_tracks([shown.track_id], "")
    assert track.digest is not None
    word = Word(track.id, track.digest, ("Schlager",), "correct", None)
    Decisions(store).record([word], store.start_run("review"), 1.0)
    after = ask(store, change_policy(FILL, {"mode": "replace"}))
    assert dict(after.genres)["Schlager"] == 1
    Decisions(store).forget([track.digest])


def test_it_can_be_stopped_and_an_empty_library_is_no_fault(store: Store, tmp_path: Path) -> None:
    with Store.open(tmp_path / "empty.sqlite") as empty:
        assert ask(empty, FILL).tracks == 0
    seen: list[int] = []
    found = preview(
        store,
        ENSEMBLE.fingerprint,
        ENSEMBLE.taxonomy,
        FILL,
        FILL,
        on_progress=seen.append,
        should_stop=lambda: bool(seen),
    )
    assert found.stopped
    assert 0 < found.tracks < COUNT


@pytest.mark.parametrize(
    "changes",
    [{"mode": "burn"}, {"min_confidence": 2}, {"unknown": 1}, {"names": {"Rock": "a\nb"}}, {"": 0}],
)
def test_wrong_options_are_named(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"policy\."):
        change_policy(FILL, changes)


def test_the_daemon_previews_in_an_operation(store: Store) -> None:
    def no_plex() -> object:
        raise AssertionError

    actions = Actions(store, lambda: CONFIG, no_plex, events=Events())  # type: ignore[arg-type]
    try:
        started = actions.preview(PreviewRequest(policy={"mode": "replace"}, sample=3))
        done = actions.operations.wait(started.id, 20)
        assert done is not None
        assert done.state == "done"
        assert done.result is not None
        assert (done.done, done.total) == (COUNT, COUNT)
        assert len(done.result["sample"]) == 3
        assert done.model_dump_json()  # paths that are no text, too
        assert done.result["now"] == asdict(ask(store, FILL).then)
        with pytest.raises(ConfigError, match=r"policy\.mode"):
            actions.preview(PreviewRequest(policy={"mode": 1}))
    finally:
        actions.close()
