"""Keeps the memory of a process that lives for months at what it uses (glibc's malloc).

What Python frees goes to malloc, and malloc keeps it: for each thread's heap apart, and below
whatever lies above it. Pages of the dashboard and drawings come and go in many sizes, so that holes
add up to some MB an hour. Elsewhere than with glibc nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of mallopt(3)
_HEAPS = 2
_LARGE = 128 << 10  # bytes: glibc's default, which would grow up to 32 MiB by itself


def keep_small() -> None:
    """Give all threads together two heaps, and large blocks pages of their own for good."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_ARENA_MAX, _HEAPS)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_TRIM_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return the pages in the holes to the system: some ms for a hundred MB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
