"""Numbers, days and money as Brazil writes them."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from services.chassis.brazil import clock, mobile, phone, reais, spoken_day
from services.chassis.violations import InvalidValueError, Rule

SAO_PAULO = ZoneInfo("America/Sao_Paulo")


@pytest.mark.parametrize("text", ["+5511912345678", "(11) 91234-5678", "11912345678", "011 91234 5678"])
def test_a_mobile_number_is_e164_however_it_was_written(text: str) -> None:
    assert mobile(text) == "+5511912345678"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(11) 3123-4567", "NOT_A_MOBILE_NUMBER"),
        ("0800 123 4567", "NOT_A_MOBILE_NUMBER"),
        ("(11) 9876-5432", "NINE_MISSING"),
        ("(11) 7876-5432", "NINE_MISSING"),
        ("+351912345678", "COUNTRY_NOT_SERVED"),
        ("(20) 91234-5678", "NOT_A_PHONE_NUMBER"),
        ("maria", "NOT_A_PHONE_NUMBER"),
        ("", "NOT_A_PHONE_NUMBER"),
        ("+5511912345678;ext=3", "HAS_EXTENSION"),
        ("+15005550006", "COUNTRY_NOT_SERVED"),
    ],
)
def test_what_takes_no_texts_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        mobile(text)

    assert refused.value.rule is Rule[reason]


def test_other_regions_and_magic_numbers_pass_where_they_are_allowed() -> None:
    assert mobile("+351912345678", ("BR", "PT")) == "+351912345678"
    assert mobile("+15005550006", magic=True) == "+15005550006"


def test_a_landline_is_a_phone() -> None:
    assert phone("(11) 3123-4567") == "+551131234567"
    with pytest.raises(ValueError, match="must be a phone number that exists"):
        phone("123")


def test_times_are_told_in_the_clinic_s_zone() -> None:
    moment = datetime(2026, 3, 12, 17, 30, tzinfo=UTC)

    assert spoken_day(moment, SAO_PAULO) == "quinta-feira, 12 de março"
    assert clock(moment, SAO_PAULO) == "14h30"
    assert clock(moment.replace(minute=0), ZoneInfo("America/Manaus")) == "13h"


@pytest.mark.parametrize(
    ("amount", "currency", "told"),
    [
        (15000, "BRL", "R$ 150,00"),
        (123456789, "BRL", "R$ 1.234.567,89"),
        (500, "JPY", "JP¥ 500"),
        (12340, "KWD", "KWD 12,340"),
    ],
)
def test_money_is_told_from_the_minor_units_it_is_counted_in(amount: int, currency: str, told: str) -> None:
    assert reais(amount, currency) == told
