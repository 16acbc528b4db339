"""kill -9 of the payments service between Stripe's acceptance and its response: one charge, found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from services.chassis.database.connect import connect
from services.chassis.database.transactions import rows
from tests.fakes.payments_service import eventually, payment_request, status
from tests.fakes.sandbox_bench import Bench
from tests.processes import Process, process
from topsmile.payments.v1 import payments_pb2 as pb
from topsmile.payments.v1 import payments_pb2_grpc as rpc


@asynccontextmanager
async def stub_of(running: Process) -> AsyncIterator[rpc.PaymentServiceAsyncStub]:
    async with grpc.aio.insecure_channel(running.listening["grpc"]) as channel:
        yield rpc.PaymentServiceStub(channel)


async def charges(bench: Bench) -> list[str]:
    """The ids of all payments that there are at Stripe."""
    page = (await bench.stripe("GET", "/v1/payment_intents", limit=100)).json
    return [intent["id"] for intent in page["data"]]


async def end_leases(database_url: str) -> None:
    """Move time for the dead process's job, which nobody else may touch before its lease ends."""
    async with connect(database_url) as database:
        await database.run(rows, "UPDATE job SET due_at = now_ms() WHERE state = 'running'")


async def test_service_killed_after_stripe_accepted_finds_its_charge(database_url: str, bench: Bench) -> None:
    settings = {
        "PAYMENTS_LISTEN": "127.0.0.1:0",
        "PAYMENTS_OPERATIONS_LISTEN": "127.0.0.1:0",
        "PAYMENTS_DATABASE_URL": database_url,
        "STRIPE_SECRET_KEY": "sk_test_1",
        "STRIPE_API_BASE": bench.url,
    }
    await bench.fault(provider="stripe", kind="hang_after_accepting", path="POST /v1/payment_intents", seconds=30)
    with process("services.payments", settings) as first:
        async with stub_of(first) as stub:
            call = asyncio.ensure_future(stub.CreatePayment(payment_request()))
            await eventually(lambda: accepted(bench))
            first.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    await end_leases(database_url)
    with process("services.payments", settings) as second:
        async with stub_of(second) as stub:
            answer = await found(stub)
            (one,) = await charges(bench)
            again = await stub.CreatePayment(payment_request())

            assert answer.payment.stripe_payment_intent_id == one
            assert status(answer.payment) == "AWAITING_METHOD"
            assert again == answer
            assert second.end() == 0


async def accepted(bench: Bench) -> bool:
    return len(await charges(bench)) == 1


async def found(stub: rpc.PaymentServiceAsyncStub) -> pb.CreatePaymentResponse:
    """Repeat the call as a caller would, while the error says that it may."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await stub.CreatePayment(payment_request())
            except grpc.aio.AioRpcError as error:
                assert error.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)  # noqa: PT017 - not the end
                await asyncio.sleep(0.5)
