"""Quiet hours by the clock on the wall, on the days on which that clock is set, too."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclass_plex.hours import next_time, quiet_until

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [ZoneInfo(name) for name in ("Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu")]
MINUTE, HOUR, DAY = 60, 3600, 86400


def at(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold)


def clock(moment: float | None) -> str | None:
    return None if moment is None else f"{datetime.fromtimestamp(moment, BERLIN):%m-%d %H:%M%z}"


@pytest.fixture
def berlin() -> Iterator[None]:
    former = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if former is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = former
    time.tzset()


@pytest.mark.parametrize(
    ("now", "spans", "until"),
    [
        ("2026-06-10 21:59", ["22:00-07:30"], None),
        ("2026-06-10 22:00", ["22:00-07:30"], "06-11 07:30+0200"),
        ("2026-06-11 07:29:59.900", ["22:00-07:30"], "06-11 07:30+0200"),
        ("2026-06-11 07:30", ["22:00-07:30"], None),
        ("2026-06-10 13:00", ["7:05-8:00", "12:00-13:30"], "06-10 13:30+0200"),
        ("2026-06-10 07:04", ["7:05-8:00", "12:00-13:30"], None),
        ("2026-06-10 22:00", ["22:00-00:00", "00:00-06:00", "05:30-6:30"], "06-11 06:30+0200"),
        ("2026-06-10 12:00", [], None),
        ("2026-06-10 12:00", ["12:01-12:00"], None),  # all but one minute
        ("2026-06-10 12:01", ["12:01-12:00"], "06-11 12:00+0200"),
        ("2026-03-29 01:30", ["22:00-02:30"], "03-29 03:00+0200"),  # 02:30 is skipped
        ("2026-03-29 01:59", ["02:00-03:00"], None),  # all of it is skipped
        ("2026-03-29 03:00", ["02:00-03:00"], None),
        ("2026-03-29 01:00", ["01:00-07:00"], "03-29 07:00+0200"),  # an hour shorter
        ("2026-10-25 01:00", ["01:00-07:00"], "10-25 07:00+0100"),  # an hour longer
        ("2026-10-25 01:30", ["22:00-02:30"], "10-25 02:30+0200"),  # quiet again at 02:00+0100
        ("2026-10-24 23:00", ["22:00-04:00"], "10-25 04:00+0100"),
    ],
)
def test_the_end_of_the_quiet_hours(now: str, spans: list[str], until: str | None) -> None:
    assert clock(quiet_until(at(now), spans)) == until


def test_the_hour_that_comes_twice_is_quiet_twice() -> None:
    assert quiet_until(at("2026-10-25 02:45"), ["22:00-02:30"]) is None
    again = quiet_until(at("2026-10-25 02:15", fold=1), ["22:00-02:30"])
    assert clock(again) == "10-25 02:30+0100"


@pytest.mark.parametrize("spans", [["00:00-00:00"], ["9:00-09:00"], ["00:00-12:00", "12:00-00:00"]])
@pytest.mark.parametrize("day", ["2026-03-28", "2026-06-10", "2026-10-24"])
def test_always_quiet_is_told_a_day_ahead(spans: list[str], day: str) -> None:
    now = at(f"{day} 15:00")
    until = quiet_until(now, spans)
    assert until is not None
    assert DAY <= until - now.timestamp() <= DAY + HOUR


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("day", ["2026-03-29 01:10", "2026-06-10 01:10", "2026-10-25 01:10"])
def test_seconds_since_the_epoch_mean_the_zone_of_the_machine(day: str) -> None:
    spans = ["01:00-05:30"]
    now = at(day)
    assert quiet_until(now.timestamp(), spans) == quiet_until(now, spans)
    assert next_time(now.timestamp(), "02:30") == next_time(now, "02:30")
    assert quiet_until(now.timestamp() + 6 * HOUR, spans) is None


minutes = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
moments = st.one_of(
    st.integers(int(at("2026-03-28 12:00").timestamp()), 1774828800),
    st.integers(int(at("2026-10-24 12:00").timestamp()), 1792972800),
    st.integers(int(at("2026-04-04 00:00").timestamp()), 1775433600),  # Lord Howe's
    st.integers(0, 4_000_000_000),
)


def shows_quiet(moment: float, zone: ZoneInfo, spans: list[tuple[str, str]]) -> bool:
    """What a person says who looks at the clock."""
    shown = f"{datetime.fromtimestamp(moment, zone):%H:%M}"
    return any(
        start <= shown < end if start < end else shown >= start or shown < end
        for start, end in spans
    )


@given(moments, st.lists(st.tuples(minutes, minutes), max_size=3), st.sampled_from(ZONES))
@settings(max_examples=150, deadline=None)
def test_it_is_as_who_looks_at_the_clock_each_minute_says(
    moment: int, spans: list[tuple[str, str]], zone: ZoneInfo
) -> None:
    now = datetime.fromtimestamp(moment, zone)
    until = quiet_until(now, [f"{start}-{end}" for start, end in spans])
    if until is None:
        assert not shows_quiet(moment, zone, spans)
        return
    assert moment < until <= moment + DAY + MINUTE
    assert all(
        shows_quiet(moment + wait, zone, spans) for wait in range(0, int(until - moment), MINUTE)
    )
    if until < moment // MINUTE * MINUTE + DAY:  # else asked again then
        assert not shows_quiet(until, zone, spans)


@pytest.mark.parametrize(
    ("now", "time_of_day", "found"),
    [
        ("2026-06-10 03:59:59", "04:00", "06-10 04:00+0200"),
        ("2026-06-10 04:00", "04:00", "06-11 04:00+0200"),
        ("2026-12-31 23:00", "0:05", "01-01 00:05+0100"),
        ("2026-03-28 04:00", "04:00", "03-29 04:00+0200"),  # 23 hours later
        ("2026-10-24 04:00", "04:00", "10-25 04:00+0100"),  # 25 hours later
        ("2026-03-29 00:00", "02:30", "03-29 03:30+0200"),  # skipped
        ("2026-03-29 03:30", "02:30", "03-30 02:30+0200"),
        ("2026-10-25 00:00", "02:30", "10-25 02:30+0200"),  # the first of two
        ("2026-10-25 02:30", "02:30", "10-26 02:30+0100"),
    ],
)
def test_when_it_is_next_a_time_of_day(now: str, time_of_day: str, found: str) -> None:
    assert clock(next_time(at(now), time_of_day)) == found


@given(moments, minutes, st.sampled_from(ZONES))
@settings(max_examples=150, deadline=None)
def test_each_day_has_that_time_once(moment: int, time_of_day: str, zone: ZoneInfo) -> None:
    first = next_time(datetime.fromtimestamp(moment, zone), time_of_day)
    second = next_time(datetime.fromtimestamp(first, zone), time_of_day)
    days = [datetime.fromtimestamp(each, zone).date() for each in (moment, first, second)]
    assert first > moment
    assert days[2] - days[1] == timedelta(days=1)
    assert days[1] - days[0] <= timedelta(days=1)


@pytest.mark.parametrize("span", ["22:00", "22:00-24:00", "22:00-7:60", "-", "x-y", ""])
def test_what_is_no_span_is_refused(span: str) -> None:
    with pytest.raises(ValueError, match="no time of day"):
        quiet_until(datetime.now(timezone.utc), [span])
