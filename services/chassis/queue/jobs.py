"""
The durable queue: a job is a promise to call a handler.

A transaction stores a job together with the record it belongs to. Another one stores the outcome together with what the
handler changes in that record. This module holds transactions and values; `worker.py` has the loop.

    queued ──claim──▶ running ──▶ done
      ▲  ▲               │
      │  └ Snooze, failure ──▶ dead (Discard, or failed until expires_at)
      └── replay, unpark ── dead, parked          queued ──▶ cancelled

A running job's `due_at` is the end of its lease. After that its worker has stalled, and another one may claim the job.
`claims` is the fencing token: an outcome counts only for the latest claim.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeAlias

from services.chassis import context
from services.chassis.database.transactions import Row, Transaction, maybe_one, one, rows
from services.chassis.queue import rate_limit
from services.chassis.queue.rate_limit import RateLimit

#: Priorities: verification codes go before confirmations and notices, and those before reminders.
CODES, NOTICES, REMINDERS = 0, 1, 2
PRIORITIES = (CODES, NOTICES, REMINDERS)

#: A job that stalls this often while it runs alone kills its workers. It becomes a dead letter.
MAX_CRASHES = 5
#: A job becomes a dead letter after this many failures at the earliest, even if it has expired.
MIN_TRIES = 5


class LeaseLost(Exception):  # noqa: N818 - an outcome, not an error: another worker has this job now
    """Stop and store nothing: another worker has the job, or the lease ends before the request would."""


@dataclass(frozen=True)
class Job:
    """A claimed job. Times are epoch milliseconds of the database's clock."""

    queue: str
    id: str
    priority: int
    claims: int
    attempted: int
    failures: int
    crashes: int
    payload: bytes
    trace: str
    due_at: int
    created_at: int
    expires_at: int
    #: The provider that the claim chose among the queue's routes.
    provider: str
    #: 1 if `expires_at` had passed at the claim. The handler decides whether the job is still useful.
    expired: int

    @property
    def outcome_unknown(self) -> bool:
        """Return whether an earlier attempt may have reached the provider, which must be asked before another one."""
        return self.attempted == 1


@dataclass(frozen=True)
class Complete:
    """Finish the job, and run `transaction(*args)` in the same transaction."""

    transaction: Callable[..., Transaction[object]] | None = None
    args: tuple[object, ...] = ()

    @classmethod
    def storing(cls, transaction: Callable[..., Transaction[object]], *args: object) -> Complete:
        return cls(transaction, args)


@dataclass(frozen=True)
class Snooze:
    """Postpone the job without counting a failure. `pause` stops all jobs of the same provider, on all replicas."""

    seconds: float
    reason: str
    pause: bool = False


@dataclass(frozen=True)
class Discard:
    """Make the job a dead letter at once."""

    reason: str


Outcome: TypeAlias = Complete | Snooze | Discard


class MarkAttempted(Protocol):
    """
    Store that a request to the provider begins, and run `transaction(*args)` in the same transaction.

    The handler calls it before a request that cannot be undone. `seconds` is the timeout of that request.
    """

    async def __call__(
        self, seconds: float, transaction: Callable[..., Transaction[object]] | None = None, /, *args: object
    ) -> None: ...


@dataclass(frozen=True)
class Route:
    """
    One provider of a queue.

    `capacity()` is the number of calls that its breaker lets through now. All replicas share its rate limit and pauses.
    """

    provider: str
    capacity: Callable[[], int]
    rate_limit: RateLimit | None = None


@dataclass(frozen=True)
class Queue:
    """
    What a process does with the jobs of one name.

    The handler calls `mark_attempted(seconds)` before a request that cannot be undone. `on_dead(job, reason)` is the
    transaction that tells the record that its job became a dead letter.

    `routes` are the providers that can do the jobs, in the order of preference. A claim takes the first that has
    capacity, is not paused and has a free slot. A job whose outcome is unknown stays with the provider that was asked.
    A queue without routes has one provider, which has the queue's name and `rate_limit`.
    """

    name: str
    handler: Callable[[Job, MarkAttempted], Awaitable[Outcome]]
    on_dead: Callable[[Job, str], Transaction[object]]
    deadline: float = 10.0
    concurrency: int = 20
    rate_limit: RateLimit | None = None
    #: Log a job that succeeds at its first claim at DEBUG only, because the service that it calls logs the same.
    quiet: bool = False
    #: Days for which a finished job is kept. Until then, its id cannot be added again.
    retention_days: int = 35
    routes: tuple[Route, ...] = ()
    #: Delete a small batch of the service's old rows; return how many.
    purge: Callable[[], Transaction[int]] | None = None
    #: Returns why an operator must not replay a dead letter, or nothing; it gets the row of `operations.show`.
    refuse_replay: Callable[[Row], Transaction[str]] | None = None

    def route(self, provider: str) -> Route:
        """Return the route of a provider, or the queue's own if it has no routes."""
        own = Route(self.name, lambda: self.concurrency, self.rate_limit)
        return next((route for route in self.routes if route.provider == provider), own)

    @property
    def lease_ms(self) -> int:
        """Return twice the deadline, so that no heartbeat is needed."""
        return int(self.deadline * 2000)


