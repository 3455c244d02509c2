"""The command that finds music that sounds alike, and makes playlists of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
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
    full_path,
)
from reclass_plex.config import Config
from reclass_plex.decoders import Decoders, Limits
from reclass_plex.errors import ConfigError, NotHeard, ReclassError, visible
from reclass_plex.m3u import Entry, is_replaceable, write_m3u
from reclass_plex.similarity import Neighbour, SimilarMusic, Wish
from reclass_plex.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


app = typer.Typer()

COUNT = 20  # tracks
SHOWN = 5  # of the tracks that could not be put into a playlist


@app.command()
def similar(
    track: Annotated[Path | None, typer.Argument(help="An audio file.", show_default=False)] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Tracks.")] = COUNT,
    genre: Annotated[
        list[str] | None, typer.Option(help="Only of this genre; again for more.")
    ] = None,
    per_album: Annotated[
        int | None, typer.Option(min=1, help="At most so many tracks of one album.")
    ] = None,
    per_artist: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many from one folder of albums (an artist's)."),
    ] = None,
    other_albums: Annotated[
        bool, typer.Option("--other-albums", help="None of the track's own album.")
    ] = False,
    least: Annotated[
        float, typer.Option(min=-1, max=1, help="Similarity that is enough, 1 for the same sound.")
    ] = -1.0,
    m3u: Annotated[
        Path | None, typer.Option(help="Write a playlist here (.m3u8), the track first.")
    ] = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Full paths in the playlist.")
    ] = False,
    plex_playlist: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write a playlist to Plex, the track first.")
    ] = None,
    duplicates: Annotated[
        bool,
        typer.Option("--duplicates", help="Instead: recordings that are there in several files."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Find the tracks that sound most like one, among all that were heard."""
    config = configure(config_file)
    if duplicates and track is None:
        _list_duplicates(config, as_json=as_json)
        return
    if track is None or duplicates:
        raise ConfigError("name either a track, or --duplicates")
    path = full_path(track)
    target = None if m3u is None else full_path(m3u)
    if target is not None and not is_replaceable(target):
        confirm(f"{console.short_path(target)} is no playlist. Replace it?", yes)
    if plex_playlist is not None and not plex_playlist.strip():
        raise ConfigError("--plex-playlist: a playlist needs a name")
    wish = Wish(tuple(genre or ()), per_album, per_artist, other_albums, least)
    with Store.open(config.store.resolve()) as store:
        music = SimilarMusic.open(store)
        _update(music)
        found = _near(music, path, count, wish, config)
        for one in found:
            _print(one, as_json=as_json)
        if not found:
            console.say("nothing that was heard is like that", to=console.err)
        tracks = [path, *(one.path for one in found)] if os.path.isfile(path) else []  # noqa: PTH113
        tracks = tracks or [one.path for one in found]
        left_out = 0
        if target is not None:
            left_out += _write_m3u(target, tracks, path.stem, relative=not absolute)
        if plex_playlist is not None:
            left_out += _write_to_plex(store, config, config_file, plex_playlist, tracks, yes)
    if left_out:
        raise typer.Exit(FAILED)


def _list_duplicates(config: Config, *, as_json: bool) -> None:
    from reclass_plex.duplicates import find_duplicates

    with Store.open(config.store.resolve()) as store:
        music = SimilarMusic.open(store)
        _update(music)
        with console.showing_progress(None, "comparing") as advance:
            limits = Limits.of(config.worker)
            found = find_duplicates(music, limits=limits, progress=advance)
    for group in found:
        if as_json:
            console.print_json(
                {
                    "identical": group.identical,
                    "differing_bits": round(group.bits, 4),
                    "files": [
                        {
                            "path": os.fspath(one.path),
                            "bytes": one.bytes,
                            "seconds": None if one.seconds is None else round(one.seconds, 2),
                        }
                        for one in group.files
                    ],
                }
            )
            continue
        how = "the same audio" if group.identical else "the same recording"
        console.say(f"{how}:")
        for one in group.files:
            console.say(f"  {console.short_path(one.path)}  [{one.bytes / 1e6:.1f} MB]")
    if not as_json:
        extra = sum(len(group.files) - 1 for group in found)
        console.say(f"{len(found)} recordings in several files, {extra} files more than needed")


