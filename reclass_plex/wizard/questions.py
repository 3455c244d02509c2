"""`reclass-plex init`: ask the few questions, then write the configuration.

Every question that has no default can be answered by an option of the command instead. Nothing
is written before the last question is answered.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import yaml
from pydantic import ValidationError

from reclass_plex import credentials
from reclass_plex.config import Config, WatchOptions, config_path, load_config
from reclass_plex.errors import ConfigError, printable
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files
from reclass_plex.plex.signin import PLEX_TV
from reclass_plex.wizard.asking import Ask
from reclass_plex.wizard.path_guess import COMMON_STARTS
from reclass_plex.wizard.plex import PlexAnswers, PlexGiven, ask_plex

MODES = {
    "fill": "fill: write a genre only where there is none",
    "append": "append: add to the genres that are there",
    "replace": "replace: put ours in place of those that are there",
}
TRY_FILES = 10  # that the dry run listens to
_HEAD = """\
# Written by reclass-plex init. Keys that are not here have their defaults;
# config.example.yaml explains every key.
"""


@dataclass(frozen=True)
class Given:
    """What the command line says already; what is None or empty is asked."""

    plex: PlexGiven = field(default_factory=PlexGiven)
    folders: tuple[Path, ...] = ()
    mode: str | None = None


@dataclass(frozen=True)
class Written:
    """What was written, and some files to try it on."""

    config_file: Path
    config: Config
    try_files: tuple[Path, ...]


def run_init(
    given: Given,
    ask: Ask,
    *,
    config_file: Path | None = None,
    dry_run: Callable[[Sequence[Path]], object] | None = None,
    plex_tv: str = PLEX_TV,
    starts: Sequence[Path] = COMMON_STARTS,
) -> Written | None:
    """Ask what `given` does not say, and write the configuration; None if that was declined.

    `config_file` is written, by default that of `config_path()`. `dry_run` is called with some
    files if the user wants to try. `starts` are the folders below which Plex's music is looked
    for. Raises ConfigError where an answer is needed and nobody is there to give it, PlexError
    where Plex cannot be asked, and ConfigError where nothing can be written.
    """
    path = Path(os.path.abspath(config_file or config_path()))  # noqa: PTH100 - links stay
    base = _former(path, ask)
    for folder in given.folders:
        if (problem := _problem(folder)) is not None:
            raise ConfigError(f"--folder {problem}")
    named = tuple(folder.absolute() for folder in given.folders)
    plex = ask_plex(given.plex, base.plex, ask, path, plex_tv=plex_tv, starts=(*named, *starts))
    folders = named or _ask_folders(base.watch, plex, ask)
    mode = given.mode or _ask_mode(base, ask)
    config = _merge(base, plex, folders, mode)
    text = config_text(config)
    shown = text.removeprefix(_HEAD) or "# nothing: the defaults hold\n"
    ask.say(f"{printable(path)} will say:\n\n{shown}")
    if not _write(path, text, plex.new_token, ask):
        ask.say("nothing was written")
        return None
    written = Written(path, config, _try_files((*plex.newest, *folders)))
    _say_what_is_next(written, ask, dry_run)
    return written


def config_text(config: Config) -> str:
    """Return the YAML of what differs from the defaults, below a line that says where all is."""
    data = config.model_dump(mode="json", exclude_defaults=True)
    return _HEAD + (yaml.safe_dump(data, allow_unicode=True, sort_keys=False) if data else "")


def _former(path: Path, ask: Ask) -> Config:
    """Return what the configuration file says by now, to go on from, or the defaults."""
    if not os.path.lexists(path):
        return Config()
    try:
        return load_config(path)
    except ConfigError as error:
        ask.say(f"{error}\nIt is not used; beginning from the defaults.")
        return Config()


def _merge(base: Config, plex: PlexAnswers, folders: Sequence[Path], mode: str) -> Config:
    data = base.model_dump()
    data["plex"] = plex.options.model_dump()
    data["watch"]["folders"] = folders
    data["policy"]["mode"] = mode
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(str(error)) from None


# Folders and mode


def _ask_folders(base: WatchOptions, plex: PlexAnswers, ask: Ask) -> tuple[Path, ...]:
    """Ask which folders are watched; Plex's own are suggested."""
    found = _outermost([*base.folders, *plex.folders])
    chosen: list[Path] = []
    if len(found) == 1 and ask.confirm(f"Watch {printable(found[0])} for new music?"):
        chosen = found
    elif len(found) > 1:
        names = [printable(folder) for folder in found]
        every = range(len(found))
        picked = ask.choose("Watch which folders for new music?", names, every, several=True)
        chosen = [found[index] for index in picked]
    while True:
        if chosen:
            answer = ask.text("Another folder (Enter: no more)")
        else:
            music = Path("~/Music").expanduser()
            usual = str(music) if music.is_dir() else ""
            answer = ask.text("Folder with your music?", usual, option="--folder DIR")
        if not answer and chosen:
            return tuple(_outermost(chosen))
        folder = Path(answer).expanduser()
        if answer and (problem := _problem(folder)) is not None:
            ask.say(problem)
        elif answer:
            chosen.append(folder.absolute())


