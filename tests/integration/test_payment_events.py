"""What Stripe's events change, over the wire, with the sandbox's own events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.chassis import job_operations
from services.chassis.errors import InvalidRequest
from tests.fakes.payments_service import Payments, event, eventually, order, payments_service, refusal, status
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

SAMPLES = Path(__file__).parents[2] / "../shared/provider-specs/stripe_event_samples.json"
DAY = 86_400_000


async def events_of(bench: Bench, kind: str = "payment_intent.*") -> list[dict[str, Any]]:
    """Stripe's events, oldest first."""
    page = (await bench.stripe("GET", "/v1/events", type=kind, limit=100)).json
    return list(reversed(page["data"]))


async def paid(payments: Payments, bench: Bench, **changes: Any) -> pb.Payment:
    payment = await payments.create(**changes)
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    return payment


async def test_a_paid_payment_succeeds_once(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench)
    created, succeeded = await events_of(bench)

    assert await payments.apply(succeeded) == ["APPLIED"]
    assert await payments.apply(succeeded, created) == ["DUPLICATE", "STALE"]
    after = await payments.get(payment.payment_id)
    assert status(after) == "SUCCEEDED"
    assert after.amount_captured.amount_minor == 15000
    assert after.paid_time.seconds == succeeded["created"]


async def test_a_boleto_paid_is_processed_and_then_succeeds(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench, methods=["PAYMENT_METHOD_BOLETO"])
    await payments.apply(*await events_of(bench))

    after = await payments.until(payment.payment_id, "SUCCEEDED")
    assert not after.HasField("boleto")
    assert not after.HasField("expires_time")
    assert after.method == common.PAYMENT_METHOD_BOLETO