COLUMNS = """job.queue, job.id, job.priority, job.claims, job.attempted, job.failures, job.crashes, job.payload,
        job.trace, job.due_at, job.created_at, job.expires_at, job.provider,
        CASE WHEN job.expires_at < now_ms() THEN 1 ELSE 0 END AS expired"""

ADD = f"""
    INSERT INTO job (queue, id, priority, state, due_at, claims, payload, trace, created_at, expires_at)
    VALUES (:queue, :id, :priority, :state,
        COALESCE(CAST(:due_at AS BIGINT), now_ms() + CAST(:lease AS BIGINT)), :claims, :payload, :trace, now_ms(),
        COALESCE(CAST(:expires_at AS BIGINT), COALESCE(CAST(:due_at AS BIGINT), now_ms()) + 86400000))
    ON CONFLICT (queue, id) DO NOTHING
    RETURNING {COLUMNS}
"""


# A due queued job is new, snoozed or failed. A due running job has stalled.
# SQLite uses the partial index only if its condition stands here verbatim. An ORDER BY over all priorities would read
# every job that is scheduled ahead, so each statement asks for one priority.
def live(priority: object, state: str) -> str:
    return f"queue = :queue AND priority = {priority} AND state IN ('queued', 'running') AND state = {state}"


# Only the provider that got the first request can say what became of it. Every other job is `free` for any provider.
OF_ROUTE = "(attempted = 1 AND provider = :provider OR :free = 1 AND (attempted = 0 OR provider = ''))"
CLAIM = f"""
    WITH due AS MATERIALIZED (
        SELECT queue, id FROM job WHERE {live(":priority", ":state")} AND due_at <= now_ms() AND {OF_ROUTE}
        ORDER BY due_at LIMIT :slots FOR UPDATE SKIP LOCKED
    )
    UPDATE job SET state = 'running', claims = claims + 1, due_at = now_ms() + :lease, provider = :provider,
        crashes = CASE WHEN state = 'running' THEN crashes + 1 ELSE crashes END
    FROM due WHERE job.queue = due.queue AND job.id = due.id
    RETURNING {COLUMNS}
"""

CLAIM_ONE = f"""
    UPDATE job SET state = 'running', claims = claims + 1, due_at = now_ms() + :lease
    WHERE queue = :queue AND id = :id AND (state = 'queued' OR (state = 'running' AND due_at <= now_ms()))
    RETURNING {COLUMNS}
"""


# A claim costs a commit, so a worker first reads, for each priority, whether one would find something.
# MIN, not EXISTS: PostgreSQL answers EXISTS from the whole table once old statistics make it believe that much is due.
def _peek_at(priority: int) -> str:
    queued, running = live(priority, "'queued'"), live(priority, "'running'")
    return f"""
        SELECT {priority} AS priority, now_ms() AS now,
            (SELECT MIN(due_at) FROM job WHERE {queued} AND due_at <= now_ms() AND {OF_ROUTE}) AS due_at,
            (SELECT MIN(due_at) FROM job WHERE {running} AND due_at <= now_ms() AND {OF_ROUTE}) AS stalled_at,
            (SELECT MIN(due_at) FROM job WHERE {queued} AND due_at > now_ms()) AS next_at
    """


PEEK = " UNION ALL ".join(map(_peek_at, PRIORITIES))

# The lease must outlast the request. Otherwise another worker could send it at the same time.
MARK_ATTEMPTED = """
    UPDATE job SET attempted = 1
    WHERE queue = :queue AND id = :id AND claims = :claims AND state = 'running' AND due_at >= now_ms() + :timeout
    RETURNING id
"""

FINISH = """
    UPDATE job SET state = :state, note = :note, attempted = :attempted, crashes = 0, finished_at = now_ms(),
        payload = CASE WHEN :state = 'done' THEN :nothing ELSE payload END
    WHERE queue = :queue AND id = :id AND claims = :claims AND state = 'running'
    RETURNING id
"""

