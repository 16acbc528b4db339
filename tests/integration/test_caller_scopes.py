"""What a caller may do, told to the services themselves and through the gateway, which has a token of its own."""

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
from tests.fakes.gateway import House, house, until
from tests.fakes.payments_service import Payments, payment_request, payments_service, refusal
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb


def entry(name: str, scopes: str, token: str = "") -> str:
    """The caller's token is its name, unless another is given."""
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
async def gateway(guarded: Payments, tmp_path: Path) -> AsyncIterator[House]:
    async with house(
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


@pytest.mark.parametrize(("token", "told"), [("reader", False), ("clinic", True)])
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


def references(payment: pb.Payment) -> list[pb.GetPaymentRequest]:
    return [
        pb.GetPaymentRequest(payment_id=payment.payment_id),
        pb.GetPaymentRequest(stripe_payment_intent_id=payment.stripe_payment_intent_id),
    ]


@pytest.mark.parametrize(
    ("token", "found"), [("clinic", True), ("reader", True), ("auditor", True), ("other", False), ("gateway", False)]
)
async def test_a_payment_is_found_by_its_caller_and_by_admins_only(guarded: Payments, token: str, found: bool) -> None:
    payment = await created(guarded)

    for reference in references(payment):
        call = guarded.stub.GetPayment(reference, metadata=bearer(token))
        if found:
            assert (await call).payment.caller == "clinic"
        else:
            assert (await refusal(call)).reason == "NOT_FOUND"


# Nobody is an admin through a gateway whose own token is none.
@pytest.mark.parametrize(("token", "found"), [("clinic", 200), ("reader", 200), ("auditor", 404), ("other", 404)])
async def test_a_payment_is_found_over_http_by_its_caller_only(
    guarded: Payments, gateway: House, token: str, found: int
) -> None:
    _, made = await ask(gateway, "POST", "/v1/payments", "clinic", PAYMENT)
    payment = made["payment"]

    for reference in (payment["payment_id"], payment["stripe_payment_intent_id"]):
        code, answer = await ask(gateway, "GET", f"/v1/payments/{reference}", token)
        assert code == found
        assert found == 200 or answer["reason"] == "NOT_FOUND"


async def test_the_appointment_and_the_key_of_one_caller_are_not_those_of_another(
    guarded: Payments, gateway: House
) -> None:
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
async def test_a_watch_tells_the_payments_of_its_caller_and_everybodys_to_admins_and_the_gateway(
    guarded: Payments, token: str, seen: list[str]
) -> None:
    watch = guarded.stub.WatchPayments(pb.WatchPaymentsRequest(), metadata=bearer(token))
    await created(guarded)
    await created(guarded, "other")
    told = [await heard(watch) for _ in seen]
    again = guarded.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=told[1].cursor), metadata=bearer(token))
    await created(guarded, "other", "last", appointment_id="last")
    await created(guarded, "clinic", "last", appointment_id="last")

    assert [each.change.payment.caller for each in told] == seen
    assert [each.change.payment.caller for each in told[2:]] == [
        (await heard(again)).change.payment.caller for _ in told[2:]
    ]
    assert (await heard(again)).change.payment.appointment_id == "last"


async def heard(watch: Any) -> pb.WatchPaymentsResponse:
    async with asyncio.timeout(10):
        response = await watch.read()
    assert isinstance(response, pb.WatchPaymentsResponse)
    return response


async def test_a_quiet_callers_cursor_stays_good_while_others_are_busy(guarded: Payments) -> None:
    await created(guarded)
    cursor = ""
    for n in range(3):
        await created(guarded, "other", f"busy-{n}", appointment_id=f"busy-{n}")
    guarded.database.offset_ms = 31 * 86_400_000
    watch = guarded.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor), metadata=bearer("clinic"))
    assert [(await heard(watch)).change.payment.caller for _ in range(2)] == ["clinic"] * 2
    await guarded.database.run(change_log.purge)
    await created(guarded, "clinic", "late", appointment_id="late")

    # The clinic's own last change is purged; this watch has seen all that came after it.
    assert (await heard(watch)).change.payment.appointment_id == "late"


@pytest.mark.parametrize("kind", ["paid", "paid by another way", "paid late"])
async def test_a_receipt_belongs_to_the_payments_caller(
    guarded: Payments, tmp_path: Path, bench: Bench, kind: str
) -> None:
    async with house(
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
