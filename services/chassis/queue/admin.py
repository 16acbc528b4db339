"""
What an operator may see and change in a process: its queues, their jobs, and its circuit breakers.

A change and its row of the audit are one transaction. Jobs are selected by a read and changed by their primary keys, at
most 50 in a transaction.
"""

# ruff: noqa: N802 - the methods have the contract's names

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson
from google.protobuf.timestamp_pb2 import Timestamp

from services.chassis import context
from services.chassis.database.transactions import Database, Row, Transaction, rows
from services.chassis.errors import NotFound
from services.chassis.outbound import breaker_modes, deadline
from services.chassis.outbound.breaker import CircuitBreaker
from services.chassis.outbound.breaker_modes import AUTOMATIC, BreakerModes
from services.chassis.queue import operations, rate_limit
from services.chassis.queue.jobs import Queue
from services.chassis.queue.operations import ALL, FIRST, LATEST, Filter, Position
from services.chassis.queue.worker import Worker
from services.chassis.rpc.paging import page_size, page_token, position_of
from services.chassis.rpc.server import Service
from services.chassis.rpc.validation import Fields, printable
from services.chassis.violations import Rule
from topsmile.common.v1 import queue_admin_pb2 as pb
from topsmile.common.v1.queue_admin_pb2_grpc import add_QueueAdminServiceServicer_to_server

NAME = "topsmile.common.v1.QueueAdminService"
#: Jobs in one transaction, and jobs that one read selects.
MAX_BATCH, MAX_SELECTED = 50, 1_000
MAX_IDS, MAX_ID, MAX_REASON, MAX_DETAIL, MAX_NOTE = 500, 300, 500, 500, 100
#: Seconds that the last batch of a call may take.
BATCH_TIME = 2.0

#: The ids of some jobs, and the position after them: number of the state, time of creation, id.
Batch: TypeAlias = tuple[Sequence[str], tuple[int, int, str]]

AUDIT = """
    INSERT INTO audit (id, caller, method, target, detail, reason, changed, refused, created_at)
    VALUES (:id, :caller, :method, :target, :detail, :reason, :changed, :refused, now_ms())
    ON CONFLICT (id) DO UPDATE SET
        changed = audit.changed + excluded.changed, refused = audit.refused + excluded.refused
"""
LIST_AUDIT = """
    SELECT id, caller, method, target, detail, reason, changed, refused, created_at FROM audit
    WHERE created_at <= :created_at AND (created_at < :created_at OR id > :id)
        AND (CAST(:target AS TEXT) = '' OR target = :target) AND (CAST(:caller AS TEXT) = '' OR caller = :caller)
    ORDER BY created_at DESC, id LIMIT :limit
"""


class Change(NamedTuple):
    """Who changes what, and why: a row of the audit."""

    id: str
    caller: str
    method: str
    target: str
    detail: str
    reason: str


@dataclass(frozen=True)
class Action:
    """What an RPC does to each job, to jobs of which states, and who may refuse it."""

    change: Callable[[str, str], Transaction[bool]]
    states: tuple[str, ...]
    response: Any
    refusable: bool = False


REPLAY = Action(operations.replay, ("dead",), pb.ReplayJobsResponse, refusable=True)
PARK = Action(operations.park, ("queued", "dead"), pb.ParkJobsResponse)
UNPARK = Action(operations.unpark, ("parked",), pb.UnparkJobsResponse)
DISCARD = Action(operations.discard, ("dead",), pb.DiscardJobsResponse)


async def store(change: Change, changed: int, refused: int = 0) -> None:
    """Store a row of the audit, or add to it."""
    await rows(AUDIT, **change._asdict(), changed=changed, refused=refused)


async def change_jobs(action: Action, queue: Queue, ids: Sequence[str], change: Change) -> Counter[str]:
    """Apply an action to some jobs; return how many were changed (under an empty string), and refused by reason."""
    counted = Counter([await _change_job(action, queue, id) for id in ids])
    await store(change, counted[""], counted.total() - counted[""])
    return counted


async def _change_job(action: Action, queue: Queue, id: str) -> str:
    job = await operations.show(queue.name, id)
    if job is None:
        return "NOT_FOUND"
    if job["state"] not in action.states:
        return "WRONG_STATE"
    if action.refusable and queue.refuse_replay is not None and (reason := await queue.refuse_replay(job)):
        return reason
    return "" if await action.change(queue.name, id) else "WRONG_STATE"


async def pause(providers: Sequence[str], milliseconds: int | None, change: Change) -> None:
    for provider in providers:
        await rate_limit.pause_by_operator(provider, milliseconds)
    await store(change, len(providers))


