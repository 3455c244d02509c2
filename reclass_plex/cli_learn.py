"""The command `learn`: genres of one's own, from the tracks of one's own library."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import console
from reclass_plex.cli_options import (
    FAILED,
    AsJson,
    ConfigFile,
    Yes,
    configure,
    confirm,
)
from reclass_plex.errors import ConfigError, ModelError, printable, visible
from reclass_plex.learned_genres import LearnedGenres, find_learned
from reclass_plex.models import models_folder
from reclass_plex.store import Store

if TYPE_CHECKING:
    from reclass_plex.config import Config
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.training.learn import Learned
    from reclass_plex.training.learn_examples import Lesson
    from reclass_plex.training.learn_preview import Preview

app = typer.Typer()

AGAIN = "new music is heard with it from now on; the rest: reclass-plex reclassify --older-model"


@app.command()
def learn(
    from_library: Annotated[
        bool, typer.Option("--from-library", help="Learn from the genres in your files.")
    ] = False,
    genres: Annotated[
        str | None, typer.Option(help="Your genres: K-Pop,Anime,Lo-Fi.", show_default=False)
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Learn those in use again, beside these.")
    ] = False,
    minimum: Annotated[int, typer.Option(min=3, help="Tracks that a genre needs.")] = 20,
    preview: Annotated[int, typer.Option(min=0, help="How many changes to show.")] = 20,
    install: Annotated[
        bool | None,
        typer.Option("--install/--no-install", help="Use it, or only look.", show_default="ask"),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Take the installed one back.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say what is installed.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Teach it genres of your own, see what would change, and use them or take them back."""
    chosen = [name for name, given in (
        ("--from-library", from_library), ("--rollback", rollback), ("--status", status)
    ) if given]  # fmt: skip
    if len(chosen) != 1:
        raise ConfigError("say what to do: one of --from-library, --rollback, --status")
    config = configure(config_file)
    folder = models_folder(config.models.folder)
    if status:
        _tell_status(folder, config, as_json)
    elif rollback:
        _roll_back(folder, yes, as_json)
    elif genres is None:
        raise ConfigError("say which genres: --genres K-Pop,Anime,Lo-Fi")
    else:
        _learn(genres, extend, minimum, preview, install, yes, as_json, config, folder)


def _learn(
    genres: str,
    extend: bool,
    minimum: int,
    most: int,
    install: bool | None,
    yes: bool,
    as_json: bool,
    config: Config,
    folder: Path,
) -> None:
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.training import learn as lessons
    from reclass_plex.training.datasets.library import tracks_of_store
    from reclass_plex.training.learn_examples import parse_genres, read_lesson
    from reclass_plex.training.learn_preview import preview

    ensemble = Ensemble.from_config(config)
    former = _installed(folder)
    names = parse_genres(genres, ensemble.taxonomy)
    if extend and former is not None:
        names = (*former.without(names), *names)
    with Store.open(config.store.resolve()) as store:
        tracks = tracks_of_store(store, lambda path: None)  # artists are read of those that count
        lesson = read_lesson(store, tracks, names, minimum)
        _tell_lesson(lesson)
        command = shlex.join(["reclass-plex", *sys.argv[1:]])
        learned = lessons.learn(lesson, ensemble.taxonomy.name, command)
        seen = preview(
            store,
            learned.head,
            [ensemble.fingerprint, _without_learned(config).fingerprint],
            former.names if former is not None else (),
            config.ensemble.text_genres,
        )
    _tell(learned, as_json)
    _tell_preview(seen, most, as_json)
    if install is None and not yes and not (sys.stdin and sys.stdin.isatty()):
        install = False
        console.say("not installed: add --install to use it", to=console.err)
    place = None
    if install is not False:
        confirm(f"Use it ({', '.join(map(visible, lesson.genres))})?", yes or install is True)
        place = lessons.install(learned.head, folder)
        console.say(f"installed in {printable(place)}\n{AGAIN}", to=console.err)
        console.say("back: reclass-plex learn --rollback", to=console.err)
        if not config.ensemble.learned_genres:
            console.warn("the configuration turns it off: ensemble.learned_genres is false")
    if as_json:
        told = {"tracks": seen.tracks, "changes": len(seen.changes), "unknown": seen.unknown}
        path = None if place is None else os.fspath(place)
        console.print_json({"learned": list(lesson.genres), **told, "installed": path})


