"""The RPCs of topsmile.sms.v1: what callers ask for, and what the gateway passes on."""
# ruff: noqa: N802 - methods are named by the contract

from typing import Any

import grpc

from services.messaging.outbox import Outbox
from services.messaging.record import MessageRecord
from services.messaging.requests import NewMessage
from services.sms import requests
from services.sms.pepper import Pepper
from services.sms.requests import Numbers
from topsmile.sms.v1 import sms_pb2 as pb
from topsmile.sms.v1 import sms_pb2_grpc as pb_grpc

Rpc = grpc.aio.ServicerContext[Any, Any]


class SmsServicer(pb_grpc.SmsServiceServicer):
    def __init__(self, outbox: Outbox, pepper: Pepper, numbers: Numbers) -> None:
        self._outbox = outbox
        self._pepper = pepper
        self._numbers = numbers

    async def SendAppointmentConfirmation(
        self, request: pb.SendAppointmentConfirmationRequest, _rpc: Rpc
    ) -> pb.SendAppointmentConfirmationResponse:
        sms = await self._accept(requests.about_appointment(request, self._numbers))
        return pb.SendAppointmentConfirmationResponse(sms=sms)

    async def SendAppointmentReminder(
        self, request: pb.SendAppointmentReminderRequest, _rpc: Rpc
    ) -> pb.SendAppointmentReminderResponse:
        return pb.SendAppointmentReminderResponse(
            sms=await self._accept(requests.about_appointment(request, self._numbers))
        )

    async def SendVerificationCode(
        self, request: pb.SendVerificationCodeRequest, _rpc: Rpc
    ) -> pb.SendVerificationCodeResponse:
        sms = await self._accept(requests.verification_code(request, self._numbers, self._pepper.seal))
        return pb.SendVerificationCodeResponse(sms=sms)

    async def SendPaymentNotice(self, request: pb.SendPaymentNoticeRequest, _rpc: Rpc) -> pb.SendPaymentNoticeResponse:
        return pb.SendPaymentNoticeResponse(sms=await self._accept(requests.payment_notice(request, self._numbers)))

    async def SendSms(self, request: pb.SendSmsRequest, _rpc: Rpc) -> pb.SendSmsResponse:
        return pb.SendSmsResponse(sms=await self._accept(requests.custom(request, self._numbers)))

    async def GetSms(self, request: pb.GetSmsRequest, _rpc: Rpc) -> pb.GetSmsResponse:
        return pb.GetSmsResponse(sms=to_proto(await self._outbox.get(request, "sms_id")))

    async def CancelSms(self, request: pb.CancelSmsRequest, _rpc: Rpc) -> pb.CancelSmsResponse:
        canceled, too_late = await self._outbox.cancel(request, "sms_id")
        return pb.CancelSmsResponse(canceled_count=canceled, too_late_count=too_late)

    async def _accept(self, new: NewMessage) -> pb.Sms:
        return to_proto(await self._outbox.accept(new))


class SmsAdminServicer(pb_grpc.SmsAdminServiceServicer):
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def ApplyEvents(self, request: pb.ApplyEventsRequest, _rpc: Rpc) -> pb.ApplyEventsResponse:
        return pb.ApplyEventsResponse(results=await self._outbox.apply(request.events))


def to_proto(record: MessageRecord) -> pb.Sms:
    return pb.Sms(
        sms_id=record.message_id,
        recipient=record.recipient,
        segments=record.segments,
        encoding=pb.SmsEncoding.Value(f"SMS_ENCODING_{record.encoding}"),
        **record.shared_fields(),
    )