async def resume(providers: Sequence[str], change: Change) -> None:
    ended = [await rate_limit.resume_by_operator(provider) for provider in providers]
    await store(change, sum(ended))


async def set_breaker(breaker: str, mode: str, change: Change) -> None:
    await breaker_modes.set_mode(breaker, mode, change.reason, change.caller)
    await store(change, 1)


async def pauses(providers: Sequence[str]) -> list[rate_limit.State]:
    return [await rate_limit.peek(provider) for provider in providers]


class QueueAdminServicer:
    def __init__(self, database: Database, workers: Sequence[Worker], modes: BreakerModes) -> None:
        self._database = database
        self._workers = {worker.queue.name: worker for worker in sorted(workers, key=lambda worker: worker.queue.name)}
        self._modes = modes

    async def ListQueues(self, _request: pb.ListQueuesRequest, _rpc: object) -> pb.ListQueuesResponse:
        return pb.ListQueuesResponse(queues=[await self._queue(worker) for worker in self._workers.values()])

    async def ListJobs(self, request: pb.ListJobsRequest, _rpc: object) -> pb.ListJobsResponse:
        fields = Fields(request)
        queue = self._named(fields, "queue", self._workers)
        state = fields.choice("state").lower()
        filter = _filter(fields)
        size, after = page_size(fields, request), Position(*position_of(fields, request, *FIRST))
        fields.check()
        found = await self._database.read(operations.list_jobs, queue, state, size + 1, after, filter)
        token = page_token(request, found[size - 1]["created_at"], found[size - 1]["id"]) if len(found) > size else ""
        return pb.ListJobsResponse(jobs=map(_job, found[:size]), next_page_token=token)

    async def ShowJob(self, request: pb.ShowJobRequest, _rpc: object) -> pb.ShowJobResponse:
        fields = Fields(request)
        queue, id = self._named(fields, "queue", self._workers), fields.identifier("job_id", max_length=MAX_ID)
        fields.check()
        found = await self._database.read(operations.show, queue, id)
        if found is None:
            raise NotFound("the queue has no such job")
        return pb.ShowJobResponse(job=_job(found))

    async def ReplayJobs(self, request: pb.ReplayJobsRequest, _rpc: object) -> pb.ReplayJobsResponse:
        response: pb.ReplayJobsResponse = await self._change(REPLAY, request)
        return response

    async def ParkJobs(self, request: pb.ParkJobsRequest, _rpc: object) -> pb.ParkJobsResponse:
        response: pb.ParkJobsResponse = await self._change(PARK, request)
        return response

    async def UnparkJobs(self, request: pb.UnparkJobsRequest, _rpc: object) -> pb.UnparkJobsResponse:
        response: pb.UnparkJobsResponse = await self._change(UNPARK, request)
        return response

    async def DiscardJobs(self, request: pb.DiscardJobsRequest, _rpc: object) -> pb.DiscardJobsResponse:
        response: pb.DiscardJobsResponse = await self._change(DISCARD, request)
        return response

    async def PauseQueue(self, request: pb.PauseQueueRequest, _rpc: object) -> pb.PauseQueueResponse:
        fields = Fields(request)
        worker, providers = self._providers(fields)
        length = fields.duration("duration")
        milliseconds = None if length is None else max(1, int(length.total_seconds() * 1000))
        change = _change_of(fields, request, f"providers: {', '.join(providers)}; for: {length or 'ever'}")
        fields.check()
        await self._database.run(pause, providers, milliseconds, change)
        return pb.PauseQueueResponse(queue=await self._queue(self._workers[worker]))

    async def ResumeQueue(self, request: pb.ResumeQueueRequest, _rpc: object) -> pb.ResumeQueueResponse:
        fields = Fields(request)
        worker, providers = self._providers(fields)
        change = _change_of(fields, request, f"providers: {', '.join(providers)}")
        fields.check()
        await self._database.run(resume, providers, change)
        self._workers[worker].wake()
        return pb.ResumeQueueResponse(queue=await self._queue(self._workers[worker]))

    async def ListBreakers(self, _request: pb.ListBreakersRequest, _rpc: object) -> pb.ListBreakersResponse:
        return pb.ListBreakersResponse(breakers=await self._breakers())

    async def SetBreaker(self, request: pb.SetBreakerRequest, _rpc: object) -> pb.SetBreakerResponse:
        fields = Fields(request)
        name = self._named(fields, "breaker", self._modes.breakers)
        mode = fields.choice("mode")
        change = _change_of(fields, request, f"mode: {mode}", target="breaker")
        fields.check()
        await self._database.run(set_breaker, name, mode, change)
        (breaker,) = [each for each in await self._breakers() if each.breaker == name]
        return pb.SetBreakerResponse(breaker=breaker)

    async def ListAudit(self, request: pb.ListAuditRequest, _rpc: object) -> pb.ListAuditResponse:
        fields = Fields(request)
        target, caller = fields.identifier("target", required=False), fields.identifier("caller", required=False)
        size, after = page_size(fields, request), Position(*position_of(fields, request, *FIRST))
        fields.check()
        found = await self._database.read(
            rows, LIST_AUDIT, target=target, caller=caller, limit=size + 1, **after._asdict()
        )
        token = page_token(request, found[size - 1]["created_at"], found[size - 1]["id"]) if len(found) > size else ""
        return pb.ListAuditResponse(entries=map(_entry, found[:size]), next_page_token=token)

    async def _change(self, action: Action, request: Any) -> Any:
        """Change the selected jobs batch by batch, for as long as the deadline allows."""
        fields = Fields(request)
        queue = self._named(fields, "queue", self._workers)
        selection = request.WhichOneof("selection")
        if selection is None:
            fields.wrong("selection", Rule.REQUIRED)
        ids, filter = _ids(fields, request.jobs.job_ids) if selection == "jobs" else [], _filter(fields)
        change = _change_of(fields, request, _described(request))
        start = position_of(fields, request, 0, *FIRST)
        fields.check()
        worker, counted, token = self._workers[queue], Counter[str](), ""
        batches = _given(ids, start[0]) if selection == "jobs" else self._selected(action, queue, filter, start)
        async for batch, position in batches:
            counted += await self._database.run(change_jobs, action, worker.queue, batch, change)
            if (remaining := deadline.remaining()) is not None and remaining < BATCH_TIME:
                token = page_token(request, *position)
                break
        if not counted:
            await self._database.run(store, change, 0)
        worker.wake()
        refusals = [pb.JobRefusal(reason=reason, count=count) for reason, count in sorted(counted.items()) if reason]
        return action.response(changed=counted[""], refusals=refusals, next_page_token=token)

    async def _selected(
        self, action: Action, queue: str, filter: Filter, start: tuple[int, int, str]
    ) -> AsyncIterator[Batch]:
        """Select the jobs that fit, state by state and from the newest, with the position after each batch."""
        after = Position(*start[1:])
        for number, state in list(enumerate(action.states))[max(start[0], 0) :]:
            more = True
            while more:
                found = await self._database.read(operations.list_jobs, queue, state, MAX_SELECTED, after, filter)
                for first in range(0, len(found), MAX_BATCH):
                    batch = found[first : first + MAX_BATCH]
                    after = Position(batch[-1]["created_at"], batch[-1]["id"])
                    yield [row["id"] for row in batch], (number, *after)
                more = len(found) == MAX_SELECTED
            after = FIRST

    def _named(self, fields: Fields, field: str, known: Iterable[str]) -> str:
        name = fields.identifier(field)
        if name and name not in known:
            fields.wrong(field, Rule.NOT_A_CHOICE, choices=", ".join(known))
        return name

    def _providers(self, fields: Fields) -> tuple[str, Sequence[str]]:
        """Return the queue, and those of its providers that are meant."""
        queue, provider = self._named(fields, "queue", self._workers), fields.identifier("provider", required=False)
        known = self._workers[queue].providers if queue in self._workers else []
        if provider and known and provider not in known:
            fields.wrong("provider", Rule.NOT_A_CHOICE, choices=", ".join(known))
        return queue, [provider] if provider else known

    async def _queue(self, worker: Worker) -> pb.Queue:
        name = worker.queue.name
        census = await self._database.read(operations.census, name, worker.providers)
        states = await self._database.read(pauses, worker.providers)
        return pb.Queue(
            queue=name,
            **{state: census[state] for state in ("queued", "running", "parked", "dead")},
            oldest_due=_duration(census["oldest_due_ms"]),
            providers=[
                pb.QueueProvider(
                    provider=provider, pause_reason=state.reason, pause_end_time=_timestamp(state.paused_until)
                )
                for provider, state in zip(worker.providers, states, strict=True)
            ],
        )

    async def _breakers(self) -> list[pb.Breaker]:
        found = await self._modes.apply()
        return [_breaker(breaker, found.get(name)) for name, breaker in sorted(self._modes.breakers.items())]


