"""What people do meanwhile: music comes, changes and goes; genres are corrected and taken back."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.evidence import look_at
from faults.ledger import FileRecord, PlexRecord
from faults.music import change_tag
from faults.world import World

HAND = ".in-hand"  # the suffix of what somebody is copying
ALBUM = 6  # tracks at most
PER_ARTIST = 4  # albums


class People:
    """Everybody but the product. `keep` bounds how many files there are."""

    def __init__(self, world: World, keep: int = 1_000_000) -> None:
        self.world = world
        self._keep = keep
        self._albums = 0

    def arrive(self, tracks: int | None = None) -> None:
        """Put an album in place, most files by a rename, some in two pieces."""
        world = self.world
        if world.away:
            return
        self._albums += 1
        name = f"Album {self._albums}"
        folder = world.site.music / f"Artist {self._albums // PER_ARTIST}" / name
        count = tracks or world.random.randint(1, ALBUM)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                self._put(world.maker.make(name), folder)
        except OSError as error:
            world.say(f"arrival: {error.strerror}")
            return
        world.note("album arrived", f"{folder.name}, {count} tracks")
        self._make_room()

    def _put(self, made: Path, folder: Path) -> None:
        target = folder / made.name
        evidence = look_at(made)
        if self.world.random.random() < 0.2:
            data = made.read_bytes()
            record = self.world.ledger.put(target, evidence)
            try:
                with target.open("wb", buffering=0) as file:
                    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                        if file.write(part) != len(part):
                            raise OSError(28, "No space left on device")
                        time.sleep(0.02)
            except OSError:
                self._gone(record)
                raise
        else:
            self._replace(made, target)
            self.world.ledger.put(target, evidence)
        made.unlink()

    def _replace(self, made: Path, target: Path) -> None:
        """Put a file in place at once, as careful programs do."""
        hand = target.with_name(f".{target.name}{HAND}")
        try:
            shutil.copyfile(made, hand)
            hand.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                hand.unlink()
            raise

    def _gone(self, record: FileRecord) -> None:
        record.removed = True
        for _ in range(100):  # its disk may be read-only now
            try:
                record.path.unlink(missing_ok=True)
                return
            except OSError:
                self.world.heal()
                time.sleep(0.1)

    def _make_room(self) -> None:
        there = list(self.world.ledger.present())
        for record in there[: max(0, len(there) - self._keep)]:
            with contextlib.suppress(OSError):
                record.path.unlink()
                record.removed = True
                self.world.did["file removed"] += 1

    def organize_more(self) -> None:
        """Put a track into the folder that is organized."""
        made = self.world.maker.make("Inbox", self.world.random.choice((".mp3", ".ogg", "flac")))
        home = self.world.inbox / made.name
        with contextlib.suppress(OSError):
            content = look_at(made).content
            self._replace(made, home)
            self.world.ledger.organized[content] = home

    # Files

    def pick(self) -> FileRecord | None:
        there = list(self.world.ledger.present())
        return self.world.random.choice(there) if there else None

    def edit(self) -> None:
        """Change a file's title, or its genre."""
        record, world = self.pick(), self.world
        if record is None or world.away:
            return
        way = world.random.choice(("title", "title", "genre", "no genre"))
        copy = world.root / f"edited{record.path.suffix}"
        try:
            shutil.copyfile(record.path, copy)
            was = look_at(copy).content
            if way == "title":
                change_tag(copy, title=f"Edited {time.time_ns()}")
            else:
                change_tag(copy, genre="Polka" if way == "genre" else "")
            evidence = look_at(copy)
            if evidence.content != was:
                self._replace(copy, record.path)
                world.ledger.edited(record, was, evidence)
                world.note("file edited", f"{way}: {record.path.name}")
        except OSError as error:
            world.say(f"edit: {error.strerror}")
        finally:
            copy.unlink(missing_ok=True)

    def remove(self) -> None:
        record = self.pick()
        if record is not None and not self.world.away:
            with contextlib.suppress(OSError):
                record.path.unlink()
                record.removed = True
                self.world.note("file removed", record.path.name)

    # Plex

    def edit_in_plex(self) -> None:
        """Set genres in Plex's editor, while the daemon is not just about to write there."""
        world = self.world
        if world.alive and world.ask("SELECT count(*) FROM plex_wanted WHERE state='waiting'"):
            return
        with world.plex.lock:
            items = [item for item in world.plex.items.values() if item.kind != "artist"]
            if not items:
                return
            item = world.random.choice(items)
            world.plex.edit_by_user(item, ["Schlager"])
            world.ledger.plex[item.key] = PlexRecord(("Schlager",), True)
        world.note("edited in Plex", f"{item.kind} {item.title}")

    # The product's own commands

    def undo(self) -> None:
        """Take back what was done to a file, or to an album."""
        record = self.pick()
        if record is None:
            return
        path = record.path if self.world.random.random() < 0.5 else record.path.parent
        if self.world.random.random() < 0.5:
            self.command("undo", "--path", str(path), "--yes", "--json")
        else:
            self.by_api(record.path, "/undo")

    def decide(self) -> None:
        """Say what genre a track is."""
        record = self.pick()
        if record is None:
            return
        self.world.ledger.decided(record)
        if self.world.random.random() < 0.5:
            self.command("review", str(record.path), "--correct", "Jazz", "--json")
        else:
            self.by_api(record.path, "/decisions", kind="correct", genres=["Folk"])

    def reclassify(self) -> None:
        """Let an album be heard again: with fewer tracks, its vote may be another."""
        record = self.pick()
        if record is not None:
            self.world.ledger.cause_below(record.path.parent)
            self.command("reclassify", str(record.path.parent), "--json")

    def tag(self, *, kill_after: float | None = None) -> int:
        """Tag an album, or all, by the command, with or without what was taken back."""
        record = self.pick()
        if record is None:
            return 0
        path = record.path.parent if self.world.random.random() < 0.7 else self.world.site.music
        more: Sequence[str] = ()
        if self.world.random.random() < 0.6:
            more = ("--overwrite-user-genres",)
            self.world.ledger.cause_below(path)
        return self.command("tag", str(path), "--yes", "--json", *more, kill_after=kill_after)

    def pause(self) -> None:
        """Hold the daemon for a moment."""
        for what in ("/pause", "/resume"):
            self.world.api("POST", what)
            time.sleep(self.world.random.uniform(0, 0.3))
        self.world.did["pause and resume"] += 1

    def command(self, *arguments: str, kill_after: float | None = None) -> int:
        status = self.world.commands.run(*arguments, kill_after=kill_after)
        kind = f"command {arguments[0]}" if kill_after is None else f"kill command {arguments[0]}"
        if kill_after is None or status < 0:
            self.world.note(kind, f"{os.path.basename(arguments[-1])}, status {status}")
        return status

    def by_api(self, path: Path, what: str, **more: object) -> None:
        world = self.world
        track = world.ask("SELECT id FROM tracks WHERE path = ?", os.fsencode(path))
        if track:
            answer = world.api("POST", what, {"track_ids": [track], **more})
            world.note(f"API {what}", f"{path.name}: {'no answer' if answer is None else 'taken'}")

    def acts(self) -> dict[Callable[[], None], float]:
        """Return what they do besides bringing music, and how often."""
        return {
            self.edit: 3,
            self.remove: 0.3,
            self.edit_in_plex: 1,
            self.undo: 1,
            self.decide: 1,
            self.reclassify: 1,
            self.pause: 0.5,
            self.organize_more: 0.3,
        }
