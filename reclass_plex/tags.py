"""Genres in files: read, and written so that nothing else changes and nothing can be lost.

A write is prepared on a copy beside the file, checked there, and only then takes the file's
place; the caller journals in between. What the copy must prove, against the file:

1. its audio is the same, byte for byte (`audio.audio_digest`, which has no part in the edit);
2. our own reading finds the wanted genre and every other piece of its tags unchanged;
3. mutagen, which had no part in the edit, finds the same.

The edit itself is made on the tags' bytes (`reclass_plex.containers`), not by mutagen, because
mutagen writes a tag anew from what it understood of it: frames that it cannot parse or does not
know, flags, order, padding, invalid text and ID3v2.2 as a whole would silently go.

How several genres stand in a tag: as several values where the format has them, unless
`TagOptions.join` asks for one text; ID3v2.2 and ID3v2.3 have none, so they are always joined.
Joined values are read as several, split at ";", NUL and the configured text. "/" is no separator
unless configured: "R&B/Soul" and "Hip-Hop/Rap" are single names, and splitting them could not be
taken back.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mutagen
from mutagen.apev2 import APENoHeaderError, APEv2

from reclass_plex.audio import audio_digest
from reclass_plex.config import TagOptions
from reclass_plex.containers import Container, ContainerError, Found, Splice, find_container
from reclass_plex.delta import DeltaError, apply_delta, make_delta
from reclass_plex.errors import (
    EditedSince,
    FileError,
    Hardlinked,
    NotAudio,
    TagsUnsupported,
    UnsafeWrite,
)
from reclass_plex.files import (
    FileStamp,
    Replacement,
    check_writable,
    copy_range,
    hash_file,
    open_regular,
    resolve_links,
    write_all,
)
from reclass_plex.genres import resolve_id3_reference

__all__ = [
    "FileTags",
    "KnownAudio",
    "PreparedWrite",
    "prepare_write",
    "read_tags",
    "restore_bytes",
    "restore_genre",
]

_JOINED = {"id3v2.2", "id3v2.3"}  # formats without several values
_PLACE = re.compile(r"unknown\d+")
_LENGTH_TOLERANCE = 0.5  # seconds; mutagen estimates some lengths from the file's size


@dataclass(frozen=True)
class FileTags:
    """What a file says. `format` is that of the tag that holds, or would hold, its genre.

    `genres` are names: numbers are resolved, joined values split, in order, without repetitions.
    """

    format: str
    genres: tuple[str, ...]
    album: str | None = None
    album_artist: str | None = None
    title: str | None = None
    artist: str | None = None


@dataclass(frozen=True)
class KnownAudio:
    """The audio digest of a file that had this size (bytes) and modification time (ns)."""

    digest: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PreparedWrite:
    """A checked copy with another genre, ready to take its file's place.

    `before` and `after` are the genres; the hashes are BLAKE2b-16 of the whole files in
    hexadecimal; `delta` restores the former bytes from the new file; `digest` is the audio's.
    """

    replacement: Replacement
    format: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_hash: str
    after_hash: str
    delta: bytes
    digest: str

    @property
    def path(self) -> Path:
        """The file that will be replaced, links resolved."""
        return self.replacement.path

    @property
    def temp_path(self) -> Path:
        """The copy."""
        return self.replacement.temp_path

    @property
    def before_stamp(self) -> FileStamp:
        """Size, modification time and inode of the file that was copied."""
        return self.replacement.before

    def commit(self) -> os.stat_result:
        """Replace the file, durably; return its new status.

        Raises FileChanged, and removes the copy, if the file changed since it was copied.
        """
        return self.replacement.commit()

    def abandon(self) -> None:
        """Remove the copy; the file stays as it is."""
        self.replacement.abandon()


def read_tags(path: Path, options: TagOptions | None = None) -> FileTags:
    """Return the genres of `path`, and what groups it into albums. Reads its tags only.

    `options` tell which text joins genres. Raises Unreadable, FileChanged, NotAudio (empty file)
    or TagsUnsupported.
    """
    with open_regular(path) as file, _refusing(path):
        return _clean(_container(path, file).read(file), options or TagOptions())


def prepare_write(
    path: Path,
    genres: tuple[str, ...],
    options: TagOptions,
    *,
    known: KnownAudio | None = None,
) -> PreparedWrite | None:
    """Make and check a copy of `path` with these `genres`; none remove the tag.

    Returns None if the file says so already. `known` saves a pass over a file that has not
    changed since its audio was digested. A link is followed to its file. The original is not
    touched, and no copy stays after an error: ReadOnly, Hardlinked, NoSpace, FileChanged,
    Unreadable, NotAudio, TagsUnsupported (tags broken, or unable to hold these names), or
    UnsafeWrite (the copy failed a check).
    """
    replacement = Replacement.beside(resolve_links(path))
    try:
        return _prepare(replacement, genres, options, known)
    except BaseException:
        replacement.abandon()
        raise


def restore_bytes(
    path: Path,
    delta: bytes,
    before_hash: str,
    after_hash: str,
    *,
    mtime_ns: int,
    options: TagOptions | None = None,
) -> os.stat_result:
    """Give `path` back the very bytes, and the modification time, that it had before a write.

    Returns the file's status; a file that is as it was already is left alone. Raises EditedSince
    if the file is not the one that was written (see `restore_genre`), UnsafeWrite if the delta
    does not give the former bytes, and what `prepare_write` raises about disk and permissions.
    """
    path = resolve_links(path)
    replacement = Replacement.beside(path)
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            current = hash_file(file).hex()
            if current == before_hash:
                return status
            if current != after_hash:
                raise EditedSince(path, "was changed after its genre was written")
            _check_replaceable(path, status, options or TagOptions())
            try:
                replacement.fill(
                    file, lambda copy: apply_delta(path, delta, copy), mtime_ns=mtime_ns
                )
            except DeltaError as error:
                raise UnsafeWrite(path, f"its former bytes are not restored: {error}") from error
            if _hash_path(replacement.temp_path).hex() != before_hash:
                raise UnsafeWrite(path, "its former bytes could not be restored exactly")
        return replacement.commit()
    except BaseException:
        replacement.abandon()
        raise


def restore_genre(
    path: Path, before: tuple[str, ...], after: tuple[str, ...], options: TagOptions
) -> PreparedWrite | None:
    """Prepare to set the genre of an edited file back from our `after` to its former `before`.

    Returns None if it is `before` already. Raises EditedSince if it is neither: the user chose a
    genre, and that stays.
    """
    genres = read_tags(path, options).genres
    if genres not in {before, after}:
        raise EditedSince(path, f"has got another genre since: {'; '.join(genres) or 'none'}")
    return prepare_write(path, before, options)


# What the file says


def _container(path: Path, file: BinaryIO) -> Container:
    if not os.fstat(file.fileno()).st_size:
        raise NotAudio(path, "is empty")
    return find_container(file, path.suffix)


def _clean(found: Found, options: TagOptions) -> FileTags:
    def first(field: str) -> str | None:
        texts = (text.strip() for text in found.texts.get(field, ()))
        return next((text for text in texts if text), None)

    return FileTags(
        format=found.format,
        genres=_split(found.format, found.texts.get("genre", []), options),
        album=first("album"),
        album_artist=first("album_artist"),
        title=first("title"),
        artist=first("artist"),
    )


def _split(format_name: str, values: list[str], options: TagOptions) -> tuple[str, ...]:
    """Return the genres that stand in `values`, which are as they are in the file."""
    pieces = values
    for separator in ("\0", ";", _separator(format_name, options)):
        if separator:
            pieces = [
                part for piece in pieces for part in piece.split(separator.strip() or separator)
            ]
    names = [piece.strip() for piece in pieces]
    if format_name.startswith("id3"):
        names = [name.strip() for piece in names for name in resolve_id3_reference(piece)]
    return tuple(dict.fromkeys(name for name in names if name))


def _separator(format_name: str, options: TagOptions) -> str | None:
    """Return what joins several genres in this format, None if they are several values."""
    if format_name in _JOINED:
        return options.id3v23_separator
    return next((text for name, text in options.join.items() if name == format_name), None)


def _values(genres: tuple[str, ...], options: TagOptions) -> Callable[[str], list[str]]:
    """Return the function from a tag format to the values that hold `genres` in it."""

    def values(format_name: str) -> list[str]:
        separator = _separator(format_name, options)
        return [separator.join(genres)] if separator and genres else list(genres)

    return values


def _check_names(
    path: Path, format_name: str, genres: tuple[str, ...], options: TagOptions
) -> None:
    """Refuse names that would not be read back as they are: "17" in ID3, "A; B" anywhere."""
    for genre in genres:
        back = _split(format_name, [genre], options)
        if back != (genre,):
            meaning = " and ".join(map(repr, back)) or "nothing"
            raise TagsUnsupported(
                path,
                f"the genre name {genre!r} would be read as {meaning} in its {format_name} tag",
            )
    if len(set(genres)) != len(genres):
        raise TagsUnsupported(path, f"a genre is given twice: {'; '.join(genres)}")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what a damaged container raises into TagsUnsupported."""
    try:
        yield
    except (ContainerError, struct.error, IndexError, UnicodeError) as error:
        raise TagsUnsupported(path, str(error)) from error


