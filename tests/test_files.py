from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from timing import timed

from reclass_plex.errors import FileChanged, FileError, NoSpace, ReadOnly, Unreadable
from reclass_plex.files import (
    FoundFile,
    Replacement,
    check_writable,
    copy_range,
    find_audio_files,
    is_leftover,
    open_regular,
    temporary_name,
)

SUFFIXES = {".mp3", ".flac"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", os.fspath(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", os.fspath(folder)], check=True)


def found(*paths: str | os.PathLike[str]) -> tuple[list[Path], dict[Path, str]]:
    items = list(find_audio_files(paths, SUFFIXES))
    return (
        [item.path for item in items if isinstance(item, FoundFile)],
        {item.path: item.reason for item in items if isinstance(item, FileError)},
    )


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


# Finding


def test_files_are_found_sorted_with_size_and_time(tmp_path: Path) -> None:
    paths = [touch(tmp_path / name) for name in ("b.MP3", "c.flac", "a/z.mp3", "a/b/y.flac")]
    touch(tmp_path / "cover.jpg")
    assert found(tmp_path) == (paths, {})
    first = next(iter(find_audio_files([tmp_path], SUFFIXES)))
    assert isinstance(first, FoundFile)
    status = paths[0].stat()
    assert (first.size, first.mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_named_file_counts_whatever_its_suffix(tmp_path: Path) -> None:
    path = touch(tmp_path / "song.xyz")
    assert found(path, path) == ([path], {})


def test_junk_is_left_out_but_hidden_albums_are_not(tmp_path: Path) -> None:
    for name in (
        "._a.mp3",
        ".Trash-1000/a.mp3",
        "@eaDir/a.mp3/SYNOFILE_THUMB.mp3",
        "#recycle/a.mp3",
        "sub/.AppleDouble/a.mp3",
        "sub/" + temporary_name("a.mp3"),
        "lost+found/a.mp3",
    ):
        touch(tmp_path / name)
    kept = touch(tmp_path / "...And Justice for All" / "01.mp3")
    assert found(tmp_path) == ([kept], {})


def test_loops_and_second_ways_are_visited_once(tmp_path: Path) -> None:
    song = touch(tmp_path / "a" / "song.mp3")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    linked = tmp_path / "linked.mp3"
    linked.symlink_to(song)
    assert found(tmp_path, tmp_path / "a") == ([linked, song], {})


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    song = touch(tmp_path / "song.mp3")
    broken, ring, pipe = (tmp_path / name for name in ("broken.mp3", "ring.mp3", "pipe.mp3"))
    broken.symlink_to("nowhere.mp3")
    ring.symlink_to("ring.mp3")
    (tmp_path / "cover.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(pipe)
    paths, errors = found(tmp_path, tmp_path / "missing", pipe)
    assert paths == [song]
    assert set(errors) == {broken, ring, pipe, tmp_path / "missing"}
    assert "broken link" in errors[broken]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    touch(closed / "song.mp3")
    closed.chmod(0)
    try:
        assert list(found(tmp_path)[1]) == [closed]
    finally:
        closed.chmod(0o700)


def test_names_that_are_not_utf8_and_any_unicode_form(tmp_path: Path) -> None:
    names = [b"caf\xe9.mp3", "cafe\u0301.mp3".encode(), "caf\u00e9.mp3".encode(), b"\xff\xfe.mp3"]
    for name in names:
        touch(tmp_path / os.fsdecode(name))
    assert {os.fsencode(path.name) for path in found(tmp_path)[0]} == set(names)


@timed
def test_ten_thousand_files_take_no_time(tmp_path: Path) -> None:
    for i in range(100):
        folder = tmp_path / str(i)
        folder.mkdir()
        for j in range(100):
            (folder / f"{j}.mp3").touch()
    start = time.process_time()  # not the wall's: other programs run here
    assert len(found(tmp_path)[0]) == 10_000
    assert time.process_time() - start < 0.5


# Temporary names


@pytest.mark.parametrize(
    "name", ["song.mp3", "x", "...", "𝄞" * 63 + ".mp3", "a." + "b" * 200, "é" * 120, ".hidden.flac"]
)
def test_temporary_names_are_hidden_short_and_recognised(name: str) -> None:
    temporary = temporary_name(name)
    assert is_leftover(temporary)
    assert temporary.startswith(".")
    assert len(os.fsencode(temporary)) <= 255
    assert temporary != temporary_name(name)
    assert not is_leftover(name)


@pytest.mark.parametrize("name", ["song.reclass-0123abcd.tmp.mp3", ".song.tmp.mp3", ".reclass.mp3"])
def test_other_names_are_no_leftovers(name: str) -> None:
    assert not is_leftover(name)


# Replacing


def write_new(copy: BinaryIO) -> None:
    copy.write(b"new")


def test_a_replacement_keeps_mode_owner_and_attributes(tmp_path: Path) -> None:
    path = touch(tmp_path / "song.mp3")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    # an access control list: user::rw- user:65534:r-- group::r-- mask::r-- other::---
    entries = [(1, 6, -1), (2, 4, 65534), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little")
        + permission.to_bytes(2, "little")
        + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, permission, who in entries
    )
    attributes = {"user.comment": b"mine \0 bytes", "system.posix_acl_access": acl}
    kept = {}
    for name, value in attributes.items():
        try:
            os.setxattr(path, name, value)
            kept[name] = value
        except OSError:  # this file system has none
            continue
    before = path.stat()
    with open_regular(path) as file:
        replacement = Replacement.beside(path)
        replacement.fill(file, write_new, mtime_ns=before.st_mtime_ns)
    after = replacement.commit()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_mtime_ns == before.st_mtime_ns
    assert {name: os.getxattr(path, name) for name in kept} == kept
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("change", ["content", "mode", "replaced", "removed"])
def test_a_file_that_changed_meanwhile_stays_as_it_is(tmp_path: Path, change: str) -> None:
    path = touch(tmp_path / "song.mp3")
    with open_regular(path) as file:
        replacement = Replacement.beside(path)
        replacement.fill(file, write_new)
    if change == "content":
        path.write_bytes(b"user")
    elif change == "mode":
        path.chmod(0o600)
    elif change == "replaced":
        touch(tmp_path / "other").replace(path)
    else:
        path.unlink()
    left = path.read_bytes() if path.exists() else None
    with pytest.raises(FileChanged):
        replacement.commit()
    assert (path.read_bytes() if path.exists() else None) == left
    assert not [p for p in tmp_path.iterdir() if is_leftover(p.name)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_no_copy_stays_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    path = touch(tmp_path / "song.mp3")

    def fail(copy: BinaryIO) -> None:
        copy.write(b"half")
        raise error

    with open_regular(path) as file, pytest.raises(error):
        Replacement.beside(path).fill(file, fail)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"x"]


def test_a_full_disk_leaves_the_file_and_no_copy(small_disk: Path) -> None:
    path = small_disk / "song.mp3"
    path.write_bytes(bytes(700_000))
    with open_regular(path) as file, pytest.raises(NoSpace, match=r"song\.mp3"):
        Replacement.beside(path).fill(file, lambda copy: copy_range(file, copy, 0, 700_000))
    assert list(small_disk.iterdir()) == [path]
    assert path.read_bytes() == bytes(700_000)
    with pytest.raises(NoSpace, match="free space"):
        check_writable(path, path.stat())


def test_a_read_only_disk_is_named(small_disk: Path) -> None:
    path = touch(small_disk / "song.mp3")
    remount = ["mount", "-o", "remount,ro", os.fspath(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    with pytest.raises(ReadOnly, match="its file system is read-only"):
        check_writable(path, path.stat())
    with open_regular(path) as file, pytest.raises(ReadOnly, match="read-only file system"):
        Replacement.beside(path).fill(file, write_new)


def test_a_write_protected_file_is_named_even_for_root(tmp_path: Path) -> None:
    path = touch(tmp_path / "song.mp3")
    path.chmod(0o444)
    with pytest.raises(ReadOnly, match="write-protected"):
        check_writable(path, path.stat())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("owner", "group", "whose"),
    [(65534, 4321, "another group, which"), (1234, 4321, "another user, who")],
)
def test_the_owner_or_group_who_would_lose_a_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, group: int, whose: str
) -> None:
    path = Path("song.mp3")  # relative: nobody may not pass through root's temporary folders
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    touch(path).chmod(0o666)
    os.chown(path, owner, group)
    os.seteuid(65534)
    try:
        with open_regular(path) as file, pytest.raises(ReadOnly, match=f"belongs to {whose}"):
            Replacement.beside(path).fill(file, write_new)
    finally:
        os.seteuid(0)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"x"]


def test_copying_more_than_there_is_fails(tmp_path: Path) -> None:
    path = touch(tmp_path / "song.mp3")
    with open_regular(path) as file, pytest.raises(FileChanged, match="shorter"):
        Replacement.beside(path).fill(file, lambda copy: copy_range(file, copy, 0, 100))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(Unreadable), open_regular(path):
            pass
