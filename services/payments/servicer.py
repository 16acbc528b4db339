"""The RPCs of the payments contract."""
# ruff: noqa: N802 - the contract's names

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from services.chassis import context
from services.chassis.database.transactions import Database
from services.chassis.errors import AlreadyExists, OutcomeUnknown, ServiceError
from services.chassis.queue.worker import Worker
from services.chassis.rpc.idempotency import Fingerprints
from services.chassis.rpc.paging import page_size, page_token, position_of
from services.chassis.rpc.validation import Fields, check_events
from services.payments import listing, opening, store, stripe_events, transitions
from services.payments.change_log import ChangeLog
from services.payments.requests import PaymentFilter, PaymentRequest, Position
from services.payments.sender import Sender
from services.payments.status import is_paid
from services.payments.stripe_events import IgnoredEvent, ObjectReference
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb
from topsmile.payments.v1.payments_pb2_grpc import PaymentAdminServiceServicer, PaymentServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

#: Seconds during which an event of an unknown payment gets RETRY. A record is older than its events, except in a
#: restored database.
RETRY_UNKNOWN_FOR = 600.0
#: Seconds that a caller waits for a reading. After that, the stored status decides.
READ_TIMEOUT = 3.0


class PaymentServicer(PaymentServiceServicer):
    def __init__(
        self,
        database: Database,
        worker: Worker,
        sender: Sender,
        changes: ChangeLog,
        fingerprints: Fingerprints,
        *,
        livemode: bool,
    ) -> None:
        self._database = database
        self._worker = worker
        self._fingerprints = fingerprints
        self._sender = sender
        self._changes = changes
        self._livemode = livemode
        self._creating: set[asyncio.Task[str]] = set()

    async def CreatePayment(self, request: pb.CreatePaymentRequest, _context: Context) -> pb.CreatePaymentResponse:
        new = self._new_payment(PaymentRequest.from_request(request))
        # A canceled call must not stop this task: a claimed job that nobody performs blocks its key for a lease.
        creating = asyncio.create_task(self._create(new))
        self._creating.add(creating)
        creating.add_done_callback(self._created)
        payment_id = await asyncio.shield(creating)
        stored, cursor = await self._database.read(store.get_with_cursor, payment_id)
        if stored.refusal and not is_paid(stored.record):
            raise transitions.refusal_from(stored.refusal)
        if not stored.settled:
            raise OutcomeUnknown("stripe", None, "the outcome is not stored yet: repeat with the same key")
        return pb.CreatePaymentResponse(payment=stored.to_proto(), watch_cursor=str(cursor))

    async def _create(self, new: opening.NewPayment) -> str:
        """Open the payment, perform its job and return its id. Raise the errors of both."""
        opened = await self._open(new)
        self._changes.wake()
        if opened.job is not None:
            await self._worker.perform(opened.job, recovering=opened.recovering)
            self._changes.wake()
        return opened.payment_id

    async def _open(self, new: opening.NewPayment) -> opening.Opened:
        """Open a payment. Before refusing a second one for an appointment, read the open one again."""
        queue = self._worker.queue
        try:
            return await self._database.run(opening.open_payment, queue, new)
        except AlreadyExists as refusal:
            if refusal.reason != "PAYMENT_OPEN":
                raise
            with suppress(ServiceError, TimeoutError):
                reading = await self._database.run(opening.claim_reading, queue, refusal.metadata["payment_id"])
                if reading.job is not None:
                    async with asyncio.timeout(READ_TIMEOUT):
                        await self._worker.perform(reading.job, recovering=reading.recovering)
        return await self._database.run(opening.open_payment, queue, new)

    def _created(self, creating: "asyncio.Task[str]") -> None:
        self._creating.discard(creating)
        if not creating.cancelled():
            creating.exception()  # retrieve it: the caller may have disconnected

    async def GetPayment(self, request: pb.GetPaymentRequest, _context: Context) -> pb.GetPaymentResponse:
        stored, cursor = await self._database.read(store.get_with_cursor, *_reference(request), owner())
        payment = stored.to_proto()
        if "send" not in context.scopes.get():
            payment.ClearField("client_secret")  # its holder can pay, and can read the payer's data
        return pb.GetPaymentResponse(payment=payment, watch_cursor=str(cursor))

    async def RefreshPayment(self, request: pb.RefreshPaymentRequest, _context: Context) -> pb.RefreshPaymentResponse:
        stored = await self._database.read(store.get, *_reference(request), owner())
        if await self._database.run(opening.begin_refresh, self._worker.queue, stored.payment_id):
            await self._sender.refresh(stored.payment_id)
            self._changes.wake()
            self._worker.wake()
        stored, cursor = await self._database.read(store.get_with_cursor, stored.payment_id)
        return pb.RefreshPaymentResponse(payment=stored.to_proto(), watch_cursor=str(cursor))

    async def ListPayments(self, request: pb.ListPaymentsRequest, _context: Context) -> pb.ListPaymentsResponse:
        fields = Fields(request)
        filter = PaymentFilter.from_request(request, fields)
        size, position = page_size(fields, request), Position(*position_of(fields, request, *Position()))
        fields.check()
        found = await self._database.read(listing.list_payments, filter, owner(), position, size + 1)
        response = pb.ListPaymentsResponse(payments=found[:size])
        if len(found) > size:
            last = found[size - 1]
            response.next_page_token = page_token(request, last.create_time.ToMilliseconds(), last.payment_id)
        return response

    async def WatchPayments(
        self, request: pb.WatchPaymentsRequest, _context: Context
    ) -> AsyncIterator[pb.WatchPaymentsResponse]:
        fields = Fields(request)
        filters = {
            "caller": owner("events"),
            "payment_id": fields.identifier("payment_id", required=False),
            "appointment_id": fields.identifier("appointment_id", required=False),
        }
        fields.check()
        wanted = {column: value for column, value in filters.items() if value}
        async for response in self._changes.watch(request.cursor, wanted, from_now=request.from_now):
            yield response

    def _new_payment(self, request: PaymentRequest) -> opening.NewPayment:
        payment_id = f"pay_{secrets.token_hex(12)}"
        return opening.NewPayment(
            record=request.record(payment_id, context.caller.get(), livemode=self._livemode),
            caller=context.caller.get(),
            idempotency_key=request.idempotency_key,
            fingerprint=self._fingerprints(request.fingerprint_fields),
            allow_another=request.allow_another,
            confirmed=request.confirmed_here,
            prepared=self._sender.prepare(payment_id, request),
            trace=context.trace(),
        )


