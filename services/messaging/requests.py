"""
The parts that the requests of all channels share, read into values. Every wrong field is named.

A channel may read a request twice: when it is accepted, and from its job when it is handed over. So the version that
runs on that day renders it. The second reading does not check, because the rules may have changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from google.protobuf.message import Message as ProtoMessage

from services.chassis.queue import jobs
from services.chassis.rpc.validation import Fields
from services.chassis.violations import Rule
from topsmile.common.v1 import common_pb2 as common

CONFIRMATION, REMINDER, RECEIPT = "appointment_confirmation", "appointment_reminder", "payment_succeeded"

DAY = 24 * 60 * 60 * 1000
#: An appointment without an end is over this long after its start.
OVER_AFTER = timedelta(hours=1)
#: The least time between a reminder and the start, when the reminder expires.
MIN_NOTICE = timedelta(minutes=1)
#: Replaces a missing time until `check` names its field. A duration can be added to it.
MISSING_TIME = datetime(9999, 1, 1, tzinfo=UTC)
#: A notice has no word for these.
UNNAMED_METHODS = ("AUTOMATIC", "OTHER")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Schedule(NamedTuple):
    """When a message may be handed over."""

    #: None: at once.
    send_at: datetime | None = None
    #: The message is of no use from here on. None: `lifetime` milliseconds after it was due.
    expires_at: datetime | None = None
    #: A new request is refused from here on.
    over_at: datetime | None = None


UNSCHEDULED = Schedule()


@dataclass(frozen=True)
class NewMessage:
    """A message that the store shall accept."""

    template: str
    idempotency_key: str
    recipient: str
    #: A protobuf message that the hand-over reads.
    payload: bytes
    #: The request's fields by their paths. Another request under the same key differs in one of them.
    fields: Mapping[str, object]
    recipient_name: str = ""
    appointment_id: str = ""
    #: Whether its calendar entry replaces the appointment's earlier ones.
    revises: bool = False
    priority: int = jobs.NOTICES
    schedule: Schedule = UNSCHEDULED
    #: Milliseconds.
    lifetime: int = DAY
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

    A missing part is read as an empty one; `check` raises before its values are used.
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
            start_at=start_at or MISSING_TIME,
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
            paid_at=fields.time("paid_time", required=True) or MISSING_TIME,
            method=fields.choice("method", excluded=UNNAMED_METHODS) if fields.has("method") else "",
        )

    def schedule(self, template: str, about: Appointment | Payment) -> Schedule:
        """Return when a message about this may go. Only reminders have a time of their own."""
        if not isinstance(about, Appointment):
            return UNSCHEDULED
        if template != REMINDER:
            return Schedule(over_at=about.over_at)
        send_at, before = self.fields.time("send_time"), self.fields.duration("before")
        if send_at is not None and send_at > about.start_at - MIN_NOTICE:
            self.fields.wrong("send_time", Rule.NOT_BEFORE_START)
        if before is not None and before < MIN_NOTICE:
            self.fields.wrong("before", Rule.NOT_BEFORE_START)
        return Schedule(send_at if before is None else about.start_at - before, about.start_at, about.start_at)

    def given(self) -> dict[str, object]:
        """Return the set fields by path, without the key. Times and durations count as one value each."""
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
