"""`make demo`: copy the demo music, tag the copies, show what was decided, and take it all back.

Runs the real command on real files in .demo/ beside this repository; nothing else is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

DEMO = Path(__file__).parent
SCRATCH = DEMO.parent / ".demo"
MUSIC = SCRATCH / "Music"
NOT_MUSIC = {".py", ".md"}

console = Console(highlight=False)


def copy_music() -> None:
    """Begin from fresh copies."""
    shutil.rmtree(SCRATCH, ignore_errors=True)
    MUSIC.mkdir(parents=True)
    for source in sorted(DEMO.iterdir()):
        if source.is_file() and source.suffix not in NOT_MUSIC:
            shutil.copy(source, MUSIC)


def hash_music() -> dict[str, str]:
    """Return the SHA-256 of every file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(MUSIC.iterdir())
    }


def reclass_plex(*arguments: str) -> list[dict[str, object]]:
    """Run the command and return its JSON lines."""
    console.print(f"[bold]$ reclass-plex {' '.join(arguments)}[/bold]")
    command = [str(Path(sys.executable).with_name("reclass-plex")), *arguments, "--json"]
    state = {"XDG_STATE_HOME": str(SCRATCH / "state"), "XDG_CONFIG_HOME": str(SCRATCH / "config")}
    done = subprocess.run(
        command, env=os.environ | state, cwd=SCRATCH, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def show_verdicts(results: list[dict[str, object]]) -> None:
    """Print one row a track."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("track", max_width=24, no_wrap=True)
    for column in ("before", "heard", "", "decided by", "seconds"):
        table.add_column(column, no_wrap=True)
    table.add_column("written")
    for result in results:
        genres, before, after = result["genres"], result["before"], result["after"]
        assert isinstance(genres, list)  # noqa: S101 - the command's documented output
        assert isinstance(before, list)  # noqa: S101
        table.add_row(
            Path(str(result["path"])).stem.split(" - ")[-1],
            "; ".join(before) or "-",
            "unsure" if result["unsure"] else genres[0]["name"],
            f"{genres[0]['confidence']:.2f}",
            str(result["decided_by"]),
            f"{result['seconds']:.2f}",
            f"[green]{'; '.join(after)}[/green]"
            if result["written"] and isinstance(after, list)
            else f"no: {str(result['reason']).partition(' (')[0]}",
        )
    console.print(table)


def main() -> None:
    """Tell the story."""
    copy_music()
    before = hash_music()
    console.print(f"\n{len(before)} freely licensed tracks (demo/ATTRIBUTION.md), genres missing\n")
    started = time.perf_counter()
    results = reclass_plex("tag", "Music", "--yes")
    seconds = time.perf_counter() - started
    show_verdicts(results)
    written = sum(bool(result["written"]) for result in results)
    console.print(
        f"\n{written} of {len(results)} files tagged in {seconds:.1f} s, start included\n"
    )
    for result in reclass_plex("undo", "--yes"):
        console.print(f"  {Path(str(result['path'])).name}: {result['how']}")
    after = hash_music()
    if after != before:
        differing = [name for name in before if after.get(name) != before[name]]
        sys.exit(f"error: undo did not restore {', '.join(differing)}")
    console.print("\n[green]every file is again what it was, byte for byte[/green]")
    console.print("Your own music: .venv/bin/reclass-plex tag ~/Music --dry-run")


if __name__ == "__main__":
    main()
