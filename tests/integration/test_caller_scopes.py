"""What a caller may do, told to the services themselves and through the gateway, which has a token of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.gateway import House, house
from tests.fakes.payments_service import Payments, order, payments_service, refusal
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb


def entry(name: str, scopes: str) -> str:
    """The caller's token is its name."""
    return f"{name}:{scopes}:{hashlib.sha256(name.encode()).hexdigest()}"


CALLERS = [
    entry("reader", "read"),
    entry("clinic", "read+send"),
    entry("auditor", "read+admin"),
    entry("desk", "send"),
    entry("feed", "events"),
]
SERVICE_CALLERS = ",".join([*CALLERS, entry("gateway", "read+send+events+forward")])

PAYMENT = {
    "amount": {"amount_minor": 15000, "currency": "BRL"},
    "appointment_id": "apt_1",
    "patient_id": "pat_1",
    "payer": {"name": "Ana Souza", "email": "ana@example.com"},
}


def bearer(token: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
async def guarded(database_url: str, bench: Bench) -> AsyncIterator[Payments]:
    async with payments_service(database_url, bench.url, auth_tokens=SERVICE_CALLERS) as service:
        yield service


@pytest.fixture
async def gateway(guarded: Payments, tmp_path: Path) -> AsyncIterator[House]:
    async with house(
        f"sqlite:///{tmp_path}/gateway.db",
        working=False,
        auth_tokens=",".join(CALLERS),
        gateway_token=SecretStr("gateway"),
        payments_target=guarded.target,
    ) as built:
        yield built


async def created(guarded: Payments) -> pb.Payment:
    answer: pb.CreatePaymentResponse = await guarded.stub.CreatePayment(order(), metadata=bearer("clinic"))
    return answer.payment


async def ask(gateway: House, method: str, path: str, token: str, body: object = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {token}", "idempotency-key": "k-1"}
    url, data = f"http://{gateway.address}{path}", json.dumps(body).encode() if body else None
    async with gateway.http.request(method, url, data=data, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize(("token", "told"), [("reader", False), ("auditor", False), ("clinic", True)])
async def test_a_client_secret_is_told_to_callers_that_may_send_only(guarded: Payments, token: str, told: bool) -> None:
    payment = await created(guarded)

    asked = pb.GetPaymentRequest(payment_id=payment.payment_id)
    answer: pb.GetPaymentResponse = await guarded.stub.GetPayment(asked, metadata=bearer(token))

    assert payment.client_secret
    assert answer.payment.client_secret == (payment.client_secret if told else "")


@pytest.mark.parametrize(("token", "told"), [("reader", False), ("auditor", False), ("clinic", True)])
async def test_the_gateway_s_caller_is_told_what_its_own_scopes_allow(
    guarded: Payments, gateway: House, token: str, told: bool
) -> None:
    status, made = await ask(gateway, "POST", "/v1/payments", "clinic", PAYMENT)
    code, answer = await ask(gateway, "GET", f"/v1/payments/{made['payment']['payment_id']}", token)

    assert (status, code) == (201, 200)
    assert made["payment"]["client_secret"]
    assert bool(answer["payment"].get("client_secret")) is told


@pytest.mark.parametrize(
    ("token", "refused"),
    [("feed", False), ("gateway", False), ("auditor", False), ("clinic", True), ("reader", True), ("desk", True)],
)
async def test_events_are_taken_from_callers_with_their_scope(guarded: Payments, token: str, refused: bool) -> None:
    call = guarded.admin.ApplyEvents(
        pb.ApplyEventsRequest(events=[common.ProviderEvent(event_id="evt_1")]), metadata=bearer(token)
    )

    if refused:
        assert (await refusal(call)).reason == "PERMISSION_DENIED"
    else:
        assert len((await call).results) == 1
