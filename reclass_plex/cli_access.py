"""The commands about who may use the dashboard and the REST API."""

from __future__ import annotations

import enum
import os
import sys
import time
from datetime import datetime
from typing import Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import AsJson, ConfigFile, configure
from reclass_plex.config import Config
from reclass_plex.errors import ConfigError

app = typer.Typer()
tokens = typer.Typer(no_args_is_help=True, help="API tokens: for programs that ask the daemon.")


class TokenScope(enum.Enum):
    """What a token may do."""

    read = "read"
    write = "write"


@app.command()
def password(
    generate: Annotated[
        bool, typer.Option("--generate", help="Make one and print it, instead of asking.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """Set the dashboard's password, and sign everybody out. Without a terminal it is read."""
    from reclass_plex.password import make_password, set_password
    from reclass_plex.store import Store
    from reclass_plex.web_keys import WebKeys

    path = configure(config_file).store.resolve()
    with Store.open(path) as store:
        chosen = make_password() if generate else _ask()
        set_password(path, chosen)
        ended = WebKeys(store).end_sessions()
    if generate:
        console.say(chosen)
    console.say(f"the password is set; sessions ended: {ended}", style="green", to=console.err)


def _ask() -> str:
    if not sys.stdin.isatty():
        line = sys.stdin.readline(2000).rstrip("\n")
        if not line:
            raise ConfigError("there is no password in the input: give one, or --generate")
        return line
    import getpass

    first = getpass.getpass("Password for the dashboard: ")
    if getpass.getpass("Again: ") != first:
        raise ConfigError("these were two different ones; nothing was changed")
    return first


def offer_password(config: Config) -> None:
    """Make a password if there is none, and say it: for `init`."""
    from reclass_plex.password import has_password, make_password, set_password

    path = config.store.resolve()
    if has_password(path):
        return
    if os.geteuid() == 0 and not path.parent.is_dir():
        # Made by root, the service could not write into it.
        console.say("For the dashboard, set a password: reclass-plex password", to=console.err)
        return
    chosen = make_password()
    set_password(path, chosen)
    console.say(
        f"The dashboard, http://{config.web.host}:{config.web.port}, has the password {chosen}\n"
        "It is shown only now; reclass-plex password sets one of yours.",
        to=console.err,
    )


@app.command()
def dashboard(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Print a link that signs a browser in, once, within ten minutes."""
    from reclass_plex.cli_daemon import NO_DAEMON
    from reclass_plex.remote import find_daemon
    from reclass_plex.store import Store
    from reclass_plex.web_keys import WebKeys

    path = configure(config_file).store.resolve()
    daemon = find_daemon(path)
    if daemon is None:
        raise ConfigError(NO_DAEMON)
    with Store.open(path) as store:
        url = f"{daemon.url}/login/{WebKeys(store).make_link(time.time())}"
    if as_json:
        console.print_json({"url": url})
    else:
        console.say(url)


@tokens.command("create")
def create_token(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[TokenScope, typer.Option(help="Only see, or also change.")] = TokenScope.read,
    days: Annotated[float | None, typer.Option(min=0.01, help="It ends after so long.")] = None,
    config_file: ConfigFile = None,
) -> None:
    """Make an API token and print it. It is shown only now."""
    from reclass_plex.store import Store
    from reclass_plex.web_keys import WebKeys

    with Store.open(configure(config_file).store.resolve()) as store:
        made = WebKeys(store).make_token(
            name, "write" if scope is TokenScope.write else "read", time.time(), days=days
        )
    console.say(made)


@tokens.command("list")
def list_tokens(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the API tokens; themselves they are kept nowhere."""
    from reclass_plex.store import Store
    from reclass_plex.web_keys import WebKeys

    with Store.open(configure(config_file).store.resolve()) as store:
        found = WebKeys(store).list_keys("token")
    for one in found:
        if as_json:
            console.print_json(
                {"name": one.name, "scope": one.scope, "created": one.created}
                | {"used": one.used, "expires": one.expires}
            )
            continue
        ends = "" if one.expires is None else f", until {_day(one.expires)}"
        console.say(
            f"{one.name}: {one.scope}, made {_day(one.created)}, used {_day(one.used)}{ends}"
        )


@tokens.command("revoke")
def revoke_token(
    name: Annotated[str, typer.Argument(help="Its name, as list shows it.")],
    config_file: ConfigFile = None,
) -> None:
    """Make an API token worthless, at once."""
    from reclass_plex.store import Store
    from reclass_plex.web_keys import WebKeys

    with Store.open(configure(config_file).store.resolve()) as store:
        if not WebKeys(store).revoke_token(name):
            raise ConfigError(f"there is no token named {name}; token list shows them")
    console.say(f"{name}: revoked", style="green")


def _day(when: float) -> str:
    return datetime.fromtimestamp(when).strftime("%Y-%m-%d")
