"""Times of day by the clock on the wall: quiet hours, and when it is next a certain time.

A span is "22:00-07:30": from its first minute up to, not including, its last; over midnight too.
One that begins when it ends ("00:00-00:00") is the whole day. Everything goes by what the clock
shows: when it is set for daylight saving, a span is an hour longer or shorter, or left out. Pure,
but for the machine's time zone where none is given. Zones are whole minutes off UTC (since 1972).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime, time, timedelta, tzinfo

_DAY = 24 * 60  # minutes
_MINUTE = 60  # seconds


def quiet_until(now: datetime | float, spans: Sequence[str]) -> float | None:
    """Return when the quiet hours end that it is in, None outside of them.

    `now` is in seconds since the epoch (then the machine's zone counts) or a datetime with its
    zone; the answer is in seconds since the epoch. Spans that touch or overlap are one. Where it
    is always quiet, the answer is a day ahead: ask again then. Raises ValueError for a bad span.
    """
    moment, zone = _moment(now)
    left = _quiet_left(tuple(spans))
    shown = _minute_shown(moment, zone)
    if not left[shown]:
        return None
    minute = moment // _MINUTE * _MINUTE
    end = minute + left[shown] * _MINUTE
    if _minute_shown(end, zone) == (shown + left[shown]) % _DAY:
        return end
    end = minute  # the clock is set in between: as who looks at it each minute
    for _ in range(_DAY + 1):
        end += _MINUTE
        if not left[_minute_shown(end, zone)]:
            break
    return end


def next_time(now: datetime | float, time_of_day: str) -> float:
    """Return when it is next "04:00", in seconds since the epoch, once each day.

    On the day on which the clock skips that time it is as long after the skip as that time would
    have been; on the day on which it shows that time twice, the first counts.
    """
    moment, zone = _moment(now)
    hour, minute = divmod(_minutes(time_of_day), 60)
    day = datetime.fromtimestamp(moment, zone).date()
    while True:
        found = datetime.combine(day, time(hour, minute), zone).timestamp()
        if found > moment:
            return found
        day += timedelta(days=1)


def _moment(now: datetime | float) -> tuple[float, tzinfo | None]:
    if isinstance(now, datetime):
        return now.timestamp(), now.tzinfo
    return float(now), None


def _minute_shown(moment: float, zone: tzinfo | None) -> int:
    """Return the minute of the day that the clock shows."""
    shown = datetime.fromtimestamp(moment, zone)
    return shown.hour * 60 + shown.minute


@functools.lru_cache(maxsize=8)
def _quiet_left(spans: tuple[str, ...]) -> tuple[int, ...]:
    """Return for each minute of the day how many quiet ones follow, itself among them."""
    quiet: set[int] = set()
    for span in spans:
        first, _, last = span.partition("-")
        start, end = _minutes(first), _minutes(last)
        quiet.update(minute % _DAY for minute in range(start, end if start < end else end + _DAY))
    if len(quiet) == _DAY:
        return (_DAY,) * _DAY
    left = [0] * (2 * _DAY + 1)
    for minute in reversed(range(2 * _DAY)):  # two days, for what goes over midnight
        left[minute] = left[minute + 1] + 1 if minute % _DAY in quiet else 0
    return tuple(left[:_DAY])


def _minutes(text: str) -> int:
    """Return the minute of the day of "7:30"."""
    hour, _, minute = text.partition(":")
    if not (hour.isdecimal() and minute.isdecimal() and int(hour) < 24 and int(minute) < 60):
        raise ValueError(f"{text!r} is no time of day such as 22:00")
    return int(hour) * 60 + int(minute)
