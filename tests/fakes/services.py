"""Fakes of the three services, which implement the contracts in memory and can be stopped."""

# ruff: noqa: N802 - the methods have the contracts' names

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from services.chassis import context
from services.chassis.errors import AlreadyExists, NotFound, OutOfRange, ServiceError
from services.chassis.rpc.authentication import parse_tokens
from services.chassis.rpc.interceptors import Interceptors
from services.chassis.rpc.server import OPTIONS, interceptor_chain
from services.chassis.settings import Address, ProcessSettings
from services.chassis.violations import Rule
from topsmile.common.v1 import common_pb2 as common
from topsmile.email.v1 import email_pb2, email_pb2_grpc
from topsmile.payments.v1 import payments_pb2, payments_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc


class FakeSettings(ProcessSettings, process="FAKE", port=0, operations_port=0):
    pass


class Listening:
    """A real server with the real interceptors. After `stop`, `start` uses the same port."""

    add: Sequence[Callable[[Any, Any], None]]

    def __init__(self, tokens: str = "") -> None:
        self.settings = FakeSettings(
            listen=Address("127.0.0.1", 0),
            operations_listen=Address("127.0.0.1", 0),
            database_url="sqlite:///unused.db",
            auth_tokens=parse_tokens(tokens) if tokens else (),
        )
        self.port = 0
        self.calls: Counter[str] = Counter()
        self.callers: set[str] = set()
        self.correlation_ids: list[str] = []
        self.fail_with: ServiceError | None = None
        self.hang = 0.0

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        methods = Interceptors(self._server, interceptor_chain(self.settings))
        for add in self.add:
            add(self, methods)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def called(self, method: str) -> None:
        self.calls[method] += 1
        self.callers.add(context.caller.get())
        self.correlation_ids.append(context.correlation_id.get())
        await asyncio.sleep(self.hang)
        if self.fail_with is not None:
            raise self.fail_with


class _Events:
    """ApplyEvents of any contract. A repeated event is a duplicate."""

    def __init__(self, contract: Any) -> None:
        self._contract = contract
        self.applied: dict[str, Any] = {}
        self.received: Counter[str] = Counter()
        self.outcomes: list[str] = []  #: Said first, before any judgement.

    def apply(self, request: Any) -> Any:
        results = []
        for event in request.events:
            self.received[event.event_id] += 1
            outcome = "DUPLICATE" if event.event_id in self.applied else "APPLIED"
            if self.outcomes:
                outcome = self.outcomes.pop(0)
            if outcome == "APPLIED":
                self.applied[event.event_id] = event
            number = common.EventOutcome.Value(f"EVENT_OUTCOME_{outcome}")
            results.append(common.EventResult(event_id=event.event_id, outcome=number))
        return self._contract.ApplyEventsResponse(results=results)


