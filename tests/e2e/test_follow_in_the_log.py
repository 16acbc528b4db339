"""What an operator finds in the logs of all processes together, by one correlation id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.whole import Whole, clinic, eventually, whole
from tests.postgres_cluster import Cluster
from topsmile.sms.v1 import sms_pb2, sms_pb2_grpc

ADDRESS = {
    "line1": "Rua das Flores, 12",
    "city": "São Paulo",
    "state": "SP",
    "postal_code": "01310-100",
}
PAYER = {"name": "Ana Souza", "email": "ana@example.com", "phone": "+5511912345678", "tax_id": "390.533.447-05"}


@pytest.fixture(params=["sqlite", "postgres"])
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Whole]:
    databases = {}
    if request.param == "postgres":
        server: Cluster = request.getfixturevalue("postgres")
        databases = {f"{name}_DATABASE_URL": server.database() for name in ("PAYMENTS", "EMAIL", "SMS", "GATEWAY")}
    with whole(tmp_path, databases) as running:
        yield running


def lines(system: Whole, **wanted: object) -> list[dict[str, Any]]:
    """Return the lines of all processes in which these words stand."""
    found = []
    for process in system.running.values():
        for line in process.lines:
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            if wanted.items() <= fields.items():
                found.append(fields)
    return found


async def test_payment_is_followed_from_its_webhook_to_its_texts_by_one_correlation_id(system: Whole) -> None:
    orders: list[dict[str, Any]] = [
        {"methods": ["PAYMENT_METHOD_PIX"], "payer": PAYER},
        {"methods": ["PAYMENT_METHOD_BOLETO"], "payer": {**PAYER, "address": ADDRESS}},
        {"payer": PAYER},
        {"methods": ["PAYMENT_METHOD_PIX"], "payer": {**PAYER, "phone": "+5521987654321", "email": "rui@example.com"}},
    ]
    for n, order in enumerate(orders):
        body = {"amount": {"amount_minor": 1_000 + n, "currency": "BRL"}, "appointment_id": f"a{n}", "patient_id": "p"}
        status, answer = await system.ask("POST", "/v1/payments", {**body, **order}, key=f"k{n}")
        assert status < 300, answer
        await follow(system, answer["payment"]["payment_id"])
    everything = "".join(line for process in system.running.values() for line in process.lines)
    for word in ("ana@example.com", "912345678", "Rua das Flores", "390.533", "Ana Souza"):
        assert word not in everything


async def follow(system: Whole, payment_id: str) -> None:
    async def queued() -> list[dict[str, Any]]:
        return lines(system, event="notice.queued", job=f"notice:{payment_id}:SUCCEEDED", queue="sms")

    async def texted() -> list[dict[str, Any]]:
        return lines(system, event="job.ran", process="sms", outcome="done", **same)

    async def mailed() -> bool:
        calls = lines(system, event="rpc", process="email", method="email.v1.EmailService/SendPaymentNotice", **same)
        return bool(calls) and bool(lines(system, event="job.ran", process="email", job=calls[0]["email_id"], **same))

    async with clinic(system) as patient:
        await patient.pay(payment_id)
    [notice] = await eventually(queued)
    same = {"correlation_id": notice["correlation_id"]}
    [text] = await eventually(texted)
    await eventually(mailed)
    assert text["job"].startswith("sms_")
    assert [line["queue"] for line in lines(system, event="notice.queued", **same)] == ["email", "sms"]
    [webhook] = lines(system, event="http", process="gateway", route="/webhooks/stripe", **same)
    assert webhook["event_id"].startswith("evt_")
    [applied] = lines(system, event="rpc", method="payments.v1.PaymentAdminService/ApplyEvents", **same)
    assert (applied["event_outcome"], applied["subject"]) == ("APPLIED", payment_id)
    assert applied["event_id"] == webhook["event_id"]
    [call] = lines(system, event="rpc", method="sms.v1.SmsService/SendPaymentNotice", **same)
    assert call["sms_id"] == text["job"]
    # The payment's own id finds the call that created it.
    assert lines(system, event="http", route="/v1/payments", payment_id=payment_id)
    assert lines(system, event="rpc", process="payments", payment_id=payment_id)
    assert lines(system, event="job.ran", process="payments", job=payment_id, outcome="done")


@pytest.mark.parametrize("count", [1, 10])
async def test_text_accepted_sent_and_delivered_takes_two_kilobytes_of_log(system: Whole, count: int) -> None:
    """Eight lines: one call, one job, and two for each of three callbacks."""
    before = {name: len(process.lines) for name, process in system.running.items()}
    async with grpc.aio.insecure_channel(system.settings["SMS_LISTEN"]) as channel:
        for n in range(count):
            request = sms_pb2.SendSmsRequest(idempotency_key=f"k{n}", recipient=f"+551191234{n:04}", body="Olá")
            await sms_pb2_grpc.SmsServiceStub(channel).SendSms(request)

    def rpc_lines() -> list[str]:
        return [line for name, process in system.running.items() for line in process.lines[before[name] :]]

    async def complete() -> bool:
        return len(rpc_lines()) >= 8 * count

    await eventually(complete)
    await asyncio.sleep(0.5)
    assert sum(len(line.encode()) for line in rpc_lines()) / count < 2_100
