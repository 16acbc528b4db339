"""Payments that close without a person: scheduled readings, expiry, and one paid payment per appointment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from services.chassis.database.migrations import apply, bootstrap, stream
from services.chassis.database.postgres import Postgres
from services.chassis.database.sqlite import SQLite
from services.chassis.database.transactions import Database, maybe_one, rows
from services.chassis.errors import AlreadyExists, OutcomeUnknown
from services.chassis.queue import jobs
from services.payments import change_log, store
from services.payments.__main__ import MIGRATIONS
from tests.fakes.payments_service import Payments, eventually, payment_request, payments_service, refusal, status
from tests.fakes.sandbox_bench import Bench
from topsmile.payments.v1 import payments_pb2 as pb

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
READ = "GET /v1/payment_intents"
CREATE = "POST /v1/payment_intents"


@pytest.fixture
async def payments(database_url: str, bench: Bench) -> AsyncIterator[Payments]:
    async with payments_service(database_url, bench.url, stripe_per_second=1000.0) as service:
        yield service


async def pay(bench: Bench, payment: pb.Payment) -> None:
    assert (await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")).status == 200


async def cancel(bench: Bench, payment: pb.Payment) -> None:
    await bench.stripe("POST", f"/v1/payment_intents/{payment.stripe_payment_intent_id}/cancel")


async def at_stripe(bench: Bench, payment: pb.Payment) -> str:
    intent = (await bench.stripe("GET", f"/v1/payment_intents/{payment.stripe_payment_intent_id}")).json
    return str(intent["status"])


async def events(bench: Bench, kind: str = "payment_intent.succeeded") -> list[Any]:
    page = (await bench.stripe("GET", "/v1/events", type=kind, limit=100)).json
    return list(reversed(page["data"]))


async def reads(bench: Bench) -> int:
    made = [each for each in await bench.ledger() if each["method"] == "GET"]
    return len([each for each in made if each["path"].startswith("/v1/payment_intents/pi_")])


async def pass_time(payments: Payments, milliseconds: int) -> None:
    """Let it pass in the steps in which readings are due, so that each finds the time at which it was."""
    end = payments.database.offset_ms + milliseconds
    while payments.database.offset_ms < end:
        due_in = (await payments.database.run(next_reading))["due_in"]
        payments.database.offset_ms = min(end, payments.database.offset_ms + max(due_in, 0) + 10)
        await eventually(lambda: nothing_due(payments))


async def next_reading() -> Any:
    live = "queue = 'stripe' AND state IN ('queued', 'running')"
    return await maybe_one(f"SELECT COALESCE(MIN(due_at), now_ms() + {DAY}) - now_ms() AS due_in FROM job WHERE {live}")


async def nothing_due(payments: Payments) -> bool:
    return int((await payments.database.run(next_reading))["due_in"]) > 0


@pytest.mark.parametrize(
    ("methods", "within"),
    [([], 5 * MINUTE), ([], 3 * HOUR), (["PAYMENT_METHOD_PIX"], 5 * MINUTE), (["PAYMENT_METHOD_BOLETO"], 20 * HOUR)],
)
async def test_payment_with_lost_webhook_succeeds(
    payments: Payments, bench: Bench, methods: list[str], within: int
) -> None:
    payment = await payments.create(methods=methods)
    await pass_time(payments, within - 4 * MINUTE)
    await pay(bench, payment)
    await pass_time(payments, max(2 * within, 20 * MINUTE) if within < 6 * HOUR else 7 * HOUR)

    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"


async def test_open_payment_is_read_after_minutes_and_then_hours(payments: Payments, bench: Bench) -> None:
    await payments.create(capture=pb.CAPTURE_METHOD_MANUAL, methods=["PAYMENT_METHOD_CARD"])
    counts = []
    for passed in (HOUR, 11 * HOUR, 11 * HOUR):
        before = await reads(bench)
        await pass_time(payments, passed)
        counts.append(await reads(bench) - before)

    assert 3 <= counts[0] <= 5
    assert 3 <= counts[1] <= 5
    assert 1 <= counts[2] <= 3


async def test_scheduled_readings_continue_after_a_change_and_an_outage(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")
    await pass_time(payments, 6 * MINUTE)
    assert (await payments.get(payment.payment_id)).HasField("decline")
    await bench.fault(provider="stripe", kind="status", status=500, path=READ, times=4)
    await pass_time(payments, HOUR)
    await pay(bench, payment)
    await pass_time(payments, 3 * HOUR)

    assert status(await payments.get(payment.payment_id)) == "SUCCEEDED"


@pytest.mark.parametrize(
    ("changes", "after", "ended"),
    [
        ({}, 25 * HOUR, "CANCELED"),
        ({"methods": ["PAYMENT_METHOD_CARD"]}, 25 * HOUR, "CANCELED"),
        ({"methods": ["PAYMENT_METHOD_PIX"]}, 8 * DAY, "EXPIRED"),
        ({"methods": ["PAYMENT_METHOD_BOLETO"]}, 12 * DAY, "EXPIRED"),
    ],
)
async def test_unpaid_payment_is_canceled_at_stripe_and_frees_its_appointment(
    payments: Payments, bench: Bench, changes: dict[str, Any], after: int, ended: str
) -> None:
    payment = await payments.create(**changes)
    await pass_time(payments, 20 * HOUR)
    assert status(await payments.get(payment.payment_id)).startswith("AWAITING")
    await pass_time(payments, after - 20 * HOUR)

    assert status(await payments.get(payment.payment_id)) == ended
    assert await at_stripe(bench, payment) == "canceled"
    assert (await payments.create("key-2")).payment_id != payment.payment_id
    assert await payments.apply(*await events(bench, "payment_intent.canceled")) == ["STALE"]


@pytest.mark.parametrize("path", [READ, "POST /v1/payment_intents"])
async def test_payment_is_closed_only_after_stripe_confirms_it_unpaid(
    payments: Payments, bench: Bench, path: str
) -> None:
    payment = await payments.create()
    await bench.fault(provider="stripe", kind="reset", path=path, times=0)
    payments.database.offset_ms = 30 * HOUR
    await asyncio.sleep(1.0)
    assert status(await payments.get(payment.payment_id)) == "AWAITING_METHOD"
    await pay(bench, payment)
    await bench.ask("DELETE", "/_sandbox/faults")
    payments.database.offset_ms += 2 * HOUR

    await payments.until(payment.payment_id, "SUCCEEDED")


@pytest.mark.parametrize("passed", [25 * HOUR, 3 * DAY, 6 * DAY])
async def test_authorized_payment_is_never_canceled(payments: Payments, bench: Bench, passed: int) -> None:
    payment = await payments.create(capture=pb.CAPTURE_METHOD_MANUAL)
    await pay(bench, payment)
    await pass_time(payments, passed)

    assert status(await payments.get(payment.payment_id)) == "AUTHORIZED"
    assert await at_stripe(bench, payment) == "requires_capture"


@pytest.mark.parametrize("ended", ["SUCCEEDED", "CANCELED", "open"])
async def test_open_payment_is_read_again_before_a_second_one_is_refused(
    payments: Payments, bench: Bench, ended: str
) -> None:
    first = await payments.create()
    payments.database.offset_ms = MINUTE
    if ended != "open":
        await (pay if ended == "SUCCEEDED" else cancel)(bench, first)
    if ended == "CANCELED":
        assert (await payments.create("key-2")).payment_id != first.payment_id
        return
    error = await refusal(payments.create("key-2"))

    assert isinstance(error, AlreadyExists)
    assert error.reason == ("PAYMENT_ALREADY_PAID" if ended == "SUCCEEDED" else "PAYMENT_OPEN")
    assert error.metadata == {"payment_id": first.payment_id}
    assert "consulta" in str(error.localized)


async def test_open_payment_is_read_for_callers_at_most_once_in_30_seconds(payments: Payments, bench: Bench) -> None:
    await payments.create()
    payments.database.offset_ms = MINUTE
    refusals = await asyncio.gather(*(refusal(payments.create(f"other-{n}")) for n in range(8)))
    for n in range(3):
        refusals.append(await refusal(payments.create(f"later-{n}")))

    assert {error.reason for error in refusals} == {"PAYMENT_OPEN"}
    assert await reads(bench) == 1
    payments.database.offset_ms += 31_000
    await refusal(payments.create("last"))
    assert await reads(bench) == 2


@pytest.mark.parametrize(
    "fault", [{"kind": "reset"}, {"kind": "status", "status": 500}, {"kind": "delay", "seconds": 8}]
)
async def test_second_payment_during_an_outage_is_refused_from_the_store(
    payments: Payments, bench: Bench, fault: dict[str, Any]
) -> None:
    await payments.create()
    payments.database.offset_ms = MINUTE
    await bench.fault(provider="stripe", path=READ, times=0, **fault)
    async with asyncio.timeout(6):
        assert (await refusal(payments.create("key-2"))).reason == "PAYMENT_OPEN"
        assert (await refusal(payments.create("key-3"))).reason == "PAYMENT_OPEN"


@pytest.mark.parametrize("methods", [[], ["PAYMENT_METHOD_PIX"], ["PAYMENT_METHOD_BOLETO"]])
async def test_paid_appointment_needs_allow_another_for_a_new_payment(
    payments: Payments, bench: Bench, methods: list[str]
) -> None:
    first = await payments.create(methods=methods)
    await pay(bench, first)
    await payments.apply(*await events(bench))
    error = await refusal(payments.create("key-2"))
    second = await payments.create("key-3", allow_another=True)
    await pay(bench, second)
    await payments.apply((await events(bench))[-1])

    assert (error.reason, error.metadata) == ("PAYMENT_ALREADY_PAID", {"payment_id": first.payment_id})
    assert (await payments.create(methods=methods)).payment_id == first.payment_id
    assert list((await payments.until(second.payment_id, "SUCCEEDED")).alerts) == []


async def late_and_second(payments: Payments, bench: Bench) -> tuple[pb.Payment, pb.Payment]:
    """A boleto that was given up here and can still be paid at Stripe, and the Pix that came after it."""
    boleto = await payments.create(methods=["PAYMENT_METHOD_BOLETO"])
    await payments.database.run(give_up_here_only, boleto.payment_id)
    pix = await payments.create("key-2", methods=["PAYMENT_METHOD_PIX"])
    return boleto, pix


async def give_up_here_only(payment_id: str) -> None:
    await rows("UPDATE payment SET status = 'EXPIRED', rank = 80 WHERE payment_id = :payment_id", payment_id=payment_id)


@pytest.mark.parametrize("order_of_events", ["first the late one", "first the second one", "both at once"])
async def test_second_success_of_an_appointment_raises_one_alert(
    payments: Payments, bench: Bench, order_of_events: str
) -> None:
    before = alerts_raised()
    boleto, pix = await late_and_second(payments, bench)
    for payment in (boleto, pix):
        await pay(bench, payment)
    received = [event for event in await events(bench) if event["type"] == "payment_intent.succeeded"]
    if order_of_events == "both at once":
        await asyncio.gather(*(payments.apply(event) for event in received))
    else:
        await payments.apply(*(received if order_of_events == "first the late one" else reversed(received)))

    both = [await payments.until(payment.payment_id, "SUCCEEDED") for payment in (boleto, pix)]
    marked = [payment for payment in both if payment.alerts]
    assert [list(payment.alerts) for payment in marked] == [[pb.PAYMENT_ALERT_PAID_TWICE]]
    if order_of_events != "both at once":
        assert marked == [both[1] if order_of_events == "first the late one" else both[0]]
    await eventually(lambda: raised(before + 1))


def alerts_raised() -> float:
    return REGISTRY.get_sample_value("topsmile_payment_alerts_total", {"alert": "PAID_TWICE"}) or 0.0


async def raised(times: float) -> bool:
    return alerts_raised() == times


async def test_open_payment_of_a_paid_appointment_is_canceled(payments: Payments, bench: Bench) -> None:
    boleto, pix = await late_and_second(payments, bench)
    await pay(bench, boleto)
    await payments.apply((await events(bench))[-1])

    await payments.until(pix.payment_id, "CANCELED")
    assert await at_stripe(bench, pix) == "canceled"
    assert (await payments.get(boleto.payment_id)).alerts == []


@pytest.mark.parametrize("delay", range(0, 60, 4))
async def test_canceled_call_completes_its_payment(payments: Payments, bench: Bench, delay: int) -> None:
    """Its key answers at once, or as soon as the first call's work is done: never only after a lease."""
    call = payments.stub.CreatePayment(payment_request())
    await asyncio.sleep(delay / 1000)
    call.cancel()
    payment = await repeated(payments)

    assert status(payment) == "AWAITING_METHOD"
    assert len([each for each in await bench.ledger() if each["outcome"] == "accepted"]) == 1


