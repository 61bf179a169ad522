"""Moments as callers write them: one meaning each, or a typed error."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastledger import Code, Query
from fastledger.errors import InputError
from fastledger.times import TIME_MS_MAX, time_ms, time_text

NOON_MS = 1_769_860_800_000


@pytest.mark.parametrize(
    "moment",
    [
        NOON_MS,
        "2026-01-31T12:00Z",
        "2026-01-31 12:00:00Z",
        "2026-01-31t12:00:00.000z",
        "2026-01-31T13:00+01:00",
        "2026-01-31T06:30:00.000999-05:30",
        "2026-01-31T12:00:00.000999999Z",
        datetime(2026, 1, 31, 12, tzinfo=UTC),
        datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_every_way_to_write_a_moment_means_the_same(moment: Any) -> None:  # SPEC-QRY-6
    assert time_ms(moment) == NOON_MS


@pytest.mark.parametrize(
    "moment",
    [
        "2026-01-31T12:00",
        "2026-01-31",
        "12:00Z",
        "2026-W05-6T12:00Z",
        "20260131T120000Z",
        "31.01.2026 12:00",
        "2026-02-30T12:00Z",
        "2026-01-31T25:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T12:00Z\n",
        "２０２６-01-31T12:00Z",
        "1769860800000",
        "now",
        "",
        datetime(2026, 1, 31, 12),
        date(2026, 1, 31),
        1769860800000.0,
        True,
        None,
        b"2026-01-31T12:00Z",
    ],
)
def test_what_names_no_one_moment_is_a_typed_error(moment: Any) -> None:  # SPEC-QRY-6
    with pytest.raises(InputError) as error:
        time_ms(moment, "until")
    assert error.value.code == Code.BAD_TIME
    assert "until" in str(error.value)


@given(st.integers(0, TIME_MS_MAX))
def test_text_for_people_leads_back(moment_ms: int) -> None:
    assert time_ms(time_text(moment_ms)) == moment_ms


@given(st.datetimes(timezones=st.timezones()))
def test_a_datetime_is_cut_to_its_millisecond(moment: datetime) -> None:
    found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms(moment))
    assert timedelta(0) <= moment - found < timedelta(milliseconds=1)


@given(st.text() | st.integers())
def test_any_text_is_a_moment_or_a_typed_error(text: str | int) -> None:
    try:
        assert isinstance(time_ms(text), int)
    except InputError as error:
        assert error.code == Code.BAD_TIME


def test_numbers_without_a_text_are_shown_as_numbers() -> None:
    assert [time_text(number) for number in (-1, TIME_MS_MAX + 1)] == ["-1", str(TIME_MS_MAX + 1)]
    assert time_text(NOON_MS + 250) == "2026-01-31T12:00:00.250Z"


def test_a_query_takes_times_in_any_form() -> None:
    query = Query.of(from_time="2026-01-31T12:00Z", to_time=datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert (query.from_time_ms, query.to_time_ms) == (NOON_MS, NOON_MS)
    assert query == Query(from_time=NOON_MS, to_time=NOON_MS)
    with pytest.raises(InputError) as error:
        Query(to_time="2026-01-31")
    assert error.value.code == Code.BAD_TIME
