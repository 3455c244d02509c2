"""What the tests of `reclassify --cluster` share: music, the command, and what came of it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daemon_tools import DEMO, Site, cut_track, set_tags, wait_until
from ray_cluster import ROOT

from reclass_plex import pipeline
from reclass_plex.config import load_config
from reclass_plex.decoders import Decoders
from reclass_plex.ensemble import Ensemble
from reclass_plex.jobs import Jobs
from reclass_plex.records import Embedding, Verdict
from reclass_plex.store import Store
from reclass_plex.worker import Worker

SURE = DEMO / "HSR - City.ogg"
UNSURE = DEMO / "Klaus Halfmann - Silkweaver Song.m4a"
ALBUM = 4
ENDS = 300.0  # seconds for a command to end: the machine may be slow, and shared


def make_site(folder: Path, tracks: int, seconds: float = 20) -> Site:
    """Make different pieces of music, all audio another; the last of an album is outvoted by it."""
    site = Site(folder)
    site.configure(watch={"settle_seconds": 0.1})
    for number in range(tracks):
        album = site.music / f"Album {number // ALBUM:02}"
        album.mkdir(parents=True, exist_ok=True)
        source = UNSURE if number % ALBUM == ALBUM - 1 else SURE
        path = album / f"{number:03}{source.suffix}"
        cut_track(source, path, 20 + 40 * number, seconds)
        set_tags(path, album=album.name)
    return site


def copy_site(site: Site, folder: Path, albums: int = 1000) -> Site:
    """Return another one with the same music: Ogg's serial numbers are random, if made twice."""
    copy = Site(folder)
    for album in sorted(site.music.iterdir())[:albums]:
        shutil.copytree(album, copy.music / album.name)
    copy.configure(watch={"settle_seconds": 0.1})
    return copy


def tag_here(site: Site) -> None:
    """Do the same with one machine's parts."""
    config = load_config(site.config)
    ensemble = Ensemble.from_config(config)
    with Store.open(site.store) as store, Decoders(1) as decoders:
        time.sleep(0.2)  # they rest
        Jobs(store).enqueue(sorted(site.music.rglob("*.*")), "test", time.time())
        hear = pipeline.listener(ensemble, decoders.decode)
        worker = Worker(store, config, ensemble, threads=2, hear=hear, examine=decoders.examine)
        while worker.step(time.time()):
            pass
        worker.close()


def start(site: Site, arguments: Sequence[str], environment: dict[str, str]) -> Command:
    """Give the command, in a process group of its own, as a shell does."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "reclass_plex", "reclassify", *arguments),
            *("--json", "--config", str(site.config)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=site.root,
        start_new_session=True,
    )
    return Command(process)


@dataclass(frozen=True)
class Command:
    """One that was given."""

    process: subprocess.Popen[str]

    def end(self) -> Ended:
        """Wait until it ends."""
        out, err = self.process.communicate(timeout=ENDS)
        return Ended(self.process.returncode, out, err)

    def kill(self) -> None:
        self.process.kill()
        self.end()


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def counts(self) -> dict[str, Any]:
        """What it says that it did."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    def heard(self) -> int:
        return sum(self.counts["heard"].values())


def outcome(site: Site) -> dict[str, tuple[Any, ...]]:
    """Everything that the store says of each track, without times, and each file's bytes."""
    ensemble = Ensemble.from_config(load_config(site.config))
    said: dict[str, tuple[Any, ...]] = {}
    with Store.open(site.store) as store, closing(sqlite3.connect(site.store)) as connection:
        jobs = Jobs(store)
        for path in sorted(site.music.rglob("*.*")):
            known = store.find_track(path, ensemble.fingerprint)
            job = jobs.find(path)
            assert known is not None
            assert known.verdict is not None
            assert job is not None
            changes = connection.execute(  # an abandoned one did not touch the file
                "SELECT state FROM journal WHERE path = ? AND state != 'abandoned'",
                [os.fsencode(path)],
            ).fetchall()
            heard = connection.execute(
                "SELECT encoder, vector FROM embeddings WHERE digest = ?", [known.digest]
            ).fetchall()
            said[str(path.relative_to(site.music))] = (
                *(timeless(known.verdict), job.state, known.written, path.read_bytes()),
                *(changes, heard),
            )
    return said


def timeless(verdict: Verdict) -> Verdict:
    votes = tuple(replace(vote, seconds=0.0) for vote in verdict.votes)
    return replace(verdict, seconds=0.0, votes=votes)


def bits(embeddings: tuple[Embedding, ...]) -> list[tuple[str, bytes]]:
    return [(one.encoder, one.vector.tobytes()) for one in embeddings]


def count_verdicts(site: Site) -> int:
    if not site.store.exists():
        return 0
    with closing(sqlite3.connect(site.store)) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])
        except sqlite3.OperationalError:  # it is being made
            return 0


def wait_for_verdicts(site: Site, count: int) -> None:
    wait_until(lambda: count_verdicts(site) >= count, f"{count} verdicts", ENDS)
