"""Faults of every kind, on the real daemon; the long form is benchmarks/fault_injection.py's."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.session import Outcome, Plan, run
from faults.world import World

SEED = 20261126


def hurt(root: Path, plan: Plan) -> Outcome:
    said: list[str] = []
    world = World(root, SEED, said.append)
    try:
        outcome = run(world, plan)
        if outcome.violations:  # pytest shows it
            print("\n".join([*said, world.site.log_text()[-20_000:]]))
    finally:
        world.close()
    print("\n".join(outcome.lines()))
    return outcome


def test_some_faults_leave_every_track_whole_and_decided(tmp_path: Path) -> None:
    plan = Plan(kills=6, conditions=3, longest=1.0, first_albums=2, most_tracks=12)
    outcome = hurt(tmp_path / "world", plan)
    assert outcome.kills == 6
    assert outcome.violations == []


@pytest.mark.nightly
def test_a_thousand_kills_and_every_fault(tmp_path: Path) -> None:
    outcome = hurt(tmp_path / "world", Plan(kills=1000, corruptions=10))
    assert outcome.kills >= 1000
    assert outcome.violations == []
