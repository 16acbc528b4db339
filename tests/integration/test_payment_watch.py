"""Watch payments: every change, in order, from any cursor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.chassis.database.transactions import rows
from services.chassis.errors import InvalidRequest, NotFound, OutOfRange
from services.payments.change_log import bounds, purge
from tests.fakes.payments_service import Payments, payment_request, payments_service, refusal, status
from tests.fakes.sandbox_bench import Bench
from topsmile.payments.v1 import payments_pb2 as pb

DAY = 86_400_000


@pytest.fixture
async def payments(database_url: str, bench: Bench) -> AsyncIterator[Payments]:
    async with payments_service(database_url, bench.url, stripe_per_second=1000.0) as service:
        yield service


async def test_change_holds_the_previous_status_and_no_secret(payments: Payments) -> None:
    payment = await payments.create()
    first, second = await payments.changes(2)

    assert first.change.previous_status == pb.PAYMENT_STATUS_UNSPECIFIED
    assert status(first.change.payment) == "CREATING"
    assert second.change.previous_status == pb.PAYMENT_STATUS_CREATING
    assert second.change.change_time == second.change.payment.update_time
    payment.client_secret = ""
    assert second.change.payment == payment


async def test_watch_from_a_cursor_continues_with_later_changes(payments: Payments) -> None:
    await payments.create()
    _, second = await payments.changes(2)
    later = asyncio.create_task(payments.changes(2, second.cursor))
    await asyncio.sleep(0.1)
    await payments.create("key-2", appointment_id="apt-2")
    third, _ = await later

    assert third.change.payment.appointment_id == "apt-2"
    assert [each.cursor for each in await payments.changes(4)][3:] == [(await payments.changes(4))[3].cursor]


async def test_concurrent_changes_are_each_streamed_once_in_order(payments: Payments) -> None:
    watching = asyncio.create_task(payments.changes(60))
    await asyncio.gather(*(payments.create(f"key-{n}", appointment_id=f"apt-{n}") for n in range(20)))
    for n in range(20, 30):
        await payments.create(f"key-{n}", appointment_id=f"apt-{n}")
    seen = await watching

    assert len({each.cursor for each in seen}) == 60
    assert len({each.change.payment.payment_id for each in seen}) == 30
    assert [each.cursor for each in seen] == [each.cursor for each in await payments.changes(60)]


async def test_change_is_streamed_by_another_replica(database_url: str, payments: Payments, bench: Bench) -> None:
    if database_url.startswith("sqlite"):
        return  # one process per file
    async with payments_service(database_url, bench.url) as replica:
        watching = asyncio.create_task(replica.changes(2))
        await payments.create()

        assert len(await watching) == 2


@pytest.mark.parametrize("cursor", ["x", "c", "c-1", "c1", "1", "c٣.x", "c0.x", "c1.\0", "c1234567890123456789.x"])
async def test_malformed_cursor_is_refused(payments: Payments, cursor: str) -> None:
    watch = payments.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=cursor))

    assert isinstance(await refusal(watch.read()), InvalidRequest)


@pytest.mark.parametrize("restored_to", [0, 1, 3])
async def test_cursor_ahead_of_a_restored_database_is_out_of_range(payments: Payments, restored_to: int) -> None:
    for n in range(3):
        await payments.create(f"key-{n}", appointment_id=f"apt-{n}")
    last = (await payments.changes(6))[-1]
    watching = payments.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=last.cursor))
    await payments.database.run(restore, restored_to)
    # What is written since passes the old cursor's number.
    for n in range(3, 7):
        await payments.create(f"key-{n}", appointment_id=f"apt-{n}")

    for watch in (watching, payments.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=last.cursor))):
        error = await refusal(watch.read())
        assert isinstance(error, OutOfRange)
        assert error.reason == "CURSOR_UNKNOWN"
    assert len(await payments.changes(restored_to + 8)) == restored_to + 8


async def test_cursor_beyond_a_restored_database_is_out_of_range_before_new_changes(payments: Payments) -> None:
    await payments.create()
    _, last = await payments.changes(2)
    await payments.database.run(restore, 1)
    watch = payments.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=last.cursor))

    assert (await refusal(watch.read())).reason == "CURSOR_UNKNOWN"


async def restore(number: int) -> None:
    """Leave the log as it was after that change."""
    await rows("DELETE FROM payment_change WHERE number > :number", number=number)
    await rows("UPDATE change_counter SET number = :number WHERE id = 1", number=number)
    await rows("DELETE FROM payment WHERE appointment_id > 'apt-' AND :number < 2", number=number)


async def test_newest_cursor_stays_valid_after_a_purge(payments: Payments) -> None:
    await payments.create()
    _, last = await payments.changes(2)
    payments.database.offset_ms = 40 * DAY
    await payments.database.run(purge)
    assert await payments.database.read(bounds) == (2, 1)
    later = asyncio.create_task(payments.changes(1, last.cursor))
    payments.database.offset_ms = 0
    await payments.create("key-2", appointment_id="apt-2")

    assert (await later)[0].change.payment.appointment_id == "apt-2"


async def test_cursor_older_than_the_log_is_out_of_range(payments: Payments) -> None:
    await payments.create()
    first, _ = await payments.changes(2)
    payments.database.offset_ms = 31 * DAY
    await payments.create("key-2", appointment_id="apt-2")
    await payments.database.run(purge)
    assert await payments.database.read(bounds) == (4, 2)
    watch = payments.stub.WatchPayments(pb.WatchPaymentsRequest(cursor=first.cursor))
    error = await refusal(watch.read())

    assert isinstance(error, OutOfRange)
    assert error.reason == "CURSOR_TOO_OLD"
    assert (await payments.changes(1))[0].change.payment.appointment_id == "apt-2"


async def test_drain_ends_the_watches(payments: Payments) -> None:
    watch = payments.stub.WatchPayments(pb.WatchPaymentsRequest())
    reading = asyncio.ensure_future(watch.read())
    await asyncio.sleep(0.1)
    changes = payments.parts.workers[1]
    changes.drain()

    assert (await refusal(reading)).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("by", ["payment_id", "appointment_id"])
async def test_watch_with_a_filter_streams_only_its_changes(payments: Payments, by: str) -> None:
    made = [await payments.create(f"key-{n}", appointment_id=f"apt-{n}") for n in range(3)]
    request = pb.WatchPaymentsRequest(**{by: getattr(made[1], by)})
    watch = payments.stub.WatchPayments(request)
    streamed = [await next_of(watch) for _ in range(2)]
    later = await payments.create("key-4", appointment_id="apt-1", allow_another=True)
    if by == "appointment_id":
        streamed.append(await next_of(watch))

    expected = [made[1].payment_id] * 2 + [later.payment_id] * (by == "appointment_id")
    assert [each.change.payment.payment_id for each in streamed] == expected
    watch.cancel()
    resumed = payments.stub.WatchPayments(
        pb.WatchPaymentsRequest(**{by: getattr(made[1], by)}, cursor=streamed[0].cursor)
    )
    assert await next_of(resumed) == streamed[1]
    resumed.cancel()


@pytest.mark.parametrize("existing", [0, 1, 3])
async def test_watch_from_now_skips_earlier_changes(payments: Payments, existing: int) -> None:
    for n in range(existing):
        await payments.create(f"key-{n}", appointment_id=f"apt-{n}")
    watch = payments.stub.WatchPayments(pb.WatchPaymentsRequest(from_now=True))
    first = await next_of(watch)
    new = await payments.create("key-new", appointment_id="apt-new")

    assert not first.HasField("change")
    assert (first.cursor == "") == (existing == 0)
    assert (await next_of(watch)).change.payment.payment_id == new.payment_id
    watch.cancel()
    assert [each.change.payment.payment_id for each in await payments.changes(2, first.cursor)] == [new.payment_id] * 2


@pytest.mark.parametrize("source", ["CreatePayment", "GetPayment", "RefreshPayment"])
async def test_watch_cursor_of_a_response_streams_the_next_change(
    payments: Payments, bench: Bench, source: str
) -> None:
    created: pb.CreatePaymentResponse = await payments.stub.CreatePayment(payment_request())
    payment = created.payment
    cursor = created.watch_cursor
    if source == "GetPayment":
        cursor = (await payments.stub.GetPayment(pb.GetPaymentRequest(payment_id=payment.payment_id))).watch_cursor
    elif source == "RefreshPayment":
        cursor = (await refresh(payments, payment_id=payment.payment_id)).watch_cursor
    assert (await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/decline")).status == 200
    payments.database.offset_ms = 3000
    await refresh(payments, payment_id=payment.payment_id)

    (change,) = await payments.changes(1, cursor)
    assert change.change.payment.HasField("decline")


@pytest.mark.parametrize("by", ["payment_id", "stripe_payment_intent_id"])
async def test_refresh_reads_the_payment_at_stripe(payments: Payments, bench: Bench, by: str) -> None:
    payment = await payments.create()
    assert (await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")).status == 200
    assert status(await payments.get(payment.payment_id)) != "SUCCEEDED"

    refreshed = (await refresh(payments, **{by: getattr(payment, by)})).payment
    assert status(refreshed) == "SUCCEEDED"
    assert refreshed.amount_captured == payment.amount
    assert await payments.get(payment.payment_id) == refreshed


async def test_refresh_within_two_seconds_does_not_read_again(payments: Payments, bench: Bench) -> None:
    payment = await payments.create()
    await asyncio.gather(*(refresh(payments, payment_id=payment.payment_id) for _ in range(10)))

    assert await reads(bench) == 1


@pytest.mark.parametrize("status_code", [500, 503, 403])
async def test_refresh_while_stripe_fails_is_unavailable_and_keeps_the_payment(
    payments: Payments, bench: Bench, status_code: int
) -> None:
    payment = await payments.create()
    await bench.fault(provider="stripe", kind="status", path="GET /v1/payment_intents", status=status_code, times=0)

    error = await refusal(refresh(payments, payment_id=payment.payment_id))
    assert error.code == grpc.StatusCode.UNAVAILABLE
    assert await payments.get(payment.payment_id) == payment


async def test_refresh_of_an_unknown_payment_is_not_found(payments: Payments) -> None:
    for reference in ({"payment_id": "pay_x"}, {"stripe_payment_intent_id": "pi_x"}):
        assert isinstance(await refusal(refresh(payments, **reference)), NotFound)
    error = await refusal(refresh(payments))
    assert isinstance(error, InvalidRequest)
    assert [each.field for each in error.violations] == ["reference"]


async def refresh(payments: Payments, **reference: str) -> pb.RefreshPaymentResponse:
    response: pb.RefreshPaymentResponse = await payments.stub.RefreshPayment(pb.RefreshPaymentRequest(**reference))
    return response


async def reads(bench: Bench) -> int:
    return sum(entry["method"] == "GET" for entry in await bench.ledger())


async def next_of(watch: Any) -> pb.WatchPaymentsResponse:
    async with asyncio.timeout(10):
        response: pb.WatchPaymentsResponse = await watch.read()
    return response
