"""What the worker tells the daemon over a real pipe: whole, in order, and never in its way."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from service.worker_lines import MAX_LINE, FromWorker, LogLine, Report, ToDaemon


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def event(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("test", level, "", 0, "%s", (text,), None)


def test_report_and_log_come_through_in_pieces(pipe: tuple[int, int]) -> None:
    worker, daemon = ToDaemon(pipe[1]), FromWorker()
    record = event("a\nb \udce9 Größe", logging.WARNING)
    worker.emit(record)
    worker.report(Report(models="m", left_out=("x",)))
    worker.emit(event("asked plex?X-Plex-Token=abc123"))
    os.write(pipe[1], b"not ours\n[]\n{}\n")
    content = os.read(pipe[0], 1 << 16)
    first, report, last = [
        one for i in range(len(content)) for one in daemon.take(content[i : i + 1])
    ]
    assert first == LogLine(at=record.created, level=logging.WARNING, text="a\nb \\udce9 Größe")
    assert report == Report(models="m", left_out=("x",))
    assert isinstance(last, LogLine)
    assert "abc123" not in last.text


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "\0" * 100_000, "😀" * 100_000, "\udce9" * 100_000]
)
def test_a_long_line_is_cut_to_what_a_pipe_takes_whole(pipe: tuple[int, int], text: str) -> None:
    ToDaemon(pipe[1]).emit(event(text))
    content = os.read(pipe[0], 1 << 16)
    assert len(content) <= MAX_LINE
    (line,) = FromWorker().take(content)
    assert isinstance(line, LogLine)
    assert len(line.text) >= 500


def test_a_daemon_that_does_not_read_holds_nobody_up(pipe: tuple[int, int]) -> None:
    worker = ToDaemon(pipe[1])

    def log_much() -> None:
        for n in range(200):
            worker.emit(event(f"{n} {'x' * 1500}"))

    logs = threading.Thread(target=log_much, daemon=True)
    logs.start()
    logs.join(20)
    assert not logs.is_alive()
    kept = FromWorker().take(os.read(pipe[0], 1 << 20))
    assert 10 < len(kept) < 200  # the first ones, each whole
    assert [int(one.text.split()[0]) for one in kept if isinstance(one, LogLine)] == list(
        range(len(kept))
    )
    worker.emit(event("again"))
    assert FromWorker().take(os.read(pipe[0], 1 << 16))[0].text == "again"  # type: ignore[union-attr]


def test_a_daemon_that_is_gone_is_no_error(
    pipe: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    worker = ToDaemon(pipe[1])
    os.close(pipe[0])
    worker.emit(event("a"))
    worker.report(Report(models="m", left_out=()))
    assert capsys.readouterr() == ("", "")
