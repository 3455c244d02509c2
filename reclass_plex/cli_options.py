"""What several commands share: options, exit statuses, and the questions before a change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from reclass_plex import changes, comparing, console, placing
from reclass_plex.config import Config, TagOptions, load_config
from reclass_plex.errors import ConfigError, printable, visible
from reclass_plex.placements import Placements
from reclass_plex.store import Store

FAILED = 1  # exit status: some files failed
WRONG_USE = 2
LOCK_SECONDS = 15.0  # to wait for another process that changes files: the daemon, for an album

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Configuration file.", show_default=False)
]
Taxonomy = Annotated[
    str | None,
    typer.Option(
        help="Set of genres: default, gtzan (the ten of the papers), or a trained profile's."
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(help="Stages that vote: cpu, or one that was trained here (gpu, full, ...)."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def configure(file: Path | None, overrides: dict[str, dict[str, Any]] | None = None) -> Config:
    """Return the configuration with the options of the command line, where given, on top.

    Raises ConfigError for what may not be in either.
    """
    config = load_config(file)
    data = config.model_dump()
    for group, options in (overrides or {}).items():
        data[group] |= {key: value for key, value in options.items() if value is not None}
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        shown = visible(str(first["input"]))[:80]
        raise ConfigError(f"--{option} {shown}: {first['msg'].lower()}") from None


def full_path(path: Path) -> Path:
    """Return a full path; links stay, unless ".." has to be followed through them."""
    if not path.parts:
        raise ConfigError('"" is no path; the current folder is "."')
    try:
        return path.resolve() if ".." in path.parts else path.absolute()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{printable(path)}: where this is cannot be told: {error}") from error


def repair_files(store: Store, options: TagOptions) -> None:
    """Settle what a killed process left behind, a restore too, and say so."""
    for one in comparing.compare_if_due(store, options):
        console.say(f"{printable(one.path)}: {one.text}", to=console.err)
    for line in (*changes.repair(store, options), *placing.repair(Placements(store))):
        console.say(line, to=console.err)


def confirm(question: str, yes: bool) -> None:
    """Ask before a change; end the command if the answer is no."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on: add --yes (or --dry-run)")
    if not console.ask(question):
        raise typer.Exit(0)


def exit_if(stopped: bool, failed: int) -> None:
    """End with the status for a run that was stopped, or in which some files failed."""
    if stopped or failed:
        raise typer.Exit(FAILED)
