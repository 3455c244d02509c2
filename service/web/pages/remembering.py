"""Figures that are dear to count are kept for some seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """What a function returned, until it is too old. Any number of threads may ask."""

    def __init__(self, make: Callable[[], Value], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._lock = threading.Lock()
        self._value: Value | None = None
        self._until = 0.0

    def get(self) -> Value:
        """Return it; whoever comes while it is made waits for that."""
        with self._lock:
            if self._value is None or time.monotonic() >= self._until:
                self._value = self._make()
                self._until = time.monotonic() + self._seconds
            return self._value
