"""
Parse a request into values, and collect every wrong field.

Each method returns a value of its type even where the field is wrong, so that `check` can name all wrong fields
together. Paths are those of the contract: `appointment.start_time`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.currencies import CURRENCIES
from services.chassis.errors import InvalidRequest
from services.chassis.violations import InvalidValueError, Rule, Violation

CLINIC_ZONE = "America/Sao_Paulo"
# Zones of places, and UTC. Other names mislead: `Etc/GMT+3` is west of Greenwich, `EST` has no summer time, and
# `localtime` depends on the machine.
ZONES = re.compile(
    "(Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Brazil|Canada|Chile|Europe|Indian|Mexico|Pacific|US)/.+"
    "|UTC|Etc/UTC"
)
#: Names of enum values that are for responses only.
RESPONSE_ONLY = frozenset(["UNSPECIFIED", "OTHER"])
# Times in requests stay within these years, so that arithmetic with zones and durations cannot overflow.
FIRST_YEAR, LAST_YEAR = 2000, 2199
MAX_DURATION = timedelta(days=3660)


# Invisible characters that copied text brings along: soft hyphens, direction marks, zero-width spaces. Zero-width
# joiners and non-joiners stay where they shape letters or emoji.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
    "|(?<![^\0-\u024f\u2000-\u200f])[\u200c\u200d]|[\u200c\u200d](?![^\0-\u024f\u2000-\u200f])"
)
LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")


def normalized(text: str) -> str:
    r"""
    Return the text in NFC, without invisible characters and outer spaces.

    Every space and tab becomes a plain space, every line break `\n`.
    """
    text = LINE_BREAK.sub("\n", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
        text = re.sub(r"[^\S\n\x1c-\x1f]", " ", text)
    return text.replace("\t", " ").strip(" \n")


def printable(text: str, *, multiline: bool = False) -> bool:
    """Return whether the text has no control characters, surrogates or noncharacters; line breaks only if multiline."""
    return text.isprintable() or all(
        (char == "\n" and multiline)
        or not (
            unicodedata.category(char) in {"Cc", "Cs"} or "\ufdd0" <= char <= "\ufdef" or ord(char) & 0xFFFE == 0xFFFE
        )
        for char in text
    )


def email_address(text: str) -> str:
    """
    Return an email address with its domain in ASCII. Raises InvalidValueError.

    Only the syntax is checked, not whether the domain takes mail.
    """
    from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415 - some images lack it

    try:
        valid = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        raise InvalidValueError(Rule.NOT_AN_EMAIL_ADDRESS) from None
    return f"{valid.local_part}@{valid.ascii_domain}"


def choices(enum: Any) -> dict[str, int]:
    """Return the values that a request may hold, by their names without the enum's prefix: `PIX`."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    short = {member.name.removeprefix(prefix): member.number for member in enum.values}
    return {name: number for name, number in short.items() if name not in RESPONSE_ONLY}


#: The prefix of the idempotency keys under which the gateway sends payment notices for a caller.
NOTICES = "notice:"


#: What one ApplyEvents takes; the bytes are those of all bodies together.
MAX_EVENTS, MAX_EVENT_BYTES = 100, 2 << 20


def check_events(events: Collection[Any]) -> None:
    """Raise InvalidRequest unless a batch of provider events is within its limits."""
    wrong = []
    if not 1 <= len(events) <= MAX_EVENTS:
        wrong.append(Rule.WRONG_COUNT.at("events", max=MAX_EVENTS, count=len(events)))
    if sum(len(event.body) for event in events) > MAX_EVENT_BYTES:
        wrong.append(Rule.TOO_MANY_BYTES.at("events", limit=MAX_EVENT_BYTES))
    if wrong:
        raise InvalidRequest(wrong)


