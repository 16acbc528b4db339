"""A payments service that really listens, on a database and a Stripe of the test's choice; and builders for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from services.chassis.database.transactions import Database
from services.chassis.errors import ServiceError
from services.chassis.rpc.error_details import from_rpc_error
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import listening
from services.payments.__main__ import Parts, assembled
from services.payments.settings import Settings
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb
from topsmile.payments.v1 import payments_pb2_grpc as rpc

CPF = "529.982.247-25"


@dataclass
class Payments:
    stub: rpc.PaymentServiceAsyncStub
    admin: rpc.PaymentAdminServiceAsyncStub
    parts: Parts
    target: str

    @property
    def database(self) -> Database:
        return self.parts.database

    async def create(self, key: str = "key-1", **changes: Any) -> pb.Payment:
        answer: pb.CreatePaymentResponse = await self.stub.CreatePayment(payment_request(key, **changes))
        return answer.payment

    async def get(self, payment_id: str) -> pb.Payment:
        answer: pb.GetPaymentResponse = await self.stub.GetPayment(pb.GetPaymentRequest(payment_id=payment_id))
        return answer.payment

    async def apply(self, *bodies: Any, age: float = 0.0, account: str = "") -> list[str]:
        events = [event(body, age=age, account=account) for body in bodies]
        answer: pb.ApplyEventsResponse = await self.admin.ApplyEvents(pb.ApplyEventsRequest(events=events))
        return [common.EventOutcome.Name(result.outcome).removeprefix("EVENT_OUTCOME_") for result in answer.results]

    async def until(self, payment_id: str, wanted: str) -> pb.Payment:
        async def there() -> bool:
            return status(await self.get(payment_id)) == wanted

        await eventually(there)
        return await self.get(payment_id)

    async def changes(self, count: int, cursor: str = "") -> list[pb.WatchPaymentsResponse]:
        watch = self.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor))
        async with asyncio.timeout(10):
            seen = [await watch.read() for _ in range(count)]
        watch.cancel()
        return seen  # type: ignore[return-value]  # read() gives EOF where a stream ends, which a watch does not


@asynccontextmanager
async def payments_service(
    database_url: str, stripe: str, key: str = "sk_test_1", **more: Any
) -> AsyncIterator[Payments]:
    settings = Settings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "operations_listen": "127.0.0.1:0",
            "database_url": database_url,
            "stripe_secret_key": key,
            "stripe_api_base": stripe,
            **more,
        }
    )
    async with assembled(settings) as parts:
        loops = [asyncio.create_task(worker.run()) for worker in parts.workers]
        readiness = Readiness(parts.database)
        async with (
            readiness.monitored(),
            listening(settings, readiness, parts.services) as address,
            grpc.aio.insecure_channel(str(address)) as channel,
        ):
            yield Payments(rpc.PaymentServiceStub(channel), rpc.PaymentAdminServiceStub(channel), parts, str(address))
        for worker in parts.workers:
            worker.stop()
        await asyncio.gather(*loops)


def payer(**changes: Any) -> pb.Payer:
    given = {"name": "Ana Souza", "email": "ana@example.com", "phone": "11 91234-5678", "tax_id": CPF, **changes}
    return pb.Payer(**{"address": address(), **given})


def address(**changes: str) -> pb.Address:
    given = {"line1": "Rua São João, 5", "city": "São Paulo", "state": "SP", "postal_code": "01310-100", **changes}
    return pb.Address(**given)


def payment_request(
    key: str = "key-1", *, amount: int = 15000, currency: str = "BRL", **changes: Any
) -> pb.CreatePaymentRequest:
    given = {
        "appointment_id": "apt-1",
        "patient_id": "pat-1",
        "description": "Limpeza",
        "payer": payer(),
        "metadata": {"clinic": "Clínica São José"},
        **changes,
    }
    money = common.Money(amount_minor=amount, currency=currency)
    return pb.CreatePaymentRequest(idempotency_key=key, amount=money, **given)


def event(body: Any, *, age: float = 0.0, account: str = "") -> common.ProviderEvent:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = body if isinstance(body, dict) else {}
    made = common.ProviderEvent(
        event_id=fields.get("id", "evt_1"), type=fields.get("type", ""), body=raw, account=account
    )
    made.received_time.FromSeconds(int(time.time() - age))
    return made


def status(payment: pb.Payment) -> str:
    return pb.PaymentStatus.Name(payment.status).removeprefix("PAYMENT_STATUS_")


def attempt(payment: pb.Payment) -> str:
    return pb.AttemptOutcome.Name(payment.last_attempt).removeprefix("ATTEMPT_OUTCOME_")


async def refusal(call: Awaitable[object]) -> ServiceError:
    """Return the error that the caller receives."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return from_rpc_error(failed.value)


async def eventually(condition: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - the condition changes behind a socket
            await asyncio.sleep(0.02)
