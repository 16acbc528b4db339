"""The library under the channels, with a channel of its own: routes over several providers, and retention."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from services.chassis import context
from services.chassis.database.transactions import Database, one, rows
from services.chassis.errors import (
    CredentialsRefused,
    NotSent,
    OutcomeUnknown,
    ProviderRejected,
    ProviderThrottled,
    ServiceError,
)
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.queue import jobs, operations
from services.chassis.queue.jobs import Job, Queue
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.settings import ProcessSettings
from services.messaging.channel import Channel, assemble
from services.messaging.events import Event, StatusEvent
from services.messaging.provider import Provider, Receipt
from services.messaging.record import MessageRecord
from services.messaging.requests import NewMessage
from services.messaging.sender import Policy
from services.messaging.store import RETENTION, Store
from tests.fakes.gateway import running, until
from topsmile.common.v1 import common_pb2 as common

DAY = 24 * 60 * 60 * 1000


@dataclass
class FakeProvider:
    """Takes every message unless a failure is set; `find` lists what it has taken."""

    name: str
    fail_with: ServiceError | None = None
    taken: list[str] = field(default_factory=list)
    find_calls: int = 0

    async def send(self, message_id: str) -> Receipt:
        if self.fail_with is not None:
            raise self.fail_with
        self.taken.append(message_id)
        return Receipt(f"{self.name}-{message_id}-{len(self.taken)}")

    def read_event(self, event: common.ProviderEvent) -> Event:
        return StatusEvent(self.name, event.event_id, event.body.decode(), message_id=event.query, attempt=1)

    async def find(self, message_id: str, _since: datetime) -> Sequence[Receipt]:
        self.find_calls += 1
        return [Receipt(f"{self.name}-found") for taken in self.taken if taken == message_id]


class Settings(ProcessSettings, process="PIGEONS", port=50059, operations_port=9109):
    """A channel's."""


@dataclass
class Pigeons:
    """A channel with two providers."""

    channel: Channel
    first: FakeProvider
    second: FakeProvider

    @property
    def database(self) -> Database:
        return self.channel.database

    async def send(self, key: str = "k", appointment_id: str = "") -> MessageRecord:
        message = NewMessage("custom", key, "+5511912345678", b"words", {"key": key}, appointment_id=appointment_id)
        context.caller.set("clinic")
        return await self.channel.outbox.accept(message)

    async def record(self, id: str) -> MessageRecord:
        return await self.database.read(Store("pigeons", "pig").get, id)

    async def becomes(self, id: str, status: str) -> MessageRecord:
        async def there() -> bool:
            return (await self.record(id)).status == status

        await until(there)
        return await self.record(id)

    def later(self, milliseconds: int) -> None:
        self.database.offset_ms += milliseconds
        self.channel.worker.wake()


@asynccontextmanager
async def pigeons(database_url: str, tmp_path: Path, *, first_per_second: float = 1000) -> AsyncIterator[Pigeons]:
    first, second = FakeProvider("first"), FakeProvider("second")
    providers = [
        Provider[str](
            "first",
            first.send,
            CircuitBreaker("first"),
            RateLimit(first_per_second, burst=max(1, int(first_per_second / 20))),
            first.read_event,
            first.find,
            60.0,
            1.0,
        ),
        Provider[str](
            "second",
            second.send,
            CircuitBreaker("second"),
            RateLimit(1000, burst=50),
            second.read_event,
            second.find,
            60.0,
            1.0,
        ),
    ]
    settings = Settings.model_validate({"database_url": database_url})

    def render(_record: MessageRecord, job: Job) -> str:
        return job.id

    async with assemble(settings, tmp_path / "none", Store("pigeons", "pig"), providers, Policy(render)) as channel:
        yield Pigeons(channel, first, second)


async def not_handled(_job: Job, _mark_attempted: jobs.MarkAttempted) -> jobs.Outcome:
    raise AssertionError("nothing runs these jobs")


async def not_discarded(_job: Job, _reason: str) -> None:
    raise AssertionError("nothing discards these jobs")


@pytest.fixture
async def loft(database_url: str, tmp_path: Path) -> AsyncIterator[Pigeons]:
    async with pigeons(database_url, tmp_path) as built, running([built.channel.worker]):
        yield built


async def test_message_goes_by_the_first_provider_while_it_has_room(loft: Pigeons) -> None:
    for key in "abc":
        sent = await loft.becomes((await loft.send(key)).message_id, "SENT")
        assert (sent.provider, sent.provider_message_id.split("-")[0]) == ("first", "first")

    assert (len(loft.first.taken), loft.second.taken) == (3, [])


