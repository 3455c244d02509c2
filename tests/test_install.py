from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reclass_plex.config import load_config

ROOT = Path(__file__).parent.parent
INSTALL = ROOT / "systemd" / "install.sh"
FILES = {
    "etc/reclass-plex/config.yaml",
    "etc/systemd/system/reclass-plex-prepare.service",
    "etc/systemd/system/reclass-plex.service",
    "etc/sysusers.d/reclass-plex.conf",
    "opt/reclass-plex/config.example.yaml",
    "opt/reclass-plex/prepare.py",
    "usr/local/bin/reclass-plex",
    "usr/local/bin/reclass-plexd",
}
KEPT = {"etc/reclass-plex/config.yaml", "etc/sysusers.d/reclass-plex.conf"}
USER = "etc/systemd/system/reclass-plex.service.d/20-user.conf"


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """A DESTDIR as awkward as it may be."""
    return tmp_path / "a dest & 'dir'"


def install(verb: str, dest: Path | str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run install.sh as make does, without the virtual environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment = {**kept, "DESTDIR": str(dest), "INSTALL_VENV": "skip", **variables}
    return subprocess.run(
        ["sh", INSTALL, verb], env=environment, capture_output=True, text=True, check=False
    )


def succeeds(verb: str, dest: Path, **variables: str) -> str:
    done = install(verb, dest, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def files_in(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def test_make_passes_its_variables(dest: Path) -> None:
    """`make install DESTDIR=...` is what people type."""
    command = ["make", "-C", str(ROOT), "install", f"DESTDIR={dest}", "INSTALL_VENV=skip"]
    subprocess.run(command, capture_output=True, check=True)
    assert files_in(dest) == FILES
    command = ["make", "-C", str(ROOT), "uninstall", f"DESTDIR={dest}", "PURGE=1"]
    subprocess.run(command, capture_output=True, check=True)
    assert files_in(dest) == set()


def test_it_lays_out_exactly_these_files(dest: Path) -> None:
    succeeds("install", dest)
    assert files_in(dest) == FILES
    for command in ("reclass-plex", "reclass-plexd"):
        link = dest / "usr/local/bin" / command
        assert os.readlink(link) == f"/opt/reclass-plex/venv/bin/{command}"


def test_the_configuration_is_private_and_names_the_store(dest: Path) -> None:
    succeeds("install", dest)
    file = dest / "etc/reclass-plex/config.yaml"
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.parent.stat().st_mode & 0o777 == 0o750
    example = yaml.safe_load((ROOT / "config.example.yaml").read_text(encoding="utf-8"))
    example["store"]["path"] = "/var/lib/reclass-plex/store.sqlite"
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == example
    assert load_config(file).store.path == Path("/var/lib/reclass-plex/store.sqlite")


def test_a_second_installation_keeps_what_you_edited(dest: Path) -> None:
    succeeds("install", dest)
    config = dest / "etc/reclass-plex/config.yaml"
    config.write_text("watch: {folders: [/mnt/music]}\n", encoding="utf-8")
    example = dest / "opt/reclass-plex/config.example.yaml"
    example.write_text("old", encoding="utf-8")
    succeeds("install", dest)
    assert files_in(dest) == FILES
    assert config.read_text(encoding="utf-8") == "watch: {folders: [/mnt/music]}\n"
    assert example.read_bytes() == (ROOT / "config.example.yaml").read_bytes()


def test_another_prefix_is_everywhere(dest: Path) -> None:
    succeeds("install", dest, PREFIX="/srv/apps/reclass_1.0")
    assert {name for name in files_in(dest) if name.startswith(("opt", "srv"))} == {
        "srv/apps/reclass_1.0/config.example.yaml",
        "srv/apps/reclass_1.0/prepare.py",
    }
    for unit in (dest / "etc/systemd/system").glob("*.service"):
        commands = re.findall(r"^ExecStart=/usr/bin/env (\S+)", unit.read_text(), re.MULTILINE)
        assert [command.rpartition("/")[0] for command in commands] == [
            "/srv/apps/reclass_1.0/venv/bin"
        ]
    link = dest / "usr/local/bin/reclass-plexd"
    assert os.readlink(link) == "/srv/apps/reclass_1.0/venv/bin/reclass-plexd"
    succeeds("uninstall", dest, PREFIX="/srv/apps/reclass_1.0")
    assert files_in(dest) == KEPT


def test_the_chosen_user_stays_until_another_is_chosen(dest: Path) -> None:
    succeeds("install", dest, SERVICE_USER="anna")
    assert files_in(dest) == FILES | {USER}
    assert "\nUser=anna\n" in (dest / USER).read_text(encoding="utf-8")
    succeeds("install", dest)
    assert "\nUser=anna\n" in (dest / USER).read_text(encoding="utf-8")
    succeeds("install", dest, SERVICE_USER="reclass-plex")
    assert files_in(dest) == FILES


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_installed_units_are_sound(dest: Path) -> None:
    succeeds("install", dest, SERVICE_USER="anna", PREFIX="/srv/reclass")
    for unit in (dest / "etc/systemd/system").glob("*.service"):
        done = subprocess.run(
            ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_uninstalling_removes_ours_alone(dest: Path) -> None:
    succeeds("install", dest, SERVICE_USER="anna")
    foreign = {
        "etc/reclass-plex/plex-token",
        "etc/systemd/system/other.service",
        "etc/systemd/system/reclass-plex.service.d/override.conf",
        "opt/reclass-plex/notes.txt",
        "opt/reclass-plex/venv/bin/python",
        "usr/local/bin/other",
        "var/lib/reclass-plex/store.sqlite",
    }
    for name in foreign:
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        (dest / name).write_text("not ours", encoding="utf-8")
    (dest / "etc/systemd/system/reclass-plex.service.d/10-from-config.conf").touch()
    said = succeeds("uninstall", dest)
    assert files_in(dest) == KEPT | foreign
    for place in ("etc/reclass-plex", "var/lib/reclass-plex"):
        assert str(dest / place) in said
    succeeds("uninstall", dest, PURGE="1")
    gone = {name for name in foreign if name.startswith(("etc/reclass-plex", "var"))}
    assert files_in(dest) == foreign - gone


def test_uninstalling_removes_our_virtual_environment(dest: Path) -> None:
    succeeds("install", dest)
    venv = dest / "opt/reclass-plex/venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".reclass-plex").touch()
    succeeds("uninstall", dest)
    assert files_in(dest) == KEPT
    assert not (dest / "opt/reclass-plex").exists()


def test_uninstalling_nothing_is_fine(dest: Path) -> None:
    succeeds("uninstall", dest)
    succeeds("uninstall", dest, PURGE="1")
    assert not dest.exists()


def test_a_foreign_command_of_that_name_is_left_alone(dest: Path) -> None:
    command = dest / "usr/local/bin/reclass-plex"
    command.parent.mkdir(parents=True)
    command.write_text("mine", encoding="utf-8")
    done = install("install", dest)
    assert done.returncode != 0
    assert f"{command} exists and is not ours" in done.stderr
    install("uninstall", dest)
    assert command.read_text(encoding="utf-8") == "mine"


def test_a_foreign_virtual_environment_is_left_alone(dest: Path) -> None:
    venv = dest / "opt/reclass-plex/venv"
    venv.mkdir(parents=True)
    done = install("install", dest, INSTALL_VENV="")
    assert done.returncode != 0
    assert f"{venv} exists and is not ours" in done.stderr


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"PREFIX": "opt"}, "PREFIX=opt must be a full path"),
        ({"PREFIX": "/opt/my apps"}, "may hold only"),
        ({"PREFIX": "/opt/a|b"}, "may hold only"),
        ({"DESTDIR": "here"}, "DESTDIR=here must be a full path"),
        ({"SERVICE_USER": "root"}, "never runs as root"),
        ({"SERVICE_USER": "a\nUser=root"}, "is no user name"),
    ],
)
def test_bad_values_are_refused(dest: Path, variables: dict[str, str], complaint: str) -> None:
    destination = variables.pop("DESTDIR", str(dest))
    done = install("install", destination, **variables)
    assert done.returncode != 0
    assert complaint in done.stderr
    assert not dest.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_installs_for_all() -> None:
    done = install("install", "")
    assert done.returncode != 0
    assert "must be run by root: sudo make install" in done.stderr


