"""Rows of float16 on disk, packed: a sixth smaller, so ten times smaller than the same in CSV.

A file is blocks of `ROWS_AT_ONCE` rows, the last one shorter: four bytes with a frame's length
(little endian), then a zstandard frame with a checksum. In it lie the high bytes of the first
feature, of the second, ..., then all low bytes: neighbours that look alike (the byte shuffle of
Alted, "Why modern CPUs are starving", 2010). Blocks do not depend on how the rows came, so that
the same rows are the same bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import zstandard

from reclass_plex.errors import Unreadable
from reclass_plex.files import naming_errors
from reclass_plex.training.table import ROWS_AT_ONCE

LEVEL = 15  # 16 MB/s: an hour of extraction writes a few MB
_LENGTH = struct.Struct("<I")


def write_packed(file: IO[bytes], parts: Iterable[npt.NDArray[Any]]) -> None:
    """Write the rows of all parts, (n, ...) each."""
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    for block in _blocks(parts):
        columns = block.reshape(len(block), -1).astype(">f2").T
        planes = np.ascontiguousarray(columns).view(np.uint8).reshape(-1, 2).T
        frame = compressor.compress(np.ascontiguousarray(planes).data)
        file.write(_LENGTH.pack(len(frame)) + frame)


def read_packed(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the rows, widened. Raises Unreadable if they are not rows of this shape."""
    rows = np.empty((shape[0], math.prod(shape[1:])), np.float32)
    damaged = Unreadable(path, "is damaged; extract again with --restart")
    with naming_errors(path, writing=False), path.open("rb") as file:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            into = rows[start : start + ROWS_AT_ONCE]
            planes = _frame(file, into.size * 2)
            if planes is None:
                raise damaged
            pairs = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(2, -1).T)
            into[:] = pairs.view(">f2").reshape(rows.shape[1], len(into)).T
        if file.read(1):
            raise damaged
    return rows.reshape(shape)


def _frame(file: IO[bytes], size: int) -> bytes | None:
    """Return the next frame's content if it has this size, or None."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    frame = file.read(_LENGTH.unpack(head)[0])
    try:
        if zstandard.get_frame_parameters(frame).content_size != size:
            return None
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError:
        return None


def _blocks(parts: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Cut the rows of all parts into blocks of the same length."""
    kept: list[npt.NDArray[Any]] = []
    count = 0
    for part in parts:
        kept.append(part)
        count += len(part)
        if count >= ROWS_AT_ONCE:
            rows = np.concatenate(kept)
            whole = count - count % ROWS_AT_ONCE
            for start in range(0, whole, ROWS_AT_ONCE):
                yield rows[start : start + ROWS_AT_ONCE]
            kept, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(kept)
