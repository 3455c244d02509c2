"""Watching real folders: what rests is passed on once; what is away is not taken for deleted."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from watchdog.version import VERSION_INFO

from reclass_plex.files import Replacement, temporary_name
from reclass_plex.mounts import network_mounts
from reclass_plex.store import Store
from service.watch import (
    ALBUM_SECONDS,
    HEARS_ALL_SINCE,
    OPEN_PATIENCE_SECONDS,
    Anchor,
    FolderWatch,
    News,
    Settling,
    open_for_writing,
    wait_armed,
)

SETTLE = 0.3  # seconds


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.news: list[tuple[Path, str]] = []

    def __call__(self, path: Path, reason: str) -> None:
        self.news.append((path, reason))

    def new(self) -> Counter[Path]:
        return Counter(path for path, reason in self.news if reason == "new")

    def gone(self) -> set[Path]:
        return {path for path, reason in self.news if reason == "gone"}


def nothing_known(path: Path, size: int, mtime_ns: int) -> bool:
    return False


def write_tagged(copy: BinaryIO) -> None:
    copy.write(b"tagged")


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def descriptors() -> set[str]:
    """Return what is open, pipes and inotify included."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / "old.mp3").write_bytes(b"old")
    return folder


needs_inotify = pytest.mark.skipif(
    VERSION_INFO < HEARS_ALL_SINCE, reason="this watchdog is not listened to"
)


@pytest.fixture(params=["inotify", "polling"])
def watched(request: pytest.FixtureRequest, music: Path) -> Iterator[tuple[FolderWatch, Heard]]:
    """A running watch of `music`; when it ends no thread and no descriptor may be left."""
    threads, files = set(threading.enumerate()), descriptors()
    heard = Heard()
    polling = request.param == "polling"
    if not polling and VERSION_INFO < HEARS_ALL_SINCE:
        pytest.skip("this watchdog is not listened to")
    watch = FolderWatch(
        music,
        heard,
        nothing_known,
        settle_seconds=SETTLE,
        poll_seconds=0.2,
        always_poll=polling,
    )
    watch.start()
    assert watch.armed.wait(5)
    assert watch.polling == polling
    yield watch, heard
    watch.stop()
    assert set(threading.enumerate()) <= threads
    assert descriptors() <= files


# Settling: no clock, no thread


