"""What needs root before the daemon starts: run by reclass-plex-prepare.service.

Makes /etc/systemd/system/reclass-plex.service.d/10-from-config.conf from the configuration, and
reloads systemd if it changed:
- the watched folders may be written, and are seen where they lie in a home (which is hidden);
- the Plex token, if there is one, is handed over as a credential, so that its file can stay root's.
  (`LoadCredential=` in the unit itself would keep the daemon from starting without a token;
  `ImportCredential=`, which would not, needs systemd 254.)
It also lets the daemon's group read the configuration, which `init` writes for root alone.

A folder that is refused, or a configuration that cannot be read, is said on standard error.
"""

from __future__ import annotations

import argparse
import grp
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from reclass_plex.config import load_config
from reclass_plex.credentials import token_file
from reclass_plex.errors import ConfigError, printable

CONFIG = Path("/etc/reclass-plex/config.yaml")
DROP_IN = Path("/etc/systemd/system/reclass-plex.service.d/10-from-config.conf")
GROUP = "reclass-plex"

# ProtectHome=tmpfs empties these; what is needed of them is mounted in.
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user")))
# The daemon keeps owners by capabilities that it must not have in the system itself.
_SYSTEM = tuple(map(Path, ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr")))
_SYSTEM_ALONE = tuple(map(Path, ("/", "/home", "/opt", "/root", "/srv", "/var", "/var/lib")))
_PRIVATE = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - PrivateTmp= shows others in their place


def compose_drop_in(folders: Iterable[Path], token: Path) -> tuple[str, list[str]]:
    """Return the drop-in's text, and what is wrong with some folders (which are left out)."""
    writable: set[Path] = set()
    mounted: set[Path] = set()
    problems = []
    for folder in folders:
        for path in {folder, Path(os.path.realpath(folder))}:  # a link is only as good as its end
            if problem := _refusal(path):
                problems.append(f"{printable(folder)}: {problem}")
            elif any(path.is_relative_to(home) for home in _HIDDEN):
                mounted.add(path)
            else:
                writable.add(path)
        if not folder.exists():
            problems.append(
                f"{printable(folder)}: is not there now. If it is not a mount that comes later,"
                " restart reclass-plex when it is"
            )
    lines = [
        "# Made by reclass-plex-prepare.service from the configuration at each start. Do not edit.",
        "[Service]",
        # "-": a disk that is away must not keep the daemon from starting.
        *(f"ReadWritePaths={_quoted('-' + str(path))}" for path in sorted(writable)),
        *(f"BindPaths={_quoted('-' + str(path))}" for path in sorted(mounted)),
    ]
    if token.is_file():
        lines.append(f"LoadCredential=plex-token:{str(token).replace('%', '%%')}")
    return "\n".join(lines) + "\n", problems


def _refusal(path: Path) -> str | None:
    """Say why the daemon does not get this path, if so."""
    if not str(path).isprintable():
        return "a name with control characters cannot be given to systemd; rename it"
    media = path.is_relative_to("/run/media") and path != Path("/run/media")
    if path in _SYSTEM_ALONE or (
        not media
        and not path.is_relative_to("/run/user")
        and any(path.is_relative_to(folder) for folder in _SYSTEM)
    ):
        return "belongs to the system, and is not opened for writing; name the music's own folder"
    if any(path.is_relative_to(folder) for folder in _PRIVATE):
        return "the service has temporary folders of its own and does not see this one"
    return None


def _quoted(text: str) -> str:
    """Quote a value for a unit file: systemd.syntax(7), and % for systemd.unit(5)'s specifiers."""
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%")):
        text = text.replace(char, escape)
    return f'"{text}"'


def write_if_changed(path: Path, text: str) -> bool:
    """Write `text` in one step; tell whether the file had another."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)
    return True


def let_group_read(config: Path) -> None:
    """Give the configuration to the daemon's group, for reading."""
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return  # not installed: the daemon's user does not exist either
    status = config.stat()
    if status.st_gid != group:
        os.chown(config, -1, group)
    if not status.st_mode & 0o040:
        config.chmod((status.st_mode & 0o777) | 0o040)


def main() -> int:
    """Do it; the status is 1 if the configuration cannot be read, and then nothing changes."""
    parser = argparse.ArgumentParser(description="Prepare the start of the daemon.")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--drop-in", type=Path, default=DROP_IN)
    parser.add_argument("--no-reload", action="store_true", help="leave systemd alone")
    options = parser.parse_args()
    try:
        config = load_config(options.config)
        token = token_file(config.plex, options.config)
    except ConfigError as error:
        print(f"{error}\nThe folders of the last start are kept.", file=sys.stderr)
        return 1
    text, problems = compose_drop_in(config.watch.folders, token)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not options.no_reload:
        let_group_read(options.config)
    if write_if_changed(options.drop_in, text):
        print(f"wrote {printable(options.drop_in)}")
        if not options.no_reload:
            subprocess.run(["systemctl", "daemon-reload"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
