"""`make demo`: a Plex server, the daemon, and new music that gets its genre in file and server.

Runs the real daemon and the real commands on copies of the demo music in .demo/ beside this
repository; nothing else is touched. The Plex server is the tests' stand-in, which speaks Plex's
protocol. At the end everything is taken back, byte for byte. `make run` leaves it running, with its
dashboard, instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from reclass_plex.config import WebOptions

DEMO = Path(__file__).parent
ROOT = DEMO.parent
SCRATCH = ROOT / ".demo"
MUSIC = SCRATCH / "Music"
NOT_MUSIC = {".py", ".md"}
PATIENCE_SECONDS = 180.0
TOKEN = "demo-token"  # noqa: S105 - of the stand-in, on this machine
PORT = WebOptions().port
SEEN_AS = "/data/music"  # the folder's name on the server, as in a container
ENVIRONMENT = os.environ | {
    "XDG_STATE_HOME": str(SCRATCH / "state"),
    "XDG_CONFIG_HOME": str(SCRATCH / "config"),
    "RECLASS_PLEX_TOKEN": TOKEN,
}

console = Console(highlight=False)


def find_music() -> list[Path]:
    """Return the demo music."""
    return [
        path for path in sorted(DEMO.iterdir()) if path.is_file() and path.suffix not in NOT_MUSIC
    ]


def hash_files(paths: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of every file by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def reclass_plex(*arguments: str) -> list[dict[str, object]]:
    """Run the command and return its JSON lines."""
    command = [str(Path(sys.executable).with_name("reclass-plex")), *arguments, "--json"]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=SCRATCH, stdout=subprocess.PIPE, text=True, check=False
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def plex_server() -> Iterator[str]:
    """Run the stand-in; yield its address."""
    command = [sys.executable, str(ROOT / "tests" / "plex_server.py"), "--music", str(MUSIC)]
    command += ["--seen-as", SEEN_AS, "--port", "0", "--token", TOKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None  # noqa: S101 - it was asked for
        try:
            yield server.stdout.readline().partition(" at ")[2].partition(",")[0]
        finally:
            server.terminate()
            server.stdout.close()


@contextmanager
def daemon(
    plex_url: str, *, port: int = 0, min_confidence: float = 0.5
) -> Iterator[subprocess.Popen[str]]:
    """Configure and run the daemon; its log goes to .demo/daemon.log."""
    folder = SCRATCH / "config" / "reclass-plex"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"watch:\n  folders: [{json.dumps(str(MUSIC))}]\n  settle_seconds: 1\n"
        f"web:\n  port: {port}\n"
        f"policy:\n  min_confidence: {min_confidence}\n"
        f"plex:\n  url: {plex_url}\n"
        f"  path_map: [{{plex: {SEEN_AS}, local: {json.dumps(str(MUSIC))}}}]\n"
    )
    with (SCRATCH / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("reclass-plexd"))],
            env=ENVIRONMENT,
            stderr=log,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait, and give up with a message that says where to look."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"error: {what} did not happen in time; see {SCRATCH / 'daemon.log'}")
        time.sleep(0.2)


def is_running() -> bool:
    """Say whether the daemon answers."""
    return bool(reclass_plex("status")[0]["state"] != "not running")


def dashboard_link() -> str:
    """Return an address of the dashboard that signs a browser in, once."""
    return str(reclass_plex("dashboard")[0]["url"])


def free_port(wanted: int) -> int:
    """Return a port if nobody has it, else 0: any other."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


def in_plex(url: str) -> dict[str, tuple[str, str]]:
    """Return the genres of tracks and their albums that the server shows, by file name."""
    from plexapi.server import PlexServer

    shown = {}
    server = PlexServer(url, TOKEN)  # type: ignore[no-untyped-call]
    for track in server.library.sections()[0].searchTracks():
        track.reload()
        name = Path(track.media[0].parts[0].file).name
        album = track.album()
        shown[name] = (_tags(track.genres), _tags(album.genres))
    return shown


def _tags(genres: list[object]) -> str:
    return "; ".join(str(getattr(genre, "tag", "")) for genre in genres) or "-"


