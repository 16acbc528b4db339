"""When reminders may be sent, and on whose clock."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.brazil.zones import AREA_CODES, zones_of
from services.sms.quiet_hours import NOTICE, SLACK, QuietHours

SAO_PAULO, MANAUS = ZoneInfo("America/Sao_Paulo"), ZoneInfo("America/Manaus")
IN_SAO_PAULO, IN_MANAUS, IN_EIRUNEPE_OR_NOT = "+5511912345678", "+5592991234567", "+5597991234567"
LONG_AGO = datetime(2026, 3, 1, 12, tzinfo=UTC)
USUAL = QuietHours()


def at(hour: int, minute: int = 0, day: int = 12, zone: ZoneInfo = SAO_PAULO) -> datetime:
    return datetime(2026, 3, day, hour, minute, tzinfo=zone)


def allowed_at(
    requested_at: datetime,
    start: datetime,
    *,
    now: datetime = LONG_AGO,
    to: str = IN_SAO_PAULO,
    hours: QuietHours = USUAL,
) -> datetime:
    return hours.allowed_at(requested_at, now=now, recipient=to, start_at=start)


@pytest.mark.parametrize(
    ("requested_at", "start", "allowed"),
    [
        (at(8), at(15), at(8)),
        (at(20, 59), at(15, day=13), at(20, 59)),
        (at(21), at(15, day=13), at(8, day=13)),
        (at(3), at(15), at(8)),
        (at(23), at(9, day=13), at(8, day=13)),  # NOTICE is left, to the minute
    ],
)
def test_a_reminder_due_at_night_waits_for_the_morning(
    requested_at: datetime, start: datetime, allowed: datetime
) -> None:
    assert allowed_at(requested_at, start) == allowed


@pytest.mark.parametrize(
    ("requested_at", "start"),
    [
        (at(22, day=11), at(8, 1)),
        (at(21, day=11), at(8, 59)),
        (at(23, 59, day=11), at(5)),
        (at(2), at(7, 30)),
        (at(7, 59), at(8, 58)),
        (at(6, 50), at(7, 30)),
    ],
)
def test_a_reminder_whose_morning_is_too_late_is_sent_the_evening_before(
    requested_at: datetime, start: datetime
) -> None:
    assert allowed_at(requested_at, start) == at(21, day=11) - SLACK


@pytest.mark.parametrize(
    ("now", "start", "allowed"),
    [
        (at(20, 45, day=11), at(8, 1), at(20, 45, day=11)),  # what is left of the evening
        (at(22, day=11), at(8, 1), at(7, 1)),
        (at(1), at(6, 15), at(5, 15)),
        (at(7, 30), at(8, 1), at(7, 30)),
        (at(4, 50), at(5), at(4, 50)),
    ],
)
def test_a_reminder_that_missed_the_evening_goes_a_notice_before_the_start_or_now(
    now: datetime, start: datetime, allowed: datetime
) -> None:
    assert allowed_at(max(now, at(22, day=11)), start, now=now) == allowed


def test_the_night_is_the_recipient_s() -> None:
    start, evening = at(15, day=13), at(21, 30)

    assert allowed_at(evening, start, to=IN_MANAUS) == evening  # 20:30 there
    assert allowed_at(at(8), start, to=IN_MANAUS) == at(8, zone=MANAUS)


@pytest.mark.parametrize(
    ("to", "eastern", "western"),
    [
        (IN_EIRUNEPE_OR_NOT, "America/Manaus", "America/Eirunepe"),
        ("+351912345678", "Europe/Lisbon", "Atlantic/Azores"),
        ("+34612345678", "Europe/Madrid", "Atlantic/Canary"),
        ("+61412345678", "Australia/Lord_Howe", "Indian/Cocos"),
    ],
)
def test_a_number_of_several_zones_is_texted_while_it_is_day_in_all(to: str, eastern: str, western: str) -> None:
    start, east, west = at(15, day=20), ZoneInfo(eastern), ZoneInfo(western)

    assert {eastern, western} <= set(zones_of(to))
    assert allowed_at(at(7, zone=west), start, to=to) == at(8, zone=west)
    assert allowed_at(at(20, 59, zone=east), start, to=to) == at(20, 59, zone=east)
    assert allowed_at(at(21, zone=east), start, to=to) == at(8, day=13, zone=west)


@pytest.mark.parametrize("to", ["+15005550006", "+18005551234", "+5215512345678"])
def test_a_number_of_no_zone_or_of_too_many_has_the_settings_zone(to: str) -> None:
    start, hours = at(15, day=20), QuietHours.parse("22:00-09:30 America/Manaus")

    assert allowed_at(at(7), start, to=to) == at(8)
    assert allowed_at(at(21, 59, zone=MANAUS), start, to=to, hours=hours) == at(21, 59, zone=MANAUS)
    assert allowed_at(at(22, zone=MANAUS), start, to=to, hours=hours) == at(9, 30, day=13, zone=MANAUS)


# Of each state's zones, what its clock shows while it is noon in Sao Paulo.
CLOCKS = {
    12: [*range(11, 20), 21, 22, 24, 27, 28, *range(31, 36), 37, 38, *range(41, 50), 51, *range(53, 56), 61, 62, 63, 64,
         71, 73, 74, 75, 77, 79, *range(81, 90), 91, 93, 94, 96, 98, 99],
    11: [65, 66, 67, 69, 92, 95, 97],
    10: [68, 97],
}  # fmt: skip


@pytest.mark.parametrize("hour", CLOCKS)
def test_each_area_code_has_its_clock(hour: int) -> None:
    noon = at(12)
    for code in CLOCKS[hour]:
        clocks = {noon.astimezone(ZoneInfo(zone)).hour for zone in zones_of(f"+55{code}912345678")}
        assert clocks == ({11, 10} if code == 97 else {hour}), code


def test_there_are_67_area_codes_and_each_is_named_once_save_the_one_that_is_split() -> None:
    named = [code for codes in AREA_CODES.values() for code in codes.split()]

    assert len(named) == 68
    assert {int(code) for code in named} == {code for codes in CLOCKS.values() for code in codes}
    assert len(set(named)) == 67


@pytest.mark.parametrize(
    ("text", "begin", "end", "zone"),
    [
        ("21:00-08:00", time(21), time(8), "America/Sao_Paulo"),
        ("01:30-06:00", time(1, 30), time(6), "America/Sao_Paulo"),
        ("20:00-09:00 America/Rio_Branco", time(20), time(9), "America/Rio_Branco"),
    ],
)
def test_quiet_hours_are_read_from_a_text(text: str, begin: time, end: time, zone: str) -> None:
    assert QuietHours.parse(text) == QuietHours(begin, end, ZoneInfo(zone))


@pytest.mark.parametrize(
    "text", ["", "21-8", "21:00", "21:00-24:00", "9:00-8:00", "21:00-08:00 Etc/GMT+3", "21:00-08:00 Mars", "on", "-"]
)
def test_quiet_hours_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        QuietHours.parse(text)


def test_quiet_hours_may_lie_after_midnight_or_be_off() -> None:
    start, hours = at(15, day=20), QuietHours.parse("01:00-06:00")

    assert allowed_at(at(0, 59), start, hours=hours) == at(0, 59)
    assert allowed_at(at(1), start, hours=hours) == at(6)
    assert allowed_at(at(3), start, hours=QuietHours.parse("off")) == at(3)


MINUTES = st.integers(0, 4 * 24 * 60).map(lambda minutes: datetime(2026, 3, 7, tzinfo=UTC) + timedelta(minutes=minutes))


@given(
    st.tuples(MINUTES, MINUTES, MINUTES).map(sorted),
    st.sampled_from([IN_SAO_PAULO, IN_MANAUS, IN_EIRUNEPE_OR_NOT, "+351912345678", "+12125551234"]),
    st.sampled_from(["21:00-08:00", "01:00-06:00", "12:00-11:00", "off"]),
)
def test_a_reminder_is_sent_by_day_and_in_time_unless_no_such_moment_is_left(
    times: list[datetime], to: str, text: str
) -> None:
    now, requested_at, start = times
    hours = QuietHours.parse(text)

    def by_day(moment: datetime) -> bool:
        return hours.allowed_at(moment, now=moment, recipient=to, start_at=datetime.max.replace(tzinfo=UTC)) == moment

    allowed = allowed_at(requested_at, start, now=now, to=to, hours=hours)

    assert now <= allowed <= start
    if allowed != requested_at and allowed > start - NOTICE:
        assert allowed == now
    if not by_day(allowed):
        in_time = range(max(0, int((start - NOTICE - now).total_seconds() // 60)))
        assert not any(by_day(now + timedelta(minutes=minutes)) for minutes in in_time[::10])
