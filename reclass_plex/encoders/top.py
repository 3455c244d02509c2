"""Which last blocks of which encoder features belong to.

Features that end in `-topN` are the hidden states that enter its last N blocks, all tokens of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_TOP = re.compile(r"(mert-95m|mert-330m|jmla)-top([1-9]\d?)")


@dataclass(frozen=True)
class Top:
    """The last `depth` blocks of the fetched encoder called `model`."""

    model: str
    depth: int

    @property
    def kind(self) -> Literal["mert", "jmla"]:
        """Whose graph it is."""
        return "jmla" if self.model == "jmla" else "mert"


def parse_top(features: str) -> Top | None:
    """Return what features such as mert-95m-top2 are below of; None if they are others."""
    match = _TOP.fullmatch(features)
    return Top(match[1], int(match[2])) if match else None
