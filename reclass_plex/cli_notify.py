"""The command that tries where notifications go."""

from __future__ import annotations

import platform
from dataclasses import asdict

import typer

from reclass_plex import console
from reclass_plex.cli_options import AsJson, ConfigFile, configure, exit_if
from reclass_plex.errors import ConfigError, printable

app = typer.Typer(no_args_is_help=True, help="Messages to you: Discord, ntfy, e-mail, ...")


@app.callback()
def _group() -> None:
    """Messages to you: Discord, ntfy, e-mail, and others."""


@app.command("test")
def send_test(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Send a test message to every address that notifications go to."""
    from reclass_plex.credentials import read_notify_urls, urls_file
    from reclass_plex.messages import send

    options = configure(config_file).notify
    urls = read_notify_urls(options, config_file, console.warn)
    if not urls:
        raise ConfigError(
            "there is no address to tell: write one a line (ntfy://ntfy.sh/topic, discord://ID/TOKEN,"
            f" json://host/path, mailto://user:password@host) into"
            f" {printable(urls_file(options, config_file))}, with mode 600"
        )
    body = f"A test from {platform.node()}: notifications arrive here."
    failed = 0
    for one in send(urls, "reclass-plex: a test", body):
        failed += one.error is not None
        if as_json:
            console.print_json(asdict(one))
        else:
            style = "" if one.error is None else "red"
            console.say(f"{one.name}: {one.error or 'taken'}", style=style)
    exit_if(False, failed)