class PaymentAdminServicer(PaymentAdminServiceServicer):
    def __init__(
        self, database: Database, worker: Worker, sender: Sender, changes: ChangeLog, *, livemode: bool
    ) -> None:
        self._database = database
        self._worker = worker
        self._sender = sender
        self._changes = changes
        self._livemode = livemode

    async def ApplyEvents(self, request: pb.ApplyEventsRequest, _context: Context) -> pb.ApplyEventsResponse:
        check_events(request.events)
        results = [await self._apply(event) for event in request.events]
        self._changes.wake()
        self._worker.wake()
        return pb.ApplyEventsResponse(results=results)

    async def _apply(self, event: common.ProviderEvent) -> common.EventResult:
        match stripe_events.read(event, livemode=self._livemode):
            case IgnoredEvent() as ignored:
                return common.EventResult(event_id=event.event_id, outcome=ignored.outcome, detail=ignored.detail)
            case ObjectReference() as reference:
                applied_as = "" if reference.unreadable else event.event_id
                outcome = await self._database.run(
                    transitions.apply_reference, applied_as, reference.intent_id, reference.payment_id
                )
                if reference.unreadable:
                    known = "; its payment is read again" if outcome is not None else ""
                    outcome = common.EVENT_OUTCOME_REJECTED
                    return common.EventResult(
                        event_id=event.event_id,
                        outcome=outcome,
                        detail=reference.unreadable + known,
                        subject=reference.payment_id,
                    )
                subject = reference.payment_id
                unknown = stripe_events.foreign("no payment has this PaymentIntent")
            case report:
                snapshot = await self._sender.with_method(report)
                subject = snapshot.payment_id
                outcome = await self._database.run(transitions.apply_report, event.event_id, snapshot)
                unknown = (
                    _unknown_payment(event)
                    if snapshot.payment_id
                    else stripe_events.foreign("the PaymentIntent names no payment")
                )
        if outcome is None:
            return common.EventResult(event_id=event.event_id, outcome=unknown.outcome, detail=unknown.detail)
        return common.EventResult(event_id=event.event_id, outcome=outcome, detail=DETAILS[outcome], subject=subject)


def _reference(request: pb.GetPaymentRequest | pb.RefreshPaymentRequest) -> tuple[str, str]:
    """Return the payment's id and its PaymentIntent's, one of them empty."""
    fields = Fields(request)
    reference, id = fields.reference()
    fields.check()
    return (id, "") if reference == "payment_id" else ("", id)


def owner(*seeing_all: str) -> str | None:
    """Return the caller whose payments this call may see. None: all callers."""
    return None if context.scopes.get() & {"admin", *seeing_all} else context.caller.get()


DETAILS = {
    common.EVENT_OUTCOME_APPLIED: "",
    common.EVENT_OUTCOME_DUPLICATE: "",
    common.EVENT_OUTCOME_STALE: "the payment already has this state or a later one",
    common.EVENT_OUTCOME_IGNORED_FOREIGN: "the PaymentIntent is not this payment's",
}


def _unknown_payment(event: common.ProviderEvent) -> IgnoredEvent:
    """Return the outcome for an unknown payment: another installation's, or one not yet in this database."""
    if time.time() - event.received_time.ToSeconds() < RETRY_UNKNOWN_FOR:
        return IgnoredEvent(common.EVENT_OUTCOME_RETRY, "names a payment that is not known here yet")
    return stripe_events.foreign("names a payment that is not known here")
