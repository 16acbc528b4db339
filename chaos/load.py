"""Many callers, through the gateway's HTTP and the services' gRPC, each repeating its key until it is answered."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp
import grpc
from google.rpc import error_details_pb2, status_pb2

from chaos.operations import Journal, Operation
from chaos.system import System
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2, payments_pb2_grpc
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

#: How often each is asked for.
WISHES = {"payment": 38, "pair": 4, "confirmation": 22, "reminder": 10, "far_reminder": 6, "code": 10, "text": 10}
#: Seconds one try may take.
PATIENCE = 12.0
FAR = datetime(2031, 3, 14, 17, 30, tzinfo=UTC)
OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # the caller repeats, and counts
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)
#: The reasons for which a caller repeats its request. All others are final.
TRY_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}

Ask = Callable[[Operation], Awaitable[None]]


class TryAgain(Exception):  # noqa: N818 - a response, or none at all
    """No answer yet."""


class Load:
    def __init__(
        self, system: System, journal: Journal, http: aiohttp.ClientSession, stubs: Mapping[str, Any], seed: int
    ) -> None:
        self._system, self._journal, self._http, self._stubs = system, journal, http, stubs
        self._dice = random.Random(seed)
        self._numbers = itertools.count(1)
        self._over = asyncio.Event()

    def end(self) -> None:
        """Wish for nothing new; what was wished for is still asked until it is answered."""
        self._over.set()

    async def callers(self, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._caller())

    async def _caller(self) -> None:
        waiting: set[asyncio.Task[None]] = set()
        while not self._over.is_set():
            (wish,) = self._dice.choices(list(WISHES), list(WISHES.values()))
            task = asyncio.create_task(getattr(self, f"_{wish}")())
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 3.0)  # a patient caller goes on with others meanwhile
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._dice.uniform(0.2, 0.8))
        await asyncio.gather(*waiting)

    def _operation(self, kind: str, via: str, **more: Any) -> Operation:
        number = next(self._numbers)
        key = f"{kind}-{number}-{self._dice.getrandbits(32):08x}"
        phone = f"+55119{60_000_000 + number * 37 % 39_000_000:08}"
        more.setdefault("appointment", f"apt-{key}")
        more.setdefault("email", f"{key}@example.com")
        operation = Operation(key, kind, via, phone=phone, **more)
        self._journal.operations.append(operation)
        return operation

    # What is wished for.

    async def _payment(self) -> None:
        decision = self._dice.choices(("pay", "decline", ""), (80, 8, 12))[0]
        via = self._dice.choice(("http", "grpc"))
        operation = self._operation("payment", via, decision=decision)
        twice = self._dice.random() < 0.1  # an impatient caller sends the same request twice at once
        ask = self._create_over_http if via == "http" else self._create_over_grpc
        await asyncio.gather(*[self._insist(operation, ask) for _ in range(2 if twice else 1)])
        if operation.ids and decision:
            await self._insist(operation, self._decide, done=self._decided(operation))

    async def _pair(self) -> None:
        """Two clicks, two keys, one appointment: one of them may open a payment."""
        first = self._operation("payment", "http", decision="pay")
        second = self._operation("payment", "grpc", decision="pay", appointment=first.appointment)
        await asyncio.gather(self._insist(first, self._create_over_http), self._insist(second, self._create_over_grpc))
        for operation in (first, second):
            if operation.ids:
                await self._insist(operation, self._decide, done=self._decided(operation))

    async def _confirmation(self) -> None:
        await self._insist(self._operation("confirmation", "http"), self._appointment)

    async def _reminder(self) -> None:
        due_at = time.time() + self._dice.uniform(2, 15)
        await self._insist(self._operation("reminder", "http", due_at=due_at), self._appointment)

    async def _far_reminder(self) -> None:
        await self._insist(self._operation("reminder", "http", due_at=FAR.timestamp() - 86_400), self._appointment)

    async def _code(self) -> None:
        await self._insist(self._operation("code", "grpc", email=""), self._send_code)

    async def _text(self) -> None:
        due_at = time.time() + self._dice.uniform(2, 10) if self._dice.random() < 0.4 else 0.0
        await self._insist(self._operation("text", "grpc", due_at=due_at), self._send_text)

    # How it is asked for.

    async def _insist(self, operation: Operation, ask: Ask, done: Callable[[], bool] | None = None) -> None:
        done = done or (lambda: operation.answered)
        wait = 0.2
        while True:
            operation.tries += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    await ask(operation)
            except TryAgain as trouble:
                operation.last_trouble = str(trouble)
            except (
                aiohttp.ClientError,
                OSError,
                TimeoutError,
            ) as trouble:  # TimeoutError is an OSError; trouble for the reader
                operation.last_trouble = type(trouble).__name__
            if done():
                break
            await asyncio.sleep(self._dice.uniform(wait / 2, wait))
            wait = min(wait * 1.5, 2.0)
        if operation.ids and not operation.decided and self._dice.random() < 0.2:
            with suppress(TryAgain, aiohttp.ClientError, OSError):
                async with asyncio.timeout(PATIENCE):
                    await ask(operation)  # the same key again: the same answer, and nothing sent

    def _answer(self, operation: Operation, ids: Mapping[str, str], refusal: str = "") -> None:
        if ids:
            operation.tell(ids)
        if not operation.answered:
            operation.ids, operation.refusal, operation.answered_at = dict(ids), refusal, time.time()
            self._journal.answered(operation)

    @staticmethod
    def _decided(operation: Operation) -> Callable[[], bool]:
        return lambda: operation.decided

    async def _over_http(self, operation: Operation, path: str, body: Mapping[str, object]) -> tuple[int, Any]:
        headers = {"Idempotency-Key": operation.key, "X-Correlation-Id": operation.key}
        async with self._http.post(self._system.gateway + path, json=body, headers=headers) as answer:
            try:
                response = await answer.json(content_type=None)
            except ValueError as broken:
                raise TryAgain(f"HTTP {answer.status} without JSON") from broken
            if answer.status == 500:
                operation.bugs.append(f"HTTP 500 from {path.partition('?')[0]}")
            reason = response.get("reason", "")
            if answer.status in {429, 500, 503, 504} or (answer.status == 409 and reason != "PAYMENT_OPEN"):
                raise TryAgain(f"HTTP {answer.status} {reason}")
            return answer.status, response

    async def _over_grpc(self, operation: Operation, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=10, metadata=(("x-correlation-id", operation.key),))
        except grpc.aio.AioRpcError as error:
            trouble = f"{error.code().name} {reason_of(error)} {error.details()}"
            if error.code() is grpc.StatusCode.INTERNAL and "internal error" in (error.details() or ""):
                operation.bugs.append(trouble)
            if error.code() in TRY_AGAIN or error.code() is grpc.StatusCode.INTERNAL:
                raise TryAgain(trouble) from error
            self._answer(operation, {}, trouble)
            return None

    async def _create_over_http(self, operation: Operation) -> None:
        body = {
            "amount": {"amount_minor": 15_000, "currency": "BRL"},
            "appointment_id": operation.appointment,
            "patient_id": f"pat-{operation.key}",
            "payer": {"name": "Ana Souza", "email": operation.email, "phone": operation.phone},
            "metadata": {"caller_key": operation.key},
        }
        status, response = await self._over_http(operation, "/v1/payments", body)
        if status == 201:
            self._answer(operation, {"payments": response["payment"]["payment_id"]})
        else:
            self._answer(operation, {}, f"{status} {response.get('reason')}")

    async def _create_over_grpc(self, operation: Operation) -> None:
        request = payments_pb2.CreatePaymentRequest(
            idempotency_key=operation.key,
            amount=common.Money(amount_minor=15_000, currency="BRL"),
            appointment_id=operation.appointment,
            patient_id=f"pat-{operation.key}",
            payer=payments_pb2.Payer(name="Ana Souza", email=operation.email, phone=operation.phone),
            metadata={"caller_key": operation.key},
        )
        response = await self._over_grpc(operation, self._stubs["payments"].CreatePayment, request)
        if response is not None:
            self._answer(operation, {"payments": response.payment.payment_id})

    async def _decide(self, operation: Operation) -> None:
        """Pay or decline on the provider's page; a second click on what is over is refused, which ends it too."""
        url = f"{self._system.sandbox}/_sandbox/payments/{operation.ids['payments']}/{operation.decision}"
        async with self._http.post(url) as answer:
            operation.decided = operation.decided or answer.status in {200, 400}

    async def _appointment(self, operation: Operation) -> None:
        far = operation.due_at > time.time() + 3600
        due = datetime.fromtimestamp(operation.due_at, UTC).isoformat() if operation.due_at else None
        timing = {"before": "86400s"} if far else {"send_time": due}
        body = {
            "patient": {"name": "Ana Souza", "email": operation.email, "phone": operation.phone},
            "appointment": {"professional": "Dra. Beatriz Lima", "clinic": "TopSmile", "start_time": FAR.isoformat()},
            **(timing if operation.kind == "reminder" else {}),
        }
        status, response = await self._over_http(
            operation, f"/v1/appointments/{operation.appointment}/{operation.kind}", body
        )
        ids = {leg: response[leg][f"{leg}_id"] for leg in ("email", "sms") if f"{leg}_id" in response.get(leg, {})}
        if status == 207:
            operation.tell(ids)
            raise TryAgain("HTTP 207")
        self._answer(operation, ids, "" if status == 200 else f"HTTP {status} {response}")

    async def _send_code(self, operation: Operation) -> None:
        request = sms_pb2.SendVerificationCodeRequest(
            idempotency_key=operation.key, recipient=operation.phone, code=operation.key[-6:]
        )
        response = await self._over_grpc(operation, self._stubs["sms"].SendVerificationCode, request)
        if response is not None:
            self._answer(operation, {"sms": response.sms.sms_id})

    async def _send_text(self, operation: Operation) -> None:
        request = sms_pb2.SendSmsRequest(
            idempotency_key=operation.key, recipient=operation.phone, body="Sua moldeira chegou."
        )
        if operation.due_at:
            request.send_time.FromMilliseconds(int(operation.due_at * 1000))
        response = await self._over_grpc(operation, self._stubs["sms"].SendSms, request)
        if response is not None:
            self._answer(operation, {"sms": response.sms.sms_id})


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The contract's word for what was wrong; empty where the answer carries none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""


@asynccontextmanager
async def load(system: System, journal: Journal, seed: int) -> AsyncIterator[Load]:
    limits = aiohttp.TCPConnector(limit=200)
    async with (
        aiohttp.ClientSession(connector=limits, timeout=aiohttp.ClientTimeout(PATIENCE)) as http,
        grpc.aio.insecure_channel(system.target("payments"), options=OPTIONS) as payments,
        grpc.aio.insecure_channel(system.target("sms"), options=OPTIONS) as sms,
    ):
        stubs = {"payments": payments_pb2_grpc.PaymentServiceStub(payments), "sms": sms_pb2_grpc.SmsServiceStub(sms)}
        yield Load(system, journal, http, stubs, seed)
