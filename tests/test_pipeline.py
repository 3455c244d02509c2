"""What is analysed ahead of the writer, and how much of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from reclass_plex.pipeline import MOST_AHEAD, PREFETCH_PER_WORKER, _Done, _map_ahead, _Todo


def test_known_files_do_not_pile_up_behind_a_slow_one() -> None:
    free = threading.Event()
    taken = 0

    def items() -> Iterator[_Todo[int] | _Done[int]]:
        nonlocal taken
        yield _Todo(0)
        for number in range(1, 3 * MOST_AHEAD):
            taken += 1
            yield _Done(number)

    def hear(number: int) -> int:
        assert free.wait(60)
        return number

    results = _map_ahead(hear, items(), 1, lambda: False)
    threading.Timer(0.5, free.set).start()
    assert next(results) == 0
    assert taken <= MOST_AHEAD
    assert list(results) == list(range(1, 3 * MOST_AHEAD))


def test_a_bounded_number_is_heard_ahead() -> None:
    begun: list[int] = []
    results = _map_ahead(begun.append, map(_Todo, range(1000)), 2, lambda: False)
    next(results)
    assert len(begun) <= 2 * PREFETCH_PER_WORKER
    results.close()  # type: ignore[attr-defined]
