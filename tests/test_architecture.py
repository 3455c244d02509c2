"""The architecture holds: imports run one way, and every command and key is documented."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import typer

from reclass_plex.cli import app

ROOT = Path(__file__).parent.parent


def test_imports_run_one_way() -> None:
    """The contracts stand in pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app)
    commands = command.commands  # type: ignore[attr-defined]
    groups = {name for name, one in commands.items() if hasattr(one, "commands")}
    names = set(commands) - groups
    names |= {f"{group} {name}" for group in groups for name in commands[group].commands}
    section = readme.partition("## Commands")[2].partition("\n## ")[0]
    first_column = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    documented = {
        name
        for cell in first_column
        for name in re.findall(rf"`((?:{'|'.join(groups)}) [a-z]+|[a-z]+)\b", cell)
    }
    assert documented == names


def test_every_error_has_a_kind_of_its_own() -> None:
    from reclass_plex import errors

    kinds = [
        value.kind
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ReclassError)
    ]
    assert len(kinds) == len(set(kinds))
    assert errors.FileError.of_kind("not-audio", "is empty", "/a").__class__ is errors.NotAudio
