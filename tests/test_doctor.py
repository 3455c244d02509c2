"""The doctor, on real folders, files, databases, processes and servers; it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from plex_server import PlexStandIn
from timing import timed

from reclass_plex.backups import DAY, make_backup
from reclass_plex.config import (
    CONFIG_VARIABLE,
    Config,
    PathMap,
    PlexOptions,
    TrustedProxy,
    WatchOptions,
    WebOptions,
    WorkerOptions,
)
from reclass_plex.credentials import CREDENTIALS_VARIABLE, TOKEN_VARIABLE, write_secret
from reclass_plex.doctor import Check, diagnose, examine
from reclass_plex.doctor.checks import within
from reclass_plex.doctor.folders import check_folders
from reclass_plex.doctor.machine import Torch, ask_torch, check_memory, find_nvidia, judge_gpu
from reclass_plex.doctor.process import check_daemon
from reclass_plex.doctor.server import check_plex
from reclass_plex.doctor.storage import check_disks, check_store
from reclass_plex.mounts import missing_mounts, network_mounts
from reclass_plex.password import set_password
from reclass_plex.remote import PlexStatus, Status, to_json, write_daemon_file
from reclass_plex.store import Store

TOKEN = "a-token-to-be-kept"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (TOKEN_VARIABLE, CREDENTIALS_VARIABLE, CONFIG_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def plex() -> Iterator[PlexStandIn]:
    with PlexStandIn(token=TOKEN) as running:
        yield running
        assert running.errors == []


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music" / "Artist" / "Album"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"{number:02}.flac").write_bytes(b"fLaC")
    return tmp_path / "music"


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (status.st_mode, status.st_size, status.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        for status in [path.lstat()]
    }


def levels(checks: Iterable[Check]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in checks:
        found.setdefault(check.level, []).append(f"{check.name}: {check.text}")
        assert check.level == "ok" or check.advice or "chmod" in check.text or check.name == "plex"
    return found


class Nobody:
    """Runs checks of the doctor in a process that is nobody's."""

    def __init__(self) -> None:
        script = """
import json, os, sys, encodings.idna
from pathlib import Path, PosixPath
from reclass_plex.config import *
from reclass_plex.doctor.examine import *
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for line in sys.stdin:
    print(json.dumps([vars(check) for check in eval(line)]), flush=True)
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, function: str, *arguments: object, **named: object) -> list[Check]:
        given = [*map(repr, arguments), *(f"{key}={value!r}" for key, value in named.items())]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{function}({', '.join(given)})\n")
        self.process.stdin.flush()
        return [Check(**check) for check in json.loads(self.process.stdout.readline())]


@pytest.fixture(scope="module")
def as_nobody() -> Iterator[Nobody]:
    nobody = Nobody()
    yield nobody
    nobody.process.communicate()
    assert nobody.process.returncode == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# The whole


def test_without_anything_all_is_well_and_nothing_is_made(home: Path) -> None:
    checks = list(diagnose())
    assert [check for check in checks if check.level == "error"] == []
    names = {check.name for check in checks}
    assert names >= {"configuration", "user", "python", "decoders", "memory", "torch", "gpu"}
    assert names >= {"model files", "ensemble", "store", "disk", "plex", "folder", "daemon"}
    assert list(home.iterdir()) == []


@timed
def test_checks_come_as_they_are_made(home: Path) -> None:
    began = time.monotonic()
    first = next(diagnose())
    assert time.monotonic() - began < 1.0  # torch alone takes longer
    assert first.name == "configuration"
    assert "reclass-plex init" in first.advice


def test_a_broken_configuration_is_a_line_and_the_rest_goes_on(home: Path) -> None:
    path = home / "mine.yaml"
    path.write_text("worker: {device: gpu}\n")
    path.chmod(0o666)
    checks = diagnose(path)
    first, second, third = (next(checks) for _ in range(3))
    assert (first.name, first.level) == ("configuration", "error")
    assert "worker.device: has value 'gpu'" in first.text
    assert (second.level, "mode 666" in second.text) == ("warning", True)
    assert third.name == "user"
    path.chmod(0o600)
    path.write_text("")
    first = next(diagnose(path))
    assert (first.level, first.text) == ("ok", f"{path}, mode 600")
    assert next(diagnose(home / "absent")).level == "error"


def test_a_whole_installation_is_well_and_stays_as_it_is(
    home: Path, plex: PlexStandIn, music: Path
) -> None:
    library = plex.add_library(root=music, location="/music")
    plex.scan(library)
    path = home / "etc" / "config.yaml"
    config = Config(
        plex=PlexOptions(url=plex.url, path_map=(PathMap(plex="/music", local=str(music)),)),
        watch=WatchOptions(folders=(music,)),
        web=WebOptions(port=0),
    )
    write_secret(path, "# as above")
    write_secret(path.with_name("plex-token"), TOKEN)
    Store.open(config.store.resolve()).close()
    before = snapshot(home)
    checks = list(examine(config, path))
    assert snapshot(home) == before
    assert all("PUT" not in line for line in plex.log)
    found = levels(checks)
    assert found.keys() == {"ok", "warning"}
    assert [line for line in found["warning"] if not line.startswith("memory")] == [
        "daemon: does not run"
    ]
    tracks = [check for check in checks if check.name == "plex track"]
    assert len(tracks) == 10
    assert f"/music/Artist/Album/00.flac is {music}/Artist/Album/00.flac: readable, writable" in [
        check.text for check in tracks
    ]
    assert any("Prefer local metadata" in check.text for check in checks)
    assert TOKEN not in "".join(map(str, checks))


# Time limits


@timed
def test_what_hangs_is_an_error_and_the_rest_goes_on() -> None:
    let_go = threading.Event()

    def hang() -> Iterator[Check]:
        yield Check("disk", "ok", "the first")
        let_go.wait()

    began = time.monotonic()
    checks = list(within(0.2, "disk", "do something", hang))
    assert time.monotonic() - began < 5
    assert checks[0].text == "the first"
    assert (checks[1].level, checks[1].advice) == ("error", "do something")
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "doctor: disk":
            thread.join()


def test_an_error_of_the_system_is_a_line_and_a_bug_is_not_hidden() -> None:
    def look(path: str) -> Iterator[Check]:
        yield Check("disk", "ok", str(os.stat(path).st_size / (path != "/")))

    (check,) = within(5, "disk", "", lambda: look("/nowhere"))
    assert (check.level, check.text) == ("error", "cannot be looked at: no such file or directory")
    with pytest.raises(ZeroDivisionError):
        list(within(5, "disk", "", lambda: look("/")))


# The store and the disks


def test_a_sound_store_is_read_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "state" / "a # b%20?.sqlite"
    (check,) = check_store(path)
    assert (check.level, "first run" in check.text) == ("ok", True)
    assert not path.parent.exists()
    with Store.open(path) as store:
        store.start_run("tag")
        check, _ = check_store(path)  # in use, with a -wal file
        assert (check.level, "sound" in check.text) == ("ok", True)
    before = snapshot(tmp_path)
    check, backup = check_store(path)
    assert (backup.name, backup.level, backup.text) == ("backup", "ok", "there is none yet")
    assert (check.level, "sound" in check.text) == ("ok", True)
    assert snapshot(tmp_path) == before
    assert {one.name for one in path.parent.iterdir()} == {path.name, path.name + ".users"}


def test_the_newest_backups_age_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    now = time.time()
    with Store.open(path) as store:
        store.start_run("tag", now=now - 4 * DAY)
    assert levels(check_store(path))["warning"] == ["backup: there is none yet"]
    make_backup(path, now=now - 3.5 * DAY)
    told = levels(check_store(path))["warning"]
    assert told == ["backup: 1 backups, the newest 4 days old"]
    make_backup(path, now=now - 7300)
    assert "backup: 2 backups, the newest 2 hours old" in levels(check_store(path))["ok"]


def test_a_store_that_is_damaged_newer_or_unfinished_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        columns = [row[1] for row in database.execute("PRAGMA table_info(journal)")]
        values = ["pending" if name == "state" else 1 for name in columns]
        marks = ", ".join("?" * len(columns))
        names = ", ".join(f'"{name}"' for name in columns)
        database.execute(f"INSERT INTO journal ({names}) VALUES ({marks})", values)
        database.commit()
    assert levels(check_store(path))["warning"] == [f"store: {path}: 1 changes are not finished"]
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    assert "a newer reclass-plex" in levels(check_store(path))["error"][0]
    data = bytearray(path.read_bytes())
    data[4096 : 3 * 4096] = b"\xa5" * (2 * 4096)
    path.write_bytes(data)
    (check,) = check_store(path)
    assert check.level == "error"
    assert "reclass-plex restore" in check.advice
    path.write_bytes(b"no database at all" * 100)
    assert "damaged" in levels(check_store(path))["error"][0]
    path.rename(path.with_name(path.name + "-wal"))
    assert "is gone, but its log is there" in levels(check_store(path))["error"][0]


@needs_root
def test_a_store_of_another_user_is_told(open_folder: Path, as_nobody: Nobody) -> None:
    path = open_folder / "store.sqlite"
    Store.open(path).close()
    found = levels(as_nobody("check_store", path))
    assert "may not be written nor written in its folder" in found["error"][0]
    path.chmod(0o600)
    found = levels(as_nobody("check_store", path))
    assert "may not be read" in found["error"][0]
    new = open_folder / "new" / "store.sqlite"
    found = levels(as_nobody("check_store", new))
    assert "cannot be made" in found["error"][0]


def test_each_disk_is_named_once(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "absent", Path("/proc")]
    checks = list(check_disks(tmp_path / "none" / "yet" / "store.sqlite", folders))
    assert len(checks) == 2
    assert "free at" in checks[0].text
    assert "does not say" in checks[1].text  # /proc


# Plex


def plex_checks(plex: PlexStandIn, folder: Path, **options: Any) -> list[Check]:
    path = folder / "config.yaml"
    if not path.with_name("plex-token").exists():
        write_secret(path.with_name("plex-token"), TOKEN)
    return list(check_plex(PlexOptions(**{"url": plex.url, **options}), path))


def test_a_token_that_is_missing_open_to_others_or_void_is_told(
    tmp_path: Path, plex: PlexStandIn
) -> None:
    (check,) = check_plex(PlexOptions(url=plex.url), tmp_path / "config.yaml")
    assert (check.name, check.level) == ("plex token", "error")
    assert "reclass-plex init" in check.advice
    token = tmp_path / "plex-token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    plex.add_library()
    found = levels(plex_checks(plex, tmp_path))
    assert "chmod 600" in found["warning"][0]
    assert "error" not in found
    write_secret(token, "void-token")
    (check,) = plex_checks(plex, tmp_path)
    assert (check.name, check.level) == ("plex token", "error")
    assert "owner" in check.advice
    assert "void-token" not in str(check)


@timed
@pytest.mark.parametrize("mode", ["down", "failing", "garbage", "slow"])
def test_a_server_in_trouble_is_an_error_within_the_time(
    tmp_path: Path, plex: PlexStandIn, mode: Literal["down", "failing", "garbage", "slow"]
) -> None:
    plex.delay = 20
    plex.mode = mode
    began = time.monotonic()
    (check,) = plex_checks(plex, tmp_path, timeout_seconds=0.5)
    assert time.monotonic() - began < 5
    assert (check.name, check.level) == ("plex", "error")
    assert check.advice


def test_old_servers_absent_libraries_and_maps_that_lead_nowhere_are_told(
    tmp_path: Path, plex: PlexStandIn, music: Path
) -> None:
    plex.version = "1.32.5.7349"
    library = plex.add_library(location="/music")
    album = music / "Artist" / "Album"
    for number in range(3):
        plex.add_track(library, "A", "B", f"{number}", file=f"/music/Artist/Album/{number:02}.flac")
    plex.add_track(library, "A", "B", "gone", file="/music/Artist/Album/gone\n.flac")
    plex.add_track(library, "A", "B", "far", file="D:\\Music\\x.flac")
    (album / "01.flac").chmod(0o444)
    maps = (PathMap(plex="/music", local=str(music)),)
    checks = plex_checks(plex, tmp_path, path_map=maps, libraries=("Music", "Jazz"))
    found = levels(checks)
    assert any("no music library 'Jazz'" in line for line in found["error"])
    assert any("update Plex to 1.40.0" in line for line in found["warning"])
    assert any("01.flac: readable, but is write-protected" in line for line in found["warning"])
    assert any(
        f"gone\\n.flac is {album}/gone\\n.flac: is not there" in line for line in found["error"]
    )
    assert any("x.flac: has no path on this machine" in line for line in found["error"])
    assert len([check for check in checks if check.name == "plex track"]) == 5
    unmapped = [check for check in plex_checks(plex, tmp_path) if check.name == "plex track"]
    assert all(check.level == "error" and "path_map" in check.advice for check in unmapped)


@needs_root
def test_what_another_user_may_do_with_plex_tracks(
    plex: PlexStandIn, open_folder: Path, as_nobody: Nobody
) -> None:
    album = open_folder / "music"
    album.mkdir()
    library = plex.add_library(location=str(album))
    for name, mode, owner in (("a", 0o600, 0), ("b", 0o666, 0), ("c", 0o644, 65534)):
        path = album / f"{name}.flac"
        path.write_bytes(b"fLaC")
        path.chmod(mode)
        os.chown(path, owner, owner)
        plex.add_track(library, "A", "B", name, file=str(path))
    token = open_folder / "plex-token"
    token.write_text(TOKEN)
    os.chown(token, 65534, 65534)
    token.chmod(0o600)
    arguments = (PlexOptions(url=plex.url), open_folder / "config.yaml")

    def look() -> dict[str, Check]:
        checks = as_nobody("check_plex", *arguments)
        return {c.text.partition(".flac")[0][-1]: c for c in checks if c.name == "plex track"}

    found = look()
    assert (found["a"].level, "may not be read" in found["a"].text) == ("error", True)
    assert (found["b"].level, "folder cannot be written" in found["b"].text) == ("warning", True)
    album.chmod(0o777)
    found = look()
    assert "belongs to user 0, group 0, which a copy would lose" in found["b"].text
    assert found["c"].level == "ok"
    open_folder.chmod(0o700)
    os.chown(open_folder, 65534, 65534)
    album.chmod(0o700)  # root's
    assert "permission denied" in look()["c"].text


# Folders


def test_folders_that_are_away_empty_or_protected_are_told(tmp_path: Path, music: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (music / "Artist" / "Album").iterdir():
        if path.name < "06":
            path.chmod(0o444)
    (music / "broken.mp3").symlink_to(tmp_path / "nowhere")
    folders = tuple(tmp_path / name for name in ("absent", "file", "empty", "music"))
    found = levels(check_folders(WatchOptions(folders=folders), needed=True))
    assert found["error"] == [
        f"folder: {tmp_path}/absent: no such file or directory",
        f"folder: {tmp_path}/file: not a directory",
    ]
    assert f"folder: {tmp_path}/empty: is empty" in found["warning"]
    assert any("6 of 12 files could not be tagged" in line for line in found["warning"])
    assert any("1 cannot be read, such as" in line for line in found["warning"])
    (check,) = check_folders(WatchOptions(), needed=True)
    assert (check.level, "init" in check.advice) == ("warning", True)


def test_folders_are_counted_against_the_limit_of_inotify(music: Path) -> None:
    checks = list(check_folders(WatchOptions(folders=(music,)), needed=True))
    (check,) = (check for check in checks if check.name == "inotify" and "to watch" in check.text)
    assert check.text.startswith("3 folders to watch, ")
    polled = check_folders(WatchOptions(folders=(music,), always_poll=True), needed=True)
    assert [check.name for check in polled] == ["folder"]


@needs_root
def test_folders_are_looked_at_as_the_user_who_asks(open_folder: Path, as_nobody: Nobody) -> None:
    (open_folder / "music").mkdir()
    (open_folder / "music" / "a.mp3").write_bytes(b"x")
    options = WatchOptions(folders=(open_folder / "music",), always_poll=True)
    found = levels(as_nobody("check_folders", options, needed=True))
    assert "1 of 1 files could not be tagged" in found["error"][0]
    (open_folder / "music").chmod(0o700)
    found = levels(as_nobody("check_folders", options, needed=True))
    assert "permission denied" in found["error"][0]


FSTAB = r"""# <file system> <mount point> <type> <options>
UUID=1 / ext4 errors=remount-ro 0 1
UUID=2 none swap sw 0 0
nas:/music /mnt/my\040music nfs defaults,_netdev 0 0
nas:/video /mnt/video nfs defaults 0 0
"""
MOUNTINFO = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/video rw,relatime shared:5 - nfs4 nas:/video rw
"""