def _tell_lesson(lesson: Lesson) -> None:
    for remark in lesson.remarks:
        console.say(remark, to=console.err)


def _tell(learned: Learned, as_json: bool) -> None:
    for warning in learned.warnings:
        console.say(f"WARNING: {warning}", style="bold red", to=console.err)
    if as_json:
        for one in learned.genres:
            console.print_json({"genre": one.name, **{k: v for k, v in vars(one).items()
                                                      if k != "name"}})  # fmt: skip
        return
    shown = console.table("genre", "tracks", "groups", "precision", "recall")
    for one in learned.genres:
        figures = (f"{one.precision:.2f}", f"{one.recall:.2f}")
        shown.add_row(visible(one.name), str(one.tracks), str(one.groups), *figures)
    console.out.print(shown)
    console.say(f"{learned.protocol}; calibration error {learned.calibration_error:.3f}\n")


def _tell_preview(seen: Preview, most: int, as_json: bool) -> None:
    if as_json:
        for change in seen.changes[:most]:
            console.print_json(
                {
                    "path": os.fspath(change.path),
                    "now": change.now.name,
                    "would_be": change.then.name,
                    "confidence": round(change.then.confidence, 4),
                }
            )
        return
    shown = console.table("track", "now", "would be", "confidence")
    for change in seen.changes[:most]:
        then = f"{change.then.confidence:.2f}"
        names = (visible(change.now.name), visible(change.then.name))
        shown.add_row(console.short_path(change.path), *names, then)
    if seen.changes and most:
        console.out.print(shown)
    console.say(f"{len(seen.changes)} of {seen.tracks} tracks would be heard as another genre")
    if seen.unknown:
        why = "the models of now have not heard them (reclass-plex tag --dry-run)"
        console.say(f"{seen.unknown} tracks were not looked at: {why}")


def _roll_back(folder: Path, yes: bool, as_json: bool) -> None:
    from reclass_plex.training.learn import roll_back

    confirm("Take the genres that were learned last back?", yes)
    former = roll_back(folder)
    if as_json:
        console.print_json({"learned": None if former is None else list(former)})
    elif former is None:
        console.say("no genres of your own are heard now")
    else:
        console.say(f"the former ones are heard again: {', '.join(map(visible, former))}")


def _tell_status(folder: Path, config: Config, as_json: bool) -> None:
    from reclass_plex.heads import load_card
    from reclass_plex.learned_genres import learned_place
    from reclass_plex.models.swap import former_of

    try:
        found = find_learned(folder)
        card = None if found is None else load_card(found.folder)
    except ModelError as error:
        console.say(f"error: {error}", style="red", to=console.err)
        console.say("reclass-plex learn --rollback, or learn again", to=console.err)
        raise typer.Exit(FAILED) from None
    used = config.ensemble.learned_genres
    former = former_of(learned_place(folder)).is_dir()
    if as_json:
        head = None if card is None else card.model_dump(mode="json")
        console.print_json({"head": head, "in_use": used and card is not None, "former": former})
        return
    if found is None or card is None:
        console.say("no genres of your own were learned: reclass-plex learn --from-library")
        return
    for name in card.genres:
        console.say(f"{name}: {card.rests_on[name]}")
    one = card.measured[0]
    console.say(
        f"learned {card.date}; accuracy {one.accuracy:.2f} ({one.low:.2f} to {one.high:.2f})"
    )
    console.say(f"{one.protocol}; in {printable(found.folder)}")
    console.say("in use" if used else "not in use: ensemble.learned_genres is false")
    if former:
        console.say("learn --rollback brings the former one back")


def _without_learned(config: Config) -> Ensemble:
    """Return the ensemble as it was before anything was taught: most verdicts may still be its."""
    from reclass_plex.ensemble import Ensemble

    options = config.ensemble.model_copy(update={"learned_genres": False})
    return Ensemble.from_config(config.model_copy(update={"ensemble": options}))


def _installed(folder: Path) -> LearnedGenres | None:
    """Return the genres that are in use; a damaged head counts as none, and is replaced."""
    try:
        return find_learned(folder)
    except ModelError as error:
        console.warn(str(error))
        return None
