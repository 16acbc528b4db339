"""The two services of the contract: what callers ask for, and what the gateway tells."""
# ruff: noqa: N802 - methods are named by the contract

from __future__ import annotations

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
from services.email import sendgrid_events, store
from services.email.message import Message, Request
from services.email.sendgrid_events import Fact, Unfit
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2 as pb
from topsmile.email.v1.email_pb2_grpc import EmailAdminServiceServicer, EmailServiceServicer

EVENTS_AT_MOST = 100
EVENT_BYTES_AT_MOST = 2 << 20

Rpc = grpc.aio.ServicerContext[Any, Any]


class EmailServicer(EmailServiceServicer):
    """`wake` is called when there is something to hand over."""

    def __init__(self, database: Database, wake: Callable[[], None], fingerprints: Fingerprints) -> None:
        self._database = database
        self._fingerprints = fingerprints
        self._wake = wake

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

    async def _accept(self, request: Request) -> pb.Email:
        message = Message.from_request(request)
        email_id = f"eml_{secrets.token_hex(12)}"
        fingerprint = self._fingerprints(message.asked)
        email = await self._database.add(
            store.accept, email_id, context.caller.get(), message, fingerprint, context.trace()
        )
        self._wake()
        return email

    async def GetEmail(self, request: pb.GetEmailRequest, _rpc: Rpc) -> pb.GetEmailResponse:
        fields = Fields(request)
        email_id = fields.identifier("email_id")
        fields.check()
        return pb.GetEmailResponse(email=await self._database.read(store.find, email_id))

    async def CancelEmails(self, request: pb.CancelEmailsRequest, _rpc: Rpc) -> pb.CancelEmailsResponse:
        fields = Fields(request)
        reference, id = fields.reference()
        fields.check()
        canceled, too_late = await self._database.run(
            store.cancel, *((id, "") if reference == "email_id" else ("", id))
        )
        return pb.CancelEmailsResponse(canceled_count=canceled, too_late_count=too_late)


class EmailAdminServicer(EmailAdminServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def ApplyEvents(self, request: pb.ApplyEventsRequest, _rpc: Rpc) -> pb.ApplyEventsResponse:
        _check_size(request)
        readings = [sendgrid_events.read(event) for event in request.events]
        outcomes = iter(await self._database.run(store.apply, [fact for fact in readings if isinstance(fact, Fact)]))
        told = [reading if isinstance(reading, Unfit) else Unfit(next(outcomes), "") for reading in readings]
        return pb.ApplyEventsResponse(
            results=[
                common.EventResult(event_id=event.event_id, outcome=outcome, detail=why)
                for event, (outcome, why) in zip(request.events, told, strict=True)
            ]
        )


def _check_size(request: pb.ApplyEventsRequest) -> None:
    size = sum(len(event.body) for event in request.events)
    if not 1 <= len(request.events) <= EVENTS_AT_MOST:
        raise InvalidRequest([Rule.WRONG_COUNT.at("events", most=EVENTS_AT_MOST, count=len(request.events))])
    if size > EVENT_BYTES_AT_MOST:
        raise InvalidRequest([Rule.TOO_MANY_BYTES.at("events", limit=EVENT_BYTES_AT_MOST)])
