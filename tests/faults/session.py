"""One session of faults: people act, processes die, conditions come and go; now and then all is
healed and judged. At the end everything is taken back, and judged again."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from faults.checker import Violation
from faults.corruption import corrupt_and_restore
from faults.injuries import Condition, Killer, conditions, two_daemons
from faults.people import People
from faults.world import World

LONGEST = 5.0  # seconds that a condition holds


@dataclass(frozen=True)
class Plan:
    """How much: the session ends when all of it was done. `calm_every` counts kills.

    `conditions` bounds how many kinds of them come at least once (None: all).
    """

    kills: int
    conditions: int | None = None
    corruptions: int = 0
    calm_every: int = 60
    most_tracks: int = 150
    first_albums: int = 3


@dataclass
class Outcome:
    """What a session came to."""

    kills: int
    did: Counter[str]
    tracks: int
    seconds: float
    calms: int
    violations: list[Violation] = field(default_factory=list)

    def lines(self) -> Iterable[str]:
        """Yield the summary for people."""
        kinds = {"kills": "kill ", "commands": "command ", "conditions": "condition "}
        yield f"{self.kills} kills, {self.tracks} tracks, {self.calms} calm moments judged"
        for title, prefix in kinds.items():
            of = {k.removeprefix(prefix): v for k, v in self.did.items() if k.startswith(prefix)}
            yield f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(of.items()))
        rest = {
            name: count
            for name, count in sorted(self.did.items())
            if not name.startswith(tuple(kinds.values()))
        }
        yield "besides: " + ", ".join(f"{name} {count}" for name, count in rest.items())
        yield f"{self.seconds:.0f} s; violations: {len(self.violations)}"
        for one, count in Counter(map(str, self.violations)).most_common(40):
            yield f"  {count} x {one}"


def run(world: World, plan: Plan) -> Outcome:
    """Run a session to its end, whatever is found on the way."""
    began = time.monotonic()
    people = People(world, keep=plan.most_tracks)
    killer = Killer(world, people)
    for _ in range(plan.first_albums):
        people.arrive()
        people.organize_more()
    world.start()
    pool = conditions(world)
    due = world.random.sample(pool, len(pool))[: plan.conditions]
    active: dict[str, tuple[Condition, float]] = {}
    acts, deaths = people.acts(), killer.acts()
    calms = corrupted = judged_at = 0
    while killer.kills < plan.kills or due:
        world.start()
        now = time.monotonic()
        _end(world, active, now)
        if not active and (due or (pool and world.random.random() < 0.2)):
            _begin(world, due.pop() if due else world.random.choice(pool), active, now)
        _choose(world.random, acts)()
        # Where something else is wrong the daemon mostly lives, so that it meets that.
        if killer.kills < plan.kills and (not active or world.random.random() < 0.3):
            _choose(world.random, deaths)()
        world.scan()
        if killer.kills - judged_at >= plan.calm_every:
            _end(world, active, float("inf"))
            judged_at = killer.kills
            world.calm()
            calms += 1
            if not two_daemons(world):
                world.violations.append(Violation("two daemons", "the second did not refuse"))
            if corrupted < plan.corruptions:
                corrupted += 1
                corrupt_and_restore(world)
        time.sleep(world.random.uniform(0, 0.2))
    _end(world, active, float("inf"))
    world.calm()
    while corrupted < plan.corruptions:
        corrupted += 1
        corrupt_and_restore(world)
    world.undo_all()
    return Outcome(
        killer.kills,
        world.did,
        world.maker.count,
        time.monotonic() - began,
        calms + 1,
        world.violations,
    )


def _begin(
    world: World, one: Condition, active: dict[str, tuple[Condition, float]], now: float
) -> None:
    if one.begin() is not False:
        active[one.name] = (one, now + world.random.uniform(0.5, LONGEST))
        world.hits = world.shim.hits if world.shim else 0
        world.note(f"condition {one.name}")
    else:
        world.say(f"condition {one.name}: could not be brought about")


def _end(world: World, active: dict[str, tuple[Condition, float]], now: float) -> None:
    for name, (one, until) in list(active.items()):
        if now >= until:
            one.end()
            del active[name]
            failed = world.shim.hits - world.hits if world.shim else 0
            world.did["operations that failed"] += failed
            world.say(f"over: {name}{f', {failed} operations failed' if failed else ''}")


def _choose(
    generator: random.Random, acts: Mapping[Callable[[], None], float]
) -> Callable[[], None]:
    return generator.choices(list(acts), list(acts.values()))[0]
