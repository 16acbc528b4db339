"""What a request asks to be texted, read in one go: every wrong field is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

from google.protobuf.message import Message as ProtoMessage

from services.brazil.folding import fold
from services.chassis.queue import jobs
from services.chassis.violations import Rule
from services.messaging import requests
from services.messaging.requests import CONFIRMATION, DAY, RECEIPT, REMINDER, NewMessage
from services.sms import words
from services.sms.segments import GSM, size
from topsmile.sms.v1 import sms_pb2 as pb

CODE, CUSTOM = "verification_code", "custom"
PRIORITIES = {CODE: jobs.CODES, REMINDER: jobs.REMINDERS}

#: What Twilio takes in one message.
LONGEST = 1600
#: Characters that cannot be sent which a refusal names.
NAMED = 20
#: Milliseconds; a code that has not left by then would only confuse.
CODE_LIFETIME = 10 * 60 * 1000

Numbers: TypeAlias = Callable[[str], str]  #: To E.164; InvalidValueError says why a number takes no texts.


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
        send_at: datetime | None = None,
        expires_at: datetime | None = None,
        over_at: datetime | None = None,
        seal: Callable[[str], str] = str,
    ) -> NewMessage:
        """Keep the text in the job, sealed where that is asked for."""
        encoding, segments = size(text)
        return NewMessage(
            template=template,
            idempotency_key=self.idempotency_key,
            recipient=self._recipient,
            payload=pb.SendSmsRequest(body=seal(text)).SerializeToString(),
            fields={"template": template, **self.given(), "recipient": self._recipient},
            appointment_id=appointment_id,
            priority=PRIORITIES.get(template, jobs.NOTICES),
            send_at=send_at,
            expires_at=expires_at,
            over_at=over_at,
            lifetime=CODE_LIFETIME if template == CODE else DAY,
            encoding=encoding,
            segments=segments,
        )


def confirmation(request: pb.SendAppointmentConfirmationRequest, numbers: Numbers) -> NewMessage:
    read = Request(request, numbers)
    about = read.appointment()
    read.check()
    return read.message(
        CONFIRMATION, words.confirmation(about), appointment_id=about.appointment_id, over_at=about.over_at
    )


def reminder(request: pb.SendAppointmentReminderRequest, numbers: Numbers) -> NewMessage:
    read = Request(request, numbers)
    about = read.appointment()
    send_at = read.send_at(about.start_at)
    read.check()
    text = words.reminder(about)
    return read.message(
        REMINDER,
        text,
        appointment_id=about.appointment_id,
        send_at=send_at,
        expires_at=about.start_at,
        over_at=about.start_at,
    )


def verification_code(
    request: pb.SendVerificationCodeRequest, numbers: Numbers, seal: Callable[[str], str]
) -> NewMessage:
    read = Request(request, numbers)
    if not re.fullmatch("[A-Za-z0-9]{4,10}", request.code):
        read.fields.wrong("code", Rule.NOT_A_CODE)
    read.check()
    return read.message(CODE, words.verification(request.code), seal=seal)


def payment_notice(request: pb.SendPaymentNoticeRequest, numbers: Numbers) -> NewMessage:
    read = Request(request, numbers)
    about = read.payment()
    read.check()
    return read.message(RECEIPT, words.receipt(about), appointment_id=about.appointment_id)


def custom(request: pb.SendSmsRequest, numbers: Numbers) -> NewMessage:
    read = Request(request, numbers)
    body = read.fields.text("body", min_length=1, max_length=4 * LONGEST, multiline=True)
    send_at = read.fields.time("send_time")
    text, lost = (body, "") if request.keep_accents else fold(body, GSM)
    if lost:
        read.fields.wrong("body", Rule.NOT_WRITABLE, characters=" ".join(lost[:NAMED]))
    elif body and not text:
        read.fields.wrong("body", Rule.REQUIRED)
    if len(text) > LONGEST:
        read.fields.wrong("body", Rule.TOO_LONG, limit=LONGEST, length=len(text))
    read.check()
    return read.message(CUSTOM, text, send_at=send_at)