def _problem(folder: Path) -> str | None:
    """Say why a folder cannot be watched."""
    try:
        with os.scandir(folder):
            return None
    except OSError as error:
        return f"{printable(folder)}: {(error.strerror or str(error)).lower()}"


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Return folders without those that lie in another of them."""
    every = dict.fromkeys(folders)
    return [folder for folder in every if not any(parent in every for parent in folder.parents)]


def _ask_mode(base: Config, ask: Ask) -> str:
    names = list(MODES)
    usual = (names.index(base.policy.mode),)
    chosen = ask.choose("What about genres that are there already?", list(MODES.values()), usual)
    return names[chosen[0]]


# Writing


def _write(path: Path, text: str, token: str | None, ask: Ask) -> bool:
    """Write configuration and token, if the user agrees; say whether."""
    exists = os.path.lexists(path)
    backup = path.with_name(path.name + ".bak")
    question = f"Write {printable(path)}?"
    if exists:
        question = (
            f"Replace {printable(path)}? Its other settings are kept, its comments are not;"
            f" the former file stays as {printable(backup.name)}."
        )
    if not ask.confirm(question, option="--yes" if exists else ""):
        return False
    try:
        if exists:
            credentials.write_secret(backup, path.read_bytes())
        if token is not None:
            credentials.write_secret(path.with_name(credentials.TOKEN_NAME), token + "\n")
        credentials.write_secret(path, text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{printable(path)}: cannot be written: {reason}") from error
    ask.say(f"written: {printable(path)}")
    return True


def _try_files(places: Iterable[Path]) -> tuple[Path, ...]:
    """Return a few audio files that lie together, from the first place that has any."""
    for place in places:
        files = (f for f in find_audio_files([place], AUDIO_SUFFIXES) if isinstance(f, FoundFile))
        if found := tuple(file.path for file in islice(files, TRY_FILES)):
            return found
    return ()


def _say_what_is_next(
    written: Written, ask: Ask, dry_run: Callable[[Sequence[Path]], object] | None
) -> None:
    option = ""
    if written.config_file != config_path():
        option = f" --config {shlex.quote(str(written.config_file))}"
    folders = " ".join(shlex.quote(str(folder)) for folder in written.config.watch.folders)
    ask.say(
        f"To see what would happen to all of it:  reclass-plex tag {folders} --dry-run{option}\n"
        f"To see whether all is well:  reclass-plex doctor{option}"
    )
    if not written.try_files or dry_run is None:
        return
    where = printable(written.try_files[0].parent)
    count = len(written.try_files)
    if ask.confirm(f"Try it on {count} tracks in {where} now? It writes nothing."):
        dry_run(written.try_files)
