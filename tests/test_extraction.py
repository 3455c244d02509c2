from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile
import torch
from audio_files import make_audio
from tiny_models import MERT_EXTRAS, TINY_MERT, write_tiny_jmla
from typer.testing import CliRunner

from reclass_plex import cli_extract
from reclass_plex.audio import audio_digest, decode_excerpt, resample
from reclass_plex.encoders.mert import MertConfig
from reclass_plex.encoders.opening import open_encoder
from reclass_plex.errors import ConfigError, ModelError, Unreadable
from reclass_plex.features import extract_fma_features
from reclass_plex.models import Model
from reclass_plex.models.catalogue import PublishedFile
from reclass_plex.models.offline import import_model
from reclass_plex.records import Excerpt, Waveform
from reclass_plex.training import extraction_run
from reclass_plex.training.datasets.collection import Collection, Recording, Split
from reclass_plex.training.datasets.own_files import read_listed
from reclass_plex.training.extraction import (
    MANIFEST,
    PACKED,
    RECORDING,
    ROWS,
    WORK,
    Manifest,
    read_table,
)
from reclass_plex.training.extraction_packed import read_packed, write_packed
from reclass_plex.training.extraction_run import open_extraction
from reclass_plex.training.extraction_sets import (
    FeatureSet,
    choose_jobs,
    choose_sets,
    load_extractor,
)
from reclass_plex.training.extraction_workers import (
    Crashed,
    Failure,
    Features,
    Heard,
    Task,
    Workers,
    compute,
    hear,
)
from reclass_plex.training.overview import draw_overview, summarise_table
from reclass_plex.training.table import LONG_ROW, check_finite

MIDDLE = Excerpt(30.0)
RATE = 22_050
COUNT = 9

T = TypeVar("T")
R = TypeVar("R")


class Here(Workers):
    """Does the work in this process: starting others takes longer than the work."""

    def __init__(self) -> None:
        super().__init__(1)

    def map(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[R | Crashed[T]]:
        for task in tasks:
            if should_stop():
                return
            yield function(task)


def make_collection(folder: Path) -> Collection:
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for number in range(COUNT):
        path = make_audio(
            folder, "wav", seconds=1.5, rate=RATE, channels=1, name=f"{number}.wav", seed=number
        )
        label = ("Jazz", "Rock")[number % 2]
        split: Split = "train" if number else "test"
        recordings.append(Recording(f"key{number}", path, (label,), f"artist{number // 2}", split))
    return Collection("tiny", ("Jazz", "Rock"), tuple(recordings), "ours", groups_are_artists=True)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("audio"))


def write_random_mert(folder: Path) -> None:
    """Write a tiny MERT without transformers, whose import takes longer than all tests here."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_MERT | MERT_EXTRAS), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    shapes = MertConfig.parse(TINY_MERT).tensor_shapes()
    tensors = {
        name: 0.1 * torch.randn(shape, generator=generator) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with tiny ones in it, installed as `models import` does."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("models")
    write_tiny_jmla(source / "jmla")
    write_random_mert(source / "mert-95m")
    for name, weights in (
        ("mert-95m", "pytorch_model.bin"),
        ("jmla", "epoch_20.pth"),
    ):
        files = tuple(
            PublishedFile(name=path.name, about=path.stat().st_size)
            for path in sorted((source / name).iterdir())
        )
        model = Model(
            name=name,
            repository=f"tiny/{name}",
            revision="1",
            files=files,
            weights=weights,
            licence="none",
            terms="free",
            purpose="tests",
        )
        import_model(model, source / name / weights, folder, accepted=True)
    return folder


@pytest.fixture(scope="module")
def fma() -> FeatureSet:
    return choose_sets(["fma"], MIDDLE, dtype="float32")[0]


def extract(
    collection: Collection, features: FeatureSet, out: Path, workers: Workers | None = None
) -> Manifest:
    with open_extraction(collection, features, MIDDLE, out) as run:
        manifest = run.run(workers or Here())
        assert run.done == run.total
    assert manifest is not None
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(
    collection: Collection, fma: FeatureSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What an extraction that nothing interrupted leaves."""
    out = tmp_path_factory.mktemp("whole")
    extract(collection, fma, out)
    return contents(out / "fma")


# What is written


