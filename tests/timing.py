"""For tests that hold a time against a bound, on machines where other programs run as well."""

from __future__ import annotations

import pytest

#: A bound on time counts as kept when one of three tries keeps it: a neighbour's load may spoil
#: one measurement, code that became slow spoils all. Never for tests that bound no time.
timed = pytest.mark.flaky(reruns=2, reruns_delay=2)
