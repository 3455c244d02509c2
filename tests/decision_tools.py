"""What the tests of decisions, undo and preview share: real files that a store knows."""

from __future__ import annotations

import shutil
from pathlib import Path

from daemon_tools import DEMO, cut_track

from reclass_plex.audio import audio_digest
from reclass_plex.config import Config
from reclass_plex.ensemble import Ensemble
from reclass_plex.pipeline import album_key
from reclass_plex.records import GenreScore, Verdict
from reclass_plex.store import Store
from reclass_plex.tags import read_tags

SOURCE = DEMO / "HSR - City.ogg"
CONFIG = Config.model_validate({"watch": {"settle_seconds": 0.1}})
ENSEMBLE = Ensemble.from_config(CONFIG)
UNSURE = (("Rock", 0.3), ("Jazz", 0.25), ("Blues", 0.2))


def make_file(path: Path, number: int = 0) -> Path:
    """Write a short piece of music; another `number` is another recording."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return cut_track(SOURCE, path, 1 + 3 * number, 0.4)


def copy_file(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy2(source, target))


def know(
    store: Store,
    path: Path,
    heard: tuple[tuple[str, float], ...] | None = UNSURE,
    *,
    unsure: str | None = None,
    models: str = ENSEMBLE.fingerprint,
) -> int:
    """Let the store know a file as if it had been heard; return the track's id."""
    status, says = path.stat(), read_tags(path)
    digest = audio_digest(path)
    if heard is not None:
        scores = tuple(GenreScore(*one) for one in heard)
        store.save_verdict(digest, models, Verdict("default", scores, "test", (), 0.1, unsure))
    return store.save_track(
        path,
        status.st_size,
        status.st_mtime_ns,
        digest=digest,
        genres=says.genres,
        album=album_key(path, says),
        moods=says.moods,
    )
