"""What the service is installed from: every package pinned by version and hash, and held to it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "systemd" / "requirements.txt"
TORCH_LOCK = ROOT / "systemd" / "requirements-torch.txt"
INSTALL = ROOT / "systemd" / "install.sh"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
APART = set(PROJECT["tool"]["uv"]["pip"]["no-emit-package"])  # torch, and what comes with it


@dataclass(frozen=True)
class Pin:
    """A line of the lock: a package in one version, on some Pythons, and its files' digests."""

    requirement: Requirement
    digests: tuple[str, ...]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        (only,) = self.requirement.specifier
        assert only.operator == "=="
        return only.version


def read_lock(text: str) -> list[Pin]:
    """Return the pins. Anything else in it, an option or an address say, is an error."""
    found = []
    for entry in re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines():
        first, *rest = re.split(r"\s+--hash=", entry.strip())
        assert not first.startswith("-"), entry
        assert "@" not in first, entry
        for digest in rest:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest), entry
        found.append(Pin(Requirement(first), tuple(rest)))
    return found


PINS = read_lock(LOCK.read_text(encoding="utf-8"))
TORCH_PINS = read_lock(TORCH_LOCK.read_text(encoding="utf-8"))


def environment(python: str, machine: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "extra": "",
    }


def pins_for(python: str, machine: str, pins: Sequence[Pin] = PINS) -> dict[str, Pin]:
    """Return what pip takes there; a package that it would find twice is an error."""
    where = environment(python, machine)
    found: dict[str, Pin] = {}
    for pin in pins:
        if pin.requirement.marker is None or pin.requirement.marker.evaluate(where):
            assert pin.name not in found, f"{pin.name} twice for Python {python} on {machine}"
            found[pin.name] = pin
    return found


def wants() -> list[Requirement]:
    """Return what pyproject.toml asks for: to run, and to build."""
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    return [Requirement(one) for one in asked]


