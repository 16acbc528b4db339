"""
The durable queue: a job is a promise to call a handler.

It is stored with the record it belongs to, before the promise is given, and leaves the queue in the transaction that
stores what the handler learnt. Everything here is a transaction or a value; `worker.py` has the loop.

    queued ──claim──▶ running ──▶ done
      ▲  ▲               │
      │  └── Later, failure ──▶ dead (Never, or tried until expires_at)
      └── replay, unpark ── dead, parked          queued ──▶ cancelled

A running job's `due_at` is the end of its lease: when that passes, its worker has stalled and the job may be claimed
again. `claims` fences: an outcome counts only for the latest claim.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeAlias

from services.chassis import context
from services.chassis.database.transactions import Row, Transaction, maybe_one, one, rows
from services.chassis.queue import rate_limit
from services.chassis.queue.rate_limit import RateLimit

#: Priorities: verification codes go before confirmations and notices, these before reminders.
CODES, NOTICES, REMINDERS = 0, 1, 2
PRIORITIES = (CODES, NOTICES, REMINDERS)

#: Claims that stalled while the job ran alone; a job that kills its worker this often is given up.
MAX_CRASHES = 5
#: Failed tries before a job is given up, however late it is.
MIN_TRIES = 5


class LeaseLost(Exception):  # noqa: N818 - an outcome, not an error: somebody else has this job now
    """Stop, and store nothing: the claim is another worker's, or too short for the act."""


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
    #: The provider that the claim chose: one of the queue's routes.
    provider: str
    #: 1 when expires_at had passed at the claim: the handler says whether the job is still worth doing.
    expired: int

    @property
    def outcome_unknown(self) -> bool:
        """An earlier attempt may have reached the provider: ask there before doing it again."""
        return self.attempted == 1


@dataclass(frozen=True)
class Complete:
    """The job is finished; `transaction(*args)` stores what was learnt, together with that."""

    transaction: Callable[..., Transaction[object]] | None = None
    args: tuple[object, ...] = ()

    @classmethod
    def storing(cls, transaction: Callable[..., Transaction[object]], *args: object) -> Complete:
        return cls(transaction, args)


@dataclass(frozen=True)
class Snooze:
    """Postponed, which is no failure. With `pause` all jobs wait that need the same provider, on all replicas."""

    seconds: float
    reason: str
    pause: bool = False


@dataclass(frozen=True)
class Discard:
    """A dead letter at once."""

    reason: str


Outcome: TypeAlias = Complete | Snooze | Discard


class MarkAttempted(Protocol):
    """Called just before a request that cannot be taken back; `transaction(*args)` is stored together with that."""

    async def __call__(
        self, seconds: float, transaction: Callable[..., Transaction[object]] | None = None, /, *args: object
    ) -> None: ...


@dataclass(frozen=True)
class Route:
    """
    One provider of a queue.

    `capacity` says how many calls its breaker lets through. Its rate limit and its pauses are shared by all replicas.
    """

    provider: str
    capacity: Callable[[], int]
    rate_limit: RateLimit | None = None


@dataclass(frozen=True)
class Queue:
    """
    What a process does with the jobs of one name.

    The handler calls `mark_attempted(seconds)` just before an act that cannot be taken back. `on_dead(job, reason)` is
    the transaction that tells the record that its job was given up.

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
    #: A job that is done at the first try is logged at DEBUG only: the service that it calls logs the same.
    quiet: bool = False
    #: Days a finished job is kept; while it is, its id cannot be added again.
    retention_days: int = 35
    routes: tuple[Route, ...] = ()
    #: Deletes a small batch of what the service need not keep; returns the number of rows.
    purge: Callable[[], Transaction[int]] | None = None
    #: Returns why an operator must not replay a dead letter, or nothing; it gets the row of `operations.show`.
    refuse_replay: Callable[[Row], Transaction[str]] | None = None

    def route(self, provider: str) -> Route:
        """Return the route of a provider; the queue's own where it has none."""
        own = Route(self.name, lambda: self.concurrency, self.rate_limit)
        return next((route for route in self.routes if route.provider == provider), own)

    @property
    def lease_ms(self) -> int:
        """Twice the deadline, so that no heartbeat is needed."""
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


# Due and queued: a new job, or one that failed. Due and running: its worker stalled without an outcome.
# The IN (...) stands verbatim because SQLite uses the partial index only then; equality of queue and priority because
# an ORDER BY over all priorities reads every job that is scheduled ahead.
def live(priority: object, state: str) -> str:
    return f"queue = :queue AND priority = {priority} AND state IN ('queued', 'running') AND state = {state}"


# A lost answer is looked for at the provider that was asked. Every other job is `free`: any provider may take it.
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


# Whether a claim is worth its commit, by priority; and when the next job will be due.
def _peek_at(priority: int) -> str:
    queued, running = live(priority, "'queued'"), live(priority, "'running'")
    return f"""
        SELECT {priority} AS priority, now_ms() AS now,
            CASE WHEN EXISTS (SELECT 1 FROM job WHERE {queued} AND due_at <= now_ms() AND {OF_ROUTE})
                THEN 1 ELSE 0 END AS due,
            (SELECT MIN(due_at) FROM job WHERE {running} AND due_at <= now_ms() AND {OF_ROUTE}) AS stalled_at,
            (SELECT MIN(due_at) FROM job WHERE {queued} AND due_at > now_ms()) AS next_at
    """


PEEK = " UNION ALL ".join(map(_peek_at, PRIORITIES))

# Ours still, and long enough for the act itself: otherwise somebody else has it, or soon will.
MARK_ATTEMPTED = """
    UPDATE job SET attempted = 1
    WHERE queue = :queue AND id = :id AND claims = :claims AND state = 'running' AND due_at >= now_ms() + :act
    RETURNING id
"""

