"""
Reading a request into values, and remembering everything that is wrong with it.

Each method returns a value that fits its type even where the field is wrong, so that reading goes on and `check` names
all wrong fields at once. Paths are the contract's: `appointment.start_time`.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.errors import InvalidRequest, Violation

CLINIC_ZONE = "America/Sao_Paulo"
# Zones of places, and UTC. The sign of `Etc/GMT+3` is the opposite of what it looks like, `EST` has no summer time,
# `localtime` is this machine's, and `posix/` and `right/` are other readings of the same data.
ZONES = re.compile(
    "(Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Brazil|Canada|Chile|Europe|Indian|Mexico|Pacific|US)/.+"
    "|UTC|Etc/UTC"
)
# Years of times in requests: arithmetic with a zone or a duration cannot leave the calendar from here.
FIRST_YEAR, LAST_YEAR = 2000, 2199


def printable(text: str, *, multiline: bool = False) -> bool:
    """No control characters, no lone surrogates, nothing unassigned; line breaks only where they are allowed."""
    return text.isprintable() or all(
        (char == "\n" and multiline) or not unicodedata.category(char).startswith(("Cc", "Cs", "Cn")) for char in text
    )


class Fields:
    def __init__(self, message: Message, prefix: str = "", violations: list[Violation] | None = None) -> None:
        self._message = message
        self._prefix = prefix
        self._violations: list[Violation] = [] if violations is None else violations

    def wrong(self, field: str, description: str) -> None:
        self._violations.append(Violation(self._prefix + field, description))

    def check(self) -> None:
        if self._violations:
            raise InvalidRequest(self._violations)

    def has(self, field: str) -> bool:
        return self._message.HasField(field)

    def child(self, field: str, *, required: bool = True) -> Fields | None:
        """The message in a field; None where it is absent, which is wrong if it is required."""
        if not self.has(field):
            if required:
                self.wrong(field, "is required")
            return None
        return Fields(getattr(self._message, field), f"{self._prefix}{field}.", self._violations)

    def key(self) -> str:
        return self.text("idempotency_key", least=1, most=255)

    def text(self, field: str, *, most: int, least: int = 0, multiline: bool = False) -> str:
        value: str = getattr(self._message, field)
        value = value.strip()
        if len(value) < least:
            self.wrong(field, "is required" if not value else f"has {len(value)} characters; {least} are needed")
        elif len(value) > most:
            self.wrong(field, f"has {len(value)} characters; at most {most} are allowed")
        elif not printable(value, multiline=multiline):
            self.wrong(field, "holds characters that cannot be printed")
        else:
            return value
        return ""

    def time(self, field: str, *, required: bool = False) -> datetime | None:
        if not self.has(field):
            if required:
                self.wrong(field, "is required")
            return None
        stamp: Timestamp = getattr(self._message, field)
        try:
            time = stamp.ToDatetime(UTC)
        except ValueError:
            time = None
        if time is None or not FIRST_YEAR <= time.year <= LAST_YEAR:
            self.wrong(field, f"must be between the years {FIRST_YEAR} and {LAST_YEAR}")
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
        if length <= timedelta(0):
            self.wrong(field, "must be longer than zero")
            return None
        return length

    def choice(self, field: str, *, value: int | None = None) -> str:
        """The name of an enum's value without the enum's own; the zero value and unknown numbers are wrong."""
        number = getattr(self._message, field) if value is None else value
        enum = self._message.DESCRIPTOR.fields_by_name[field].enum_type
        members = {} if enum is None else enum.values_by_number
        prefix = members[0].name.removesuffix("UNSPECIFIED")
        if number == 0 or number not in members:
            known = ", ".join(member.name for number, member in members.items() if number)
            self.wrong(field, f"must be one of {known}")
            return ""
        return members[number].name.removeprefix(prefix)

    def money(self, field: str) -> tuple[int, str]:
        """Minor units and currency, both as given; which sums a provider takes is the provider's to say."""
        money = self.child(field)
        if money is None:
            return 0, ""
        amount: int = money._message.amount_minor  # type: ignore[attr-defined]  # noqa: SLF001 - each contract has its Money
        if amount <= 0:
            money.wrong("amount_minor", "must be greater than zero")
        currency = money.text("currency", least=3, most=3)
        if currency and not re.fullmatch("[A-Z]{3}", currency):
            money.wrong("currency", "must be an ISO 4217 code in upper case")
        return amount, currency

    def email(self, field: str, *, required: bool = True) -> str:
        """An address as it may stand in a header; what lies behind it is not asked."""
        from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415 - not in every image

        value = self.text(field, least=1 if required else 0, most=254)
        if not value:
            return ""
        try:
            return validate_email(value, check_deliverability=False, test_environment=True).normalized
        except EmailNotValidError:
            self.wrong(field, "is not an email address")
            return ""

    def zone(self, field: str) -> ZoneInfo:
        name = self.text(field, most=64) or CLINIC_ZONE
        try:
            zone = ZoneInfo(name) if ZONES.fullmatch(name) else None
        except (ValueError, OSError, LookupError):  # not a key, a folder, not there
            zone = None
        if zone is None:
            self.wrong(field, f"must be the name of a place's time zone in the IANA database, such as {CLINIC_ZONE}")
        return zone or ZoneInfo(CLINIC_ZONE)
