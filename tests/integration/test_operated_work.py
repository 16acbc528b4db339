"""What operators' RPCs do to messages, payments and events: their owners refuse what must not be done again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.delivery import deliveries
from services.chassis.database.transactions import Database, rows
from services.chassis.queue.admin import QueueAdmin, queue_admin
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import listening
from tests.fakes.echo_service import Settings
from tests.fakes.gateway import running, running_gateway, until
from tests.fakes.payments_service import Payments, payments_service, refusal, status
from tests.fakes.sandbox_bench import Bench
from tests.integration.test_messaging import pigeons
from topsmile.common.v1 import queue_admin_pb2 as pb
from topsmile.common.v1 import queue_admin_pb2_grpc as rpc

DAY = 86_400_000
WHY = "the provider is back"


@asynccontextmanager
async def operated(admin: QueueAdmin, database: Database) -> AsyncIterator[rpc.QueueAdminServiceAsyncStub]:
    settings = Settings.model_validate({"listen": "127.0.0.1:0"})
    async with (
        listening(settings, Readiness(database), [admin.service]) as address,
        grpc.aio.insecure_channel(str(address)) as channel,
    ):
        yield rpc.QueueAdminServiceStub(channel)


async def replayed(stub: rpc.QueueAdminServiceAsyncStub, queue: str, *ids: str) -> tuple[int, dict[str, int]]:
    """Return how many were queued again, and how many were refused by reason."""
    request = pb.ReplayJobsRequest(queue=queue, jobs=pb.JobIds(job_ids=ids), reason=WHY)
    response: pb.ReplayJobsResponse = await stub.ReplayJobs(request)
    return response.changed, {each.reason: each.count for each in response.refusals}


async def bury(database: Database, ids: Sequence[str], sets: str = "") -> None:
    """Make jobs dead letters."""
    for id in ids:
        await database.run(rows, f"UPDATE job SET state = 'dead', finished_at = now_ms(){sets} WHERE id = :id", id=id)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_replayed_message_is_sent_once(database_url: str, tmp_path: Path, count: int) -> None:
    async with pigeons(database_url, tmp_path) as loft, operated(loft.channel.admin, loft.database) as stub:
        ids = [(await loft.send(f"k-{number}")).message_id for number in range(count)]
        await bury(loft.database, ids)
        done = await replayed(stub, "pigeons", *ids)
        again = await replayed(stub, "pigeons", *ids)
        async with running([loft.channel.worker]):
            for id in ids:
                await loft.becomes(id, "SENT")

    assert (done, again) == ((count, {}), (0, {"WRONG_STATE": count}))
    assert sorted(loft.first.taken + loft.second.taken) == sorted(ids)


@pytest.mark.parametrize(
    ("sets", "days", "reason"),
    [
        ("", 2, "EXPIRED"),
        (", payload = CAST('' AS BLOB)", 2, "EXPIRED"),
        (", payload = CAST('' AS BLOB)", 0, "CONTENT_ERASED"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_replay_of_a_message_that_must_not_be_sent_is_refused(
    database_url: str, tmp_path: Path, sets: str, days: int, reason: str
) -> None:
    async with pigeons(database_url, tmp_path) as loft, operated(loft.channel.admin, loft.database) as stub:
        id = (await loft.send()).message_id
        await bury(loft.database, [id], sets)
        loft.database.offset_ms += days * DAY
        async with running([loft.channel.worker]):
            result = await replayed(stub, "pigeons", id)

    assert result == (0, {reason: 1})
    assert loft.first.taken + loft.second.taken == []


async def test_message_says_that_an_operator_has_paused_its_queue(database_url: str, tmp_path: Path) -> None:
    async with pigeons(database_url, tmp_path) as loft, operated(loft.channel.admin, loft.database) as stub:
        await stub.PauseQueue(pb.PauseQueueRequest(queue="pigeons", reason=WHY))
        async with running([loft.channel.worker]):
            id = (await loft.send()).message_id
            waiting = (await loft.database.read(loft.channel.outbox._get, id, None)).waiting
            await stub.ResumeQueue(pb.ResumeQueueRequest(queue="pigeons", reason=WHY))
            await loft.becomes(id, "SENT")

    assert (waiting.reason, waiting.until) == ("PAUSED", None)


def event(number: int) -> bytes:
    return json.dumps({"id": f"evt_{number}", "type": "payment_intent.succeeded", "livemode": True}).encode()


async def test_replayed_event_is_delivered_unless_it_is_erased_or_deleted(database_url: str) -> None:
    async with running_gateway(database_url, working=False) as gateway:
        for number in range(3):
            await gateway.stripe(event(number))
        ids = [f"event:evt_{number}" for number in range(3)]
        await bury(gateway.database, ids)
        await gateway.database.run(rows, "UPDATE inbox SET erased = 1 WHERE event_id = 'evt_1'")
        await gateway.database.run(rows, "DELETE FROM inbox WHERE event_id = 'evt_2'")
        workers = list(deliveries(gateway.database, gateway.clients).values())
        admin = await queue_admin(gateway.database, workers, [service.breaker for service in gateway.clients.all])
        async with operated(admin, gateway.database) as stub:
            done = await replayed(stub, "payments", *ids)
            breakers = (await stub.ListBreakers(pb.ListBreakersRequest())).breakers
            async with running(workers):
                await until(lambda: bool(gateway.payments.events.applied))

    assert done == (1, {"CONTENT_ERASED": 1, "EVENT_GONE": 1})
    assert list(gateway.payments.events.applied) == ["evt_0"]
    assert [each.breaker for each in breakers] == ["email", "payments", "sms"]


@asynccontextmanager
async def operating(payments: Payments) -> AsyncIterator[rpc.QueueAdminServiceAsyncStub]:
    async with grpc.aio.insecure_channel(payments.target) as channel:
        yield rpc.QueueAdminServiceStub(channel)


async def dead_payment(payments: Payments, key: str = "key-1") -> str:
    """Open a payment that Stripe is not reached for, and give it up."""
    await refusal(payments.create(key))
    (row,) = await payments.database.read(rows, "SELECT payment_id FROM payment WHERE idempotency_key = :key", key=key)
    await bury(payments.database, [row["payment_id"]])
    return str(row["payment_id"])


async def test_discarded_payment_answers_its_key_with_discarded(database_url: str) -> None:
    async with payments_service(database_url, "http://127.0.0.1:9") as payments, operating(payments) as stub:
        payment_id = await dead_payment(payments)
        request: Any = pb.DiscardJobsRequest(queue="stripe", jobs=pb.JobIds(job_ids=[payment_id]), reason=WHY)
        changed = (await stub.DiscardJobs(request)).changed
        errors = [await refusal(payments.create("key-1")) for _ in range(3)]
        queue = (await stub.ListQueues(pb.ListQueuesRequest())).queues[0]

    assert (changed, queue.dead) == (1, 0)
    assert [error.reason for error in errors] == ["DISCARDED"] * 3


async def test_replayed_payment_is_made_once_and_paused_stripe_takes_none(payments: Payments, bench: Bench) -> None:
    async with operating(payments) as stub:
        await stub.PauseQueue(pb.PauseQueueRequest(queue="stripe", reason=WHY))
        refused = await refusal(payments.create("paused"))
        await stub.ResumeQueue(pb.ResumeQueueRequest(queue="stripe", reason=WHY))
        forced = pb.SetBreakerRequest(breaker="stripe", mode=pb.BREAKER_MODE_FORCED_OPEN, reason=WHY)
        await stub.SetBreaker(forced)
        payment_id = await dead_payment(payments)
        await stub.SetBreaker(pb.SetBreakerRequest(breaker="stripe", mode=pb.BREAKER_MODE_AUTOMATIC, reason=WHY))
        done = await replayed(stub, "stripe", payment_id)
        made = await payments.until(payment_id, "AWAITING_METHOD")
        listed = (await bench.stripe("GET", "/v1/payment_intents")).json["data"]

    assert refused.reason == "PAUSED"
    assert done == (1, {})
    assert [intent["id"] for intent in listed] == [made.stripe_payment_intent_id]
    assert status(made) == "AWAITING_METHOD"
