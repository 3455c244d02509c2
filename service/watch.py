"""New music in a folder: told by inotify, or found by looking, and passed on when it is stable.

A file is passed on when
1. its name is that of music, and not one of our temporary copies or a NAS's own files;
2. its size and mtime rest for `settle_seconds`;
3. nobody has it open for writing, as far as /proc tells (at most for `OPEN_PATIENCE_SECONDS`);
4. the store does not know it with just this size and mtime: our own writes are no news;
5. no other file in its folder is still on its way (at most for `ALBUM_SECONDS`): the tracks of an
   album that is being downloaded are to vote together.

`Settling` decides that and knows neither clock nor thread. `FolderWatch` feeds it for one folder,
in a thread of its own, so that a network mount that hangs stops nobody else. The sink is called
with a path and a reason: "new" (a file), or "gone" (a file, or a folder with all below it). A move
is both; that the audio is the same is for the store to tell, by its digest.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import queue
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
    FileSystemMovedEvent,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver
from watchdog.version import VERSION_INFO, VERSION_STRING

from reclass_plex.errors import ReclassError, printable
from reclass_plex.files import AUDIO_SUFFIXES, FoundFile, find_audio_files, is_junk, is_leftover
from reclass_plex.mounts import network_mounts

log = logging.getLogger(__name__)

Reason = Literal["new", "gone"]
Sink = Callable[[Path, str], object]
IsKnown = Callable[[Path, int, int], bool]  # path, size in bytes, mtime in ns

# Before, a moved folder is no longer heard, and a burst beyond the kernel's queue is lost unnoticed
# (tests/test_watch.py fails with 6.0).
HEARS_ALL_SINCE = (7, 0, 0)  # version of watchdog

SETTLE_SECONDS = 10.0
POLL_SECONDS = 60.0
POLL_SHARE = 50  # a walk through the folder takes at most this part (1/50) of the time
OPEN_PATIENCE_SECONDS = 600.0  # torrent clients keep finished files open for writing
ALBUM_SECONDS = 300.0  # a file that rests waits for others that come into its folder
ANCHOR_SECONDS = 2.0  # between looks whether the folder is still the one that it was
SPARE_SECONDS = 60.0  # between looks whether the kernel still takes watches
TICK_SECONDS = 0.5
MAX_PAUSE_SECONDS = 300.0  # between attempts while the sink fails (a full disk)
MAX_PASSED = 1_000  # files remembered as passed on; one forgotten is merely asked about again
MAX_ANCHOR_NAMES = 100

# No event for each write or each reader: the stamps tell of those.
_EVENTS: list[type[FileSystemEvent]] = [
    *(FileCreatedEvent, FileClosedEvent, FileMovedEvent, FileDeletedEvent),
    *(DirCreatedEvent, DirMovedEvent, DirDeletedEvent),
]


_FOLDER = (-1, 0)  # the stamp of what is no regular file
_UNKNOWN = (-1, 1)  # the stamp of what cannot be looked at now


@dataclass(frozen=True)
class News:
    """What is to be passed on."""

    path: Path
    reason: Reason


@dataclass
class _Pending:
    """A path of which something was heard; `stamp` is its size and mtime in ns, None if absent."""

    stamp: tuple[int, int] | None
    since: float  # the stamp has been so since
    due: float


class Settling:
    """Paths of which something was heard, until they rest. Times are seconds of any one clock."""

    def __init__(self, settle_seconds: float, is_known: IsKnown) -> None:
        self._settle = settle_seconds
        self._is_known = is_known
        # All wait equally long, so the order of insertion is that in which they are due.
        self._pending: OrderedDict[Path, _Pending] = OrderedDict()
        self._passed: OrderedDict[Path, tuple[int, int]] = OrderedDict()
        self._rested: dict[Path, float] = {}  # wait for their folder, since when

    def __len__(self) -> int:
        return len(self._pending) + len(self._rested)

    def notice(self, path: Path, now: float) -> None:
        """Something happened to `path`: look at it when it has rested."""
        entry = self._pending.pop(path, None)
        stamp = _stamp(path)
        since = entry.since if entry is not None and entry.stamp == stamp else now
        self._pending[path] = _Pending(stamp, since, now + self._settle)

    def step(self, now: float) -> list[News]:
        """Return what has come to rest. What changed, or is open for writing, waits again.

        Raises what `is_known` does; all that was due then still is.
        """
        due: dict[Path, _Pending] = {}
        while self._pending:
            path, entry = next(iter(self._pending.items()))
            if entry.due > now:
                break
            del self._pending[path]
            stamp = _stamp(path)
            if stamp == entry.stamp:
                due[path] = entry
            else:
                self._pending[path] = _Pending(stamp, now, now + self._settle)
        try:
            news = self._judge(due, now)
        except BaseException:
            self._pending = OrderedDict(due | self._pending)
            raise
        return news + self._complete(now)

    def _judge(self, due: dict[Path, _Pending], now: float) -> list[News]:
        """Return what is gone of what has rested; take up the rest of it."""
        news = [News(path, "gone") for path, entry in due.items() if entry.stamp is None]
        busy = open_for_writing([path for path, entry in due.items() if entry.stamp is not None])
        for path, entry in due.items():
            if entry.stamp is None or entry.stamp == _FOLDER:
                continue
            patient = now - entry.since < OPEN_PATIENCE_SECONDS
            if (path in busy or entry.stamp == _UNKNOWN) and patient:
                self._pending[path] = _Pending(entry.stamp, entry.since, now + self._settle)
            elif entry.stamp == _UNKNOWN:
                continue  # a walk reports it with its cause
            elif self._passed.get(path) != entry.stamp and not self._is_known(path, *entry.stamp):
                self._remember(path, entry.stamp)
                self._rested.setdefault(path, now)
        for item in news:
            self._passed.pop(item.path, None)
            self._rested.pop(item.path, None)
        return news

    def _complete(self, now: float) -> list[News]:
        """Return what rests and need not wait any more for others in its folder."""
        if not self._rested:
            return []
        busy = {path.parent for path, entry in self._pending.items() if entry.stamp is not None}
        complete = [
            path
            for path, since in self._rested.items()
            if path not in self._pending
            and (path.parent not in busy or now - since >= ALBUM_SECONDS)
        ]
        for path in complete:
            del self._rested[path]
        return [News(path, "new") for path in complete]

    def _remember(self, path: Path, stamp: tuple[int, int]) -> None:
        self._passed.pop(path, None)
        self._passed[path] = stamp
        if len(self._passed) > MAX_PASSED:
            self._passed.popitem(last=False)


class Anchor:
    """Tells whether a folder is still the one it was, or its mount is gone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._identity: tuple[int, int] | None = None  # device, inode
        self._names: frozenset[str] = frozenset()  # some of what lies in it

    def look(self) -> tuple[str | None, bool]:
        """Return why the folder must be left alone (None: it need not), and whether it is another.

        Another: mounted anew, or replaced; watches on the former one hear nothing any more.
        """
        try:
            status = self._root.stat()
            with os.scandir(self._root) as entries:
                names = frozenset(
                    entry.name for entry, _ in zip(entries, range(MAX_ANCHOR_NAMES), strict=False)
                )
        except OSError as error:
            return f"cannot be read ({(error.strerror or str(error)).lower()})", False
        identity = (status.st_dev, status.st_ino)
        former = self._identity
        if self._names and not names:
            return "is empty, which it was not", False
        if (
            former is not None
            and self._names
            and former[0] != identity[0]
            and not any((self._root / name).exists() for name in self._names)
        ):
            return "is on another disk, and nothing of what was in it is there", False
        self._identity, self._names = identity, names
        return None, former is not None and former != identity