class _Kept:
    """The requests by idempotency key. A repeated request returns the same message."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}

    def number(self, request: Any) -> int:
        first = self.requests.setdefault(request.idempotency_key, request)
        if first != request:
            different = [Rule.KEY_REUSED.at(field.name) for field, _ in request.ListFields()][1:]
            raise AlreadyExists("another request", reason="IDEMPOTENCY_KEY_REUSED", violations=different)
        return list(self.requests).index(request.idempotency_key) + 1


class FakeEmail(Listening, email_pb2_grpc.EmailServiceServicer, email_pb2_grpc.EmailAdminServiceServicer):
    add = (email_pb2_grpc.add_EmailServiceServicer_to_server, email_pb2_grpc.add_EmailAdminServiceServicer_to_server)

    def __init__(self, tokens: str = "") -> None:
        super().__init__(tokens)
        self.kept = _Kept()
        self.events = _Events(email_pb2)

    async def _send(self, request: Any, response: Any, status: str = "QUEUED") -> Any:
        await self.called(type(request).__name__)
        number = common.MessageStatus.Value(f"MESSAGE_STATUS_{status}")
        return response(email=email_pb2.Email(email_id=f"eml_{self.kept.number(request)}", status=number))

    async def SendAppointmentConfirmation(self, request: Any, _context: Any) -> Any:
        return await self._send(request, email_pb2.SendAppointmentConfirmationResponse)

    async def SendAppointmentReminder(self, request: Any, _context: Any) -> Any:
        return await self._send(request, email_pb2.SendAppointmentReminderResponse, "SCHEDULED")

    async def SendPaymentNotice(self, request: Any, _context: Any) -> Any:
        return await self._send(request, email_pb2.SendPaymentNoticeResponse)

    async def ApplyEvents(self, request: Any, _context: Any) -> Any:
        await self.called("ApplyEvents")
        return self.events.apply(request)


class FakeSms(Listening, sms_pb2_grpc.SmsServiceServicer, sms_pb2_grpc.SmsAdminServiceServicer):
    add = (sms_pb2_grpc.add_SmsServiceServicer_to_server, sms_pb2_grpc.add_SmsAdminServiceServicer_to_server)

    def __init__(self, tokens: str = "") -> None:
        super().__init__(tokens)
        self.kept = _Kept()
        self.events = _Events(sms_pb2)

    async def _send(self, request: Any, response: Any, status: str = "QUEUED") -> Any:
        await self.called(type(request).__name__)
        number = common.MessageStatus.Value(f"MESSAGE_STATUS_{status}")
        return response(sms=sms_pb2.Sms(sms_id=f"sms_{self.kept.number(request)}", status=number))

    async def SendAppointmentConfirmation(self, request: Any, _context: Any) -> Any:
        return await self._send(request, sms_pb2.SendAppointmentConfirmationResponse)

    async def SendAppointmentReminder(self, request: Any, _context: Any) -> Any:
        return await self._send(request, sms_pb2.SendAppointmentReminderResponse, "SCHEDULED")

    async def SendPaymentNotice(self, request: Any, _context: Any) -> Any:
        return await self._send(request, sms_pb2.SendPaymentNoticeResponse)

    async def ApplyEvents(self, request: Any, _context: Any) -> Any:
        await self.called("ApplyEvents")
        return self.events.apply(request)


class FakePayments(Listening, payments_pb2_grpc.PaymentServiceServicer, payments_pb2_grpc.PaymentAdminServiceServicer):
    """Payments whose cursors are numbers. Changes up to `forgotten` are purged."""

    add = (
        payments_pb2_grpc.add_PaymentServiceServicer_to_server,
        payments_pb2_grpc.add_PaymentAdminServiceServicer_to_server,
    )

    def __init__(self, tokens: str = "") -> None:
        super().__init__(tokens)
        self.kept = _Kept()
        self.events = _Events(payments_pb2)
        self.payments: dict[str, payments_pb2.Payment] = {}
        self.changes: list[payments_pb2.PaymentChange] = []
        self.forgotten = 0
        self.watches: list[str] = []
        self._changed = asyncio.Event()

    def change(self, payment: payments_pb2.Payment, before: int) -> None:
        change = payments_pb2.PaymentChange(payment=payment, previous_status=before)  # type: ignore[arg-type]  # a number
        change.change_time.FromSeconds(1_770_000_000)
        self.changes.append(change)
        self._changed.set()

    async def CreatePayment(self, request: Any, _context: Any) -> Any:
        await self.called("CreatePayment")
        payment = payments_pb2.Payment(
            payment_id=f"pay_{self.kept.number(request)}",
            stripe_payment_intent_id="pi_1",
            status=payments_pb2.PAYMENT_STATUS_AWAITING_METHOD,
            amount=request.amount,
            appointment_id=request.appointment_id,
            client_secret="pi_1_secret",
        )
        self.payments[payment.payment_id] = self.payments["pi_1"] = payment
        return payments_pb2.CreatePaymentResponse(payment=payment)

    async def GetPayment(self, request: Any, _context: Any) -> Any:
        await self.called("GetPayment")
        payment = self.payments.get(request.payment_id or request.stripe_payment_intent_id)
        if payment is None:
            raise NotFound("no such payment")
        return payments_pb2.GetPaymentResponse(payment=payment)

    async def WatchPayments(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        self.watches.append(request.cursor)
        position = int(request.cursor or self.forgotten)
        if position < self.forgotten:
            raise OutOfRange("that is no longer kept")
        while True:
            self._changed.clear()
            while position < len(self.changes):
                change = self.changes[position]
                position += 1
                yield payments_pb2.WatchPaymentsResponse(cursor=str(position), change=change)
            yield payments_pb2.WatchPaymentsResponse(cursor=str(position))
            await self._changed.wait()

    async def ApplyEvents(self, request: Any, _context: Any) -> Any:
        await self.called("ApplyEvents")
        return self.events.apply(request)
