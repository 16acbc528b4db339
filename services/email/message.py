"""
What a mail has to say, read from the request that asked for it.

A request is read twice: when it is accepted, which names all that is wrong with it, and when it is handed over, from
the job that kept it. So a reminder written today is rendered by the version that runs on its day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from google.protobuf.message import Message as ProtoMessage

from services.chassis.fields import Fields
from services.chassis.violations import Rule
from topsmile.email.v1 import email_pb2 as pb

Request: TypeAlias = (
    pb.SendAppointmentConfirmationRequest | pb.SendAppointmentReminderRequest | pb.SendPaymentNoticeRequest
)

CONFIRMATION, REMINDER, RECEIPT = "appointment_confirmation", "appointment_reminder", "payment_succeeded"
SUBJECTS = {
    CONFIRMATION: "Confirmação de Agendamento",
    REMINDER: "Lembrete de Consulta",
    RECEIPT: "Recibo de Pagamento",
}
REQUESTS: dict[str, type[Request]] = {
    CONFIRMATION: pb.SendAppointmentConfirmationRequest,
    REMINDER: pb.SendAppointmentReminderRequest,
    RECEIPT: pb.SendPaymentNoticeRequest,
}
#: A notice has no word for these.
UNNAMED_METHODS = ("AUTOMATIC", "OTHER")


class Mailbox(NamedTuple):
    address: str
    name: str = ""


@dataclass(frozen=True)
class Appointment:
    appointment_id: str
    patient_name: str
    professional: str
    clinic: str
    address: str
    start_at: datetime
    end_at: datetime | None
    zone: ZoneInfo
    clinic_phone: str
    notes: str

    @property
    def over_at(self) -> datetime:
        return self.end_at or self.start_at + OVER_AFTER

    @classmethod
    def read(cls, fields: Fields) -> Appointment:
        start_at, end_at = fields.time("start_time", required=True), fields.time("end_time")
        if start_at and end_at and end_at <= start_at:
            fields.wrong("end_time", Rule.END_BEFORE_START)
        return cls(
            appointment_id=fields.identifier("appointment_id"),
            patient_name=fields.text("patient_name", least=1, most=200),
            professional=fields.text("professional", most=200),
            clinic=fields.text("clinic", most=200),
            address=fields.text("address", most=300),
            start_at=start_at or NEVER,
            end_at=end_at,
            zone=fields.zone("time_zone"),
            clinic_phone=fields.text("clinic_phone", most=40),
            notes=fields.text("notes", most=1000, multiline=True),
        )


@dataclass(frozen=True)
class Payment:
    payment_id: str
    amount_minor: int
    currency: str
    description: str
    appointment_id: str
    patient_name: str
    paid_at: datetime
    method: str

    @classmethod
    def read(cls, fields: Fields) -> Payment:
        amount_minor, currency = fields.money("amount")
        return cls(
            payment_id=fields.identifier("payment_id"),
            amount_minor=amount_minor,
            currency=currency,
            description=fields.text("description", most=500),
            appointment_id=fields.identifier("appointment_id", required=False),
            patient_name=fields.text("patient_name", most=200),
            paid_at=fields.time("paid_time", required=True) or NEVER,
            method=fields.choice("method", excluded=UNNAMED_METHODS) if fields.has("method") else "",
        )


#: How long after its start an appointment without an end is over.
OVER_AFTER = timedelta(hours=1)
# Stands for a moment that is missing, until `check` says so.
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Message:
    template: str
    key: str
    recipient: Mailbox
    about: Appointment | Payment
    request: Request
    #: When to hand it over; None is at once.
    send_at: datetime | None = None
    #: From when on it is of no use; None: a day after it was due.
    useless_at: datetime | None = None

    @property
    def subject(self) -> str:
        return SUBJECTS[self.template]

    @property
    def over_at(self) -> datetime | None:
        """From when on it is too late to ask for it."""
        return self.useless_at or (self.about.over_at if isinstance(self.about, Appointment) else None)

    @property
    def asked(self) -> dict[str, object]:
        """What tells this request from another one under the same key."""
        return {"rpc": self.template, **dict(_set_fields(self.request))}

    @classmethod
    def from_request(cls, request: Request) -> Message:
        fields = Fields(request)
        key = fields.key()
        recipient = _recipient(fields.child("recipient"))
        message: Message | None = None
        if isinstance(request, pb.SendPaymentNoticeRequest):
            fields.choice("kind")
            payment = fields.child("payment")
            if payment is not None:
                message = cls(RECEIPT, key, recipient, Payment.read(payment), request)
        elif (child := fields.child("appointment")) is not None:
            appointment = Appointment.read(child)
            if isinstance(request, pb.SendAppointmentReminderRequest):
                send_at = _moment(fields, appointment.start_at)
                message = cls(REMINDER, key, recipient, appointment, request, send_at, appointment.start_at)
            else:
                message = cls(CONFIRMATION, key, recipient, appointment, request)
        fields.check()
        assert message is not None  # noqa: S101 - what is missing has been named by then
        return message


def _recipient(fields: Fields | None) -> Mailbox:
    return Mailbox("") if fields is None else Mailbox(fields.email("address"), fields.text("name", most=200))


def _moment(fields: Fields, start_at: datetime) -> datetime | None:
    send_at, before = fields.time("send_time"), fields.duration("before")
    if send_at is not None and send_at >= start_at:
        fields.wrong("send_time", Rule.NOT_BEFORE_START)
    return send_at if before is None else start_at - before


def _set_fields(message: ProtoMessage, prefix: str = "") -> Iterator[tuple[str, object]]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if path == "idempotency_key":
            continue
        if not isinstance(value, ProtoMessage):
            yield path, value
        elif value.DESCRIPTOR.file.package == "google.protobuf":
            yield path, value.SerializeToString(deterministic=True)
        else:
            yield from _set_fields(value, f"{path}.")


def milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