class FolderWatch:
    """Watches one folder with all below it. `start` and `stop`, or call `step` oneself."""

    def __init__(
        self,
        root: Path,
        sink: Sink,
        is_known: IsKnown,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        always_poll: bool = False,
    ) -> None:
        self.root = root
        self.paused: str | None = None  # why nothing is done here now
        self.polling = False
        self.armed = threading.Event()  # set while no change can be missed
        self._sink = sink
        self._is_known = is_known
        self._poll_seconds = poll_seconds
        self._always_poll = always_poll
        self._settling = Settling(settle_seconds, is_known)
        self._anchor = Anchor(root)
        self._observer: BaseObserver | None = None
        self._heard: queue.SimpleQueue[tuple[Path, bool]] = queue.SimpleQueue()
        self._folders: dict[Path, float] = {}  # to be looked through, and when
        self._seen: dict[Path, tuple[int, int]] = {}  # when polling: all files, with their stamps
        self._outgoing: list[News] = []
        self._next_poll = self._next_anchor = self._next_spare = 0.0
        self._said: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._overflow = _Overflow()

    @property
    def settling(self) -> int:
        """Count the paths of which something was heard and that do not rest yet."""
        return len(self._settling)

    def start(self) -> None:
        """Begin to watch, in a thread. `armed` says when no later change can be missed."""
        self._thread = threading.Thread(
            target=self._run, name=f"watch {printable(self.root)}", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the watch. A thread that hangs in a dead mount is left behind."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)
        self._disarm()

    def _run(self) -> None:
        pause = TICK_SECONDS
        while True:
            try:
                self.step(time.monotonic())
                pause = TICK_SECONDS
            except Exception as error:
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
                log.error(
                    "%s: watching failed and is tried again in %.0f s: %s",
                    *(printable(self.root), pause, error),
                    exc_info=not isinstance(error, ReclassError),  # a full disk needs no traceback
                )
            if self._stopping.wait(pause):
                return

    def step(self, now: float) -> None:
        """Do what is due: look at the anchor, hear, look through, poll, and pass news on."""
        if now >= self._next_anchor:
            self._check_anchor(now)
        if self.paused is not None:
            return
        self._hear(now)
        if self._overflow.take():
            log.warning(
                "%s: more happened than the kernel could tell; looking through all of it",
                printable(self.root),
            )
            self._folders[self.root] = now
        self._look_through([folder for folder, due in self._folders.items() if due <= now], now)
        if self.polling and now >= self._next_poll:
            self._poll(now)
        self._outgoing += self._settling.step(now)
        if any(item.reason == "gone" for item in self._outgoing):
            self._check_anchor(now)
            if self.paused is not None:
                return
        while self._outgoing:  # an item leaves only after the sink has taken it
            self._sink(self._outgoing[0].path, self._outgoing[0].reason)
            del self._outgoing[0]

    # The folder as such

    def _check_anchor(self, now: float) -> None:
        """Pause if the folder is not what it was; begin anew when it is back."""
        self._next_anchor = now + ANCHOR_SECONDS
        problem, another = self._anchor.look()
        if problem is not None:
            if self.paused is None:
                log.warning(
                    "%s %s: paused until it is back; nothing is taken for deleted",
                    printable(self.root),
                    problem,
                )
            self.paused = problem
            self._disarm()
            for item in self._outgoing:  # whether it is so is seen when the folder is back
                self._settling.notice(item.path, now)
            self._outgoing.clear()
            return
        back = self.paused is not None
        if back:
            log.info("%s is back: going on", printable(self.root))
        self.paused = None
        if another or (self._observer is not None and not _alive(self._observer)):
            self._disarm()
            back = True
        if not self.armed.is_set():
            self._arm(now)
            if back:
                self._folders[self.root] = now
        if self._observer is not None and now >= self._next_spare:
            self._next_spare = now + SPARE_SECONDS
            if not _takes_a_watch(self.root):
                self._disarm()
                self._fall_back("the limit of inotify watches is reached")
                self._folders[self.root] = now
                self._arm(now)

    def _arm(self, now: float) -> None:
        """Listen, or where that is of no use, remember what is there."""
        if not self.polling:
            network = network_mounts(self.root)
            if self._always_poll:
                self.polling = True
            elif VERSION_INFO < HEARS_ALL_SINCE:
                self.polling = True
                self._say(
                    f"{printable(self.root)}: watchdog {VERSION_STRING} loses moved folders and"
                    f" bursts; looking through it every {self._poll_seconds:g} s or less often"
                    " instead. watchdog 7 (Python 3.11) hears of new music at once"
                )
            elif network:
                self.polling = True
                self._say(
                    f"{printable(self.root)}: {network[0]} sends no events for what others change;"
                    f" looking through it every {self._poll_seconds:g} s or less often instead"
                )
        if self.polling:
            self._next_poll = now
            if not self._seen:
                self._seen = {found.path: _of(found) for found in self._walk(self.root)}
                self._next_poll = now + self._poll_seconds
            self.armed.set()
            return
        try:
            # Links resolved: a watch on a link hears nothing of the folder it leads to.
            self._observer = InotifyObserver()
            handler = _Listener(self._heard, os.path.realpath(self.root), self.root)
            self._observer.schedule(
                handler, os.path.realpath(self.root), recursive=True, event_filter=_EVENTS
            )
            self._observer.start()
        except OSError as error:
            self._disarm()
            if error.errno not in {errno.ENOSPC, errno.EMFILE, errno.ENOSYS}:
                raise
            self._fall_back((error.strerror or str(error)).lower())
            self._arm(now)
            return
        self._overflow.listen()
        self.armed.set()

    def _fall_back(self, problem: str) -> None:
        self.polling = True
        self._say(
            f"{printable(self.root)}: {problem}: looking through it every"
            f" {self._poll_seconds:g} s or less often instead. To hear of new music at once, as"
            " root: sysctl fs.inotify.max_user_watches=1048576 fs.inotify.max_user_instances=512"
            " (to keep it: the same lines in /etc/sysctl.d/90-inotify.conf), then restart"
        )

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    def _disarm(self) -> None:
        self.armed.clear()
        self._overflow.end()
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(5)

    # What happened in it

    def _hear(self, now: float) -> None:
        while True:
            try:
                path, is_folder = self._heard.get_nowait()
            except queue.Empty:
                return
            if path == self.root:
                self._next_anchor = now
            elif not self._concerns(path):
                continue
            elif is_folder and path.is_dir():
                # Files can be older than the watch on their folder.
                self._folders[path] = now + TICK_SECONDS
            elif is_folder or path.suffix.lower() in AUDIO_SUFFIXES:
                self._settling.notice(path, now)

    def _concerns(self, path: Path) -> bool:
        """Tell whether a path could be music, or a folder of it."""
        if is_leftover(path.name):
            return False
        return not any(is_junk(part) for part in path.relative_to(self.root).parts)

    def _look_through(self, folders: Collection[Path], now: float) -> None:
        """Notice what is not known in `folders` and below."""
        for folder in _outermost(folders):
            for found in self._walk(folder):
                if not self._is_known(found.path, found.size, found.mtime_ns):
                    self._settling.notice(found.path, now)
        for folder in folders:
            del self._folders[folder]

    def _poll(self, now: float) -> None:
        """Compare what is there with what was."""
        began = time.perf_counter()
        seen: dict[Path, tuple[int, int]] = {}
        for found in self._walk(self.root):
            seen[found.path] = _of(found)
            if self._seen.pop(found.path, None) != seen[found.path]:
                self._settling.notice(found.path, now)
        if self._stopping.is_set():
            return
        for path in self._seen:  # what could not be read is not gone: settling looks again
            self._settling.notice(path, now)
        self._seen = seen
        took = time.perf_counter() - began
        self._next_poll = now + max(self._poll_seconds, POLL_SHARE * took)

    def _walk(self, folder: Path) -> Iterator[FoundFile]:
        for found in find_audio_files([folder], AUDIO_SUFFIXES):
            if self._stopping.is_set():
                return
            if isinstance(found, FoundFile):
                yield found


class _Listener(FileSystemEventHandler):
    """Puts the paths of watchdog's events, from its thread, into a queue."""

    def __init__(self, heard: queue.SimpleQueue[tuple[Path, bool]], real: str, root: Path) -> None:
        self._heard = heard
        self._real = real
        self._root = root

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Queue what the event is about; a rename of our own copy into place is no news."""
        source = os.fsdecode(event.src_path)
        target = os.fsdecode(event.dest_path) if isinstance(event, FileSystemMovedEvent) else ""
        if is_leftover(os.path.basename(source)):  # noqa: PTH119 - text, many times a second
            return
        for path in (source, target):
            if path:
                inside = os.path.relpath(path, self._real)
                self._heard.put((self._root / inside, event.is_directory))


class _Overflow(logging.Handler):
    """Notices that the kernel dropped events: watchdog says so in its log only."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._happened = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it, if it is that."""
        if "overflow" in record.getMessage().lower():
            self._happened.set()

    def listen(self) -> None:
        """Begin."""
        logging.getLogger("watchdog").addHandler(self)

    def end(self) -> None:
        """End."""
        logging.getLogger("watchdog").removeHandler(self)

    def take(self) -> bool:
        """Tell whether it happened since the last call."""
        happened = self._happened.is_set()
        self._happened.clear()
        return happened


def open_for_writing(paths: Collection[Path]) -> set[Path]:
    """Return those of `paths` that a process has open for writing, as far as /proc may be read."""
    names = {os.path.basename(os.path.realpath(path)) for path in paths}  # noqa: PTH119
    if not names:
        return set()
    wanted: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        wanted[status.st_dev, status.st_ino] = path
    found: set[Path] = set()
    for process in _numbers("/proc"):
        for descriptor in _numbers(f"/proc/{process}/fd"):
            link = f"/proc/{process}/fd/{descriptor}"
            try:
                # The name first: to stat a file on a mount that hangs would hang here too.
                if os.path.basename(os.readlink(link)) not in names:  # noqa: PTH115, PTH119
                    continue
                status = os.stat(link)  # noqa: PTH116
                path = wanted[status.st_dev, status.st_ino]
                with open(f"/proc/{process}/fdinfo/{descriptor}", "rb") as info:  # noqa: PTH123
                    flags = re.search(rb"^flags:\s*([0-7]+)", info.read(), re.MULTILINE)
            except (OSError, KeyError):
                continue
            if flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                found.add(path)
    return found


def _numbers(folder: str) -> Iterable[str]:
    try:
        return [name for name in os.listdir(folder) if name.isdecimal()]  # noqa: PTH208
    except OSError:
        return []


def _takes_a_watch(folder: Path) -> bool:
    """Tell whether the kernel takes one more inotify watch.

    watchdog goes on without a word when it takes none for a folder below the first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return True  # there are too many instances; that says nothing about watches
    try:
        delete = 0x200  # IN_DELETE
        watch = libc.inotify_add_watch(descriptor, os.fsencode(folder), delete)
        return watch >= 0 or ctypes.get_errno() != errno.ENOSPC
    finally:
        os.close(descriptor)


def _alive(observer: BaseObserver) -> bool:
    return observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)


def _outermost(folders: Collection[Path]) -> list[Path]:
    """Return `folders` without those that lie in another of them."""
    chosen = set(folders)
    return [folder for folder in folders if chosen.isdisjoint(folder.parents)]


def _of(found: FoundFile) -> tuple[int, int]:
    return found.size, found.mtime_ns


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size and mtime in ns of a file, None if nothing is there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return None if error.errno == errno.ENOTDIR else _UNKNOWN
    if not stat.S_ISREG(status.st_mode):
        return _FOLDER
    return status.st_size, status.st_mtime_ns


def wait_armed(
    watches: Collection[FolderWatch], seconds: float, should_stop: Callable[[], bool]
) -> list[FolderWatch]:
    """Wait until no change can be missed; return the watches that are still on their way to that.

    A folder that is away is not waited for.
    """
    until = time.monotonic() + seconds

    def late() -> list[FolderWatch]:
        return [one for one in watches if one.paused is None and not one.armed.is_set()]

    while (left := late()) and time.monotonic() < until and not should_stop():
        left[0].armed.wait(TICK_SECONDS)
    return left
