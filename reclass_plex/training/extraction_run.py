"""Extraction: a collection's recordings through a feature set, part by part, to a folder.

What lies in the folder, `extraction` says; where the work is done, `extraction_workers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from reclass_plex.errors import ConfigError, Unreadable, printable
from reclass_plex.files import naming_errors, try_lock
from reclass_plex.models.installed import hash_file, write_record
from reclass_plex.records import Excerpt
from reclass_plex.training.datasets.collection import Collection
from reclass_plex.training.extraction import (
    MANIFEST,
    PACKED,
    RECORDING,
    ROWS,
    WORK,
    Entry,
    Failed,
    Manifest,
    Plan,
    check_digests,
    differences,
    make_plan,
    read_manifest,
    rows_file,
)
from reclass_plex.training.extraction_packed import write_packed
from reclass_plex.training.extraction_parts import Part, Parts, write_at_once
from reclass_plex.training.extraction_sets import FeatureSet, load_extractor
from reclass_plex.training.extraction_workers import (
    Crashed,
    Failure,
    Features,
    Task,
    Workers,
    compute,
    hear,
    hear_and_compute,
)

PLAN = "plan.json"
PART_RECORDINGS = 64
PART_SECONDS = 60.0  # the most work that kill -9 can undo, but for one recording

NO_AUDIO = Failure("no-audio", "the dataset has no audio of it")
CRASH = Failure(
    "crash", "its process died: the file is damaged or endless, or memory is full (fewer --jobs)"
)


class Extraction:
    """One feature set of one collection, in a folder that it holds alone while it is open.

    `done` of its `total` recordings are there already; `manifest` is set once it is finished.
    """

    def __init__(
        self, collection: Collection, features: FeatureSet, excerpt: Excerpt, folder: Path
    ) -> None:
        """Take what `open_extraction` has checked and locked."""
        self.collection, self.features, self.excerpt = collection, features, excerpt
        self.folder = folder
        self.total = len(collection.recordings)
        self.plan = make_plan(collection, features, excerpt)
        seal = hashlib.sha256(self.plan.model_dump_json().encode()).digest()
        self.unread: dict[str, Failure] = {}
        self._parts = Parts(folder / WORK, seal)
        self.manifest = read_manifest(folder) if (folder / MANIFEST).exists() else None
        self._todo: list[int] = []
        if self.manifest is not None:
            self._check_plan(self.manifest.plan)
            check_digests(folder, self.manifest)
            _remove_work(folder)
        else:
            self._begin()
            there = [number for part in self._parts.read() for number in _numbers(part)]
            self._todo = sorted(set(range(self.total)).difference(there))

    @property
    def done(self) -> int:
        """How many recordings need no more work."""
        return self.total - len(self._todo)

    def run(
        self,
        workers: Workers,
        on_recording: Callable[[], object] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Manifest | None:
        """Compute what is missing; return the manifest, or None if it was stopped.

        None, too, if recordings cannot be read for now: `unread` says which and why. Both times
        the next run goes on from here. Raises ReclassError; what was computed is kept then, too.
        """
        self.unread.clear()
        if self.manifest is None:
            kept = 0
            with contextlib.closing(_Unsaved(self._parts)) as unsaved:
                for number, outcome in self._outcomes(workers, should_stop):
                    if isinstance(outcome, Failure) and outcome.later:
                        self.unread[self.collection.recordings[number].key] = outcome
                    else:
                        unsaved.add(number, outcome)
                        kept += 1
                    on_recording()
            if kept == len(self._todo):
                self.manifest = self._finish()
        return self.manifest

    def _outcomes(
        self, workers: Workers, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[int, Features | Failure]]:
        """Yield the number and outcome of what is to do, in order."""
        paths = [self.collection.recordings[number].path for number in self._todo]
        tasks = (Task(path, self.excerpt, self.features) for path in paths if path is not None)
        here = self.features.device == "cuda"
        results = (
            workers.map(hear, tasks, should_stop)
            if here
            else workers.map(hear_and_compute, tasks, should_stop)
        )
        extract = load_extractor(self.features) if here and any(paths) else None
        for number, path in zip(self._todo, paths, strict=True):
            if path is None:
                yield number, NO_AUDIO
                continue
            result = next(results, None)
            if result is None:  # stopped
                return
            if isinstance(result, Crashed):
                yield number, CRASH
            elif isinstance(result, Features | Failure):
                yield number, result
            elif extract is not None:
                yield number, compute(result, self.features, extract)

    def _begin(self) -> None:
        """Write the plan, or check that what is begun has the same."""
        path = self.folder / WORK / PLAN
        with naming_errors(path, writing=True):
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                write_record(path, self.plan)
        try:
            begun = Plan.model_validate_json(path.read_bytes())
        except ValueError:
            raise Unreadable(path, "is damaged; begin anew with --restart") from None
        self._check_plan(begun)

    def _check_plan(self, before: Plan) -> None:
        if told := "; ".join(differences(before, self.plan)):
            raise ConfigError(
                f"{printable(self.folder)}: holds another extraction: {told}."
                " Take another --out, or delete what is there and begin anew with --restart"
            )

    def _finish(self) -> Manifest | None:
        """Put the parts together; the manifest comes last, then they go.

        None if a part turns out to be damaged: then it is gone, and the next run computes it.
        """
        entries: list[Entry] = []
        failed: list[Failed] = []
        shapes: set[tuple[int, ...]] = set()
        seen = 0
        for part in self._parts.read():
            if part.rows.size:
                shapes.add(part.rows.shape[1:])
            for number, outcome in zip(_numbers(part), part.outcomes, strict=True):
                seen += 1
                of = self.collection.recordings[number]
                if isinstance(outcome, Failure):
                    failed.append(Failed(key=of.key, kind=outcome.kind, reason=outcome.reason))
                    continue
                rows, digest = outcome
                entries.append(
                    Entry(
                        key=of.key,
                        labels=of.labels,
                        group=of.group,
                        split=of.split,
                        audio=digest,
                        rows=rows,
                    )
                )
        if seen < self.total:
            return None
        if not entries:
            raise ConfigError(
                f"{self.collection.name}: no recording gave features of {self.features.name}; the"
                f" first, {failed[0].key}: {failed[0].reason}. Mend it, and begin anew: --restart"
            )
        counts = [entry.rows for entry in entries]
        (shape,) = shapes
        manifest = Manifest(
            plan=self.plan,
            labels=self.collection.labels,
            multi_label=self.collection.multi_label,
            groups_are_artists=self.collection.groups_are_artists,
            licence=self.collection.licence,
            shape=(sum(counts), *shape),
            files=self._write_arrays((sum(counts), *shape), counts),
            recordings=tuple(entries),
            failed=tuple(failed),
        )
        with naming_errors(self.folder / MANIFEST, writing=True):
            write_record(self.folder / MANIFEST, manifest)
        self._todo = []
        _remove_work(self.folder)
        return manifest

    def _write_arrays(self, shape: tuple[int, ...], counts: Sequence[int]) -> dict[str, str]:
        """Write the rows and whose each is; return the digests of the files."""

        name = rows_file(self.plan, shape)
        parts = (part.rows for part in self._parts.read() if part.rows.size)

        def write_rows(file: IO[bytes]) -> None:
            if name == PACKED:
                write_packed(file, parts)
                return
            descr = np.dtype(self.features.dtype).newbyteorder("<").str
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in parts:
                file.write(np.ascontiguousarray(rows).data)

        owner = np.repeat(np.arange(len(counts), dtype="<i8"), counts)
        write_at_once(self.folder / name, write_rows)
        write_at_once(self.folder / RECORDING, lambda file: np.save(file, owner))
        return {each: hash_file(self.folder / each) for each in (name, RECORDING)}


class _Unsaved:
    """Outcomes of neighbouring recordings that are not on disk yet."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._start = 0
        self._outcomes: list[Features | Failure] = []
        self._since = 0.0

    def add(self, number: int, outcome: Features | Failure) -> None:
        if number != self._start + len(self._outcomes):
            self.close()
        if not self._outcomes:
            self._start, self._since = number, time.monotonic()
        self._outcomes.append(outcome)
        late = time.monotonic() - self._since >= PART_SECONDS
        if late or len(self._outcomes) >= PART_RECORDINGS:
            self.close()

    def close(self) -> None:
        """Write what there is; also on the way out of an error, so that it is not lost."""
        if self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            self._parts.write(self._start, outcomes)


