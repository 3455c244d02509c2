"""That a daemon's memory goes back to the system: measured in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")

MEASURE = """
import ctypes
from pathlib import Path
from service import heap

def resident_mb():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

def take(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
"""

HOLES = """
blocks = [(take(64 << 10), take(64)) for _ in range(600)]  # each below one that stays
full = resident_mb()
for large, _ in blocks:
    libc.free(large)
kept = resident_mb()
heap.give_back()
print(full, kept, resident_mb())
"""

LARGE = """
heap.keep_small()
libc.free(take(16 << 20))  # after which glibc would take what is smaller from its heap
blocks = [take(1 << 20) for _ in range(20)]  # 32 MiB at the end of its heap would go back
full = resident_mb()
for block in blocks:
    libc.free(block)
print(full, resident_mb())
"""


def measure(code: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE + code], capture_output=True, text=True, check=True
    )
    return [float(value) for value in done.stdout.split()]


def test_holes_between_what_is_used_are_given_back() -> None:
    full, kept, after = measure(HOLES)
    assert kept > full - 4  # else there is nothing to give back
    assert after < full - 25


def test_large_blocks_have_pages_of_their_own() -> None:
    full, after = measure(LARGE)
    assert after < full - 15
    full, after = measure(LARGE.replace("heap.keep_small()", ""))
    assert after > full - 4  # as it would be without
