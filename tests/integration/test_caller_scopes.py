"""The scopes of callers, at the services and through the gateway, which has its own token."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.payments import change_log
from tests.fakes.gateway import RunningGateway, running_gateway, until
from tests.fakes.payments_service import Payments, payment_request, payments_service, refusal
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb


def entry(name: str, scopes: str, token: str = "") -> str:
    """Return a token entry. The token is the caller's name, unless another is given."""
    return f"{name}:{scopes}:{hashlib.sha256((token or name).encode()).hexdigest()}"


CALLERS = [
    entry("clinic", "read", token="reader"),
    entry("clinic", "read+send"),
    entry("other", "read+send"),
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
async def gateway(guarded: Payments, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(
        f"sqlite:///{tmp_path}/gateway.db",
        working=False,
        auth_tokens=",".join(CALLERS),
        gateway_token=SecretStr("gateway"),
        payments_target=guarded.target,
    ) as built:
        yield built


async def created(guarded: Payments, token: str = "clinic", key: str = "key-1", **changes: Any) -> pb.Payment:
    call = guarded.stub.CreatePayment(payment_request(key, **changes), metadata=bearer(token))
    answer: pb.CreatePaymentResponse = await call
    return answer.payment


async def ask(gateway: RunningGateway, method: str, path: str, token: str, body: object = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {token}", "idempotency-key": "k-1"}
    url, data = f"http://{gateway.address}{path}", json.dumps(body).encode() if body else None
    async with gateway.http.request(method, url, data=data, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize(("token", "returned"), [("reader", False), ("auditor", False), ("clinic", True)])
async def test_client_secret_is_returned_to_callers_with_send_only(
    guarded: Payments, token: str, returned: bool
) -> None:
    payment = await created(guarded)

    request = pb.GetPaymentRequest(payment_id=payment.payment_id)
    answer: pb.GetPaymentResponse = await guarded.stub.GetPayment(request, metadata=bearer(token))

    assert payment.client_secret
    assert answer.payment.client_secret == (payment.client_secret if returned else "")


@pytest.mark.parametrize(("token", "returned"), [("reader", False), ("clinic", True)])
async def test_gateway_caller_receives_what_its_scopes_allow(
    guarded: Payments, gateway: RunningGateway, token: str, returned: bool
) -> None:
    status, made = await ask(gateway, "POST", "/v1/payments", "clinic", PAYMENT)
    code, answer = await ask(gateway, "GET", f"/v1/payments/{made['payment']['payment_id']}", token)

    assert (status, code) == (201, 200)
    assert made["payment"]["client_secret"]
    assert bool(answer["payment"].get("client_secret")) is returned


@pytest.mark.parametrize(
    ("token", "refused"),
    [("feed", False), ("gateway", False), ("auditor", False), ("clinic", True), ("reader", True), ("desk", True)],
)
async def test_events_are_accepted_with_their_scope_only(guarded: Payments, token: str, refused: bool) -> None:
    call = guarded.admin.ApplyEvents(
        pb.ApplyEventsRequest(events=[common.ProviderEvent(event_id="evt_1")]), metadata=bearer(token)
    )

    if refused:
        assert (await refusal(call)).reason == "PERMISSION_DENIED"
    else:
        assert len((await call).results) == 1


def references(payment: pb.Payment) -> list[pb.GetPaymentRequest]:
    return [
        pb.GetPaymentRequest(payment_id=payment.payment_id),
        pb.GetPaymentRequest(stripe_payment_intent_id=payment.stripe_payment_intent_id),
    ]


@pytest.mark.parametrize(
    ("token", "found"), [("clinic", True), ("reader", True), ("auditor", True), ("other", False), ("gateway", False)]
)
async def test_payment_is_visible_to_its_caller_and_admins_only(guarded: Payments, token: str, found: bool) -> None:
    payment = await created(guarded)

    for reference in references(payment):
        call = guarded.stub.GetPayment(reference, metadata=bearer(token))
        if found:
            assert (await call).payment.caller == "clinic"
        else:
            assert (await refusal(call)).reason == "NOT_FOUND"


# The gateway's token lacks the scope admin, so no caller has it through the gateway.
@pytest.mark.parametrize(("token", "found"), [("clinic", 200), ("reader", 200), ("auditor", 404), ("other", 404)])
async def test_payment_over_http_is_visible_to_its_caller_only(
    guarded: Payments, gateway: RunningGateway, token: str, found: int
) -> None:
    _, made = await ask(gateway, "POST", "/v1/payments", "clinic", PAYMENT)
    payment = made["payment"]

    for reference in (payment["payment_id"], payment["stripe_payment_intent_id"]):
        code, answer = await ask(gateway, "GET", f"/v1/payments/{reference}", token)
        assert code == found
        assert found == 200 or answer["reason"] == "NOT_FOUND"


async def test_appointments_and_keys_of_callers_are_separate(guarded: Payments, gateway: RunningGateway) -> None:
    first = await created(guarded)
    second = await created(guarded, "other")
    codes = [(await ask(gateway, "POST", "/v1/payments", token, PAYMENT))[0] for token in ("clinic", "other", "clinic")]
    third = await refusal(created(guarded, "clinic", "key-2"))

    assert first.payment_id != second.payment_id
    assert (first.caller, second.caller) == ("clinic", "other")
    assert codes == [201, 201, 201]
    assert (third.reason, third.metadata) == ("PAYMENT_OPEN", {"payment_id": first.payment_id})


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        ("clinic", ["clinic", "clinic"]),
        ("reader", ["clinic", "clinic"]),
        ("other", ["other", "other"]),
        ("auditor", ["clinic", "clinic", "other", "other"]),
        ("gateway", ["clinic", "clinic", "other", "other"]),
    ],
)
async def test_watch_streams_the_callers_payments_and_all_to_admins_and_the_gateway(
    guarded: Payments, token: str, seen: list[str]
) -> None:
    watch = guarded.stub.WatchPayments(pb.WatchPaymentsRequest(), metadata=bearer(token))
    await created(guarded)
    await created(guarded, "other")
    changes = [await next_change(watch) for _ in seen]
    again = guarded.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=changes[1].cursor), metadata=bearer(token))
    await created(guarded, "other", "last", appointment_id="last")
    await created(guarded, "clinic", "last", appointment_id="last")

    assert [each.change.payment.caller for each in changes] == seen
    assert [each.change.payment.caller for each in changes[2:]] == [
        (await next_change(again)).change.payment.caller for _ in changes[2:]
    ]
    assert (await next_change(again)).change.payment.appointment_id == "last"


