"""A person's word on tracks: accept what was heard, correct it, or take the word back.

    decide -> row in `decisions`, durable -> under the right to change files: checked copy ->
    journal -> rename (`changes.apply_tags`) -> wanted in Plex -> row closed

`accept` and `correct` take milliseconds and change no file; `write_decisions` does, and goes on
where a killed process stopped. It loads no model, so that it runs in the daemon's main process
while that is paused. A decision counts as mode replace for its tracks; the former genre is in the
journal, and undoing the run withdraws the decision.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reclass_plex import changes
from reclass_plex.batches import cut
from reclass_plex.config import Config
from reclass_plex.decided import Decision, Decisions, Kind, Word
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import ConfigError, FileChanged, FileError, NotAudio, visible
from reclass_plex.files import find_leftovers
from reclass_plex.genres import genre_key, is_junk_genre
from reclass_plex.jobs import Jobs
from reclass_plex.pipeline import album_key
from reclass_plex.policy import suggest_genres
from reclass_plex.records import GenreScore
from reclass_plex.store import KnownTrack, Store
from reclass_plex.sync import Wanted, WantedGenres
from reclass_plex.sync.known import wanted_labels

RUN = "review"  # the command that runs of decisions bear in the history
MAX_GENRES = 10  # of one track
MAX_LETTERS = 60  # of a genre
MAX_TRACKS = 10_000  # decided on at once
TOGETHER = 50  # files changed before others may change some
BREATH_SECONDS = 0.15  # then: they look twenty times a second
NOT_THERE = "the file is not there"


@dataclass(frozen=True)
class Refused:
    """A track that nothing could be decided on, and why; `path` is None if it is not known."""

    track_id: int
    path: Path | None
    reason: str


@dataclass(frozen=True)
class Decided:
    """What was decided: the run that can be undone (None: nothing), and its tracks."""

    run_id: int | None
    track_ids: tuple[int, ...]
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True)
class Written:
    """What became of a decided track's file. `reason` says why it failed, or is missing."""

    track_id: int
    path: Path
    genres: tuple[str, ...]
    state: Literal["written", "unchanged", "missing", "failed"]
    reason: str | None = None


def whole_albums(store: Store, track_ids: Collection[int]) -> list[int]:
    """Return the tracks of the albums that some tracks belong to, themselves among them."""
    found: dict[int, None] = {}
    for track_id in track_ids:
        if track_id not in found:
            found.update(dict.fromkeys(store.album_of(track_id) or [track_id]))
    return list(found)


def accept(
    store: Store,
    track_ids: Collection[int],
    config: Config,
    ensemble: Ensemble,
    *,
    by: str | None = None,
    now: float | None = None,
) -> Decided:
    """Say that what was heard first in tracks is right, however unsure it was.

    Where a file has a genre that we wrote, that one is meant. Tracks that were never heard are
    refused. Raises ConfigError for more than `MAX_TRACKS`.
    """

    def choose(track: KnownTrack) -> tuple[str, ...]:
        if track.genres and track.genres == track.written and not track.undone:
            return track.genres
        verdict = track.verdict or store.newest_verdict(track.digest or "")
        if verdict is None:
            return ()
        return suggest_genres(verdict, config.policy, ensemble.taxonomy)

    return _decide(store, track_ids, choose, "accept", ensemble, by, now)


def correct(
    store: Store,
    track_ids: Collection[int],
    genres: Sequence[str],
    config: Config,
    ensemble: Ensemble,
    *,
    by: str | None = None,
    now: float | None = None,
) -> Decided:
    """Say which genres tracks have. Raises ConfigError for names that are none, and too many."""
    names = check_genres(genres, config, ensemble)
    return _decide(store, track_ids, lambda track: names, "correct", ensemble, by, now)


def forget(store: Store, track_ids: Collection[int]) -> int:
    """Withdraw what was decided on tracks, so that the models decide again; return on how many.

    Files stay as they are: see undo.
    """
    known = _known(store, track_ids, "")
    return Decisions(store).forget([track.digest for track in known.values() if track.digest])


def check_genres(genres: Sequence[str], config: Config, ensemble: Ensemble) -> tuple[str, ...]:
    """Return genres as they are written: known ones in their usual spelling. Raises ConfigError."""
    usual = {genre_key(name): name for name in ensemble.taxonomy.genres}
    usual |= {genre_key(name): name for name in config.policy.names.values()}
    found: dict[str, str] = {}
    for text in genres:
        name = " ".join(text.split()) if text.isprintable() else text
        shown = visible(text)[:80]
        if not name or not name.isprintable() or len(name) > MAX_LETTERS:
            raise ConfigError(f"genre {shown!r}: is one line of 1 to {MAX_LETTERS} letters")
        if is_junk_genre(name) or ";" in name:
            raise ConfigError(f"genre {shown!r}: names no genre; give several one by one")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"genre {shown!r}: is no valid text") from None
        found.setdefault(genre_key(name), usual.get(genre_key(name), name))
    if not found or len(found) > MAX_GENRES:
        raise ConfigError(f"{len(found)} genres: give 1 to {MAX_GENRES}")
    return tuple(found.values())