def test_a_file_is_passed_on_once_when_it_has_rested(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    path.write_bytes(b"x")
    settling = Settling(10, nothing_known)
    settling.notice(path, 0)
    assert settling.step(9.9) == []
    assert settling.step(10) == [News(path, "new")]
    settling.notice(path, 11)  # touched by a reader, or seen by a walk
    assert settling.step(100) == []
    assert len(settling) == 0
    path.write_bytes(b"another")
    settling.notice(path, 101)
    assert settling.step(111) == [News(path, "new")]


def test_a_growing_file_waits_until_it_rests(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    path.write_bytes(b"x")
    settling = Settling(10, nothing_known)
    settling.notice(path, 0)
    for now in (10, 20, 30):  # no event tells of it, as on a network file system
        path.write_bytes(b"x" * (now + 1))
        assert settling.step(now) == []
    os.utime(path, ns=(0, 1))
    assert settling.step(40) == []
    assert settling.step(49) == []
    assert settling.step(50) == [News(path, "new")]


def test_an_event_prolongs_the_rest(tmp_path: Path) -> None:
    first, second = tmp_path / "1.mp3", tmp_path / "another album" / "2.mp3"
    second.parent.mkdir()
    first.touch()
    second.touch()
    settling = Settling(10, nothing_known)
    settling.notice(first, 0)
    settling.notice(second, 1)
    settling.notice(first, 5)
    assert settling.step(11) == [News(second, "new")]
    assert settling.step(15) == [News(first, "new")]


def test_what_is_gone_is_told_and_may_come_back(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    path.touch()
    settling = Settling(10, nothing_known)
    settling.notice(path, 0)
    path.unlink()
    assert settling.step(10) == []  # it changed: perhaps it is being replaced
    assert settling.step(20) == [News(path, "gone")]
    path.touch()
    settling.notice(path, 30)
    assert settling.step(40) == [News(path, "new")]


def test_a_file_open_for_writing_waits_but_not_for_ever(tmp_path: Path) -> None:
    path, link = tmp_path / "x.mp3", tmp_path / "link.mp3"
    path.write_bytes(b"x")
    link.symlink_to(path)
    with path.open("rb"):
        assert open_for_writing([path]) == set()
    settling = Settling(10, nothing_known)
    settling.notice(path, 0)
    with path.open("r+b"):
        assert open_for_writing([path, tmp_path / "none.mp3"]) == {path}
        assert open_for_writing([link]) == {link}
        assert settling.step(10) == []
        assert settling.step(OPEN_PATIENCE_SECONDS - 1) == []
        assert settling.step(OPEN_PATIENCE_SECONDS + 10) == [News(path, "new")]
    path.write_bytes(b"more")
    with path.open("r+b"):
        settling.notice(path, 2000)
        assert settling.step(2010) == []
    assert settling.step(2020) == [News(path, "new")]


def test_an_album_that_is_coming_in_is_passed_on_together(tmp_path: Path) -> None:
    settling = Settling(10, lambda *_: False)
    first, second = tmp_path / "1.flac", tmp_path / "2.flac"
    other = tmp_path / "other" / "x.flac"
    other.parent.mkdir()
    first.write_bytes(b"1")
    other.write_bytes(b"1")
    settling.notice(first, 0)
    settling.notice(other, 0)
    second.write_bytes(b"2")
    settling.notice(second, 6)
    assert settling.step(10) == [News(other, "new")]
    assert len(settling) == 2
    assert settling.step(16) == [News(first, "new"), News(second, "new")]
    assert len(settling) == 0


def test_an_album_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    settling = Settling(10, lambda *_: False)
    first, radio = tmp_path / "1.flac", tmp_path / "radio.flac"
    first.write_bytes(b"1")
    radio.write_bytes(b"1")
    settling.notice(first, 0)
    now = 0.0
    news: list[News] = []
    while not news:
        with radio.open("ab") as file:
            file.write(b"more")
        settling.notice(radio, now)
        news = settling.step(now)
        now += 5
    assert news == [News(first, "new")]
    assert ALBUM_SECONDS <= now <= ALBUM_SECONDS + 20


def test_what_changes_or_goes_while_it_waits_for_its_album(tmp_path: Path) -> None:
    settling = Settling(10, lambda *_: False)
    changed, gone, late = (tmp_path / name for name in ("a.flac", "b.flac", "c.flac"))
    for path in (changed, gone):
        path.write_bytes(b"1")
        settling.notice(path, 0)
    late.write_bytes(b"1")
    settling.notice(late, 8)
    assert settling.step(10) == []
    changed.write_bytes(b"22")
    settling.notice(changed, 11)
    gone.unlink()
    settling.notice(gone, 11)
    assert settling.step(18) == []
    assert settling.step(21) == [
        News(gone, "gone"),
        News(changed, "new"),
        News(late, "new"),
    ]


def test_what_the_store_knows_as_it_is_is_no_news(tmp_path: Path) -> None:
    path = tmp_path / "x.mp3"
    path.write_bytes(b"x")
    with Store.open(tmp_path / "store.sqlite") as store:
        status = path.stat()
        store.save_track(path, status.st_size, status.st_mtime_ns, digest="d")

        def is_known(path: Path, size: int, mtime_ns: int) -> bool:
            track = store.find_track(path, "models")
            return track is not None and (track.size, track.mtime_ns) == (size, mtime_ns)

        settling = Settling(10, is_known)
        settling.notice(path, 0)
        assert settling.step(10) == []
        os.utime(path, ns=(0, 5))
        settling.notice(path, 20)
        assert settling.step(30) == [News(path, "new")]


# The anchor


def test_a_missing_an_emptied_and_a_replaced_folder_are_told_apart(music: Path) -> None:
    anchor = Anchor(music)
    assert anchor.look() == (None, False)
    (music / "old.mp3").rename(music.parent / "aside.mp3")
    assert anchor.look() == ("is empty, which it was not", False)
    (music.parent / "aside.mp3").rename(music / "old.mp3")
    assert anchor.look() == (None, False)
    music.rename(music.parent / "elsewhere")
    assert anchor.look() == ("cannot be read (no such file or directory)", False)
    music.mkdir()
    (music / "other.mp3").touch()
    assert anchor.look() == (None, True)  # replaced on the same disk, by its owner
    assert anchor.look() == (None, False)


def test_another_disk_without_any_of_the_names_is_not_the_library(
    music: Path, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        other = Path(memory)
        if other.stat().st_dev == music.stat().st_dev:
            pytest.skip("there is one file system only")
        (other / "downloaded while the mount was away.mp3").touch()
        link = tmp_path / "library"
        link.symlink_to(music)
        anchor = Anchor(link)
        assert anchor.look() == (None, False)
        link.unlink()
        link.symlink_to(other)
        problem, _ = anchor.look()
        assert problem == "is on another disk, and nothing of what was in it is there"
        (other / "old.mp3").touch()  # the same library, mounted from another device
        assert anchor.look() == (None, True)


# Real folders, real events


def test_a_burst_of_files_some_growing_renamed_and_deleted(
    watched: tuple[FolderWatch, Heard], music: Path
) -> None:
    _, heard = watched
    expected: set[Path] = set()
    deleted: set[Path] = set()
    growing = [(music / f"growing {number}.flac").open("wb", buffering=0) for number in range(5)]
    for number in range(500):
        folder = music / f"album {number // 20}"
        folder.mkdir(exist_ok=True)
        path = folder / f"{number}.mp3"
        path.write_bytes(b"music" * number)
        if number % 10 == 3:
            path = path.rename(folder / f"renamed {number}.mp3")
        elif number % 10 == 5:
            path.unlink()
            deleted.add(path)
            continue
        elif number % 10 == 7:
            part = path.rename(folder / f"{number}.mp3.part")
            path = part.rename(folder / f"complete {number}.mp3")
        expected.add(path)
    (music / "cover.jpg").write_bytes(b"no music")
    for _ in range(6):
        time.sleep(SETTLE / 2)
        for file in growing:
            file.write(b"more")
        assert not any("growing" in path.name for path in heard.new())
    for file in growing:
        file.close()
        expected.add(Path(os.fsdecode(file.name)))
    wait_for(lambda: set(heard.new()) >= expected)
    time.sleep(2 * SETTLE + 0.5)
    assert heard.new() == Counter(expected)
    assert not heard.gone() & expected


def test_renames_deletes_and_moved_folders_are_told(
    watched: tuple[FolderWatch, Heard], music: Path, tmp_path: Path
) -> None:
    _, heard = watched
    album = tmp_path / "album"
    (album / "cd1").mkdir(parents=True)
    (album / "cd1" / "1.mp3").write_bytes(b"1")
    (album / "2.mp3").write_bytes(b"2")
    inside = Path(shutil.move(album, music / "album"))
    wait_for(lambda: set(heard.new()) == {inside / "cd1" / "1.mp3", inside / "2.mp3"})
    heard.news.clear()

    renamed = inside.rename(music / "renamed")
    (music / "old.mp3").rename(music / "moved.mp3")
    expected = {renamed / "cd1" / "1.mp3", renamed / "2.mp3", music / "moved.mp3"}
    wait_for(lambda: set(heard.new()) == expected)
    gone = {inside / "cd1" / "1.mp3", inside / "2.mp3", music / "old.mp3"}
    wait_for(lambda: heard.gone() >= gone)
    heard.news.clear()

    (renamed / "3.mp3").write_bytes(b"3")  # the moved folder is still watched
    wait_for(lambda: set(heard.new()) == {renamed / "3.mp3"})
    (music / "moved.mp3").unlink()
    renamed.rename(tmp_path / "outside")
    (music / "keep.mp3").write_bytes(b"x")
    wait_for(lambda: music / "moved.mp3" in heard.gone())
    # A folder that left is told as such, or file by file.
    wait_for(lambda: renamed in heard.gone() or renamed / "cd1" / "1.mp3" in heard.gone())
    wait_for(lambda: music / "keep.mp3" in heard.new())


def test_our_own_copies_and_other_peoples_rubbish_are_no_news(
    watched: tuple[FolderWatch, Heard], music: Path
) -> None:
    watch, heard = watched
    path = music / "old.mp3"
    (music / temporary_name("left over.mp3")).write_bytes(b"killed")
    for name in ("@eaDir", "#recycle", ".Trash-1000"):
        (music / name / "deep").mkdir(parents=True)
        (music / name / "deep" / "x.mp3").touch()
    (music / "._resource fork.mp3").touch()
    if not watch.polling:  # inotify tells our rename from others; polling asks the store
        replacement = Replacement.beside(path)
        with path.open("rb") as source:
            replacement.fill(source, write_tagged)
        replacement.commit()
        assert path.read_bytes() == b"tagged"
    (music / "real.mp3").touch()
    wait_for(heard.new)
    time.sleep(2 * SETTLE + 0.5)
    assert heard.news == [(music / "real.mp3", "new")]


def test_a_folder_that_goes_away_is_not_taken_for_deleted_and_goes_on_when_it_is_back(
    watched: tuple[FolderWatch, Heard],
    music: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch, heard = watched
    away = music.rename(music.parent / "away")
    wait_for(lambda: watch.paused)
    assert not watch.armed.is_set()
    assert "paused until it is back" in caplog.text
    (away / "while away.mp3").write_bytes(b"x")
    time.sleep(1)
    assert heard.news == []
    away.rename(music)
    wait_for(lambda: music / "while away.mp3" in heard.new())
    assert watch.paused is None
    (music / "later.mp3").touch()
    wait_for(lambda: music / "later.mp3" in heard.new())
    assert heard.gone() == set()
    assert caplog.text.count("paused until") == 1


def test_a_replaced_folder_is_watched_in_place_of_the_former(
    watched: tuple[FolderWatch, Heard], music: Path
) -> None:
    _, heard = watched
    music.rename(music.parent / "former")
    music.mkdir()
    (music / "1.mp3").touch()
    wait_for(lambda: music / "1.mp3" in heard.new())
    (music / "2.mp3").touch()
    wait_for(lambda: music / "2.mp3" in heard.new())


def test_a_large_folder_is_waited_for_until_it_is_watched(music: Path) -> None:
    away = FolderWatch(music / "none", Heard(), nothing_known)
    slow = FolderWatch(music, Heard(), nothing_known)
    away.start()
    wait_for(lambda: away.paused is not None)
    began = time.monotonic()
    assert wait_armed([slow, away], 0.2, lambda: False) == [slow]
    assert wait_armed([slow, away], 60, lambda: True) == [slow]  # told to stop
    slow.start()
    assert wait_armed([slow, away], 60, lambda: False) == []
    assert time.monotonic() - began < 30
    slow.stop()
    away.stop()


@needs_inotify
def test_a_folder_behind_a_link_is_told_by_the_name_that_was_given(
    music: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(music)
    heard = Heard()
    watch = FolderWatch(link, heard, nothing_known, settle_seconds=SETTLE)
    watch.start()
    assert watch.armed.wait(5)
    (music / "1.mp3").touch()
    wait_for(lambda: heard.news)
    assert heard.news == [(link / "1.mp3", "new")]
    watch.stop()


def test_what_rests_stays_until_the_store_can_be_asked(music: Path) -> None:
    """A store that cannot be read for a moment must not cost the files that were due just then."""
    new, gone = music / "new.mp3", music / "gone.mp3"
    new.touch()
    asked: list[Path] = []

    def is_known(path: Path, size: int, mtime_ns: int) -> bool:
        asked.append(path)
        if len(asked) == 1:
            raise OSError("disk I/O error")
        return False

    settling = Settling(1.0, is_known)
    for path in (gone, new):
        settling.notice(path, 0.0)
    with pytest.raises(OSError, match="I/O"):
        settling.step(1.0)
    assert len(settling) == 2
    assert {(one.path, one.reason) for one in settling.step(1.5)} == {(gone, "gone"), (new, "new")}
    assert len(settling) == 0


@needs_inotify
def test_news_stay_until_the_sink_has_taken_them(
    music: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken: queue.SimpleQueue[Path] = queue.SimpleQueue()
    failures = iter(range(2))

    def sink(path: Path, reason: str) -> None:
        if next(failures, None) is not None:
            raise OSError("disk full")
        taken.put(path)

    watch = FolderWatch(music, sink, nothing_known, settle_seconds=SETTLE)
    watch.start()
    assert watch.armed.wait(5)
    paths = {music / f"{number}.mp3" for number in range(3)}
    for path in paths:
        path.touch()
    assert {taken.get(timeout=15) for _ in paths} == paths
    watch.stop()
    assert taken.empty()
    assert caplog.text.count("watching failed") == 2


# What needs a kernel of its own, or a process that can be stopped

CHILD = """
import logging, os, subprocess, sys, time
from pathlib import Path
from service.watch import FolderWatch
logging.basicConfig(stream=sys.stdout, format="log %(message)s", level=logging.INFO)
def say(*words):
    # in one piece: the threads of the watch log to the same stream
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
def sink(path, reason):
    say(reason, path)
root = Path(sys.argv[1])
watch = FolderWatch(root, sink, lambda *_: False, settle_seconds=0.3, poll_seconds=0.2)
watch.start()
assert watch.armed.wait(10)
say("armed", os.getpid())
for line in sys.stdin:
    subprocess.run(line, shell=True, check=True)
    say("ran", line.strip())
watch.stop()
"""


class Child:
    """A process that watches, and runs what it is told to in its own name spaces."""

    def __init__(self, root: Path, *unshare: str, before: str = ":") -> None:
        command = [sys.executable, "-c", CHILD, str(root)]
        if unshare:
            command = ["unshare", *unshare, "sh", "-c", f'{before}; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: [line for line in self.lines if line.startswith("armed")])
        self.pid = int(next(line for line in self.lines if line.startswith("armed")).split()[1])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def run(self, command: str) -> None:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        wait_for(lambda: f"ran {command}" in self.lines)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self._reader.join()
        self.process.stdout.close()


def may_unshare(*options: str) -> bool:
    try:
        return subprocess.run(["unshare", *options, "true"], capture_output=True).returncode == 0  # noqa: PLW1510
    except FileNotFoundError:
        return False


needs_name_spaces = pytest.mark.skipif(
    not may_unshare("-Urm"), reason="user name spaces are not allowed here"
)


@needs_name_spaces
@needs_inotify
@pytest.mark.parametrize("limit", [0, 3])
def test_the_inotify_limit_leads_to_polling_and_is_said_once(music: Path, limit: int) -> None:
    for number in range(10):
        (music / f"album {number}").mkdir()
    before = f"echo {limit} > /proc/sys/user/max_inotify_watches"
    child = Child(music, "-Ur", before=before)
    for number in range(10):
        (music / f"album {number}" / "1.mp3").touch()
    wait_for(lambda: sum("/album" in line and "new" in line for line in child.lines) == 10)
    child.close()
    said = [line for line in child.lines if "sysctl fs.inotify.max_user_watches" in line]
    assert len(said) == 1
    assert "limit" in said[0]


def test_a_watchdog_that_loses_events_is_not_listened_to(
    music: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.watch.VERSION_INFO", (6, 0, 0))
    watch = FolderWatch(music, Heard(), nothing_known, settle_seconds=SETTLE, poll_seconds=0.2)
    watch.start()
    assert watch.armed.wait(5)
    assert watch.polling
    watch.stop()
    assert "loses moved folders" in caplog.text


@needs_inotify
@needs_name_spaces
def test_an_unmounted_library_rests_until_it_is_mounted_again(music: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        (Path(memory) / "1.mp3").touch()
        (Path(memory) / "2.mp3").touch()
        (music / "old.mp3").unlink()
        child = Child(music, "-Urm", before=f"mount --bind {memory} {music}")
        child.run(f"umount {music}")
        child.run(f"touch {music}/stray.mp3")  # a download that does not see the mount is away
        wait_for(lambda: [line for line in child.lines if "paused until" in line])
        (Path(memory) / "while away.mp3").touch()
        child.run(f"mount --bind {memory} {music}")
        wait_for(lambda: f"new {music}/while away.mp3" in child.lines)
        child.run(f"touch {music}/later.mp3")
        wait_for(lambda: f"new {music}/later.mp3" in child.lines)
        child.close()
        assert not [line for line in child.lines if line.startswith("gone")]
        assert f"new {music}/stray.mp3" not in child.lines


@needs_inotify
def test_more_events_than_the_kernel_keeps_lose_no_file(music: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        kept = int(file.read())
    if kept > 50_000:
        pytest.skip(f"this kernel keeps {kept} events")
    child = Child(music)
    os.kill(child.pid, signal.SIGSTOP)
    count = kept // 2 + 500  # each file is created and closed
    for number in range(count):
        (music / f"{number}.mp3").touch()
    os.kill(child.pid, signal.SIGCONT)
    wait_for(lambda: len({line for line in child.lines if line.startswith("new")}) > count, 60)
    child.close()
    assert any("more happened than the kernel could tell" in line for line in child.lines)


# Mounts

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/nas rw,relatime shared:5 - nfs4 nas:/export rw,vers=4.2
31 22 0:41 / /mnt/my\040music rw - cifs //nas/music rw
32 22 0:42 / /srv/music/remote rw - fuse.sshfs user@host:/ rw
33 22 0:43 / /srv/pool rw - fuse.mergerfs a:b rw
34 22 0:44 / /mnt/over rw - nfs4 nas:/x rw
35 34 8:2 / /mnt/over rw - ext4 /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ("/home/music", []),
        ("/mnt/nas/music", ["/mnt/nas (nfs4)"]),
        ("/mnt/nas2", []),
        ("/mnt/my music", ["/mnt/my music (cifs)"]),
        ("/srv/music", ["/srv/music/remote (fuse.sshfs)"]),
        ("/srv/pool/music", []),
        ("/mnt/over/music", []),
    ],
)
def test_network_file_systems_are_known_by_the_mount_table(root: str, found: list[str]) -> None:
    assert network_mounts(Path(root), MOUNTS) == found


def test_the_mount_table_of_this_machine_can_be_read() -> None:
    assert network_mounts(Path("/proc")) == []
