"""The GPU's benchmark runs: on the CPU, in tiny sizes, every part of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import gpu
from encoders import JmlaModel

TINY = ("--cpu", "--rounds", "1", "--seconds", "0", "--threads", "3", "--decoders", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    return gpu.main()


def test_every_part_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *TINY, "--batches", "1", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    parts = ["machine", *["encoders"] * 5, *["threads"] * 4, "tracks"]
    assert [row["part"] for row in rows] == parts
    encoders, shared, tracks = rows[1:6], rows[6:10], rows[10]
    names = ["mert-tiny", "mert-tiny", "jmla-tiny", "jmla-tiny", "clap-tiny"]
    assert [row["encoder"] for row in encoders] == names
    assert [row["compiled"] for row in encoders] == [False, True, False, True, False]
    assert all(row["share_of_peak"] > 0 for row in rows[1:])
    assert all(row["memory_mb"] > 0 and row["gflop_a_track"] > 0 for row in encoders)
    assert [row["threads"] for row in shared] == [1, 3, 1, 3]
    assert shared[0]["windows_a_batch"] == 6, "one thread has nobody to share with"
    assert tracks["tracks"] == 3
    assert {"decode_ms", "features_ms", "resample_ms", "mert-tiny_ms", "jmla_ms"} <= set(tracks)


def test_it_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--parts", "encoders", "--only", "jmla-tiny", "--no-compile", "--batches", "1,2")
    assert run(monkeypatch, *TINY, *only) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("### Encoders, by tracks a batch") + 2 :]
    assert table[0].startswith("| encoder | compiled | tracks | windows | ms a track |")
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert [line[:27] for line in table[2:]] == [
        "| jmla-tiny | no | 1 | 1 | ",
        "| jmla-tiny | no | 2 | 2 | ",
    ]


def test_what_does_not_fit_is_a_row_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = JmlaModel.make

    def narrow(model: JmlaModel, device: str, dtype: torch.dtype) -> object:
        encoder = encode(model, device, dtype)
        whole = encoder.encode

        def refuse(windows: torch.Tensor) -> torch.Tensor:
            if len(windows) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return whole(windows)

        monkeypatch.setattr(encoder, "encode", refuse)
        return encoder

    monkeypatch.setattr(JmlaModel, "make", narrow)
    only = ("--parts", "encoders", "--only", "jmla-tiny", "--no-compile", "--batches", "1,2,4")
    assert run(monkeypatch, *TINY, *only) == 0
    table = capsys.readouterr().out.splitlines()[-2:]
    assert table[0].startswith("| jmla-tiny | no | 1 | 1 | ")
    assert table[1].startswith("| jmla-tiny | no | 2 |  | ")
    assert "too much" in table[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "mert-2"), "no encoder mert-2"),
        (("--parts", "speed"), "no part speed"),
        (("--batches", "0"), "one track or more"),
    ],
)
def test_what_it_does_not_know_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    try:
        assert run(monkeypatch, "--cpu", *options) == 2
    except SystemExit as error:  # how argparse ends
        assert error.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("no GPU: torch ")
    assert len(printed.err.splitlines()) == 1
    assert not printed.out
