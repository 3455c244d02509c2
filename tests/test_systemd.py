from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
UNITS = [ROOT / "systemd/reclass-plex.service", ROOT / "systemd/reclass-plex-prepare.service"]
SERVICE = UNITS[0]
PREPARE = ROOT / "systemd/prepare.py"
HIGHEST_EXPOSURE = 2.5  # 2.2 with systemd 252

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def directives(unit: Path, section: str) -> list[tuple[str, str]]:
    """Return a section's directives in order; one may stand several times."""
    found, here = [], False
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            here = line == f"[{section}]"
        elif here and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.append((name, value))
    return found


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_verify_has_nothing_to_say(unit: Path) -> None:
    done = run("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_analyze
def test_verify_notices_a_fault(tmp_path: Path) -> None:
    """Else the test above would say nothing."""
    unit = tmp_path / SERVICE.name
    unit.write_text(SERVICE.read_text(encoding="utf-8").replace("KillMode=mixed", "KilMode=mixed"))
    assert "KilMode" in run("systemd-analyze", "verify", unit).stderr


@needs_analyze
def test_exposure_is_low() -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", SERVICE)
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) < HIGHEST_EXPOSURE


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_directive_is_justified(unit: Path) -> None:
    """Each directive, or a group without a gap, stands directly below a comment."""
    service = unit.read_text(encoding="utf-8").partition("[Service]")[2].partition("[Install]")[0]
    blocks = re.split(r"\n\s*\n", service.strip("\n"))
    groups = 0
    for block in blocks:
        previous = ""
        for line in block.splitlines():
            if not line.startswith("#"):
                assert previous, f"{line} has no comment above it"
                groups += previous.startswith("#")
            previous = line
    assert groups > 0


def test_what_would_break_cuda_is_not_set() -> None:
    names = dict(directives(SERVICE, "Service"))
    assert not names.keys() & {"MemoryDenyWriteExecute", "PrivateDevices", "ProcSubset"}
    assert "char-*" in names["DeviceAllow"]