async def test_open_breaker_moves_messages_to_the_next_provider(loft: Pigeons) -> None:
    breaker = loft.channel.providers[0].breaker
    breaker.force_open()
    away = [(await loft.becomes((await loft.send(key)).message_id, "SENT")).provider for key in "ab"]
    breaker.release()
    back = (await loft.becomes((await loft.send("c")).message_id, "SENT")).provider

    assert (away, back) == (["second", "second"], "first")


@pytest.mark.parametrize("priority", jobs.PRIORITIES)
async def test_job_added_between_the_claims_of_two_providers_stays_with_the_first(
    database: Database, priority: int
) -> None:
    """A later provider looks for what it lost itself, as long as the one before it can take more."""
    queue = Queue("pigeons", not_handled, not_discarded)
    await database.run(jobs.add, "pigeons", "lost", b"", priority=priority)
    [lost] = (await database.run(jobs.claim, queue, 1, provider="second")).jobs
    await database.run(jobs.mark_attempted, lost, 1_000)
    database.offset_ms += queue.lease_ms + 1
    first = await database.run(jobs.claim, queue, 5, provider="first")
    await database.run(jobs.add, "pigeons", "new", b"", priority=priority)
    seen = await database.read(jobs.peek, "pigeons", "second", free=first.full)
    second = await database.run(jobs.claim, queue, 5, provider="second", free=first.full)
    stalled = await database.run(jobs.claim, queue, 5, provider="second", free=first.full, stalled=True)

    assert (first.jobs, first.full, seen.due, second.jobs) == ((), False, (), ())
    assert [job.id for job in stalled.jobs] == ["lost"]
    assert [job.id for job in (await database.run(jobs.claim, queue, 1, provider="first")).jobs] == ["new"]


@pytest.mark.parametrize(
    "trouble",
    [
        ProviderThrottled("first", "", "slow down", retry_after=60),
        CredentialsRefused("first", "", "who are you"),
        NotSent("first", "", "no route"),
    ],
)
async def test_definite_trouble_of_the_first_provider_moves_messages_to_the_next(
    loft: Pigeons, trouble: ServiceError
) -> None:
    trouble.retryable = False
    loft.first.fail_with = trouble
    ids = [(await loft.send(key)).message_id for key in "abcdefgh"]
    for _ in range(3):  # what failed is tried again after its back-off
        loft.later(61_000 if isinstance(trouble, NotSent) else 5_000)
        await asyncio.sleep(0.3)
        if isinstance(trouble, NotSent):
            loft.channel.providers[0].breaker.force_open()
    sent = [(await loft.becomes(id, "SENT")).provider for id in ids]

    assert set(sent) == {"second"}
    assert sorted(loft.second.taken) == sorted(ids)


async def test_rate_limit_of_the_first_provider_leaves_the_rest_to_the_next(database_url: str, tmp_path: Path) -> None:
    async with pigeons(database_url, tmp_path, first_per_second=0.01) as loft:
        ids = [(await loft.send(key)).message_id for key in "abcde"]
        async with running([loft.channel.worker]):
            for id in ids:
                await loft.becomes(id, "SENT")

    assert (len(loft.first.taken), len(loft.second.taken)) == (1, 4)


async def test_unknown_outcome_stays_with_the_provider_that_was_asked(loft: Pigeons) -> None:
    loft.first.fail_with = OutcomeUnknown("first", "", "lost")
    id = (await loft.send()).message_id
    await loft.becomes(id, "UNKNOWN")
    loft.first.fail_with = None
    loft.channel.providers[0].breaker.force_open()
    loft.later(10_000)
    await asyncio.sleep(0.6)
    waiting = await loft.record(id)
    loft.channel.providers[0].breaker.release()
    loft.later(120_000)
    sent = await loft.becomes(id, "SENT")

    assert (waiting.status, waiting.note) == ("UNKNOWN", "OUTCOME_UNKNOWN")
    assert sent.provider == "first"
    assert (loft.first.taken, loft.second.taken, loft.second.find_calls) == ([id], [], 0)
    assert loft.first.find_calls >= 1


async def test_every_attempt_is_a_row_with_its_provider_and_its_outcome(loft: Pigeons) -> None:
    loft.first.fail_with = ProviderRejected("first", "no such loft", "refused")
    refused = (await loft.send("refused")).message_id
    await loft.becomes(refused, "FAILED")
    loft.first.fail_with = None
    sent = (await loft.becomes((await loft.send("sent")).message_id, "SENT")).message_id
    found = await loft.database.read(rows, "SELECT * FROM message_attempt ORDER BY attempted_at")

    assert [(row["message_id"], row["number"], row["provider"], row["outcome"], row["detail"]) for row in found] == [
        (refused, 1, "first", "REFUSED", "no such loft"),
        (sent, 1, "first", "SENT", ""),
    ]


