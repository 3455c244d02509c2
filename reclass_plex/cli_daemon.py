"""The commands that talk to the daemon, or where none runs, to its queue in the store."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import FAILED, AsJson, ConfigFile, configure, full_path
from reclass_plex.config import Config
from reclass_plex.errors import ConfigError, printable
from reclass_plex.jobs import STATES, Jobs, State

if TYPE_CHECKING:
    from reclass_plex.remote import DaemonClient, ReclassifyResult, Status
    from reclass_plex.selection import Selection

app = typer.Typer()
SHOWN = 5  # paths of a selection
NO_DAEMON = "the daemon is not running (systemctl start reclass-plex, or reclass-plexd)"

JobState = enum.Enum("JobState", {state: state for state in STATES})  # type: ignore[misc]


@app.command()
def status(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Say what the daemon does: its queue, its folders, Plex."""
    from reclass_plex.backups import newest_age
    from reclass_plex.remote import find_daemon
    from reclass_plex.store import Store

    config = configure(config_file)
    path = config.store.resolve()
    daemon = find_daemon(path)
    if daemon is None:
        with Store.open(path) as store:
            counts = Jobs(store).counts()
        clock = time.time()
        age = newest_age(path, clock)
        if as_json:
            made = None if age is None else clock - age
            console.print_json({"state": "not running", "jobs": dict(counts), "backup": made})
        else:
            console.say(NO_DAEMON, style="yellow")
            console.say(_describe_counts(counts))
            console.say(_describe_backup(age))
        raise typer.Exit(1)
    now = daemon.status()
    if as_json:
        console.print_json(now.model_dump(mode="json"))
        return
    since = datetime.fromtimestamp(now.since).strftime("%Y-%m-%d %H:%M")
    console.say(f"{now.state}{f': {now.why}' if now.why else ''}")
    console.say(_describe_counts(now.jobs))
    console.say(
        f"{now.tracks_done} tracks since {since}, models"
        f" {'loaded' if now.models_loaded else 'unloaded'}, version {now.version}"
    )
    for line in _describe_progress(now):
        console.say(line)
    for note in now.left_out:
        console.warn(note)
    pending = f", {now.plex.pending} tracks to be written" if now.plex.pending else ""
    message = f": {now.plex.message}" if now.plex.message else ""
    console.say(f"Plex {now.plex.state}{message}{pending}")
    for folder in now.folders:
        why = f": {folder.why}" if folder.why else ""
        console.say(f"{printable(folder.path)} {folder.state}{why}")
    console.say(_describe_backup(None if now.backup is None else time.time() - now.backup))


def _describe_backup(age: float | None) -> str:
    from reclass_plex.backups import describe_age

    return "no backup yet" if age is None else f"newest backup: {describe_age(age)} old"


def _describe_progress(now: Status) -> list[str]:
    """Say how fast it is, how long that takes, and what is in hand, as far as it is known."""
    lines = []
    if now.per_minute:
        left = now.seconds_left or 0.0
        span = f"{left / 60:.0f} minutes" if left < 7200 else f"{left / 3600:.1f} hours"
        lines.append(f"{now.per_minute:.1f} tracks a minute, about {span} left")
    if now.in_hand:
        names = ", ".join(printable(path.name) for path in now.in_hand)
        lines.append(f"in hand: {names}")
    if now.operations:
        lines.append(f"{now.operations} operations that people asked for are under way")
    return lines


def _describe_counts(counts: dict[State, int]) -> str:
    shown = [f"{count} {state}" for state, count in counts.items() if count]
    return "tracks: " + (", ".join(shown) or "none in line")


@app.command()
def pause(config_file: ConfigFile = None) -> None:
    """Make the daemon stop after the track in hand, until resume."""
    _daemon(config_file).pause()


@app.command()
def resume(config_file: ConfigFile = None) -> None:
    """Make the daemon go on."""
    _daemon(config_file).resume()


def _daemon(config_file: Path | None) -> DaemonClient:
    from reclass_plex.remote import find_daemon

    daemon = find_daemon(configure(config_file).store.resolve())
    if daemon is None:
        raise ConfigError(NO_DAEMON)
    return daemon