def test_the_lifecycle_is_what_the_daemon_does() -> None:
    values = dict(directives(SERVICE, "Service"))
    assert values["Type"] == "notify"
    assert values["NotifyAccess"] == "main"
    assert values["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(values["TimeoutStopSec"]) > 10
    assert str(os.EX_CONFIG) in values["RestartPreventExitStatus"].split()


def test_the_environment_leads_to_the_directories_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a configuration without store.path has its database where the service may write."""
    from reclass_plex.config import StoreOptions, config_path

    values = directives(SERVICE, "Service")
    for name, value in values:
        if name == "Environment":
            for assignment in value.split():
                monkeypatch.setenv(*assignment.split("=", 1))
    state = f"/var/lib/{dict(values)['StateDirectory']}"
    assert StoreOptions().resolve() == Path(state) / "store.sqlite"
    assert config_path() == Path(f"/etc/{dict(values)['ConfigurationDirectory']}/config.yaml")
    for variable in ("NUMBA_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME"):
        assert Path(os.environ[variable]).is_relative_to(
            f"/var/cache/{dict(values)['CacheDirectory']}"
        )


# prepare.py


def prepare(tmp_path: Path, config: dict[str, object] | str) -> tuple[Path, int, str]:
    """Run it; return the drop-in, the exit status and what it said."""
    file = tmp_path / "config.yaml"
    text = config if isinstance(config, str) else yaml.safe_dump(config, allow_unicode=True)
    file.write_text(text, encoding="utf-8")
    drop_in = tmp_path / "reclass-plex.service.d" / "10-from-config.conf"
    options = ["--config", file, "--drop-in", drop_in, "--no-reload"]
    done = run(sys.executable, "-I", PREPARE, *map(str, options))
    return drop_in, done.returncode, done.stdout + done.stderr


def values_of(drop_in: Path, name: str) -> list[str]:
    return [value for key, value in directives(drop_in, "Service") if key == name]


def test_folders_may_be_written_and_those_in_homes_are_mounted(tmp_path: Path) -> None:
    folders = ["/mnt/no-such/music", "/home/no-such/Music", "/run/media/no-such/disk"]
    drop_in, status, said = prepare(tmp_path, {"watch": {"folders": folders}})
    assert status == 0
    assert values_of(drop_in, "ReadWritePaths") == [
        '"-/mnt/no-such/music"',
        '"-/run/media/no-such/disk"',
    ]
    assert values_of(drop_in, "BindPaths") == ['"-/home/no-such/Music"']
    for folder in folders:
        assert f"{folder}: is not there now" in said


def test_a_link_opens_what_it_leads_to(tmp_path: Path) -> None:
    ends = ["/mnt/no-such/disk", "/home/no-such/disk", "/etc"]
    for number, end in enumerate(ends):
        (tmp_path / str(number)).symlink_to(end)
    folders = [str(tmp_path / str(number)) for number in range(len(ends))]
    drop_in, _, said = prepare(tmp_path, {"watch": {"folders": folders}})
    assert values_of(drop_in, "ReadWritePaths") == ['"-/mnt/no-such/disk"']
    assert values_of(drop_in, "BindPaths") == ['"-/home/no-such/disk"']
    assert f"{folders[2]}: belongs to the system" in said


@pytest.mark.parametrize(
    "folder",
    ["/", "/home", "/etc", "/etc/music", "/usr/share/sounds", "/var", "/run/media", "/tmp/music"],
)
def test_folders_of_the_system_are_refused(tmp_path: Path, folder: str) -> None:
    drop_in, status, said = prepare(tmp_path, {"watch": {"folders": [folder]}})
    assert status == 0
    assert re.search(rf"^{folder}: (belongs to the system|the service has temporary)", said, re.M)
    assert not values_of(drop_in, "ReadWritePaths") + values_of(drop_in, "BindPaths")


def test_a_name_that_no_unit_can_hold_is_refused(tmp_path: Path) -> None:
    drop_in, _, said = prepare(tmp_path, {"watch": {"folders": ["/mnt/a\nUser=root"]}})
    assert "control characters" in said
    assert "User" not in drop_in.read_text(encoding="utf-8")


@needs_analyze
def test_strange_names_are_one_value_to_systemd(tmp_path: Path) -> None:
    names = ['/mnt/My "best" music', "/srv/100% \\ pure: all", "/home/no-such/Musik für dich"]
    drop_in, _, _ = prepare(tmp_path, {"watch": {"folders": names}})
    unit = tmp_path / SERVICE.name
    shutil.copy(SERVICE, unit)
    done = run("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # And systemd does read the drop-in here: without the quotes it complains.
    drop_in.write_text(drop_in.read_text(encoding="utf-8").replace('"', ""), encoding="utf-8")
    assert "ReadWritePaths= path is not absolute" in run("systemd-analyze", "verify", unit).stderr


def test_the_token_is_handed_over_only_if_there_is_one(tmp_path: Path) -> None:
    drop_in, _, _ = prepare(tmp_path, {})
    assert values_of(drop_in, "LoadCredential") == []
    token = tmp_path / "plex-token"
    token.write_text("secret", encoding="utf-8")
    drop_in, _, said = prepare(tmp_path, {})
    assert values_of(drop_in, "LoadCredential") == [f"plex-token:{token}"]
    other = tmp_path / "100%"
    other.write_text("secret", encoding="utf-8")
    drop_in, _, said = prepare(tmp_path, {"plex": {"token_file": str(other)}})
    assert values_of(drop_in, "LoadCredential") == [f"plex-token:{tmp_path}/100%%"]
    assert "secret" not in said + drop_in.read_text(encoding="utf-8")


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    config: dict[str, object] = {"watch": {"folders": ["/mnt/no-such"]}}
    drop_in, _, said = prepare(tmp_path, config)
    assert f"wrote {drop_in}" in said
    before = drop_in.stat()
    drop_in, _, said = prepare(tmp_path, config)
    assert "wrote" not in said
    after = drop_in.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_bad_configuration_leaves_the_last_folders(tmp_path: Path) -> None:
    drop_in, _, _ = prepare(tmp_path, {"watch": {"folders": ["/mnt/no-such"]}})
    before = drop_in.read_text(encoding="utf-8")
    drop_in, status, said = prepare(tmp_path, "watch: {folder: x}")
    assert status == 1
    assert "watch.folder: there is no such key" in said
    assert drop_in.read_text(encoding="utf-8") == before


def test_the_user_drop_in_takes_the_capabilities_away() -> None:
    values = dict(directives(ROOT / "systemd/user.conf", "Service"))
    assert values["AmbientCapabilities"] == values["CapabilityBoundingSet"] == ""
    assert values["RemoveIPC"] == "no"
    assert "reclass-plex" in values["SupplementaryGroups"].split()


@pytest.mark.parametrize("guide", ["jetson.md", "rtx.md"])
def test_the_guides_name_real_options(guide: str) -> None:
    """Keys of the configuration, and variables of the installer."""
    from reclass_plex.config import Config

    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    example = Config().model_dump()
    keys = re.findall(rf"`({'|'.join(example)})\.([a-z_]+)", text)
    assert keys
    for group, key in keys:
        assert key in example[group], f"{group}.{key}"
    installer = (ROOT / "systemd/install.sh").read_text(encoding="utf-8")
    for variable in set(re.findall(r"\b([A-Z_]{4,})=", text)) - {"RECLASS_PLEX_CONFIG"}:
        assert re.search(rf"^#   {variable}\s", installer, re.MULTILINE), variable
