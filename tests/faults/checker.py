"""The independent checker: reads files, database and Plex, and says what is not as it must be.

It imports nothing of the product: SQL goes to SQLite as written here, audio and tags are read by
`faults.evidence`. `check` is for a calm moment (nothing in line, no command running),
`check_undone` for after an `undo` of everything.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from faults.evidence import Evidence, hash_content, look_at
from faults.ledger import FileRecord, Ledger

OURS = ".reclass-"  # in the name of a copy that a change leaves for a moment


class PlexItem(Protocol):
    """What is looked at in an item of the stand-in."""

    key: int
    title: str
    genres: list[str]
    locked: set[str]


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong. `rule` is a stable word."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


@dataclass
class Checker:
    """Judges one world: its music, its database, its Plex (`items` by key)."""

    ledger: Ledger
    music: Path
    store: Path
    items: Mapping[int, PlexItem] = field(default_factory=dict)
    trees: tuple[Path, ...] = ()  # where `organize` takes files from and puts them
    heard: dict[tuple[str, str], float] = field(default_factory=dict)  # when, at the last look

    def check(self) -> list[Violation]:
        """Return what is wrong while changes stand."""
        rows = self._read()
        found = list(self._files(rows))
        found += self._nothing_else()
        found += _database(rows)
        found += self._every_file_decided(rows)
        found += self._heard_once(rows)
        found += self._plex_agrees(rows)
        found += self._organized()
        return found

    def check_undone(self) -> list[Violation]:
        """Return what is wrong after everything was taken back."""
        rows = self._read()
        found = [*_database(rows), *self._nothing_else(), *self._organized(undone=True)]
        for record in self.ledger.present():
            evidence, broken = _look(record)
            found += broken
            if evidence is None:
                continue
            newest = record.newest
            if newest.clean and evidence.content != newest.evidence.content:
                found.append(Violation("undo", f"{record.path}: not its former bytes"))
            wanted = self._genres_undone(record)
            if not newest.clean and evidence.genres not in wanted:
                found.append(Violation("undo", f"{record.path}: {evidence.genres}, not {wanted}"))
        for key, item in self.items.items():
            wanted_there = self.ledger.plex_of(key)
            is_there = (sorted(item.genres), "genre" in item.locked)
            if is_there != (sorted(wanted_there.genres), wanted_there.locked):
                found.append(
                    Violation(
                        "undo in Plex",
                        f"item {key} {item.title}: {is_there}, before {wanted_there}",
                    )
                )
        return found

    def _genres_undone(self, record: FileRecord) -> list[tuple[str, ...]]:
        """Return what a file may say that was edited after we wrote."""
        clean = [one.evidence.genres for one in record.versions if one.clean]
        return [clean[-1], record.newest.evidence.genres] if clean else []

    # Files

    def _files(self, rows: _Rows) -> Iterator[Violation]:
        for record in self.ledger.present():
            evidence, broken = _look(record)
            yield from broken
            if evidence is None:
                continue
            written = rows.journal[os.fsencode(record.path)]
            stands = [row for row in written if row["state"] == "done"]
            mark = hash_like_the_journal(record.path)
            tops = [row for row in stands if row["after_hash"] == mark]
            if tops:
                after = tuple(json.loads(tops[-1]["after"]))
                if evidence.genres != after:
                    yield Violation(
                        "journal", f"{record.path}: says {evidence.genres}, not {after}"
                    )
            elif not record.knows(evidence.content):
                # Our genre alone was taken back from what its owner had edited since.
                taken = [
                    tuple(json.loads(row["before"])) for row in written if row["state"] == "undone"
                ]
                edited = any(not one.clean for one in record.versions)
                if not edited or evidence.genres not in taken:
                    yield Violation("journal", f"{record.path}: its bytes are nobody's")
            elif record.newest.clean and any(row["before_hash"] == mark for row in stands[-1:]):
                yield Violation("journal", f"{record.path}: is as before a change that stands")
            made = [row for row in written if row["state"] in ("done", "undone")]
            if len(made) > record.causes:
                what = f"{record.path}: {len(made)} times for {record.causes} causes"
                yield Violation("written again", what)

    def _nothing_else(self) -> Iterator[Violation]:
        expected = {os.fsencode(record.path) for record in self.ledger.present()}
        for folder, _, names in os.walk(os.fsencode(self.music)):
            for name in names:
                path = os.path.join(folder, name)
                if path not in expected:
                    rule = "left over" if OURS.encode() in name else "unknown file"
                    yield Violation(rule, os.fsdecode(path))

    def _organized(self, *, undone: bool = False) -> Iterator[Violation]:
        """What was organized is somewhere, whole; undone: where it was, and only there."""
        places: dict[str, list[Path]] = defaultdict(list)
        for tree in self.trees:
            for path in tree.rglob("*"):
                if path.is_file():
                    places[hash_content(path)].append(path)
                    if OURS in path.name:
                        yield Violation("left over", str(path))
        for content, home in self.ledger.organized.items():
            there = places.pop(content, [])
            if not there:
                yield Violation("lost", f"{home}: organized, and nowhere now")
            elif undone and there != [home]:
                yield Violation("undo", f"{home}: is at {', '.join(map(str, there))}")
        for paths in places.values():
            yield from (Violation("unknown file", str(path)) for path in paths)

    # What the database says

    def _every_file_decided(self, rows: _Rows) -> Iterator[Violation]:
        for record in self.ledger.present():
            raw = os.fsencode(record.path)
            job, track = rows.jobs.get(raw), rows.tracks.get(raw)
            if job is None:  # as after a mount was away: what is known and written needs none
                if track is None or not rows.journal[raw]:
                    yield Violation("lost", f"{record.path}: no job")
            elif job["state"] == "failed":  # all files are good: once healed they can be done
                yield Violation("failed", f"{record.path}: {job['message']}")
            elif job["state"] == "waiting" and not job["message"]:
                yield Violation("lost", f"{record.path}: {job['state']} without a reason")
            elif job["state"] in ("ready", "running", "writing"):
                yield Violation("lost", f"{record.path}: {job['state']} in a calm moment")
            elif job["state"] in ("done", "skipped", "review"):
                if track is None:
                    yield Violation("lost", f"{record.path}: {job['state']}, but not known")
                elif track["error_kind"] is None and track["digest"] not in rows.heard:
                    yield Violation("lost", f"{record.path}: {job['state']}, but never heard")

    def _heard_once(self, rows: _Rows) -> Iterator[Violation]:
        """What was heard by these models is not heard again: its row stays as it is."""
        for digest, times in rows.heard.items():
            for models, created in times.items():
                former = self.heard.setdefault((digest, models), created)
                if former != created:
                    self.heard[digest, models] = created
                    yield Violation("heard again", f"audio {digest}, at {created:.0f}")

    def _plex_agrees(self, rows: _Rows) -> Iterator[Violation]:
        """Every difference in Plex is in the journal, and what stands there is in Plex."""
        stands: dict[int, list[sqlite3.Row]] = defaultdict(list)
        for row in rows.edits:
            if row["field"] == "genre" and row["state"] in ("done", "planned"):
                stands[row["rating_key"]].append(row)
        for key, item in self.items.items():
            before = self.ledger.plex_of(key)
            is_there = (sorted(item.genres), "genre" in item.locked)
            ours = stands.get(key, [])
            after = [(sorted(json.loads(row["after"])), True) for row in ours]
            if is_there == (sorted(before.genres), before.locked):
                if ours and ours[-1]["state"] == "done" and not before.locked:
                    yield Violation("Plex", f"item {key} {item.title}: {after[-1]} stands not")
            elif is_there not in after:
                yield Violation("Plex", f"item {key} {item.title}: {is_there} is nobody's")

    def _read(self) -> _Rows:
        uri = f"file:{self.store}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return _Rows.read(connection)


@dataclass
class _Rows:
    jobs: dict[bytes, sqlite3.Row]
    tracks: dict[bytes, sqlite3.Row]
    journal: dict[bytes, list[sqlite3.Row]]
    heard: dict[str, dict[str, float]]
    edits: list[sqlite3.Row]
    integrity: list[str]
    strangers: int

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> _Rows:
        def rows(query: str) -> list[Any]:
            return connection.execute(query).fetchall()

        connection.execute("BEGIN")
        journal: dict[bytes, list[sqlite3.Row]] = defaultdict(list)
        for row in rows(
            'SELECT path, state, before, "after", before_hash, after_hash FROM journal ORDER BY id'
        ):
            journal[row["path"]].append(row)
        heard: dict[str, dict[str, float]] = defaultdict(dict)
        for row in rows("SELECT digest, models, created FROM verdicts"):
            heard[row["digest"]][row["models"]] = row["created"]
        return cls(
            {row["path"]: row for row in rows("SELECT path, state, message FROM jobs")},
            {row["path"]: row for row in rows("SELECT path, digest, error_kind FROM tracks")},
            journal,
            dict(heard),
            rows('SELECT rating_key, field, state, "after" FROM plex_edits ORDER BY id'),
            [row[0] for row in rows("PRAGMA integrity_check")],
            len(rows("PRAGMA foreign_key_check")),
        )


def _database(rows: _Rows) -> Iterator[Violation]:
    if rows.integrity != ["ok"]:
        yield Violation("database", "; ".join(rows.integrity)[:300])
    if rows.strangers:
        yield Violation("database", f"{rows.strangers} rows point nowhere")
    for raw, changes in rows.journal.items():
        if any(row["state"] == "pending" for row in changes):
            yield Violation("journal", f"{os.fsdecode(raw)}: a change is still pending")


def _look(record: FileRecord) -> tuple[Evidence | None, list[Violation]]:
    """Read a file; its audio and its other tags must be as its owner left them."""
    try:
        evidence = look_at(record.path)
    except FileNotFoundError:
        return None, [Violation("lost", f"{record.path}: the file is gone")]
    except Exception as error:  # whatever the readers say of a damaged file
        return None, [Violation("damaged", f"{record.path}: {error!r}")]
    wanted = record.newest.evidence
    broken = []
    if evidence.audio != wanted.audio:
        broken.append(Violation("audio", f"{record.path}: is another"))
    if evidence.others != wanted.others:
        differs = set(evidence.others) ^ set(wanted.others)
        broken.append(Violation("tags", f"{record.path}: {sorted(differs)[:4]}"))
    return evidence, broken


def hash_like_the_journal(path: Path) -> str:
    """Return the BLAKE2b of 16 bytes over a whole file, which the journal keeps."""
    from hashlib import blake2b

    return blake2b(path.read_bytes(), digest_size=16).hexdigest()
