"""The unit's sandbox, tried for real: the daemon works in it, and nothing in it reaches further.

bubblewrap builds what systemd/reclass-plex.service and the drop-in of systemd/prepare.py say (see
unit_sandbox). Each restriction is also taken out of the unit, to see that it was the unit's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from daemon_tools import DEMO, PATIENCE, wait_until
from plex_server import PlexStandIn
from unit_sandbox import ROOT, UID, NotKnown, Sandbox, directives, why_not

from reclass_plex.audio import audio_digest
from reclass_plex.tags import read_tags

UNIT = ROOT / "systemd/reclass-plex.service"
OWNER = 64400  # of the music: another user, whose group the daemon's is
TOKEN = "sandbox-token-1234"
TRACKS = {
    "/mnt/music": "Muldjord - Mutilated Mime.mp3",
    "/home/anna/Music": "HSR - City.ogg",
    "/mnt/photos": "Legoluft - Space-Atmo.opus",
}
BLOCKED = {"EPERM", "EROFS", "EACCES", "ENOENT"}

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

# Tries what a daemon that was taken over would, and says how each ended.
PROBE = r"""
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
said = {}
def attempt(name, work):
    try:
        work()
        said[name] = "done"
    except OSError as error:
        said[name] = errno.errorcode[error.errno]
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def write(path):
    with open(path, "ab") as file:
        file.write(b"x")
    os.unlink(path)
for path in json.loads(sys.argv[1]):
    attempt(path, lambda: write(path))
for path in json.loads(sys.argv[2]):
    attempt("read " + path, lambda: os.stat(path))
