"""The whole story of a batch of tracks, read top to bottom.

    find -> (known and unchanged? its verdict is in the store)
         -> read tags -> audio digest -> (known audio? its verdict is in the store)
         -> decode -> ensemble -> store
         -> album by album: policy -> journal -> file

Analysis runs in worker threads (decoding, resampling and torch release the GIL); everything that
changes a file runs in the caller's thread, one file after another. `tag_files` is both; the daemon
takes its two halves, `analyse_albums` and `write_album`, and keeps its jobs' states in between.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from reclass_plex.batches import cut
from reclass_plex.config import Config, TagOptions
from reclass_plex.decided import Decision, Decisions
from reclass_plex.decoding import decode_file, examine_file
from reclass_plex.ensemble import Ensemble
from reclass_plex.errors import FileError, NotAudio, RetryLater, TagsUnsupported
from reclass_plex.files import FoundFile
from reclass_plex.policy import plan_tags
from reclass_plex.records import (
    Embedding,
    Excerpt,
    GenreScore,
    TagPlan,
    Track,
    Verdict,
    Waveform,
)
from reclass_plex.store import KnownTrack, Store

if TYPE_CHECKING:
    from reclass_plex.tags import FileTags

# FFmpeg and mutagen are imported where a file is read: a run over a known library reads none.

PREFETCH_PER_WORKER = 4  # tracks analysed ahead of the writer: bounds memory, keeps workers busy
LOOKUP_BATCH = 1000  # files that the store is asked about at once
MOST_AHEAD = 20_000  # known files that wait behind one that is heard: a slow disk may take minutes

T = TypeVar("T")
R = TypeVar("R")

_DISC_FOLDER = re.compile(r"(cd|dis[ck])[ ._-]*\d+", re.IGNORECASE)


@dataclass(frozen=True)
class TrackResult:
    """What became of one file. Exactly one of `plan` and `error` says why nothing was written."""

    path: Path
    verdict: Verdict | None = None
    plan: TagPlan | None = None
    written: bool = False
    error: FileError | None = None


@dataclass(frozen=True)
class _Todo(Generic[T]):
    """What is yet to be computed from."""

    value: T


@dataclass(frozen=True)
class _Done(Generic[R]):
    """A result that needed no work, with the two methods of a Future that are used."""

    value: R

    def done(self) -> bool:
        """Say that it is there."""
        return True

    def result(self) -> R:
        """Return it."""
        return self.value


@dataclass(frozen=True)
class Analysed:
    """A file with what is known of it: `known.verdict` is set unless `error` is."""

    path: Path
    known: KnownTrack | None
    error: FileError | None = None


def count_cores() -> int:
    """Return the cores that this process may use: so many tracks are best heard at once."""
    if hasattr(os, "sched_getaffinity"):  # Linux: not all there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Examine = Callable[[Path, TagOptions], "tuple[FileTags, str]"]  # to what it says, and its digest
Decode = Callable[[Path, Excerpt], Waveform]
Hear = Callable[[Path], tuple[Verdict, tuple[Embedding, ...]]]  # `listener`'s, or a cluster's


def classify_file(
    path: Path, ensemble: Ensemble, decode: Decode = decode_file
) -> tuple[Verdict, tuple[Embedding, ...]]:
    """Decode what the ensemble asks for, and let it vote. Needs no store and changes nothing.

    `decode`: by default in this process; `Decoders.decode` does it in another one, within limits.
    Raises FileError when the file is not decodable audio.
    """
    return ensemble.classify(decode(path, ensemble.excerpt))


def listener(ensemble: Ensemble, decode: Decode = decode_file) -> Hear:
    """Return what hears a file on this machine."""
    return lambda path: classify_file(path, ensemble, decode)


def classify_files(
    found: Iterable[FoundFile | FileError],
    ensemble: Ensemble,
    *,
    workers: int,
    decode: Decode = decode_file,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrackResult]:
    """Yield the verdict, or the error, of every file in order. Nothing is written anywhere."""

    def classify(item: FoundFile | FileError) -> TrackResult:
        if isinstance(item, FileError):
            return TrackResult(item.path, error=item)
        try:
            return TrackResult(item.path, classify_file(item.path, ensemble, decode)[0])
        except FileError as error:
            return TrackResult(item.path, error=error)

    return _map_ahead(classify, map(_Todo, found), workers, should_stop)


def fma_features(path: Path, excerpt: Excerpt) -> tuple[int, dict[str, float]]:
    """Return the rate in Hz of a file's audio, and its 518 FMA features by name, in order.

    Audio at less than the features' lowest rate is resampled to 22,050 Hz. Raises FileError.
    """
    import torch

    from reclass_plex import audio
    from reclass_plex.features import COLUMN_NAMES, MINIMUM_RATE, extract_fma_features

    waveform = audio.decode_excerpt(path, excerpt)
    if waveform.rate < MINIMUM_RATE:
        waveform = audio.resample(waveform, 22050)
    values = extract_fma_features(torch.from_numpy(waveform.samples)[None], waveform.rate)[0]
    return waveform.rate, dict(zip(COLUMN_NAMES, values.tolist(), strict=True))


def tag_files(
    found: Iterable[FoundFile | FileError],
    *,
    store: Store,
    ensemble: Ensemble,
    config: Config,
    run_id: int | None,
    workers: int,
    examine: Examine = examine_file,
    hear: Hear | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TrackResult]:
    """Decide and write the genre of every file; yield what became of each, albums together.

    `found` comes from `files.find_audio_files` (sorted, so that albums stand together). With
    `run_id` None nothing is written (dry run). `should_stop` is asked between files: the file in
    hand is finished, the rest is left for the next run, which goes on where this one stopped.
    """
    said = Decisions(store).all_standing()
    for album in analyse_albums(
        found,
        store=store,
        ensemble=ensemble,
        config=config,
        workers=workers,
        examine=examine,
        hear=hear,
        should_stop=should_stop,
    ):
        yield from write_album(
            album,
            store=store,
            config=config,
            ensemble=ensemble,
            run_id=run_id,
            should_stop=should_stop,
            said=said,
        )


def analyse_albums(
    found: Iterable[FoundFile | FileError],
    *,
    store: Store,
    ensemble: Ensemble,
    config: Config,
    workers: int,
    should_stop: Callable[[], bool] = lambda: False,
    examine: Examine = examine_file,
    hear: Hear | None = None,
) -> Iterator[list[Analysed]]:
    """Listen to every file that the store does not know; yield what is known of those together
    whose tracks may share an album, in order.

    What is known is recorded in the store, and no file is changed. When stopped, albums that are
    not wholly heard are left out. `examine` and `hear` are called from `workers` threads; without
    `hear` the ensemble hears, in these threads.
    """
    models = ensemble.fingerprint
    hear = hear or listener(ensemble)

    def analyse(item: FoundFile) -> Analysed:
        return _analyse(item, store, models, config.tags, examine, hear)

    analysed = _map_ahead(analyse, _with_known(found, store, models), workers, should_stop)
    for _, folder in groupby(analysed, key=lambda item: album_folder(item.path)):
        album: list[Analysed] = []
        for item in folder:
            if item.error is None and item.known is not None and item.known.album is not None:
                album.append(item)  # its tracks vote together, once all are heard
            else:
                yield [item]
        if album and not should_stop():
            yield album


def _map_ahead(
    function: Callable[[T], R],
    items: Iterable[_Todo[T] | _Done[R]],
    workers: int,
    should_stop: Callable[[], bool],
) -> Iterator[R]:
    """Yield function(item) in order, computed in threads, a bounded number ahead.

    Items that are Done go through as they are, and wait only for those before them.
    """
    most = workers * PREFETCH_PER_WORKER
    with ThreadPoolExecutor(workers, "analyse") as pool:
        ahead: deque[Future[R] | _Done[R]] = deque()
        busy = 0
        try:
            for item in items:
                if should_stop():
                    return
                if isinstance(item, _Done):
                    ahead.append(item)
                else:
                    ahead.append(pool.submit(function, item.value))
                    busy += 1
                while ahead and (busy >= most or len(ahead) >= MOST_AHEAD or ahead[0].done()):
                    first = ahead.popleft()
                    busy -= isinstance(first, Future)
                    yield first.result()
            while ahead and not should_stop():
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _with_known(
    found: Iterable[FoundFile | FileError], store: Store, models: str
) -> Iterator[_Done[Analysed] | _Todo[FoundFile]]:
    """Tell the files that are known and unchanged from those that must be read."""
    for batch in cut(found, LOOKUP_BATCH):
        paths = [item.path for item in batch if isinstance(item, FoundFile)]
        known = {track.path: track for track in store.known_files(paths, models)}
        for item in batch:
            if isinstance(item, FileError):
                yield _Done(Analysed(item.path, None, item))
                continue
            track = known.get(item.path)
            if track is None or (track.size, track.mtime_ns) != (item.size, item.mtime_ns):
                yield _Todo(item)
            elif track.error is not None:
                error = FileError.of_kind(*track.error, item.path)
                yield _Done(Analysed(item.path, track, error))
            elif track.verdict is None:
                yield _Todo(item)
            else:
                yield _Done(Analysed(item.path, track))


def _analyse(
    item: FoundFile,
    store: Store,
    models: str,
    options: TagOptions,
    examine: Examine,
    hear: Hear,
) -> Analysed:
    """Read one file, take its verdict from the store or the ensemble, and record both."""
    path = item.path
    try:
        file_tags, digest = examine(path, options)
        verdict = store.find_verdict(digest, models)
        if verdict is None:
            verdict, embeddings = hear(path)
            store.save_verdict(digest, models, verdict, embeddings)
    except (NotAudio, TagsUnsupported) as error:  # will be so until the file changes
        store.save_track(path, item.size, item.mtime_ns, error=error)
        return Analysed(path, None, error)
    except FileError as error:
        return Analysed(path, None, error)  # not remembered: the next run looks again
    store.save_track(
        path,
        item.size,
        item.mtime_ns,
        digest=digest,
        genres=file_tags.genres,
        album=album_key(path, file_tags),
        moods=file_tags.moods,
    )
    return Analysed(path, store.find_track(path, models))


def write_album(
    items: Sequence[Analysed],
    *,
    store: Store,
    config: Config,
    ensemble: Ensemble,
    run_id: int | None,
    should_stop: Callable[[], bool] = lambda: False,
    mates: Sequence[KnownTrack] = (),
    said: Mapping[str, Decision] | None = None,
) -> Iterator[TrackResult]:
    """Plan for tracks that may share albums, then write one after another; yield what became.

    `mates` are further tracks of their albums: they vote, and stay as they are. With `run_id`
    None nothing is written. When stopped, the rest is left out.

    `said` is what people decided, as far as is known: before anything is written it is asked for
    again, with the right to change files, as they may have decided meanwhile. None: ask at once.
    """
    for item in items:
        if item.error is not None:
            yield TrackResult(item.path, error=item.error)
    pairs = [
        (item.known, item.known.verdict)
        for item in items
        if item.error is None and item.known and item.known.verdict
    ]
    voters = [(mate, mate.verdict) for mate in mates if mate.verdict]
    tracks = [known for known, _ in (*pairs, *voters)]
    digests = {known.digest for known in tracks if known.digest}

    def plan_by(said: Mapping[str, Decision]) -> list[TagPlan]:
        return plan_tags(
            [(_as_track(known, said), verdict) for known, verdict in (*pairs, *voters)],
            config.policy,
            ensemble.taxonomy,
        )

    plans = [] if said is None else plan_by(said)
    if said is None or (run_id is not None and any(plan.after is not None for plan in plans)):
        plans = plan_by(Decisions(store).standing(digests))
    for (known, verdict), plan in zip(pairs, plans, strict=False):  # those of the mates are last
        result = TrackResult(known.path, verdict, plan)
        if plan.after is None or run_id is None:
            yield result
        elif should_stop():
            return
        else:
            from reclass_plex.changes import apply_tags

            try:
                written = apply_tags(
                    store, run_id, known, plan.after, config.tags, moods=plan.moods
                )
                yield replace(result, written=written)
            except FileError as error:
                yield replace(result, error=error)


def genres_for_plex(result: TrackResult) -> tuple[GenreScore, ...]:
    """Return what a track shall show in Plex: the genres of its file, or that it should have had.

    Nothing where no genre could be decided on, or where the file is to be tried again: it comes
    first. The user's own genres count with certainty.
    """
    plan, verdict = result.plan, result.verdict
    if plan is None or verdict is None or plan.undecided or isinstance(result.error, RetryLater):
        return ()
    if plan.after is None or plan.after == plan.before:  # as it was, perhaps with moods now
        return tuple(GenreScore(name, 1.0) for name in plan.before)
    heard = {score.name: score.confidence for score in verdict.genres if not plan.decided}
    return tuple(GenreScore(name, heard.get(name, plan.confidence)) for name in plan.after)


def labels_for_plex(
    result: TrackResult,
) -> tuple[tuple[GenreScore, ...], tuple[GenreScore, ...]]:
    """Return the moods and the styles that a track shall show in Plex, by the policy's plan."""
    if result.plan is None or isinstance(result.error, RetryLater):
        return (), ()
    return result.plan.plex_moods, result.plan.plex_styles


def _as_track(known: KnownTrack, said: Mapping[str, Decision]) -> Track:
    decision = said.get(known.digest or "")
    return Track(
        path=known.path,
        genres=known.genres,
        album=known.album,
        written=known.written,
        added=known.added,
        undone=known.undone,
        moods=known.moods,
        moods_written=known.moods_written,
        decided=None if decision is None else decision.genres,
    )


def album_folder(path: Path) -> Path:
    """Return the folder of the file's album: "Album" for Album/CD1/x.flac and Album/x.flac."""
    parent = path.parent
    return parent.parent if _DISC_FOLDER.fullmatch(parent.name) else parent


def album_key(path: Path, file_tags: FileTags) -> str | None:
    """Return what tracks of one album share: its folder and its album tag (None without one)."""
    if not file_tags.album:
        return None
    folder = str(album_folder(path)).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return f"{folder}\n{file_tags.album}"
