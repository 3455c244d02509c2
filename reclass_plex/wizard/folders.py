"""Where the folders of Plex's libraries are on this machine: guessed, checked, confirmed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from reclass_plex.config import PathMap
from reclass_plex.errors import ConfigError, printable
from reclass_plex.plex import MusicLibrary, Plex, to_local
from reclass_plex.plex.paths import plain_path
from reclass_plex.wizard.asking import Ask
from reclass_plex.wizard.path_guess import (
    SAMPLES,
    Guess,
    count_found,
    find_spelling,
    guess_maps,
    join_maps,
)

LOOKED_THROUGH = 1000  # of a library's newest tracks, to have samples from each of its folders


def sample_tracks(plex: Plex, library: MusicLibrary) -> dict[str, list[str]]:
    """Return the Plex paths of some new tracks by the library's folder, the newest first."""
    samples: dict[str, list[str]] = {folder: [] for folder in library.folders}
    folders = sorted(library.folders, key=lambda folder: -len(plain_path(folder).parts))
    for track in islice(plex.recently_added(library.key, 0), LOOKED_THROUGH):
        for path in track.paths[:1]:
            within = (one for one in folders if plain_path(path).is_relative_to(plain_path(one)))
            if (folder := next(within, None)) and len(samples[folder]) < SAMPLES:
                samples[folder].append(path)
        if all(len(paths) == SAMPLES for paths in samples.values()):
            break
    return samples


def map_folders(
    samples: dict[str, list[str]],
    maps: tuple[PathMap, ...],
    ask: Ask,
    starts: Sequence[Path],
    *,
    fixed: bool,
) -> tuple[PathMap, ...]:
    """Return maps by which the libraries' folders are found here; `fixed` ones only checked."""
    for folder, paths in samples.items():
        if not paths:
            ask.say(f"Plex's folder {folder} has no tracks yet that could be looked for")
            continue
        found = count_found(paths, maps)
        if fixed or 2 * found >= len(paths):  # a few may be deleted, which Plex sees late
            local = to_local(folder, maps)
            here = "nowhere" if local is None else printable(local)
            ask.say(f"{folder} is {here} here: {found} of {len(paths)} tracks found")
            if not found:
                raise ConfigError(f"--path-map: finds no track of {folder}: {paths[0]}")
            continue
        ask.say(f"{folder}: not found here under this name; looking for its tracks")
        if (one := _ask_map(folder, paths, ask, starts)) is not None:
            maps = (*maps, one)
    if fixed:
        return maps
    every = [path for paths in samples.values() for path in paths]
    joined = join_maps(maps)
    return joined if count_found(every, joined) == count_found(every, maps) else maps


def _ask_map(folder: str, paths: Sequence[str], ask: Ask, starts: Sequence[Path]) -> PathMap | None:
    """Return the map of one folder of a library, guessed or told; None if it is not here."""
    guesses = guess_maps(folder, paths, starts)
    best = [guess for guess in guesses if guess.found == guesses[0].found]
    if len(best) > 1:
        choices = [*(_describe(guess) for guess in best), "another folder"]
        index = ask.choose(f"Which of these is {folder}?", choices, option="--path-map PLEX=LOCAL")
        if index[0] < len(best):
            return best[index[0]].path_map
    elif best and _confirm(best[0], ask):
        return best[0].path_map
    while True:
        answer = ask.text(
            f"Which folder here is Plex's {folder}? (Enter: it is not here)",
            option=f"--path-map {folder}=LOCAL",
        )
        if not answer:
            return None
        local = Path(answer).expanduser().absolute()
        direct = PathMap(plex=folder, local=str(local))
        found = count_found(paths, [direct])
        near = guess_maps(folder, paths, [local]) if found < len(paths) else []
        guess = near[0] if near else Guess(direct, found, len(paths))
        if not guess.found:
            ask.say(f"there is no {printable(str(to_local(paths[0], [direct])))}")
        elif _confirm(guess, ask):
            return guess.path_map


def _confirm(guess: Guess, ask: Ask) -> bool:
    ask.say(_describe(guess))
    if guess.complete:
        return ask.confirm("Is that right?")
    return ask.confirm("Is that right?", default=False, option="--path-map PLEX=LOCAL")


def _describe(guess: Guess) -> str:
    one = guess.path_map
    return (
        f"{one.plex} is {printable(one.local)} here: {guess.found} of {guess.samples} tracks found"
    )


def list_local_folders(samples: dict[str, list[str]], maps: Sequence[PathMap]) -> list[Path]:
    """Return where the libraries' folders are here, as far as they are."""
    local = []
    for folder in samples:
        path = to_local(folder, maps)
        if path is not None and path.is_dir():
            local.append(path)
            continue
        inside = (one for one in maps if plain_path(one.plex).is_relative_to(plain_path(folder)))
        local += [Path(one.local) for one in inside if Path(one.local).is_dir()]
    return local


def list_newest(samples: dict[str, list[str]], maps: Sequence[PathMap]) -> list[Path]:
    """Return the local folders of the newest tracks."""
    paths = (to_local(path, maps) for some in samples.values() for path in some)
    found = (find_spelling(path) for path in paths if path is not None)
    return list(dict.fromkeys(path.parent for path in found if path is not None))
