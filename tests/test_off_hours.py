"""The detector `off_hours` by itself, and the time zones it reads."""

from __future__ import annotations

import random
import zoneinfo
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from otel_anomaly.config import OffHoursConfig, zones
from otel_anomaly.detectors import off_hours
from otel_anomaly.detectors.finding import ALLOW, OFF, SECOND_NS
from tests import naive_detectors_a as naive
from tests.naive_detectors_a import Told
from tests.risk_rigs import blank_sign, fields_of, record_of
from tests.sizes import scaled

if TYPE_CHECKING:
    from collections.abc import Callable

# Whole and half hours, 45 minutes, both halves of the year, four changes a year, changes of side
# of the date line, and a zone whose summer is half an hour.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Pacific/Apia",
    "Australia/Lord_Howe",
)


def looker(**config: Any) -> Callable[[datetime], dict[str, Any]]:
    """What is said of a call at a time."""
    plan = off_hours.make_plan(OffHoursConfig.model_validate(config))[0]

    def look(when: datetime) -> dict[str, Any]:
        sign = blank_sign()
        call = record_of(Told(int(when.timestamp()) * SECOND_NS))
        off_hours.score(plan, call, sign)
        return fields_of(sign)

    return look


def at_hour(hour: int, minute: int = 0, month: int = 1) -> datetime:
    return datetime(2026, month, 15, hour, minute, tzinfo=UTC)


@pytest.mark.parametrize("name", ZONES)
def test_off_hours_equals_the_standard_library(name: str) -> None:
    """
    Scenario: random times of 70 years, and those around every change of offset, in zones of all
    kinds, with random hours.
    Guarantees: every field of every sign is that of the twin, which asks `zoneinfo`.
    """
    pick = random.Random(name)
    first, last = int(zones.FIRST.timestamp()), int(zones.LAST.timestamp())
    times = [pick.randrange(first, last) for _ in range(scaled(1000))]
    for second, _offset in zones.offsets(name)[1:]:
        times += [second - 1, second, second + 3600]
    for _ in range(3):
        config = OffHoursConfig(start=pick.randrange(25), end=pick.randrange(25), timezone=name)
        plan, sign = off_hours.make_plan(config)[0], blank_sign()
        for second in pick.sample(times, len(times)):
            call = Told(second * SECOND_NS)
            off_hours.score(plan, record_of(call), sign)
            assert fields_of(sign) == naive.off_hours(config, call).fields(), second


@pytest.mark.parametrize(("start", "end"), [(22, 6), (9, 17), (0, 24), (0, 23), (7, 7), (23, 0)])
def test_every_hour_of_the_day(start: int, end: int) -> None:
    """
    Scenario: every half hour of a day, over midnight, by day, always, all but one hour, never
    (defect 11: 0-23 left out 23:30).
    Guarantees: inside from the start to just before the end; equal hours are off, and say so.
    """
    look = looker(start=start, end=end)
    night, hour = set(), start
    while hour != end:
        night.add(hour % 24)
        hour = hour + 1 if start < end else (hour + 1) % 24
    for hour in range(24):
        for minute in (0, 30, 59):
            sign = look(at_hour(hour, minute))
            assert sign["score"] == float(hour in night)
            assert sign["action"] == ALLOW
            assert sign["skipped"] == (OFF if start == end else 0)


def test_summer_time_moves_the_hours() -> None:
    """
    Scenario: 20:30 and 21:30 UTC in January and July, and the two nights on which clocks change,
    off hours from 22 to 6 in Berlin.
    Guarantees: 21:30 is night in winter, 20:30 as well in summer; to the second at the change.
    """
    look = looker(timezone="Europe/Berlin")
    night = [look(at_hour(hour, 30, month))["score"] for month in (1, 7) for hour in (19, 20, 21)]
    assert night == [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    spring, autumn = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)
    for change, before, after in ((spring, 1, 3), (autumn, 2, 2)):
        assert look(change)["observed"] == after
        assert look(datetime.fromtimestamp(change.timestamp() - 1, UTC))["observed"] == before


def test_half_hours_of_offset() -> None:
    """
    Scenario: off hours from 22 to 6 in India, five and a half hours ahead.
    Guarantees: they begin at 16:30 UTC and end at 00:30 UTC.
    """
    look = looker(timezone="Asia/Kolkata")
    assert [look(at_hour(*at))["score"] for at in ((16, 29), (16, 30), (0, 29), (0, 30))] == [
        0.0, 1.0, 1.0, 0.0,
    ]  # fmt: skip


def test_times_that_no_table_reaches() -> None:
    """
    Scenario: 1970 and 2262 in Berlin.
    Guarantees: the first and the last offset of the table hold.
    """
    look = looker(timezone="Europe/Berlin")
    assert look(datetime(1970, 1, 1, 12, tzinfo=UTC))["observed"] == 13
    plan = off_hours.make_plan(OffHoursConfig(timezone="Europe/Berlin"))[0]
    sign = blank_sign()
    off_hours.score(plan, record_of(Told((1 << 63) - 1)), sign)
    assert 0 <= sign["observed"] < 24


@pytest.mark.parametrize(
    "name", ["Europe/Atlantis", "", "../../etc/passwd", "/etc/passwd", "Europe"]
)
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    """
    Scenario: names that no zone has, and names that lead elsewhere on the disk.
    Guarantees: refused when the configuration is read, with the name when a plan is made.
    """
    with pytest.raises(ValidationError):
        OffHoursConfig(timezone=name)
    with pytest.raises(ValueError, match="no time zone") as refused:
        zones.offsets(name)
    assert repr(name) in str(refused.value)


def test_without_a_database_only_utc_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Scenario: a system without time zone files and without the package tzdata.
    Guarantees: UTC works; any other zone is refused with what to do.
    """

    def nothing(name: str) -> zoneinfo.ZoneInfo:
        raise zoneinfo.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", nothing)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    zones.offsets.cache_clear()
    try:
        assert zones.offsets("UTC") == ((int(zones.FIRST.timestamp()), 0),)
        with pytest.raises(ValueError, match="install the package tzdata"):
            zones.offsets("Europe/Berlin")
    finally:
        zones.offsets.cache_clear()


def test_no_change_is_overlooked() -> None:
    """
    Scenario: the changes of zones whose rules are in their law.
    Guarantees: twice a year in Berlin, to the second; none in India; the table has room for all.
    """
    berlin = zones.offsets("Europe/Berlin")
    assert len(berlin) == 1 + 2 * 70
    assert (int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()), 7200) in berlin
    assert (int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()), 3600) in berlin
    assert zones.offsets("Asia/Kolkata") == ((int(zones.FIRST.timestamp()), 19800),)
    assert np.all(np.diff([second for second, _ in zones.offsets("Africa/Casablanca")]) > 0)
