"""docs/security.md names code and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_proof_is_a_test() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)
    assert len(named) > 40
    for file, name in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.M), f"{file}::{name}"
    assert len(re.findall(r"::", TEXT)) == len(named)


def test_every_file_is_there() -> None:
    named = re.findall(r"`((?:service|reclass_plex|systemd|frontend|tests|docs)/[\w./-]*)`", TEXT)
    assert len(named) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_target_of_make_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)`", TEXT)):
        assert re.search(rf"^{target}\b.*:", makefile, re.M), target
