"""Reading rows out of a damaged SQLite file, without SQLite.

SQLite gives up at the first page that is wrong. Here every page that still is a leaf of a table is
read for itself, whatever became of the header, the tree above it, or the pages beside it: the file
format (https://sqlite.org/fileformat2.html) keeps whole rows in such pages. To which table a row
belongs is told by how many values it has and of which kinds. Pages in the write-ahead log count as
the newer ones, also those behind a frame that is damaged, where SQLite stops reading.

What is read may be stale (a page that is free again) or wrong (a page that is half overwritten), so
`plausible` values only are given, and nobody should trust them without comparing.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa

from reclass_plex.tables import Names, PathBytes, Scores
from reclass_plex.wal import PAGE_SIZES, log_path, read_log

Value = int | float | str | bytes | None

_LEAF = 0x0D  # a leaf page of a table
_HEADER = 100  # bytes of the file before the first page's own header
_MAGIC = b"SQLite format 3\x00"
_INT_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # of serial types
_MOST_COLUMNS = 100


@dataclass(frozen=True)
class Row:
    """A row that was found: its table, its rowid, and its values by column."""

    table: str
    rowid: int
    values: dict[str, Value]


def salvage_rows(
    path: Path, tables: Collection[sa.Table], *, page_size: int = 4096
) -> Iterator[Row]:
    """Yield what can be read of these tables' rows, in the order of the pages.

    `page_size` counts where the header says none. One row may come several times; of the same
    rowid the last one is not always the newest. Raises OSError if the file cannot be read at all.
    """
    shapes = _Shapes(tables)
    with path.open("rb") as file:
        pages = _Pages(file, path, page_size)
        try:
            for number in pages.numbers():
                for rowid, cell in pages.cells(number):
                    row = shapes.read(rowid, cell)
                    if row is not None:
                        yield row
        finally:
            pages.close()


class _Pages:
    """The pages of a database file, with those of its log in place of the older ones."""

    def __init__(self, file: BinaryIO, path: Path, page_size: int) -> None:
        self._file = file
        header = os.pread(file.fileno(), _HEADER, 0)
        said = int.from_bytes(header[16:18], "big") if header.startswith(_MAGIC) else 0
        said = 65536 if said == 1 else said
        log = read_log(log_path(path), page_size)
        self._frames = log.pages
        sizes = (said, log.page_size if log.pages else 0, page_size)
        self._size = next(size for size in sizes if size in PAGE_SIZES)
        reserved = header[20] if said and header[20] <= 32 else 0
        self._usable = self._size - reserved
        self._log = log_path(path).open("rb") if log.pages else None
        self._count = -(-os.fstat(file.fileno()).st_size // self._size)
        self._free = self._find_free()

    def close(self) -> None:
        """Close the log; the file is the caller's."""
        if self._log is not None:
            self._log.close()

    def numbers(self) -> Iterator[int]:
        """Yield the number of each page, from 1."""
        last = max((self._count, *self._frames))
        yield from (number for number in range(1, last + 1) if number not in self._free)

    def _find_free(self) -> set[int]:
        """Return the pages that are free, as far as their list can be read: they hold old rows."""
        free: set[int] = set()
        header = self._read(1)
        trunk = int.from_bytes(header[32:36], "big") if header.startswith(_MAGIC) else 0
        while trunk and trunk not in free and len(page := self._read(trunk)) == self._size:
            free.add(trunk)
            count = min(int.from_bytes(page[4:8], "big"), self._size // 4 - 2)
            leaves = struct.unpack(f">{count}I", page[8 : 8 + 4 * count])
            if any(leaf > self._count for leaf in leaves):  # no list of pages
                break
            free.update(leaves)
            trunk = int.from_bytes(page[:4], "big")
        return free

    def _read(self, number: int) -> bytes:
        try:
            if self._log is not None and number in self._frames:
                return os.pread(self._log.fileno(), self._size, self._frames[number])
            return os.pread(self._file.fileno(), self._size, (number - 1) * self._size)
        except OSError:  # a sector that the disk cannot read any more
            return b""

    def cells(self, number: int) -> Iterator[tuple[int, bytes]]:
        """Yield the rowid and the record of each row in a page; none if it is no leaf."""
        page = self._read(number)
        start = _HEADER if number == 1 else 0
        if len(page) <= start + 8 or page[start] != _LEAF:
            return
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        pointers = start + 8
        if pointers + 2 * count > len(page):
            return
        for at in range(pointers, pointers + 2 * count, 2):
            offset = int.from_bytes(page[at : at + 2], "big")
            try:
                size, offset = _varint(page, offset)
                rowid, offset = _varint(page, offset)
                record = self._payload(page, offset, size)
            except (IndexError, ValueError):
                continue
            yield rowid - (1 << 64) if rowid >= 1 << 63 else rowid, record

    def _payload(self, page: bytes, offset: int, size: int) -> bytes:
        """Return a record, with its overflow pages. Raises ValueError if some of it is missing."""
        most = self._usable - 35
        if size <= most:
            local = size
        else:
            least = (self._usable - 12) * 32 // 255 - 23
            local = least + (size - least) % (self._usable - 4)
            local = local if local <= most else least
        if offset + local > len(page) or size > self._size * max(self._count, len(self._frames)):
            raise ValueError("reaches out of its page")
        found = [page[offset : offset + local]]
        left = size - local
        number = int.from_bytes(page[offset + local : offset + local + 4], "big") if left else 0
        while left > 0:
            more = self._read(number) if number else b""
            part = more[4 : 4 + min(left, self._usable - 4)]
            if not part:
                raise ValueError("its rest is missing")
            found.append(part)
            left -= len(part)
            number = int.from_bytes(more[:4], "big")
        return b"".join(found)


class _Shapes:
    """Tells of which table a record is, by its values' kinds, and reads it."""

    def __init__(self, tables: Collection[sa.Table]) -> None:
        self._of_length: dict[int, list[sa.Table]] = {}
        for table in tables:
            columns = list(table.c)
            # Columns that came with a later schema are missing in rows from before.
            least = len(columns)
            while least and (columns[least - 1].nullable or columns[least - 1].server_default):
                least -= 1
            for length in range(max(least, 1), len(columns) + 1):
                self._of_length.setdefault(length, []).append(table)

    def read(self, rowid: int, record: bytes) -> Row | None:
        """Return the row that a record holds; None if it is of none of the tables."""
        try:
            kinds, start = _kinds(record)
            for table in self._of_length.get(len(kinds), ()):
                columns = list(table.c)[: len(kinds)]
                key = _rowid_column(table)
                if not all(map(_fits, columns, kinds)):
                    continue
                values = _values(record, kinds, start)
                row: dict[str, Value] = dict(
                    zip((column.name for column in columns), values, strict=True)
                )
                if key is not None:
                    row[key] = rowid
                if all(_is_plausible(column, row[column.name]) for column in columns):
                    return Row(table.name, rowid, row)
        except (IndexError, ValueError):
            return None
        return None


def _rowid_column(table: sa.Table) -> str | None:
    """Return the column that is another name of the rowid: the record holds NULL for it."""
    key = list(table.primary_key)
    alone = len(key) == 1 and isinstance(key[0].type, sa.Integer)
    return key[0].name if alone else None


def _kinds(record: bytes) -> tuple[list[int], int]:
    """Return the serial types of a record, and where its values begin."""
    end, offset = _varint(record, 0)
    kinds = []
    while offset < end:
        kind, offset = _varint(record, offset)
        kinds.append(kind)
        if len(kinds) > _MOST_COLUMNS:
            raise ValueError("too many columns")
    if offset != end:
        raise ValueError("its header does not end where it says")
    return kinds, end


def _fits(column: sa.Column[Any], kind: int) -> bool:
    if kind == 0:
        return bool(column.nullable) or column.name == _rowid_column(column.table)
    whole = kind in _INT_BYTES or kind in (8, 9)
    type_ = column.type.impl if isinstance(column.type, sa.types.TypeDecorator) else column.type
    if isinstance(type_, (sa.Integer, sa.Boolean)):
        return whole and column.name != _rowid_column(column.table)
    if isinstance(type_, sa.Float):
        return whole or kind == 7
    if isinstance(type_, sa.LargeBinary):
        return kind >= 12 and kind % 2 == 0
    return kind >= 13 and kind % 2 == 1


def _values(record: bytes, kinds: Sequence[int], offset: int) -> list[Value]:
    values: list[Value] = []
    for kind in kinds:
        size = _INT_BYTES.get(kind) or (8 if kind == 7 else (kind - 12) // 2 if kind >= 12 else 0)
        data = record[offset : offset + size]
        offset += size
        if len(data) != size:
            raise ValueError("is cut off")
        if kind == 0:
            values.append(None)
        elif kind in (8, 9):
            values.append(kind - 8)
        elif kind == 7:
            values.append(float(struct.unpack(">d", data)[0]))
        elif kind in _INT_BYTES:
            values.append(int.from_bytes(data, "big", signed=True))
        else:
            values.append(data if kind % 2 == 0 else data.decode("utf-8"))
    return values


def _is_plausible(column: sa.Column[Any], value: Value) -> bool:
    """Tell whether a value is one that its column could hold."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(column.type, PathBytes):
        return isinstance(value, bytes) and value.startswith(b"/") and b"\0" not in value
    if isinstance(column.type, (Names, Scores)):
        return isinstance(value, str) and isinstance(json.loads(value), list)
    return True


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return a number of SQLite's variable length, and where it ends. Raises IndexError."""
    value = 0
    for _ in range(8):
        byte = data[offset]
        offset += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset
    return value << 8 | data[offset], offset + 1
