"""The command that sorts a folder of music into a tree of genres."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reclass_plex import changes, console, pipeline, placing, sorting
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
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.errors import ConfigError, FileError, Unreadable, printable
from reclass_plex.files import (
    AUDIO_SUFFIXES,
    SPACE_MARGIN,
    FoundFile,
    find_audio_files,
    find_leftovers,
)
from reclass_plex.genres import genre_key
from reclass_plex.mounts import is_foreign
from reclass_plex.names import folder_name
from reclass_plex.placements import How, Placements
from reclass_plex.store import Store

if TYPE_CHECKING:
    from reclass_plex.ensemble import Ensemble

app = typer.Typer()


class By(enum.Enum):
    """What a tree is sorted by."""

    genre = "genre"


class Unsure(enum.Enum):
    """What happens to tracks whose genre nobody is sure of."""

    folder = "folder"
    leave = "leave"


@dataclass(frozen=True)
class _Place:
    """From where to where; both with their links resolved."""

    root: Path
    tree: Path
    how: How
    foreign: bool
    leave_unsure: bool


@app.command()
def organize(
    folder: Annotated[Path, typer.Argument(help="The folder to sort.", show_default=False)],
    into: Annotated[Path, typer.Option(help="The tree, made if needed.", show_default=False)],
    by: Annotated[By, typer.Option(help="What to sort by.")] = By.genre,
    copy: Annotated[bool, typer.Option("--copy", help="Leave the files where they are.")] = False,
    hardlink: Annotated[
        bool, typer.Option("--hardlink", help="Give the same file a second name; takes no space.")
    ] = False,
    move: Annotated[bool, typer.Option("--move", help="Take the files away.")] = False,
    unsure: Annotated[
        Unsure, typer.Option(help="Tracks nobody is sure of: into Unsure, or leave them.")
    ] = Unsure.folder,
    by_folder: Annotated[
        bool, typer.Option("--by-folder", help="Keep folders together, not only albums.")
    ] = False,
    trust_tags: Annotated[
        bool, typer.Option("--trust-tags", help="Sort files that have a genre by that.")
    ] = False,
    portable_names: Annotated[
        bool, typer.Option("--portable-names", help="Only names that Windows takes, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show, but place nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Listen to a folder and put its files into TREE/Genre/...; no tag is written."""
    from reclass_plex.ensemble import Ensemble

    del by  # there is one so far
    if copy + hardlink + move > 1:
        raise ConfigError("--copy, --hardlink, --move: only one of them")
    how: How = "move" if move else "hardlink" if hardlink else "copy"
    config = configure(config_file)
    ensemble = Ensemble.from_config(config)
    for note in ensemble.notes:
        console.warn(note)
    place = _check(folder, into, how, ensemble, portable_names, unsure)
    found = list(_find(place))
    files = [item for item in found if isinstance(item, FoundFile)]
    if not dry_run:
        verb = {"copy": "Copy", "hardlink": "Link", "move": "Move"}[how]
        confirm(f"{verb} {len(files)} tracks into {printable(place.tree)}, by genre?", yes)
    with (
        Store.open(config.store.resolve()) as store,
        store.writing_files(LOCK_SECONDS),
        console.stopping_politely() as should_stop,
        Decoders(pipeline.count_cores(), Limits.of(config.worker)) as decoders,
    ):
        repair_files(store, config.tags)
        book = Placements(store)
        _check_space(place, files, book)
        run_id = None if dry_run else store.start_run("organize")
        albums = pipeline.analyse_albums(
            found,
            store=store,
            ensemble=ensemble,
            config=config,
            workers=pipeline.count_cores(),
            examine=decoders.examine,
            hear=pipeline.listener(ensemble, decoders.decode),
            should_stop=should_stop,
        )
        folders = sorting.sort_folders(
            albums,
            config,
            ensemble,
            by_folder=by_folder,
            trust_tags=trust_tags,
            should_stop=should_stop,
        )
        work = _Work(store, book, place, run_id, as_json=as_json)
        choices = (choice for sorted_folder in folders for choice in sorted_folder)
        for choice in console.follow(choices, len(found), "sorting"):
            if should_stop():
                break
            work.take(choice)
        if run_id is not None:
            placing.remove_empty_folders(work.emptied, place.root)
            store.finish_run(run_id, keep_empty=False)
        if not as_json:
            work.sum_up()
        exit_if(should_stop(), work.failed)


