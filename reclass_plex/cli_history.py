"""The commands that look back: what was changed, and taking it back, in files and in Plex."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import changes, console
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
from reclass_plex.config import Config
from reclass_plex.errors import ConfigError, PlexError
from reclass_plex.store import JournalEntry, Store

if TYPE_CHECKING:
    from reclass_plex.plex import EditOutcome

app = typer.Typer()


@dataclass(frozen=True)
class _Wanted:
    """What is to be taken back: a run, a file or folder, or all since a time."""

    run: int | None
    path: Path | None
    since: float | None


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
    from reclass_plex import sync

    config = configure(config_file)
    with (
        Store.open(config.store.resolve()) as store,
        store.writing_files(LOCK_SECONDS),
        console.stopping_politely() as should_stop,
    ):
        repair_files(store)
        in_plex = sync.standing_edits(store)
        if run is None and path is None and since is None:
            in_files = next((summary.id for summary in store.list_runs() if summary.done), 0)
            run = max(in_files, *in_plex, 0) or None
        elif run is not None and run not in [summary.id for summary in store.list_runs()]:
            raise ConfigError(f"--run {run}: there is no such run; see reclass-plex history")
        wanted = _Wanted(
            run,
            None if path is None else full_path(path),
            None if since is None else _parse_time(since),
        )
        entries = changes.find_changes(store, run_id=run, path=wanted.path, since=wanted.since)
        edits = in_plex.get(run, 0) if run is not None else sum(in_plex.values())
        if not entries and not edits:
            console.say("there is nothing to undo", to=console.err)
            return
        also = f", and at most {edits} edits in Plex" if edits else ""
        confirm(f"Take back {len(entries)} changes of files{also}?", yes)
        kept = _undo_files(store, entries, config, should_stop, as_json=as_json) if entries else 0
        if edits and not should_stop():
            kept += _undo_plex(store, wanted, config, config_file, as_json=as_json)
        exit_if(should_stop(), kept)


def _undo_files(
    store: Store,
    entries: list[JournalEntry],
    config: Config,
    should_stop: Callable[[], bool],
    *,
    as_json: bool,
) -> int:
    """Take changes of files back; return how many had to stay."""
    results = changes.undo_changes(store, entries, config.tags, should_stop)
    restored = kept = 0
    for entry, result in console.follow(results, len(entries), "undoing"):
        restored += result.restored
        kept += not result.restored
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
    if not as_json:
        console.say(f"{restored} restored, {kept} left as they are")
    return kept


def _undo_plex(
    store: Store, wanted: _Wanted, config: Config, config_file: Path | None, *, as_json: bool
) -> int:
    """Take edits in Plex back; return how many could not be."""
    from reclass_plex import sync
    from reclass_plex.credentials import read_plex_token
    from reclass_plex.plex import Plex

    paths = None
    if wanted.path is not None:
        paths = {wanted.path, Path(os.path.realpath(wanted.path))}
    restored = failed = 0
    try:
        with Plex(config.plex, read_plex_token(config.plex, config_file)) as plex:
            for edit, outcome in sync.undo_plex(
                plex, store, run_id=wanted.run, paths=paths, since=wanted.since
            ):
                restored += outcome.status == "done"
                failed += outcome.status in ("changed", "failed")
                _print_edit(edit.path, outcome, as_json=as_json)
    except (ConfigError, PlexError) as error:
        console.say(
            f"error: Plex keeps our genres: {error}. Files are as said above; give the same undo"
            " again when Plex can be reached",
            style="red",
            to=console.err,
        )
        return failed + 1
    if not as_json and (restored or failed):
        console.say(f"Plex: {restored} restored, {failed} left as they are")
    return failed


def _print_edit(path: Path | None, outcome: EditOutcome, *, as_json: bool) -> None:
    record = outcome.record
    how = {
        "done": "restored",
        "gone": "no longer there",
        "changed": "kept",
        "failed": "not restored",
    }
    text = how[outcome.status] + (f": {outcome.reason}" if outcome.reason else "")
    if as_json:
        console.print_json(
            {
                "item": f"{record.kind} {record.rating_key}",
                "file": None if path is None else os.fspath(path),
                "restored": outcome.status == "done",
                "how": f"{text} in Plex",
                f"{record.field}s": list(
                    record.before if outcome.status == "done" else record.after
                ),
            }
        )
    elif outcome.status in ("changed", "failed"):
        name = console.short_path(path) if path else f"{record.kind} {record.rating_key}"
        console.say(f"{name} in Plex: {text}", style="yellow")


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
    with Store.open(config.store.resolve()) as store:
        runs = store.list_runs(limit)
    if as_json:
        for summary in runs:
            console.print_json(dict(vars(summary)))
        return
    if not runs:
        console.say("no run has changed a file yet")
        return
    shown = console.table("run", "command", "started", "took", "changed", "undone")
    for summary in runs:
        took = "" if summary.finished is None else f"{summary.finished - summary.started:.0f} s"
        shown.add_row(
            str(summary.id),
            summary.command,
            datetime.fromtimestamp(summary.started).strftime("%Y-%m-%d %H:%M:%S"),
            took or "did not end",
            str(summary.done + summary.undone),
            str(summary.undone),
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
