"""The command that says what genre is playing now."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import AsJson, ConfigFile, configure
from reclass_plex.errors import ConfigError
from reclass_plex.redaction import remember_address

if TYPE_CHECKING:
    from types import FrameType

    from reclass_plex.live import LiveNotice, LiveResult

app = typer.Typer()
TOP = 3  # genres shown
MAX_ADDRESS = 4000  # characters of a line of the input
SHOWN_SECONDS = 10.0  # between lines while nothing changes
NOTABLE = 0.1  # of confidence: a change that is worth a line


@app.command()
def listen(
    source: Annotated[
        str | None,
        typer.Argument(
            help="http(s)://..., a file, - (standard input), or a device such as alsa:default.",
            show_default=False,
        ),
    ] = None,
    from_input: Annotated[
        bool,
        typer.Option(
            "--from-input",
            help="Read SOURCE from the first line of standard input: a password in it then stands"
            " in no list of processes.",
        ),
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="End after so many seconds of audio.")
    ] = None,
    window: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds over which the genre is smoothed.")
    ] = 15.0,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Say what genre is playing now, on the radio or at an input, until Ctrl-C."""
    from reclass_plex import live

    config = configure(config_file)
    source = _source(source, from_input)
    taxonomy = config.ensemble.taxonomy if config.ensemble.taxonomy == "gtzan" else "default"
    with _stopping() as stopped:
        lines = _Lines()
        for one in live.listen(
            source, window=window, taxonomy=taxonomy, seconds=seconds, should_stop=stopped.is_set
        ):
            if as_json:
                console.print_json(as_json_line(one))
            else:
                lines.take(one)


def _source(given: str | None, from_input: bool) -> str:
    """Return what is to be heard: what was given, or a line of the input."""
    if from_input == (given is not None):
        raise ConfigError("listen: give SOURCE, or --from-input and SOURCE as a line of the input")
    if given is not None:
        return given
    line = sys.stdin.readline(MAX_ADDRESS + 1).removesuffix("\n")
    if not line or len(line) > MAX_ADDRESS:
        raise ConfigError("listen: there is no address in the input, or it is too long")
    remember_address(line)
    return line


def as_json_line(one: LiveResult | LiveNotice) -> dict[str, object]:
    """Return what is printed of a result, or of what happens to the stream."""
    from reclass_plex.live import LiveNotice

    when: dict[str, object] = {"at": round(one.at, 2), "time": round(time.time(), 3)}
    if isinstance(one, LiveNotice):
        return when | {"notice": one.text}
    return when | {
        "genres": console.scores_as_json(one.genres[:TOP]),
        "unsure": one.unsure,
        "changed": one.changed,
        "title": one.title,
    }


class _Lines:
    """Prints what is worth a line: another genre, title or piece, and a sign of life."""

    def __init__(self) -> None:
        self._said: LiveResult | None = None

    def take(self, one: LiveResult | LiveNotice) -> None:
        from reclass_plex.live import LiveNotice

        minutes, seconds = divmod(int(one.at), 60)
        clock = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        if isinstance(one, LiveNotice):
            console.say(f"{clock}  {one.text}", style="yellow", to=console.err)
            return
        said = self._said
        if said is not None and not one.changed and _is_like(one, said):
            return
        self._said = one
        if one.title and (said is None or said.title != one.title):
            console.say(f"{clock}  now: {one.title}")
        if one.unsure:
            console.say(f"{clock}  unsure: {one.unsure}")
        elif one.genres:
            shown = ", ".join(f"{g.name} {g.confidence:.2f}" for g in one.genres[:TOP])
            console.say(f"{clock}  {shown}" + ("  [another piece]" if one.changed else ""))


def _is_like(one: LiveResult, said: LiveResult) -> bool:
    if (one.unsure, one.title) != (said.unsure, said.title):
        return False
    if one.at - said.at >= SHOWN_SECONDS:
        return False
    if one.unsure or not one.genres or not said.genres:
        return bool(one.genres) == bool(said.genres) or one.unsure is not None
    first, former = one.genres[0], said.genres[0]
    return first.name == former.name and abs(first.confidence - former.confidence) < NOTABLE


@contextmanager
def _stopping() -> Iterator[Event]:
    """Yield an event that Ctrl-C and SIGTERM set. A second Ctrl-C stops at once."""
    stopped = Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    former = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for name, handler in former.items():
            signal.signal(name, handler)