# The copy


def _check_replaceable(path: Path, status: os.stat_result, options: TagOptions) -> None:
    if status.st_nlink > 1 and options.hardlinks == "skip":
        raise Hardlinked(
            path, f"has {status.st_nlink} names (hard links), which a new file would part; skipped"
        )
    check_writable(path, status)


def _prepare(
    replacement: Replacement,
    genres: tuple[str, ...],
    options: TagOptions,
    known: KnownAudio | None,
) -> PreparedWrite | None:
    """Fill and check the replacement. On an error the caller abandons it."""
    path = replacement.path
    with open_regular(path) as file, ThreadPoolExecutor(2, "hash") as pool:
        with _refusing(path):
            container = _container(path, file)
            found = container.read(file)
            before = _clean(found, options)
            if before.genres == genres:
                return None
            values = _values(genres, options)
            _check_names(path, found.format, genres, options)
            splices = container.edit(file, values)
        status = os.fstat(file.fileno())
        _check_replaceable(path, status, options)
        before_hash = pool.submit(hash_file, file)  # hashing is most of the work
        opinion = _second_opinion(path, path, found.format)
        if known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            digest = known.digest
        else:
            digest = audio_digest(path)
        replacement.fill(
            file,
            lambda copy: _write_spliced(file, copy, splices),
            mtime_ns=status.st_mtime_ns if options.keep_mtime else None,
        )
        after_hash = pool.submit(_hash_path, replacement.temp_path)
        _check_copy(replacement, container, found, opinion, values, genres, options)
        _check_digest(replacement, digest)
        delta = make_delta(path, replacement.temp_path, old_hash=before_hash.result())
        prepared = PreparedWrite(
            replacement=replacement,
            format=found.format,
            before=before.genres,
            after=genres,
            before_hash=before_hash.result().hex(),
            after_hash=after_hash.result().hex(),
            delta=delta,
            digest=digest,
        )
        replacement.check_unchanged()
    return prepared


