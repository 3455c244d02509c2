"""The whole daemon, as real processes: what is dropped is tagged, whatever happens meanwhile."""

from __future__ import annotations

import random
import shutil
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from daemon_tools import (
    DEMO,
    PATIENCE,
    TOKEN,
    Daemon,
    Site,
    command,
    cut_track,
    hang_up,
    in_line,
    is_alive,
    leftovers,
    running,
    say,
    set_tags,
    wait_until,
)
from plex_server import Item, PlexStandIn
from plex_tools import list_wanted
from timing import timed

import service.daemon
from reclass_plex.audio import audio_digest
from reclass_plex.config import Config
from reclass_plex.files import hash_file
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store
from reclass_plex.store_guard import find_faults
from reclass_plex.tables import runs
from reclass_plex.tags import read_tags

# Each is decided with confidence, whatever part of it is heard.
SOURCES = {
    "Blues": DEMO / "HSR - City.ogg",
    "Metal": DEMO / "Muldjord - Mutilated Mime.mp3",
    "Ambient": DEMO / "Legoluft - Space-Atmo.opus",
}
CUT_SECONDS = 8.0


def hash_of(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hash_file(file).hex()


# All of it at once

FILES = 500
ALBUMS = 50
RECORDINGS = 8  # of each source; the store knows an audio again, so these are listened to
KILLS = 20
INSTANTS = ("starting", "writing", "starting", "at any time", "starting", "writing", "starting")
SETTLE = 0.5
SEED = 20261122


@dataclass
class Song:
    """A file that is to come, its place now (None: not yet, or deleted), and what is true of it."""

    source: Path
    name: str
    album: Path  # below the music folder
    genre: str
    digest: str
    hash: str
    path: Path | None = None
    growing: bool = False
    places: set[Path] = field(default_factory=set)  # where it has been since it is whole
    reopened: bool = False  # grown in a way in which a part of it may have been tagged


class RecordingPlex(PlexStandIn):
    """The stand-in, which also keeps what each edit made of an item's genres."""

    def __init__(self) -> None:
        self.edits: dict[int, list[tuple[str, ...]]] = defaultdict(list)
        super().__init__()

    def edit_tags(self, item: Item, of: str, tags: list[str], removals: list[str]) -> None:
        super().edit_tags(item, of, tags, removals)
        self.edits[item.key].append(tuple(item.genres))


def make_songs(folder: Path, rng: random.Random) -> list[Song]:
    """Write what is to come: some recordings many times, each time with other tags."""
    recordings = []
    for genre, source in SOURCES.items():
        for number in range(RECORDINGS):
            path = folder / f"{genre} {number}{source.suffix}"
            cut_track(source, path, 1 + 17 * number, CUT_SECONDS)
            recordings.append((genre, path, audio_digest(path)))
    songs = []
    for number in range(FILES):
        album = number % ALBUMS
        of_genre = [one for one in recordings if one[0] == list(SOURCES)[album % len(SOURCES)]]
        genre, recording, digest = rng.choice(of_genre)
        source = folder / f"{number}{recording.suffix}"
        shutil.copy(recording, source)
        set_tags(source, title=f"Song {number}", album=f"Album {album}")
        place = Path("one" if album % 2 else "two", f"Artist {album // 3}", f"Album {album}")
        name = f"{number:03}{recording.suffix}"
        songs.append(Song(source, name, place, genre, digest, hash_of(source)))
    return songs


class World:
    """What users do to their folders, and what befalls the daemon and Plex. `step` often."""

    def __init__(self, music: Path, songs: list[Song], rng: random.Random) -> None:
        self.music = music
        self.songs = songs
        self.rng = rng
        self.to_come = list(songs)
        self.did: Counter[str] = Counter()
        self._growing: list[tuple[float, Iterator[float]]] = []
        self._next_burst = self._next_change = 0.0
        self.changes_left = FILES // 5
        rng.shuffle(self.to_come)

    @property
    def through(self) -> bool:
        return not self.to_come and not self._growing and not self.changes_left

    def step(self, now: float) -> None:
        if self.to_come and now >= self._next_burst:
            self._next_burst = now + self.rng.uniform(0.2, 2.5)
            for _ in range(min(len(self.to_come), self.rng.randint(5, 45))):
                self._drop(self.to_come.pop(), now)
        for entry in [one for one in self._growing if one[0] <= now]:
            self._growing.remove(entry)
            pause = next(entry[1], None)
            if pause is not None:
                self._growing.append((now + pause, entry[1]))
        if self.changes_left and now >= self._next_change:
            self._next_change = now + self.rng.uniform(0.05, 0.5)
            self._change()

    def _drop(self, song: Song, now: float) -> None:
        folder = self.music / song.album
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / song.name
        way = self.rng.random()
        if way < 0.12:
            song.growing = True
            self._growing.append((now, self._grow(song, target)))
        elif way < 0.5:
            copy = target.with_name(target.name + ".part")
            shutil.copy(song.source, copy)
            copy.rename(target)
            song.path = target
        else:
            shutil.copy(song.source, target)
            song.path = target

    def _grow(self, song: Song, target: Path) -> Iterator[float]:
        """Write in pieces; held open with pauses of any length, or opened for each piece."""
        data = song.source.read_bytes()
        cuts = sorted(self.rng.sample(range(1, len(data)), 5))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        pauses = [self.rng.choice((0.4, 1.6)) * SETTLE for _ in pieces]
        # Only of an MP3 a part is music to which the rest may be added after it was tagged.
        song.reopened = target.suffix == ".mp3" and self.rng.random() < 0.5
        self.did["grown, reopened" if song.reopened else "grown, held open"] += 1
        if song.reopened:
            for piece, pause in zip(pieces, pauses, strict=True):
                with target.open("ab") as file:
                    file.write(piece)
                yield pause
        else:
            with target.open("wb", buffering=0) as file:
                for piece, pause in zip(pieces, pauses, strict=True):
                    file.write(piece)
                    yield pause
        song.path = target
        song.places.add(target)
        song.growing = False

    def _change(self) -> None:
        there = [one for one in self.songs if one.path and not one.growing and not one.reopened]
        if not there:
            return
        self.changes_left -= 1
        song = self.rng.choice(there)
        assert song.path is not None
        way = self.rng.random()
        if way < 0.25:
            self.did["deleted"] += 1
            song.path.unlink()
            song.path = None
        elif way < 0.6:
            self.did["renamed"] += 1
            song.path = song.path.rename(
                song.path.with_name(f"{song.path.stem}x{song.path.suffix}")
            )
        elif way < 0.9:
            self.did["moved"] += 1
            folder = self.music / self.rng.choice(self.songs).album
            folder.mkdir(parents=True, exist_ok=True)
            song.path = song.path.rename(folder / song.path.name)
        else:
            self._move_album(song.path.parent)

    def _move_album(self, folder: Path) -> None:
        inside = [one for one in self.songs if one.path and one.path.parent == folder]
        if any(one.growing and self.music / one.album == folder for one in self.songs):
            return  # what grows in it knows its path
        self.did["albums moved"] += 1
        new = folder.rename(folder.with_name(f"{folder.name} (moved {self.did['albums moved']})"))
        for one in inside:
            assert one.path is not None
            one.path = new / one.path.name
            one.places.add(one.path)


@dataclass
class Fate:
    """Kills the daemon and takes Plex away, over and over."""

    site: Site
    plex: PlexStandIn
    rng: random.Random
    daemons: list[Daemon] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    _instant: str = ""
    _kill_at: float = 0.0
    _next_plex: float = 0.0
    _next_scan: float = 0.0
    _log_size: int = 0

    @property
    def dead(self) -> int:
        """How often the main process was killed."""
        return self.kills.total() - self.kills["the worker"]

    def start(self, now: float) -> None:
        """Start a daemon, and choose at what instant it will be killed."""
        self.daemons.append(Daemon(self.site))
        self._instant = INSTANTS[len(self.daemons) % len(INSTANTS)]
        limits = {"starting": (0.2, 1.2), "at any time": (1.0, 4.0), "writing": (8.0, 8.0)}
        self._kill_at = now + self.rng.uniform(*limits[self._instant])
        self._log_size = self.site.log.stat().st_size

    def step(self, now: float) -> None:
        if now >= self._next_plex:
            self.plex.mode = (
                "ok" if self.plex.mode != "ok" else self.rng.choice(["down", "failing"])
            )
            self._next_plex = now + self.rng.uniform(0.5, 4.0)
        if self.plex.mode == "ok" and now >= self._next_scan:
            self.plex.scan(self.plex.libraries[1])
            self._next_scan = now + 1.0
        if self._instant == "writing" and self._has_written():
            self._instant = "written"
            self._kill_at = now + self.rng.uniform(0.0, 2.0)
        if now >= self._kill_at and self.dead < KILLS - 1:
            self._strike()

    def _has_written(self) -> bool:
        with self.site.log.open("rb") as log:
            log.seek(self._log_size)
            return b" -> " in log.read()

    def _strike(self) -> None:
        daemon = self.daemons[-1]
        if self._instant != "starting" and self.rng.random() < 0.2 and (worker := daemon.worker()):
            worker.kill()
            self.kills["the worker"] += 1
            self._instant, self._kill_at = "written", time.monotonic() + self.rng.uniform(0.0, 3.0)
            return
        self.kill()
        if self.rng.random() < 0.5:  # else the next one comes while its worker is still ending
            wait_until(lambda: not daemon.survivors(), "the dead daemon's worker has ended", 20)
        self.start(time.monotonic())

    def kill(self) -> None:
        self.daemons[-1].kill()
        self.kills[self._instant] += 1


@contextmanager
def fate_of(site: Site, plex: PlexStandIn, rng: random.Random) -> Iterator[Fate]:
    fate = Fate(site, plex, rng)
    fate.start(time.monotonic())
    try:
        yield fate
    finally:
        for daemon in fate.daemons:
            daemon.end()


def test_each_track_is_tagged_once_in_file_and_server_whatever_is_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    began = time.monotonic()
    rng = random.Random(SEED)
    pool = tmp_path / "pool"
    pool.mkdir()
    songs = make_songs(pool, rng)
    made = time.monotonic()
    plex = RecordingPlex()
    with plex:
        site = Site(tmp_path)
        folders = [str(site.music / name) for name in ("one", "two")]
        for folder in folders:
            Path(folder).mkdir(parents=True)
        plex.add_library(location="/data/music", root=site.music)
        site.configure(
            watch={"folders": folders, "settle_seconds": SETTLE},
            plex={
                "url": plex.url,
                "path_map": [{"plex": "/data/music", "local": str(site.music)}],
            },
            worker={"decoders": 1},
        )
        world = World(site.music, songs, rng)
        with fate_of(site, plex, rng) as fate:
            while not world.through or fate.dead < KILLS - 1:
                now = time.monotonic()
                world.step(now)
                fate.step(now)
                time.sleep(0.02)
            plex.mode = "ok"
            plex.scan(plex.libraries[1])
            fate.kill()
            stormy = time.monotonic()
            fate.start(time.monotonic())
            settle_down(fate.daemons[-1], plex, songs)
            calm = time.monotonic()
            assert fate.dead == KILLS
            print(dict(world.did), "killed:", dict(fate.kills))
            print(
                f"making {made - began:.1f} s, storm {stormy - made:.1f} s,"
                f" then {calm - stormy:.1f} s"
            )
            check_outcome(site, plex, songs)
            stop_seconds = fate.daemons[-1].terminate()
            assert stop_seconds < 10
            check_outcome(site, plex, songs)
            assert not [one for daemon in fate.daemons for one in daemon.survivors()]
        assert plex.errors == []


def settle_down(daemon: Daemon, plex: PlexStandIn, songs: list[Song]) -> None:
    """Wait until nothing is in line, and Plex shows what the files say."""
    wanted = {
        f"/data/music/{song.path.relative_to(daemon.site.music)}": song.genre
        for song in songs
        if song.path
    }
    library = plex.libraries[1]

    def shown() -> bool:
        with plex.lock:
            found = {item.files[0]: item for item in library.items("track")}
            return found.keys() == wanted.keys() and all(
                found[file].genres == [genre] and "genre" in found[file].locked
                for file, genre in wanted.items()
            )

    def through() -> bool:
        return shown() and in_line(daemon.status()) == 0

    try:
        wait_until(through, "every track is tagged, in file and server", pause=0.3)
    except AssertionError:
        print(daemon.status())
        print(daemon.site.log_text()[-6000:])
        found = {item.files[0]: (item.genres, item.locked) for item in library.items("track")}
        print({f: (found.get(f), g) for f, g in wanted.items() if found.get(f, ([],))[0] != [g]})
        raise


def check_outcome(site: Site, plex: RecordingPlex, songs: list[Song]) -> None:
    alive = {song.path: song for song in songs if song.path}
    assert leftovers([site.music]) == []
    assert {path for path in site.music.rglob("*") if path.is_file()} == alive.keys()
    with Store.open(site.store) as store:
        assert find_faults(store.path) == []
        assert store.pending_changes() == []
        standing = store.changes()
        jobs = Jobs(store).list_jobs(
            "review", "failed", "waiting", "ready", "running", "writing", limit=1000
        )
        assert jobs == []
        wanted = list_wanted(store)
        assert all(row.state != "waiting" for path, row in wanted.items() if path in alive)
    by_origin, by_place = (
        Counter(entry.before_hash for entry in standing),
        Counter(entry.path for entry in standing),
    )
    after = {entry.before_hash: entry.after_hash for entry in standing}
    for path, song in alive.items():
        assert read_tags(path).genres == (song.genre,), path
        assert audio_digest(path) == song.digest, path
        if song.reopened:
            assert sum(by_place[place] for place in song.places) == 1, path
        else:
            assert by_origin[song.hash] == 1, path
            assert after[song.hash] == hash_of(path), path
    for item in plex.libraries[1].items("track"):
        shown = plex.edits[item.key]
        assert {*shown} == {tuple(item.genres)}, shown
        assert len(shown) <= 3, shown


# One thing at a time


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Distinct pieces of music whose genre is clear."""
    folder = tmp_path_factory.mktemp("recordings")
    source = SOURCES["Blues"]
    return [cut_track(source, folder / f"{number:02}.ogg", 22 * number, 12) for number in range(32)]


def drop(site: Site, *recordings: Path, folder: str = "") -> list[Path]:
    (site.music / folder).mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(one, site.music / folder / one.name)) for one in recordings]


def genres(path: Path) -> tuple[str, ...]:
    return read_tags(path).genres


def all_tagged(paths: list[Path]) -> bool:
    return all(genres(path) == ("Blues",) for path in paths)


def held(site: Site) -> int:
    with Store.open(site.store) as store:
        counts = Jobs(store).counts()
        return counts["running"] + counts["writing"]


def test_one_daemon_a_store_and_systemd_hears_of_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure()
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(0.2)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "500000"}
        with running(site, environment) as daemon:
            second = Daemon(site)  # which tells systemd nothing
            try:
                assert second.process.wait(PATIENCE) == 1
            finally:
                second.end()
            assert "a reclass-plexd runs already with the store" in site.log_text()
            began, alive = time.monotonic(), []
            while time.monotonic() < began + 1.0:
                try:
                    heard.append(listener.recv(4096).decode())
                except TimeoutError:
                    continue
                if heard[-1] == "WATCHDOG=1":
                    alive.append(time.monotonic())
            assert daemon.status().state == "idle"
            assert daemon.terminate() < 10
            assert daemon.process.returncode == 0
            while True:
                try:
                    heard.append(listener.recv(4096).decode())
                except TimeoutError:
                    break
    assert [line for line in heard if line.startswith("READY=1")] == [heard[0]] or (
        heard.index(next(line for line in heard if line.startswith("READY=1"))) <= 1
    )
    assert "STATUS=idle; 0 in line, 0 failed" in "\n".join(heard)
    assert len(alive) >= 3
    assert heard[-1] == "STOPPING=1"


def test_a_changed_configuration_counts_from_sighup_on(
    tmp_path: Path, recordings: list[Path]
) -> None:
    site = Site(tmp_path)
    site.configure(watch={"settle_seconds": 600}, policy={"names": {"Blues": "Blue"}})
    with running(site) as daemon:
        [track] = drop(site, recordings[0])
        wait_until(daemon.worker, "the models load while the file rests")
        assert daemon.status().jobs["ready"] == 0
        worker = daemon.worker()
        good = site.config.read_text()
        site.config.write_text("policy: {mode: [unfinished\n")
        hang_up(daemon)
        wait_until(lambda: "the former configuration holds" in site.log_text(), "it says so")
        assert daemon.worker() == worker
        site.config.write_text(good.replace("600", "0.3").replace("Blue\n", "Bleu\n"))
        hang_up(daemon)
        wait_until(lambda: genres(track) == ("Bleu",), "tagged sooner, and by the new name")
        assert daemon.worker() != worker


@timed
def test_stopped_or_killed_while_busy_nothing_is_held_and_nobody_is_left(
    tmp_path: Path, recordings: list[Path]
) -> None:
    site = Site(tmp_path)
    site.configure()
    paths = drop(site, *recordings[:16])
    with running(site) as daemon:
        wait_until(lambda: any(genres(path) for path in paths), "it is busy")
        seconds = daemon.terminate()
        assert daemon.process.returncode == 0
        assert daemon.survivors() == []
    assert seconds < 10
    assert held(site) == 0
    done = sum(bool(genres(path)) for path in paths)
    assert 0 < done < len(paths), "it was not stopped while busy"
    with Store.open(site.store) as store:
        counts = Jobs(store).counts()
    assert counts["done"] == done
    assert counts["ready"] + counts["waiting"] == len(paths) - done
    with running(site) as daemon:
        wait_until(lambda: sum(bool(genres(path)) for path in paths) > done, "it is busy again")
        wait_until(lambda: len(daemon.children()) >= 3, "worker and decoders run")
        daemon.kill()
        wait_until(lambda: not daemon.survivors(), "the killed daemon's children have ended", 15)
    with running(site) as daemon:
        wait_until(lambda: all_tagged(paths), "all are tagged")
        wait_until(lambda: in_line(daemon.status()) == 0, "nothing is in line")
        assert leftovers([site.music]) == []
        assert daemon.status().jobs["failed"] == 0


def test_it_outlives_a_store_that_cannot_be_written(tmp_path: Path, recordings: list[Path]) -> None:
    site = Site(tmp_path)
    site.configure()
    paths = drop(site, *recordings[:6])
    with running(site) as daemon:
        wait_until(lambda: held(site) or any(genres(path) for path in paths), "it works")
        main = psutil.Process(daemon.process.pid)
        former = main.rlimit(psutil.RLIMIT_FSIZE)
        main.rlimit(psutil.RLIMIT_FSIZE, (0, former[1]))  # no byte into any file: as a full disk
        worker = daemon.worker()
        assert worker is not None
        worker.kill()
        time.sleep(3)  # it finds the worker dead, and cannot note that
        assert is_alive(main)
        main.rlimit(psutil.RLIMIT_FSIZE, former)
        if (another := daemon.worker()) not in (worker, None):
            another.kill()  # it inherited the limit
        wait_until(lambda: all_tagged(paths), "it goes on")


def test_a_signal_waits_for_nothing_that_the_interrupted_loop_may_hold() -> None:
    daemon = service.daemon.Daemon(Config(), None)
    with daemon._poked._cond:  # type: ignore[attr-defined]  # as the loop does inside of wait()
        for handler in (daemon.ask_reload, daemon.stop):
            thread = threading.Thread(target=handler, daemon=True)
            thread.start()
            thread.join(10)
            assert not thread.is_alive()


def test_copies_that_a_killed_writer_left_are_removed(
    tmp_path: Path, recordings: list[Path]
) -> None:
    site = Site(tmp_path)
    site.configure()
    with Store.open(site.store) as store, store.transaction() as connection:
        connection.execute(
            runs.insert().values(command="daemon", token="deadbeef", started=time.time())
        )
    name = ".x.reclass-deadbeef-0123.tmp.ogg"
    other = site.music / ".x.reclass-0badcafe-0123.tmp.ogg"  # of one that knows another store
    abandoned = site.music / "moved away" / name
    abandoned.parent.mkdir(parents=True)
    for copy in (other, abandoned):
        copy.write_bytes(b"half of a copy")
    with running(site) as daemon:
        wait_until(lambda: not abandoned.exists(), "the one before its start is removed")
        later = site.music / "album" / name
        later.parent.mkdir()
        later.write_bytes(b"half of a copy")
        [track] = drop(site, recordings[0], folder="album")
        wait_until(lambda: genres(track) == ("Blues",), "the track beside it is tagged")
        wait_until(lambda: in_line(daemon.status()) == 0, "through")
        assert leftovers([site.music]) == [other]


def test_commands_while_the_daemon_runs_and_without_it(
    tmp_path: Path, recordings: list[Path]
) -> None:
    site = Site(tmp_path)
    site.configure(worker={"idle_minutes": 60})
    with running(site) as daemon:
        undone = drop(site, *recordings[:2], folder="undone")
        kept = drop(site, *recordings[2:4])
        wait_until(lambda: all_tagged(undone + kept), "tagged")
        wait_until(lambda: in_line(daemon.status()) == 0, "through")
        # What is taken back stays so.
        command(site, "undo", "--path", str(undone[0].parent), "--yes")
        assert [path.read_bytes() for path in undone] == [r.read_bytes() for r in recordings[:2]]
        [result] = command(site, "reclassify", str(site.music))
        assert result["count"] == 4
        wait_until(lambda: in_line(daemon.status()) == 0, "through")
        assert not any(genres(path) for path in undone)
        assert all_tagged(kept)
        # Commands that change files, at the same time as the daemon.
        more = drop(site, *recordings[4:16])
        by_hand = [Path(shutil.copy(one, tmp_path / one.name)) for one in recordings[24:27]]
        command(site, "tag", *map(str, by_hand), "--yes")
        assert all_tagged(by_hand)
        wait_until(lambda: all_tagged(more), "the daemon goes on beside it")
        wait_until(lambda: in_line(daemon.status()) == 0, "through")

        say(site, "pause")
        assert command(site, "status")[0]["state"] == "paused"
        [late] = drop(site, recordings[30])
        wait_until(lambda: daemon.status().jobs["ready"] == 1, "it waits")
        [job] = command(site, "jobs", "--state", "ready")
        assert job["path"] == str(late)
        time.sleep(1.0)
        assert genres(late) == ()
        before = daemon.status().jobs
        [dry] = command(site, "reclassify", "--all", "--dry-run")
        assert dry["count"] == 19
        assert daemon.status().jobs == before
        say(site, "resume")
        wait_until(lambda: genres(late) == ("Blues",), "it goes on")
        daemon.terminate()
    [status] = command(site, "status", status=1)
    assert status["state"] == "not running"
    [dry] = command(site, "reclassify", "--genre", "Blues", "--dry-run")
    assert dry["count"] == 20
    with Store.open(site.store) as store:
        assert in_line_of(store) == 0
        [result] = command(site, "reclassify", "--genre", "Blues")
        assert (result["count"], in_line_of(store)) == (20, 20)


def in_line_of(store: Store) -> int:
    counts = Jobs(store).counts()
    return counts["waiting"] + counts["ready"]


def test_quiet_hours_and_a_mount_that_goes_away(tmp_path: Path, recordings: list[Path]) -> None:
    now = time.time()
    quiet = [time.strftime("%H:%M", time.localtime(now + minutes * 60)) for minutes in (-60, 60)]
    site = Site(tmp_path)
    site.configure(worker={"quiet_hours": ["-".join(quiet)]})
    with running(site) as daemon:
        paths = drop(site, *recordings[:3])
        wait_until(lambda: daemon.status().jobs["ready"] == 3, "they wait")
        away = site.music.rename(tmp_path / "away")
        wait_until(lambda: daemon.status().folders[0].state == "paused", "the folder is paused")
        time.sleep(1.0)
        status = daemon.status()
        assert (status.state, status.models_loaded) == ("quiet", False)
        assert status.jobs["ready"] == 3
        away.rename(site.music)
        wait_until(lambda: daemon.status().folders[0].state == "watching", "the folder is back")
        assert not any(genres(path) for path in paths)
        site.configure()
        hang_up(daemon)
        more = drop(site, recordings[3])
        wait_until(lambda: all_tagged(paths + more), "it goes on")


@timed
def test_files_are_tagged_without_plex_and_webhooks_answered_while_busy(
    tmp_path: Path, recordings: list[Path]
) -> None:
    from reclass_plex.credentials import webhook_key

    site = Site(tmp_path)
    with PlexStandIn(token="another") as plex:
        track = plex.add_track(plex.add_library(), "Artist", "Album", "Title")
        site.configure(plex={"url": plex.url})
        with running(site) as daemon:
            wait_until(lambda: daemon.status().plex.state == "needs sign-in", "it says so")
            paths = drop(site, *recordings[:20])
            wait_until(lambda: any(genres(path) for path in paths), "it is busy")
            client = daemon.find_client()
            assert client is not None
            plex.webhook_url = f"{client.url}/webhook/{webhook_key(site.store)}"
            took = []
            for _ in range(20):
                began = time.perf_counter()
                assert plex.send_webhook(track) == 202
                took.append(time.perf_counter() - began)
            busy = not all(genres(path) for path in paths)
            assert busy, "the worker was through before"
            assert sorted(took)[17] < 0.1, took
            wait_until(lambda: all_tagged(paths), "tagged all the same")
            plex_status = daemon.status().plex
            assert plex_status.state == "needs sign-in"
            assert plex_status.pending == len(paths)
            assert TOKEN not in site.log_text()
    with running(site) as daemon:  # and now it is not there at all
        wait_until(lambda: daemon.status().plex.state == "unreachable", "it says so")
        [late] = drop(site, recordings[0], folder="late")
        wait_until(lambda: genres(late) == ("Blues",), "tagged all the same")
