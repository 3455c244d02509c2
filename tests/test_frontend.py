"""What the browser loads is what npm's lock names, and all of it is in the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
FRONTEND = ROOT / "frontend"


def test_the_vendored_files_are_those_of_the_lock() -> None:
    wanted = json.loads((FRONTEND / "package.json").read_text())
    lock = json.loads((FRONTEND / "package-lock.json").read_text())["packages"]
    noted = json.loads((FRONTEND / "vendored.json").read_text())
    packages = wanted["dependencies"] | wanted["devDependencies"]
    assert set(noted) == set(packages)
    for package, version in packages.items():
        locked = lock[f"node_modules/{package}"]
        assert version == locked["version"] == noted[package]["version"]
        assert locked["integrity"] == noted[package]["integrity"]
        for name, digest in noted[package]["sha256"].items():
            assert hashlib.sha256((ROOT / name).read_bytes()).hexdigest() == digest, name


def test_every_vendored_file_is_noted_and_has_its_licence_beside_it() -> None:
    noted = json.loads((FRONTEND / "vendored.json").read_text())
    named = {name for one in noted.values() for name in one["sha256"]}
    folders = [ROOT / "service/web/static/vendor", ROOT / "tests/browser/vendor"]
    found = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.iterdir()}
    assert found == named
    for package in noted.values():
        assert any(name.endswith("LICENSE") for name in package["sha256"])