async def next_change(watch: Any) -> pb.WatchPaymentsResponse:
    async with asyncio.timeout(10):
        response = await watch.read()
    assert isinstance(response, pb.WatchPaymentsResponse)
    return response


async def test_cursor_of_an_idle_caller_stays_valid_while_others_are_busy(guarded: Payments) -> None:
    await created(guarded)
    cursor = ""
    for n in range(3):
        await created(guarded, "other", f"busy-{n}", appointment_id=f"busy-{n}")
    guarded.database.offset_ms = 31 * 86_400_000
    watch = guarded.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor), metadata=bearer("clinic"))
    assert [(await next_change(watch)).change.payment.caller for _ in range(2)] == ["clinic"] * 2
    await guarded.database.run(change_log.purge)
    await created(guarded, "clinic", "late", appointment_id="late")

    # The clinic's last change is purged. This watch has received all later changes.
    assert (await next_change(watch)).change.payment.appointment_id == "late"


@pytest.mark.parametrize("kind", ["paid", "paid by another way", "paid late"])
async def test_receipt_belongs_to_the_caller_of_the_payment(
    guarded: Payments, tmp_path: Path, bench: Bench, kind: str
) -> None:
    async with running_gateway(
        f"sqlite:///{tmp_path}/gateway.db",
        auth_tokens=",".join(CALLERS),
        gateway_token=SecretStr("gateway"),
        payments_target=guarded.target,
    ) as gateway:
        payment = await created(guarded, "other", kind)
        await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
        page = (await bench.stripe("GET", "/v1/events", type="payment_intent.succeeded", limit=1)).json
        body = json.dumps({**page["data"][0], "id": kind.replace(" ", "_")}).encode()
        assert await gateway.stripe(body) == 200

        await until(lambda: len(gateway.email.kept.requests) == len(gateway.sms.kept.requests) == 1)
        assert gateway.email.callers == gateway.sms.callers == {"other"}