async def test_a_decline_leads_back_and_is_told(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    (*_, failed) = await events_of(bench)

    assert await payments.apply(failed) == ["APPLIED"]
    await eventually(lambda: has_decline(payments, payment.payment_id))
    after = await payments.get(payment.payment_id)
    assert (status(after), after.decline.code) == ("AWAITING_METHOD", "generic_decline")
    assert after.decline.message


async def has_decline(payments: Payments, payment_id: str) -> bool:
    return (await payments.get(payment_id)).HasField("decline")


async def test_a_failure_told_after_the_success_changes_nothing(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    _, failed, succeeded = await events_of(bench)

    assert await payments.apply(succeeded, failed) == ["APPLIED", "STALE"]
    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"


async def test_a_pix_that_ran_out_has_expired(payments: Payments, bench: Bench) -> None:
    payment = await payments.create(methods=["PAYMENT_METHOD_PIX"])
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    await payments.apply(*await events_of(bench))

    assert status(await payments.until(payment.payment_id, "EXPIRED")) == "EXPIRED"
    assert (await payments.create("key-2")).payment_id != payment.payment_id


async def test_a_code_is_looked_at_when_it_runs_out_though_no_event_came(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench, methods=["PAYMENT_METHOD_PIX"])
    payments.database.offset_ms = DAY + 120_000

    assert status(await payments.until(payment.payment_id, "SUCCEEDED")) == "SUCCEEDED"


async def test_an_unpaid_code_is_looked_at_for_days_before_it_is_given_up(payments: Payments) -> None:
    payment = await payments.create(methods=["PAYMENT_METHOD_PIX"])
    for day in range(1, 6):
        payments.database.offset_ms = day * (DAY + 60_000)
        assert status(await payments.get(payment.payment_id)) == "AWAITING_CUSTOMER"
        await eventually(lambda day=day: looked(payments, day))  # type: ignore[misc]  # mypy cannot infer the lambda
    payments.database.offset_ms = 7 * DAY

    assert status(await payments.until(payment.payment_id, "EXPIRED")) == "EXPIRED"


async def looked(payments: Payments, times: int) -> bool:
    done = await payments.database.read(job_operations.listed, "stripe", "done")
    return len([job for job in done if "/look/" in job["id"]]) >= times


async def test_an_event_before_the_answer_is_not_undone_by_it(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="hang_after_accepting", path="POST /v1/payment_intents", seconds=0.8)
    creating = payments.stub.CreatePayment(order())
    await eventually(lambda: made_at_stripe(bench))
    (created,) = await events_of(bench)
    payment_id = created["data"]["object"]["metadata"]["topsmile_payment_id"]
    await bench.ask("POST", f"/_sandbox/payments/{payment_id}/pay")
    (*_, succeeded) = await events_of(bench)

    assert await payments.apply(succeeded) == ["APPLIED"]
    answer = (await creating).payment
    assert (status(answer), answer.last_attempt) == ("SUCCEEDED", pb.ATTEMPT_OUTCOME_DONE)
    assert answer.client_secret
    assert status(await payments.get(payment_id)) == "SUCCEEDED"


async def made_at_stripe(bench: Bench) -> bool:
    return len(await events_of(bench)) > 0


async def test_a_thin_event_has_its_payment_read_again(payments: Payments, bench: Bench) -> None:
    payment = await paid(payments, bench)
    thin = {
        "id": "evt_thin_1",
        "object": "v2.core.event",
        "type": "v1.payment_intent.succeeded",
        "livemode": False,
        "context": None,
        "related_object": {"id": payment.stripe_payment_intent_id, "type": "payment_intent", "url": "/v1/x"},
    }

    assert await payments.apply(thin, thin) == ["APPLIED", "DUPLICATE"]
    await payments.until(payment.payment_id, "SUCCEEDED")
    assert await payments.apply({**thin, "id": "evt_thin_2", "related_object": {"id": "pi_x"}}) == ["IGNORED_FOREIGN"]


async def test_many_unclear_events_cost_one_reading_at_a_time(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    for _ in range(5):
        await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    told = await events_of(bench, "payment_intent.payment_failed")
    assert set(await payments.apply(*told)) <= {"APPLIED", "STALE"}
    await eventually(lambda: has_decline(payments, payment.payment_id))

    reads = [e for e in await bench.ledger() if e["method"] == "GET" and e["path"].startswith("/v1/payment_intents/")]
    assert 1 <= len(reads) <= 5


async def test_what_is_not_ours_is_ignored(payments: Payments, bench: Bench) -> None:
    await paid(payments, bench)
    (*_, succeeded) = await events_of(bench)
    intent = succeeded["data"]["object"]

    def told(event_id: str, **changes: Any) -> dict[str, Any]:
        return {**succeeded, "id": event_id, "data": {"object": {**intent, **changes}}}

    foreign = [
        told("evt_a", metadata={}),
        told("evt_b", amount=1),
        told("evt_c", id="pi_another"),
        {**succeeded, "id": "evt_d", "livemode": True},
        {**succeeded, "id": "evt_e", "account": "acct_1"},
        {**succeeded, "id": "evt_f", "type": "charge.succeeded"},
    ]
    assert await payments.apply(*foreign) == ["IGNORED_FOREIGN"] * len(foreign)
    assert await payments.apply({**succeeded, "id": "evt_g"}, account="acct_1") == ["IGNORED_FOREIGN"]
    assert await payments.apply(told("evt_h", metadata={"topsmile_payment_id": "pay_x"})) == ["RETRY"]
    old = told("evt_h", metadata={"topsmile_payment_id": "pay_x"})
    assert await payments.apply(old, age=3600) == ["IGNORED_FOREIGN"]
    assert await payments.apply(succeeded) == ["APPLIED"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, {"id": "evt_1"},
        {"id": "evt_1", "livemode": False, "created": 1, "type": "payment_intent.succeeded", "data": {"object": []}},
        {"id": "evt_1", "livemode": False, "created": 1, "type": "payment_intent.succeeded", "data": None},
        {"id": "evt_1", "livemode": False, "created": 1, "type": "payment_intent.x", "data": {"object": {"id": 7}}},
    ],
)  # fmt: skip
async def test_what_cannot_be_understood_is_rejected(tmp_path: Path, body: Any) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", "http://127.0.0.1:9") as payments:
        assert await payments.apply(body) == ["REJECTED"]


async def test_too_much_at_once_is_refused_whole(tmp_path: Path) -> None:
    async with payments_service(f"sqlite:///{tmp_path}/p.db", "http://127.0.0.1:9") as payments:
        for events in ([], [event({})] * 101, [event(b"x" * (1 << 20))] * 3):
            error = await refusal(payments.admin.ApplyEvents(pb.ApplyEventsRequest(events=events)))
            assert isinstance(error, InvalidRequest)


async def test_stripes_own_samples_are_understood(payments: Payments) -> None:
    if not SAMPLES.exists():
        pytest.skip("Stripe's sample events are not here: they are not tried")
    samples = json.loads(SAMPLES.read_text())

    assert await payments.apply(*samples) == ["IGNORED_FOREIGN"] * len(samples)


async def test_stripes_own_samples_move_a_payment_of_ours(payments: Payments) -> None:
    if not SAMPLES.exists():
        pytest.skip("Stripe's sample events are not here: they are not tried")
    payment = await payments.create()
    samples = [each for each in json.loads(SAMPLES.read_text()) if each["type"].startswith("payment_intent.")]
    for sample in samples:
        ours = {"id": payment.stripe_payment_intent_id, "metadata": {"topsmile_payment_id": payment.payment_id}}
        sample["data"]["object"] |= ours
    outcomes = await payments.apply(*samples)

    assert set(outcomes) <= {"APPLIED", "STALE"}
    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"
