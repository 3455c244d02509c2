"""Putting files into a tree: whole or not at all, never over another, and back again."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reclass_plex import placing
from reclass_plex.errors import FileChanged, FileError, Unreadable
from reclass_plex.files import is_leftover
from reclass_plex.names import file_name, folder_name, numbered
from reclass_plex.placements import How, Placements
from reclass_plex.placing import Order, place, repair, take_back
from reclass_plex.store import Store

OTHER_DISK = Path("/dev/shm")
WAYS: tuple[How, ...] = ("copy", "hardlink", "move")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        yield opened


@pytest.fixture
def book(store: Store) -> Placements:
    return Placements(store)


@pytest.fixture
def run(store: Store) -> int:
    return store.start_run("organize")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "song.mp3"
    path.parent.mkdir()
    path.write_bytes(b"music" * 1000)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    return path


@pytest.fixture
def other_disk() -> Iterator[Path]:
    import tempfile

    if not OTHER_DISK.is_dir() or not os.access(OTHER_DISK, os.W_OK):
        pytest.skip("there is no second file system here")
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as folder:
        if Path(folder).stat().st_dev == Path("/tmp").stat().st_dev:
            pytest.skip("there is no second file system here")
        yield Path(folder)


def _undo(book: Placements, run: int) -> list[placing.TakenBack]:
    return list(take_back(book, book.standing(), run))


@pytest.mark.parametrize("how", WAYS)
def test_a_file_goes_there_and_back(
    book: Placements, run: int, source: Path, tmp_path: Path, how: How
) -> None:
    before = source.read_bytes(), source.stat().st_mtime_ns
    tree = tmp_path / "tree"
    target = tree / "Rock" / "Album" / "song.mp3"
    placed = place(book, Order(run, source, target, how))
    assert placed == placing.Placed(source, target, True)
    assert (target.read_bytes(), target.stat().st_mtime_ns) == before
    assert source.exists() == (how != "move")
    assert (how == "hardlink") == (target.stat().st_nlink == 2)
    (back,) = _undo(book, run)
    assert back.restored, back.how
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert not tree.exists()  # nor any folder that was made
    assert book.standing() == book.pending() == []


@pytest.mark.parametrize("how", WAYS)
def test_nothing_is_ever_replaced(
    book: Placements, run: int, source: Path, tmp_path: Path, how: How
) -> None:
    target = tmp_path / "tree" / "song.mp3"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    (target.parent / "song (2).mp3").mkdir()
    assert place(book, Order(run, source, target, how)).target.name == "song (3).mp3"
    assert target.read_bytes() == b"mine"
    again = source.with_name("again.mp3")
    again.write_bytes(b"music" * 1000)
    placed = place(book, Order(run, again, target, how))
    assert (placed.new, placed.target.name) == (False, "song (3).mp3")
    assert again.exists()
    taken = place(book, Order(run, again, tmp_path / "in" / "again.mp3", how))
    assert not taken.new  # onto itself


def test_a_link_in_the_way_is_no_file_that_is_the_same(
    book: Placements, run: int, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "tree" / "song.mp3"
    target.parent.mkdir()
    target.symlink_to(source)
    assert place(book, Order(run, source, target, "move")).target.name == "song (2).mp3"
    assert target.is_symlink()


def test_a_move_to_another_disk_is_a_checked_copy(
    book: Placements, run: int, source: Path, other_disk: Path
) -> None:
    before = source.read_bytes(), source.stat().st_mtime_ns, source.stat().st_mode
    target = other_disk / "Rock" / "song.mp3"
    with pytest.raises(Unreadable, match="another file system"):
        place(book, Order(run, source, target, "hardlink"))
    assert not target.parent.exists()
    assert place(book, Order(run, source, target, "move")).new
    assert not source.exists()
    now = target.read_bytes(), target.stat().st_mtime_ns, target.stat().st_mode
    assert now == before
    assert os.listdir(other_disk / "Rock") == ["song.mp3"]
    (back,) = _undo(book, run)
    assert back.how == "moved back"
    assert (source.read_bytes(), source.stat().st_mtime_ns, source.stat().st_mode) == before
    assert os.listdir(other_disk) == []


def test_undo_keeps_what_was_changed_and_the_last_copy(
    book: Placements, run: int, source: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    place(book, Order(run, source, tree / "a.mp3", "copy"))
    place(book, Order(run, source, tree / "b.mp3", "copy"))
    (tree / "a.mp3").write_bytes(b"edited")
    source.unlink()
    results = {one.placement.target.name: one for one in _undo(book, run)}
    assert not any(one.restored for one in results.values())
    assert "changed" in results["a.mp3"].how
    assert "original" in results["b.mp3"].how
    assert len(os.listdir(tree)) == 2


def test_undo_does_not_move_onto_another_file(
    book: Placements, run: int, source: Path, tmp_path: Path
) -> None:
    place(book, Order(run, source, tmp_path / "tree" / "a.mp3", "move"))
    source.write_bytes(b"new")
    (one,) = _undo(book, run)
    assert not one.restored
    assert source.read_bytes() == b"new"
    assert (tmp_path / "tree" / "a.mp3").exists()


def test_a_failed_rename_leaves_no_trace(
    book: Placements, run: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(placing, "rename_new", full)
    with pytest.raises(FileError, match="free some space"):
        place(book, Order(run, source, tmp_path / "tree" / "Rock" / "a.mp3", "copy"))
    assert not (tmp_path / "tree").exists()
    assert source.exists()
    assert book.pending() == []


def test_without_the_system_call_nothing_is_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_renameat2", lambda: None)
    a, b, c = (tmp_path / name for name in "abc")
    a.write_text("a")
    b.write_text("b")
    with pytest.raises(FileExistsError):
        placing.rename_new(a, b)
    placing.rename_new(a, c)
    assert (b.read_text(), c.read_text(), a.exists()) == ("b", "a", False)


def test_a_file_that_changes_meanwhile_is_not_placed(
    book: Placements, run: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = placing._copy

    def slow(*args: object) -> None:
        whole(*args)  # type: ignore[arg-type]
        source.write_bytes(b"other")

    monkeypatch.setattr(placing, "_copy", slow)
    with pytest.raises(FileChanged):
        place(book, Order(run, source, tmp_path / "tree" / "a.mp3", "copy"))
    assert not (tmp_path / "tree").exists()


CHILD = """
import sys
from pathlib import Path
from reclass_plex.placements import Placements
from reclass_plex.placing import Order, place, repair, take_back
from reclass_plex.store import Store
root, tree, how, undo = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "undo"
with Store.open(root / "state" / "store.sqlite") as store, store.writing_files(10):
    book = Placements(store)
    list(repair(book))
    run = store.start_run("organize")
    print("ready", flush=True)
    if undo:
        list(take_back(book, book.standing(), run))
    else:
        for path in sorted((root / "in").iterdir()):
            place(book, Order(run, path, tree / "Rock" / path.name, how))