async def _given(ids: Sequence[str], start: int) -> AsyncIterator[Batch]:
    for first in range(max(start, 0), len(ids), MAX_BATCH):
        yield ids[first : first + MAX_BATCH], (first + MAX_BATCH, *FIRST)


def _ids(fields: Fields, ids: Sequence[str]) -> list[str]:
    if not 1 <= len(ids) <= MAX_IDS:
        fields.wrong("jobs.job_ids", Rule.WRONG_COUNT, max=MAX_IDS, count=len(ids))
    for number, id in enumerate(ids):
        if not id:
            fields.wrong(f"jobs.job_ids[{number}]", Rule.REQUIRED)
        elif len(id) > MAX_ID:
            fields.wrong(f"jobs.job_ids[{number}]", Rule.TOO_LONG, limit=MAX_ID, length=len(id))
        elif not printable(id):
            fields.wrong(f"jobs.job_ids[{number}]", Rule.NOT_PRINTABLE)
        elif id in ids[:number]:
            fields.wrong(f"jobs.job_ids[{number}]", Rule.GIVEN_TWICE)
    return list(ids)


def _filter(fields: Fields) -> Filter:
    given = fields.child("filter", required=False)
    if given is None:
        return ALL
    first, before = given.time("created_from_time"), given.time("created_before_time")
    return Filter(
        given.identifier("note", max_length=MAX_NOTE, required=False),
        0 if first is None else int(first.timestamp() * 1000),
        LATEST if before is None else int(before.timestamp() * 1000),
    )