def test_the_rows_are_those_of_the_recordings(
    collection: Collection, fma: FeatureSet, tmp_path: Path
) -> None:
    manifest = extract(collection, fma, tmp_path)
    table = read_table(tmp_path / "fma")
    assert isinstance(table.rows, np.memmap)
    assert table.rows.shape == manifest.shape == (COUNT, 518)
    check_finite(table)
    for number, recording in enumerate(collection.recordings):
        assert recording.path is not None
        samples = torch.from_numpy(decode_excerpt(recording.path, MIDDLE).samples)
        np.testing.assert_array_equal(
            table.rows[number], extract_fma_features(samples[None], RATE)[0].numpy()
        )
        assert manifest.recordings[number].audio == audio_digest(recording.path)
    assert (table.name, table.rate, table.window_seconds) == ("fma518", "native", 30.0)
    assert table.keys == tuple(recording.key for recording in collection.recordings)
    assert table.labels.tolist() == [number % 2 for number in range(COUNT)]
    assert table.groups[:3] == ("artist0", "artist0", "artist1")
    assert table.splits[:2] == ("test", "train")
    assert (table.collection, table.groups_are_artists) == ("tiny", True)
    assert table.versions["torch"] == torch.__version__
    assert sorted(path.name for path in (tmp_path / "fma").iterdir()) == [
        MANIFEST,
        RECORDING,
        ROWS,
    ]


def test_windows_know_their_recording_and_tags_are_several(tmp_path: Path) -> None:
    paths = [
        make_audio(tmp_path, "wav", seconds=s, rate=44_100, name=f"{s}.wav", seed=s) for s in (2, 7)
    ]
    recordings = (
        Recording("a", paths[0], ("slow", "loud")),
        Recording("b", paths[1], ()),
    )
    tags = Collection("tags", ("loud", "old", "slow"), recordings, "ours", multi_label=True)
    for features in choose_sets(["fma-windows", "musicnn"], MIDDLE):
        extract(tags, features, tmp_path)
        table = read_table(tmp_path / features.name)
        assert table.rows.dtype == np.float32  # widened
        assert not (tmp_path / features.name / ROWS).exists()  # float16, packed
        assert table.rows.astype(np.float16).astype(np.float32).tobytes() == table.rows.tobytes()
        assert table.recording.tolist() == [0, 1, 1]
        assert table.dims == {"fma-windows": 518, "musicnn": 500}[features.name]
        assert table.labels.tolist() == [[True, False, True], [False, False, False]]


def test_encoders_give_all_layers(collection: Collection, models: Path, tmp_path: Path) -> None:
    sets = choose_sets(["mert", "jmla"], MIDDLE, folder=models, device="cpu")
    assert [one.dtype for one in sets] == ["float32", "float16"]
    few = replace(collection, recordings=collection.recordings[:2])
    for features in sets:
        extract(few, features, tmp_path)
        table = read_table(tmp_path / features.name)
        encoder = open_encoder(models / features.name, dtype=torch.float32)
        path = few.recordings[1].path
        assert path is not None
        samples = torch.from_numpy(resample(decode_excerpt(path, MIDDLE), encoder.rate).samples)
        states = encoder.encode(encoder.cut(samples)).numpy()
        if features.name == "mert-95m":
            assert table.layers == (0, 1, 2, 3)
            assert table.rows.shape == (2, 4, 32)
        else:
            states = states[:, 0]
        atol = 0.0 if features.dtype == "float32" else float(np.abs(states).max()) * 2**-11
        np.testing.assert_allclose(table.rows[1:], states, rtol=0, atol=atol + 1e-6)
        weights = {name for name in table.versions if name.endswith(".safetensors")}
        assert len(weights) == 1
        assert len(table.versions[weights.pop()]) == 64


# Interrupted and continued


def _extract_slowly(collection: Collection, features: FeatureSet, out: Path) -> None:
    extraction_run.PART_RECORDINGS = 2
    with open_extraction(collection, features, MIDDLE, out) as run:
        run.run(Here())


def test_kill_9_at_any_time_changes_nothing(
    collection: Collection, fma: FeatureSet, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_extraction", "reclass_plex.training.extract"])
    parts = tmp_path / "fma" / WORK
    seen = set()
    for seed in range(5):
        child = context.Process(target=_extract_slowly, args=(collection, fma, tmp_path))
        child.start()
        before, deadline = len(list(parts.glob("*.part"))), time.monotonic() + 60
        while child.is_alive() and time.monotonic() < deadline:  # until it has begun in earnest
            if len(list(parts.glob("*.part"))) > before:
                break
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.03))
        child.kill()
        child.join()
        seen.add(len(list(parts.glob("*.part"))))
        if (tmp_path / "fma" / MANIFEST).exists():
            break
    assert len(seen) > 1  # it was killed with some parts, and went on from there
    extract(collection, fma, tmp_path)
    assert contents(tmp_path / "fma") == whole