print("done", flush=True)
"""


@pytest.mark.parametrize("across", [False, True])
def test_killed_at_any_instant_every_file_is_there_once_and_whole(
    tmp_path: Path, other_disk: Path, across: bool
) -> None:
    root = tmp_path
    tree = (other_disk if across else tmp_path) / "tree"
    (root / "in").mkdir()
    contents = {f"{n:02}.mp3": bytes([n]) * (200_000 + n) for n in range(12)}
    for name, data in contents.items():
        (root / "in" / name).write_bytes(data)
    random.seed(across)
    began = time.monotonic()
    kills = 0
    for undo in (False, True):
        while True:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(root), str(tree), "move", "undo" if undo else ""],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.readline() == b"ready\n", child.stderr.read()
            time.sleep(random.uniform(0, 0.03))
            if kills < 2 * (1 + undo):
                child.send_signal(signal.SIGKILL)
                kills += 1
            said = child.stdout.read()
            child.stdout.close()
            child.stderr.close()
            child.wait()
            places: dict[str, set[bytes]] = {name: set() for name in contents}
            for folder in (root / "in", tree / "Rock"):
                for path in folder.iterdir() if folder.is_dir() else ():
                    if not is_leftover(path.name):
                        places[path.name].add(path.read_bytes())
            assert {name: {data} for name, data in contents.items()} == places
            if said == b"done\n":
                break
        assert time.monotonic() < began + 60
        here = root / "in" if undo else tree / "Rock"
        assert [name for name in sorted(os.listdir(here)) if not is_leftover(name)] == sorted(
            contents
        )
    with Store.open(root / "state" / "store.sqlite") as store:
        assert list(repair(Placements(store))) == []
        assert Placements(store).standing() == []


@pytest.mark.parametrize(
    ("name", "foreign", "fits"),
    [
        ("What?.mp3", False, "What?.mp3"),
        ("What?: <a>|b*.mp3", True, "What__ _a__b_.mp3"),
        ("Ends with dots...", True, "Ends with dots___"),
        ("con.mp3", True, "_con.mp3"),
        ("Constant.mp3", True, "Constant.mp3"),
        ("ü" * 200 + ".flac", False, "ü" * 125 + ".flac"),
        (
            "Vol. 2 of something long" + "x" * 300,
            False,
            ("Vol. 2 of something long" + "x" * 300)[:255],
        ),
    ],
)
def test_names_fit_the_file_system(name: str, foreign: bool, fits: str) -> None:
    assert file_name(name, foreign=foreign) == fits


def test_a_genre_is_one_visible_folder() -> None:
    made = {text: folder_name(text, foreign=False) for text in ("Soul/R&B", "..", "/", "../../etc")}
    assert made == {"Soul/R&B": "Soul-R&B", "..": "Other", "/": "-", "../../etc": "-..-etc"}
    assert numbered("a" * 255, 2) == "a" * 251 + " (2)"
    assert numbered("x.mp3", 3) == "x (3).mp3"