@app.command()
def jobs(
    state: Annotated[
        list[JobState] | None,
        typer.Option("--state", help="Only these; by default failed and review."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 100,
    retry: Annotated[bool, typer.Option("--retry", help="Try all that failed again.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """List tracks of the queue with what is wrong with them, the latest first."""
    from reclass_plex.remote import find_daemon
    from reclass_plex.store import Store

    path = configure(config_file).store.resolve()
    wanted: list[State] = [one.value for one in state or ()] or ["failed", "review"]
    daemon = find_daemon(path)
    with Store.open(path) as store:
        queue = Jobs(store)
        if retry:
            count = daemon.revive() if daemon else queue.revive(time.time())
            console.say(f"{count} tracks are in line again" + ("" if daemon else f"; {NO_DAEMON}"))
            return
        found = queue.list_jobs(*wanted, limit=limit)
    if as_json:
        for job in found:
            console.print_json(
                {
                    "path": os.fspath(job.path),
                    "state": job.state,
                    "reasons": list(job.reasons),
                    "message": job.message,
                    "attempts": job.attempts,
                    "changed": job.changed,
                }
            )
        return
    for job in found:
        console.say(f"{job.state:<8}{console.short_path(job.path)}: {job.message or ''}")
    if not found:
        console.say(f"no track is {' or '.join(wanted)}")


@app.command()
def reclassify(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders.", show_default=False)
    ] = None,
    library: Annotated[str | None, typer.Option(help="Tracks of this library in Plex.")] = None,
    album: Annotated[str | None, typer.Option(help="Tracks of albums of this name.")] = None,
    genre: Annotated[str | None, typer.Option(help="Tracks that have this genre.")] = None,
    below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Tracks with a confidence under this.")
    ] = None,
    older_model: Annotated[
        bool, typer.Option("--older-model", help="Tracks that only older models have heard.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every known track.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Do what is in line now, heard by a Ray cluster: ray://HOST:PORT, auto or local.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Put tracks in line to be classified again; all that you name must hold."""
    from reclass_plex.cli_cluster import refuse_daemon, work_on_cluster
    from reclass_plex.remote import find_daemon
    from reclass_plex.selection import Selection

    config = configure(config_file)
    if cluster is not None and not dry_run:
        refuse_daemon(config)
        criteria = (paths, library, album, genre, below is not None, older_model, everything)
        if not any(criteria):  # go on with what is in line
            if not work_on_cluster(config, cluster, as_json=as_json):
                raise typer.Exit(FAILED)
            return
    selection = Selection.of(
        paths=tuple(map(full_path, paths or ())),
        library=library,
        album=album,
        genre=genre,
        below=below,
        older_model=older_model,
        everything=everything,
    )
    for path in selection.paths:
        if not os.path.lexists(path):
            raise ConfigError(f"{printable(path)}: there is no such file or folder")
    daemon = find_daemon(config.store.resolve())
    if daemon is not None:
        result = daemon.reclassify(selection, dry_run=dry_run)
    else:
        result = _reclassify_here(config, config_file, selection, dry_run=dry_run)
    if cluster is not None and not dry_run:
        if not work_on_cluster(config, cluster, as_json=as_json):
            raise typer.Exit(FAILED)
        return
    if as_json:
        console.print_json(result.model_dump(mode="json"))
        return
    for path in result.sample[:SHOWN]:
        console.say(f"  {console.short_path(path)}")
    if result.count > SHOWN:
        console.say(f"  and {result.count - SHOWN} more")
    verb = "would be" if dry_run else "are"
    later = "" if daemon or dry_run or not result.count else f"; {NO_DAEMON}"
    console.say(f"{result.count} tracks {verb} in line{later}")


def _reclassify_here(
    config: Config, config_file: Path | None, selection: Selection, *, dry_run: bool
) -> ReclassifyResult:
    """Put tracks in line for the daemon's next start."""
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.remote import ReclassifyResult
    from reclass_plex.selection import queue_tracks, select_tracks
    from reclass_plex.store import Store

    def folders(name: str) -> Collection[Path]:
        from reclass_plex.credentials import read_plex_token
        from reclass_plex.plex import Plex, library_folders

        with Plex(config.plex, read_plex_token(config.plex, config_file)) as plex:
            return library_folders(plex, name)

    with Store.open(config.store.resolve()) as store:
        tracks = select_tracks(
            store,
            selection,
            Ensemble.from_config(config).fingerprint,
            folders if config.plex.url else None,
        )
        count, sample = queue_tracks(tracks, Jobs(store), sample=SHOWN, dry_run=dry_run)
    return ReclassifyResult(count=count, sample=sample)
