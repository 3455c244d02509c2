"""The sandbox that a systemd unit describes, built with bubblewrap where no systemd runs.

Everything is read from the unit and its drop-ins: a directive that this does not know is an error,
so that the unit cannot come to say what the tests do not try. `stage` puts folders of the test
where the machine would have some (/mnt/music, /var/lib/reclass-plex): what of them can be seen and
written is decided by the unit alone. Coarser than systemd: processes of all others are invisible,
and /dev holds what every service may have (null, random, ...) and no disk.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
PROGRAM = "/opt/reclass-plex/venv/bin/reclass-plexd"  # in the unit; here the module stands for it
UID = 64321  # of the daemon's user, where the tests run as root

# Who is started, when, and how it ends: nothing that keeps a process from doing anything.
_LIFECYCLE = """
    Type NotifyAccess SyslogIdentifier ExecReload TimeoutStartSec WatchdogSec KillMode
    TimeoutStopSec Restart RestartSec RestartPreventExitStatus OOMPolicy OOMScoreAdjust Nice
    CPUWeight IOWeight RemoveIPC StateDirectoryMode CacheDirectoryMode ConfigurationDirectoryMode
"""
# What this sandbox does in any case: new namespaces, few devices, and no capability but those that
# are listed (which is what the rest of Protect...= comes to, without the calls that @system-service
# leaves out).
_ALWAYS = """
    PrivateMounts ProtectProc DevicePolicy DeviceAllow NoNewPrivileges ProtectClock ProtectHostname
    ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectControlGroups
    SystemCallArchitectures
"""
_TRANSLATED = """
    ExecStart User Environment UMask LimitCORE LoadCredential StateDirectory CacheDirectory
    ConfigurationDirectory AmbientCapabilities CapabilityBoundingSet ProtectSystem ProtectHome
    PrivateTmp ReadOnlyPaths ReadWritePaths BindPaths RestrictNamespaces RestrictRealtime
    RestrictSUIDSGID LockPersonality RestrictAddressFamilies SystemCallFilter SystemCallErrorNumber
