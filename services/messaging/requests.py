"""
What the requests of all channels have in common, read into values, with every wrong field named.

A channel may read a request twice: when it is accepted, and from its job when it is handed over. So a reminder that is
stored today is rendered by the version that runs on its day. The second reading does not check: the request was
accepted by the rules of its day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from google.protobuf.message import Message as ProtoMessage

from services.chassis.queue import jobs
from services.chassis.rpc.validation import Fields
from services.chassis.violations import Rule
from topsmile.common.v1 import common_pb2 as common

CONFIRMATION, REMINDER, RECEIPT = "appointment_confirmation", "appointment_reminder", "payment_succeeded"

DAY = 24 * 60 * 60 * 1000
#: How long after its start an appointment without an end is over.
OVER_AFTER = timedelta(hours=1)
#: A reminder is asked for at least so long before the start, at which it expires.
MIN_NOTICE = timedelta(minutes=1)
#: Stands for a time that is missing, until `check` names it.
NEVER = datetime.max.replace(tzinfo=UTC)
#: A notice has no word for these.
UNNAMED_METHODS = ("AUTOMATIC", "OTHER")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class NewMessage:
    """What a channel asks the store to accept."""

    template: str
    idempotency_key: str
    recipient: str
    #: What the hand-over reads: a protobuf message.
    payload: bytes
    #: The fields by their paths: what tells this request from another one under the same key.
    fields: Mapping[str, object]
    recipient_name: str = ""
    appointment_id: str = ""
    #: Whether it carries a calendar entry that replaces the appointment's earlier ones.
    revises: bool = False
    priority: int = jobs.NOTICES
    #: When to hand it over; None is at once.
    send_at: datetime | None = None
    #: From when on it is of no use; None: `lifetime` milliseconds after it was due.
    expires_at: datetime | None = None
    lifetime: int = DAY
    #: From when on it is too late to ask for it.
    over_at: datetime | None = None
    encoding: str = ""
    segments: int = 0


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
    notes: str = ""

    @property
    def over_at(self) -> datetime:
        return self.end_at or self.start_at + OVER_AFTER


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


class Request:
    """
    A request that is being read.

    A part that is missing is read as an empty one: `check` raises before anybody looks at it.
    """

    def __init__(self, request: ProtoMessage) -> None:
        self.fields = Fields(request)
        self.idempotency_key = self.fields.key()
        self._request = request

    def check(self) -> None:
        self.fields.check()

    def appointment(self) -> Appointment:
        fields = self.fields.child("appointment") or Fields(common.Appointment())
        start_at, end_at = fields.time("start_time", required=True), fields.time("end_time")
        if start_at and end_at and end_at <= start_at:
            fields.wrong("end_time", Rule.END_BEFORE_START)
        return Appointment(
            appointment_id=fields.identifier("appointment_id"),
            patient_name=fields.text("patient_name", min_length=1, max_length=200),
            professional=fields.text("professional", max_length=200),
            clinic=fields.text("clinic", max_length=200),
            address=fields.text("address", max_length=300),
            start_at=start_at or NEVER,
            zone=fields.zone("time_zone"),
            clinic_phone=fields.text("clinic_phone", max_length=40),
            end_at=end_at,
            notes=fields.text("notes", max_length=1000, multiline=True),
        )

    def payment(self) -> Payment:
        self.fields.choice("kind")
        fields = self.fields.child("payment") or Fields(common.PaymentSummary())
        amount_minor, currency = fields.money("amount")
        return Payment(
            payment_id=fields.identifier("payment_id"),
            amount_minor=amount_minor,
            currency=currency,
            description=fields.text("description", max_length=500),
            appointment_id=fields.identifier("appointment_id", required=False),
            patient_name=fields.text("patient_name", max_length=200),
            paid_at=fields.time("paid_time", required=True) or NEVER,
            method=fields.choice("method", excluded=UNNAMED_METHODS) if fields.has("method") else "",
        )

    def send_at(self, start_at: datetime) -> datetime | None:
        """Return when a reminder is asked for; None is at once."""
        send_at, before = self.fields.time("send_time"), self.fields.duration("before")
        if send_at is not None and send_at > start_at - MIN_NOTICE:
            self.fields.wrong("send_time", Rule.NOT_BEFORE_START)
        if before is not None and before < MIN_NOTICE:
            self.fields.wrong("before", Rule.NOT_BEFORE_START)
        return send_at if before is None else start_at - before

    def given(self) -> dict[str, object]:
        """Return the fields that are set, by path, without the key; times and durations are values here."""
        return dict(_given(self._request))


def _given(message: ProtoMessage, prefix: str = "") -> Iterator[tuple[str, object]]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if isinstance(value, ProtoMessage) and value.DESCRIPTOR.file.package != "google.protobuf":
            yield from _given(value, f"{path}.")
        elif path != "idempotency_key":
            yield path, value.SerializeToString(deterministic=True) if isinstance(value, ProtoMessage) else value


def milliseconds(time: datetime) -> int:
    return (time - EPOCH) // timedelta(milliseconds=1)


def time_of(milliseconds: int) -> datetime:
    return EPOCH + timedelta(milliseconds=milliseconds)
