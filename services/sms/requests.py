"""The requests for texts, read into messages. Every wrong field is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from google.protobuf.message import Message as ProtoMessage

from services.brazil.folding import fold
from services.chassis.queue import jobs
from services.chassis.violations import Rule
from services.messaging import requests
from services.messaging.requests import CONFIRMATION, DAY, RECEIPT, REMINDER, UNSCHEDULED, NewMessage, Schedule
from services.sms import rendering
from services.sms.rendering import CODE
from services.sms.segments import GSM, size
from topsmile.sms.v1 import sms_pb2 as pb

CUSTOM = "custom"
PRIORITIES = {CODE: jobs.CODES, REMINDER: jobs.REMINDERS}

#: Characters that Twilio takes in one message.
MAX_LENGTH = 1600
#: Characters that cannot be sent and that a refusal names.
MAX_NAMED = 20
#: Milliseconds. A later code would only confuse.
CODE_LIFETIME = 10 * 60 * 1000

AppointmentRequest: TypeAlias = pb.SendAppointmentConfirmationRequest | pb.SendAppointmentReminderRequest
Numbers: TypeAlias = Callable[[str], str]  #: Returns E.164, or raises InvalidValueError with the reason.


class Request(requests.Request):
    """A request for a text: its recipient is a mobile number."""

    def __init__(self, request: ProtoMessage, numbers: Numbers) -> None:
        super().__init__(request)
        recipient = self.fields.text("recipient", min_length=1, max_length=40)
        self._recipient = self.fields.read("recipient", numbers, recipient) if recipient else ""

    def message(
        self,
        template: str,
        text: str,
        *,
        appointment_id: str = "",
        schedule: Schedule = UNSCHEDULED,
        seal: Callable[[str], str] = str,
    ) -> NewMessage:
        """Return the message to store. Its job holds the text, sealed where `seal` does that."""
        encoding, segments = size(text)
        return NewMessage(
            template=template,
            idempotency_key=self.idempotency_key,
            recipient=self._recipient,
            payload=pb.SendSmsRequest(body=seal(text)).SerializeToString(),
            fields={"template": template, **self.given(), "recipient": self._recipient},
            appointment_id=appointment_id,
            priority=PRIORITIES.get(template, jobs.NOTICES),
            schedule=schedule,
            lifetime=CODE_LIFETIME if template == CODE else DAY,
            encoding=encoding,
            segments=segments,
        )


def about_appointment(request: AppointmentRequest, numbers: Numbers) -> NewMessage:
    """Read a confirmation or a reminder."""
    read = Request(request, numbers)
    about = read.appointment()
    template = REMINDER if isinstance(request, pb.SendAppointmentReminderRequest) else CONFIRMATION
    schedule = read.schedule(template, about)
    read.check()
    text = rendering.reminder(about) if template == REMINDER else rendering.confirmation(about)
    return read.message(template, text, appointment_id=about.appointment_id, schedule=schedule)


def verification_code(
    request: pb.SendVerificationCodeRequest, numbers: Numbers, seal: Callable[[str], str]
) -> NewMessage:
    read = Request(request, numbers)
    if not re.fullmatch("[A-Za-z0-9]{4,10}", request.code):
        read.fields.wrong("code", Rule.NOT_A_CODE)
    read.check()
    return read.message(CODE, rendering.verification(request.code), seal=seal)


def payment_notice(request: pb.SendPaymentNoticeRequest, numbers: Numbers) -> NewMessage:
    read = Request(request, numbers)
    about = read.payment()
    read.check()
    return read.message(RECEIPT, rendering.receipt(about), appointment_id=about.appointment_id)


def custom(request: pb.SendSmsRequest, numbers: Numbers) -> NewMessage:
    read = Request(request, numbers)
    body = read.fields.text("body", min_length=1, max_length=4 * MAX_LENGTH, multiline=True)
    send_at = read.fields.time("send_time")
    text, lost = (body, "") if request.keep_accents else fold(body, GSM)
    if lost:
        read.fields.wrong("body", Rule.NOT_WRITABLE, characters=" ".join(lost[:MAX_NAMED]))
    elif body and not text:
        read.fields.wrong("body", Rule.REQUIRED)
    if len(text) > MAX_LENGTH:
        read.fields.wrong("body", Rule.TOO_LONG, limit=MAX_LENGTH, length=len(text))
    read.check()
    return read.message(CUSTOM, text, schedule=Schedule(send_at))
