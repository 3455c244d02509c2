"""Hostile files by the hundred thousand: what do reading, decoding, writing, undo make of them?

    python benchmarks/fuzz.py --cases 100000 [--seed 1] [--log fuzz.log] [--seconds 3600]
    python benchmarks/fuzz.py --record fuzz.log more.log           # what runs came to, together
    python benchmarks/fuzz.py --show 1:4711 [--keep bad.mp3]      # one case again, in this process

Real files of every format are damaged (tests/fuzz_mutators.py), and everything that the product
does to a file is done to them (tests/fuzz_targets.py), in children with limits. Allowed are results
and named errors. What is not is written to the log, one JSON a line; beside it, in `.state.json`,
is how far it came: the same command goes on there, and prints the record at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz_corpus import make_corpus  # noqa: E402
from fuzz_run import SLOW_SECONDS, Case, Tally, make_case, run_cases  # noqa: E402
from fuzz_targets import TARGETS, run_target  # noqa: E402

SAVE_SECONDS = 10.0


def main() -> None:
    """Run, or show one case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, help="how many files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"))
    parser.add_argument("--show", metavar="SEED:NUMBER", help="run one case here, in the open")
    parser.add_argument("--keep", type=Path, help="with --show: where to leave the file")
    parser.add_argument("--record", metavar="LOG", type=Path, nargs="+", help="print these runs'")
    options = parser.parse_args()
    if options.record:
        print_record([_read(_state(log)) for log in options.record])
        return
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder))
    if options.show:
        seed, number = map(int, options.show.split(":"))
        base, data, names = make_case(seed, number, corpus)
        print(f"{base.format} ({base.tags}), {len(data)} bytes: {', '.join(names)}")
        if options.keep:
            options.keep.write_bytes(data)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"case{base.suffix}"
            path.write_bytes(data)
            for target in TARGETS:
                one = run_target(target, path)
                print(f"{target}: {one.result} ({one.seconds:.3f} s) {one.detail}")
        return
    tally = _load(options.log, options.seed)
    began = saved = time.monotonic()
    before = tally.seconds
    first = options.start + tally.done
    for case in run_cases(options.seed, range(first, options.start + options.cases), corpus):
        tally.add(case)
        _note(options.log, options.seed, case)
        now = time.monotonic()
        tally.seconds = before + now - began
        if now - saved > SAVE_SECONDS:
            _save(options.log, tally)
            saved = now
        if now - began > options.seconds:
            break
    _save(options.log, tally)
    print_record([tally])


def _note(log: Path, seed: int, case: Case) -> None:
    slow = [one for one in case.outcomes if one.seconds > SLOW_SECONDS and not one.is_bug]
    for one in (*case.bugs, *slow):
        what = {
            "case": f"{seed}:{case.number}",
            "file": f"{case.base.format} {case.base.tags}",
            "how": case.names,
            "target": one.target,
            "result": one.result if one.is_bug else f"slow: {one.seconds:.1f} s, {one.result}",
            "detail": one.detail,
        }
        with log.open("a") as file:
            file.write(json.dumps(what) + "\n")


def _state(log: Path) -> Path:
    return log.with_suffix(".state.json")


def _load(log: Path, seed: int) -> Tally:
    if not _state(log).exists():
        return Tally(seed)
    tally = _read(_state(log))
    if tally.seed != seed:
        sys.exit(f"{log}: is of seed {tally.seed}: take another --log")
    return tally


def _read(state: Path) -> Tally:
    said = json.loads(state.read_text())
    return Tally(**{**said, "counts": Counter(said["counts"])})


def _save(log: Path, tally: Tally) -> None:
    new = _state(log).with_suffix(".new")
    new.write_text(json.dumps(vars(tally)))
    new.replace(_state(log))


def print_record(tallies: list[Tally]) -> None:
    """Print a table in Markdown: how often each target came to what, by format."""
    counts: Counter[str] = Counter()
    for tally in tallies:
        counts.update(tally.counts)
    rows = {tuple(key.split("|")): count for key, count in counts.items()}
    results = sorted({key[2] for key in rows}, key=lambda name: (name != "ok", name))
    print(
        f"{sum(tally.done for tally in tallies):,} files, {sum(rows.values()):,} checks, ", end=""
    )
    print(f"{sum(tally.seconds for tally in tallies):,.0f} s; seeds ", end="")
    print(", ".join(f"{tally.seed} (0 to {tally.done - 1})" for tally in tallies), end="\n\n")
    print(f"| format | target | {' | '.join(results)} |")
    print(f"|---|---|{'---|' * len(results)}")
    for name, target in sorted({key[:2] for key in rows}):
        found = (f"{rows.get((name, target, result), 0) or ''}" for result in results)
        print(f"| {name} | {target} | {' | '.join(found)} |")
    print()
    for tally in tallies:
        for seconds, number, what in reversed(tally.slowest[-3:]):
            print(f"slowest: {seconds:.2f} s, {tally.seed}:{number}, {what}")
        for grown, number, what in reversed(tally.largest[-3:]):
            print(f"largest: {grown / 1e6:.0f} MB, {tally.seed}:{number}, {what}")


if __name__ == "__main__":
    main()
