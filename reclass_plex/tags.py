"""Genres and moods in files: read, and written so that nothing else changes, nothing can be lost.

A write is prepared on a copy beside the file, checked there, and only then takes the file's
place; the caller journals in between. What the copy must prove, against the file:

1. its audio is the same, byte for byte (`audio.audio_digest`, which has no part in the edit);
2. our own reading finds the wanted genre or moods, and every other piece of its tags unchanged;
3. mutagen, which had no part in the edit, finds the same.

The edit itself is made on the tags' bytes (`reclass_plex.containers`), not by mutagen, because
mutagen writes a tag anew from what it understood of it: frames that it cannot parse or does not
know, flags, order, padding, invalid text and ID3v2.2 as a whole would silently go.

How several genres (or moods) stand in a tag: as several values where the format has them, unless
`TagOptions.join` asks for one text; ID3v2.2 and ID3v2.3 have none, so they are always joined.
Joined values are read as several, split at ";", NUL and the configured text. "/" is no separator
unless configured: "R&B/Soul" and "Hip-Hop/Rap" are single names, and splitting them could not be
taken back.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from reclass_plex.audio import audio_digest
from reclass_plex.config import TagOptions
from reclass_plex.containers import (
    EDITABLE,
    Container,
    ContainerError,
    Edits,
    Found,
    Splice,
    Values,
    find_container,
)
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
from reclass_plex.second_opinion import Opinion, second_opinion

__all__ = [
    "FileTags",
    "KnownAudio",
    "PreparedWrite",
    "prepare_write",
    "read_tags",
    "restore_bytes",
    "restore_names",
]

_JOINED = {"id3v2.2", "id3v2.3"}  # formats without several values
_LONGEST_TEXT = 1 << 20  # characters of one field


@dataclass(frozen=True)
class FileTags:
    """What a file says. `format` is that of the tag that holds, or would hold, its genre.

    `genres` are names: numbers are resolved, joined values split, in order, without repetitions.
    So are `moods`, where numbers mean nothing.
    """

    format: str
    genres: tuple[str, ...]
    album: str | None = None
    album_artist: str | None = None
    title: str | None = None
    artist: str | None = None
    moods: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownAudio:
    """The audio digest of a file that had this size (bytes) and modification time (ns)."""

    digest: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class PreparedWrite:
    """A checked copy with another genre or other moods, ready to take its file's place.

    `before` and `after` are the genres, `moods_before` and `moods_after` the moods; the hashes are
    BLAKE2b-16 of the whole files in hexadecimal; `delta` restores the former bytes from the new
    file; `digest` is the audio's.
    """

    replacement: Replacement
    format: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_hash: str
    after_hash: str
    delta: bytes
    digest: str
    moods_before: tuple[str, ...] = ()
    moods_after: tuple[str, ...] = ()

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
    """Return genres and moods of `path`, and what groups it into albums. Reads its tags only.

    `options` tell which text joins genres. Raises Unreadable, FileChanged, NotAudio (empty file)
    or TagsUnsupported.
    """
    with open_regular(path) as file, _refusing(path):
        return _clean(_container(path, file).read(file, EDITABLE), options or TagOptions())


def prepare_write(
    path: Path,
    genres: tuple[str, ...],
    options: TagOptions,
    *,
    moods: tuple[str, ...] | None = None,
    known: KnownAudio | None = None,
) -> PreparedWrite | None:
    """Make and check a copy of `path` with these `genres`; none remove the tag.

    So with `moods`, but for None they stay. What says so already is not touched; returns None if
    both do. `known` saves a pass over a file that has not
    changed since its audio was digested. A link is followed to its file. The original is not
    touched, and no copy stays after an error: ReadOnly, Hardlinked, NoSpace, FileChanged,
    Unreadable, NotAudio, TagsUnsupported (tags broken, or unable to hold these names), or
    UnsafeWrite (the copy failed a check).
    """
    replacement = Replacement.beside(resolve_links(path))
    try:
        return _prepare(replacement, genres, moods, options, known)
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
    if the file is not the one that was written (see `restore_names`), UnsafeWrite if the delta
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


def restore_names(
    path: Path,
    before: tuple[str, ...],
    after: tuple[str, ...],
    options: TagOptions,
    *,
    moods: tuple[str, ...] | None = None,
) -> tuple[FileTags, PreparedWrite | None]:
    """Prepare to set an edited file's genre back from our `after` to its former `before`, and to
    remove the `moods` that we wrote.

    Returns what the file says now, and no copy if it is as it was. What is ours no more is the
    user's choice and stays. Raises EditedSince if nothing is ours.
    """
    found = read_tags(path, options)
    genre_is_ours = before != after and found.genres in {before, after}
    moods_are_ours = moods is not None and found.moods in {(), moods}
    if not genre_is_ours and not moods_are_ours:
        what, names = ("genre", found.genres) if before != after else ("mood", found.moods)
        raise EditedSince(path, f"has got another {what} since: {'; '.join(names) or 'none'}")
    genres = before if genre_is_ours else found.genres
    return found, prepare_write(path, genres, options, moods=() if moods_are_ours else None)


# What the file says


def _container(path: Path, file: BinaryIO) -> Container:
    if not os.fstat(file.fileno()).st_size:
        raise NotAudio(path, "is empty")
    return find_container(file, path.suffix)


def _clean(found: Found, options: TagOptions) -> FileTags:
    for field, texts in found.texts.items():
        if sum(map(len, texts)) > _LONGEST_TEXT:  # it would be split, kept and shown
            raise ContainerError(f"its {field} is over {_LONGEST_TEXT} characters long")

    def first(field: str) -> str | None:
        texts = (text.strip() for text in found.texts.get(field, ()))
        return next((text for text in texts if text), None)

    return FileTags(
        format=found.format,
        genres=_split("genre", found.format, found.texts.get("genre", []), options),
        album=first("album"),
        album_artist=first("album_artist"),
        title=first("title"),
        artist=first("artist"),
        moods=_split("mood", found.format, found.texts.get("mood", []), options),
    )


def _names(tags: FileTags, field: str) -> tuple[str, ...]:
    return tags.genres if field == "genre" else tags.moods


def _split(field: str, format_name: str, values: list[str], options: TagOptions) -> tuple[str, ...]:
    """Return the genres or moods that stand in `values`, which are as they are in the file."""
    pieces = values
    for separator in ("\0", ";", _separator(format_name, options)):
        if separator:
            pieces = [
                part for piece in pieces for part in piece.split(separator.strip() or separator)
            ]
    names = [piece.strip() for piece in pieces]
    if field == "genre" and format_name.startswith("id3"):
        names = [name.strip() for piece in names for name in resolve_id3_reference(piece)]
    return tuple(dict.fromkeys(name for name in names if name))


def _separator(format_name: str, options: TagOptions) -> str | None:
    """Return what joins several genres in this format, None if they are several values."""
    if format_name in _JOINED:
        return options.id3v23_separator
    return next((text for name, text in options.join.items() if name == format_name), None)


def _values(names: tuple[str, ...], options: TagOptions) -> Values:
    """Return the function from a tag format to the values that hold `names` in it."""

    def values(format_name: str) -> list[str]:
        separator = _separator(format_name, options)
        return [separator.join(names)] if separator and names else list(names)

    return values


def _check_names(
    path: Path, field: str, format_name: str, names: tuple[str, ...], options: TagOptions
) -> None:
    """Refuse names that would not be read back as they are: "17" in ID3, "A; B" anywhere."""
    for name in names:
        back = _split(field, format_name, [name], options)
        if back != (name,):
            meaning = " and ".join(map(repr, back)) or "nothing"
            raise TagsUnsupported(
                path,
                f"the {field} name {name!r} would be read as {meaning} in its {format_name} tag",
            )
    if len(set(names)) != len(names):
        raise TagsUnsupported(path, f"a {field} is given twice: {'; '.join(names)}")


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
    moods: tuple[str, ...] | None,
    options: TagOptions,
    known: KnownAudio | None,
) -> PreparedWrite | None:
    """Fill and check the replacement. On an error the caller abandons it."""
    path = replacement.path
    wanted = {"genre": genres} if moods is None else {"genre": genres, "mood": moods}
    with open_regular(path) as file, ThreadPoolExecutor(2, "hash") as pool:
        with _refusing(path):
            container = _container(path, file)
            before = _clean(container.read(file, EDITABLE), options)
            wanted = {
                field: names for field, names in wanted.items() if names != _names(before, field)
            }
            if not wanted:
                return None
            for field, names in wanted.items():
                _check_names(path, field, before.format, names, options)
            found = container.read(file, wanted)
            edits = {field: _values(names, options) for field, names in wanted.items()}
            splices = container.edit(file, edits)
        status = os.fstat(file.fileno())
        _check_replaceable(path, status, options)
        before_hash = pool.submit(hash_file, file)  # hashing is most of the work
        opinion = second_opinion(path, path, found.format, edits)
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
        _check_copy(replacement, container, found, opinion, edits, wanted, options)
        _check_digest(replacement, digest)
        delta = make_delta(path, replacement.temp_path, old_hash=before_hash.result())
        prepared = PreparedWrite(
            replacement=replacement,
            format=found.format,
            before=before.genres,
            after=wanted.get("genre", before.genres),
            moods_before=before.moods,
            moods_after=wanted.get("mood", before.moods),
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
    opinion: Opinion,
    edits: Edits,
    wanted: Mapping[str, tuple[str, ...]],
    options: TagOptions,
) -> None:
    """Raise UnsafeWrite unless the copy differs by what is wanted alone, by us and by mutagen."""
    path = replacement.path
    try:
        with open_regular(replacement.temp_path) as copy:
            after = container.read(copy, wanted)
    except (ContainerError, struct.error, IndexError, UnicodeError) as error:
        raise UnsafeWrite(path, f"the edited copy is damaged: {error}") from error
    before, now = _clean(found, options), _clean(after, options)
    for field in EDITABLE:
        if after.format != found.format or (
            _names(now, field) != wanted.get(field, _names(before, field))
        ):
            raise UnsafeWrite(path, f"the edited copy does not say the {field} that it should")
    # Names were compared; how they stand in the file may differ where a new tag takes them over.
    others = [{**one.texts, **{key: [] for key in EDITABLE}} for one in (found, after)]
    what = " and ".join(wanted)
    if others[0] != others[1] or list(after.rest[: len(found.rest)]) != list(found.rest):
        raise UnsafeWrite(path, f"the edit would have changed more than the {what}")
    second = second_opinion(path, replacement.temp_path, found.format, edits)
    for field, values in edits.items():
        if second.names[field] != values(found.format):
            text = f"mutagen reads the {field} of the copy as {second.names[field]}"
            raise UnsafeWrite(path, text)
    if second.others != opinion.others or not opinion.sounds_like(second):
        raise UnsafeWrite(path, f"mutagen finds more than the {what} changed in the copy")


def _check_digest(replacement: Replacement, digest: str) -> None:
    try:
        same = audio_digest(replacement.temp_path) == digest
    except FileError as error:
        raise UnsafeWrite(replacement.path, f"the edited copy has no audio: {error}") from error
    if not same:
        raise UnsafeWrite(replacement.path, "the audio of the edited copy is not the same")
