"""What models take is known beforehand, and they stay within what they may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import jmla_tensors

from reclass_plex import memory
from reclass_plex.encoders.footprint import (
    clap_footprint,
    counted_bytes,
    jmla_footprint,
    mert_footprint,
)
from reclass_plex.encoders.jmla import Jmla, VitConfig
from reclass_plex.encoders.mert import Mert, MertConfig
from reclass_plex.errors import DeviceError
from reclass_plex.memory import (
    GIB,
    MARGIN,
    RESERVE,
    Footprint,
    Residents,
    available_bytes,
    budget_bytes,
    free_bytes,
    share_memory,
    windows_that_fit,
)

LONG = 30.0  # seconds: what never passes in a test that succeeds
DTYPES = [torch.float32, torch.bfloat16]

# Footprints


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merts_estimate_is_what_a_call_takes(dtype: torch.dtype) -> None:
    config = MertConfig(num_hidden_layers=1)  # and else the 95M
    tensors = {name: torch.ones(shape) for name, shape in config.tensor_shapes().items()}
    encoder = Mert(config, tensors, (1,), dtype=dtype)
    windows = torch.randn(2, 120_000, generator=torch.Generator().manual_seed(1))
    with counted_bytes() as most:
        encoder.encode(windows[:1])
    estimate = mert_footprint(config, (1,), dtype)
    assert estimate.weights == sum(_size(each) for each in encoder.network.parameters())
    assert 0.6 * estimate.window < most() <= estimate.window, "a GPU copies what is under a kernel"
    frames = 23_999
    assert estimate.window > frames * 512 * (4 + dtype.itemsize), "the widest layer, as it is cast"


@pytest.mark.parametrize("dtype", DTYPES)
def test_jmlas_estimate_is_what_a_call_takes(dtype: torch.dtype) -> None:
    config = VitConfig(width=192, depth=1, heads=3, feedforward=768)
    sizes = {"width": 192, "depth": 1, "feedforward": 768}
    encoder = Jmla(config, jmla_tensors(sizes), dtype=dtype)
    windows = torch.randn(1, 480_000, generator=torch.Generator().manual_seed(1))
    with counted_bytes() as most:
        encoder.encode(windows)
    estimate = jmla_footprint(config, dtype)
    assert estimate.weights == sum(_size(each) for each in encoder.network.parameters())
    assert 0.9 * estimate.window < most() <= estimate.window * MARGIN


def test_claps_estimate_is_what_a_call_takes() -> None:
    from transformers import ClapConfig, ClapModel

    audio = {"patch_embeds_hidden_size": 128, "hidden_size": 256, "depths": [1, 1]}
    audio |= {"num_attention_heads": [4, 8], "num_hidden_layers": 2}
    text = {"num_hidden_layers": 1, "vocab_size": 100}
    config: Any = ClapConfig(audio_config=audio, text_config=text)
    model: Any = ClapModel(config)
    model.eval()
    with torch.no_grad(), counted_bytes() as most:
        model.audio_model(input_features=torch.zeros(1, 1, 1001, 64))
    estimate = clap_footprint(config, torch.float32)
    assert 0.9 * estimate.window < most() <= estimate.window * MARGIN
    halved = clap_footprint(config, torch.float16)
    assert 1.4 < halved.weights / estimate.weights < 1.6, "autocast keeps copies"


def test_the_published_sizes_fit_small_cards() -> None:
    """What docs/jetson.md says: all stages at once in 8 GB, in half precision."""
    half = torch.float16
    large = MertConfig(1024, 24, 16, 4096, do_stable_layer_norm=True)
    footprints = [
        mert_footprint(MertConfig(), (12,), half),
        mert_footprint(large, (24,), half),
        jmla_footprint(VitConfig(), half),
    ]
    assert [each.weights // 10**6 for each in footprints] == [188, 631, 173]
    share = share_memory(4 * GIB, footprints, 64)
    assert share.together
    assert min(share.most_windows) >= 6, "a track's windows"
    in_turn = share_memory(1 * GIB, footprints, 64)
    assert not in_turn.together
    assert min(in_turn.most_windows) >= 1


def test_memory_that_was_given_back_is_not_counted() -> None:
    with counted_bytes() as most:
        for _ in range(5):
            torch.zeros(1000).add_(1)
        kept = torch.zeros(500)
        del kept
    assert most() == 4000


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# What is free


def test_what_is_available_is_read_from_the_kernel(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n")
    assert available_bytes(meminfo) == 2048 * 1024


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable:\n", "MemAvailable: x\n"])
def test_a_system_that_does_not_say_gives_none(tmp_path: Path, text: str) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(text)
    assert available_bytes(meminfo) is None
    assert available_bytes(tmp_path / "none") is None


def test_a_reserve_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "available_bytes", lambda: available_bytes(meminfo))
    assert free_bytes("cpu") == RESERVE, "not known"
    meminfo.write_text(f"MemAvailable: {2 * GIB // 1024} kB\n")
    assert free_bytes("cpu") == 2 * GIB - RESERVE
    assert budget_bytes("cpu") == 2 * GIB - RESERVE
    assert budget_bytes("cpu", 1.0) == GIB
    assert budget_bytes("cpu", 64.0) == 2 * GIB - RESERVE
    meminfo.write_text("MemAvailable: 10 kB\n")
    assert free_bytes("cpu") == 0


@pytest.mark.parametrize(("integrated", "expected"), [(False, 6), (True, 3)])
def test_where_cpu_and_gpu_share_memory_the_lesser_counts(
    monkeypatch: pytest.MonkeyPatch, integrated: bool, expected: int
) -> None:
    """torch's answers are set here by hand: there may be no GPU, and hardly ever a Jetson."""

    class Properties:
        is_integrated = integrated

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties())
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: RESERVE + GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: GIB)
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * GIB)
    assert free_bytes("cuda") == free_bytes("cuda:0") == expected * GIB
    assert budget_bytes("cuda") == (expected + 1) * GIB, "with what is held already"
    assert budget_bytes("cuda", 2.5) == 2.5 * GIB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_says_what_is_free() -> None:
    before = free_bytes("cuda")
    held = torch.empty(GIB // 4, device="cuda", dtype=torch.uint8)
    assert before - free_bytes("cuda") == pytest.approx(GIB // 4, rel=0.2)
    del held
    assert 0 < budget_bytes("cuda", 1.0) <= GIB


@pytest.mark.parametrize(
    ("room", "fits"), [(0, 1), (-5, 1), (100, 1), (250, 2), (10_000, 64), (374, 2), (375, 3)]
)
def test_batches_follow_the_room(room: int, fits: int) -> None:
    assert windows_that_fit(room, 100, 64) == fits


def test_encoders_share_what_there_is() -> None:
    small, large = Footprint(100, 40), Footprint(300, 80)
    assert share_memory(600, [small, large], 64) == memory.Share(True, (2, 1))
    assert share_memory(599, [small, large], 64) == memory.Share(False, (9, 2))
    assert share_memory(100_000, [small, large], 64) == memory.Share(True, (64, 64))
    assert share_memory(0, [], 64) == memory.Share(True, ())
    with pytest.raises(DeviceError, match=r"worker\.memory_gib"):
        share_memory(299, [small, large], 64)


# Residents


class Model:
    """Something that says when it is in use after it was dropped."""

    alive = 0

    def __init__(self) -> None:
        Model.alive += 1

    def __del__(self) -> None:
        Model.alive -= 1


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_who_was_used_least_recently_goes_first() -> None:
    residents = Residents[str](100)
    loaded = []

    def use(name: str, size: int) -> None:
        def load() -> str:
            loaded.append(name)
            return name

        with residents.use(name, size, load) as value:
            assert value == name

    use("a", 40)
    use("b", 40)
    use("a", 40)
    use("c", 40)
    assert list(residents.names) == ["a", "c"]
    use("b", 20)
    assert list(residents.names) == ["a", "c", "b"]
    use("d", 90)
    assert list(residents.names) == ["d"]
    assert loaded == ["a", "b", "c", "b", "d"]


def test_one_larger_than_the_budget_is_refused() -> None:
    residents = Residents[int](GIB)
    with pytest.raises(DeviceError, match=r"jmla needs 2\.0 GiB, and there are 1\.0"):
        residents.use("jmla", 2 * GIB, lambda: 1).__enter__()


def test_one_that_cannot_be_loaded_leaves_no_trace() -> None:
    residents = Residents[int](10)

    def fail() -> int:
        raise DeviceError("the GPU's memory is full")

    for _ in range(2):
        with pytest.raises(DeviceError, match="full"):
            residents.use("a", 10, fail).__enter__()
    with residents.use("b", 10, lambda: 5) as value:
        assert value == 5


def test_a_thread_uses_one_at_a_time() -> None:
    residents = Residents[int](10)
    with (
        residents.use("a", 1, lambda: 1),
        pytest.raises(RuntimeError, match="for ever"),
    ):
        residents.use("b", 1, lambda: 1).__enter__()
    with residents.use("b", 1, lambda: 2) as value:
        assert value == 2


def test_one_in_use_stays_and_who_needs_its_room_waits(threads: ThreadPoolExecutor) -> None:
    residents = Residents[Model](10)
    entered, finish = threading.Event(), threading.Event()

    def use_first() -> None:
        with residents.use("a", 10, Model):
            entered.set()
            assert finish.wait(LONG)

    def use_second() -> tuple[str, ...]:
        with residents.use("b", 10, Model):
            assert Model.alive == 1, "both at once"
            return residents.names

    first = threads.submit(use_first)
    assert entered.wait(LONG)
    second = threads.submit(use_second)
    _until(lambda: bool(residents._waiting))
    assert list(residents.names) == ["a"]
    finish.set()
    first.result(LONG)
    assert second.result(LONG) == ("b",)
    assert Model.alive == 1


def test_two_threads_that_want_the_same_load_it_once(threads: ThreadPoolExecutor) -> None:
    residents = Residents[Model](10)
    loads = []

    def load() -> Model:
        loads.append(1)
        time.sleep(0.02)
        return Model()

    def use(_: int) -> None:
        with residents.use("a", 10, load):
            pass

    list(threads.map(use, range(8)))
    assert len(loads) == 1


def test_one_always_in_use_gives_way_after_a_while(threads: ThreadPoolExecutor) -> None:
    residents = Residents[str](10, patience=0.05)
    stop = threading.Event()

    def use_always() -> None:
        while not stop.is_set():
            with residents.use("a", 10, lambda: "a"):
                time.sleep(0.005)

    def use_other() -> str:
        with residents.use("b", 10, lambda: "b") as value:
            return value

    always = [threads.submit(use_always) for _ in range(3)]
    _until(lambda: list(residents.names) == ["a"])
    try:
        assert threads.submit(use_other).result(LONG) == "b"
    finally:
        stop.set()
    for each in always:
        each.result(LONG)


def test_many_threads_and_models_stay_within_the_budget(threads: ThreadPoolExecutor) -> None:
    sizes = {"a": 30, "b": 50, "c": 60, "d": 100}
    residents = Residents[str](100, patience=0.001)
    lock, used = threading.Lock(), dict.fromkeys(sizes, 0)

    def work(number: int) -> None:
        name = "abcd"[number * 7 % 11 % 4]
        with residents.use(name, sizes[name], lambda: name) as value:
            assert value == name
            with lock:
                used[name] += 1
                in_use = sum(sizes[each] for each, users in used.items() if users)
                loaded = sum(sizes[each] for each in residents.names)
                assert in_use <= loaded <= 100
            time.sleep(0.0005)
            with lock:
                used[name] -= 1

    for future in [threads.submit(work, number) for number in range(300)]:
        future.result(LONG)
    assert sum(used.values()) == 0


def _until(condition: Any) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)
