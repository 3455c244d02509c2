"""What a check says, and a time limit for those that may hang."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    level: Level
    text: str
    advice: str = ""


def within(
    seconds: float, name: str, advice: str, checks: Callable[[], Iterable[Check]]
) -> Iterator[Check]:
    """Yield `checks` as they come; an error of this name if one takes longer than `seconds`.

    They run in a thread, which is left behind then: nothing else helps against a network mount
    whose server is away.
    """
    found: queue.SimpleQueue[Check | Exception | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            for check in checks():
                found.put(check)
        except Exception as error:  # raised again below, by the caller's thread
            found.put(error)
        else:
            found.put(None)

    thread = threading.Thread(target=run, name=f"doctor: {name}", daemon=True)
    thread.start()
    while True:
        try:
            check = found.get(timeout=seconds)
        except queue.Empty:
            yield Check(name, "error", f"no answer within {seconds:g} s", advice)
            return
        if isinstance(check, Check):
            yield check
            continue
        thread.join()
        if isinstance(check, OSError):
            reason = (check.strerror or str(check)).lower()
            yield Check(name, "error", f"cannot be looked at: {reason}", advice)
        elif check is not None:
            raise check
        return