@pytest.mark.parametrize(
    ("provider", "event_ids", "outcomes"),
    [
        ("first", ["e1", "e2"], ["APPLIED", "APPLIED"]),
        ("second", ["e1", "e2"], ["APPLIED", "APPLIED"]),
        ("", ["e1", "e1"], ["APPLIED", "DUPLICATE"]),
        ("third", ["e1", "e2"], ["REJECTED", "REJECTED"]),
        ("First", ["e1", "e2"], ["REJECTED", "REJECTED"]),
        (" first", ["e1", "e2"], ["REJECTED", "REJECTED"]),
    ],
)
async def test_event_is_read_by_the_provider_that_it_names(
    loft: Pigeons, provider: str, event_ids: list[str], outcomes: list[str]
) -> None:
    loft.first.fail_with = ProviderThrottled("first", "", "full", retry_after=3600) if provider == "second" else None
    id = (await loft.becomes((await loft.send()).message_id, "SENT")).message_id
    events = [
        common.ProviderEvent(event_id=event_id, provider=provider, query=id, body=status)
        for event_id, status in zip(event_ids, (b"DEFERRED", b"DELIVERED"), strict=True)
    ]
    results = list(await loft.channel.outbox.apply(events))
    applied = await loft.database.read(rows, "SELECT provider FROM provider_event")

    assert [common.EventOutcome.Name(result.outcome) for result in results] == [
        f"EVENT_OUTCOME_{outcome}" for outcome in outcomes
    ]
    assert {row["provider"] for row in applied} == ({provider or "first"} if "APPLIED" in outcomes else set())
    rejected = [result.detail for result in results if result.outcome == common.EVENT_OUTCOME_REJECTED]
    assert rejected == ["provider must be one of first, second"] * outcomes.count("REJECTED")


async def counts(database: Database) -> dict[str, int]:
    tables = ("message", "message_change", "message_attempt", "provider_event", "job")
    return {table: (await database.read(one, f"SELECT COUNT(*) AS n FROM {table}"))["n"] for table in tables}


async def test_messages_are_deleted_35_days_after_their_last_change(loft: Pigeons) -> None:
    for number in range(25):
        await loft.becomes((await loft.send(f"old-{number}")).message_id, "SENT")
    await loft.database.run(
        rows, "INSERT INTO provider_event (provider, event_id, applied_at) VALUES ('first', 'e1', now_ms())"
    )
    loft.later(RETENTION - DAY)
    young = await loft.becomes((await loft.send("young")).message_id, "SENT")
    before = await counts(loft.database)
    loft.later(2 * DAY)

    async def deleted() -> bool:
        return (await counts(loft.database))["message"] == 1

    await until(deleted)

    async def all_deleted() -> bool:
        return await counts(loft.database) == {
            "message": 1, "message_change": 1, "message_attempt": 1, "provider_event": 0, "job": 1
        }  # fmt: skip

    await until(all_deleted)
    assert (before["message"], before["message_attempt"], before["provider_event"]) == (26, 26, 1)
    assert (await loft.record(young.message_id)).status == "SENT"
    again = await loft.send("old-0")
    assert again.message_id not in loft.first.taken[:26]


@pytest.mark.parametrize("state", ["queued", "dead", "parked"])
async def test_message_with_a_job_that_may_run_is_kept(database_url: str, tmp_path: Path, state: str) -> None:
    async with pigeons(database_url, tmp_path) as loft:
        id = (await loft.send()).message_id
        if state == "parked":
            await loft.database.run(operations.park, "pigeons", id)
        await loft.database.run(rows, "UPDATE job SET state = :state", state=state)
        loft.later(RETENTION + DAY)

        assert await loft.database.run(Store("pigeons", "pig").purge) == 0
        assert (await loft.record(id)).message_id == id


async def test_batch_of_a_purge_is_small(database_url: str, tmp_path: Path) -> None:
    async with pigeons(database_url, tmp_path) as loft:
        for number in range(30):
            await loft.send(f"k-{number}")
        await loft.database.run(rows, "UPDATE job SET state = 'done', finished_at = now_ms()")
        loft.later(RETENTION + DAY)
        deleted = await loft.database.run(Store("pigeons", "pig").purge)

    assert 0 < deleted <= 50
