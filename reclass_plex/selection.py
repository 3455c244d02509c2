"""Which tracks are to be classified again: criteria, and the tracks that meet all of them."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from reclass_plex.batches import cut
from reclass_plex.config import Options
from reclass_plex.errors import ConfigError
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files
from reclass_plex.genres import genre_key
from reclass_plex.jobs import Jobs
from reclass_plex.store import ListedTrack, Store

REASON = "reclassify"

PlexPaths = Callable[[str], Collection[Path]]  # a library's name -> its folders, as seen here
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    Field(json_schema_extra={"pattern": r"\S"}),
]
_FULL_PATH = {"pattern": r"^/[^\x00]*$"}


def _usable_path(path: Path) -> Path:
    """Refuse what means another file elsewhere, or can be no file's name."""
    if not path.is_absolute():
        raise ValueError("must be a full path, beginning with /")
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("holds a NUL, which no path does")
    except UnicodeEncodeError:
        raise ValueError("is no path: its characters stand for no bytes") from None
    return path


class Selection(Options):
    """Criteria; a track must meet all that are named, and at least one must be.

    It travels as JSON with \\udcXX for bytes of a path that are no UTF-8: json.dumps of
    `model_dump(mode="json")`, and `model_validate` of json.loads.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [  # as `_names_something` asks
                {"properties": {"paths": {"minItems": 1}}, "required": ["paths"]},
                {"properties": {"library": {"type": "string"}}, "required": ["library"]},
                {"properties": {"album": {"type": "string"}}, "required": ["album"]},
                {"properties": {"genre": {"type": "string"}}, "required": ["genre"]},
                {"properties": {"below": {"type": "number"}}, "required": ["below"]},
                {"properties": {"older_model": {"const": True}}, "required": ["older_model"]},
                {"properties": {"everything": {"const": True}}, "required": ["everything"]},
            ]
        }
    )

    # Files and folders
    paths: tuple[
        Annotated[Path, AfterValidator(_usable_path), Field(json_schema_extra=_FULL_PATH)], ...
    ] = ()
    library: Name | None = None  # in Plex
    album: Name | None = None  # its tag, or its folder's name
    genre: Name | None = None  # that the file has, or that we wrote
    # The verdict's confidence, or unsure
    below: float | None = Field(default=None, ge=0, le=1, strict=True)
    older_model: bool = False  # heard by other models, not by those of now
    everything: bool = False

    @model_validator(mode="after")
    def _names_something(self) -> Selection:
        if not (
            self.paths
            or self.older_model
            or self.everything
            or any(
                value is not None for value in (self.library, self.album, self.genre, self.below)
            )
        ):
            raise ValueError(
                "name what to classify again: files or folders, --library, --album, --genre,"
                " --below, --older-model, or --all"
            )
        return self

    @classmethod
    def of(cls, **criteria: object) -> Selection:
        """Make one from what a user named. Raises ConfigError, in the user's words."""
        try:
            return cls.model_validate(criteria)
        except ValidationError as error:
            lines = []
            for detail in error.errors():
                message = detail["msg"].removeprefix("Value error, ")
                named = (
                    f"{detail['loc'][0]}: has value {detail['input']!r}, " if detail["loc"] else ""
                )
                lines.append(f"{named}{message}")
            raise ConfigError("\n".join(lines)) from None


def select_tracks(
    store: Store,
    selection: Selection,
    models: str,
    plex_paths: PlexPaths | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Path]:
    """Yield the tracks that are meant and there, one after another, however many.

    First those that the store knows, then, where `paths` or `library` say where to look, files
    that it does not know yet, unless a criterion asks for what is known only after listening.
    `models` is the fingerprint of the current ones. Raises ConfigError if a library is named and
    there is no Plex.
    """
    places = []  # a track must lie in each of them
    if selection.paths:
        places.append(selection.paths)
    if selection.library is not None:
        if plex_paths is None:
            raise ConfigError("--library: there is no Plex server; set plex.url")
        places.append(tuple(plex_paths(selection.library)))
    inside = [_prefixes(place) for place in places]

    def is_meant(path: Path) -> bool:
        text = f"{path}/"
        return all(text.startswith(prefixes) for prefixes in inside)

    if all(inside):
        roots = [Path(prefix) for prefix in inside[0]] if inside else None
        for track in store.iter_tracks(models, roots):
            if should_stop():
                return
            if (
                _meets(track, selection, models)
                and is_meant(track.path)
                and os.path.exists(track.path)  # noqa: PTH110 - False where it may not be looked at
            ):
                yield track.path
    if selection.genre is None and selection.below is None and not selection.older_model:
        for path in _unknown_files(store, places[0] if places else (), should_stop):
            if is_meant(path) and (
                selection.album is None or _plain(path.parent.name) == _plain(selection.album)
            ):
                yield path


def queue_tracks(
    tracks: Iterator[Path],
    jobs: Jobs,
    *,
    sample: int,
    dry_run: bool,
    on_queued: Callable[[], object] = lambda: None,
) -> tuple[int, tuple[Path, ...]]:
    """Put selected tracks in line, or in a dry run only count them; return how many, and the first.

    `on_queued` is called after each batch, so that work on it may begin.
    """
    count = 0
    first: list[Path] = []
    for batch in cut(tracks):
        if not dry_run:
            jobs.enqueue(batch, REASON, time.time(), bulk=True)
            on_queued()
        count += len(batch)
        first += batch[: max(0, sample - len(first))]
    return count, tuple(first)


def _meets(track: ListedTrack, selection: Selection, models: str) -> bool:
    """Tell whether a track meets the criteria that are not about where it lies."""
    if selection.album is not None and not _is_of_album(track, _plain(selection.album)):
        return False
    if selection.genre is not None:
        key = genre_key(selection.genre)
        if all(genre_key(name) != key for name in (*track.genres, *(track.written or ()))):
            return False
    if selection.below is not None and not _is_below(track, selection.below):
        return False
    return not selection.older_model or track.models not in (None, models)


def _is_below(track: ListedTrack, confidence: float) -> bool:
    if track.unsure is not None:
        return True
    return track.top is not None and track.top.confidence < confidence


def _is_of_album(track: ListedTrack, album: str) -> bool:
    """Tell whether this is the track's album tag, or the name of its (album's) folder."""
    if _plain(track.path.parent.name) == album:
        return True
    if track.album is None:
        return False
    key = _plain(track.album)  # folder and tag; the folder of Album/CD1/x.flac is Album
    return key.endswith(f"\n{album}") or f"/{album}\n" in key


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _prefixes(paths: Collection[Path]) -> tuple[str, ...]:
    """Return what the paths at or below `paths` begin with when "/" is put behind them.

    Under their real names too: the store knows files as the daemon's folders name them.
    """
    names = (name for path in paths for name in (os.fspath(path), os.path.realpath(path)))
    return tuple(dict.fromkeys(name.rstrip("/") + "/" for name in names))


def _unknown_files(
    store: Store, paths: Iterable[Path], should_stop: Callable[[], bool]
) -> Iterator[Path]:
    """Yield the files at and below `paths` that the store knows under no name."""
    found = (item for item in find_audio_files(paths, AUDIO_SUFFIXES) if not should_stop())
    files = (item.path for item in found if isinstance(item, FoundFile))
    for batch in cut(files):
        if should_stop():
            return
        real = {path: Path(os.path.realpath(path)) for path in batch}
        known = {track.path for track in store.known_files([*{*real, *real.values()}], "")}
        yield from (path for path in batch if path not in known and real[path] not in known)