def _described(request: Any) -> str:
    """Describe a selection for the audit."""
    if request.WhichOneof("selection") == "jobs":
        return f"jobs: {', '.join(request.jobs.job_ids)}"
    return f"filter: {MessageToJson(request.filter, indent=None) if request.filter.ListFields() else 'all'}"


def _change_of(fields: Fields, request: Any, detail: str, *, target: str = "queue") -> Change:
    reason = fields.text("reason", min_length=1, max_length=MAX_REASON)
    method = type(request).__name__.removesuffix("Request")
    name = getattr(request, target).strip()
    return Change(f"aud_{secrets.token_hex(12)}", context.caller.get(), method, name, detail[:MAX_DETAIL], reason)


def _job(row: Row) -> pb.Job:
    return pb.Job(
        queue=row["queue"],
        job_id=row["id"],
        state=pb.JobState.Value(f"JOB_STATE_{row['state'].upper()}"),
        **{name: row[name] for name in ("priority", "claims", "failures", "crashes", "provider", "note")},
        due_time=_timestamp(row["due_at"]),
        create_time=_timestamp(row["created_at"]),
        finish_time=_timestamp(row["finished_at"]),
        expires_time=_timestamp(row["expires_at"]),
        outcome_unknown=bool(row["attempted"]),
        correlation_id=row["trace"].partition(" ")[0],
        payload_bytes=row["payload_bytes"],
    )


def _breaker(breaker: CircuitBreaker, row: Row | None) -> pb.Breaker:
    mode = AUTOMATIC if row is None else row["mode"]
    return pb.Breaker(
        breaker=breaker.name,
        mode=pb.BreakerMode.Value(f"BREAKER_MODE_{mode}"),
        state=pb.BreakerState.Value(f"BREAKER_STATE_{breaker.state}"),
        retry_after=_duration(round(breaker.retry_after() * 1000)) if mode == AUTOMATIC else None,
        set_by="" if row is None else row["set_by"],
        reason="" if row is None else row["reason"],
        set_time=None if row is None else _timestamp(row["set_at"]),
    )


def _entry(row: Row) -> pb.AuditEntry:
    names = ("caller", "method", "target", "detail", "reason", "changed", "refused")
    return pb.AuditEntry(
        audit_id=row["id"], create_time=_timestamp(row["created_at"]), **{name: row[name] for name in names}
    )


def _timestamp(milliseconds: int | None) -> Timestamp | None:
    if milliseconds is None:
        return None
    time = Timestamp()
    time.FromMilliseconds(milliseconds)
    return time


def _duration(milliseconds: int) -> Duration:
    duration = Duration()
    duration.FromMilliseconds(milliseconds)
    return duration


class QueueAdmin(NamedTuple):
    """The service of a process, and the worker that applies the breakers' modes."""

    service: Service
    modes: BreakerModes


async def queue_admin(database: Database, workers: Sequence[Worker], breakers: Sequence[CircuitBreaker]) -> QueueAdmin:
    """Make the service of a process; the breakers that an operator holds open are open when this returns."""
    modes = BreakerModes(database, breakers)
    await modes.apply()
    servicer = QueueAdminServicer(database, workers, modes)
    return QueueAdmin(Service(NAME, add_QueueAdminServiceServicer_to_server, servicer), modes)
