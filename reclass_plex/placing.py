"""Putting files into a tree: copied, linked or moved, whole or not at all, and never over another.

A copy is written beside its place under a hidden name, made durable and read again; then a row in
the store says what is about to happen, and one rename that replaces nothing puts it there. A move
within a file system is that rename alone; one to another file system is such a copy, after which
the original, if it is still what was copied, is removed. Killed at any instant there is the file at
its old place or at its new one, and `repair` settles which; a half copy is never in the tree.
All of this needs the right to change files (`Store.writing_files`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from reclass_plex.errors import FileChanged, FileError, NoSpace, Unreadable, printable
from reclass_plex.files import (
    SPACE_MARGIN,
    FileStamp,
    copy_range,
    hash_file,
    naming_errors,
    open_regular,
    sync_folder,
    temporary_name,
)
from reclass_plex.names import numbered
from reclass_plex.placements import How, Placement, Placements

MOST_NUMBERS = 10_000  # files of one name
_RENAME_NOREPLACE = 1  # of linux/fs.h
_AT_FDCWD = -100


@dataclass(frozen=True)
class Placed:
    """What became of one file: where it is in the tree, and whether it was put there just now.

    `how` says it to people where it was not.
    """

    source: Path
    target: Path
    new: bool
    how: str = ""


@dataclass(frozen=True)
class TakenBack:
    """What became of one placement that was to be taken back; `how` says it to people."""

    placement: Placement
    restored: bool
    how: str


@dataclass(frozen=True)
class Order:
    """A file that is to be put in its place; `undoes` is the placement that this takes back."""

    run_id: int
    source: Path
    target: Path
    how: How
    undoes: int | None = None


def place(store: Placements, order: Order) -> Placed:
    """Put a file at its target, or beside it under a numbered name if there is another file.

    If the same content is there already nothing happens. Raises FileError; the file is then as it
    was, and nothing is in the tree, but for one that changed while it was moved to another file
    system: then the copy is there, and the file stays, too.
    """
    source, target = order.source, order.target
    with open_regular(source) as file:
        made = _make_folders(target.parent)
        try:
            content = _Content(file)
            for candidate in _candidates(target):
                found = _compare(content, candidate)
                if found == "same":
                    return Placed(source, candidate, False, "the same file is there already")
                if found == "free" and _put(store, replace(order, target=candidate), content, made):
                    return Placed(source, candidate, True)
            raise Unreadable(source, f"{printable(target)} is taken, with every number")
        except BaseException:
            _remove_empty(target.parent, made)
            raise


def would_place(source: Path, target: Path, taken: Collection[Path] = ()) -> Placed:
    """Say what `place` would do now, where others will have `taken` their places."""
    with open_regular(source) as file:
        content = _Content(file)
        for candidate in _candidates(target):
            found = _compare(content, candidate)
            if found == "same":
                return Placed(source, candidate, False, "the same file is there already")
            if found == "free" and candidate not in taken:
                return Placed(source, candidate, True)
    raise Unreadable(source, f"{printable(target)} is taken, with every number")


def repair(store: Placements) -> Iterator[str]:
    """Settle what a killed process began; yield a line for people about each."""
    for one in store.pending():
        name = printable(one.target)
        arrived = holds(one.target, one.hash)
        if one.temp_path is not None and one.temp_path != one.target:
            with contextlib.suppress(OSError):
                one.temp_path.unlink()
        if not arrived:
            store.settle("abandoned", one.id)
            _remove_empty(one.target.parent, one.made)
            yield f"{name}: it was interrupted before it was in place"
            continue
        if one.how == "move" and one.temp_path is not None and holds(one.source, one.hash):
            with contextlib.suppress(OSError):
                one.source.unlink()
        if (undone := store.undone_by(one)) is not None:  # it was on its way back
            store.settle("undone", undone, one.id)
            yield f"{name}: it was moved back before it was interrupted"
            continue
        store.settle("done", one.id)
        yield f"{name}: it was in place when it was interrupted; it can be undone"


def take_back(
    store: Placements,
    placements: Sequence[Placement],
    run_id: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TakenBack]:
    """Take placements back, in the given order: copies and links are removed, moves moved back.

    What was changed since stays. Never raises FileError: the results say what is wrong. `run_id` is
    the run of the undo itself.
    """
    for one in placements:
        if should_stop():
            return
        try:
            how = _take_back(store, one, run_id)
        except FileError as error:
            yield TakenBack(one, False, f"kept: {error.reason}")
            continue
        except OSError as error:
            yield TakenBack(one, False, f"kept: {error.strerror or error}")
            continue
        store.settle("undone", one.id)
        _remove_empty(one.target.parent, one.made)
        yield TakenBack(one, True, how)


def free_bytes(folder: Path) -> int | None:
    """Return what is free where `folder` is or will be; None if that cannot be told."""
    disk = os.statvfs(nearest(folder))
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def nearest(folder: Path) -> Path:
    """Return `folder`, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if os.path.isdir(one))  # noqa: PTH112


