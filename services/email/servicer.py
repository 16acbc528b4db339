"""The two services of the contract: what callers ask for, and what the gateway passes on."""
# ruff: noqa: N802 - methods are named by the contract

from __future__ import annotations

from typing import Any

import grpc

from services.email import requests
from services.email.requests import SUBJECTS, EmailRequest
from services.messaging.outbox import Outbox
from services.messaging.record import MessageRecord
from topsmile.email.v1 import email_pb2 as pb
from topsmile.email.v1.email_pb2_grpc import EmailAdminServiceServicer, EmailServiceServicer

Rpc = grpc.aio.ServicerContext[Any, Any]


class EmailServicer(EmailServiceServicer):
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def SendAppointmentConfirmation(
        self, request: pb.SendAppointmentConfirmationRequest, _rpc: Rpc
    ) -> pb.SendAppointmentConfirmationResponse:
        return pb.SendAppointmentConfirmationResponse(email=await self._accept(request))

    async def SendAppointmentReminder(
        self, request: pb.SendAppointmentReminderRequest, _rpc: Rpc
    ) -> pb.SendAppointmentReminderResponse:
        return pb.SendAppointmentReminderResponse(email=await self._accept(request))

    async def SendPaymentNotice(self, request: pb.SendPaymentNoticeRequest, _rpc: Rpc) -> pb.SendPaymentNoticeResponse:
        return pb.SendPaymentNoticeResponse(email=await self._accept(request))

    async def GetEmail(self, request: pb.GetEmailRequest, _rpc: Rpc) -> pb.GetEmailResponse:
        return pb.GetEmailResponse(email=to_proto(await self._outbox.get(request, "email_id")))

    async def CancelEmails(self, request: pb.CancelEmailsRequest, _rpc: Rpc) -> pb.CancelEmailsResponse:
        canceled, too_late = await self._outbox.cancel(request, "email_id")
        return pb.CancelEmailsResponse(canceled_count=canceled, too_late_count=too_late)

    async def _accept(self, request: EmailRequest) -> pb.Email:
        return to_proto(await self._outbox.accept(requests.accept(request)))


class EmailAdminServicer(EmailAdminServiceServicer):
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def ApplyEvents(self, request: pb.ApplyEventsRequest, _rpc: Rpc) -> pb.ApplyEventsResponse:
        return pb.ApplyEventsResponse(results=await self._outbox.apply(request.events))


def to_proto(record: MessageRecord) -> pb.Email:
    return pb.Email(
        email_id=record.message_id,
        recipient=pb.Recipient(address=record.recipient, name=record.recipient_name),
        subject=SUBJECTS[record.template],
        **record.shared_fields(),
    )