# A dead letter needs MIN_TRIES failures. A pause or an open breaker may hold a job back past its expires_at, and such a
# job still gets its tries.
REQUEUE = """
    UPDATE job SET
        state = CASE WHEN :failures > 0 AND failures + :failures >= :min_tries AND now_ms() + :delay > expires_at
            THEN 'dead' ELSE 'queued' END,
        finished_at = CASE WHEN :failures > 0 AND failures + :failures >= :min_tries AND now_ms() + :delay > expires_at
            THEN now_ms() ELSE NULL END,
        due_at = now_ms() + :delay, failures = failures + :failures, attempted = :attempted, crashes = 0, note = :note
    WHERE queue = :queue AND id = :id AND claims = :claims AND state = 'running'
    RETURNING state
"""


async def add(
    queue: str,
    id: str,
    payload: bytes,
    *,
    priority: int = NOTICES,
    due_at: int | None = None,
    expires_at: int | None = None,
    trace: str | None = None,
) -> bool:
    """
    Queue a job and return True; return False if the queue already has its id.

    `due_at` defaults to now, `expires_at` to a day after that, `trace` to that of the caller.
    """
    row = await maybe_one(
        ADD, queue=queue, id=id, payload=payload, priority=priority, due_at=due_at, expires_at=expires_at,
        trace=context.trace() if trace is None else trace, state="queued", lease=0, claims=0,
    )  # fmt: skip
    return row is not None


async def add_claimed(
    queue: Queue, id: str, payload: bytes, *, priority: int = NOTICES, expires_at: int | None = None, trace: str = ""
) -> Job:
    """Queue a job that the caller has claimed and runs with `Worker.perform`; if it dies, another worker runs it."""
    row = await one(
        ADD, queue=queue.name, id=id, payload=payload, priority=priority, due_at=None, expires_at=expires_at,
        trace=trace, state="running", lease=queue.lease_ms, claims=1,
    )  # fmt: skip
    return job_of(row)


@dataclass(frozen=True)
class QueueSnapshot:
    """
    Which jobs of a queue a provider could take now.

    `due` holds the priorities that have a due job. `stalled_for` is how many seconds ago the oldest lease of a stalled
    job ended. `wait` is the number of seconds until another job may be due. Both are None if there is no such job.
    """

    due: tuple[int, ...] = ()
    stalled_for: float | None = None
    wait: float | None = None
    paused: bool = False


async def peek(queue: str, provider: str = "", *, free: bool = True) -> QueueSnapshot:
    """Read which priorities have due jobs for a provider, without a lock. `free`: see `claim`."""
    provider = provider or queue
    found = await rows(PEEK, queue=queue, provider=provider, free=int(free))
    now = found[0]["now"]
    state = await rate_limit.peek(provider)
    if state.paused_for > 0:
        return QueueSnapshot(wait=state.paused_for, paused=True)
    next_at = [row["next_at"] for row in found if row["next_at"] is not None]
    stalled_at = [row["stalled_at"] for row in found if row["stalled_at"] is not None]
    return QueueSnapshot(
        due=tuple(row["priority"] for row in found if row["due_at"] is not None),
        stalled_for=(now - min(stalled_at)) / 1000 if stalled_at else None,
        wait=(min(next_at) - now) / 1000 if next_at else None,
    )


@dataclass(frozen=True)
class Claimed:
    """
    The claimed jobs.

    `recovering` is True if the provider was paused and the only job is its trial. `full` is True if the provider can
    take no more now.
    """

    jobs: tuple[Job, ...] = ()
    recovering: bool = False
    full: bool = True


async def claim(
    queue: Queue,
    slots: int,
    priorities: Sequence[int] = PRIORITIES,
    *,
    provider: str = "",
    free: bool = True,
    stalled: bool = False,
) -> Claimed:
    """
    Claim due jobs, at most as many as the slots and the provider's rate limit allow; after a pause one, as a trial.

    Without `free`, claim only jobs whose answer this provider lost, because an earlier provider can take the others.
    `stalled` claims one stalled job instead. Only a worker that runs nothing else may do so: that job may have killed
    its worker.
    """
    route = queue.route(provider)
    slots, limit = (1, None) if stalled else (slots, route.rate_limit)
    state = await rate_limit.lock(route.provider, limit) if limit else await rate_limit.peek(route.provider)
    if state.paused_for > 0:
        return Claimed()
    slots = min(slots, 1) if state.recovering else slots
    if limit is not None:
        slots = min(slots, limit.free_slots(state.free_at, state.now))
    jobs: list[Job] = []
    for priority in PRIORITIES if stalled else priorities:
        if slots > len(jobs):
            found = await rows(
                CLAIM, queue=queue.name, priority=priority, state="running" if stalled else "queued",
                slots=slots - len(jobs), lease=queue.lease_ms, provider=route.provider, free=int(free),
            )  # fmt: skip
            jobs += map(job_of, found)
    if limit is not None and jobs:
        await rate_limit.store(route.provider, limit.after(state.free_at, state.now, len(jobs)))
    return Claimed(tuple(jobs), state.recovering, full=len(jobs) >= slots)