def test_mounts_of_fstab_that_are_away_are_known() -> None:
    assert missing_mounts(Path("/mnt/my music/new"), FSTAB, MOUNTINFO) == ["/mnt/my music"]
    for root in ("/mnt/video", "/mnt/my music2", "/srv", "/mnt"):
        assert missing_mounts(Path(root), FSTAB, MOUNTINFO) == []
    assert network_mounts(Path("/mnt/video/a"), MOUNTINFO) == ["/mnt/video (nfs4)"]


# The machine


@pytest.mark.parametrize(
    ("torch", "nvidia", "device", "level", "text"),
    [
        (Torch("2", 2), None, "auto", "ok", "none: the CPU computes"),
        (Torch("2", 2), None, "cuda", "error", "there is none"),
        (Torch("2", 2), "RTX 4070, driver 550", "cpu", "ok", "not asked for"),
        (Torch("2+cpu", 2), "RTX 4070", "auto", "warning", "without CUDA; the CPU computes"),
        (Torch("2+cpu", 2), "a Jetson", "cuda", "error", "built without CUDA"),
        (Torch("2", 2, cuda="12.4"), "RTX 4070", "auto", "warning", "torch finds none"),
        (Torch("2", 2, cuda="12.4"), None, "auto", "ok", "none"),
        (
            Torch("2", 2, "12.4", "RTX 4070", free=8 << 30, total=12 << 30, works=True),
            "RTX 4070, driver 550, 12282 MiB",
            "cuda",
            "ok",
            "RTX 4070, driver 550, 12282 MiB, CUDA 12.4, 8.0 of 12.0 GiB free",
        ),
        (
            Torch("2", 2, "12.4", "RTX 4070", free=8 << 20, total=12 << 30, works=True),
            None,
            "auto",
            "warning",
            "0.0 of 12.0 GiB free",
        ),
        (
            Torch("2", 2, "12.4", "GTX 680", problem="no kernel image is available"),
            "GTX 680",
            "auto",
            "warning",
            "no kernel image is available; the CPU computes",
        ),
    ],
)
def test_a_gpu_is_judged_by_what_is_asked_for(
    torch: Torch,
    nvidia: str | None,
    device: Literal["auto", "cpu", "cuda"],
    level: str,
    text: str,
) -> None:
    check = judge_gpu(torch, nvidia, WorkerOptions(device=device))
    assert (check.level, text in check.text) == (level, True), check
    assert check.level == "ok" or check.advice