class Fields:
    def __init__(self, message: Message, prefix: str = "", violations: list[Violation] | None = None) -> None:
        self._message = message
        self._prefix = prefix
        self._violations: list[Violation] = [] if violations is None else violations

    def wrong(self, field: str, rule: Rule, **values: object) -> None:
        self._violations.append(rule.at(self._prefix + field, **values))

    def read(self, field: str, parse: Callable[[str], str], text: str) -> str:
        """Return the parsed text; empty where the parser raises InvalidValueError."""
        try:
            return parse(text)
        except InvalidValueError as error:
            self.wrong(field, error.rule, **error.values)
            return ""

    def check(self) -> None:
        if self._violations:
            raise InvalidRequest(self._violations)

    def has(self, field: str) -> bool:
        return self._message.HasField(field)

    def child(self, field: str, *, required: bool = True) -> Fields | None:
        """Return the fields of a nested message; None where it is absent."""
        if not self.has(field):
            if required:
                self.wrong(field, Rule.REQUIRED)
            return None
        return Fields(getattr(self._message, field), f"{self._prefix}{field}.", self._violations)

    def key(self) -> str:
        key = self.identifier("idempotency_key", max_length=255)
        if key.startswith(NOTICES) and self._message.DESCRIPTOR.name != "SendPaymentNoticeRequest":
            self.wrong("idempotency_key", Rule.RESERVED_KEY, prefix=NOTICES)
        return key

    def identifier(self, field: str, *, max_length: int = 100, required: bool = True) -> str:
        """Return an identifier as the caller gave it, without outer white space."""
        value: str = getattr(self._message, field).strip()
        return self._checked(field, value, min_length=int(required), max_length=max_length)

    def reference(self) -> tuple[str, str]:
        """Return the field of the required oneof `reference` that is set, and its identifier."""
        field = self._message.WhichOneof("reference")
        if field is None:
            self.wrong("reference", Rule.REQUIRED)
            return "", ""
        return field, self.identifier(field)

    def text(self, field: str, *, max_length: int, min_length: int = 0, multiline: bool = False) -> str:
        """
        Return a text for people, normalized, and store it in the request.

        So neither the stored request nor its fingerprint depends on how the text was typed.
        """
        given: str = getattr(self._message, field)
        value = normalized(given)
        self._replace(field, given, value)
        return self._checked(field, value, min_length=min_length, max_length=max_length, multiline=multiline)

    def _replace(self, field: str, given: str, value: str) -> None:
        if value != given:
            setattr(self._message, field, value)

    def _checked(self, field: str, value: str, *, min_length: int, max_length: int, multiline: bool = False) -> str:
        if len(value) < min_length:
            self.wrong(field, Rule.TOO_SHORT if value else Rule.REQUIRED, limit=min_length)
        elif len(value) > max_length:
            self.wrong(field, Rule.TOO_LONG, limit=max_length, length=len(value))
        elif not printable(value, multiline=multiline):
            self.wrong(
                field, Rule.NOT_PRINTABLE if multiline or not printable(value, multiline=True) else Rule.ONE_LINE
            )
        else:
            return value
        return ""

    def time(self, field: str, *, required: bool = False) -> datetime | None:
        """Return a time that Python and both databases can hold, also after arithmetic."""
        if not self.has(field):
            if required:
                self.wrong(field, Rule.REQUIRED)
            return None
        stamp: Timestamp = getattr(self._message, field)
        try:
            time = stamp.ToDatetime(UTC)
        except ValueError:
            time = None
        if time is None or not FIRST_YEAR <= time.year <= LAST_YEAR:
            self.wrong(field, Rule.TIME_OUT_OF_RANGE, min=FIRST_YEAR, max=LAST_YEAR)
            return None
        return time

    def duration(self, field: str) -> timedelta | None:
        if not self.has(field):
            return None
        value: Duration = getattr(self._message, field)
        try:
            length = value.ToTimedelta()
        except (ValueError, OverflowError):
            length = timedelta(0)
        if not timedelta(0) < length <= MAX_DURATION:
            self.wrong(field, Rule.DURATION_OUT_OF_RANGE, days=MAX_DURATION.days)
            return None
        return length

    def choice(self, field: str, *, value: int | None = None, excluded: Collection[str] = ()) -> str:
        """Return the name of an enum's value without the prefix. It must be one of `choices` and not excluded."""
        enum = self._message.DESCRIPTOR.fields_by_name[field].enum_type
        number = getattr(self._message, field) if value is None else value
        names = {number: name for name, number in choices(enum).items() if name not in excluded} if enum else {}
        if number not in names:
            self.wrong(field, Rule.NOT_A_CHOICE, choices=", ".join(names.values()))
        return names.get(number, "")

    def money(self, field: str) -> tuple[int, str]:
        """Return minor units and the currency. The limits of amounts are the provider's."""
        money = self.child(field)
        if money is None:
            return 0, ""
        amount: int = money._message.amount_minor  # type: ignore[attr-defined]  # noqa: SLF001 - a Money
        if amount <= 0:
            money.wrong("amount_minor", Rule.NOT_POSITIVE)
        currency = money.text("currency", min_length=3, max_length=3)
        if currency and currency not in CURRENCIES:
            money.wrong("currency", Rule.NOT_A_CURRENCY)
        return amount, currency

    def email(self, field: str, *, required: bool = True) -> str:
        given = self.text(field, min_length=int(required), max_length=254)
        address = self.read(field, email_address, given) if given else ""
        if address:
            self._replace(field, given, address)
        return address

    def zone(self, field: str) -> ZoneInfo:
        name = self.text(field, max_length=64) or CLINIC_ZONE
        try:
            zone = ZoneInfo(name) if ZONES.fullmatch(name) else None
        except (ValueError, OSError, LookupError):  # no key, a folder, or missing
            zone = None
        if zone is None:
            self.wrong(field, Rule.NOT_A_TIME_ZONE, example=CLINIC_ZONE)
        return zone or ZoneInfo(CLINIC_ZONE)
