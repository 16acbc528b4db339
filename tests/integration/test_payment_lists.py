"""List payments over the wire: filters, pages, and the callers' own rows."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.chassis.database.connect import connect
from services.chassis.database.transactions import rows
from services.chassis.errors import InvalidRequest
from services.payments.__main__ import MIGRATIONS
from services.payments.listing import LIST
from tests.fakes.payments_service import Payments, payments_service, refusal
from tests.fakes.sandbox_bench import Bench
from topsmile.payments.v1 import payments_pb2 as pb

HOUR = 3_600_000


@pytest.fixture
async def payments(database_url: str, bench: Bench) -> AsyncIterator[Payments]:
    async with payments_service(database_url, bench.url, stripe_per_second=1000.0) as service:
        yield service


async def page(payments: Payments, **request: Any) -> pb.ListPaymentsResponse:
    response: pb.ListPaymentsResponse = await payments.stub.ListPayments(pb.ListPaymentsRequest(**request))
    return response


async def all_pages(payments: Payments, **request: Any) -> list[str]:
    found, token = [], ""
    while True:
        response = await page(payments, page_token=token, **request)
        found += [payment.payment_id for payment in response.payments]
        token = response.next_page_token
        if not token:
            return found


async def three(payments: Payments) -> list[pb.Payment]:
    """Create three payments an hour apart; the second is for another patient."""
    made = []
    for n, patient in enumerate(("pat-1", "pat-2", "pat-1")):
        payments.database.offset_ms = n * HOUR
        made.append(await payments.create(f"key-{n}", appointment_id=f"apt-{n}", patient_id=patient))
    return made


@pytest.mark.parametrize("size", [1, 2, 3, 7, 500])
async def test_list_in_pages_returns_each_payment_once_newest_first(payments: Payments, size: int) -> None:
    made = [await payments.create(f"key-{n}", appointment_id=f"apt-{n}") for n in range(7)]

    listed = await all_pages(payments, page_size=size)
    expected = sorted(made, key=lambda each: (each.create_time.ToMilliseconds(), each.payment_id), reverse=True)
    assert listed == [payment.payment_id for payment in expected]


async def test_list_of_payments_created_at_one_time_loses_none(payments: Payments) -> None:
    made = {(await payments.create(f"key-{n}", appointment_id=f"apt-{n}")).payment_id for n in range(5)}
    for payment_id in made:
        await payments.database.run(same_time, payment_id)

    listed = await all_pages(payments, page_size=2)
    assert len(listed) == 5
    assert set(listed) == made


async def same_time(payment_id: str) -> None:
    (row,) = await rows("SELECT record FROM payment WHERE payment_id = :id", id=payment_id)
    record = pb.Payment.FromString(bytes(row["record"]))
    record.create_time.FromSeconds(1_800_000_000)
    await rows(
        "UPDATE payment SET record = :record, created_at = 1800000000000 WHERE payment_id = :id",
        id=payment_id,
        record=record.SerializeToString(),
    )


async def test_list_with_a_filter_returns_only_matching_payments(payments: Payments, bench: Bench) -> None:
    first, second, third = await three(payments)
    payments.database.offset_ms += 3000
    assert (await bench.ask("POST", f"/_sandbox/payments/{third.payment_id}/pay")).status == 200
    await payments.stub.RefreshPayment(pb.RefreshPaymentRequest(payment_id=third.payment_id))

    for filter, expected in (
        ({"appointment_id": "apt-1"}, [second]),
        ({"patient_id": "pat-1"}, [third, first]),
        ({"patient_id": "pat-1", "status": pb.PAYMENT_STATUS_SUCCEEDED}, [third]),
        ({"status": pb.PAYMENT_STATUS_AWAITING_METHOD}, [second, first]),
        ({"created_from_time": second.create_time}, [third, second]),
        ({"created_before_time": second.create_time}, [first]),
        ({"created_from_time": second.create_time, "created_before_time": third.create_time}, [second]),
        ({"appointment_id": "apt-x"}, []),
    ):
        assert await all_pages(payments, page_size=1, **filter) == [each.payment_id for each in expected], filter


async def test_list_returns_payments_without_their_secret(payments: Payments) -> None:
    payment = await payments.create()
    assert payment.client_secret
    payment.ClearField("client_secret")

    assert list((await page(payments)).payments) == [payment]


@pytest.mark.parametrize(
    "change", [{"patient_id": "pat-2"}, {"status": pb.PAYMENT_STATUS_CANCELED}, {"appointment_id": "a"}]
)
async def test_page_token_of_another_filter_is_refused(payments: Payments, change: dict[str, Any]) -> None:
    await three(payments)
    token = (await page(payments, page_size=1)).next_page_token

    error = await refusal(page(payments, page_token=token, **change))
    assert isinstance(error, InvalidRequest)
    assert [each.field for each in error.violations] == ["page_token"]


@pytest.mark.parametrize(
    ("request_fields", "wrong"),
    [
        ({"page_size": 501}, ["page_size"]),
        ({"page_size": -1, "page_token": "x"}, ["page_size", "page_token"]),
        ({"page_token": base64.b64encode(b"[1,2,3]").decode()}, ["page_token"]),
        ({"status": 99, "patient_id": "\0"}, ["patient_id", "status"]),
        ({"appointment_id": "a" * 101}, ["appointment_id"]),
        ({"created_from_time": {"seconds": -(10**11)}}, ["created_from_time"]),
    ],
)
async def test_list_with_wrong_fields_names_each(
    payments: Payments, request_fields: dict[str, Any], wrong: list[str]
) -> None:
    error = await refusal(page(payments, **request_fields))
    assert isinstance(error, InvalidRequest)
    assert sorted(each.field for each in error.violations) == wrong


async def test_list_after_an_upgrade_filters_payments_of_the_older_version(database_url: str, bench: Bench) -> None:
    async with payments_service(database_url, bench.url, stripe_per_second=1000.0) as older:
        made = await three(older)
        await older.database.run(rows, "UPDATE payment SET created_at = 0, patient_id = ''")
    async with payments_service(database_url, bench.url) as upgraded:
        assert await all_pages(upgraded) == [each.payment_id for each in reversed(made)]
        assert await all_pages(upgraded, patient_id="pat-2") == [made[1].payment_id]


@pytest.mark.parametrize(
    ("columns", "index"),
    [
        (["caller"], "payment_caller_created"),
        (["caller", "patient_id"], "payment_patient"),
        (["caller", "appointment_id"], "payment_appointment"),
        (["caller", "status"], "payment_caller_created"),
        ([], "payment_created"),
    ],
)
async def test_list_query_uses_the_index_of_its_filter(tmp_path: Path, columns: list[str], index: str) -> None:
    conditions = [*(f"{column} = :{column}" for column in columns), "(created_at, payment_id) < (:at, :id)"]
    sql = f"EXPLAIN QUERY PLAN {LIST.format(conditions=' AND '.join(conditions))}"
    async with connect(f"sqlite:///{tmp_path}/p.db", MIGRATIONS) as database:
        plan = await database.read(rows, sql, at=1, id="", limit=50, **dict.fromkeys(columns, "x"))

    assert len(plan) == 1
    assert f"USING INDEX {index} (" in plan[0]["detail"]