def test_torch_is_asked_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    found = ask_torch()
    assert isinstance(found, Torch)
    assert found.version == str(torch.__version__)
    assert found.works == torch.cuda.is_available()
    broken = "libcudart.so.12: cannot open shared object file"
    (tmp_path / "torch.py").write_text(f"raise ImportError('{broken}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask_torch() == f"cannot be used: ImportError: {broken}"
    (tmp_path / "torch.py").write_text("import os; os.kill(os.getpid(), 11)")
    assert ask_torch() == "cannot be used: exit status -11"
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    assert ask_torch(0.5) == "torch and the GPU did not answer within 0.5 s"


def test_the_driver_is_asked_and_need_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    without = find_nvidia()
    command.write_text("#!/bin/sh\necho 'NVIDIA RTX 4070, 550.120, 12282 MiB'\necho second\n")
    command.chmod(0o755)
    assert find_nvidia() == "NVIDIA RTX 4070, driver 550.120, 12282 MiB"
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert find_nvidia() == without
    command.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    assert "does not answer" in str(find_nvidia(0.3))
    command.write_text("no program")
    assert find_nvidia() == without


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    assert [check.name for check in check_memory()] == ["memory"]
    small = tmp_path / "meminfo"
    small.write_text("MemTotal:  4000000 kB\nMemFree: 1 kB\nMemAvailable:   500000 kB\n")
    (check,) = check_memory(small)
    assert (check.level, check.text) == ("warning", "0.5 of 3.8 GiB available")
    assert list(check_memory(tmp_path / "none")) == []


# The daemon


class _Daemon(BaseHTTPRequestHandler):
    """Answers as the daemon does."""

    status: Status

    def do_GET(self) -> None:
        body = to_json({"pid": os.getpid()}) if self.path == "/healthz" else to_json(self.status)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_running_daemon_is_asked_how_it_is(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    trouble = PlexStatus(state="needs sign-in", message="the token is void")
    _Daemon.status = Status(
        version="0.0.1",
        state="paused",
        why="by hand",
        jobs={"ready": 3, "failed": 2, "done": 0},
        plex=trouble,
        since=0,
    )
    with HTTPServer(("127.0.0.1", 0), _Daemon) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            write_daemon_file(store, f"http://127.0.0.1:{server.server_address[1]}", TOKEN)
            checks = list(check_daemon(WebOptions(), store, needed=True))
        finally:
            server.shutdown()
            thread.join()
    found = levels(checks)
    assert "paused (by hand); jobs: 3 ready, 2 failed" in found["ok"][0]
    assert [line.partition(": ")[2] for line in found["warning"]][1:] == [
        "2 tracks have failed",
        "Plex: the token is void",
    ]
    assert "is version 0.0.1" in found["warning"][0]
    assert TOKEN not in str(checks)


def test_without_a_daemon_its_port_must_be_free(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            checks = list(check_daemon(WebOptions(host=host, port=port), store, needed=True))
            assert [(check.name, check.level) for check in checks if check.name != "web"] == [
                ("daemon", "warning"),
                ("port", "error"),
            ]
    (check,) = check_daemon(WebOptions(port=port), store, needed=False)
    assert (check.name, check.level) == ("daemon", "ok")


def test_on_the_network_somebody_must_be_able_to_sign_in(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"

    def warned(options: WebOptions, place: Path = store) -> list[str]:
        checks = check_daemon(options, place, needed=False)
        return [check.text for check in checks if check.name == "web"]

    (text,) = warned(WebOptions(host="192.0.2.1", port=0))
    assert "192.0.2.1" in text
    assert warned(WebOptions(host="localhost", port=0)) == []
    proxy = TrustedProxy.model_validate({"addresses": ["10.0.0.2"], "user_header": "X-User"})
    assert warned(WebOptions(host="0.0.0.0", port=0, trusted_proxy=proxy)) == []
    assert warned(WebOptions(host="0.0.0.0", port=0), tmp_path / "gone" / "store.sqlite") == []
    set_password(store, "a password of some length")
    assert warned(WebOptions(host="0.0.0.0", port=0)) == []
