"""Files of a later version say so, and are not called damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reclass_plex.errors import ModelError
from reclass_plex.heads import CARD, load_card
from reclass_plex.models.installed import MANIFEST, read_manifest
from reclass_plex.profiles import SPEC, read_spec

DATA = Path(__file__).parent.parent / "reclass_plex" / "data"


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        (SPEC, DATA / "ensemble" / "gtzan.json", read_spec),
        (CARD, DATA / "heads" / "gtzan-musicnn" / CARD, lambda path: load_card(path.parent)),
        (MANIFEST, None, lambda path: read_manifest(path.parent.name, path.parent.parent)),
    ],
)
def test_a_later_format_is_named_and_an_unknown_key_too(
    tmp_path: Path, name: str, content: Path | None, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir()
    said = {} if content is None else json.loads(content.read_text())
    if content is not None:
        path.write_text(json.dumps(said))
        read(path)
    path.write_text(json.dumps({**said, "format": 2, "new": "key"}))
    wanted = (
        rf"{name}: was written by a newer reclass-plex \(format 2, this version reads up to 1\)"
    )
    with pytest.raises(ModelError, match=wanted):
        read(path)
    path.write_text(json.dumps({**said, "new": "key"}))
    with pytest.raises(ModelError, match=rf"{name}: (new: |is damaged)"):
        read(path)
    path.write_bytes(b"{")
    with pytest.raises(ModelError, match=name):
        read(path)
