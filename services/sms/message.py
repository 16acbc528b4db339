"""What a request asks to be texted, read in one go: every wrong field is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from zoneinfo import ZoneInfo

from google.protobuf.message import Message as ProtoMessage

from services.chassis import jobs
from services.chassis.fields import Fields
from services.chassis.folding import fold
from services.chassis.violations import Rule
from services.sms import words
from services.sms.segments import GSM
from topsmile.common.v1 import common_pb2 as common
from topsmile.sms.v1 import sms_pb2 as pb

CONFIRMATION, REMINDER = "appointment_confirmation", "appointment_reminder"
CODE, RECEIPT, CUSTOM = "verification_code", "payment_succeeded", "custom"
PRIORITIES = {CODE: jobs.CODES, REMINDER: jobs.REMINDERS}

#: What Twilio takes in one message.
LONGEST = 1600
#: Characters that cannot be sent which a refusal names.
NAMED = 20
#: A code that has not left by then would only confuse.
CODE_USEFUL_MS = 10 * 60 * 1000
#: How long after its start an appointment without an end is over.
OVER_AFTER = timedelta(hours=1)
# Stands for a moment that is missing, until `check` says so.
NEVER = datetime.max.replace(tzinfo=UTC)
#: A notice has no word for these.
UNNAMED_METHODS = ("AUTOMATIC", "OTHER")

Numbers: TypeAlias = Callable[[str], str]  #: To E.164; ValueError says why a number takes no texts.


@dataclass(frozen=True)
class Message:
    template: str
    key: str
    recipient: str
    text: str
    #: The parsed fields by their paths: what tells this request from another one under the same key.
    asked: Mapping[str, object]
    appointment_id: str = ""
    #: When to hand it over; None is at once.
    send_at: datetime | None = None
    #: From when on it is of no use, where the appointment says so.
    useless_at: datetime | None = None
    #: From when on it is too late to ask for it.
    over_at: datetime | None = None

    @property
    def priority(self) -> int:
        return PRIORITIES.get(self.template, jobs.NOTICES)


@dataclass(frozen=True)
class Appointment:
    appointment_id: str
    patient_name: str
    professional: str
    clinic: str
    address: str
    start_at: datetime
    zone: ZoneInfo
    clinic_phone: str
    end_at: datetime | None = None

    @property
    def over_at(self) -> datetime:
        return self.end_at or self.start_at + OVER_AFTER

    @classmethod
    def read(cls, fields: Fields) -> Appointment:
        start_at, end_at = fields.time("start_time", required=True), fields.time("end_time")
        if start_at and end_at and end_at <= start_at:
            fields.wrong("end_time", Rule.END_BEFORE_START)
        fields.text("notes", most=1000, multiline=True)
        return cls(
            appointment_id=fields.identifier("appointment_id"),
            patient_name=fields.text("patient_name", least=1, most=200),
            professional=fields.text("professional", most=200),
            clinic=fields.text("clinic", most=200),
            address=fields.text("address", most=300),
            start_at=start_at or NEVER,
            zone=fields.zone("time_zone"),
            clinic_phone=fields.text("clinic_phone", most=40),
            end_at=end_at,
        )


@dataclass(frozen=True)
class Payment:
    appointment_id: str
    amount_minor: int
    currency: str
    description: str
    patient_name: str
    paid_at: datetime
    method: str

    @classmethod
    def read(cls, fields: Fields) -> Payment:
        fields.identifier("payment_id")
        amount_minor, currency = fields.money("amount")
        return cls(
            appointment_id=fields.identifier("appointment_id", required=False),
            amount_minor=amount_minor,
            currency=currency,
            description=fields.text("description", most=500),
            patient_name=fields.text("patient_name", most=200),
            paid_at=fields.time("paid_time", required=True) or NEVER,
            method=fields.choice("method", excluded=UNNAMED_METHODS) if fields.has("method") else "",
        )


class Reading:
    """
    What all requests have in common.

    A part that is missing is read as an empty one: `check` stops before anybody looks at it.
    """

    def __init__(self, request: ProtoMessage, numbers: Numbers) -> None:
        self.fields = Fields(request)
        self._request = request
        self._key = self.fields.key()
        recipient = self.fields.text("recipient", least=1, most=40)
        self._recipient = self.fields.read("recipient", numbers, recipient) if recipient else ""

    def appointment(self) -> Appointment:
        return Appointment.read(self.fields.child("appointment") or Fields(common.Appointment()))

    def payment(self) -> Payment:
        return Payment.read(self.fields.child("payment") or Fields(common.PaymentSummary()))

    def check(self) -> None:
        self.fields.check()

    def message(
        self,
        template: str,
        text: str,
        *,
        appointment_id: str = "",
        send_at: datetime | None = None,
        useless_at: datetime | None = None,
        over_at: datetime | None = None,
    ) -> Message:
        asked = {"template": template, **dict(_given(self._request)), "recipient": self._recipient}
        return Message(template, self._key, self._recipient, text, asked, appointment_id, send_at, useless_at, over_at)


def confirmation(request: pb.SendAppointmentConfirmationRequest, numbers: Numbers) -> Message:
    reading = Reading(request, numbers)
    about = reading.appointment()
    reading.check()
    return reading.message(
        CONFIRMATION, words.confirmation(about), appointment_id=about.appointment_id, over_at=about.over_at
    )


def reminder(request: pb.SendAppointmentReminderRequest, numbers: Numbers) -> Message:
    reading = Reading(request, numbers)
    about = reading.appointment()
    send_at, before = reading.fields.time("send_time"), reading.fields.duration("before")
    if send_at is not None and send_at >= about.start_at:
        reading.fields.wrong("send_time", Rule.NOT_BEFORE_START)
    reading.check()
    return reading.message(
        REMINDER,
        words.reminder(about),
        appointment_id=about.appointment_id,
        send_at=send_at if before is None else about.start_at - before,
        useless_at=about.start_at,
        over_at=about.start_at,
    )


def verification_code(request: pb.SendVerificationCodeRequest, numbers: Numbers) -> Message:
    reading = Reading(request, numbers)
    if not re.fullmatch("[A-Za-z0-9]{4,10}", request.code):
        reading.fields.wrong("code", Rule.NOT_A_CODE)
    reading.check()
    return reading.message(CODE, words.verification(request.code))


def payment_notice(request: pb.SendPaymentNoticeRequest, numbers: Numbers) -> Message:
    reading = Reading(request, numbers)
    reading.fields.choice("kind")
    about = reading.payment()
    reading.check()
    return reading.message(RECEIPT, words.receipt(about), appointment_id=about.appointment_id)


def custom(request: pb.SendSmsRequest, numbers: Numbers) -> Message:
    reading = Reading(request, numbers)
    body = reading.fields.text("body", least=1, most=4 * LONGEST, multiline=True)
    send_at = reading.fields.time("send_time")
    text, lost = (body, "") if request.keep_accents else fold(body, GSM)
    if lost:
        reading.fields.wrong("body", Rule.NOT_WRITABLE, characters=" ".join(lost[:NAMED]))
    elif body and not text:
        reading.fields.wrong("body", Rule.REQUIRED)
    if len(text) > LONGEST:
        reading.fields.wrong("body", Rule.TOO_LONG, limit=LONGEST, length=len(text))
    reading.check()
    return reading.message(CUSTOM, text, send_at=send_at)


def _given(message: ProtoMessage, prefix: str = "") -> Iterator[tuple[str, object]]:
    """List the fields that are set, by path; times and durations are values here, not messages."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if isinstance(value, ProtoMessage) and not value.DESCRIPTOR.full_name.startswith("google.protobuf."):
            yield from _given(value, f"{path}.")
        elif path != "idempotency_key":
            yield path, value.SerializeToString(deterministic=True) if isinstance(value, ProtoMessage) else value


def milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def moment_of(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
