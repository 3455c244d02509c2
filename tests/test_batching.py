"""What several threads ask for at once becomes one batch, and each gets its own rows back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from timing import timed
from tiny_models import write_tiny_mert
from torch import Tensor

from reclass_plex.encoders.batching import Batched, Batcher, share_encoder
from reclass_plex.encoders.mert import Mert, load_mert
from reclass_plex.errors import DeviceError, ModelError

LONG = 30.0  # seconds: what never passes in a test that succeeds


class Gate:
    """A function over rows that notes its batches, and holds the first one until it is opened."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda rows: rows * 2) -> None:
        self.function = function
        self.batches: list[list[float]] = []
        self.entered = threading.Event()
        self.open = threading.Event()
        self.running = 0

    def __call__(self, rows: Tensor) -> Tensor:
        self.running += 1
        assert self.running == 1, "two threads compute at once"
        try:
            self.batches.append(rows[:, 0].tolist())
            if not self.entered.is_set():
                self.entered.set()
                assert self.open.wait(LONG)
            return self.function(rows)
        finally:
            self.running -= 1


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def row(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def in_line(batcher: Batcher, count: int) -> None:
    until = time.monotonic() + LONG
    while len(batcher._line) < count:
        assert time.monotonic() < until
        time.sleep(0.001)


def led(batcher: Batcher) -> None:
    until = time.monotonic() + LONG
    while not batcher._leading:
        assert time.monotonic() < until
        time.sleep(0.001)


def held(batcher: Batcher, gate: Gate, threads: ThreadPoolExecutor, *rows: Tensor) -> list[object]:
    """Let a first row compute, put `rows` in line in that order, and return their outcomes."""
    first = threads.submit(batcher, row(0))
    assert gate.entered.wait(LONG)
    futures = []
    for number, each in enumerate(rows, 1):
        futures.append(threads.submit(batcher, each))
        in_line(batcher, number)
    gate.open.set()
    assert first.result(LONG).tolist() == [[0]]
    return [future.exception(LONG) or future.result().tolist() for future in futures]


def test_what_gathers_while_one_computes_is_one_batch(threads: ThreadPoolExecutor) -> None:
    gate = Gate()
    batcher = Batcher(gate, most_rows=4)
    outcomes = held(batcher, gate, threads, row(1), row(2, 3), row(4), row(5))
    assert outcomes == [[[2]], [[4], [6]], [[8]], [[10]]]
    assert gate.batches == [[0], [1, 2, 3, 4], [5]]


def test_only_rows_of_one_shape_join(threads: ThreadPoolExecutor) -> None:
    gate = Gate()
    batcher = Batcher(gate, most_rows=8)
    wide = torch.tensor([[7.0, 7.0]])
    outcomes = held(batcher, gate, threads, row(1), wide, row(2))
    assert outcomes == [[[2]], [[14, 14]], [[4]]]
    assert gate.batches == [[0], [1, 2], [7]]


def test_a_caller_with_more_than_a_batch_is_run_in_pieces() -> None:
    gate = Gate()
    gate.open.set()
    assert Batcher(gate, most_rows=3)(row(*range(7))).tolist() == [[2 * i] for i in range(7)]
    assert gate.batches == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("kind", [ValueError, ModelError])
def test_what_is_wrong_with_one_callers_rows_is_its_own(
    threads: ThreadPoolExecutor, kind: type[Exception]
) -> None:
    def refuse_two(rows: Tensor) -> Tensor:
        if bool((rows == 2).any()):
            raise kind("two")
        return rows * 2

    gate = Gate(refuse_two)
    outcomes = held(Batcher(gate, most_rows=8), gate, threads, row(1), row(2), row(3))
    assert [outcomes[0], outcomes[2]] == [[[2]], [[6]]]
    assert isinstance(outcomes[1], kind)
    assert gate.batches == [[0], [1, 2, 3], [1], [2], [3]]


def test_a_lost_gpu_is_told_to_all_of_the_batch_and_no_other(threads: ThreadPoolExecutor) -> None:
    failures = iter([False, True, False])

    def fail_once(rows: Tensor) -> Tensor:
        if next(failures):
            raise RuntimeError("CUDA error: unspecified launch failure")
        return rows * 2

    gate = Gate(fail_once)
    outcomes = held(Batcher(gate, most_rows=2), gate, threads, row(1), row(2), row(3))
    assert all("CUDA error" in str(outcome) for outcome in outcomes[:2])
    assert outcomes[2] == [[6]]
    assert gate.batches == [[0], [1, 2], [3]]


def test_a_batch_too_large_for_the_memory_is_halved_and_so_are_the_next(
    threads: ThreadPoolExecutor,
) -> None:
    def fit_two(rows: Tensor) -> Tensor:
        if len(rows) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return rows * 2

    gate = Gate(fit_two)
    batcher = Batcher(gate, most_rows=8)
    outcomes = held(batcher, gate, threads, *(row(i) for i in range(1, 5)))
    assert outcomes == [[[2.0 * i]] for i in range(1, 5)]
    assert batcher.most_rows == 2
    assert batcher(row(1, 2, 3)).tolist() == [[2], [4], [6]]
    assert gate.batches[-2:] == [[1, 2], [3]], "a batch that is known not to fit was tried"


def test_one_row_that_does_not_fit_is_told() -> None:
    def fail(rows: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    batcher = Batcher(fail, most_rows=8)
    for _ in range(2):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            batcher(row(1, 2, 3))
    assert batcher.most_rows == 1


@timed
def test_a_caller_alone_does_not_wait() -> None:
    batcher = Batcher(lambda rows: rows * 2, most_rows=8, wait_seconds=LONG)
    began = time.monotonic()
    with batcher.expected():
        assert batcher(row(1)).tolist() == [[2]]
    assert time.monotonic() - began < LONG / 2


def test_a_caller_waits_for_who_said_to_come(threads: ThreadPoolExecutor) -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate, most_rows=8, wait_seconds=LONG)
    ready = threading.Barrier(2)

    def come(value: float, after: int) -> Tensor:
        with batcher.expected():
            ready.wait(LONG)
            in_line(batcher, after)
            return batcher(row(value))

    futures = [threads.submit(come, 1, 0), threads.submit(come, 2, 1)]
    assert [future.result(LONG).tolist() for future in futures] == [[[2]], [[4]]]
    assert gate.batches == [[1, 2]]


@timed
def test_a_caller_waits_no_longer_than_allowed_nor_for_who_left(
    threads: ThreadPoolExecutor,
) -> None:
    batcher = Batcher(lambda rows: rows * 2, most_rows=8, wait_seconds=0.05)
    with batcher.expected():  # and never comes
        assert threads.submit(batcher, row(1)).result(LONG).tolist() == [[2]]
    patient = Batcher(lambda rows: rows * 2, most_rows=8, wait_seconds=LONG)
    began = time.monotonic()
    with patient.expected():
        future = threads.submit(patient, row(1))
        in_line(patient, 1)
    assert future.result(LONG).tolist() == [[2]]
    assert time.monotonic() - began < LONG / 2


def test_who_leads_and_is_interrupted_leaves_the_rest_to_the_others(
    threads: ThreadPoolExecutor,
) -> None:
    interruptions = iter([True])

    def interrupted_once(rows: Tensor) -> Tensor:
        if next(interruptions, False):
            raise KeyboardInterrupt
        return rows * 2

    gate = Gate(interrupted_once)
    batcher = Batcher(gate, most_rows=8, wait_seconds=LONG)
    both = threading.Barrier(2)

    def follow() -> Tensor:
        with batcher.expected():
            both.wait(LONG)
            led(batcher)
            return batcher(row(2))

    following = threads.submit(follow)
    both.wait(LONG)
    gate.open.set()
    with pytest.raises(KeyboardInterrupt):
        batcher(row(1))
    assert following.result(LONG).tolist() == [[4]]
    assert gate.batches == [[1, 2], [2]]
    assert not batcher._line


def test_many_threads_each_get_their_own(threads: ThreadPoolExecutor) -> None:
    batcher = Batcher(lambda rows: rows * 2, most_rows=5, wait_seconds=0.001)

    def work(number: int) -> bool:
        rows = torch.full((1 + number % 7, 1 + number % 2), float(number))
        with batcher.expected():
            return torch.equal(batcher(rows), rows * 2)

    assert all(threads.map(work, range(400)))
    assert not batcher._line
    assert not batcher._expected


@pytest.mark.parametrize(("rows", "seconds"), [(0, 0.0), (1, -1.0), (1, float("nan"))])
def test_bounds_that_make_no_sense_are_refused(rows: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="batches of"):
        Batcher(lambda rows: rows, most_rows=rows, wait_seconds=seconds)


# Around a real encoder


@pytest.fixture(scope="module")
def mert(tmp_path_factory: pytest.TempPathFactory) -> Mert:
    folder = tmp_path_factory.mktemp("mert")
    write_tiny_mert(folder)
    return load_mert(folder, (1, 3), name="tiny", dtype=torch.float32)


def windows(count: int, seed: int, seconds: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(count, int(seconds * 24_000), generator=generator)


def test_an_encoder_gives_each_thread_what_it_gives_alone(
    mert: Mert, threads: ThreadPoolExecutor
) -> None:
    batched = Batched(mert, most_windows=6, wait_seconds=0.02)
    tracks = [windows(1 + i % 3, i, 0.25 + 0.25 * (i % 2)) for i in range(12)]

    def encode(track: Tensor) -> Tensor:
        with batched.expected():
            return batched.encode(track)

    for track, states in zip(tracks, threads.map(encode, tracks), strict=True):
        torch.testing.assert_close(states, mert.encode(track), rtol=1e-5, atol=1e-5)
    facts = ("name", "licence", "rate", "window_seconds", "dims", "layers", "device")
    assert [getattr(batched, fact) for fact in facts] == [getattr(mert, fact) for fact in facts]
    assert torch.equal(batched.cut(tracks[0][0]), mert.cut(tracks[0][0]))


def test_bad_windows_never_join(mert: Mert, threads: ThreadPoolExecutor) -> None:
    batched = Batched(mert, most_windows=8, wait_seconds=0.02)
    bad = windows(1, 1)
    bad[0, 7] = torch.nan

    def encode(track: Tensor) -> Tensor:
        with batched.expected():
            return batched.encode(track)

    good, spoilt, short = threads.map(
        lambda track: _outcome(encode, track), [windows(1, 2), bad, windows(1, 3)[:, :10]]
    )
    assert isinstance(good, Tensor)
    assert "NaN" in str(spoilt)
    assert "samples >= 400" in str(short)


def _outcome(function: Callable[[Tensor], Tensor], rows: Tensor) -> object:
    try:
        return function(rows)
    except (ValueError, DeviceError) as error:
        return error


def test_on_a_cpu_each_thread_computes_for_itself(mert: Mert) -> None:
    assert share_encoder(mert) is mert


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_threads_share_a_batch(tmp_path: Path) -> None:
    write_tiny_mert(tmp_path)
    here = load_mert(tmp_path, (1, 3), dtype=torch.float32)
    there = share_encoder(load_mert(tmp_path, (1, 3), device="cuda", dtype=torch.float32))
    assert isinstance(there, Batched)
    tracks = [windows(2, i) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        placed = [track.cuda() if i % 2 else track for i, track in enumerate(tracks)]
        for track, states in zip(tracks, pool.map(there.encode, placed), strict=True):
            assert not states.is_cuda
            torch.testing.assert_close(states, here.encode(track), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_nan_is_its_owners_alone(tmp_path: Path) -> None:
    write_tiny_mert(tmp_path)
    there = Batched(load_mert(tmp_path, (1, 3), device="cuda"), wait_seconds=0.05)
    bad = windows(1, 1)
    bad[0, 7] = torch.nan

    def encode(track: Tensor) -> Tensor:
        with there.expected():
            return there.encode(track.cuda())

    with ThreadPoolExecutor(3) as pool:
        tracks = [windows(1, 2), bad, windows(1, 3)]
        outcomes = list(pool.map(lambda track: _outcome(encode, track), tracks))
    assert [isinstance(outcome, Tensor) for outcome in outcomes] == [True, False, True]
    assert "NaN" in str(outcomes[1])
