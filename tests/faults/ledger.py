"""What was done to each file and each item of Plex by others than the product: what must hold.

The harness writes it as it acts; the checker reads it. A file's `versions` are what people made of
it, each with whether it was made from bytes that the product had not changed: undo of everything
must give the last of those back exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults.evidence import Evidence


@dataclass(frozen=True)
class Version:
    """A file as somebody left it. `clean`: nothing that we wrote was in it."""

    evidence: Evidence
    clean: bool


@dataclass
class FileRecord:
    """One file that was put in place. `causes` counts what may make the product write it."""

    path: Path
    versions: list[Version]
    causes: int = 1
    removed: bool = False

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    def knows(self, content: str) -> bool:
        """Say whether somebody left it with these bytes."""
        return any(version.evidence.content == content for version in self.versions)


@dataclass(frozen=True)
class PlexRecord:
    """What an item of Plex had before we wrote, or has by a person's hand."""

    genres: tuple[str, ...] = ()
    locked: bool = False


@dataclass
class Ledger:
    """All of it. `organized` are files that `organize` may move: by content, where they were."""

    files: list[FileRecord] = field(default_factory=list)
    plex: dict[int, PlexRecord] = field(default_factory=dict)
    organized: dict[str, Path] = field(default_factory=dict)

    def put(self, path: Path, evidence: Evidence) -> FileRecord:
        """Note a file that comes."""
        record = FileRecord(path, [Version(evidence, clean=True)])
        self.files.append(record)
        return record

    def edited(self, record: FileRecord, was: str, evidence: Evidence) -> None:
        """Note what somebody made of the bytes `was`."""
        clean = any(one.clean and one.evidence.content == was for one in record.versions)
        record.versions.append(Version(evidence, clean))
        record.causes += 1

    def decided(self, record: FileRecord) -> None:
        """Note what a person said of a recording: it holds for all files of it."""
        audio = record.versions[0].evidence.audio
        for one in self.files:
            one.causes += one.versions[0].evidence.audio == audio

    def present(self) -> Iterator[FileRecord]:
        """Yield the files that must be there."""
        yield from (record for record in self.files if not record.removed)

    def cause_below(self, folder: Path) -> None:
        """Note what may make the product write each file of a folder once more."""
        for record in self.files:
            record.causes += folder in record.path.parents

    def plex_of(self, key: int) -> PlexRecord:
        return self.plex.get(key, PlexRecord())