async def claim_one(queue: Queue, id: str) -> Job | None:
    """Claim this job even if it is backing off; return None if it is finished or another worker has it."""
    row = await maybe_one(CLAIM_ONE, queue=queue.name, id=id, lease=queue.lease_ms)
    return None if row is None else job_of(row)


async def mark_attempted(job: Job, timeout_ms: int, stored: Complete = Complete()) -> None:
    if await maybe_one(MARK_ATTEMPTED, queue=job.queue, id=job.id, claims=job.claims, timeout=timeout_ms) is None:
        raise LeaseLost(job.id)
    if stored.transaction is not None:
        await stored.transaction(*stored.args)


async def complete(job: Job, outcome: Complete) -> None:
    await finish(job, "done", "")
    if outcome.transaction is not None:
        await outcome.transaction(*outcome.args)


async def discard(job: Job, reason: str, on_dead: Callable[[Job, str], Transaction[object]]) -> None:
    await finish(job, "dead", reason)
    await on_dead(job, reason)


async def finish(job: Job, state: str, note: str) -> None:
    row = await maybe_one(
        FINISH,
        queue=job.queue,
        id=job.id,
        claims=job.claims,
        attempted=job.attempted,
        state=state,
        note=note,
        nothing=b"",
    )
    if row is None:
        raise LeaseLost(job.id)


async def snooze(job: Job, outcome: Snooze) -> None:
    # If its provider is paused, the job is due at once, because another provider of the queue may take it.
    await requeue(job, 0.0 if outcome.pause else outcome.seconds, outcome.reason, failures=0)
    if outcome.pause:
        await rate_limit.pause(job.provider or job.queue, outcome.seconds, outcome.reason)


async def fail(job: Job, delay: float, note: str, on_dead: Callable[[Job, str], Transaction[object]]) -> bool:
    """Back off after a failure; return True if the job became a dead letter instead."""
    died = await requeue(job, delay, note, failures=1) == "dead"
    if died:
        await on_dead(job, note)
    return died


async def requeue(job: Job, delay: float, note: str, *, failures: int) -> str:
    row = await maybe_one(
        REQUEUE, queue=job.queue, id=job.id, claims=job.claims, attempted=job.attempted, delay=int(delay * 1000),
        note=note, failures=failures, min_tries=MIN_TRIES,
    )  # fmt: skip
    if row is None:
        raise LeaseLost(job.id)
    return str(row["state"])


def job_of(row: Row) -> Job:
    return Job(**{field.name: row[field.name] for field in fields(Job)})


def attempted_as(job: Job, attempted: bool) -> Job:
    return replace(job, attempted=int(attempted))


# A cancelled job never runs, so its payload, which may name a person, is erased.
CANCEL = """
    UPDATE job SET state = 'cancelled', payload = :nothing, finished_at = now_ms()
    WHERE queue = :queue AND id = :id AND state IN ('queued', 'parked') AND attempted = 0
    RETURNING id
"""
RESCHEDULE = """
    UPDATE job SET due_at = :due_at, expires_at = COALESCE(CAST(:expires_at AS BIGINT), expires_at + :due_at - due_at)
    WHERE queue = :queue AND id = :id AND state = 'queued' AND attempted = 0
    RETURNING id
"""


async def cancel(queue: str, id: str) -> bool:
    """Cancel a job; return False if it runs, is finished, or may have reached the provider."""
    return await maybe_one(CANCEL, queue=queue, id=id, nothing=b"") is not None


async def reschedule(queue: str, id: str, due_at: int, expires_at: int | None = None) -> bool:
    """Move a job that has not been attempted; return False if it is too late. `expires_at` moves with it by default."""
    return await maybe_one(RESCHEDULE, queue=queue, id=id, due_at=due_at, expires_at=expires_at) is not None
