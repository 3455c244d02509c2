"""What the commands print: lines and tables for people, one JSON object a line for programs.

Results go to standard output; progress, questions and errors to standard error. Progress is shown
only on a terminal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from reclass_plex.errors import FileError, printable, visible
from reclass_plex.pipeline import TrackResult
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.redaction import hide_secrets

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def prepare_streams() -> None:
    """Let nothing that is printed fail: not an unknown character, not a closed stream."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Send what is still to be printed nowhere, so that the end of the process cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str, *, style: str = "", to: Console = out) -> None:
    """Print lines of plain text: what looks like markup or an escape in a name stays a name."""
    for line in text.split("\n"):
        to.print(Text(visible(line), style=style))


def complain(error: BaseException) -> None:
    """Print an error that ends the command, without the secrets that may be in its text."""
    say(f"error: {hide_secrets(str(error))}", style="red", to=err)


def print_json(data: dict[str, object]) -> None:
    """Print one object on one line, at once. Undecodable bytes of a path come as \\udcNN."""
    sys.stdout.write(json.dumps(data) + "\n")
    sys.stdout.flush()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Show the rate in tracks an hour, the figure that tells how long a library takes."""
        return Text(
            f"{task.speed * 3600:,.0f}/h" if task.speed else "", style="progress.data.speed"
        )


@contextmanager
def showing_progress(total: int | None, verb: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left on a terminal; yield what advances it."""
    if not err.is_terminal:
        yield lambda count: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(verb, total=total)
        yield lambda count: progress.advance(task, count)


def follow(results: Iterable[T], total: int, verb: str) -> Iterator[T]:
    """Yield the results while showing how far they are, on a terminal."""
    if not err.is_terminal:
        yield from results
        return
    with showing_progress(total, verb) as advance:
        for result in results:
            yield result
            advance(1)


@contextmanager
def stopping_politely() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether to stop: after Ctrl-C or SIGTERM.

    The file in hand is finished first. A second Ctrl-C stops at once, which is safe as well.
    """
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        with suppress(RuntimeError):  # the signal came in the midst of a line to the same output
            say("stopping after the file in hand; once more stops at once", to=err)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(question: str) -> bool:
    """Ask on the terminal; Enter means yes."""
    err.print(f"{question} [Y/n] ", end="")
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("", "y", "yes") and answer != ""


def agrees(question: str) -> bool:
    """Ask on the terminal for a yes that is typed out: Enter is no answer to this one."""
    err.print(f"{question} Type yes: ", end="")
    return sys.stdin.readline().strip().lower() == "yes"


def scores_as_json(genres: Iterable[GenreScore]) -> list[dict[str, object]]:
    """Return ranked genres for `--json`."""
    return [{"name": genre.name, "confidence": round(genre.confidence, 4)} for genre in genres]


def result_as_json(result: TrackResult, top: int | None = None) -> dict[str, object]:
    """Return one file's result for `--json`."""
    data: dict[str, object] = {"path": os.fspath(result.path)}
    if result.verdict is not None:
        verdict = result.verdict
        data |= {
            "genres": scores_as_json(verdict.genres[:top]),
            "moods": scores_as_json(verdict.moods),
            "styles": scores_as_json(verdict.styles),
            "decided_by": verdict.decided_by,
            "unsure": verdict.unsure,
            "stages": [
                {
                    "name": vote.stage,
                    "genres": scores_as_json(vote.genres[:top]),
                    "seconds": round(vote.seconds, 4),
                }
                for vote in verdict.votes
            ],
            "seconds": round(verdict.seconds, 4),
        }
    if result.plan is not None:
        plan = result.plan
        data |= {
            "before": list(plan.before),
            "after": None if plan.after is None else list(plan.after),
            "moods_written": list(plan.moods or ()) if result.written else [],
            "reason": plan.reason,
            "written": result.written,
        }
    if result.error is not None:
        data["error"] = {"kind": result.error.kind, "message": result.error.reason}
    return data


def describe_verdict(verdict: Verdict, top: int = 1) -> str:
    """Return a verdict for people: "Jazz 0.83", or "unsure (silence)"."""
    ranked = ", ".join(f"{genre.name} {genre.confidence:.2f}" for genre in verdict.genres[:top])
    return f"unsure: {verdict.unsure} ({ranked})" if verdict.unsure else ranked


def describe_labels(verdict: Verdict) -> str:
    """Return a verdict's moods and styles for people: "moods: Happy 0.93; styles: none"."""

    def ranked(labels: tuple[GenreScore, ...]) -> str:
        return ", ".join(f"{one.name} {one.confidence:.2f}" for one in labels) or "none"

    return f"moods: {ranked(verdict.moods)}; styles: {ranked(verdict.styles)}"


def print_error(error: FileError) -> None:
    """Print the line that names a file and says what is wrong with it."""
    say(f"error: {error}", style="red", to=err)


def warn(text: str) -> None:
    """Print what is not as it was asked for, yet stops nothing."""
    say(f"warning: {text}", style="yellow", to=err)


def genres_text(genres: tuple[str, ...]) -> str:
    """Return genres for people."""
    return visible("; ".join(genres)) if genres else "none"


def table(*columns: str) -> Table:
    """Return an empty table in the style of all commands."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def short_path(path: Path) -> str:
    """Return a path for people, relative to the current folder where it lies below it."""
    try:
        return printable(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return printable(path)