def test_a_python_in_a_home_is_refused(tmp_path: Path, dest: Path) -> None:
    """The service sees no homes, so it could not start."""
    python = tmp_path / "python"
    lines = ["#!/bin/sh", 'case "$2" in *base_prefix*) echo /home/anna/.pyenv ;; esac']
    python.write_text("\n".join(lines), encoding="utf-8")
    python.chmod(0o755)
    done = install("install", dest, INSTALL_VENV="", PYTHON=str(python))
    assert done.returncode != 0
    assert "lies in a home" in done.stderr
    assert not dest.exists()


def test_relocated_scripts_name_the_final_place(dest: Path) -> None:
    """Runs the script's own function on a real, empty virtual environment."""
    venv = dest / "opt/reclass-plex/venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    script = venv / "bin" / "hello"
    script.write_text(f"#!/bin/sh\n'''exec' \"{venv}/bin/python\" \"$0\" \"$@\"\n' '''\n")
    script.chmod(0o755)
    text = INSTALL.read_text(encoding="utf-8")
    function = re.search(r"^relocate\(\) \{.*?^\}$", text, re.MULTILINE | re.DOTALL)
    assert function is not None
    variables = {"DESTDIR": str(dest), "PREFIX": "/opt/reclass-plex", "VENV": str(venv)}
    subprocess.run(["sh", "-euc", f"{function[0]}\nrelocate"], env=variables, check=True)
    assert "'''exec' \"/opt/reclass-plex/venv/bin/python\"" in script.read_text()
    assert script.stat().st_mode & 0o777 == 0o755
    for file in (venv / "bin").iterdir():
        assert file.is_symlink() or str(dest) not in file.read_text(encoding="utf-8")
