"""QueueAdminService over the wire: a real server with two queues and two breakers, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis.database.connect import connect
from services.chassis.database.transactions import Database, Row, one, rows
from services.chassis.errors import InvalidRequest, Unavailable
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.queue import jobs, rate_limit
from services.chassis.queue.admin import BATCH_TIME, MAX_BATCH, QueueAdmin, queue_admin
from services.chassis.queue.jobs import Complete, Job, MarkAttempted, Outcome, Queue, Route
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.queue.worker import Worker
from services.chassis.rpc.health import Readiness
from services.chassis.rpc.server import listening
from tests.fakes.echo_service import Settings
from tests.fakes.gateway import running, until
from tests.fakes.payments_service import refusal
from tests.integration.test_caller_scopes import bearer, entry
from topsmile.common.v1 import queue_admin_pb2 as pb
from topsmile.common.v1 import queue_admin_pb2_grpc as rpc

HOUR = 3_600_000
WORDS = b"Ana Souza +5511912345678 ana@example.com"
WHY = "the provider is back"


@dataclass
class Process:
    """One replica; `handled` are the ids of the jobs that its worker ran."""

    database: Database
    stub: rpc.QueueAdminServiceAsyncStub
    admin: QueueAdmin
    workers: Sequence[Worker]
    breakers: Sequence[CircuitBreaker]
    target: str
    handled: list[str]

    async def add(self, *ids: str, state: str = "dead", note: str = "NOT_SENT", payload: bytes = WORDS) -> None:
        """Store jobs of the queue post, each a millisecond newer than the one before."""
        for id in ids:
            await self.database.run(add, id, state, note, payload)
            self.database.offset_ms += 1

    async def fill(self, count: int, state: str = "dead") -> list[str]:
        """Store many jobs at once, named from the oldest to the newest."""
        ids = [f"job-{number:05d}" for number in range(count)]
        sql = """
            INSERT INTO job (queue, id, priority, state, due_at, payload, created_at, finished_at, expires_at, note)
            VALUES ('post', :id, 1, :state, 0, :payload, :created, :created, 0, 'NOT_SENT')
        """

        async def insert(some: Sequence[str]) -> None:
            for id in some:
                await rows(sql, id=id, state=state, payload=WORDS, created=int(id[4:]) // 7)

        for first in range(0, count, 500):
            await self.database.run(insert, ids[first : first + 500])
        return ids

    async def job(self, id: str) -> Row:
        return await self.database.read(one, "SELECT * FROM job WHERE id = :id", id=id)

    async def states(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in await self.database.read(rows, "SELECT id, state FROM job")}

    async def audit(self) -> list[pb.AuditEntry]:
        return list((await self.stub.ListAudit(pb.ListAuditRequest())).entries)

    async def queue(self) -> pb.Queue:
        found = (await self.stub.ListQueues(pb.ListQueuesRequest())).queues
        return next(queue for queue in found if queue.queue == "post")


async def add(id: str, state: str, note: str, payload: bytes) -> None:
    await jobs.add("post", id, payload, trace="corr-1 00-1-2-00 clinic")
    ended = "now_ms()" if state in {"dead", "done", "cancelled"} else "NULL"
    change = f"UPDATE job SET state = :state, note = :note, finished_at = {ended}, failures = 5 WHERE id = :id"
    await rows(change, state=state, note=note, id=id)


async def gave_up(_job: Job, _reason: str) -> None:
    """Nothing to tell: the queue has no records."""


async def refuse_replay(job: Row) -> str:
    return "EXPIRED" if job["id"].startswith("late") else ""


@asynccontextmanager
async def process(url: str, *, working: bool = False, tokens: str = "") -> AsyncIterator[Process]:
    async with connect(url) as database:
        handled: list[str] = []

        async def handle(job: Job, _mark_attempted: MarkAttempted) -> Outcome:
            handled.append(job.id)
            return Complete()

        breakers = [CircuitBreaker("first"), CircuitBreaker("second")]
        routes = tuple(Route(breaker.name, breaker.capacity, RateLimit(1000, 100)) for breaker in breakers)
        post = Queue("post", handle, gave_up, routes=routes, refuse_replay=refuse_replay)
        workers = [Worker(database, post), Worker(database, Queue("alone", handle, gave_up))]
        admin = await queue_admin(database, workers, breakers)
        settings = Settings.model_validate({"listen": "127.0.0.1:0", "auth_tokens": tokens or ()})
        async with (
            running([*workers, admin.modes] if working else [admin.modes]),
            listening(settings, Readiness(database), [admin.service]) as address,
            grpc.aio.insecure_channel(str(address)) as channel,
        ):
            stub = rpc.QueueAdminServiceStub(channel)
            yield Process(database, stub, admin, workers, breakers, str(address), handled)


@pytest.fixture
async def idle(database_url: str) -> AsyncIterator[Process]:
    """A process whose workers do not run, so that jobs stay as they are."""
    async with process(database_url) as started:
        yield started


@pytest.fixture
async def busy(database_url: str) -> AsyncIterator[Process]:
    async with process(database_url, working=True) as started:
        yield started


def replay(*ids: str, reason: str = WHY, **more: Any) -> pb.ReplayJobsRequest:
    return pb.ReplayJobsRequest(queue="post", jobs=pb.JobIds(job_ids=ids), reason=reason, **more)


def every(kind: Any, reason: str = WHY, **filter: Any) -> Any:
    return kind(queue="post", filter=pb.JobFilter(**filter), reason=reason)


def refused(response: Any) -> dict[str, int]:
    return {each.reason: each.count for each in response.refusals}


async def test_queues_are_counted_by_state(idle: Process) -> None:
    await idle.add("a", "b", state="dead")
    await idle.add("c", state="parked")
    await idle.add("d", "e", "f", state="queued")
    await idle.add("g", state="done")
    idle.database.offset_ms += 90_000

    found = (await idle.stub.ListQueues(pb.ListQueuesRequest())).queues

    assert [queue.queue for queue in found] == ["alone", "post"]
    assert [[each.provider for each in queue.providers] for queue in found] == [["alone"], ["first", "second"]]
    assert (found[1].dead, found[1].parked, found[1].queued, found[1].running) == (2, 1, 3, 0)
    assert 90 <= found[1].oldest_due.seconds < 100


@pytest.mark.parametrize("state", ["queued", "running", "done", "dead", "cancelled", "parked"])
@pytest.mark.parametrize("size", [1, 2, 7, 500])
async def test_pages_hold_every_job_of_a_state_once_the_newest_first(idle: Process, state: str, size: int) -> None:
    ids = [f"{state}-{number}" for number in range(7)]
    await idle.add(*ids, state=state)
    await idle.database.run(rows, "UPDATE job SET created_at = created_at / 3 * 3")  # some have the same age
    await idle.add("other", state="dead" if state != "dead" else "done")
    request = pb.ListJobsRequest(queue="post", state=pb.JobState.Value(f"JOB_STATE_{state.upper()}"), page_size=size)

    pages = [await idle.stub.ListJobs(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(await idle.stub.ListJobs(request))

    found = [job for page in pages for job in page.jobs]
    order = [(-job.create_time.ToMilliseconds(), job.job_id) for job in found]
    assert order == sorted(order)
    assert sorted(job.job_id for job in found) == ids
    assert all(len(page.jobs) == size for page in pages[:-1])


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, {"a", "b", "c"}),
        ({"note": "THROTTLED"}, {"c"}),
        ({"note": "OTHER"}, set()),
        ({"from": 1}, {"b", "c"}),
        ({"before": 2}, {"a", "b"}),
        ({"from": 1, "before": 2, "note": "NOT_SENT"}, {"b"}),
    ],
)
async def test_jobs_are_filtered_by_note_and_age(idle: Process, filter: dict[str, Any], expected: set[str]) -> None:
    await idle.add("a", "b")
    await idle.add("c", note="THROTTLED")
    for number, id in enumerate("abc"):
        sql = "UPDATE job SET created_at = :time WHERE id = :id"
        await idle.database.run(rows, sql, time=1_700_000_000_000 + number * HOUR, id=id)
    chosen = pb.JobFilter(note=filter.get("note", ""))
    for name, field in (("from", chosen.created_from_time), ("before", chosen.created_before_time)):
        if name in filter:
            field.CopyFrom(Timestamp(seconds=1_700_000_000 + filter[name] * HOUR // 1000))

    listed = await idle.stub.ListJobs(pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DEAD, filter=chosen))
    replayed = await idle.stub.ReplayJobs(pb.ReplayJobsRequest(queue="post", filter=chosen, reason=WHY))

    assert {job.job_id for job in listed.jobs} == expected
    assert replayed.changed == len(expected)
    assert {id for id, state in (await idle.states()).items() if state == "queued"} == expected


@pytest.mark.parametrize("id", ["eml_1", "event:evt_1", "pay_1/refresh/2"])
async def test_shown_job_holds_no_payload(idle: Process, id: str) -> None:
    await idle.add(id)

    response = await idle.stub.ShowJob(pb.ShowJobRequest(queue="post", job_id=id))

    job = response.job
    assert (job.job_id, job.state, job.note, job.failures) == (id, pb.JOB_STATE_DEAD, "NOT_SENT", 5)
    assert (job.correlation_id, job.payload_bytes) == ("corr-1", len(WORDS))
    assert job.HasField("finish_time")
    assert not any(word in response.SerializeToString() for word in WORDS.split())


@pytest.mark.parametrize(("queue", "id"), [("post", "nothing"), ("alone", "a"), ("post", "A")])
async def test_unknown_job_is_not_found(idle: Process, queue: str, id: str) -> None:
    await idle.add("a")

    assert (await refusal(idle.stub.ShowJob(pb.ShowJobRequest(queue=queue, job_id=id)))).reason == "NOT_FOUND"


@pytest.mark.parametrize("ids", [("a",), ("a", "b"), ("a", "b", "c")])
async def test_replayed_dead_letters_run_and_keep_their_expiry(busy: Process, ids: tuple[str, ...]) -> None:
    await busy.add("a", "b", "c")
    before = {id: (await busy.job(id))["expires_at"] for id in ids}

    response = await busy.stub.ReplayJobs(replay(*ids))
    await until(lambda: sorted(busy.handled) == sorted(ids))

    assert (response.changed, refused(response), response.next_page_token) == (len(ids), {}, "")
    assert {id: (await busy.job(id))["expires_at"] for id in ids} == before


async def test_refused_replays_are_counted_by_reason_and_change_nothing(idle: Process) -> None:
    await idle.add("a", "late-1", "late-2")
    await idle.add("parked", state="parked")

    given = await idle.stub.ReplayJobs(replay("late-1", "a", "absent", "parked"))
    rest = await idle.stub.ReplayJobs(every(pb.ReplayJobsRequest))
    entries = await idle.audit()

    assert (given.changed, refused(given)) == (1, {"EXPIRED": 1, "NOT_FOUND": 1, "WRONG_STATE": 1})
    assert (rest.changed, refused(rest)) == (0, {"EXPIRED": 2})
    assert await idle.states() == {"a": "queued", "late-1": "dead", "late-2": "dead", "parked": "parked"}
    assert [(entry.changed, entry.refused) for entry in entries] == [(0, 2), (1, 3)]


@pytest.mark.parametrize("state", ["queued", "dead"])
async def test_parked_job_waits_until_it_is_unparked(busy: Process, state: str) -> None:
    await busy.stub.PauseQueue(pb.PauseQueueRequest(queue="post", reason=WHY))
    await busy.add("a", state=state)
    parked = await busy.stub.ParkJobs(every(pb.ParkJobsRequest))
    await busy.stub.ResumeQueue(pb.ResumeQueueRequest(queue="post", reason=WHY))
    await asyncio.sleep(0.6)
    handled = list(busy.handled)
    unparked = await busy.stub.UnparkJobs(every(pb.UnparkJobsRequest))
    await until(lambda: busy.handled == ["a"])

    assert (parked.changed, unparked.changed, handled) == (1, 1, [])


@pytest.mark.parametrize("hours", [1, 24, 700])
async def test_unparked_reminder_keeps_its_time(idle: Process, hours: int) -> None:
    due_at = (await idle.database.read(one, "SELECT now_ms() AS now"))["now"] + hours * HOUR
    await idle.database.run(jobs.add, "post", "a", WORDS, due_at=due_at)

    await idle.stub.ParkJobs(every(pb.ParkJobsRequest))
    await idle.stub.UnparkJobs(every(pb.UnparkJobsRequest))

    job = await idle.job("a")
    assert (job["state"], job["due_at"], job["expires_at"]) == ("queued", due_at, due_at + 24 * HOUR)


async def test_discarded_dead_letter_is_erased_and_cannot_be_replayed(idle: Process) -> None:
    await idle.add("a", "b")
    await idle.add("c", state="queued")

    response = await idle.stub.DiscardJobs(every(pb.DiscardJobsRequest))
    again = await idle.stub.ReplayJobs(replay("a", "c"))

    job = await idle.job("a")
    assert (response.changed, (await idle.queue()).dead) == (2, 0)
    assert (job["state"], job["note"], bytes(job["payload"])) == ("cancelled", "DISCARDED", b"")
    assert (again.changed, refused(again)) == (0, {"WRONG_STATE": 2})
    assert not await idle.database.run(jobs.add, "post", "a", WORDS)


@pytest.mark.parametrize("count", [MAX_BATCH - 1, MAX_BATCH, MAX_BATCH + 1, 1_203])
async def test_filtered_jobs_are_changed_in_batches(idle: Process, count: int) -> None:
    await idle.fill(count)

    response = await idle.stub.ReplayJobs(every(pb.ReplayJobsRequest), timeout=60)

    assert (response.changed, response.next_page_token) == (count, "")
    assert set((await idle.states()).values()) == {"queued"}
    assert [(entry.method, entry.changed) for entry in await idle.audit()] == [("ReplayJobs", count)]


@pytest.mark.parametrize(("kind", "method"), [(pb.ReplayJobsRequest, "ReplayJobs"), (pb.ParkJobsRequest, "ParkJobs")])
async def test_call_with_a_short_deadline_is_resumed_by_its_token(idle: Process, kind: Any, method: str) -> None:
    ids = await idle.fill(4 * MAX_BATCH + 3)
    request, changed, calls = every(kind), 0, 0

    while calls == 0 or request.page_token:
        response = await getattr(idle.stub, method)(request, timeout=BATCH_TIME)
        changed, calls = changed + response.changed, calls + 1
        request.page_token = response.next_page_token

    assert (changed, calls) == (len(ids), 6)  # the last call finds nothing
    assert len(set((await idle.states()).values())) == 1
    assert sum(entry.changed for entry in await idle.audit()) == len(ids)


async def test_refused_jobs_do_not_stop_a_resumed_replay(idle: Process) -> None:
    await idle.fill(MAX_BATCH + 20)
    await idle.database.run(rows, "UPDATE job SET id = 'late-' || id")
    await idle.add("old")
    await idle.database.run(rows, "UPDATE job SET created_at = 0 WHERE id = 'old'")
    request = every(pb.ReplayJobsRequest)

    first = await idle.stub.ReplayJobs(request, timeout=BATCH_TIME)
    request.page_token = first.next_page_token
    second = await idle.stub.ReplayJobs(request)

    assert (refused(first), refused(second)) == ({"EXPIRED": MAX_BATCH}, {"EXPIRED": 20})
    assert (first.changed, second.changed, second.next_page_token) == (0, 1, "")


def tokens(real: str) -> list[str]:
    return ["x", "é", "AAAA", real[:-4], real + "QQ", real.swapcase(), "W10", "a" * 5000]


async def test_page_token_of_another_request_is_refused(idle: Process) -> None:
    await idle.add(*"abc")
    request = pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DEAD, page_size=1)
    token = (await idle.stub.ListJobs(request)).next_page_token
    others: list[tuple[Callable[..., Any], Any]] = [
        (idle.stub.ListJobs, pb.ListJobsRequest(queue="alone", state=pb.JOB_STATE_DEAD, page_token=token)),
        (idle.stub.ListJobs, pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DONE, page_token=token)),
        (idle.stub.ListAudit, pb.ListAuditRequest(page_token=token)),
        (idle.stub.ReplayJobs, replay("a", page_token=token)),
        *(
            (idle.stub.ListJobs, pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DEAD, page_token=broken))
            for broken in tokens(token)
        ),
    ]
    larger = pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DEAD, page_token=token, page_size=9)

    for call, other in others:
        error = await refusal(call(other))
        assert isinstance(error, InvalidRequest)
        assert [(each.field, each.reason) for each in error.violations] == [("page_token", "NOT_A_PAGE_TOKEN")]
    assert [job.job_id for job in (await idle.stub.ListJobs(larger)).jobs] == ["b", "a"]


MUTATIONS: list[tuple[str, Callable[[str], Any]]] = [
    ("ReplayJobs", lambda reason: every(pb.ReplayJobsRequest, reason)),
    ("ParkJobs", lambda reason: every(pb.ParkJobsRequest, reason)),
    ("UnparkJobs", lambda reason: every(pb.UnparkJobsRequest, reason)),
    ("DiscardJobs", lambda reason: every(pb.DiscardJobsRequest, reason)),
    ("PauseQueue", lambda reason: pb.PauseQueueRequest(queue="post", reason=reason)),
    ("ResumeQueue", lambda reason: pb.ResumeQueueRequest(queue="post", reason=reason)),
    (
        "SetBreaker",
        lambda reason: pb.SetBreakerRequest(breaker="first", mode=pb.BREAKER_MODE_FORCED_OPEN, reason=reason),
    ),
]


@pytest.mark.parametrize(("method", "request_of"), MUTATIONS, ids=[method for method, _ in MUTATIONS])
@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "bell\a", "x" * 501])
async def test_change_without_a_printable_reason_is_refused(
    idle: Process, method: str, request_of: Callable[[str], Any], reason: str
) -> None:
    await idle.add("a")

    error = await refusal(getattr(idle.stub, method)(request_of(reason)))

    assert [each.field for each in error.violations] == ["reason"]
    assert (await idle.states(), await idle.audit()) == ({"a": "dead"}, [])


@pytest.mark.parametrize(("method", "request_of"), MUTATIONS, ids=[method for method, _ in MUTATIONS])
async def test_change_is_audited_with_caller_target_and_reason(
    database_url: str, method: str, request_of: Callable[[str], Any]
) -> None:
    async with process(database_url, tokens=entry("ops", "admin")) as started:
        await getattr(started.stub, method)(request_of(WHY), metadata=bearer("ops"))
        (found,) = (await started.stub.ListAudit(pb.ListAuditRequest(), metadata=bearer("ops"))).entries
        none = await started.stub.ListAudit(pb.ListAuditRequest(caller="other"), metadata=bearer("ops"))

    target = "first" if method == "SetBreaker" else "post"
    assert (found.method, found.caller, found.target, found.reason) == (method, "ops", target, WHY)
    assert found.HasField("create_time")
    assert list(none.entries) == []


async def test_audit_is_paged_and_filtered(idle: Process) -> None:
    for number in range(5):
        await idle.stub.PauseQueue(pb.PauseQueueRequest(queue=("post", "alone")[number % 2], reason=f"number {number}"))
        idle.database.offset_ms += 1
    request, reasons = pb.ListAuditRequest(page_size=2), list[str]()
    while not reasons or request.page_token:
        page = await idle.stub.ListAudit(request)
        reasons += [entry.reason for entry in page.entries]
        request.page_token = page.next_page_token

    alone = (await idle.stub.ListAudit(pb.ListAuditRequest(target="alone"))).entries

    assert reasons == [f"number {number}" for number in (4, 3, 2, 1, 0)]
    assert [entry.reason for entry in alone] == ["number 3", "number 1"]


@pytest.mark.parametrize("scopes", ["read", "send", "read+send+events+forward"])
async def test_caller_without_scope_admin_is_refused(database_url: str, scopes: str) -> None:
    async with process(database_url, tokens=entry("clinic", scopes)) as started:
        calls: list[Any] = [
            started.stub.ListQueues(pb.ListQueuesRequest(), metadata=bearer("clinic")),
            started.stub.ReplayJobs(replay("a"), metadata=bearer("clinic")),
            started.stub.ListAudit(pb.ListAuditRequest(), metadata=bearer("clinic")),
        ]
        reasons = {(await refusal(call)).reason for call in calls}

    assert reasons == {"PERMISSION_DENIED"}


UNKNOWN: Any = 99
BEFORE_THE_EPOCH = pb.JobFilter(note="\0", created_from_time=Timestamp(seconds=-1))
WRONG: list[tuple[str, Any, set[str]]] = [
    ("ListJobs", pb.ListJobsRequest(), {"queue", "state"}),
    ("ListJobs", pb.ListJobsRequest(queue="x", state=UNKNOWN, page_size=-1), {"queue", "state", "page_size"}),
    ("ListJobs", pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DEAD, page_size=501), {"page_size"}),
    (
        "ListJobs",
        pb.ListJobsRequest(queue="post", state=pb.JOB_STATE_DEAD, filter=BEFORE_THE_EPOCH),
        {"filter.note", "filter.created_from_time"},
    ),
    ("ShowJob", pb.ShowJobRequest(queue="post", job_id="x" * 301), {"job_id"}),
    ("ReplayJobs", pb.ReplayJobsRequest(), {"queue", "selection", "reason"}),
    ("ReplayJobs", replay(reason=WHY), {"jobs.job_ids"}),
    ("ReplayJobs", replay("a", "a", "", "\n", "x" * 301), {f"jobs.job_ids[{n}]" for n in (1, 2, 3, 4)}),
    ("ReplayJobs", replay(*map(str, range(501))), {"jobs.job_ids"}),
    ("PauseQueue", pb.PauseQueueRequest(queue="post", provider="third", reason=WHY), {"provider"}),
    ("PauseQueue", pb.PauseQueueRequest(queue="post", duration=Duration(seconds=-1), reason=WHY), {"duration"}),
    ("PauseQueue", pb.PauseQueueRequest(queue="post", duration=Duration(seconds=10**11), reason=WHY), {"duration"}),
    ("ResumeQueue", pb.ResumeQueueRequest(queue="alone", provider="first", reason=WHY), {"provider"}),
    ("SetBreaker", pb.SetBreakerRequest(), {"breaker", "mode", "reason"}),
    ("SetBreaker", pb.SetBreakerRequest(breaker="third", mode=pb.BREAKER_MODE_AUTOMATIC, reason=WHY), {"breaker"}),
    ("ListAudit", pb.ListAuditRequest(target="\0", caller="x" * 101), {"target", "caller"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "request_", "fields"), WRONG, ids=[f"{n}-{each[0]}" for n, each in enumerate(WRONG)]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_wrong_request_names_every_wrong_field(
    idle: Process, method: str, request_: Any, fields: set[str]
) -> None:
    error = await refusal(getattr(idle.stub, method)(request_))

    assert isinstance(error, InvalidRequest)
    assert {each.field for each in error.violations} == fields


@pytest.mark.parametrize("provider", ["", "first"])
async def test_paused_queue_claims_nothing_until_it_is_resumed(busy: Process, provider: str) -> None:
    await busy.stub.PauseQueue(pb.PauseQueueRequest(queue="post", provider=provider, reason=WHY))
    await busy.add("a", state="queued")
    busy.workers[0].wake()
    if provider:  # the other provider takes it
        await until(lambda: busy.handled == ["a"])
        return
    await asyncio.sleep(0.6)
    paused, handled = await busy.queue(), list(busy.handled)
    await busy.stub.ResumeQueue(pb.ResumeQueueRequest(queue="post", reason=WHY))
    await until(lambda: busy.handled == ["a"])

    assert handled == []
    assert [each.pause_reason for each in paused.providers] == ["PAUSED", "PAUSED"]
    assert not any(each.HasField("pause_end_time") for each in paused.providers)
    assert [each.pause_reason for each in (await busy.queue()).providers] == ["", ""]


@pytest.mark.parametrize("seconds", [1, 60, 86_400])
async def test_pause_with_a_duration_ends_without_a_trial(idle: Process, seconds: int) -> None:
    request = pb.PauseQueueRequest(queue="post", duration=Duration(seconds=seconds), reason=WHY)
    paused = (await idle.stub.PauseQueue(request)).queue
    claimed_while = await idle.database.run(jobs.claim, idle.workers[0].queue, 10, provider="first")
    idle.database.offset_ms += seconds * 1000 + 1
    await idle.add("a", "b", state="queued")
    claimed = await idle.database.run(jobs.claim, idle.workers[0].queue, 10, provider="first")

    assert all(each.HasField("pause_end_time") for each in paused.providers)
    assert claimed_while.jobs == ()
    assert (len(claimed.jobs), claimed.recovering) == (2, False)
    assert [each.pause_reason for each in (await idle.queue()).providers] == ["", ""]


@pytest.mark.parametrize("reason", ["THROTTLED", "PROVIDER_CREDENTIALS", "QUOTA"])
async def test_provider_s_pause_does_not_shorten_an_operator_s(idle: Process, reason: str) -> None:
    await idle.stub.PauseQueue(pb.PauseQueueRequest(queue="post", reason=WHY))
    await idle.database.run(rate_limit.pause, "first", 1.0, reason)
    idle.database.offset_ms += 2_000
    await idle.database.run(rate_limit.resume, "first")

    first = (await idle.queue()).providers[0]
    with pytest.raises(Unavailable) as error:
        await idle.database.run(rate_limit.acquire, "first", None)

    assert (first.pause_reason, first.HasField("pause_end_time")) == ("PAUSED", False)
    assert (error.value.reason, error.value.retry_after) == ("PAUSED", 60.0)


@pytest.mark.parametrize("reason", ["THROTTLED", "PROVIDER_CREDENTIALS", "QUOTA"])
async def test_resume_ends_a_provider_s_pause(idle: Process, reason: str) -> None:
    await idle.database.run(rate_limit.pause, "second", 600.0, reason)
    paused = (await idle.queue()).providers[1]

    response = await idle.stub.ResumeQueue(pb.ResumeQueueRequest(queue="post", reason=WHY))

    assert (paused.pause_reason, paused.HasField("pause_end_time")) == (reason, True)
    assert [each.pause_reason for each in response.queue.providers] == ["", ""]
    assert (await idle.audit())[0].changed == 1


@pytest.mark.parametrize("set_back", [1, HOUR, 24 * HOUR])
async def test_operator_s_pause_stays_when_the_clock_is_set_back(idle: Process, set_back: int) -> None:
    await idle.stub.PauseQueue(pb.PauseQueueRequest(queue="post", reason=WHY))

    idle.database.offset_ms -= set_back

    assert [each.pause_reason for each in (await idle.queue()).providers] == ["PAUSED", "PAUSED"]


def breaker_request(name: str, mode: pb.BreakerMode.ValueType) -> pb.SetBreakerRequest:
    return pb.SetBreakerRequest(breaker=name, mode=mode, reason=WHY)


@pytest.mark.parametrize("name", ["first", "second"])
async def test_forced_breaker_is_open_until_it_is_released(idle: Process, name: str) -> None:
    forced = (await idle.stub.SetBreaker(breaker_request(name, pb.BREAKER_MODE_FORCED_OPEN))).breaker
    breaker = next(breaker for breaker in idle.breakers if breaker.name == name)
    capacity = breaker.capacity()
    listed = (await idle.stub.ListBreakers(pb.ListBreakersRequest())).breakers
    released = (await idle.stub.SetBreaker(breaker_request(name, pb.BREAKER_MODE_AUTOMATIC))).breaker

    assert (forced.mode, forced.state, capacity) == (pb.BREAKER_MODE_FORCED_OPEN, pb.BREAKER_STATE_OPEN, 0)
    assert [each.breaker for each in listed] == ["first", "second"]
    assert {each.breaker for each in listed if each.set_by} == {name}
    assert (released.mode, released.state) == (pb.BREAKER_MODE_AUTOMATIC, pb.BREAKER_STATE_HALF_OPEN)
    assert breaker.capacity() == 1


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_all_replicas_follow_a_forced_breaker(database_url: str) -> None:
    async with process(database_url) as one_replica, process(database_url) as other:
        for mode, state in ((pb.BREAKER_MODE_FORCED_OPEN, "OPEN"), (pb.BREAKER_MODE_AUTOMATIC, "HALF_OPEN")):
            await one_replica.stub.SetBreaker(breaker_request("first", mode))
            await until(lambda state=state: other.breakers[0].state == state, within=5.0)  # type: ignore[misc]  # bound now
        assert other.breakers[1].state == "CLOSED"


async def test_forced_breaker_is_open_when_a_process_starts(database_url: str) -> None:
    async with process(database_url) as started:
        await started.stub.SetBreaker(breaker_request("second", pb.BREAKER_MODE_FORCED_OPEN))
    async with process(database_url) as started:
        assert [breaker.state for breaker in started.breakers] == ["CLOSED", "OPEN"]
