"""Phone numbers as Brazil writes them, read as E.164."""

import re
import unicodedata
from collections.abc import Collection

import phonenumbers

from services.chassis.violations import InvalidValueError, Rule

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


def mobile(text: str, regions: Collection[str] = ("BR",), *, magic: bool = False) -> str:
    """Return it as E.164; InvalidValueError says why it is no mobile number of these regions, without the number."""
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
    number = _parsed(text)
    if not phonenumbers.is_valid_number(number):
        raise InvalidValueError(Rule.NOT_A_PHONE_NUMBER)
    return _e164(number)


def _parsed(text: str) -> phonenumbers.PhoneNumber:
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


def _e164(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
