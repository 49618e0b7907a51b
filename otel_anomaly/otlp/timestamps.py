"""A time written as text (RFC 3339), in nanoseconds since 1970.

Some agents write the time of an event as an attribute and leave that of the log record empty.

    2026-11-21T09:14:56.721Z      2026-11-21 10:14:56,7+01:00

Days are counted from the first of March of the year 0: so the leap day is the last of a year [1]_.

.. [1] Hinnant, H. (2014). chrono-Compatible Low-Level Date Algorithms, `days_from_civil`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from otel_anomaly.kernels import Array, Int, inlined, kernel, load1

NO_TIME: Final = np.int64(0)
_SHORTEST: Final = len("2026-11-21T09:14:56Z")
_SECOND_NS: Final = 1_000_000_000
_DAYS_TO_1970: Final = 719_468
_FIRST_YEAR, _LAST_YEAR = 1970, 2261
"""Beyond it the nanoseconds do not fit."""
_MINUS, _PLUS, _DOT, _COMMA, _COLON, _ZERO, _NINE = 45, 43, 46, 44, 58, 48, 57


@inlined
def _number(data: Array, at: Int, count: Int) -> Int:
    """The number that `count` digits at `at` are, -1 when one is none."""
    found = np.int64(0)
    for i in range(count):
        byte = load1(data, at + i)
        if byte < _ZERO or byte > _NINE:
            return np.int64(-1)
        found = found * 10 + byte - _ZERO
    return found


@inlined
def _days(year: Int, month: Int, day: Int) -> Int:
    """Days since 1970 of a date from that year on."""
    shifted = (month + 9) % 12
    year -= 1 if month <= 2 else 0
    of_year = (153 * shifted + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + of_year - _DAYS_TO_1970


@inlined
def _month_length(year: Int, month: Int) -> Int:
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return np.int64(29 if leap else 28)
    return np.int64(30 if month == 4 or month == 6 or month == 9 or month == 11 else 31)


@kernel
def _date_s(data: Array, at: Int) -> Int:
    """Seconds since 1970 of the 19 bytes of date and time at `at`, -1 when they are none."""
    if load1(data, at + 4) != _MINUS or load1(data, at + 7) != _MINUS:
        return np.int64(-1)
    between = load1(data, at + 10) | 32  # `T`, `t` or a space.
    if between != 116 and load1(data, at + 10) != 32:
        return np.int64(-1)
    if load1(data, at + 13) != _COLON or load1(data, at + 16) != _COLON:
        return np.int64(-1)
    year, month = _number(data, at, 4), _number(data, at + 5, 2)
    day, hour = _number(data, at + 8, 2), _number(data, at + 11, 2)
    minute, second = _number(data, at + 14, 2), _number(data, at + 17, 2)
    if not _FIRST_YEAR <= year <= _LAST_YEAR or not 1 <= month <= 12:
        return np.int64(-1)
    if not 1 <= day <= _month_length(year, month):
        return np.int64(-1)
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or not 0 <= second <= 60:
        return np.int64(-1)
    return _days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second


@inlined
def _fraction_ns(data: Array, at: Int, end: Int) -> tuple[Int, Int]:
    """(nanoseconds, next) of what may stand behind the seconds; next is -1 for a dot alone."""
    if at >= end or (load1(data, at) != _DOT and load1(data, at) != _COMMA):
        return np.int64(0), at
    first, worth, found = at + 1, np.int64(_SECOND_NS // 10), np.int64(0)
    at = first
    while at < end and _ZERO <= load1(data, at) <= _NINE:
        found += worth * (load1(data, at) - _ZERO)
        worth //= 10
        at += 1
    return found, (at if at > first else np.int64(-1))


@inlined
def _zone_s(data: Array, at: Int, end: Int) -> tuple[bool, Int]:
    """(ok, seconds ahead of UTC) of what must stand at the end."""
    if end - at == 1:
        return bool(load1(data, at) | 32 == 122), np.int64(0)
    if end - at != 6 or load1(data, at + 3) != _COLON:
        return False, np.int64(0)
    sign = load1(data, at)
    hours, minutes = _number(data, at + 1, 2), _number(data, at + 4, 2)
    ok = (sign == _PLUS or sign == _MINUS) and 0 <= hours <= 23 and 0 <= minutes <= 59
    ahead = hours * 3600 + minutes * 60
    return ok, (ahead if sign == _PLUS else -ahead)


@kernel
def read_time(data: Array, at: Int, end: Int) -> Int:
    """Nanoseconds since 1970 of the text in [at, end); NO_TIME when it is no such time."""
    if end - at < _SHORTEST:
        return NO_TIME
    seconds = _date_s(data, at)
    if seconds < 0:
        return NO_TIME
    fraction, at = _fraction_ns(data, at + 19, end)
    if at < 0:
        return NO_TIME
    ok, ahead = _zone_s(data, at, end)
    if not ok or seconds < ahead:
        return NO_TIME
    return (seconds - ahead) * _SECOND_NS + fraction
