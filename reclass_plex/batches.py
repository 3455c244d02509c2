"""Many values, some at a time: as many as a statement of SQL or a page of work takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

MOST_VALUES = 500  # of a statement; SQLite's limit was 999 variables before 3.32


def cut(whole: Iterable[T], size: int = MOST_VALUES) -> Iterator[list[T]]:
    """Yield `whole` in lists of `size`, the last one shorter; nothing is read ahead."""
    rest = iter(whole)
    while chunk := list(islice(rest, size)):
        yield chunk