def _update(music: SimilarMusic) -> None:
    """Bring the index up to date, which is seen only where it takes a while."""
    if not music.needs_update():
        return
    try:
        with console.showing_progress(None, "indexing") as advance:
            music.update(progress=advance)
    except ReclassError as error:  # a full disk, say: it goes without, only slower
        console.warn(str(error))


def _near(
    music: SimilarMusic, path: Path, count: int, wish: Wish, config: Config
) -> tuple[Neighbour, ...]:
    """Find by path; a file that is new or changed, by its audio; an unknown one is listened to."""
    if not path.exists():
        return music.near(path, count, wish)
    with Decoders(1, Limits.of(config.worker)) as apart:
        digest = apart.digest(path)
        with suppress(NotHeard):
            return music.near(digest, count, wish)
        vector = _listen(path, config, apart)
    return music.near(vector, count, wish)


def _listen(path: Path, config: Config, apart: Decoders) -> npt.NDArray[np.float32]:
    """Hear a track that the store does not know, and remember nothing."""
    from reclass_plex.ensemble import Ensemble
    from reclass_plex.learned_genres import ENCODER
    from reclass_plex.pipeline import classify_file

    ensemble = Ensemble.from_config(config)
    for note in ensemble.notes:
        console.warn(note)
    verdict, embeddings = classify_file(path, ensemble, apart.decode)
    for one in embeddings:
        if one.encoder == ENCODER:
            return one.vector
    raise NotHeard(f"{console.short_path(path)}: there is no music in it ({verdict.unsure})")


def _print(one: Neighbour, *, as_json: bool) -> None:
    if as_json:
        console.print_json(
            {
                "path": os.fspath(one.path),
                "similarity": round(one.similarity, 4),
                "genres": list(one.genres),
                "heard": None if one.heard is None else one.heard.name,
                "album": None if one.album is None else one.album.partition("\n")[2],
                "digest": one.digest,
            }
        )
        return
    heard = "" if one.heard is None else f"heard {visible(one.heard.name)}"
    genres = console.genres_text(one.genres) if one.genres else heard or "no genre"
    console.say(f"{one.similarity:.3f}  {console.short_path(one.path)}  [{genres}]")


def _write_m3u(path: Path, tracks: Sequence[Path], name: str, *, relative: bool) -> int:
    done = write_m3u(path, map(Entry, tracks), title=f"Like {name}", relative=relative)
    for error in done.left_out:
        console.print_error(error)
    console.say(f"{done.count} tracks in {console.short_path(path)}", to=console.err)
    return len(done.left_out)


def _write_to_plex(
    store: Store,
    config: Config,
    config_file: Path | None,
    name: str,
    tracks: Sequence[Path],
    yes: bool,
) -> int:
    """Write those of the tracks that Plex has; return how many it has not."""
    from reclass_plex.credentials import read_plex_token
    from reclass_plex.plex import Playlist, Plex
    from reclass_plex.sync import write_files

    def may_replace(existing: Playlist) -> None:
        confirm(f"Replace the {existing.count} tracks of Plex's {visible(name)}?", yes)

    with Plex(config.plex, read_plex_token(config.plex, config_file)) as plex:
        made = write_files(store, plex, name, tracks, may_replace)
    for path in made.missing[:SHOWN]:
        console.warn(f"{console.short_path(path)}: Plex does not have it")
    if len(made.missing) > SHOWN:
        console.warn(f"and {len(made.missing) - SHOWN} more")
    console.say(f"{made.count} tracks in Plex's playlist {visible(name)}", to=console.err)
    return len(made.missing)
