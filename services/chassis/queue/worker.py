"""
The loop of a queue: claim the jobs that can start now, run each under a deadline, store its outcome.

A worker claims no job that would wait in memory. An event stops it, never a cancellation. An outage of the database
counts as no job's failure.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from services.chassis import metrics
from services.chassis.context import restored
from services.chassis.database.transactions import Database, Transaction
from services.chassis.errors import BreakerOpen, CredentialsRefused, ProviderThrottled, ServiceError, Unavailable
from services.chassis.outbound import deadline
from services.chassis.queue import jobs, operations, rate_limit
from services.chassis.queue.jobs import Complete, Discard, Job, LeaseLost, Outcome, Queue, Route, Snooze

log = structlog.get_logger()

#: Seconds between two polls of an idle queue. A job that this process adds wakes the worker at once.
POLL = 0.25
#: Seconds for which a stalled job waits for an idle worker. After that the worker starts nothing else.
MAX_STALLED = 3.0
#: Seconds until refused credentials are tried again.
CREDENTIALS_PAUSE = 60.0
#: Seconds between two rounds of maintenance: metrics, retention, the clock.
MAINTENANCE_INTERVAL = 5.0
#: Seconds that a failed job waits.
MIN_BACKOFF, MAX_BACKOFF = 1.0, 3600.0


def backoff(failures: int) -> float:
    """Return a random number of seconds between 1 and a ceiling that doubles with each failure, up to an hour."""
    ceiling: float = min(MAX_BACKOFF, MIN_BACKOFF * 2**failures)
    return MIN_BACKOFF + random.random() * (ceiling - MIN_BACKOFF)  # noqa: S311 - no secret


def snooze_for(error: BaseException) -> Snooze | None:
    """Return how an error postpones a job; None if it counts as a failure."""
    match error:
        case BreakerOpen():
            return Snooze(error.retry_after or 1.0, error.reason)
        case CredentialsRefused():
            return Snooze(CREDENTIALS_PAUSE, error.reason, pause=True)
        case ProviderThrottled():
            return Snooze(error.retry_after or 1.0, error.reason, pause=True)
    return None


class Worker:
    """Run the jobs of one queue. `capacity()` is the number of calls that the handler's breaker lets through now."""

    def __init__(self, database: Database, queue: Queue, capacity: Callable[[], int] | None = None) -> None:
        self._database = database
        self._queue = queue
        only = Route(queue.name, capacity or (lambda: queue.concurrency), queue.rate_limit)
        self._routes = queue.routes or (only,)
        self._woken = asyncio.Event()
        self._stopping = False
        self._running: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Event()  #: Closed while a stalled job has to run alone.
        self._gate.set()
        self._held = 0  #: Running jobs that wait at the gate.
        self._poll_at = 0.0
        self._store_retry = 0.0
        self._wait: float | None = None
        self._refill_at = -1  #: Poll again when so few jobs run; -1 if nothing more was due.

    @property
    def queue(self) -> Queue:
        return self._queue

    @property
    def providers(self) -> Sequence[str]:
        """Name what can do its jobs, in the order of preference."""
        return [route.provider for route in self._routes]

    def wake(self) -> None:
        """Poll now, because this process has added a job."""
        self._woken.set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns when the running jobs have stored their outcomes."""
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        maintenance = asyncio.create_task(self._maintain())
        try:
            while not self._stopping:
                self._woken.clear()
                if not await self._turn():
                    await self._idle()
        finally:
            maintenance.cancel()
            with suppress(asyncio.CancelledError):
                await maintenance
            self._gate.set()
            while self._running:
                await asyncio.wait(self._running)

    async def perform(self, job: Job, *, recovering: bool = False) -> None:
        """
        Run a job that the caller has claimed; raise what the handler raised, after the outcome is stored.

        Cancelling the caller does not cancel the job.
        """
        await asyncio.shield(self._start(job, recovering=recovering))

    async def _turn(self) -> bool:
        """
        Claim and start the jobs that can start, route by route; return whether more may be due now.

        A later route takes new work only while every earlier one is full, paused or open. Otherwise a job that is added
        between two claims would go to the provider that is meant for emergencies.
        """
        started, free = False, True
        for route in self._routes:
            began, full = await self._turn_of(route, free=free)
            started, free = started or began, free and full
        return started

    async def _turn_of(self, route: Route, *, free: bool) -> tuple[bool, bool]:
        """Return whether anything was started, and whether the route can take no more now."""
        capacity, now = route.capacity(), asyncio.get_running_loop().time()
        slots = min(self._queue.concurrency - len(self._running), capacity)
        if capacity <= 0:
            self._gate.set()
            return False, True
        if slots <= 0 and now < self._poll_at and self._gate.is_set():
            return False, False
        self._poll_at = now + POLL  # a full worker polls too, because a job may have stalled
        try:
            snapshot = await self._database.read(jobs.peek, self._queue.name, route.provider, free=free)
            self._wait = snapshot.wait
            alone = self._may_run_alone(snapshot.stalled_for)
            if not alone and (slots <= 0 or not snapshot.due or not self._gate.is_set()):
                return False, snapshot.paused
            claimed = await self._database.run(
                jobs.claim, self._queue, slots, snapshot.due, provider=route.provider, free=free, stalled=alone
            )
        except Unavailable as error:
            self._gate.set()
            self._store_retry = min(5.0, self._store_retry * 2 + POLL)
            log.warning("queue.claim_failed", queue=self._queue.name, reason=error.reason)
            return False, False
        self._store_retry = 0.0
        started = [self._start(job, recovering=claimed.recovering, alone=alone) for job in claimed.jobs]
        if alone and started:
            await asyncio.wait(started)
        self._gate.set()
        # Claiming a few jobs together costs little more than claiming one, so wait until several slots are free.
        self._refill_at = len(self._running) * 3 // 4 if len(started) == slots else -1
        return bool(started), claimed.full

    def _may_run_alone(self, stalled_for: float | None) -> bool:
        """
        Return whether a stalled job may be claimed now. It may have killed its worker, so nothing runs beside it.

        If it has waited too long, the gate closes: jobs that RPCs bring wait there until the stalled job has ended.
        """
        idle = len(self._running) == self._held
        if stalled_for is None or (not idle and stalled_for < MAX_STALLED):
            self._gate.set()
            return False
        self._gate.clear()
        self._refill_at = 0
        return idle

    async def _idle(self) -> None:
        poll = POLL * (0.75 + random.random() / 2)  # noqa: S311 - no secret
        next_due = poll if self._wait is None else max(self._wait, 0.001)
        pause = self._store_retry or min(poll, next_due)
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._woken.wait()

    def _start(self, job: Job, *, recovering: bool, alone: bool = False) -> asyncio.Task[None]:
        task = asyncio.create_task(self._work(job, recovering=recovering, alone=alone))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # stored and logged; only `perform` raises it
        self._wake_if_few()

    def _wake_if_few(self) -> None:
        if len(self._running) - self._held <= self._refill_at:
            self._woken.set()

    async def _work(self, job: Job, *, recovering: bool, alone: bool) -> None:
        attempted = False
        if not alone and not self._gate.is_set():
            self._held += 1
            self._wake_if_few()
            await self._gate.wait()
            self._held -= 1

        async def mark_attempted(
            seconds: float, transaction: Callable[..., Transaction[object]] | None = None, /, *args: object
        ) -> None:
            nonlocal attempted
            await self._database.run(jobs.mark_attempted, job, int(seconds * 1000), Complete(transaction, args))
            attempted = True

        outcome: Outcome | None = None
        error: BaseException | None = None
        with restored(job.trace), deadline.within(self._queue.deadline):
            try:
                if alone and job.crashes >= jobs.MAX_CRASHES:
                    outcome = Discard("CRASHES")
                else:
                    async with asyncio.timeout(self._queue.deadline):
                        outcome = await self._queue.handler(job, mark_attempted)
            except LeaseLost:
                log.warning("job.lease_lost", queue=job.queue, job=job.id, claims=job.claims)
                return
            except Exception as raised:  # noqa: BLE001 - one job's error must not end the worker
                error = raised
            definite = outcome is not None or (isinstance(error, ServiceError) and error.definite)
            job = jobs.attempted_as(job, not definite if attempted else job.outcome_unknown)
            await self._store(job, outcome or snooze_for(error or TimeoutError()), error, recovering=recovering)
        if error is not None:
            raise error

    async def _store(self, job: Job, outcome: Outcome | None, error: BaseException | None, *, recovering: bool) -> None:
        """Store an outcome in one fenced transaction. If the database is away, the job comes back after its lease."""
        try:
            name = await self._finish(job, outcome, error)
            if recovering and not isinstance(outcome, Snooze):
                await self._database.run(rate_limit.resume, job.provider or job.queue)
                self.wake()
        except (LeaseLost, Unavailable) as lost:
            name = "lost"
            log.warning("job.outcome_lost", queue=job.queue, job=job.id, error=type(lost).__name__)
        metrics.jobs_total.labels(job.queue, name).inc()
        reason = outcome.reason if isinstance(outcome, Snooze | Discard) else reason_of(error)
        bug = error if error is not None and not isinstance(error, ServiceError | TimeoutError) else None
        first = job.claims == 1 and job.failures == 0
        quiet = 10 if self._queue.quiet and first and name == "done" else 20
        log.log(
            40 if bug or name == "dead" else 30 if name in {"failed", "lost"} else quiet,
            "job.ran", queue=job.queue, job=job.id, outcome=name, reason=reason or None,
            claims=job.claims if job.claims > 1 else None, failures=job.failures or None,
            outcome_unknown=job.outcome_unknown or None, exc_info=bug,
        )  # fmt: skip

    async def _finish(self, job: Job, outcome: Outcome | None, error: BaseException | None) -> str:
        run, on_dead = self._database.run, self._queue.on_dead
        match outcome:
            case Complete():
                await run(jobs.complete, job, outcome)
                return "done"
            case Snooze():
                await run(jobs.snooze, job, outcome)
                return "snoozed"
            case Discard():
                await run(jobs.discard, job, outcome.reason, on_dead)
                return "dead"
        delay = max(backoff(job.failures), getattr(error, "retry_after", None) or 0.0)
        return "dead" if await run(jobs.fail, job, delay, reason_of(error), on_dead) else "failed"

    async def _maintain(self) -> None:
        """Set the metrics, delete old rows, and correct the queue after the clock was set back."""
        name, kept_ms = self._queue.name, self._queue.retention_days * 86_400_000
        purged, clock = 0, None
        while True:
            with suppress(Unavailable):
                census = await self._database.read(operations.census, name, self.providers)
                metrics.queue_census(name, census)
                if clock is None or census["now"] < clock:
                    await self._database.run(operations.clock_set_back, name, self._queue.lease_ms)
                    self.wake()
                clock = census["now"]
                purged = await self._database.run(operations.purge, name, kept_ms)
                purged += await self._database.run(operations.purge_dead, name, kept_ms)
                if self._queue.purge is not None:
                    purged += await self._database.run(self._queue.purge)
            await asyncio.sleep(0.1 if purged else MAINTENANCE_INTERVAL)


def reason_of(error: BaseException | None) -> str:
    """Return an error's reason or class. Its text is not stored, because it may name a person."""
    return "" if error is None else error.reason if isinstance(error, ServiceError) else type(error).__name__
