"""How far a transfer is, shown on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from reclass_plex import console

OnBytes = Callable[[str, int, int], None]  # what, bytes that are here, bytes in all


@contextmanager
def showing_bytes(owner: str = "") -> Iterator[OnBytes]:
    """Show a bar a file, with rate and time left, on a terminal; yield what moves it.

    `owner` is whose files they are, where that is not plain.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.err.is_terminal
    with Progress(*columns, console=console.err, transient=True, disable=hidden) as progress:
        tasks: dict[str, TaskID] = {}

        def on_bytes(what: str, here: int, due: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(f"{owner}{what}", total=due, completed=here)
            progress.update(tasks[what], completed=here, total=due)

        yield on_bytes