@contextlib.contextmanager
def open_extraction(
    collection: Collection,
    features: FeatureSet,
    excerpt: Excerpt,
    out: Path,
    *,
    restart: bool = False,
) -> Iterator[Extraction]:
    """Open or begin the extraction of a set to `out`/<its name>; `restart` deletes what is there.

    Raises ConfigError, saying what differs, if something of another plan is there; or if
    another process is at it; FileError where the folder cannot be written or is damaged.
    """
    if all(recording.path is None for recording in collection.recordings):
        raise ConfigError(f"{collection.name}: has no audio here, so nothing can be extracted")
    folder = out / features.name
    for path in (out, folder):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{printable(path)}: is a file, not a folder; take another --out")
    with naming_errors(folder, writing=True):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not try_lock(descriptor):
            raise ConfigError(f"{printable(folder)}: another process is extracting to it")
        with naming_errors(folder, writing=True):
            for name in (MANIFEST, ROWS, PACKED, RECORDING):
                for torn in folder.glob(f".{name}.*"):  # what kill -9 left
                    torn.unlink()
                if restart:
                    (folder / name).unlink(missing_ok=True)
            if restart:
                _remove_work(folder)
        yield Extraction(collection, features, excerpt, folder)
    finally:
        os.close(descriptor)


def _numbers(part: Part) -> range:
    return range(part.start, part.stop)


def _remove_work(folder: Path) -> None:
    if (folder / WORK).is_dir():
        shutil.rmtree(folder / WORK)
