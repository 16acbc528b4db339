"""What a mail has to say, read from the request that asked for it: when it is accepted, and when it is handed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from services.chassis.queue import jobs
from services.chassis.rpc.validation import Fields
from services.messaging.requests import CONFIRMATION, RECEIPT, REMINDER, Appointment, NewMessage, Payment, Request
from topsmile.email.v1 import email_pb2 as pb

EmailRequest: TypeAlias = (
    pb.SendAppointmentConfirmationRequest | pb.SendAppointmentReminderRequest | pb.SendPaymentNoticeRequest
)

SUBJECTS = {
    CONFIRMATION: "Confirmação de Agendamento",
    REMINDER: "Lembrete de Consulta",
    RECEIPT: "Recibo de Pagamento",
}
REQUESTS: dict[str, type[EmailRequest]] = {
    CONFIRMATION: pb.SendAppointmentConfirmationRequest,
    REMINDER: pb.SendAppointmentReminderRequest,
    RECEIPT: pb.SendPaymentNoticeRequest,
}


class Mailbox(NamedTuple):
    address: str
    name: str = ""


@dataclass(frozen=True)
class Message:
    """What the templates show."""

    template: str
    recipient: Mailbox
    about: Appointment | Payment

    @property
    def subject(self) -> str:
        return SUBJECTS[self.template]


def accept(request: EmailRequest) -> NewMessage:
    """Read a new request; raises InvalidRequest with every wrong field."""
    read, message = _read(request)
    about, reminds = message.about, message.template == REMINDER
    starts_at = about.start_at if reminds and isinstance(about, Appointment) else None
    send_at = None if starts_at is None else read.send_at(starts_at)
    read.check()
    return NewMessage(
        template=message.template,
        idempotency_key=read.idempotency_key,
        recipient=message.recipient.address,
        recipient_name=message.recipient.name,
        payload=request.SerializeToString(),
        fields={"rpc": message.template, **read.given()},
        appointment_id=about.appointment_id,
        revises=message.template == CONFIRMATION,
        priority=jobs.REMINDERS if reminds else jobs.NOTICES,
        send_at=send_at,
        expires_at=starts_at,
        over_at=starts_at or (about.over_at if isinstance(about, Appointment) else None),
    )


def kept(template: str, payload: bytes) -> Message:
    """Read a request that was accepted before."""
    return _read(REQUESTS[template].FromString(payload))[1]


def _read(request: EmailRequest) -> tuple[Request, Message]:
    read = Request(request)
    to = read.fields.child("recipient") or Fields(pb.Recipient())
    recipient = Mailbox(to.email("address"), to.text("name", max_length=200))
    if isinstance(request, pb.SendPaymentNoticeRequest):
        return read, Message(RECEIPT, recipient, read.payment())
    template = REMINDER if isinstance(request, pb.SendAppointmentReminderRequest) else CONFIRMATION
    return read, Message(template, recipient, read.appointment())