FINISH = """
    UPDATE job SET state = :state, note = :note, attempted = :attempted, crashes = 0, finished_at = now_ms(),
        payload = CASE WHEN :state = 'done' THEN :nothing ELSE payload END
    WHERE queue = :queue AND id = :id AND claims = :claims AND state = 'running'
    RETURNING id
"""

# Given up when the next try would come too late and it was really tried: a job that a pause or an open breaker held
# back past its expires_at still gets its tries.
AGAIN = """
    UPDATE job SET
        state = CASE WHEN :failures > 0 AND failures + :failures >= :least AND now_ms() + :delay > expires_at
            THEN 'dead' ELSE 'queued' END,
        finished_at = CASE WHEN :failures > 0 AND failures + :failures >= :least AND now_ms() + :delay > expires_at
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
    Queue a job, unless its id is known. `due_at` None is now; `expires_at` None is a day after that.

    `trace` None: it is logged as what runs now is. A transaction that is committed with others has to say it.
    """
    row = await maybe_one(
        ADD, queue=queue, id=id, payload=payload, priority=priority, due_at=due_at, expires_at=expires_at,
        trace=context.trace() if trace is None else trace, state="queued", lease=0, claims=0,
    )  # fmt: skip
    return row is not None


async def add_claimed(
    queue: Queue, id: str, payload: bytes, *, priority: int = NOTICES, expires_at: int | None = None, trace: str = ""
) -> Job:
    """Queue a job already claimed by the caller, who runs it with `Worker.perform`; if he dies, the queue does."""
    row = await one(
        ADD, queue=queue.name, id=id, payload=payload, priority=priority, due_at=None, expires_at=expires_at,
        trace=trace, state="running", lease=queue.lease_ms, claims=1,
    )  # fmt: skip
    return job_of(row)


@dataclass(frozen=True)
class QueueSnapshot:
    """
    What a look saw.

    `stalled_for` is the seconds since the oldest lease ended whose worker is gone, None where there is none. `wait` is
    the seconds after which something more may be due, where that is known.
    """

    due: tuple[int, ...] = ()
    stalled_for: float | None = None
    wait: float | None = None
    paused: bool = False


async def peek(queue: str, provider: str = "", *, free: bool = True) -> QueueSnapshot:
    """Look without a lock at what is due for a provider, by priority. Costs nothing but a read."""
    provider = provider or queue
    found = await rows(PEEK, queue=queue, provider=provider, free=int(free))
    now = found[0]["now"]
    state = await rate_limit.peek(provider)
    if state.paused_for > 0:
        return QueueSnapshot(wait=state.paused_for, paused=True)
    next_at = [row["next_at"] for row in found if row["next_at"] is not None]
    stalled_at = [row["stalled_at"] for row in found if row["stalled_at"] is not None]
    return QueueSnapshot(
        due=tuple(row["priority"] for row in found if row["due"]),
        stalled_for=(now - min(stalled_at)) / 1000 if stalled_at else None,
        wait=(min(next_at) - now) / 1000 if next_at else None,
    )


@dataclass(frozen=True)
class Claimed:
    """
    What a claim got.

    `recovering`: the queue was paused and the job is its trial. `full`: the provider can take no more now.
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
    Claim what is due and can start now: within the slots and the provider's rate limit; one trial after a pause.

    Without `free`, only jobs whose answer this provider lost: a provider before it can take the others.
    With `stalled`, one job whose worker is gone. Only for a worker that runs nothing else: it may be what killed it.
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
    """Claim this job, due or backing off; None while another has it, or when it is finished."""
    row = await maybe_one(CLAIM_ONE, queue=queue.name, id=id, lease=queue.lease_ms)
    return None if row is None else job_of(row)


async def mark_attempted(job: Job, act_ms: int, stored: Complete = Complete()) -> None:
    if await maybe_one(MARK_ATTEMPTED, queue=job.queue, id=job.id, claims=job.claims, act=act_ms) is None:
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
    # Where its provider is paused, the job is due at once: another provider of the queue may take it.
    await again(job, 0.0 if outcome.pause else outcome.seconds, outcome.reason, failures=0)
    if outcome.pause:
        await rate_limit.pause(job.provider or job.queue, outcome.seconds, outcome.reason)


async def fail(job: Job, delay: float, note: str, on_dead: Callable[[Job, str], Transaction[object]]) -> bool:
    """Back off after a failure; True if the job was given up instead."""
    given_up = await again(job, delay, note, failures=1) == "dead"
    if given_up:
        await on_dead(job, note)
    return given_up


async def again(job: Job, delay: float, note: str, *, failures: int) -> str:
    row = await maybe_one(
        AGAIN, queue=job.queue, id=job.id, claims=job.claims, attempted=job.attempted, delay=int(delay * 1000),
        note=note, failures=failures, least=MIN_TRIES,
    )  # fmt: skip
    if row is None:
        raise LeaseLost(job.id)
    return str(row["state"])


def job_of(row: Row) -> Job:
    return Job(**{field.name: row[field.name] for field in fields(Job)})


def attempted_as(job: Job, attempted: bool) -> Job:
    return replace(job, attempted=int(attempted))


# What was called off needs no words any more.
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
    """Call off a job; False is too late: it runs, it ran, or it may have been done."""
    return await maybe_one(CANCEL, queue=queue, id=id, nothing=b"") is not None


async def reschedule(queue: str, id: str, due_at: int, expires_at: int | None = None) -> bool:
    return await maybe_one(RESCHEDULE, queue=queue, id=id, due_at=due_at, expires_at=expires_at) is not None
