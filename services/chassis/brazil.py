"""
How Brazil writes numbers, days and money.

The libraries are imported where they are used: an image holds its own extra's only, and none needs both.
"""
# ruff: noqa: PLC0415

import re
import unicodedata
from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from services.chassis.violations import InvalidValueError, Rule

if TYPE_CHECKING:
    import phonenumbers

# How people write numbers. phonenumbers reads more than that as digits, and so texts somebody else: keypad letters
# (`9xxxx xxxx`), `;phone-context=`, the last digit of a second line (`4567/8`). `0xx11` means 0, any carrier, 11.
WRITTEN = re.compile(r"(?:tel:)?[\s(]*(?:0\s?xx|\+)?[\d\s()[\].\-\u2010-\u2015\u2212]*", re.IGNORECASE)
EXTENSION = re.compile(r"(?:;\s*ext\s*=|,|;|#|\bx|\bext\w*\.?:?|\bramal:?)\s*\d{1,6}\s*", re.IGNORECASE)
# Dialled from Brazil a carrier follows (00 15 351 …), written elsewhere it is a plus (00351 …): two numbers.
DIALLED_ABROAD = re.compile(r"\D*0\D*0")
# Twilio's magic numbers, which only its test credentials and the sandbox know.
MAGIC = re.compile(r"\+1500555\d{4}")
# Before 2016 mobiles had eight digits after the area code; people still have them in their books.
WITHOUT_THE_NINE = re.compile(r"[1-9]{2}[6-9]\d{7}")

# What Stripe counts in other units than hundredths; ISK and UGX, which have no hundredths, are counted in them.
NO_DECIMALS = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"]
)
THREE_DECIMALS = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])


def mobile(text: str, regions: Collection[str] = ("BR",), *, magic: bool = False) -> str:
    """Return it as E.164; InvalidValueError says why it is no mobile number of these regions, without the number."""
    import phonenumbers

    compact = re.sub(r"[\s().-]", "", text)
    if magic and MAGIC.fullmatch(compact):
        return compact
    number = _parsed(text)
    national = str(number.national_number)
    if number.country_code == 55 and WITHOUT_THE_NINE.fullmatch(national):
        raise InvalidValueError(Rule.NINE_MISSING)
    if not phonenumbers.is_valid_number(number):
        raise InvalidValueError(Rule.NOT_A_PHONE_NUMBER)
    if phonenumbers.region_code_for_number(number) not in regions:
        raise InvalidValueError(Rule.COUNTRY_NOT_SERVED, regions=", ".join(regions))
    kinds = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
    if phonenumbers.number_type(number) not in kinds:
        raise InvalidValueError(Rule.NOT_A_MOBILE_NUMBER)
    return _e164(number)


def phone(text: str) -> str:
    """Return any number that exists as E.164; InvalidValueError says why it does not."""
    import phonenumbers

    number = _parsed(text)
    if not phonenumbers.is_valid_number(number):
        raise InvalidValueError(Rule.NOT_A_PHONE_NUMBER)
    return _e164(number)


def _parsed(text: str) -> "phonenumbers.PhoneNumber":
    import phonenumbers

    text = "".join(str(unicodedata.decimal(char, char)) for char in text)
    written = WRITTEN.match(text)
    rest = text[written.end() :] if written else text
    if rest:
        raise InvalidValueError(Rule.HAS_EXTENSION if EXTENSION.fullmatch(rest) else Rule.NOT_DIGITS_ONLY)
    if DIALLED_ABROAD.match(text):
        raise InvalidValueError(Rule.BEGINS_WITH_00)
    try:
        return phonenumbers.parse(text, "BR")
    except phonenumbers.NumberParseException:
        raise InvalidValueError(Rule.NOT_A_PHONE_NUMBER) from None


def _e164(number: "phonenumbers.PhoneNumber") -> str:
    import phonenumbers

    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def spoken_day(moment: datetime, zone: ZoneInfo) -> str:
    """quinta-feira, 12 de março."""
    from babel.dates import format_date

    return format_date(moment.astimezone(zone).date(), "EEEE, d 'de' MMMM", locale="pt_BR")


def clock(moment: datetime, zone: ZoneInfo) -> str:
    """14h30, and 14h for the full hour."""
    local = moment.astimezone(zone)
    return f"{local.hour}h{local.minute:02d}" if local.minute else f"{local.hour}h"


def reais(amount_minor: int, currency: str) -> str:
    """R$ 150,00, or another currency the way Brazil writes it."""
    from babel.numbers import format_currency

    decimals = 0 if currency in NO_DECIMALS else 3 if currency in THREE_DECIMALS else 2
    amount = Decimal(amount_minor).scaleb(-decimals)
    return format_currency(amount, currency, locale="pt_BR").replace("\xa0", " ")