def remove_empty_folders(folders: Iterable[Path], root: Path) -> None:
    """Remove these folders and those above them, as far as they are empty and below `root`."""
    for folder in sorted(set(folders), key=lambda one: len(one.parts), reverse=True):
        for one in (folder, *folder.parents):
            if root not in one.parents:
                break
            try:
                one.rmdir()
            except OSError:
                break


class _Content:
    """An open file, and its hash once somebody asks."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.stamp = FileStamp.of(os.fstat(file.fileno()))

    @functools.cached_property
    def hash(self) -> str:
        return hash_file(self.file).hex()


def _candidates(target: Path) -> Iterator[Path]:
    yield target
    for number in range(2, MOST_NUMBERS):
        yield target.with_name(numbered(target.name, number))


def _compare(content: _Content, path: Path) -> str:
    """Return "free", "same" or "other" for what is at `path`."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "free"
    except OSError as error:
        raise Unreadable(path, (error.strerror or str(error)).lower()) from error
    if not stat.S_ISREG(status.st_mode) or status.st_size != content.stamp.size:
        return "other"
    return "same" if holds(path, content.hash) else "other"


def holds(path: Path, wanted: str) -> bool:
    """Tell whether there is a file at `path`, no link, with this content."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with open_regular(path) as file:
            return hash_file(file).hex() == wanted
    except (FileError, OSError):
        return False


def _put(store: Placements, order: Order, content: _Content, made: Path | None) -> bool:
    """Put an open file in its place; return False if something else came there meanwhile."""
    source, target = order.source, order.target
    across = _real(source).parent.stat().st_dev != target.parent.stat().st_dev
    if not across or order.how == "copy":
        try:
            return _put_by(store, order, content, made, by_copy=order.how == "copy")
        except OSError as error:
            if error.errno != errno.EXDEV:  # two mounts of one file system, say
                raise
    if order.how == "hardlink":
        raise Unreadable(
            source, "is on another file system, to which no hard link can lead; use --copy"
        )
    return _put_by(store, order, content, made, by_copy=True)


def _put_by(
    store: Placements, order: Order, content: _Content, made: Path | None, *, by_copy: bool
) -> bool:
    source, target = order.source, order.target
    temp = target.with_name(temporary_name(target.name)) if by_copy else None
    try:
        if temp is not None:
            _copy(source, content, temp)
        content.hash  # noqa: B018 - read now, so that the next line holds for it too
        if FileStamp.of(source.stat()) != content.stamp:
            raise FileChanged(source, "changed while it was read; try again")
        entry = store.begin(
            order.run_id,
            source,
            target,
            order.how,
            size=content.stamp.size,
            hash=content.hash,
            temp_path=temp,
            made=made,
        )
        try:
            if order.how == "hardlink":
                os.link(_real(source), target)
            else:
                rename_new(temp or source, target)
        except OSError as error:
            store.settle("abandoned", entry)
            if isinstance(error, FileExistsError):
                return False
            if error.errno == errno.EXDEV:
                raise
            with naming_errors(target, writing=True):
                raise
    finally:
        if temp is not None:
            with contextlib.suppress(OSError):
                temp.unlink()
    sync_folder(target.parent)
    try:
        if order.how == "move":
            if temp is not None:
                _remove_moved(source, content.stamp)
            sync_folder(source.parent)
    finally:
        if order.undoes is None:
            store.settle("done", entry)
        else:
            store.settle("undone", entry, order.undoes)
    return True


def _real(source: Path) -> Path:
    return Path(os.path.realpath(source))


def _copy(source: Path, content: _Content, temp: Path) -> None:
    """Write a copy, durably, and read it again."""
    size = content.stamp.size
    free = free_bytes(temp.parent)
    if free is not None and free < size + SPACE_MARGIN:
        raise NoSpace(source, f"needs {size >> 20} MiB of free space, {free >> 20} are left")
    status = os.fstat(content.file.fileno())
    try:
        with naming_errors(temp, writing=True):
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            with os.fdopen(os.open(temp, flags, 0o600), "w+b", buffering=0) as copy:
                copy_range(content.file, copy, 0, size)
                with contextlib.suppress(OSError):  # only root may, and not everywhere
                    os.fchown(copy.fileno(), status.st_uid, status.st_gid)
                with contextlib.suppress(OSError):  # mode, times, attributes, where there are any
                    shutil.copystat(source, temp)
                os.fsync(copy.fileno())
                with contextlib.suppress(OSError, AttributeError):  # from the disk, not from memory
                    os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if hash_file(copy).hex() != content.hash:
                    raise OSError(errno.EIO, "the copy does not read back as it was written")
    except BaseException:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise


def _remove_moved(source: Path, before: FileStamp) -> None:
    """Remove the original of a copy that is in place, if it is still what was copied."""
    with naming_errors(source, writing=True):
        if FileStamp.of(source.lstat()) != before:
            raise FileChanged(source, "changed while it was moved, so it stays, beside its copy")
        source.unlink()


def _take_back(store: Placements, one: Placement, run_id: int) -> str:
    if not os.path.lexists(one.target):
        if one.how != "move" and os.path.lexists(one.source):
            return "it is gone already"
        raise FileChanged(one.target, "it is not there any more")
    if not holds(one.target, one.hash):
        raise FileChanged(one.target, "it was changed since")
    if one.how != "move":
        if not _is_original(one):
            raise FileChanged(one.target, "its original is not there any more")
        with naming_errors(one.target, writing=True):
            one.target.unlink()
        sync_folder(one.target.parent)
        return "removed"
    if os.path.lexists(one.source):
        raise FileChanged(one.target, f"there is another file at {printable(one.source)}")
    moved = place(store, Order(run_id, one.target, one.source, "move", undoes=one.id))
    if moved.target != one.source:  # somebody was quicker
        return f"moved back to {printable(moved.target)}"
    return "moved back"


def _is_original(one: Placement) -> bool:
    """Tell whether what a copy was made from is there, if with other tags."""
    if not os.path.lexists(one.source):
        return False
    real = _real(one.source)
    if real == _real(one.target):
        return False
    if holds(real, one.hash):
        return True
    from reclass_plex.audio import audio_digest

    try:
        return audio_digest(real) == audio_digest(one.target)
    except FileError:
        return False


def _make_folders(folder: Path) -> Path | None:
    """Make a folder and those above it; return the topmost that was made."""
    first = None
    missing = list(
        itertools.takewhile(lambda one: not os.path.lexists(one), (folder, *folder.parents))
    )
    with naming_errors(folder, writing=True):
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                one.mkdir()
                first = first or one
                sync_folder(one.parent)
        if not folder.is_dir():
            raise Unreadable(folder, "is no folder")
    return first


def _remove_empty(folder: Path, made: Path | None) -> None:
    """Remove folders that were made for a file, as far as they are empty."""
    if made is not None:
        remove_empty_folders([folder], made.parent)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file to a name that nothing has. Raises OSError, FileExistsError if it has."""
    rename = _renameat2()
    if rename is not None:
        done = rename(
            *(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
        )
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
            raise OSError(code, os.strerror(code), os.fspath(target))
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}:
            raise
        # No hard links here either: between the look and the rename another could come.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)  # noqa: PTH104 - rename(2), named as such
    else:
        source.unlink()


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return found
