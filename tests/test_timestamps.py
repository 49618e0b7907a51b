"""Times written as text, against `datetime`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_anomaly.otlp.timestamps import read_time
from tests.naive_recognition import time_ns

NANOSECOND = 10**9


def told(text: str) -> int:
    """The time of a text that other digits surround."""
    data = text.encode()
    around = np.frombuffer(b"20" + data + b"5Z", np.uint8)
    return int(read_time(around, np.int64(2), np.int64(2 + len(data))))


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2261, 12, 30)),  # noqa: DTZ001 - the zone is drawn.
    st.integers(-1439, 1439),
    st.sampled_from("Tt "),
)
def test_times(moment: datetime, minutes: int, between: str) -> None:
    """
    Scenario: any moment of 292 years, in any zone, with microseconds or without.
    Guarantees: the nanoseconds are those of the library.
    """
    sign, (hours, rest) = "-+"[minutes >= 0], divmod(abs(minutes), 60)
    text = f"{moment.isoformat(sep=between)}{sign}{hours:02}:{rest:02}"
    since = (
        moment.replace(tzinfo=UTC) - timedelta(minutes=minutes) - datetime(1970, 1, 1, tzinfo=UTC)
    )
    assert told(text) == since // timedelta(microseconds=1) * 1000
    assert told(text) == time_ns(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", NANOSECOND),
        ("2000-02-29T00:00:00z", 951_782_400 * NANOSECOND),
        ("2026-11-21T09:14:56.721Z", 1_795_252_496_721_000_000),
        ("2026-11-21T09:14:56.7210000019Z", 1_795_252_496_721_000_001),
        ("2026-11-21T09:14:56,5+00:00", 1_795_252_496_500_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800 * NANOSECOND),
    ],
)
def test_times_by_hand(text: str, expected: int) -> None:
    """
    Scenario: the first second, a leap day, a leap second, more digits than nanoseconds have.
    Guarantees: read, digits beyond the ninth left out.
    """
    assert told(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21",
        "2026-11-21T09:14:56",
        "2026-11-21T09:14:56.Z",
        "2026-11-21T09:14:56.7",
        "2026-11-21T09:14:56+0100",
        "2026-11-21T09:14:56+24:00",
        "2026-11-21T24:00:00Z",
        "2026-11-21T09:60:00Z",
        "2026-11-21T09:14:61Z",
        "2026-13-21T09:14:56Z",
        "2026-00-21T09:14:56Z",
        "2026-11-31T09:14:56Z",
        "2025-02-29T09:14:56Z",
        "2100-02-29T09:14:56Z",
        "2026-11-00T09:14:56Z",
        "1969-12-31T23:59:59Z",
        "2262-01-01T00:00:00Z",
        "1970-01-01T00:00:00+00:01",
        "2026/11/21T09:14:56Z",
        "2026-11-21_09:14:56Z",
        "2026-11-21T09.14.56Z",
        "+026-11-21T09:14:56Z",
        "1795252496721000000",
        "2026-11-21T09:14:56ZZ",
    ],
)
def test_no_times(text: str) -> None:
    """
    Scenario: texts cut off, out of range, in other forms.
    Guarantees: none is a time.
    """
    assert told(text) == 0
    assert time_ns(text) == 0


@given(
    st.from_regex(
        re.compile(r"[0-2][0-9]{3}-[0-1][0-9]-[0-3][0-9]T[0-9:]{8}[.Z0-9+:]{0,8}"), fullmatch=True
    )
)
def test_what_looks_like_a_time(text: str) -> None:
    """
    Scenario: texts that are nearly times.
    Guarantees: read as the twin reads them.
    """
    assert told(text) == time_ns(text)
