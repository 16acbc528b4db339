"""Numbers, days and money as Brazil writes them."""

# ruff: noqa: RUF001 - look-alikes are the subject

import unicodedata
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import phonenumbers
import pytest
from babel.numbers import parse_decimal
from hypothesis import given, settings
from hypothesis import strategies as st

from services.brazil.dates import clock, spoken_day
from services.brazil.money import reais
from services.brazil.phones import mobile, phone
from services.chassis.currencies import CURRENCIES, NO_DECIMALS, THREE_DECIMALS
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
        ("maria", "NOT_DIGITS_ONLY"),
        ("", "NOT_A_PHONE_NUMBER"),
        ("+5511912345678;ext=3", "HAS_EXTENSION"),
        ("11 91234-5678 ramal 12", "HAS_EXTENSION"),
        ("11 91234-5678 ext. 12", "HAS_EXTENSION"),
        ("(11) 91234-5678 x3", "HAS_EXTENSION"),
        ("11912345678#3", "HAS_EXTENSION"),
        ("+15005550006", "COUNTRY_NOT_SERVED"),
    ],
)
def test_what_takes_no_texts_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        mobile(text)

    assert refused.value.rule is Rule[reason]


@pytest.mark.parametrize(
    "text",
    [
        "21 9xxxx xxxx",
        "(21) 9ABCD-EFGH",
        "11 9 CLINICA 1",
        "11 91234-567O",
        "l1 91234-5678",
        "11 9X234 5678",
        "tel:91234-5678;phone-context=+55-11",
        "912345678;phone-context=+5511",
        "tel:+5511912345678;isub=1",
        "(11) 9123-4567/8",
        "11 91234-5678 / 11 91234-5679",
        "11 91234-5678 ou 3123-4567",
        "11*912345678",
        "~11 91234-5678",
        "+5511912345678+",
        "11 +91234-5678",
        "celular: 11 91234-5678",
        "11 ⁹1234-5678",
        "11 9①234-5678",
        "+55 11 91234-5678, +55 11 91234-5679",
    ],
)
def test_a_number_with_anything_but_digits_and_punctuation_is_refused(text: str) -> None:
    for read in (mobile, phone):
        with pytest.raises(InvalidValueError) as refused:
            read(text)
        assert refused.value.rule is Rule.NOT_DIGITS_ONLY


@pytest.mark.parametrize(
    "text", ["0055 11 91234-5678", "00 15 351 912 345 678", "00351912345678", "(00) 1 212 5551234"]
)
def test_a_number_dialled_with_00_is_refused_because_a_carrier_may_follow(text: str) -> None:
    for read in (mobile, phone):
        with pytest.raises(InvalidValueError) as refused:
            read(text)
        assert refused.value.rule is Rule.BEGINS_WITH_00


@pytest.mark.parametrize(
    "text",
    [
        "tel:+55-11-91234-5678",
        "TEL: (11) 91234-5678",
        "(0xx11) 91234-5678",
        "0XX 11 91234-5678",
        "0 15 11 91234-5678",
        "+55 (0) 11 91234-5678",
        "5511912345678",
        "[11] 91234.5678",
        "11 91234\N{NON-BREAKING HYPHEN}5678",
        "１１ ９１２３４ ５６７８",
        "٠١١٩١٢٣٤٥٦٧٨",
    ],
)
def test_the_ways_to_write_a_number_are_one_number(text: str) -> None:
    assert mobile(text) == phone(text) == "+5511912345678"


@given(st.text("0123456789+()-. x/;,#*aZ٣９", max_size=20))
def test_a_number_never_holds_digits_that_were_not_written(text: str) -> None:
    try:
        number = phone(text)
    except ValueError:
        return
    written = "".join(str(unicodedata.digit(char)) for char in text if char.isdigit())
    national = str(phonenumbers.parse(number).national_number)
    assert written.endswith(national)


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
    ("amount", "currency", "text"),
    [
        (15000, "BRL", "R$ 150,00"),
        (123456789, "BRL", "R$ 1.234.567,89"),
        (500, "JPY", "JP¥ 500"),
        (12340, "KWD", "KWD 12,340"),
    ],
)
def test_money_is_written_from_its_minor_units(amount: int, currency: str, text: str) -> None:
    assert reais(amount, currency) == text


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1250, "RSD", "RSD 12,50"),
        (999, "LBP", "LBP 9,99"),
        (100_001, "IQD", "IQD 1.000,01"),
        (150, "ISK", "ISK 1,50"),
        (12345, "XOF", "F CFA 12.345"),
        (1, "TND", "TND 0,001"),
    ],
)
def test_money_of_a_currency_that_is_written_without_cents_keeps_them(amount: int, currency: str, text: str) -> None:
    assert reais(amount, currency) == text


@settings(max_examples=20)
@given(st.integers(1, 99_999_999))
def test_money_in_words_is_the_same_amount_in_every_currency(amount: int) -> None:
    for currency in CURRENCIES:
        decimals = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
        text = reais(amount, currency)
        number = text[text.rindex(" ") + 1 :]
        assert parse_decimal(number, locale="pt_BR", strict=True).scaleb(decimals) == amount, text
        assert len(number.partition(",")[2]) == decimals, text