def _write_spliced(file: BinaryIO, copy: BinaryIO, splices: list[Splice]) -> None:
    """Write to `copy` what `file` becomes by the edit."""
    at = 0
    for splice in sorted(splices, key=lambda splice: splice.offset):
        copy_range(file, copy, at, splice.offset - at)
        write_all(copy, splice.data)
        at = splice.offset + splice.length
    copy_range(file, copy, at, os.fstat(file.fileno()).st_size - at)


def _hash_path(path: Path) -> bytes:
    with open_regular(path) as file:
        return hash_file(file)


def _check_copy(
    replacement: Replacement,
    container: Container,
    found: Found,
    opinion: _Opinion,
    values: Callable[[str], list[str]],
    genres: tuple[str, ...],
    options: TagOptions,
) -> None:
    """Raise UnsafeWrite unless the copy differs by the genre alone, by us and by mutagen."""
    path = replacement.path
    try:
        with open_regular(replacement.temp_path) as copy:
            after = container.read(copy)
    except (ContainerError, struct.error, IndexError, UnicodeError) as error:
        raise UnsafeWrite(path, f"the edited copy is damaged: {error}") from error
    if after.format != found.format or _clean(after, options).genres != genres:
        raise UnsafeWrite(path, "the edited copy does not say the new genre")
    others = [{**one.texts, "genre": []} for one in (found, after)]
    if others[0] != others[1] or list(after.rest[: len(found.rest)]) != list(found.rest):
        raise UnsafeWrite(path, "the edit would have changed more than the genre")
    second = _second_opinion(path, replacement.temp_path, found.format)
    if second.genres != values(found.format):
        raise UnsafeWrite(path, f"mutagen reads the genre of the copy as {second.genres}")
    if second.others != opinion.others or not opinion.sounds_like(second):
        raise UnsafeWrite(path, "mutagen finds more than the genre changed in the copy")