def _decide(
    store: Store,
    track_ids: Collection[int],
    choose: Callable[[KnownTrack], tuple[str, ...]],
    kind: Kind,
    ensemble: Ensemble,
    by: str | None,
    now: float | None,
) -> Decided:
    ids = list(dict.fromkeys(track_ids))
    if len(ids) > MAX_TRACKS:
        raise ConfigError(f"{len(ids)} tracks: decide on at most {MAX_TRACKS} at once")
    moment = time.time() if now is None else now
    known = _known(store, ids, ensemble.fingerprint)
    words, refused = [], []
    for track_id in ids:
        track = known.get(track_id)
        if track is None or track.digest is None:
            why = "is not known" if track is None else "could not be read as audio"
            refused.append(Refused(track_id, track.path if track else None, why))
            continue
        genres = choose(track)
        if not genres:
            refused.append(Refused(track_id, track.path, "no genre was heard in it yet"))
            continue
        verdict = track.verdict or store.newest_verdict(track.digest)
        first = verdict.genres[0].name if verdict and verdict.genres else None
        words.append(Word(track_id, track.digest, genres, kind, first))
    if not words:
        return Decided(None, (), tuple(refused))
    run_id = store.start_run(RUN, now=moment)
    Decisions(store).record(words, run_id, moment, by=by)
    verb = "accepted" if kind == "accept" else "corrected"
    Jobs(store).settle([known[word.track_id].path for word in words], f"{verb} by a person", moment)
    return Decided(run_id, tuple(word.track_id for word in words), tuple(refused))


def write_decisions(
    store: Store,
    config: Config,
    *,
    run_id: int | None = None,
    wait_seconds: float = 0.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Written]:
    """Write what was decided and no file says yet (of one run, or of all); yield what became of it.

    What could not be written stays to be, for the next call. Raises StoreBusy if another process
    changes files for longer than `wait_seconds`.
    """
    decided = Decisions(store)
    queue = [(one, track_id) for one in decided.open_ones(run_id) for track_id in one.open]
    runs = {one.run_id for one, _ in queue}
    while queue and not should_stop():
        chunk, queue = queue[:TOGETHER], queue[TOGETHER:]
        known = _known(store, [track_id for _, track_id in chunk], "")
        with store.writing_files(wait_seconds, should_stop):
            for _ in changes.repair(store, config.tags):
                pass
            for folder in {track.path.parent for track in known.values()}:
                with suppress(OSError):
                    changes.remove_leftovers(store, find_leftovers(folder))
            for run in {one.run_id for one, _ in chunk}:
                store.join_run(run)
            for one, track_id in chunk:
                if should_stop():
                    break
                now = decided.find(one.id)  # another word, or undo, may have come in between
                if now is None or track_id not in now.open:
                    continue
                if (track := known.get(track_id)) is None:
                    decided.note(one.id, track_id, None)
                    continue
                yield _write(store, config, now, track)
        if queue:
            time.sleep(BREATH_SECONDS)
    for run in {run_id} if run_id is not None else runs:
        if not decided.open_ones(run):
            store.finish_run(run)


def _write(store: Store, config: Config, decision: Decision, track: KnownTrack) -> Written:
    """Write one decided track, wherever its file is now, and ask for the same in Plex."""
    decided, jobs = Decisions(store), Jobs(store)
    reason = f"decided by a person: {', '.join(decision.genres)}"
    try:
        here = _locate(store, track, decision, config)
        if here is None:
            decided.note(decision.id, track.id, NOT_THERE)
            return Written(track.id, track.path, decision.genres, "missing", NOT_THERE)
        written = here.genres != decision.genres and changes.apply_tags(
            store, decision.run_id, here, decision.genres, config.tags
        )
    except FileError as error:
        decided.note(decision.id, track.id, error.reason)
        problem = f"{reason}; but {error.reason}"
        jobs.settle([track.path], problem, time.time(), state="failed")
        return Written(track.id, track.path, decision.genres, "failed", error.reason)
    if config.plex.url is not None:
        scores = tuple(GenreScore(name, 1.0) for name in decision.genres)
        labels = wanted_labels(store, [here.path]).get(here.path, ((), ()))  # these stay
        wish = WantedGenres(here.path, scores, decision.run_id, *labels)
        Wanted(store).want([wish], time.time())
    decided.note(decision.id, track.id, None)
    jobs.settle([here.path], reason, time.time())
    return Written(
        track.id, here.path, decision.genres, "written" if written else "unchanged", None
    )


def _locate(
    store: Store, track: KnownTrack, decision: Decision, config: Config
) -> KnownTrack | None:
    """Return the track as its file is now, where it is now; None if it is nowhere.

    Raises FileError if it cannot be read, or another recording has taken its place.
    """
    path = track.path
    if not os.path.lexists(path):
        for moved in store.paths_of(decision.digest):
            if os.path.lexists(moved):
                path = moved
                break
        else:
            return None
    found = store.find_track(path, "")
    try:
        status = path.stat()
    except OSError as error:
        raise FileChanged(path, f"cannot be looked at: {error.strerror or error}") from error
    stamp = (status.st_size, status.st_mtime_ns)
    if found and (found.digest, found.size, found.mtime_ns) == (decision.digest, *stamp):
        return found
    with Decoders(1, Limits.of(config.worker)) as apart:  # what came there was never read before
        if apart.digest(path) != decision.digest:
            raise NotAudio(path, "another recording has taken its place since")
        says, _ = apart.examine(path, config.tags)
    store.save_track(
        path,
        status.st_size,
        status.st_mtime_ns,
        digest=decision.digest,
        genres=says.genres,
        album=album_key(path, says),
        moods=says.moods,
    )
    return store.find_track(path, "")


def _known(store: Store, track_ids: Collection[int], models: str) -> dict[int, KnownTrack]:
    ids = [one for one in dict.fromkeys(track_ids) if 0 < one < 1 << 63]
    found: dict[int, KnownTrack] = {}
    for some in cut(ids):
        found |= {one.id: one for one in store.find_tracks(some, models)}
    return found
