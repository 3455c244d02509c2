"""Hurts the real daemon in every way that we know, and has an independent checker judge it.

    python benchmarks/fault_injection.py [--kills 1000] [--corruptions 10] [--seed 1] [--log FILE]
    python benchmarks/fault_injection.py --soak 60

As root, disks are small ones of their own (tmpfs) that fill up and go away; else, and without a C
compiler, what cannot be brought about is left out and said. Ends with status 1 if anything that
must hold did not. docs/faults.md explains it.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from faults.session import Plan, run
from faults.soak import Soak
from faults.world import World


def main() -> int:
    """Run it and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--corruptions", type=int, default=10, help="of the database")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="of arrivals, kills and users"
    )
    parser.add_argument("--tracks", type=int, default=40, help="that are kept in place at most")
    parser.add_argument("--only-kills", action="store_true", help="and conditions at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("faults.log"), help="of every fault")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that disks are unmounted
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d %H:%M')}", flush=True)
    with tempfile.TemporaryDirectory() as scratch, options.log.open("a", buffering=1) as log:

        def say(text: str) -> None:
            now = time.time()
            clock = time.strftime("%H:%M:%S", time.gmtime(now))
            print(f"{clock}.{int(now * 1000) % 1000:03} {text}", file=log)

        say(f"seed {options.seed}")
        world = World(Path(scratch, "world"), options.seed, say)
        try:
            lines: list[str] = []
            if options.soak:
                soak = Soak(world, options.soak * 60)
                outcome = soak.run()
                lines += [*soak.counted, *soak.growth()]
            else:
                plan = Plan(
                    options.kills,
                    weather=not options.only_kills,
                    corruptions=options.corruptions,
                    most_tracks=options.tracks,
                )
                outcome = run(world, plan)
            lines += outcome.lines()
        finally:
            keep_logs(world, options.log)
            world.close()
        for line in lines:
            print(line)
            say(line)
    return bool(outcome.violations)


def keep_logs(world: World, log: Path) -> None:
    """Keep what daemon and commands said, and the database, beside the log."""
    for path in (world.site.log, world.commands.log, *world.site.store.parent.glob("*.sqlite*")):
        if path.exists():
            log.with_name(f"{log.name}.{path.name}").write_bytes(path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