"""
_KNOWN = frozenset((_LIFECYCLE + _ALWAYS + _TRANSLATED).split())
_HOMES = ("/home", "/root", "/run/user")
# In these a stage may put something: their other entries are kept.
_OPENED = ("/etc", "/home", "/mnt", "/run", "/var/cache", "/var/lib")
_NAMESPACES = 0x7E020000 | 0x80  # CLONE_NEW*, sched.h
_SET_ID = 0o6000


class NotKnown(Exception):
    """The unit says something that this sandbox does not do."""


def directives(*units: Path) -> list[tuple[str, str]]:
    """Return what stands in [Service] of a unit and its drop-ins, in order."""
    found = []
    for unit in units:
        here = False
        for line in unit.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                here = line == "[Service]"
            elif here and line and not line.startswith("#"):
                name, _, value = line.partition("=")
                found.append((name, value))
    for name, _ in found:
        if name not in _KNOWN:
            raise NotKnown(f"{name}=: the sandbox of the tests does not do this; teach it")
    return found


@cache
def why_not() -> str | None:
    """Say why no sandbox can be made here, if so."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is missing (apt install bubblewrap)"
    if shutil.which("systemd-analyze") is None:
        return "systemd-analyze, which knows the groups of system calls, is missing"
    tried = subprocess.run(
        ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"bubblewrap may not: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Sandbox:
    """What a unit with its drop-ins allows. `stage` are folders by their path there."""

    said: tuple[tuple[str, str], ...]
    stage: Mapping[str, Path]

    @classmethod
    def of(cls, units: Iterable[Path], stage: Mapping[str, Path]) -> Sandbox:
        return cls(tuple(directives(*units)), stage)

    def values(self, name: str) -> list[str]:
        """Return what a list directive holds; an empty assignment begins it anew."""
        found: list[str] = []
        for key, value in self.said:
            if key == name:
                found = [*found, *shlex.split(value.replace("%%", "%"))] if value else []
        return found

    def value(self, name: str) -> str | None:
        return next((value for key, value in reversed(self.said) if key == name), None)

    def is_on(self, name: str) -> bool:
        return self.value(name) in {"yes", "true", "1", "on"}

    def environment(self) -> dict[str, str]:
        given = dict(one.split("=", 1) for one in self.values("Environment"))
        if self.values("LoadCredential"):
            given["CREDENTIALS_DIRECTORY"] = "/run/credentials/reclass-plex.service"
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **given}

    def start(
        self,
        command: Iterable[str] | None = None,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start the unit's program, or another, in the sandbox."""
        with self._filter() as rules:

            def limit() -> None:
                if self.value("LimitCORE") == "0":
                    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

            variables = self.environment() | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
            command = [*self._user(), *(command or self._program())]
            view = [*self._view(), *_set(variables), "--seccomp", str(rules.fileno())]
            return subprocess.Popen(
                ["bwrap", *view, "--", *command],
                pass_fds=[rules.fileno()],
                preexec_fn=limit,  # noqa: PLW1509 - no threads of ours matter to it
                text=True,
                **options,
            )

    def _program(self) -> list[str]:
        command = shlex.split(self.value("ExecStart") or "")
        if command != ["/usr/bin/env", PROGRAM]:
            raise NotKnown(f"ExecStart={command}")
        return [sys.executable, "-m", "service"]

    # Files

    def _writable(self) -> list[str]:
        """Return what may be written of a system that may not."""
        found = [one.lstrip("-+") for one in self.values("ReadWritePaths")]
        found += [f"/var/lib/{one}" for one in self.values("StateDirectory")]
        return found + [f"/var/cache/{one}" for one in self.values("CacheDirectory")]

    def _view(self) -> list[str]:
        """Return bubblewrap's arguments for the file system."""
        strict = self.value("ProtectSystem") == "strict"
        base = "--ro-bind" if strict else "--bind"
        hidden = _HOMES if self.value("ProtectHome") == "tmpfs" else ()
        writable = [Path(one) for one in self._writable()]
        bound = [one.lstrip("-") for one in self.values("BindPaths")]
        view = ["--die-with-parent", "--unshare-pid", "--unshare-ipc", base, "/", "/"]
        view += ["--proc", "/proc", "--dev", "/dev"]
        for folder in _OPENED:
            view += ["--tmpfs", folder]
            if folder in hidden or folder == "/mnt":
                continue
            for entry in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else ():
                if str(entry) in self.stage:
                    continue
                if entry.is_symlink():
                    view += ["--symlink", os.readlink(entry), str(entry)]
                else:
                    view += [f"{base}-try", str(entry), str(entry)]
        for home in hidden:
            view += ["--tmpfs", home]
        if self.is_on("PrivateTmp"):
            for folder in ("/tmp", "/var/tmp"):
                view += ["--perms", "1777", "--tmpfs", folder]
        for program in dict.fromkeys((ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix))):
            for parent in reversed(program.parents):
                if any(parent.is_relative_to(home) for home in (*hidden, "/tmp", "/var/tmp")):
                    view += ["--perms", "0755", "--dir", str(parent)]
            view += ["--ro-bind", str(program), str(program)]  # stands for /opt/reclass-plex
        for place, opened in self.stage.items():
            if any(Path(place).is_relative_to(home) for home in hidden) and place not in bound:
                continue
            free = not strict or place in bound or any(Path(place) == one for one in writable)
            view += ["--perms", "0755", "--dir", str(Path(place).parent)]
            view += ["--bind" if free else "--ro-bind", str(opened), place]
        for path in writable:
            if str(path) not in self.stage:
                view += ["--bind-try", str(path), str(path)]
        for place in self.values("ReadOnlyPaths"):
            view += ["--remount-ro", place]
        for folder in (*_OPENED, *hidden) if strict else ():
            view += ["--remount-ro", folder]
        return [*view, "--chdir", "/"]

    # Who, and what they may ask of the kernel

    def _user(self) -> list[str]:
        """Return the command that gives up root and what else the unit gives up."""
        # Only in there: bubblewrap would make its mount points with this mask.
        masked = ["sh", "-c", f'umask {self.value("UMask") or "0022"} && exec "$@"', "sh"]
        if os.geteuid() != 0:
            return masked
        ambient = [_short(one) for one in self.values("AmbientCapabilities")]
        bounding = [_short(one) for one in self.values("CapabilityBoundingSet")]
        return [
            *masked,
            "setpriv",
            *(f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"),
            f"--inh-caps={','.join(['-all', *(f'+{one}' for one in ambient)])}",
            f"--ambient-caps={','.join(['-all', *(f'+{one}' for one in ambient)])}",
            f"--bounding-set={','.join(['-all', *(f'+{one}' for one in bounding)])}",
        ]

    def _filter(self) -> IO[bytes]:
        """Return a file with the program that decides on each system call.

        Conditions on a call's arguments are only made where SystemCallFilter= lists what may be
        called: one filter, unlike systemd's several, has one answer to what no rule meets.
        """
        import pyseccomp as seccomp
        from pyseccomp import Arg

        refuse = seccomp.ERRNO(1)  # EPERM
        wanted = self.values("SystemCallFilter")
        rules = seccomp.SyscallFilter(refuse if wanted else seccomp.ALLOW)
        names = {name for group in wanted for name in calls_of(group)} if wanted else set()

        def decide(name: str, condition: Arg | None) -> None:
            """Let a call through on a condition only (None: not at all)."""
            names.discard(name)
            if condition is not None and wanted:
                rules.add_rule(seccomp.ALLOW, name, condition)

        if self.is_on("RestrictNamespaces"):
            decide("clone", Arg(0, seccomp.MASKED_EQ, _NAMESPACES, 0))
            for name in ("unshare", "setns"):
                decide(name, None)
            decide("clone3", None)  # its flags cannot be seen: with ENOSYS the C library asks clone
            rules.add_rule(seccomp.ERRNO(38), "clone3")
        if self.is_on("RestrictSUIDSGID"):
            for name, place in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1)):
                decide(name, Arg(place, seccomp.MASKED_EQ, _SET_ID, 0))
        if self.is_on("RestrictRealtime"):
            decide("sched_setscheduler", Arg(1, seccomp.EQ, 0))
        if self.is_on("LockPersonality"):
            decide("personality", Arg(0, seccomp.EQ, 0xFFFFFFFF))
        families = self.values("RestrictAddressFamilies")
        if families and wanted:
            names.discard("socket")
            for family in families:
                rules.add_rule(
                    seccomp.ALLOW, "socket", Arg(0, seccomp.EQ, int(getattr(socket, family)))
                )
        for name in sorted(names):
            try:
                rules.add_rule(seccomp.ALLOW, name)
            except (OSError, ValueError):
                continue  # of another architecture
        file = tempfile.TemporaryFile()
        rules.export_bpf(file)
        file.seek(0)
        return file


@cache
def calls_of(group: str) -> frozenset[str]:
    """Return the system calls of a group such as @system-service."""
    if not group.startswith("@"):
        return frozenset((group,))
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    names = [line for line in lines if line and not line.startswith("#")]
    return frozenset(call for name in names for call in calls_of(name))


def _set(variables: Mapping[str, str]) -> list[str]:
    given = ["--clearenv"]
    for name, value in variables.items():
        given += ["--setenv", name, value]
    return given


def _short(capability: str) -> str:
    return capability.removeprefix("CAP_").lower()
