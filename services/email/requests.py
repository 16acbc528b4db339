"""The requests for mails, read once when they are accepted and again when the mail is handed over."""

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

#: The request of each template.
REQUESTS: dict[str, type[EmailRequest]] = {
    CONFIRMATION: pb.SendAppointmentConfirmationRequest,
    REMINDER: pb.SendAppointmentReminderRequest,
    RECEIPT: pb.SendPaymentNoticeRequest,
}
SUBJECTS = {
    CONFIRMATION: "Confirmação de Agendamento",
    REMINDER: "Lembrete de Consulta",
    RECEIPT: "Recibo de Pagamento",
}


class Mailbox(NamedTuple):
    address: str
    name: str = ""


@dataclass(frozen=True)
class Message:
    """The values that the templates show."""

    template: str
    recipient: Mailbox
    about: Appointment | Payment


def accept(request: EmailRequest) -> NewMessage:
    """Read a new request. Raise InvalidRequest with every wrong field."""
    read, message = _read(request)
    schedule = read.schedule(message.template, message.about)
    read.check()
    return NewMessage(
        template=message.template,
        idempotency_key=read.idempotency_key,
        recipient=message.recipient.address,
        recipient_name=message.recipient.name,
        payload=request.SerializeToString(),
        fields={"rpc": message.template, **read.given()},
        appointment_id=message.about.appointment_id,
        revises=message.template == CONFIRMATION,
        priority=jobs.REMINDERS if message.template == REMINDER else jobs.NOTICES,
        schedule=schedule,
    )


def stored(template: str, payload: bytes) -> Message:
    """Read a request that was accepted before, without the checks."""
    return _read(REQUESTS[template].FromString(payload))[1]


def _read(request: EmailRequest) -> tuple[Request, Message]:
    read = Request(request)
    to = read.fields.child("recipient") or Fields(pb.Recipient())
    recipient = Mailbox(to.email("address"), to.text("name", max_length=200))
    template = next(name for name, kind in REQUESTS.items() if isinstance(request, kind))
    return read, Message(template, recipient, read.payment() if template == RECEIPT else read.appointment())