class _Work:
    """Puts one file after another in its place, counts, and prints."""

    def __init__(
        self, store: Store, book: Placements, place: _Place, run_id: int | None, *, as_json: bool
    ) -> None:
        self._store = store
        self._book = book
        self._place = place
        self._run_id = run_id
        self._as_json = as_json
        self._cleaned: set[Path] = set()
        self._taken: set[Path] = set()
        self.emptied: set[Path] = set()
        self.placed = self.kept = self.failed = 0

    def take(self, choice: sorting.Choice) -> None:
        """Do what a choice says, and say what became of it."""
        try:
            target, why = self._put(choice)
        except FileError as error:
            self.failed += 1
            self._print(choice, None, "failed", error.reason)
            return
        self.placed += not why
        self.kept += bool(why)
        done = "would be placed" if self._run_id is None else "placed"
        self._print(choice, target, "kept" if why else done, why or choice.reason)

    def sum_up(self) -> None:
        """Print the totals."""
        verb = {"copy": "copied", "hardlink": "linked", "move": "moved"}[self._place.how]
        would = "would be " if self._run_id is None else ""
        console.say(
            f"{self.placed} {would}{verb}, {self.kept} left as they are, {self.failed} failed"
        )
        if self._run_id is not None and self.placed:
            console.say(f"take it back with: reclass-plex undo --run {self._run_id}")

    def _put(self, choice: sorting.Choice) -> tuple[Path | None, str]:
        """Put a file in its place; return where it is, and why not if it was not put there."""
        place = self._place
        if choice.error is not None:
            raise choice.error
        if choice.genre is None and place.leave_unsure:
            return None, f"left where it is: {choice.reason}"
        if place.how == "move" and Path(os.path.realpath(choice.path)) != choice.path:
            raise Unreadable(choice.path, "is reached by a link, so it is not moved; use --copy")
        target = sorting.target_of(choice, place.root, place.tree, foreign=place.foreign)
        if place.root in target.parents and place.root not in place.tree.parents:
            raise Unreadable(choice.path, "its place would be in the folder that is being sorted")
        if (former := self._former(choice.path)) is not None:
            return former, "it was placed before"
        if self._run_id is None:
            placed = placing.would_place(choice.path, target, self._taken)
            self._taken.add(placed.target)
            return placed.target, placed.how
        if target.parent not in self._cleaned:  # of what a killed run left
            self._cleaned.add(target.parent)
            changes.remove_leftovers(self._store, find_leftovers(target.parent))
        order = placing.Order(self._run_id, choice.path, target, place.how)
        placed = placing.place(self._book, order)
        if place.how == "move" and placed.new:
            self.emptied.add(choice.path.parent)
        return placed.target, placed.how

    def _former(self, path: Path) -> Path | None:
        """Return where the same file was put before and still is, tagged since perhaps."""
        for one in self._book.of_sources([path]).get(path, []):
            if self._place.tree in one.target.parents and one.target.is_file():
                status = path.stat()
                if status.st_size == one.size and placing.holds(path, one.hash):
                    return one.target
        return None

    def _print(self, choice: sorting.Choice, target: Path | None, what: str, why: str) -> None:
        if self._as_json:
            console.print_json(
                {
                    "path": os.fspath(choice.path),
                    "target": None if target is None else os.fspath(target),
                    "genre": choice.genre,
                    "confidence": choice.confidence,
                    "result": what,
                    "reason": why,
                }
            )
            return
        name = console.short_path(choice.path)
        if what == "failed":
            console.say(f"{name}: {why}", style="red", to=console.err)
        elif what == "kept":
            console.say(f"{name}: {why}" + (f" ({printable(target)})" if target else ""))
        else:
            console.say(f"{name} -> {console.short_path(target or choice.path)}  [{why}]")


def _check(
    folder: Path, into: Path, how: How, ensemble: Ensemble, portable: bool, unsure: Unsure
) -> _Place:
    """Return from where to where. Raises ConfigError for what cannot be."""
    root = Path(os.path.realpath(full_path(folder)))
    tree = Path(os.path.realpath(full_path(into)))
    if not root.is_dir():
        raise ConfigError(f"{printable(folder)}: there is no such folder")
    if os.path.lexists(tree) and not tree.is_dir():
        raise ConfigError(f"--into {printable(into)}: is no folder")
    if root == tree:
        raise ConfigError(
            f"--into {printable(into)}: is the folder that is to be sorted; name another one, which"
            " may lie in it"
        )
    if tree in root.parents:
        first = genre_key(root.relative_to(tree).parts[0])
        genres = {genre_key(name) for name in (*ensemble.taxonomy.genres, sorting.UNSURE)}
        genres |= {genre_key(folder_name(name, foreign=True)) for name in ensemble.taxonomy.genres}
        if first in genres:
            raise ConfigError(
                f"{printable(folder)}: lies in a genre's folder of the tree"
                f" {printable(into)}, so it is sorted already"
            )
    near = placing.nearest(tree)
    if not os.access(near, os.W_OK | os.X_OK):
        raise ConfigError(f"--into {printable(into)}: {printable(near)} cannot be written")
    if how == "hardlink" and near.stat().st_dev != root.stat().st_dev:
        raise ConfigError(
            f"--hardlink: {printable(folder)} and {printable(into)} are on two file systems,"
            " between which there are no hard links: use --copy"
        )
    return _Place(root, tree, how, portable or is_foreign(near), unsure is Unsure.leave)


def _find(place: _Place) -> Iterator[FoundFile | FileError]:
    """Yield the audio files of the folder, without those of a tree that lies in it."""
    count = 0
    with console.showing_progress(None, "looking for music") as advance:
        for item in find_audio_files([place.root], AUDIO_SUFFIXES):
            if place.tree not in item.path.parents:
                count += 1
                advance(1)
                yield item
    if not count:
        console.say(f"no audio files in {printable(place.root)}", to=console.err)


def _check_space(place: _Place, files: Sequence[FoundFile], book: Placements) -> None:
    """Raise ConfigError if what is to be copied surely does not fit."""
    near = placing.nearest(place.tree)
    if place.how == "hardlink" or (
        place.how == "move" and near.stat().st_dev == place.root.stat().st_dev
    ):
        return
    known = book.of_sources([file.path for file in files])
    needed = SPACE_MARGIN + sum(
        file.size
        for file in files
        if not any(
            one.size == file.size and one.target.is_file() for one in known.get(file.path, ())
        )
    )
    free = placing.free_bytes(near)
    if free is not None and free < needed:
        raise ConfigError(
            f"{printable(place.tree)}: needs {needed >> 20} MiB of free space, has {free >> 20}"
        )