@pytest.mark.parametrize("seconds", [0.06, 0.08, 0.1, 0.15, 0.2])
async def test_call_past_its_deadline_completes_its_payment(payments: Payments, bench: Bench, seconds: float) -> None:
    await bench.fault(provider="stripe", kind="delay", path=CREATE, seconds=0.3)
    with pytest.raises(grpc.aio.AioRpcError):
        await payments.stub.CreatePayment(payment_request(), timeout=seconds)

    assert status(await repeated(payments)) == "AWAITING_METHOD"


async def repeated(payments: Payments) -> pb.Payment:
    """Repeat the key for as long as the first call is at work."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await payments.create()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "fault", [{"kind": "reset", "after": True}, {"kind": "truncate"}, {"kind": "status", "status": 500}]
)
async def test_unknown_outcome_returns_a_retry_delay(payments: Payments, bench: Bench, fault: dict[str, Any]) -> None:
    await bench.fault(provider="stripe", path=CREATE, times=0, **fault)
    error = await refusal(payments.create())
    (new,) = await payments.changes(1)

    assert isinstance(error, OutcomeUnknown)
    assert error.retry_after is not None
    assert status(await payments.get(new.change.payment.payment_id)) == "UNKNOWN"


async def test_new_payment_is_shown_as_creating(payments: Payments, bench: Bench) -> None:
    await bench.fault(provider="stripe", kind="delay", path=CREATE, seconds=0.5)
    creating = asyncio.ensure_future(payments.create())
    (new,) = await payments.changes(1)
    meanwhile = await payments.get(new.change.payment.payment_id)
    payment = await creating
    streamed = [each.change.payment for each in await payments.changes(2)]

    assert [status(each) for each in (*streamed, meanwhile)] == ["CREATING", "AWAITING_METHOD", "CREATING"]
    assert payment.payment_id == meanwhile.payment_id
    assert await payments.database.read(change_log.bounds) == (2, 0)


@pytest.mark.parametrize(
    ("passed", "methods"),
    [(6 * MINUTE, []), (12 * HOUR, ["PAYMENT_METHOD_PIX"]), (23 * HOUR, ["PAYMENT_METHOD_BOLETO"]), (20 * HOUR, [])],
)
async def test_paid_time_is_the_charges_time_after_a_late_reading(
    payments: Payments, bench: Bench, passed: int, methods: list[str]
) -> None:
    payment = await payments.create(methods=methods)
    await pay(bench, payment)
    payments.database.offset_ms = passed

    after = await payments.until(payment.payment_id, "SUCCEEDED")
    assert abs(after.paid_time.seconds - (await events(bench))[-1]["created"]) <= 1


@pytest.mark.parametrize("days", [2, 10, 30])
async def test_job_of_a_new_payment_outlasts_an_outage(payments: Payments, bench: Bench, days: int) -> None:
    await bench.fault(provider="stripe", kind="reset", path=CREATE, times=0)
    await refusal(payments.create())
    (new,) = await payments.changes(1)
    payments.parts.workers[0].stop()
    payments.database.offset_ms = days * DAY
    queue = payments.parts.workers[0].queue
    for _ in range(jobs.MIN_TRIES + 1):
        job = await payments.database.run(jobs.claim_one, queue, new.change.payment.payment_id)
        assert job is not None
        assert not await payments.database.run(jobs.fail, job, HOUR / 1000, "NOT_SENT", store.on_discarded)


async def test_upgrade_with_open_payments_schedules_a_reading_of_each(database_url: str, bench: Bench) -> None:
    intents = [
        (await bench.stripe("POST", "/v1/payment_intents", amount=15000, currency="brl")).json["id"] for _ in range(3)
    ]
    path = database_url.removeprefix("sqlite:///")
    database: Database = await (Postgres.open(database_url) if path == database_url else SQLite.open(path))
    await database.run(bootstrap)
    await database.run(apply, [script for script in stream(MIGRATIONS) if script[0] < "0003"])
    for intent_id, rank in zip([*intents, "pi_done", ""], (10, 10, 20, 80, 0), strict=True):
        await database.run(stored_before, intent_id, rank)
    await database.close()
    for intent_id in intents:
        await bench.stripe("POST", f"/v1/payment_intents/{intent_id}/cancel")
    async with payments_service(database_url, bench.url) as payments:
        for intent_id in intents:
            await payments.until(f"pay_{intent_id}", "CANCELED")
        for change in await payments.changes(3):
            assert change.change.payment.caller == "local"


async def stored_before(intent_id: str, rank: int) -> None:
    record = pb.Payment(payment_id=f"pay_{intent_id}", status=pb.PAYMENT_STATUS_AWAITING_METHOD)
    record.stripe_payment_intent_id = intent_id
    record.amount.amount_minor, record.amount.currency = 15000, "BRL"
    await rows(
        "INSERT INTO payment (payment_id, caller, idempotency_key, fingerprint, appointment_id, sole, confirmed,"
        " intent_id, status, rank, record)"
        " VALUES (:id, 'local', :id, '{}', :id, 1, 0, :intent_id, 'AWAITING_METHOD', :rank, :record)",
        id=record.payment_id, intent_id=intent_id, rank=rank, record=record.SerializeToString(),
    )  # fmt: skip