attempt("append config", lambda: open("/etc/reclass-plex/config.yaml", "ab"))
attempt("mount", lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
attempt("namespace", lambda: call("unshare", 0x10000000))
attempt("personality", lambda: call("personality", 0x0040000))
attempt("hostname", lambda: call("sethostname", b"x", 1))
attempt("family", lambda: socket.socket(30, socket.SOCK_DGRAM))
def setuid():
    open("/tmp/x", "w").close()
    os.chmod("/tmp/x", 0o4755)
attempt("setuid file", setuid)
attempt("device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0)))
attempt("owner", lambda: os.chown("/tmp/x", 4242, -1))
attempt("other call", lambda: call("syscall", 444, 0, 0, 0))  # landlock_create_ruleset
said["processes"] = sum(one.isdigit() for one in os.listdir("/proc"))
status = open("/proc/self/status").read()
said["capabilities"] = status.partition("CapEff:")[2].split()[0]
print(json.dumps(said))
"""
STATE = "/var/lib/reclass-plex/x"
WRITTEN = [STATE, "/var/cache/reclass-plex/x", "/mnt/music/x", "/home/anna/Music/x", "/tmp/x"]
WRITTEN += ["/var/tmp/x", "/dev/shm/x"]
OUTSIDE = ["/x", "/etc/x", "/usr/x", "/opt/x", "/srv/x", "/run/x", "/var/x", "/var/lib/x", "/mnt/x"]
OUTSIDE += ["/mnt/photos/x", "/home/x", "/home/anna/x", "/root/x", "/dev/x", "/proc/sys/x"]
OUTSIDE += ["/sys/x", f"{ROOT}/x", f"{sys.prefix}/x"]


@dataclass(frozen=True)
class Machine:
    """What the machine has where, and the drop-in that prepare.py made of its configuration."""

    root: Path
    drop_in: Path

    @property
    def stage(self) -> dict[str, Path]:
        places = ["/etc/reclass-plex", "/var/lib/reclass-plex", "/var/cache/reclass-plex"]
        places += ["/run/credentials/reclass-plex.service", "/home/anna/keys", *TRACKS]
        return {place: self.root / place[1:].replace("/", "_") for place in places}

    def sandbox(self, without: str = "", drop_in: bool = True) -> Sandbox:
        text = UNIT.read_text(encoding="utf-8")
        assert not without or f"\n{without}\n" in text
        unit = self.root / "reclass-plex.service"
        unit.write_text(text.replace(f"\n{without}\n", "\n") if without else text)
        return Sandbox.of([unit, *([self.drop_in] if drop_in else [])], self.stage)

    def configure(self, plex: str, folders: list[str]) -> None:
        config = {
            "watch": {"folders": folders, "settle_seconds": 0.3},
            "web": {"port": 0},
            "plex": {"url": plex},
        }
        file = self.stage["/etc/reclass-plex"] / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o666)  # else it would be the mode that forbids


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, tmp_path / "reclass-plex.service.d" / "10-from-config.conf")
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    for place, folder in made.stage.items():
        folder.mkdir()
        folder.chmod(0o777)
        if place.startswith("/var"):
            folder.chmod(0o700)
            _give(folder, UID, UID)
    (made.stage["/home/anna/keys"] / "id").write_text("private")
    token = made.stage["/etc/reclass-plex"] / "plex-token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    given = made.stage["/run/credentials/reclass-plex.service"] / "plex-token"
    shutil.copy(token, given)
    given.chmod(0o400)
    _give(given, UID, UID)
    with PlexStandIn(token=TOKEN) as plex:
        for number, (place, name) in enumerate(TRACKS.items()):
            track = made.stage[place] / name
            shutil.copy(DEMO / name, track)
            track.chmod(0o664)
            _give(track, OWNER, UID)
            if not number:
                plex.scan(plex.add_library(location=place, root=made.stage[place]))
        made.configure(plex.url, ["/mnt/music", "/home/anna/Music"])
        config = made.stage["/etc/reclass-plex"] / "config.yaml"
        command = [sys.executable, "-I", str(ROOT / "systemd/prepare.py"), "--no-reload"]
        command += ["--config", str(config), "--drop-in", str(made.drop_in)]
        subprocess.run(command, check=True, capture_output=True)
        # Then somebody adds a folder, and the daemon is not started anew.
        made.configure(plex.url, list(TRACKS))
        yield made


def _give(path: Path, user: int, group: int) -> None:
    if os.geteuid() == 0:
        mode = path.stat().st_mode & 0o7777
        os.chown(path, user, group)
        path.chmod(mode)


def probe(sandbox: Sandbox) -> dict[str, Any]:
    seen = [
        "/home/anna/keys/id",
        "/home/anna/Music",
        str(Path(__file__)),
        "/dev/sda",
        "/etc/passwd",
    ]
    arguments = [sys.executable, "-c", PROBE, json.dumps([*WRITTEN, *OUTSIDE]), json.dumps(seen)]
    with sandbox.start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_nothing_outside_can_be_written_seen_or_asked_for(machine: Machine) -> None:
    said = probe(machine.sandbox())
    assert {path: said[path] for path in WRITTEN} == dict.fromkeys(WRITTEN, "done")
    assert {path: said[path] for path in OUTSIDE if said[path] not in BLOCKED} == {}
    # Where modes would let us, it is the mount that does not.
    assert said["/mnt/photos/x"] == said["append config"] == "EROFS"
    assert said["read /etc/passwd"] == said["read /home/anna/Music"] == "done"
    assert said["read /home/anna/keys/id"] == said["read /dev/sda"] == "ENOENT"
    calls = ["mount", "namespace", "personality", "hostname", "family", "setuid file", "device"]
    calls += ["other call"]
    assert {name: said[name] for name in calls} == dict.fromkeys(calls, "EPERM")
    assert said["processes"] <= 2  # bubblewrap, and the probe
    if os.geteuid() == 0:
        assert int(said["capabilities"], 16) == 1 << 0 | 1 << 3  # CAP_CHOWN, CAP_FOWNER
        assert said["owner"] == "done"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("ProtectSystem=strict", "/mnt/photos/x"),
        ("ProtectHome=tmpfs", "read /home/anna/keys/id"),
        ("LockPersonality=yes", "personality"),
        ("RestrictSUIDSGID=yes", "setuid file"),
    ],
)
def test_each_restriction_is_the_units(machine: Machine, line: str, what: str) -> None:
    """Without its line in the unit, what it forbids can be done: nothing here forbids it too."""
    assert probe(machine.sandbox(without=line))[what] == "done"


def test_what_may_be_written_is_said_by_the_unit_and_its_drop_in(machine: Machine) -> None:
    assert probe(machine.sandbox(drop_in=False))["/mnt/music/x"] == "EROFS"
    assert probe(machine.sandbox(drop_in=False))["/home/anna/Music/x"] == "ENOENT"
    assert probe(machine.sandbox(without="StateDirectory=reclass-plex"))[STATE] == "EROFS"
    calls = "SystemCallFilter=@system-service"
    assert probe(machine.sandbox(without=calls))["other call"] != "EPERM"
    families = "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK"
    assert probe(machine.sandbox(without=families))["family"] != "EPERM"
    if os.geteuid() == 0:
        capabilities = "AmbientCapabilities=CAP_CHOWN CAP_FOWNER"
        said = probe(machine.sandbox(without=capabilities))
        assert (int(said["capabilities"], 16), said["owner"]) == (0, "EPERM")


def test_a_new_directive_must_be_taught(tmp_path: Path) -> None:
    unit = tmp_path / "reclass-plex.service"
    unit.write_text(UNIT.read_text().replace("[Service]\n", "[Service]\nInaccessiblePaths=/srv\n"))
    with pytest.raises(NotKnown, match="InaccessiblePaths"):
        directives(unit)


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_daemon_does_its_work_in_it_and_no_more(machine: Machine, tmp_path: Path) -> None:
    stage = machine.stage
    tracks = {place: stage[place] / name for place, name in TRACKS.items()}
    link = stage["/mnt/music"] / "link.opus"
    link.symlink_to(f"/mnt/photos/{TRACKS['/mnt/photos']}")
    before = {place: _hashes(stage[place]) for place in ("/mnt/photos", "/etc/reclass-plex")}
    digests = {place: audio_digest(track) for place, track in tracks.items()}
    log = tmp_path / "daemon.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("wb") as out:
        ready.bind(f"\0reclass-plex-{os.getpid()}")
        ready.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": f"@reclass-plex-{os.getpid()}", "INVOCATION_ID": "0"}
        process = machine.sandbox().start(environment=environment, stdout=out, stderr=out)
        try:
            wait_until(
                lambda: process.poll() is not None or b"READY=1" in ready.recv(4096), "READY"
            )
            assert process.poll() is None, log.read_text()
            wait_until(lambda: _counts(machine)["done"] >= 2, "two are tagged")
            wait_until(lambda: sum(_counts(machine).values()) >= 3, "all are seen")
            wait_until(lambda: not _counts(machine)["running"] + _counts(machine)["ready"], "idle")
        finally:
            process.terminate()
            process.wait(PATIENCE)
    said = log.read_text()
    assert "Plex: Plex server Stand-in" in said, said  # with the token that only root may read
    assert f"{TRACKS['/mnt/photos']}: its file system is read-only" in said
    for place in ("/mnt/music", "/home/anna/Music"):
        assert read_tags(tracks[place]).genres, said
        assert audio_digest(tracks[place]) == digests[place]
        if os.geteuid() == 0:
            status = tracks[place].stat()
            assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (OWNER, UID, 0o664)
    assert {place: _hashes(stage[place]) for place in before} == before
    assert link.is_symlink()


def _counts(machine: Machine) -> dict[str, int]:
    file = machine.stage["/var/lib/reclass-plex"] / "daemon.json"
    entry = json.loads(file.read_bytes())
    head = {"Authorization": f"Bearer {entry['token']}"}
    answer = requests.get(f"{entry['url']}/api/v1/status", headers=head, timeout=20)
    found: dict[str, int] = answer.json()["jobs"]
    return found
