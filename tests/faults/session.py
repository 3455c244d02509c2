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

IN_LINE = 15  # files that wait: then no more come
CALM_CONDITIONS = 10  # after which all is healed and judged


@dataclass(frozen=True)
class Plan:
    """How much: the session ends when all of it was done. `calm_every` counts kills.

    `weather`: first every condition comes, one after another, and nothing is killed meanwhile.
    `conditions` bounds how many kinds of them come at least once (None: all), `longest` how many
    seconds each holds.
    """

    kills: int
    weather: bool = True
    conditions: int | None = None
    longest: float = 5.0
    corruptions: int = 0
    calm_every: int = 150
    most_tracks: int = 40
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


@dataclass(frozen=True)
class _Active:
    """A condition that holds, until when, and how many operations had failed before."""

    what: Condition
    until: float
    hits: int


def run(world: World, plan: Plan) -> Outcome:
    """Run a session to its end, whatever is found on the way."""
    session = Session(world, plan)
    session.begin()
    if plan.weather:
        session.weather()
    session.storm()
    return session.end()


class Session:
    """First every condition upon a daemon that lives, then kills, with conditions at random."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._world, self._plan = world, plan
        self._began = time.monotonic()
        self._people = People(world, keep=plan.most_tracks)
        self._killer = Killer(world, self._people)
        self._acts, self._deaths = self._people.acts(), self._killer.acts()
        self._pool = conditions(world)
        self._active: list[_Active] = []
        self._calms = self._corrupted = 0

    def begin(self) -> None:
        """Let the first music come, and be tagged."""
        for _ in range(self._plan.first_albums):
            self._people.arrive()
            self._people.organize_more()
        self._world.start().wait_ready()

    def weather(self) -> None:
        """Bring every condition about, while music comes and the daemon works."""
        due = self._world.random.sample(self._pool, len(self._pool))[: self._plan.conditions]
        for number, one in enumerate(due, 1):
            self._world.start()
            self._begin(one)
            while self._active:
                self._act()
                self._end_due()
            if number % CALM_CONDITIONS == 0:
                self._calm()

    def storm(self) -> None:
        """Kill, until it was often enough."""
        world, choose = self._world, self._world.random
        judged_at = 0
        while self._killer.kills < self._plan.kills:
            world.start()
            if not self._active and choose.random() < 0.1 and self._plan.conditions is None:
                self._begin(choose.choice(self._pool))
            if choose.random() < 0.4:
                self._act()
            # Where something else is wrong the daemon mostly lives, so that it meets that.
            if not self._active or choose.random() < 0.3:
                _choose(choose, self._deaths)()
            self._end_due()
            if self._killer.kills - judged_at >= self._plan.calm_every:
                judged_at = self._killer.kills
                self._calm()
                if not two_daemons(world):
                    world.violations.append(Violation("two daemons", "the second did not refuse"))
                if self._corrupted < self._plan.corruptions:
                    self._corrupt()

    def end(self) -> Outcome:
        """Judge, take everything back, judge again, and return what all of it came to."""
        self._calm()
        while self._corrupted < self._plan.corruptions:
            self._corrupt()
        self._world.undo_all()
        return Outcome(
            self._killer.kills,
            self._world.did,
            self._world.maker.count,
            time.monotonic() - self._began,
            self._calms,
            self._world.violations,
        )

    def _act(self) -> None:
        """Let somebody do something; no more music comes than can be worked on."""
        if self._world.counts()[1] < IN_LINE and self._world.random.random() < 0.5:
            self._people.arrive()
        _choose(self._world.random, self._acts)()
        self._world.scan()
        time.sleep(self._world.random.uniform(0, 0.2))

    def _calm(self) -> None:
        self._end_due(float("inf"))
        self._world.calm()
        self._calms += 1

    def _corrupt(self) -> None:
        self._corrupted += 1
        corrupt_and_restore(self._world)

    def _begin(self, one: Condition) -> None:
        now, shim = time.monotonic(), self._world.shim
        if one.begin() is False:
            self._world.say(f"condition {one.name}: could not be brought about")
            return
        until = now + self._world.random.uniform(0.2, 1.0) * self._plan.longest
        self._active.append(_Active(one, until, shim.hits if shim else 0))
        self._world.note(f"condition {one.name}")

    def _end_due(self, now: float | None = None) -> None:
        """End what is over; what lets operations fail lasts longer until one has."""
        now = time.monotonic() if now is None else now
        shim = self._world.shim
        for one in list(self._active):
            failed = shim.hits - one.hits if shim else 0
            patient = (
                one.what.name.startswith("EIO")
                and not failed
                and now < one.until + self._plan.longest
            )
            if now >= one.until and not patient:
                one.what.end()
                self._active.remove(one)
                self._world.did["operations that failed"] += failed
                self._world.say(f"over: {one.what.name}, {failed} operations failed")


def _choose(
    generator: random.Random, acts: Mapping[Callable[[], None], float]
) -> Callable[[], None]:
    return generator.choices(list(acts), list(acts.values()))[0]
