"""From a payment's change to its notices: by the table, once for each fact, whatever is repeated or interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from gateway import inbox
from gateway.fanout import notices
from gateway.watcher import Watcher
from services.chassis.database.transactions import rows
from services.chassis.errors import InvalidRequest, Unavailable, Violation
from tests.fakes.gateway import RunningGateway, running_gateway, until
from tests.fakes.payments_service import Payments, payments_service
from tests.fakes.sandbox_bench import Bench
from topsmile.common.v1 import common_pb2 as common
from topsmile.payments.v1 import payments_pb2 as pb

SUCCEEDED, PROCESSING, AWAITING = (
    pb.PAYMENT_STATUS_SUCCEEDED,
    pb.PAYMENT_STATUS_PROCESSING,
    pb.PAYMENT_STATUS_AWAITING_METHOD,
)


def payment(number: int = 1, status: Any = SUCCEEDED, **changes: Any) -> pb.Payment:
    fields = {
        "payment_id": f"pay_{number}",
        "status": status,
        "amount": common.Money(amount_minor=15000, currency="BRL"),
        "amount_captured": common.Money(amount_minor=14000, currency="BRL"),
        "appointment_id": "apt_1",
        "description": "Limpeza",
        "payer": pb.Payer(name="Ana", email="ana@example.com", phone="+5511912345678"),
        "method": common.PAYMENT_METHOD_PIX,
    }
    return pb.Payment(**(fields | changes))


def change(before: Any = PROCESSING, **changes: Any) -> pb.PaymentChange:
    return pb.PaymentChange(payment=payment(**changes), previous_status=before)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(f"sqlite:///{tmp_path}/gateway.db") as built:
        yield built


def test_a_success_tells_by_mail_and_by_text() -> None:
    mail, text = notices(change())
    assert (mail.queue, text.queue) == ("email", "sms")
    assert mail.key == text.key == "notice:pay_1:SUCCEEDED"
    for notice in (cast("Any", mail.request), cast("Any", text.request)):
        assert notice.kind == 1
        assert (notice.payment.amount.amount_minor, notice.payment.amount.currency) == (14000, "BRL")
        assert notice.payment.method == common.PAYMENT_METHOD_PIX


@pytest.mark.parametrize(
    "silent",
    [
        change(before=SUCCEEDED),  # a refund
        change(status=PROCESSING, before=AWAITING),
        change(status=AWAITING, before=PROCESSING),  # a declined try
        change(status=pb.PAYMENT_STATUS_FAILED),
        change(payer=pb.Payer(name="Ana")),
    ],
)
def test_nothing_else_tells_anybody(silent: pb.PaymentChange) -> None:
    assert list(notices(silent)) == []


@pytest.mark.parametrize("kept", ["email", "phone"])
def test_nobody_is_told_where_there_is_no_address(kept: str) -> None:
    payer = pb.Payer()
    setattr(payer, kept, "x")
    (only,) = notices(change(payer=payer))
    assert only.queue == {"email": "email", "phone": "sms"}[kept]


@pytest.mark.parametrize(
    "method",
    [
        common.PAYMENT_METHOD_OTHER,
        common.PAYMENT_METHOD_AUTOMATIC,
        common.PAYMENT_METHOD_UNSPECIFIED,
        cast("common.PaymentMethod.ValueType", 99),
    ],
)
def test_notice_of_a_method_without_a_name_leaves_the_method_out(method: common.PaymentMethod.ValueType) -> None:
    for notice in notices(change(method=method)):
        summary = cast("Any", notice.request).payment
        assert not summary.HasField("method")


async def test_a_success_is_told_once_by_each(database_url: str) -> None:
    async with running_gateway(database_url) as gateway:
        gateway.payments.change(payment(status=PROCESSING), AWAITING)
        gateway.payments.change(payment(), PROCESSING)
        gateway.payments.change(payment(), PROCESSING)  # the same fact, learnt by another way
        gateway.payments.change(payment(status=AWAITING), PROCESSING)
        gateway.payments.change(payment(2), PROCESSING)

        await until(lambda: len(gateway.email.kept.requests) == len(gateway.sms.kept.requests) == 2)
        assert set(gateway.email.kept.requests) == {"notice:pay_1:SUCCEEDED", "notice:pay_2:SUCCEEDED"}
        assert gateway.email.calls == gateway.sms.calls == {"SendPaymentNoticeRequest": 2}

        async def settled() -> bool:
            return await gateway.database.read(inbox.cursor_of, "payments") == "5"

        await until(settled)


async def test_the_cursor_goes_on_where_it_was_after_payments_was_away(gateway: RunningGateway) -> None:
    gateway.payments.change(payment(1), PROCESSING)
    await until(lambda: len(gateway.email.kept.requests) == 1)
    await gateway.payments.stop()
    gateway.payments.change(payment(2), PROCESSING)
    await gateway.payments.start()

    await until(lambda: len(gateway.email.kept.requests) == 2)
    assert gateway.payments.watches[-1] == "1"
    assert gateway.email.calls.total() == 2


async def test_a_cursor_that_is_too_old_starts_over_and_tells_nothing_twice(gateway: RunningGateway) -> None:
    gateway.payments.change(payment(1), PROCESSING)
    await until(lambda: len(gateway.email.kept.requests) == 1)
    await gateway.payments.stop()
    for number in (2, 3):
        gateway.payments.change(payment(number), PROCESSING)
    gateway.payments.forgotten = 2
    await gateway.payments.start()

    await until(lambda: "notice:pay_3:SUCCEEDED" in gateway.email.kept.requests)
    assert gateway.payments.watches[-1] == ""
    assert gateway.email.calls.total() == 2


async def test_a_restored_payments_database_loses_no_receipt_and_sends_none_twice(
    database_url: str, tmp_path: Path, bench: Bench
) -> None:
    before = restarts("CURSOR_UNKNOWN")
    gateway_url = f"sqlite:///{tmp_path}/gateway.db"
    async with payments_service(database_url, bench.url) as payments:
        async with running_gateway(gateway_url, payments_target=payments.target) as gateway:
            kept = await paid(payments, bench, "kept")
            await until(lambda: len(gateway.email.kept.requests) == 1)
            backup = await payments.database.run(copied)
            lost = await paid(payments, bench, "lost")
            await until(lambda: set(gateway.email.kept.requests) == {receipt(kept), receipt(lost)})
        await payments.database.run(restored, backup)
        # Changes past the old cursor's number, receipts among them, before the gateway asks again.
        new = [await paid(payments, bench, f"new-{n}") for n in range(3)]
        async with running_gateway(gateway_url, payments_target=payments.target) as gateway:
            await until(lambda: set(gateway.email.kept.requests) == {receipt(each) for each in new})
            await until(lambda: set(gateway.sms.kept.requests) == {receipt(each) for each in new})
            later = await paid(payments, bench, "later")
            await until(lambda: receipt(later) in gateway.email.kept.requests)

            assert gateway.email.calls.total() == gateway.sms.calls.total() == 4
            assert gateway.watcher.details() == {"state": "FOLLOWING", "reason": None, "started_over": "CURSOR_UNKNOWN"}
    assert restarts("CURSOR_UNKNOWN") == before + 1


def restarts(reason: str) -> float:
    return REGISTRY.get_sample_value("topsmile_watch_restarts_total", {"reason": reason}) or 0.0


def receipt(payment_id: str) -> str:
    return f"notice:{payment_id}:SUCCEEDED"


async def paid(payments: Payments, bench: Bench, name: str) -> str:
    payment = await payments.create(name, appointment_id=name)
    await bench.ask("POST", f"/_sandbox/payments/{payment.payment_id}/pay")
    page = (await bench.stripe("GET", "/v1/events", type="payment_intent.succeeded", limit=1)).json
    assert await payments.apply(page["data"][0]) == ["APPLIED"]
    return payment.payment_id


TABLES = ("payment", "payment_change", "change_counter", "stripe_event", "job")


async def copied() -> dict[str, list[dict[str, Any]]]:
    return {table: [dict(row) for row in await rows(f"SELECT * FROM {table}")] for table in TABLES}


async def restored(backup: dict[str, list[dict[str, Any]]]) -> None:
    for table in TABLES:
        await rows(f"DELETE FROM {table}")
        for row in backup[table]:
            names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
            await rows(f"INSERT INTO {table} ({names}) VALUES ({values})", **row)


@pytest.mark.parametrize("cursor", ["c7", "99", "c99.0", "x\n"])
async def test_a_cursor_that_payments_refuses_for_its_form_starts_over(
    database_url: str, tmp_path: Path, bench: Bench, cursor: str
) -> None:
    gateway_url = f"sqlite:///{tmp_path}/gateway.db"
    async with payments_service(database_url, bench.url) as payments:
        payment_id = await paid(payments, bench, "one")
        async with running_gateway(gateway_url, payments_target=payments.target, working=False) as gateway:
            await gateway.database.run(inbox.advance, "payments", "", cursor)
        async with running_gateway(gateway_url, payments_target=payments.target) as gateway:
            await until(lambda: receipt(payment_id) in gateway.email.kept.requests)


@pytest.mark.parametrize("caller", ["clinic-a", "clinic/b", "local"])
async def test_a_notice_is_asked_for_in_the_name_of_the_payments_caller(gateway: RunningGateway, caller: str) -> None:
    gateway.payments.change(payment(caller=caller), PROCESSING)
    await until(lambda: len(gateway.email.kept.requests) == len(gateway.sms.kept.requests) == 1)

    assert gateway.email.callers == gateway.sms.callers == {caller}


async def test_a_restarted_gateway_asks_for_notices_in_the_callers_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gateway.db"
    async with running_gateway(url) as gateway:
        gateway.email.fail_with = Unavailable("not now")
        gateway.payments.change(payment(caller="clinic-a"), PROCESSING)
        await until(lambda: gateway.email.calls.total() > 0)
    async with running_gateway(url) as gateway:
        await until(lambda: len(gateway.email.kept.requests) == 1)

        assert gateway.email.callers == {"clinic-a"}


async def test_two_watchers_of_one_database_tell_once(gateway: RunningGateway) -> None:
    second = Watcher(gateway.database, gateway.clients, lambda _queue: None)
    running = asyncio.create_task(second.run())
    await until(lambda: len(gateway.payments.watches) == 2)
    for number in range(20):
        gateway.payments.change(payment(number), PROCESSING)
    await until(lambda: len(gateway.email.kept.requests) == 20)
    second.stop()
    await running
    assert gateway.email.calls.total() == 20


async def test_a_refused_notice_is_an_answer_and_no_dead_letter(gateway: RunningGateway) -> None:
    gateway.sms.fail_with = InvalidRequest([Violation("recipient", "is a landline")])
    gateway.payments.change(payment(), PROCESSING)
    await until(lambda: gateway.sms.calls.total() == 1)

    async def done() -> bool:
        return {job["state"] for job in await gateway.jobs()} == {"done"}

    await until(done)


async def test_a_notice_waits_while_its_service_is_down(gateway: RunningGateway) -> None:
    await gateway.email.stop()
    gateway.payments.change(payment(), PROCESSING)
    await until(lambda: len(gateway.sms.kept.requests) == 1)
    await gateway.email.start()
    await until(lambda: len(gateway.email.kept.requests) == 1)
