"""The commands `backup` and `restore`: a copy of the store by hand, and putting one back."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress
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
)
from reclass_plex.errors import StoreError, printable

if TYPE_CHECKING:
    from reclass_plex.backups import Backup
    from reclass_plex.comparing import Difference
    from reclass_plex.config import Config
    from reclass_plex.restoring import Restored

app = typer.Typer()
SHOWN = 20  # files named on the terminal; the report names all


@app.command()
def backup(
    to: Annotated[
        Path | None, typer.Option(help="A new file, on another disk for instance.")
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Copy the store, as it is now, while the daemon goes on. The daemon does it each night."""
    from reclass_plex.backups import look_into, make_backup, remove_expired

    config = configure(config_file)
    path = config.store.resolve()
    made = make_backup(path, to=None if to is None else full_path(to))
    assert made is not None  # noqa: S101 - nobody stops it
    if to is None:
        days, weeks = config.schedule.backup_days, config.schedule.backup_weeks
        remove_expired(path, days=days, weeks=weeks)
    contents = look_into(made)
    size = made.stat().st_size
    if as_json:
        console.print_json({"path": os.fspath(made), "size": size, **vars(contents)})
    else:
        console.say(
            f"{printable(made)}: {size / 1e6:.1f} MB, {contents.tracks} tracks, {contents.runs}"
            f" runs, {contents.undoable} changes that can be undone"
        )


@app.command()
def restore(
    chosen: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BACKUP]", help="A name of the list, or a file. [newest]", show_default=False
        ),
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only list the backups.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Put a backup in the store's place; what was done since is taken over where it can be read."""
    from reclass_plex import restoring
    from reclass_plex.store_guard import hold_daemon_lock

    config = configure(config_file)
    path = config.store.resolve()
    if list_them:
        _list(path, as_json=as_json)
        return
    with hold_daemon_lock(path):
        with restoring.hold_store(path):
            if restoring.finish_swap(path):
                console.say("a restore that had been interrupted was ended", to=console.err)
                restored = None
            else:
                backup = restoring.choose_backup(path, chosen)
                contents = restoring.check_backup(backup)
                made = datetime.fromtimestamp(backup.made).strftime("%Y-%m-%d %H:%M")
                confirm(
                    f"Restore {backup.path.name} of {made} ({contents.tracks} tracks,"
                    f" {contents.undoable} changes that can be undone)?",
                    yes,
                )
                restored = restoring.restore(path, backup)
                _say_restored(restored, as_json=as_json)
        _compare(config, path, as_json=as_json)


def _list(path: Path, *, as_json: bool) -> None:
    from reclass_plex.backups import describe_age, list_backups

    found = list_backups(path)
    shown = console.table("backup", "age", "MB", "tracks", "runs", "can be undone", "")
    for one in found:
        line = _describe(one)
        if as_json:
            console.print_json(line)
        else:
            shown.add_row(
                one.path.name,
                describe_age(time.time() - one.made),
                f"{one.size / 1e6:.1f}",
                *(str(line[key]) for key in ("tracks", "runs", "undoable", "problem")),
            )
    if as_json:
        return
    if not found:
        console.say(f"there is no backup of {printable(path)} yet: reclass-plex backup makes one")
        return
    console.out.print(shown)


def _describe(one: Backup) -> dict[str, object]:
    from reclass_plex.restoring import check_backup

    line: dict[str, object] = {
        "path": os.fspath(one.path),
        "made": one.made,
        "size": one.size,
        "before": one.before,
        **dict.fromkeys(("schema", "tracks", "runs", "undoable", "problem"), ""),
    }
    try:
        return line | vars(check_backup(one))
    except StoreError as error:
        return line | {"problem": error.kind}


def _say_restored(restored: Restored, *, as_json: bool) -> None:
    taken = restored.taken
    if as_json:
        console.print_json(
            {
                "restored": os.fspath(restored.backup),
                "replaced": None if restored.replaced is None else os.fspath(restored.replaced),
                "taken_over": None if taken is None else dict(vars(taken)),
            }
        )
        return
    console.say(f"{printable(restored.backup)} is the store now")
    if restored.replaced is not None:
        console.say(f"the former one is kept as {printable(restored.replaced)}")
    if taken is None:
        return
    how = "all that happened since" if taken.whole else "what could be read of what happened since"
    console.say(
        f"taken over from it, {how}: {taken.changes} changes of files, {taken.updated} that ended"
        f" otherwise, {taken.tracks} tracks, {taken.others} decisions, placements and edits in Plex"
    )
    if taken.bare:
        console.say(f"of {taken.bare} changes only the genre can be undone, not every byte")
    if not taken.tokens:
        console.say("everybody is signed out, and API tokens must be made anew: those that were")
        console.say("revoked could not be told from the others")


def _compare(config: Config, path: Path, *, as_json: bool) -> None:
    """Bring the journal in line with the files, and say which files differ."""
    from reclass_plex import comparing
    from reclass_plex.store import Store

    counts: Counter[str] = Counter()
    with (
        Store.open(path) as store,
        store.writing_files(LOCK_SECONDS),
        console.stopping_politely() as should_stop,
    ):
        found: list[Difference] = []
        for one in comparing.compare_if_due(store, config.tags, should_stop):
            counts[one.kind] += 1
            if one.kind not in ("written", "taken back", "edited"):
                found.append(one)
            if as_json:
                console.print_json({"path": os.fspath(one.path), "is": one.kind, "text": one.text})
        stopped = should_stop()
    if as_json:
        exit_if(stopped, 0)
        return
    for one in found[:SHOWN]:
        console.say(f"{console.short_path(one.path)}: {one.text}", style="yellow")
    if len(found) > SHOWN:
        report = _write_report(path, found)
        console.say(f"and {len(found) - SHOWN} more, all of them in {printable(report)}")
    console.say(
        f"files that are not as the backup had them: {counts['written']} that we wrote and can"
        f" undo, {counts['taken back']} taken back, {counts['edited']} with other tags edited,"
        f" {len(found)} named above. None was changed, none is lost"
    )
    console.say("start the daemon again: systemctl start reclass-plex")
    exit_if(stopped, 0)


def _write_report(path: Path, found: list[Difference]) -> Path:
    stamp = datetime.now().strftime("%Y%m%dT%H%M%S")
    report = path.with_name(f"{path.name}.restored-{stamp}.txt")
    with suppress(OSError), report.open("w", encoding="utf-8") as file:
        report.chmod(0o600)
        file.writelines(f"{printable(one.path)}: {one.text}\n" for one in found)
    return report