def ended(count: int) -> bool:
    """Say whether the daemon is through with `count` tracks, and with Plex."""
    [status] = reclass_plex("status") or [{}]
    jobs, plex = status.get("jobs"), status.get("plex")
    assert isinstance(jobs, dict)  # noqa: S101 - the command's documented output
    through = jobs["done"] + jobs["skipped"] + jobs["review"] + jobs["failed"]
    return through >= count and isinstance(plex, dict) and plex["pending"] == 0


def show(url: str) -> None:
    """Print one row a track: what was heard, and what stands in the file and in Plex."""
    from mutagen import File

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("track", max_width=22, no_wrap=True)
    for column in ("heard", "", "decided by", "s"):
        table.add_column(column, no_wrap=True)
    table.add_column("in the file")
    table.add_column("in Plex")
    shown = in_plex(url)
    for result in reclass_plex("tag", "Music", "--dry-run"):
        path, genres, before = Path(str(result["path"])), result["genres"], result["before"]
        assert isinstance(genres, list)  # noqa: S101 - the command's documented output
        assert isinstance(before, list)  # noqa: S101
        assert File(path) is not None  # noqa: S101 - others can read it, too
        track_genre, album_genre = shown.get(path.name, ("?", "?"))
        table.add_row(
            path.stem.split(" - ")[-1],
            "unsure" if result["unsure"] else genres[0]["name"],
            f"{genres[0]['confidence']:.2f}",
            str(result["decided_by"]),
            f"{result['seconds']:.2f}",
            "; ".join(before) or "-",
            track_genre if track_genre == album_genre else f"{track_genre} (album {album_genre})",
        )
    console.print(table)


def main() -> None:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="keep it running until Ctrl-C")
    keep = parser.parse_args().keep
    shutil.rmtree(SCRATCH, ignore_errors=True)
    MUSIC.mkdir(parents=True)
    tracks = find_music()
    with plex_server() as url, daemon(url, port=free_port(PORT) if keep else 0):
        wait_until(is_running, "the daemon's start")
        console.print("\nreclass-plexd watches .demo/Music, and a Plex server serves it")
        console.print(f"{len(tracks)} freely licensed tracks arrive (demo/ATTRIBUTION.md) ...\n")
        started = time.monotonic()
        for track in tracks:
            shutil.copy(track, MUSIC)
        copies = [MUSIC / track.name for track in tracks]
        before = hash_files(copies)
        wait_until(lambda: ended(len(tracks)), "that every track was heard")
        seconds = time.monotonic() - started
        show(url)
        tagged = sum(hash_files([copy])[copy.name] != before[copy.name] for copy in copies)
        console.print(f"\n{tagged} of {len(tracks)} tagged {seconds:.0f} s after they arrived\n")
        if keep:
            _stay(url)
            return
        console.print("[bold]$ reclass-plex undo[/bold]")
        results = reclass_plex("undo", "--yes")
        for result in results:
            if "path" in result:
                console.print(f"  {Path(str(result['path'])).name}: {result['how']}")
        items = [str(result["item"]).split()[0] for result in results if "item" in result]
        console.print(f"  in Plex: {items.count('track')} tracks, {items.count('album')} albums")
        if hash_files(copies) != before:
            sys.exit("error: undo did not restore every file")
        if any(genres != ("-", "-") for genres in in_plex(url).values()):
            sys.exit("error: undo did not restore Plex")
        console.print("\n[green]every file is again what it was, byte for byte; Plex too[/green]")
    console.print("Your own music: .venv/bin/reclass-plex tag ~/Music --dry-run")
    console.print(f"The dashboard, with these tracks: make run, then http://127.0.0.1:{PORT}")


def _stay(url: str) -> None:
    """Run until interrupted."""
    console.print(f"Plex stand-in: {url}, token {TOKEN}; log: {SCRATCH / 'daemon.log'}")
    console.print(f"Drop music into {MUSIC}; Ctrl-C ends it")
    link = dashboard_link()
    console.print(f"[bold]Dashboard: {link}[/bold]", soft_wrap=True)
    console.print("(This signs one browser in, within ten minutes: reclass-plex dashboard)")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