def test_every_package_has_digests() -> None:
    assert len(PINS) > 60
    assert len(TORCH_PINS) > 20
    assert [pin.name for pin in (*PINS, *TORCH_PINS) if not pin.digests] == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_torch_and_what_comes_with_it_are_in_a_lock_of_their_own(python: str, machine: str) -> None:
    """Else: make lock. It is the torch that the tests run with."""
    pins = pins_for(python, machine, TORCH_PINS)
    assert set(pins) <= APART
    assert {"torch", "triton", "sympy", "nvidia-cublas", "nvidia-cudnn-cu13"} <= set(pins)
    tested = (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert tested == f"torch=={pins['torch'].version}"
    here = distribution("torch")
    assert here.version.partition("+")[0] == pins["torch"].version
    where = environment(python, machine)
    for needed in map(Requirement, here.requires or ()):
        if needed.marker is None or needed.marker.evaluate(where):
            name = canonicalize_name(needed.name)
            pin = pins.get(name) or pins_for(python, machine)[name]
            assert needed.specifier.contains(pin.version), f"torch needs {needed}: make lock"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_lock_has_what_the_project_asks_for(python: str, machine: str) -> None:
    """Else: make lock."""
    pins = pins_for(python, machine)
    for wanted in wants():
        name = canonicalize_name(wanted.name)
        if name in APART:
            assert name not in pins
            continue
        assert name in pins, f"{name} is not in systemd/requirements.txt: make lock"
        assert wanted.specifier.contains(pins[name].version), f"{wanted}: make lock"


def test_the_lock_is_complete() -> None:
    """What the packages themselves ask for is there too, in a version that suits them."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python not in PYTHONS:
        pytest.skip(f"the lock was not looked at for Python {python}")
    pins = pins_for(python, os.uname().machine)
    queue: list[tuple[Requirement, str]] = [(one, "us") for one in wants()]
    looked: set[tuple[str, frozenset[str]]] = set()
    checked = 0
    while queue:
        wanted, by = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if name in APART or (name, extras) in looked:
            continue
        looked.add((name, extras))
        assert name in pins, f"{by} needs {name}: make lock"
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        if here.version != pins[name].version:
            continue  # it may ask for something else
        checked += 1
        for text in here.requires or ():
            needed = Requirement(text)
            where = environment(python, os.uname().machine)
            choices = [where | {"extra": extra} for extra in ("", *extras)]
            if needed.marker is None or any(needed.marker.evaluate(one) for one in choices):
                queue.append((needed, f"{name} {here.version}"))
                at = pins.get(canonicalize_name(needed.name))
                assert at is None or needed.specifier.contains(at.version), f"{name}: {needed}"
    assert checked > 15, f"only {checked} packages of this environment are those of the lock"


def test_the_installer_takes_the_lock_unless_it_is_told_not_to() -> None:
    text = INSTALL.read_text(encoding="utf-8")
    assert "LOCK=${LOCK:-$SOURCE/systemd/requirements.txt}" in text
    assert text.count("--require-hashes --no-deps -r") == 2
    assert "TORCH_LOCK=$SOURCE/systemd/requirements-torch.txt" in text


@pytest.mark.parametrize(
    ("given", "gpu", "taken"),
    [
        ({}, True, "locked"),
        ({}, False, "torch -c constraints-cpu.txt"),
        ({"TORCH": "cpu"}, True, "torch -c constraints-cpu.txt"),
        ({"TORCH": "/a/torch.whl"}, True, "/a/torch.whl"),
        ({"LOCK": "skip"}, True, "torch"),
        ({"PIP_ARGS": "numpy<2"}, True, "torch"),
    ],
)
def test_a_machine_with_a_gpu_gets_the_torch_of_the_lock(
    tmp_path: Path, given: dict[str, str], gpu: bool, taken: str
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    programs = {"uname": "echo x86_64", "python3": "exit 1"}  # a Python without any torch
    if gpu:
        programs["nvidia-smi"] = "exit 0"
    for name, body in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-euc", function("choose_torch") + "\nchoose_torch; echo $torch $constraints"],
        env={"PATH": str(tools), "PYTHON": "python3", "MARK": "/none", "LOCK": "a", **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == taken


# Held to it: the installer's own function, the real pip, packages made here


def make_wheel(folder: Path, content: str) -> Path:
    """Write the wheel of a package with one module."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "tiny_thing-1.0-py3-none-any.whl"
    info = "tiny_thing-1.0.dist-info"
    files = {
        "tiny_thing.py": content,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return wheel


def function(name: str) -> str:
    """Return the text of one function of install.sh."""
    text = INSTALL.read_text(encoding="utf-8")
    found = re.search(rf"^{name}\(\) \{{.*?\}}$", text, re.M | re.S)
    assert found is not None, name
    return found[0]


def install_locked(target: Path, lock: Path, wheels: Path) -> subprocess.CompletedProcess[str]:
    """Run the function of install.sh that installs the lock, and leave our own package out."""
    code = function("install_locked") + "\n" + function("pip_install")
    assert "--no-build-isolation" in code
    code = re.sub(r"^.*--no-build-isolation.*\n", "", code, flags=re.M)
    variables = {"LOCK": str(lock), "VENV": sys.prefix, "SOURCE": str(ROOT)}
    pip = {
        "PIP_TARGET": str(target),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
    }
    return subprocess.run(
        ["sh", "-euc", f"{code}\ninstall_locked none"],
        env={"PATH": os.environ["PATH"], **variables, **pip},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_not_as_the_lock_says_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "good", "VALUE = 1\n")
    target = tmp_path / "target"
    evil = make_wheel(tmp_path / "evil", "VALUE = 'stolen'\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"tiny-thing==1.0 \\\n    --hash=sha256:{digest}\n")

    refused = install_locked(target, lock, evil.parent)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert list(target.rglob("tiny_thing*")) == []

    taken = install_locked(target, lock, wheel.parent)
    assert taken.returncode == 0, taken.stderr
    (module,) = target.rglob("tiny_thing.py")
    assert module.read_text() == "VALUE = 1\n"

    lock.write_text("tiny-thing==1.0\n")
    refused = install_locked(target, lock, wheel.parent)
    assert refused.returncode != 0
    assert "Hashes are required" in refused.stderr


@pytest.mark.nightly
def test_a_whole_installation_is_what_the_lock_says(tmp_path: Path) -> None:
    """`make install` with everything, from the package index; takes minutes."""
    python = next(
        (one for one in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(one).exists()), ""
    )
    if not python:
        pytest.skip("there is no Python outside of homes, which the installer asks for")
    done = subprocess.run(
        ["sh", INSTALL, "install"],
        env={**os.environ, "DESTDIR": str(tmp_path), "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    inside = [str(tmp_path / "opt/reclass-plex/venv/bin/python"), "-I", "-m"]
    told = subprocess.run(
        [*inside, "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    installed = dict(line.lower().replace("_", "-").split("==") for line in told.splitlines())
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True)
    pins = pins_for(".".join(version.stdout.split()[1].split(".")[:2]), os.uname().machine)
    wrong = {
        name: installed.get(name) for name in pins if installed.get(name) != pins[name].version
    }
    assert wrong == {}
    assert set(installed) - set(pins) - APART <= {"pip", "reclass-plex"}
    help_text = subprocess.run(
        [*inside, "reclass_plex", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout
    assert "classify" in help_text
    sbom = json.loads((tmp_path / "opt/reclass-plex/sbom.json").read_bytes())
    listed = {one["name"] for one in sbom["components"]}
    assert set(pins) | {"torch"} <= listed