def test_a_stop_keeps_what_is_done_to_the_recording(
    collection: Collection, fma: FeatureSet, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    done: list[int] = []
    for _ in range(3):
        with open_extraction(collection, fma, MIDDLE, tmp_path) as run:
            begun = run.done
            done.append(begun)
            limit = begun + 2
            steps = iter(range(begun, COUNT))
            assert run.run(Here(), should_stop=lambda: next(steps) >= limit) is None  # noqa: B023
    assert done == [0, 2, 4]
    extract(collection, fma, tmp_path)
    assert contents(tmp_path / "fma") == whole


def test_what_is_heard_elsewhere_and_computed_here_is_the_same(
    collection: Collection, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a GPU, where the encoder stays in this process; here it is on the CPU after all."""
    mert = choose_sets(["mert"], MIDDLE, folder=models, device="cpu")[0]
    extract(collection, mert, tmp_path / "cpu")
    monkeypatch.setattr(
        extraction_run, "load_extractor", lambda one: load_extractor(replace(one, device="cpu"))
    )
    extract(collection, replace(mert, device="cuda"), tmp_path / "gpu")
    for name in (ROWS, RECORDING):
        files = [tmp_path / device / "mert-95m" / name for device in ("cpu", "gpu")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_part_that_is_damaged_is_computed_again(
    collection: Collection, fma: FeatureSet, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    steps = iter(range(COUNT))
    with open_extraction(collection, fma, MIDDLE, tmp_path) as run:
        run.run(Here(), should_stop=lambda: next(steps) >= 4)
    (part,) = (tmp_path / "fma" / WORK).glob("*.part")
    for torn in (f".{MANIFEST}.123", f".{ROWS}.tmp", f"{WORK}/.{part.name}.tmp"):
        (tmp_path / "fma" / torn).write_bytes(b"what kill -9 leaves")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with open_extraction(collection, fma, MIDDLE, tmp_path) as run:
        assert run.done == 0
        run.run(Here())
    assert contents(tmp_path / "fma") == whole


def test_a_second_run_reads_only_and_finds_damage(
    collection: Collection, fma: FeatureSet, tmp_path: Path
) -> None:
    extract(collection, fma, tmp_path)
    before = (tmp_path / "fma" / ROWS).stat().st_mtime_ns
    with open_extraction(collection, fma, MIDDLE, tmp_path) as run:
        assert run.done == COUNT
        assert run.run(Here()) is not None
    assert (tmp_path / "fma" / ROWS).stat().st_mtime_ns == before
    with (tmp_path / "fma" / ROWS).open("r+b") as file:
        file.seek(500)
        file.write(b"\1\2\3")
    with (
        pytest.raises(Unreadable, match=r"rows\.npy: is damaged; extract again with --restart"),
        open_extraction(collection, fma, MIDDLE, tmp_path),
    ):
        pass
    os.truncate(tmp_path / "fma" / ROWS, 900)
    with pytest.raises(Unreadable, match=r"rows\.npy: is damaged"):
        read_table(tmp_path / "fma")
    (tmp_path / "fma" / MANIFEST).write_text('{"plan": 3}', encoding="utf-8")
    with pytest.raises(Unreadable, match=r"manifest\.json: is damaged \(\d+ faults\); extract"):
        read_table(tmp_path / "fma")
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="file: is a file, not a folder; take another --out"),
        open_extraction(collection, fma, MIDDLE, tmp_path / "file"),
    ):
        pass


def test_another_plan_is_refused(
    collection: Collection, fma: FeatureSet, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    extract(collection, fma, tmp_path / "finished")
    with open_extraction(collection, fma, MIDDLE, tmp_path / "begun") as run:
        run.run(Here(), should_stop=lambda: True)
    swapped = replace(collection.recordings[0], labels=("Rock",))
    changed = replace(collection, recordings=(swapped, *collection.recordings[1:]))
    versions = tuple((name, "1.0" if name == "torch" else v) for name, v in fma.versions)
    for name in ("finished", "begun"):
        for other, features, excerpt, message in (
            (changed, fma, MIDDLE, "recordings, labels, groups or splits have changed since"),
            (collection, fma, Excerpt(None), "excerpt was middle30, is full"),
            (collection, replace(fma, dtype="float16"), MIDDLE, "dtype was float32, is float16"),
            (collection, replace(fma, versions=versions), MIDDLE, r"torch was 2\..*, is 1\.0\."),
        ):
            with (
                pytest.raises(ConfigError, match=f"{message}.*--restart"),
                open_extraction(other, features, excerpt, tmp_path / name),
            ):
                pass
        with open_extraction(changed, fma, MIDDLE, tmp_path / name, restart=True) as run:
            assert run.done == 0
            assert run.run(Here()) is not None
        again = contents(tmp_path / name / "fma")
        assert again[ROWS] == whole[ROWS]
        assert again[MANIFEST] != whole[MANIFEST]


def test_two_at_once_are_refused(collection: Collection, fma: FeatureSet, tmp_path: Path) -> None:
    with (
        open_extraction(collection, fma, MIDDLE, tmp_path),
        pytest.raises(ConfigError, match="another process is extracting to it"),
        open_extraction(collection, fma, MIDDLE, tmp_path),
    ):
        pass


def test_an_unfinished_table_is_no_table(
    collection: Collection, fma: FeatureSet, tmp_path: Path
) -> None:
    with open_extraction(collection, fma, MIDDLE, tmp_path):
        pass
    with pytest.raises(ConfigError, match="is not finished: give the same command again"):
        read_table(tmp_path / "fma")
    extract(collection, fma, tmp_path)
    with pytest.raises(ConfigError, match=r"name one of the folders in it: fma$"):
        read_table(tmp_path)
    with pytest.raises(ConfigError, match="is no folder that reclass-plex extract wrote"):
        read_table(tmp_path / "away")


# What fails


@pytest.fixture
def mixed(collection: Collection, tmp_path: Path) -> Collection:
    """A good recording, and one of each kind that cannot be used."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    short = make_audio(folder, "wav", seconds=0.5, name="short.wav")
    soundfile.write(folder / "silent.wav", np.zeros(2 * RATE), RATE)
    nan = np.full(2 * RATE, 0.1, np.float32)
    nan[1000] = np.nan
    soundfile.write(folder / "nan.wav", nan, RATE, subtype="FLOAT")
    (folder / "text.wav").write_bytes(b"no audio at all, " * 100)
    (folder / "empty.wav").touch()
    broken = (short, *(folder / f"{n}.wav" for n in ("silent", "nan", "text", "empty", "away")))
    recordings = [Recording(path.stem, path, ("Jazz",)) for path in broken]
    recordings.append(Recording("none", None, ("Rock",)))
    recordings.insert(3, replace(collection.recordings[0], group=None, split=None))
    return Collection("mixed", ("Jazz", "Rock"), tuple(recordings), "ours")


FAILURES = {
    "short": ("too-short", "lasts 0.50 s, less than 1 s"),
    "silent": ("silence", "is silent"),
    "text": ("not-audio", "is no audio file that FFmpeg can open"),
    "empty": ("not-audio", "is empty"),
    "away": ("unreadable", "does not exist"),
    "none": ("no-audio", "the dataset has no audio of it"),
}


def test_what_cannot_be_heard_is_named_and_left_out(
    mixed: Collection, fma: FeatureSet, tmp_path: Path
) -> None:
    manifest = extract(mixed, fma, tmp_path)
    assert {one.key: (one.kind, one.reason) for one in manifest.failed} == FAILURES
    table = read_table(tmp_path / "fma")
    assert table.keys == ("nan", "key0")
    check_finite(table)


def test_nothing_but_failures_is_an_error(
    mixed: Collection, fma: FeatureSet, tmp_path: Path
) -> None:
    bad = replace(mixed, recordings=mixed.recordings[:2])
    with pytest.raises(ConfigError, match=r"no recording gave features.*short: lasts 0\.50 s"):
        extract(bad, fma, tmp_path)
    assert not (tmp_path / "fma" / MANIFEST).exists()
    labels_only = replace(mixed, recordings=mixed.recordings[-1:])
    with (
        pytest.raises(ConfigError, match="has no audio here"),
        open_extraction(labels_only, fma, MIDDLE, tmp_path / "other"),
    ):
        pass


class Hindered(Here):
    """No file can be opened while one certain recording is heard: the process has too many."""

    def __init__(self, hindered: Path) -> None:
        super().__init__()
        self.hindered = hindered

    def map(
        self,
        function: Callable[[T], R],
        tasks: Iterable[T],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[R | Crashed[T]]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for task in tasks:
            assert isinstance(task, Task)
            if task.path == self.hindered:
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                result = function(task)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            yield result


def test_what_may_work_later_is_left_for_later(
    collection: Collection, fma: FeatureSet, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    path = collection.recordings[4].path
    assert path is not None
    with open_extraction(collection, fma, MIDDLE, tmp_path) as run:
        assert run.run(Hindered(path)) is None
        assert run.unread["key4"].kind == "retry"
        assert list(run.unread) == ["key4"]
    with open_extraction(collection, fma, MIDDLE, tmp_path) as run:
        assert run.done == COUNT - 1
        assert run.run(Here()) is not None
    assert contents(tmp_path / "fma") == whole


def test_what_ends_its_process_is_named_and_the_others_go_on() -> None:
    tasks = [signal.SIGCONT] * 6
    tasks[1] = tasks[4] = signal.SIGKILL
    with Workers(2) as workers:
        results = list(workers.map(signal.raise_signal, tasks))
        assert list(workers.map(signal.raise_signal, tasks[:1])) == [None]
    assert [isinstance(result, Crashed) for result in results] == [
        task is signal.SIGKILL for task in tasks
    ]


def test_files_without_an_end_or_measure_are_named_and_the_others_go_on(
    collection: Collection, fma: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{root / 'tests' / 'hostile_site'}{os.pathsep}{root}")
    good = collection.recordings[0].path
    assert good is not None
    bad = Path(shutil.copy(good, tmp_path / "circle.wav"))
    greedy = Path(shutil.copy(good, tmp_path / "greedy.wav"))
    paths = (good, greedy, bad, good)
    tasks = [Task(path, MIDDLE, fma, seconds=1.0, memory=1 << 29) for path in paths]
    with Workers(1) as workers:
        first, large, lost, last = workers.map(hear, tasks)
    assert large == Failure("harmful", "needs over 0.5 GiB of memory")
    assert isinstance(lost, Crashed) and lost.task.path == bad
    assert isinstance(first, Heard) and isinstance(last, Heard)
    assert first.digest == last.digest


def test_values_that_do_not_fit_are_no_rows(fma: FeatureSet) -> None:
    heard = Heard(Waveform(np.ones(10, np.float32), RATE, 0.0, 1.0), "digest")
    half = replace(fma, dtype="float16")
    large, lost = np.array([[1.0, 7e4]], np.float32), np.array([[np.nan]], np.float32)
    assert isinstance(compute(heard, fma, lambda _: large), Features)
    failure = compute(heard, half, lambda _: large)
    assert isinstance(failure, Failure)
    assert failure.reason == "has a value of 7e+04, which float16 cannot hold: use float32"
    failure = compute(heard, fma, lambda _: lost)
    assert isinstance(failure, Failure)
    assert failure.reason == "gives values of fma that are not finite"


def test_missing_models_and_unknown_sets_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"mert-95m is not fetched.*; clap is not fetched"):
        choose_sets(["fma", "mert", "clap"], MIDDLE, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"--features mfcc: unknown; there are fma, "):
        choose_sets(["fma", "mfcc"], MIDDLE, folder=tmp_path)
    with pytest.raises(ConfigError, match="none is named"):
        choose_sets([], MIDDLE, folder=tmp_path)


# The overview


def test_the_overview_counts_and_draws(
    collection: Collection, fma: FeatureSet, tmp_path: Path
) -> None:
    extract(collection, fma, tmp_path)
    table = read_table(tmp_path / "fma")
    rows = np.array(table.rows)
    rows[:, 3] = 7.0
    rows[:, 9] = 2 - 5 * rows[:, 8]
    seen = summarise_table(replace(table, rows=rows))
    assert seen.labels == {"Jazz": 5, "Rock": 4}
    assert seen.splits == {"test": 1, "train": 8}
    assert (seen.recordings, seen.rows, seen.most_rows, seen.groups) == (COUNT, COUNT, 1, 5)
    flat = rows.std(0) <= 1e-7 * np.abs(rows).max(0)
    assert seen.constant == flat.sum() >= 1
    correlation = np.corrcoef(rows[:, ~flat].T)
    expected = int((np.abs(np.triu(correlation, 1)) >= 0.99).any(0).sum())
    assert seen.redundant == expected >= 1
    long = replace(table, rows=np.zeros((COUNT, LONG_ROW), np.float32))
    with pytest.raises(ConfigError, match="no vector but a whole window"):
        summarise_table(long)  # the products of all pairs of columns would fill gigabytes
    draw_overview(table, tmp_path / "a.svg")
    draw_overview(table, tmp_path / "b.svg")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert all(word in drawn for word in ("Jazz", "Rock", "PCA", "t-SNE"))


def test_jobs_leave_memory_for_the_encoders(models: Path, tmp_path: Path) -> None:
    fma, mert = choose_sets(["fma", "mert"], MIDDLE, folder=models, device="cpu")
    assert choose_jobs([fma], 1000) == 1000
    assert 1 <= choose_jobs([fma, mert], 1000) < 1000  # a GiB each, and the weights
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 42)
    assert choose_jobs([replace(mert, model=tmp_path)], 1000) == 1


# The command


def test_the_command(mixed: Collection, models: Path, tmp_path: Path) -> None:
    """Two processes give the bytes that this one does, and what fails is told by the way."""
    lines = ["path,label,artist"]
    lines += [f"{one.path},{one.labels[0]},someone" for one in mixed.recordings if one.path]
    listed = tmp_path / "mine.csv"
    listed.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    command = [str(listed), "--features", "fma,mert", "--models", str(models), "--device", "cpu"]
    command += ["--out", str(out), "--jobs", "2"]
    told = CliRunner().invoke(cli_extract.app, [*command, "--json"], catch_exceptions=False)
    assert told.exit_code == 1
    *failed, summary = [json.loads(line) for line in told.stdout.splitlines()][:6]
    assert {Path(one["key"]).stem: one["error"]["kind"] for one in failed} == {
        name: kind for name, (kind, _) in FAILURES.items() if name != "none"
    }
    expected: dict[str, Any] = {
        "features": "fma",
        "folder": str(out / "fma"),
        "total": 7,
        "finished": True,
        "failed": 5,
        "recordings": 2,
        "shape": [2, 518],
    }
    assert summary == expected
    for features in choose_sets(["fma", "mert"], MIDDLE, folder=models, device="cpu"):
        extract(read_listed(listed), features, tmp_path / "here")
    assert contents(tmp_path / "here") == contents(out)
    told = CliRunner().invoke(cli_extract.app, command, catch_exceptions=False)
    assert told.exit_code == 1
    assert f"fma: 2 of 7 recordings, 2 rows in {out / 'fma'}" in told.output
    assert "short.wav: lasts 0.50 s, less than 1 s" in told.output
    with pytest.raises(ConfigError, match="--excerpt: excerpt 'all' is neither"):
        CliRunner().invoke(cli_extract.app, [*command, "--excerpt", "all"], catch_exceptions=False)


def packed(path: Path, parts: list[np.ndarray]) -> Path:
    with path.open("wb") as file:
        write_packed(file, parts)
    return path


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 8192, 9000])
def test_rows_are_packed_the_same_in_whatever_parts_they_come(tmp_path: Path, count: int) -> None:
    generator = np.random.default_rng(count)
    rows = generator.normal(size=(count, 2, 3)).astype(np.float16)
    rows[0, 0] = [np.inf, -0.0, np.nan]
    whole = packed(tmp_path / "whole", [rows])
    cuts = np.sort(generator.integers(0, count + 1, 7))
    assert packed(tmp_path / "parts", np.split(rows, cuts)).read_bytes() == whole.read_bytes()
    found = read_packed(whole, rows.shape)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows.astype(np.float32))


def test_packed_rows_that_are_damaged_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 7)).astype(np.float16)
    path = packed(tmp_path / PACKED, [rows])
    content = path.read_bytes()
    for place in (0, 5, len(content) // 2, len(content) - 1):
        wrong = bytearray(content)
        wrong[place] ^= 1
        path.write_bytes(wrong)
        with pytest.raises(Unreadable, match=r"rows\.packed: is damaged; extract again"):
            read_packed(path, rows.shape)
    for other, shape in (
        (content[:-1], rows.shape),
        (content + b"x", rows.shape),
        (content, (5000, 6)),
    ):
        path.write_bytes(other)
        with pytest.raises(Unreadable, match="is damaged"):
            read_packed(path, shape)
