"""Moods and styles from MusiCNN's tags, through the policy, into files, and back out of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mutagen
import numpy as np
import pytest
import torch
from audio_files import make_audio
from hypothesis import given
from hypothesis import strategies as st

from reclass_plex import changes, moods, pipeline, tags
from reclass_plex.audio import audio_digest
from reclass_plex.config import Config, EnsembleOptions, PolicyOptions, TagOptions
from reclass_plex.console import describe_labels, result_as_json
from reclass_plex.encoders.musicnn_tags import MSD_TAGS
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import FileChanged, ModelError
from reclass_plex.genres import DEFAULT
from reclass_plex.models import DATA
from reclass_plex.moods import MOST, hear, load_vocabulary
from reclass_plex.policy import plan_tags
from reclass_plex.records import GenreScore, TagPlan, Track, Verdict
from reclass_plex.store import KnownTrack, Store
from reclass_plex.training.moods import SHARES, weighted_quantiles

ROCK = (GenreScore("Rock", 0.7), GenreScore("Metal", 0.2))
VERDICT = Verdict(
    "default",
    ROCK,
    "musicnn-few",
    (),
    0.1,
    moods=(GenreScore("Sad", 0.97), GenreScore("Mellow", 0.93), GenreScore("Happy", 0.91)),
    styles=(GenreScore("Indie Rock", 0.95), GenreScore("Rock", 0.92)),
)
BOTH = PolicyOptions(moods=True, styles=True)


def logits(**tags_heard: float) -> torch.Tensor:
    """Return (3, 50): nothing is heard but these tags, spelt as in Python."""
    values = torch.full((3, len(MSD_TAGS)), -9.0)
    for tag, value in tags_heard.items():
        values[:, MSD_TAGS.index(tag.replace("_", " "))] = value
    return values


def track(**fields: object) -> Track:
    return replace(Track(Path("/music/a.flac"), ()), **fields)  # type: ignore[arg-type]


def plan(one: Track, verdict: Verdict, options: PolicyOptions = BOTH) -> TagPlan:
    (planned,) = plan_tags([(one, verdict)], options, DEFAULT)
    return planned


# Hearing


def test_a_label_is_given_from_its_level_on_and_ranked_by_how_pronounced_it_is() -> None:
    levels = {label.name: label.levels for label in load_vocabulary().labels}
    heard = hear(logits(sad=levels["Sad"][5], happy=levels["Happy"][9]), ROCK, None)
    assert heard.moods == (GenreScore("Happy", 0.99), GenreScore("Sad", 0.95))
    assert heard.styles == ()
    assert hear(logits(sad=levels["Sad"][0] - 1e-3), ROCK, None).moods == ()
    assert hear(logits(sad=20.0), ROCK, None).moods == (GenreScore("Sad", 1.0),)


def test_windows_are_averaged_and_further_features_are_not_read() -> None:
    level = next(label.levels[0] for label in load_vocabulary().labels if label.name == "Sad")
    one = logits(sad=level + 0.1)
    one[0, MSD_TAGS.index("sad")] -= 0.2
    one[1, MSD_TAGS.index("sad")] += 0.2
    both = torch.cat([one, torch.randn(3, 200)], 1)
    assert hear(both, ROCK, None) == hear(one, ROCK, None) != hear(one[:1], ROCK, None)


def test_no_more_than_a_few_and_in_the_same_order_every_time() -> None:
    loud = torch.full((1, len(MSD_TAGS)), 5.0)
    heard = hear(loud, (GenreScore("Rock", 0.4), GenreScore("Electronic", 0.3)), None)
    assert len(heard.moods) == len(heard.styles) == MOST
    assert heard == hear(loud, (GenreScore("Rock", 0.4), GenreScore("Electronic", 0.3)), None)


def test_a_style_must_fit_a_genre_that_was_heard() -> None:
    house = logits(House=5.0, heavy_metal=5.0)

    def styles(*genres: tuple[str, float]) -> list[str]:
        found = hear(house, tuple(GenreScore(*genre) for genre in genres), None).styles
        return [style.name for style in found]

    assert styles(("Electronic", 0.8)) == ["House"]
    assert styles(("Pop", 0.5), ("Electronic", 0.3)) == ["House"]
    assert styles(("Pop", 0.7), ("Electronic", 0.3)) == []
    assert styles(("Classical", 0.9)) == []
    assert styles() == []


@pytest.mark.parametrize("unsure", sorted(moods.NO_MUSIC))
def test_what_is_no_music_has_no_mood(unsure: str) -> None:
    assert hear(logits(sad=5.0, House=5.0), ROCK, unsure) == ((), ())
    assert hear(logits(sad=5.0), ROCK, "too close to call").moods != ()


def test_nothing_heard_says_nothing() -> None:
    assert hear(None, (), "silence") == ((), ())
    assert hear(None, ROCK, None) == ((), ())
    assert hear(torch.empty(0, 50), ROCK, None) == ((), ())
    assert hear(torch.full((2, 50), math.nan), ROCK, None) == ((), ())


def test_the_vocabulary_restates_no_genre_and_says_what_it_rests_on() -> None:
    vocabulary = load_vocabulary()
    assert {label.name for label in vocabulary.labels}.isdisjoint(DEFAULT.genres)
    assert "not measured" in vocabulary.protocol
    for label in vocabulary.labels:
        assert label.kind == "mood" or set(label.genres) <= set(DEFAULT.genres)
        assert (label.kind == "style") == bool(label.genres)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["labels"][0].pop("levels"), "Field required"),
        (lambda data: data["labels"][0].update(tags=["gloomy"]), "no tag"),
        (lambda data: data["labels"][0].update(levels=[0.1, 0.2]), "rising level"),
        (lambda data: data["labels"][0]["levels"].reverse(), "rising level"),
        (lambda data: data.update(shares=[1.0]), "at least 2"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: object, message: str) -> None:
    data = json.loads((DATA / "moods.json").read_text(encoding="utf-8"))
    assert callable(change)
    change(data)
    (tmp_path / "moods.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ModelError, match=message) as caught:
        load_vocabulary(tmp_path)
    assert "moods.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"moods\.json: no moods and styles"):
        load_vocabulary(tmp_path)


def test_no_more_than_the_rest_lies_above_a_quantile() -> None:
    generator = np.random.default_rng(1)
    values = generator.standard_normal(400)
    weights = generator.random(400)
    weights /= weights.sum()
    levels = weighted_quantiles(values, weights, SHARES)
    for share, level in zip(SHARES[:-1], levels, strict=False):
        assert weights[values >= level].sum() <= 1 - share + 1e-9
        below = values[values < level].max()
        assert weights[values >= below].sum() > 1 - share
    assert levels[-1] == values.max()
    assert list(levels) == sorted(levels)


# Policy


def test_off_by_default() -> None:
    planned = plan(track(), VERDICT, PolicyOptions())
    assert (planned.moods, planned.plex_moods, planned.plex_styles) == (None, (), ())
    assert planned.after == ("Rock",)


def test_moods_go_beside_a_genre_or_alone() -> None:
    planned = plan(track(), VERDICT)
    assert (planned.after, planned.moods) == (("Rock",), ("Sad", "Mellow"))
    assert planned.reason == "Rock 0.70; moods: Sad, Mellow"
    assert planned.plex_moods == VERDICT.moods[:2]
    assert planned.plex_styles == (GenreScore("Indie Rock", 0.95),)  # Rock restates the genre
    planned = plan(track(genres=("Jazz",)), VERDICT, PolicyOptions(moods=True, max_moods=1))
    assert (planned.before, planned.after, planned.moods) == (("Jazz",), ("Jazz",), ("Sad",))
    assert planned.plex_styles == ()
    planned = plan(track(), VERDICT, PolicyOptions(styles=True))
    assert (planned.after, planned.moods, planned.plex_moods) == (("Rock",), None, ())
    assert planned.plex_styles != ()


def test_a_style_that_the_user_calls_the_genre_is_left_out() -> None:
    options = PolicyOptions(styles=True, names={"Rock": "Indie-Rock"})
    assert plan(track(), VERDICT, options).plex_styles == ()
    assert plan(track(genres=("indie rock",)), VERDICT).plex_styles == ()


def test_ignored_names_are_never_written() -> None:
    options = PolicyOptions(moods=True, styles=True, ignore=("sad", "Indie Rock"))
    planned = plan(track(), VERDICT, options)
    assert planned.moods == ("Mellow", "Happy")
    assert planned.plex_styles == ()


@pytest.mark.parametrize(
    ("fields", "overwritten"),
    [
        ({"moods": ("calm",)}, False),  # the user's own
        ({"moods": ("calm",), "moods_written": ("Sad",)}, False),  # changed since
        ({"moods_written": ("Sad",)}, True),  # removed since
        ({"genres": ("Jazz",), "undone": True}, True),  # taken back
    ],
)
def test_what_the_user_did_with_moods_stays(fields: dict[str, object], overwritten: bool) -> None:
    planned = plan(track(**fields), VERDICT)
    assert (planned.moods, planned.plex_moods) == (None, ())
    again = PolicyOptions(moods=True, overwrite_user_genres=True)
    assert (plan(track(**fields), VERDICT, again).moods is not None) is overwritten


def test_ours_that_stand_are_still_wanted_in_plex() -> None:
    stands = track(genres=("Rock",), moods=("Sad", "Mellow"), moods_written=("Sad", "Mellow"))
    planned = plan(stands, VERDICT)
    assert (planned.after, planned.moods) == (None, None)
    assert planned.plex_moods == VERDICT.moods[:2]


@pytest.mark.parametrize("why", ["silence", "too close to call", "unlike any known genre"])
def test_what_is_unsure_or_undecided_gets_none(why: str) -> None:
    for one in (track(), track(genres=("Jazz",))):
        planned = plan(one, replace(VERDICT, unsure=why))
        assert (planned.after, planned.moods, planned.plex_styles) == (None, None, ())
    planned = plan(track(), VERDICT, PolicyOptions(moods=True, min_confidence=0.9))
    assert (planned.undecided, planned.after, planned.moods) == (True, None, None)


names = st.sampled_from(["Sad", "Happy", "calm"])
some = st.lists(names, unique=True, max_size=2).map(tuple)


@given(
    genres=st.sampled_from([(), ("Rock",), ("Jazz",), ("Other",)]),
    moods_now=some,
    written=st.none() | some,
    undone=st.booleans(),
    heard=some,
    mode=st.sampled_from(["fill", "append", "replace"]),
    overwrite=st.booleans(),
    unsure=st.none() | st.sampled_from(["silence", "too close to call"]),
)
def test_moods_are_written_into_empty_fields_only_and_only_once(
    genres: tuple[str, ...],
    moods_now: tuple[str, ...],
    written: tuple[str, ...] | None,
    undone: bool,
    heard: tuple[str, ...],
    mode: str,
    overwrite: bool,
    unsure: str | None,
) -> None:
    options = PolicyOptions.model_validate(
        {"mode": mode, "moods": True, "overwrite_user_genres": overwrite}
    )
    scores = tuple(GenreScore(name, 0.95) for name in heard)
    verdict = replace(VERDICT, moods=scores, unsure=unsure)
    one = track(genres=genres, moods=moods_now, moods_written=written, undone=undone)
    planned = plan(one, verdict, options)
    if planned.moods is None:
        return
    assert moods_now == ()
    assert planned.moods == heard
    assert planned.after is not None
    then = replace(one, genres=planned.after, moods=planned.moods, moods_written=planned.moods)
    if planned.after != planned.before:
        then = replace(then, written=planned.after, added=planned.after, undone=False)
    assert plan(then, verdict, options).moods is None


# Store, file and undo


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def song(tmp_path: Path) -> Path:
    (tmp_path / "music").mkdir()
    return make_audio(tmp_path / "music", "flac", seconds=1)


@pytest.fixture
def ensemble() -> Ensemble:
    return Ensemble(EnsembleOptions())


def know(store: Store, path: Path, models: str, verdict: Verdict = VERDICT) -> KnownTrack:
    status, found, digest = path.stat(), tags.read_tags(path), audio_digest(path)
    store.save_verdict(digest, models, verdict)
    store.save_track(
        path,
        status.st_size,
        status.st_mtime_ns,
        digest=digest,
        genres=found.genres,
        moods=found.moods,
    )
    known = store.find_track(path, models)
    assert known is not None
    return known


def tag(
    store: Store, path: Path, ensemble: Ensemble, config: Config, run_id: int | None
) -> pipeline.TrackResult:
    known = know(store, path, ensemble.fingerprint)
    (result,) = pipeline.write_album(
        [pipeline.Analysed(path, known)],
        store=store,
        config=config,
        ensemble=ensemble,
        run_id=run_id,
    )
    assert result.error is None
    return result


def test_verdicts_come_back_with_their_labels_and_old_ones_without(
    store: Store, song: Path
) -> None:
    known = know(store, song, "models")
    assert known.verdict is not None
    assert (known.verdict.moods, known.verdict.styles) == (VERDICT.moods, VERDICT.styles)
    assert store.find_verdict(known.digest or "", "models") == VERDICT
    with store.transaction() as connection:
        connection.exec_driver_sql("UPDATE verdicts SET moods = NULL, styles = NULL")
    found = store.find_verdict(known.digest or "", "models")
    assert found == replace(VERDICT, moods=(), styles=())


@pytest.mark.parametrize("genre", [None, "Jazz"])
def test_from_the_verdict_into_the_file_and_back(
    store: Store, song: Path, ensemble: Ensemble, genre: str | None
) -> None:
    if genre:
        file = mutagen.File(song)
        file["genre"] = [genre]
        file.save()
    before = song.read_bytes()
    config = Config(policy=BOTH)
    dry = tag(store, song, ensemble, config, None)
    assert not dry.written
    assert song.read_bytes() == before
    run = store.start_run("tag")
    result = tag(store, song, ensemble, config, run)
    assert result.written
    assert mutagen.File(song)["mood"] == ["Sad", "Mellow"]
    assert mutagen.File(song)["genre"] == [genre or "Rock"]
    expected = GenreScore("Jazz", 1.0) if genre else GenreScore("Rock", 0.7)
    assert pipeline.genres_for_plex(result) == (expected,)
    assert pipeline.labels_for_plex(result) == (VERDICT.moods[:2], VERDICT.styles[:1])
    known = store.find_track(song, ensemble.fingerprint)
    assert known is not None
    assert (known.moods, known.moods_written) == (("Sad", "Mellow"),) * 2
    assert (known.written, known.size) == (None if genre else ("Rock",), song.stat().st_size)
    assert not tag(store, song, ensemble, config, run).written

    (entry,) = changes.find_changes(store, run_id=run)
    assert entry.moods == ("Sad", "Mellow")
    undone = changes.undo_change(store, entry, TagOptions())
    assert (undone.restored, undone.how) == (True, "restored byte for byte")
    assert song.read_bytes() == before
    known = store.find_track(song, ensemble.fingerprint)
    assert known is not None
    assert (known.genres, known.moods, known.undone) == ((genre,) if genre else (), (), True)
    assert not tag(store, song, ensemble, config, store.start_run("tag")).written


def test_the_users_own_moods_are_not_touched(store: Store, song: Path, ensemble: Ensemble) -> None:
    file = mutagen.File(song)
    file["mood"] = ["calm"]
    file.save()
    result = tag(store, song, ensemble, Config(policy=BOTH), store.start_run("tag"))
    assert mutagen.File(song)["mood"] == ["calm"]
    assert mutagen.File(song)["genre"] == ["Rock"]
    assert pipeline.labels_for_plex(result)[0] == ()


def test_a_mood_that_came_meanwhile_is_kept(store: Store, song: Path, ensemble: Ensemble) -> None:
    known = know(store, song, ensemble.fingerprint)
    file = mutagen.File(song)
    file["mood"] = ["calm"]
    file.save()
    before = song.read_bytes()
    run = store.start_run("tag")
    with pytest.raises(FileChanged, match="a mood meanwhile"):
        changes.apply_tags(store, run, known, ("Rock",), TagOptions(), moods=("Sad",))
    assert song.read_bytes() == before
    assert store.changes() == []
    assert [path.name for path in song.parent.iterdir()] == [song.name]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_writer_that_was_killed_is_settled(
    store: Store, song: Path, ensemble: Ensemble, replaced: bool
) -> None:
    before = song.read_bytes()
    known = know(store, song, ensemble.fingerprint)
    run = store.start_run("tag")
    prepared = tags.prepare_write(song, (), TagOptions(), moods=("Sad",))
    assert prepared is not None
    store.begin_change(
        run,
        known.id,
        path=prepared.path,
        temp_path=prepared.temp_path,
        digest=prepared.digest,
        before=(),
        after=(),
        before_hash=prepared.before_hash,
        after_hash=prepared.after_hash,
        before_mtime_ns=prepared.before_stamp.mtime_ns,
        delta=prepared.delta,
        moods=("Sad",),
    )
    if replaced:
        prepared.commit()
    (line,) = changes.repair(store, TagOptions())
    assert ("can be undone" in line) is replaced
    found = store.find_track(song, ensemble.fingerprint)
    assert found is not None
    assert found.moods == (("Sad",) if replaced else ())
    assert found.moods_written == (("Sad",) if replaced else None)
    assert (found.written, found.undone) == (None, False)
    for entry in changes.find_changes(store, run_id=run):
        assert changes.undo_change(store, entry, TagOptions()).restored
    assert song.read_bytes() == before
    assert [path.name for path in song.parent.iterdir()] == [song.name]


@pytest.mark.parametrize(
    ("genre", "how", "left"),
    [
        ("Rock", "its genre was restored", ()),
        ("Shoegaze", "its mood was restored; the genre is yours", ("Shoegaze",)),
    ],
)
def test_undo_after_the_user_edited_the_file(
    store: Store, song: Path, ensemble: Ensemble, genre: str, how: str, left: tuple[str, ...]
) -> None:
    run = store.start_run("tag")
    tag(store, song, ensemble, Config(policy=BOTH), run)
    file = mutagen.File(song)
    file["title"], file["genre"] = ["By the user"], [genre]
    file.save()
    (entry,) = changes.find_changes(store, run_id=run)
    undone = changes.undo_change(store, entry, TagOptions())
    assert (undone.restored, undone.how) == (True, f"edited since, so only {how}")
    found = tags.read_tags(song)
    assert (found.genres, found.moods, found.title) == (left, (), "By the user")
    known = store.find_track(song, ensemble.fingerprint)
    assert known is not None
    assert (known.genres, known.moods) == (left, ())


def test_what_is_printed() -> None:
    result = pipeline.TrackResult(
        Path("/a"), VERDICT, TagPlan(Path("/a"), (), (), 0.7, "", moods=("Sad",)), written=True
    )
    data = result_as_json(result)
    assert data["moods"] == [
        {"name": "Sad", "confidence": 0.97},
        {"name": "Mellow", "confidence": 0.93},
        {"name": "Happy", "confidence": 0.91},
    ]
    assert data["moods_written"] == ["Sad"]
    assert json.loads(json.dumps(data))["styles"][0] == {"name": "Indie Rock", "confidence": 0.95}
    quiet = replace(VERDICT, moods=(), styles=())
    assert describe_labels(quiet) == "moods: none; styles: none"
    assert "Sad 0.97" in describe_labels(VERDICT)