def _check_digest(replacement: Replacement, digest: str) -> None:
    try:
        same = audio_digest(replacement.temp_path) == digest
    except FileError as error:
        raise UnsafeWrite(replacement.path, f"the edited copy has no audio: {error}") from error
    if not same:
        raise UnsafeWrite(replacement.path, "the audio of the edited copy is not the same")


# The second opinion: mutagen's


@dataclass(frozen=True)
class _Opinion:
    genres: list[str]
    others: object  # all other tags, comparable
    info: tuple[object, ...]  # what the audio is
    length: float  # seconds

    def sounds_like(self, other: _Opinion) -> bool:
        """Tell whether both are the same kind of audio, and as long."""
        return self.info == other.info and abs(self.length - other.length) < _LENGTH_TOLERANCE


def _second_opinion(name: Path, path: Path, format_name: str) -> _Opinion:
    """Return what mutagen reads in `path`. Errors speak of `name`."""
    try:
        file = mutagen.File(path)
        tags = None if file is None else file.tags
        if format_name == "apev2" and not isinstance(tags, APEv2):
            try:
                tags = APEv2(path)
            except APENoHeaderError:
                tags = None
        genres, others = _take_genre(tags)
    except Exception as error:  # mutagen raises anything over damaged tags
        raise TagsUnsupported(name, f"mutagen cannot read its tags: {error}") from error
    if file is None:
        raise TagsUnsupported(name, "mutagen does not know its format")
    info = file.info
    audio = [getattr(info, key, None) for key in ("sample_rate", "channels", "bits_per_sample")]
    return _Opinion(genres, others, (type(file), *audio), float(info.length))


def _take_genre(tags: Any) -> tuple[list[str], object]:  # noqa: ANN401 - mutagen is not typed
    """Return mutagen's genres as they are in the file, and all other tags in comparable form."""
    if tags is None:
        return [], {}
    mine = {"tcon", "genre", "\xa9gen", "wm/genre"}
    if isinstance(tags, list):  # Vorbis comments, ASF attributes
        genres = [str(value) for key, value in tags if key.lower() in mine]
        # A comment without "=" gets a name with its place in it, which an edit may move.
        return genres, [
            (_PLACE.sub("unknown", key), _plain(value))
            for key, value in tags
            if key.lower() not in mine
        ]
    found: list[str] = []
    others = {}
    for key, value in tags.items():
        if key.lower() in mine:
            found = [str(text) for text in value]
        else:
            others[key] = _plain(value)
    return found, others


def _plain(value: Any) -> object:  # noqa: ANN401 - mutagen is not typed
    """Return a value of mutagen's as what compares by content: not all its classes do."""
    if isinstance(value, bytes) and type(value) is not bytes:  # MP4's covers and free forms
        return bytes(value), vars(value)
    if isinstance(value, (str, bytes, int, float, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return type(value).__name__, {key: _plain(item) for key, item in vars(value).items()}
