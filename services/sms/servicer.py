"""The RPCs of topsmile.sms.v1: what callers ask for, and what the gateway tells."""
# ruff: noqa: N802 - methods are named by the contract

import secrets
from collections.abc import Callable
from typing import Any

import grpc

from services.chassis import context
from services.chassis.database import Database
from services.chassis.errors import InvalidRequest
from services.chassis.fields import Fields
from services.chassis.idempotency import Fingerprints
from services.chassis.violations import Rule
from services.sms import message, store, twilio_events
from services.sms.message import CODE, Message, Numbers
from services.sms.pepper import Pepper
from services.sms.quiet_hours import QuietHours
from topsmile.common.v1 import common_pb2 as common
from topsmile.sms.v1 import sms_pb2 as pb
from topsmile.sms.v1 import sms_pb2_grpc as pb_grpc

EVENTS_AT_MOST, BODIES_AT_MOST = 100, 2 << 20

Rpc = grpc.aio.ServicerContext[Any, Any]


class SmsServicer(pb_grpc.SmsServiceServicer):
    def __init__(
        self,
        database: Database,
        wake: Callable[[], None],
        pepper: Pepper,
        *,
        fingerprints: Fingerprints,
        numbers: Numbers,
        quiet_hours: QuietHours,
    ) -> None:
        self._database = database
        self._fingerprints = fingerprints
        self._wake = wake
        self._pepper = pepper
        self._numbers = numbers
        self._quiet_hours = quiet_hours

    async def SendAppointmentConfirmation(
        self, request: pb.SendAppointmentConfirmationRequest, _rpc: Rpc
    ) -> pb.SendAppointmentConfirmationResponse:
        sms = await self._accept(message.confirmation(request, self._numbers))
        return pb.SendAppointmentConfirmationResponse(sms=sms)

    async def SendAppointmentReminder(
        self, request: pb.SendAppointmentReminderRequest, _rpc: Rpc
    ) -> pb.SendAppointmentReminderResponse:
        return pb.SendAppointmentReminderResponse(sms=await self._accept(message.reminder(request, self._numbers)))

    async def SendVerificationCode(
        self, request: pb.SendVerificationCodeRequest, _rpc: Rpc
    ) -> pb.SendVerificationCodeResponse:
        return pb.SendVerificationCodeResponse(
            sms=await self._accept(message.verification_code(request, self._numbers))
        )

    async def SendPaymentNotice(self, request: pb.SendPaymentNoticeRequest, _rpc: Rpc) -> pb.SendPaymentNoticeResponse:
        return pb.SendPaymentNoticeResponse(sms=await self._accept(message.payment_notice(request, self._numbers)))

    async def SendSms(self, request: pb.SendSmsRequest, _rpc: Rpc) -> pb.SendSmsResponse:
        return pb.SendSmsResponse(sms=await self._accept(message.custom(request, self._numbers)))

    async def GetSms(self, request: pb.GetSmsRequest, _rpc: Rpc) -> pb.GetSmsResponse:
        fields = Fields(request)
        sms_id = fields.identifier("sms_id")
        fields.check()
        sms = await self._database.read(store.get, sms_id)
        return pb.GetSmsResponse(sms=sms.to_proto())

    async def CancelSms(self, request: pb.CancelSmsRequest, _rpc: Rpc) -> pb.CancelSmsResponse:
        fields = Fields(request)
        reference, id = fields.reference()
        fields.check()
        transaction = store.cancel if reference == "sms_id" else store.cancel_appointment
        canceled, too_late = await self._database.run(transaction, id)
        return pb.CancelSmsResponse(canceled_count=canceled, too_late_count=too_late)

    async def _accept(self, message: Message) -> pb.Sms:
        body = self._pepper.seal(message.text) if message.template == CODE else message.text
        new = store.NewSms(
            sms_id=f"sms_{secrets.token_hex(12)}",
            caller=context.caller.get(),
            fingerprint=self._fingerprints(message.asked),
            payload=pb.SendSmsRequest(body=body).SerializeToString(),
            trace=context.trace(),
            quiet_hours=self._quiet_hours,
        )
        sms = await self._database.add(store.accept, new, message)
        self._wake()
        return sms.to_proto()


class SmsAdminServicer(pb_grpc.SmsAdminServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def ApplyEvents(self, request: pb.ApplyEventsRequest, _rpc: Rpc) -> pb.ApplyEventsResponse:
        if not 1 <= len(request.events) <= EVENTS_AT_MOST:
            raise InvalidRequest([Rule.WRONG_COUNT.at("events", most=EVENTS_AT_MOST, count=len(request.events))])
        if sum(len(event.body) for event in request.events) > BODIES_AT_MOST:
            raise InvalidRequest([Rule.TOO_MANY_BYTES.at("events", limit=BODIES_AT_MOST)])
        read = [twilio_events.read(event) for event in request.events]
        understood = [event for event in read if not isinstance(event, str)]
        applied = iter(await self._database.run(store.apply, understood))
        results = [
            _result(event.event_id, "REJECTED", outcome)
            if isinstance(outcome, str)
            else _result(event.event_id, *next(applied))
            for event, outcome in zip(request.events, read, strict=True)
        ]
        return pb.ApplyEventsResponse(results=results)


def _result(event_id: str, outcome: str, detail: str) -> common.EventResult:
    return common.EventResult(
        event_id=event_id, outcome=common.EventOutcome.Value(f"EVENT_OUTCOME_{outcome}"), detail=detail
    )
