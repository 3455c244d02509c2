"""Rows without SQLite: what SQLite reads of a whole file, and what is left of a damaged one."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from reclass_plex.salvage import salvage_rows
from reclass_plex.tables import metadata
from reclass_plex.wal import log_path, read_log

TABLES = list(metadata.tables.values())
FRAME = 24


def read_with_sql(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            table.name: sorted(
                connection.execute(f"SELECT {_columns(table)} FROM {table.name}").fetchall(),
                key=repr,
            )
            for table in TABLES
        }


def read_without(path: Path) -> dict[str, list[tuple[object, ...]]]:
    found: dict[str, list[tuple[object, ...]]] = {table.name: [] for table in TABLES}
    for row in salvage_rows(path, TABLES):
        table = metadata.tables[row.table]
        found[row.table].append(tuple(row.values[column.name] for column in table.c))
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


def _columns(table: sa.Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.c)


def fill(path: Path, page_size: int, count: int) -> None:
    """Put `count` rows of every kind of value into every table."""
    chance = random.Random(page_size)
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA page_size = {page_size}")
        metadata.create_all(connection)
        connection.commit()
    engine.dispose()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for table in TABLES:
            for number in range(1, count + 1):
                values = [_value(chance, column, number) for column in table.c]
                marks = ", ".join("?" * len(values))
                connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", values)
        connection.execute("COMMIT")


def _value(chance: random.Random, column: sa.Column[object], number: int) -> object:
    if column.nullable and chance.random() < 0.3:
        return None
    name = type(column.type).__name__
    if column.primary_key and name == "Integer":
        return number
    if name in ("Names", "Scores"):
        return '["a"]' if number % 2 else "[]"
    if name == "PathBytes":
        return b"/music/" + bytes([200]) * chance.choice((3, 300)) + str(number).encode()
    if name == "LargeBinary":
        return chance.randbytes(chance.choice((0, 10, 700, 5000, 200_000 if number == 1 else 50)))
    if name == "Boolean":
        return number % 2
    if name == "Float":
        return chance.choice((0.0, 1.0, -2.5, 1.795e9, 1e300))
    if name == "Text":
        return f"{number} {'ö' * chance.choice((0, 5, 900))}"
    return chance.choice((0, 1, -1, 127, -129, 40_000, -(1 << 30), 1 << 45, -(1 << 62))) + number


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_whole_file_gives_every_row_of_every_table(tmp_path: Path, page_size: int) -> None:
    path = tmp_path / "a.sqlite"
    fill(path, page_size, 60)
    wanted = read_with_sql(path)
    assert all(len(rows) == 60 for rows in wanted.values())
    assert read_without(path) == wanted


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A database as a kill leaves it: much of it in the log, one row a transaction."""
    path, copy = tmp_path / "a.sqlite", tmp_path / "killed" / "a.sqlite"
    copy.parent.mkdir()
    fill(path, 4096, 20)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for number in range(100, 130):
            connection.execute(
                "INSERT INTO runs VALUES (?, ?, '', 1.5, NULL)", (number, "tag" * 300)
            )
        connection.execute("DELETE FROM embeddings WHERE id < 5")
        for one in (path, log_path(path)):
            shutil.copy(one, copy.with_name(one.name))
    yield copy


def test_what_is_in_the_log_counts_as_the_newer_one(killed: Path) -> None:
    found = read_without(killed)  # first: SQLite takes the log away
    wanted = read_with_sql(killed)
    assert len(found["runs"]) == 50
    assert found == wanted


def test_free_pages_give_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    fill(path, 4096, 300)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM journal WHERE id > 10")
        connection.commit()
        assert connection.execute("PRAGMA freelist_count").fetchone()[0] > 20
    assert read_without(path)["journal"] == read_with_sql(path)["journal"]


def test_noise_is_no_row_and_no_error(killed: Path) -> None:
    chance = random.Random(1)
    data = killed.read_bytes()
    wanted = {name: set(map(repr, rows)) for name, rows in read_with_sql(killed).items()}
    for _ in range(25):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 20, 400))):
            at = chance.randrange(len(broken))
            length = chance.choice((1, 8, 4096))
            broken[at : at + length] = chance.randbytes(min(length, len(broken) - at))
        killed.write_bytes(broken)
        found = read_without(killed)
        kept = sum(len(wanted[name] & set(map(repr, rows))) for name, rows in found.items())
        assert kept > 0
    killed.write_bytes(b"")
    assert not any(read_without(killed).values())


# The log itself


def frames_of(log: Path) -> list[tuple[int, bool]]:
    """Return where each frame begins, and whether it commits, as SQLite wrote them."""
    data = log.read_bytes()
    starts = range(32, len(data) - FRAME - 4095, 4096 + FRAME)
    return [(start, data[start + 4 : start + 8] != b"\0\0\0\0") for start in starts]


def test_a_log_is_read_as_sqlite_reads_it(killed: Path) -> None:
    log = read_log(log_path(killed))
    assert (log.page_size, log.damaged) == (4096, False)
    data = log_path(killed).read_bytes()
    with closing(sqlite3.connect(killed)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file = killed.read_bytes()
    for number, offset in log.pages.items():
        assert data[offset : offset + 4096] == file[(number - 1) * 4096 : number * 4096]
    assert read_log(log_path(killed)).pages == {}
    assert read_log(killed.with_name("none")).pages == {}


def test_damage_is_seen_unless_it_may_be_a_write_that_the_power_cut_off(killed: Path) -> None:
    log = log_path(killed)
    whole = log.read_bytes()
    frames = frames_of(log)
    last_begins = max(at for at, (_, commits) in enumerate(frames[:-1]) if commits) + 1
    rows = len(read_without(killed)["runs"])
    for at, (start, _) in list(enumerate(frames))[::3]:
        broken = bytearray(whole)
        broken[start + FRAME + 50 : start + FRAME + 60] = b"\xa5" * 10
        log.write_bytes(broken)
        assert read_log(log).damaged == (at < last_begins), at
        assert len(read_without(killed)["runs"]) >= rows - 1  # SQLite would lose all behind it
        log.write_bytes(whole[: start + 700])  # as a power cut leaves it
        assert not read_log(log).damaged
    log.write_bytes(b"\0" * 32 + whole[32:])
    assert read_log(log).damaged
    assert len(read_without(killed)["runs"]) >= rows - 1


def test_frames_of_an_earlier_time_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    fill(path, 4096, 5)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for number in range(60):
            connection.execute("INSERT INTO runs VALUES (?, 'a', '', 1, NULL)", (100 + number,))
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        size = log_path(path).stat().st_size
        for number in range(20):
            connection.execute("INSERT INTO runs VALUES (?, 'b', '', 1, NULL)", (500 + number,))
            assert log_path(path).stat().st_size == size
            assert not read_log(log_path(path)).damaged
        assert read_without(path)["runs"] == read_with_sql(path)["runs"]
