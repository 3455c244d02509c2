"""The commands that look back: what was changed, and taking it back, in files and in Plex."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import (
    LOCK_SECONDS,
    AsJson,
    ConfigFile,
    Yes,
    configure,
    confirm,
    exit_if,
    full_path,
    repair_files,
)
from reclass_plex.credentials import read_plex_token
from reclass_plex.errors import ConfigError
from reclass_plex.store import Store

if TYPE_CHECKING:
    from reclass_plex.placing import TakenBack
    from reclass_plex.undoing import EditUndone, FileUndone, Undone, UndoPlan

app = typer.Typer()
_PAGE = 500  # runs that are read at once


@app.command()
def undo(
    run: Annotated[int | None, typer.Option(help="The run to take back.")] = None,
    path: Annotated[Path | None, typer.Option(help="A file, or all files in a folder.")] = None,
    since: Annotated[
        str | None, typer.Option(help="All since: 2026-11-22, 2026-11-22T18:30, 90m, 12h, 3d.")
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Give files their former bytes back, and Plex its genres: the last run, or what you name."""
    from reclass_plex import undoing
    from reclass_plex.plex import Plex

    config = configure(config_file)

    def connect() -> Plex:
        return Plex(config.plex, read_plex_token(config.plex, config_file))

    with (
        Store.open(config.store.resolve()) as store,
        store.writing_files(LOCK_SECONDS),
        console.stopping_politely() as should_stop,
    ):
        repair_files(store, config.tags)
        if run is None and path is None and since is None:
            run = undoing.last_run(store)
            if run is None:
                console.say("there is nothing to undo", to=console.err)
                return
        plan = undoing.plan_undo(
            store,
            run_id=run,
            path=None if path is None else full_path(path),
            since=None if since is None else _parse_time(since),
        )
        if plan.empty:
            console.say("there is nothing to undo", to=console.err)
            return
        also = f", {plan.decisions} decisions that changed none" if plan.decisions else ""
        also += f", and at most {plan.edits} edits in Plex" if plan.edits else ""
        confirm(f"Take back {plan.files} changes of files{also}?", yes)
        undone = undoing.take_back(store, plan, config.tags, connect, should_stop)
        kept = _follow_undo(undone, plan, as_json=as_json)
        exit_if(should_stop(), kept)


def _follow_undo(undone: Iterator[Undone], plan: UndoPlan, *, as_json: bool) -> int:
    """Say what became of each change; return how many could not be taken back."""
    from reclass_plex.placing import TakenBack
    from reclass_plex.undoing import EditUndone, FileUndone

    files, edits = [0, 0], [0, 0]  # restored, and left as they are
    total = plan.files + (plan.edits if plan.run_id is not None else 0)
    said = as_json or not plan.files
    for one in console.follow(undone, total, "undoing"):
        if not said and not isinstance(one, (FileUndone, TakenBack)):
            _say_restored(files)
            said = True
        if isinstance(one, FileUndone):
            files[not one.result.restored] += 1
            _print_file(one, as_json=as_json)
        elif isinstance(one, TakenBack):
            files[not one.restored] += 1
            _print_placement(one, as_json=as_json)
        elif isinstance(one, EditUndone):
            edits[0] += one.outcome.status == "done"
            edits[1] += one.outcome.status in ("changed", "failed")
            _print_edit(one, as_json=as_json)
        else:
            console.say(f"error: {one}", style="red", to=console.err)
            return files[1] + edits[1] + 1
    if not said:
        _say_restored(files)
    if not as_json and any(edits):
        console.say(f"Plex: {edits[0]} restored, {edits[1]} left as they are")
    return files[1] + edits[1]


def _say_restored(files: Sequence[int]) -> None:
    console.say(f"{files[0]} restored, {files[1]} left as they are")


def _print_file(one: FileUndone, *, as_json: bool) -> None:
    entry, result = one.entry, one.result
    if as_json:
        console.print_json(
            {
                "path": os.fspath(entry.path),
                "restored": result.restored,
                "how": result.how,
                "genres": list(entry.before if result.restored else entry.after),
            }
        )
    else:
        line = f"{console.short_path(entry.path)}: {result.how}"
        console.say(line, style="" if result.restored else "yellow")


def _print_placement(one: TakenBack, *, as_json: bool) -> None:
    source, target = one.placement.source, one.placement.target
    if as_json:
        line = {"path": os.fspath(target), "restored": one.restored, "how": one.how}
        console.print_json({**line, "from": os.fspath(source)})
    else:
        style = "" if one.restored else "yellow"
        console.say(f"{console.short_path(target)}: {one.how}", style=style)


def _print_edit(one: EditUndone, *, as_json: bool) -> None:
    path, record, restored = one.edit.path, one.outcome.record, one.outcome.status == "done"
    if as_json:
        console.print_json(
            {
                "item": f"{record.kind} {record.rating_key}",
                "file": None if path is None else os.fspath(path),
                "restored": restored,
                "how": f"{one.how} in Plex",
                f"{record.field}s": list(record.before if restored else record.after),
            }
        )
    elif one.outcome.status in ("changed", "failed"):
        name = console.short_path(path) if path else f"{record.kind} {record.rating_key}"
        console.say(f"{name} in Plex: {one.how}", style="yellow")


@app.command()
def history(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="How many runs.")
    ] = 20,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """List the runs that changed files, newest first."""
    config = configure(config_file)
    from reclass_plex.browse_history import RunRow, list_runs

    runs: list[RunRow] = []
    cursor = None
    with Store.open(config.store.resolve()) as store:
        while len(runs) < limit:
            page = list_runs(store, cursor=cursor, limit=min(limit - len(runs), _PAGE))
            runs += page.rows
            cursor = page.next
            if cursor is None:
                break
    if as_json:
        for summary in runs:
            console.print_json(dict(vars(summary)))
        return
    if not runs:
        console.say("no run has changed a file yet")
        return
    shown = console.table("run", "command", "started", "took", "changed", "undone", "in Plex")
    for summary in runs:
        took = "" if summary.finished is None else f"{summary.finished - summary.started:.0f} s"
        shown.add_row(
            str(summary.id),
            summary.command,
            datetime.fromtimestamp(summary.started).strftime("%Y-%m-%d %H:%M:%S"),
            took or "did not end",
            str(summary.done + summary.undone),
            str(summary.undone),
            str(summary.plex_done + summary.plex_undone),
        )
    console.out.print(shown)


_SPANS = {"m": 60, "h": 3600, "d": 86400}  # seconds


def _parse_time(text: str) -> float:
    if match := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return time.time() - int(match[1]) * _SPANS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ConfigError(
            f"--since {text}: is no time; write 2026-11-22, 2026-11-22T18:30, 90m, 12h or 3d"
        ) from None
