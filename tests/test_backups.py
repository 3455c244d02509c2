"""Backups of real stores: whole, private, rotated by day and week, one state of a busy store."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from reclass_plex import backups
from reclass_plex.backups import (
    DAY,
    KEEP_BEFORE,
    Backup,
    describe_age,
    find_expired,
    list_backups,
    look_into,
    make_backup,
    newest_age,
    remove_expired,
)
from reclass_plex.errors import StoreDamaged, StoreError
from reclass_plex.jobs import Jobs
from reclass_plex.store import Store

NOW = datetime(2026, 11, 26, 4, 0).timestamp()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state" / "store.sqlite") as opened:
        opened.save_track(Path("/music/\udcff.mp3"), 1, 1, digest="d")
        opened.finish_run(opened.start_run("tag"))
        yield opened


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(connection.iterdump())


def test_a_backup_is_equal_private_and_can_be_opened_as_a_store(store: Store) -> None:
    Jobs(store).enqueue([Path("/music/\udcff.mp3")], "watch", NOW)
    path = make_backup(store.path, now=NOW)
    assert path is not None
    assert path.name.startswith("store.sqlite-20261126T")
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    before = path.read_bytes()
    assert (look_into(path).tracks, look_into(path).runs) == (1, 1)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before
    assert dump(path) == dump(store.path)
    with Store.open(path) as opened:
        assert Jobs(opened).counts() == Jobs(store).counts()


def test_two_of_one_second_have_two_names_and_the_newest_comes_first(store: Store) -> None:
    made = [make_backup(store.path, now=NOW) for _ in range(3)]
    before = make_backup(store.path, now=NOW - DAY, before="0002")
    assert len(set(made)) == 3
    found = list_backups(store.path)
    assert [one.path for one in found] == [*reversed(made), before]
    assert [one.before for one in found] == [None, None, None, "0002"]
    assert newest_age(store.path, NOW + 3602) == 3600
    assert newest_age(store.path.with_name("other.sqlite"), NOW) is None


def test_what_is_kept_by_day_and_week() -> None:
    """A backup each night for 100 nights, two on some days: 7 days, and 4 weeks before these."""
    nights = [datetime(2026, 11, 26, 4) - timedelta(days=number) for number in range(100)]
    backups = [Backup(Path(f"{night:%m%d-%H}"), night.timestamp(), 1) for night in nights]
    noon = datetime(2026, 11, 24, 12)
    backups.append(Backup(Path("noon"), noon.timestamp(), 1))
    gone = {one.path for one in find_expired(backups, days=7, weeks=4, now=NOW)}
    kept = sorted(str(one.path) for one in backups if one.path not in gone)
    days = ["1126-04", "1125-04", "noon", "1123-04", "1122-04", "1121-04", "1120-04"]
    # Thursday the 19th is the newest of its week that is not among the days; then three Sundays.
    assert kept == sorted([*days, "1119-04", "1115-04", "1108-04", "1101-04"])
    assert len(find_expired(backups, days=1, weeks=0, now=NOW)) == 100


def test_rotating_each_night_for_a_year_always_keeps_the_same_number(tmp_path: Path) -> None:
    backups: list[Backup] = []
    night = datetime(2026, 1, 1, 4)
    for _ in range(365):
        backups.append(Backup(Path(f"{night:%m%d}"), night.timestamp(), 1))
        now = night.timestamp()
        gone = find_expired(backups, days=7, weeks=4, now=now)
        backups = [one for one in backups if one not in gone]
        night += timedelta(days=1)
    assert len(backups) == 11
    assert (now - min(one.made for one in backups)) / DAY >= 24


def test_those_from_before_a_change_of_the_schema_stay_longer() -> None:
    daily = [Backup(Path(f"{n}"), NOW - n * DAY, 1) for n in range(20)]
    before = [Backup(Path(f"b{n}"), NOW - (100 + n) * DAY, 1, "0002") for n in range(4)]
    gone = {str(one.path) for one in find_expired([*daily, *before], days=7, weeks=1, now=NOW)}
    assert gone >= {f"b{n}" for n in range(KEEP_BEFORE, 4)}
    assert not gone & {f"b{n}" for n in range(KEEP_BEFORE)}


def test_a_clock_that_was_wrong_drives_no_good_backup_out(store: Store) -> None:
    """Begun in 2040 without a battery; and back in 1970."""
    future = [Backup(Path(f"f{n}"), NOW + (5000 + n) * DAY, 1) for n in range(20)]
    good = [Backup(Path(f"g{n}"), NOW - n * DAY, 1) for n in range(7)]
    gone = {str(one.path) for one in find_expired([*future, *good], days=7, weeks=1, now=NOW)}
    assert not gone & {f"g{n}" for n in range(7)}
    make_backup(store.path, now=NOW + 5000 * DAY)
    assert newest_age(store.path, NOW) is None
    assert remove_expired(store.path, days=1, weeks=0, now=NOW) == []  # the only one


def test_one_by_hand_to_a_place_of_ones_own(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "usb [1]" / "music store.db"
    target.parent.mkdir()
    assert make_backup(store.path, to=target) == target
    assert dump(target) == dump(store.path)
    assert list_backups(store.path) == []
    with pytest.raises(StoreError, match="is there already"):
        make_backup(store.path, to=target)
    with pytest.raises(StoreError, match="No such file"):
        make_backup(store.path, to=tmp_path / "none" / "x")
    assert [one.name for one in target.parent.iterdir()] == [target.name]
    with pytest.raises(StoreError, match="there is no store yet"):
        make_backup(tmp_path / "other.sqlite")


def test_what_is_no_whole_store_is_said(store: Store, tmp_path: Path) -> None:
    path = make_backup(store.path, to=tmp_path / "copy")
    assert path is not None
    data = path.read_bytes()
    for wrong in (b"", b"text", data[:5000], data[:4096] + b"\xa5" * 8192 + data[12288:]):
        path.write_bytes(wrong)
        with pytest.raises(StoreDamaged, match="copy"):
            look_into(path)
    sqlite3.connect(tmp_path / "foreign").close()
    with closing(sqlite3.connect(tmp_path / "foreign")) as foreign:
        foreign.execute("CREATE TABLE t (a)")
    with pytest.raises(StoreDamaged, match="no whole store"):
        look_into(tmp_path / "foreign")


def test_two_may_rotate_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (3, 2, 1):
        make_backup(store.path, now=NOW - day * DAY)
    listed = backups.list_backups

    def list_before_the_other(path: Path) -> list[Backup]:
        found = listed(path)
        found[-1].path.unlink()  # by the daemon, say
        return found

    monkeypatch.setattr(backups, "list_backups", list_before_the_other)
    gone = remove_expired(store.path, days=1, weeks=0, now=NOW)
    monkeypatch.undo()
    assert len(gone) == 1
    assert len(list_backups(store.path)) == 1


def test_ages_are_said_to_people() -> None:
    said = [describe_age(seconds) for seconds in (-5, 300, 3 * 3600, 3 * DAY)]
    assert said == ["0 minutes", "5 minutes", "3 hours", "3 days"]


def run(*arguments: str | Path, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reclass_plex", *map(str, arguments), "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_the_command_rotates_by_the_configuration(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    lines = f"store: {{path: {store.path}}}\nschedule: {{backup_days: 1, backup_weeks: 0}}\n"
    config.write_text(lines)
    for _ in range(2):
        done = run("backup", config=config)
        assert done.returncode == 0, done.stderr
    (only,) = list_backups(store.path)
    assert done.stdout.startswith(f"{only.path}: ")
    assert "1 tracks, 1 runs, 0 changes" in done.stdout
