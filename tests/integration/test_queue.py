"""The rules of the durable queue, on both databases. The tests move the clock instead of waiting."""

import asyncio
from dataclasses import replace

import pytest

from services.chassis.database.transactions import Database, one, rows
from services.chassis.errors import (
    CredentialsRefused,
    NotSent,
    OutcomeUnknown,
    ProviderThrottled,
    Throttled,
    Unavailable,
)
from services.chassis.queue import jobs, operations, rate_limit
from services.chassis.queue.jobs import CODES, REMINDERS, Complete, Discard, Job, MarkAttempted, Outcome, Queue, Snooze
from services.chassis.queue.rate_limit import RateLimit
from services.chassis.queue.worker import Worker


async def remember(job: Job, reason: str) -> None:
    await rows("INSERT INTO given_up (id, reason) VALUES (:id, :reason)", id=job.id, reason=reason)


async def nothing(_job: Job, _mark_attempted: MarkAttempted) -> Outcome:
    return Complete()


def queue_of(handler: object = nothing, **changes: object) -> Queue:
    return replace(Queue("post", handler, remember, deadline=10.0), **changes)  # type: ignore[arg-type]  # changes vary


QUEUE = queue_of()


@pytest.fixture
async def db(database: Database) -> Database:
    await database.run(rows, "CREATE TABLE given_up (id TEXT PRIMARY KEY, reason TEXT NOT NULL)")
    return database


async def claim_now(db: Database, slots: int = 10, queue: Queue = QUEUE) -> tuple[Job, ...]:
    return (await db.run(jobs.claim, queue, slots)).jobs


async def state_of(db: Database, id: str) -> str:
    row = await db.read(operations.show, "post", id)
    return "" if row is None else str(row["state"])


async def work(db: Database, queue: Queue, until: int = 1, capacity: int = 20) -> None:
    """Run a worker until `until` jobs are finished."""
    worker = Worker(db, queue, capacity=lambda: capacity)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(30):
        while True:
            finished = await db.read(one, "SELECT COUNT(*) AS n FROM job WHERE finished_at IS NOT NULL")
            if finished["n"] >= until:
                break
            await asyncio.sleep(0.02)
    worker.stop()
    await running


async def test_job_added_again_is_unchanged(db: Database) -> None:
    assert await db.run(jobs.add, "post", "a", b"first")
    assert not await db.run(jobs.add, "post", "a", b"second")

    assert [job.payload for job in await claim_now(db)] == [b"first"]


async def test_claim_takes_codes_before_notices_before_reminders(db: Database) -> None:
    for id, priority in (("reminder", REMINDERS), ("notice", jobs.NOTICES), ("code", CODES)):
        await db.run(jobs.add, "post", id, b"", priority=priority)

    assert [(await claim_now(db, slots=1))[0].id for _ in range(3)] == ["code", "notice", "reminder"]


async def test_job_is_claimed_once_and_only_when_due(db: Database) -> None:
    now = (await db.run(one, "SELECT now_ms() AS now"))["now"]
    await db.run(jobs.add, "post", "later", b"", due_at=now + 60_000)
    await db.run(jobs.add, "post", "now", b"")

    assert [job.id for job in await claim_now(db)] == ["now"]
    assert await claim_now(db) == ()
    db.offset_ms = 61_000
    assert [job.id for job in await claim_now(db)] == ["later"]


async def test_worker_frozen_past_its_lease_may_not_send_and_its_outcome_does_not_count(db: Database) -> None:
    await db.run(jobs.add, "post", "a", b"")
    [frozen] = await claim_now(db)
    db.offset_ms = QUEUE.lease_ms + 1_000
    [overtaking] = (await db.run(jobs.claim, QUEUE, 5, stalled=True)).jobs

    for step in (
        jobs.mark_attempted(frozen, 1_000),
        jobs.complete(frozen, Complete()),
        jobs.snooze(frozen, Snooze(1, "")),
    ):
        with pytest.raises(jobs.LeaseLost):
            await db.run(lambda step=step: step)  # type: ignore[misc]  # a coroutine made beforehand
    await db.run(jobs.mark_attempted, overtaking, 1_000)
    await db.run(jobs.complete, overtaking, Complete())

    assert await state_of(db, "a") == "done"


async def test_request_that_outlasts_its_lease_is_refused(db: Database) -> None:
    await db.run(jobs.add, "post", "a", b"")
    [job] = await claim_now(db)

    await db.run(jobs.mark_attempted, job, QUEUE.lease_ms - 1_000)
    with pytest.raises(jobs.LeaseLost):
        await db.run(jobs.mark_attempted, job, QUEUE.lease_ms + 1_000)


async def test_outcome_stays_unknown_until_a_definite_answer(db: Database) -> None:
    errors: list[Exception] = [
        OutcomeUnknown("Sandbox", None, "reset"),
        NotSent("Sandbox", None, "the lookup was refused"),  # raised before a request: says nothing of the first
        NotSent("Sandbox", None, "refused"),
    ]
    seen: list[bool] = []

    async def handler(job: Job, mark_attempted: MarkAttempted) -> Outcome:
        seen.append(job.outcome_unknown)
        if len(seen) > len(errors):
            return Complete()
        if len(seen) != 2:
            await mark_attempted(1.0)
        raise errors[len(seen) - 1]

    await db.run(jobs.add, "post", "a", b"")
    for _ in range(4):
        worker = Worker(db, queue_of(handler))
        job = await db.run(jobs.claim_one, QUEUE, "a")
        assert job is not None
        await asyncio.gather(worker.perform(job), return_exceptions=True)

    assert seen == [False, True, True, False]
    assert await state_of(db, "a") == "done"


async def test_outcome_whose_record_fails_is_not_stored(db: Database) -> None:
    async def broken() -> None:
        await rows("INSERT INTO given_up (id, reason) VALUES ('a', 'x')")
        raise ValueError("a bug")

    await db.run(jobs.add, "post", "a", b"")
    [job] = await claim_now(db)
    with pytest.raises(ValueError, match="a bug"):
        await db.run(jobs.complete, job, Complete.storing(broken))

    assert await state_of(db, "a") == "running"
    assert await db.read(rows, "SELECT id FROM given_up") == []


async def test_dead_letter_stores_its_reason_in_the_record(db: Database) -> None:
    async def handler(_job: Job, _mark_attempted: MarkAttempted) -> Outcome:
        return Discard("NO_SUCH_TEMPLATE")

    await db.run(jobs.add, "post", "a", b"")
    await work(db, queue_of(handler))

    assert await state_of(db, "a") == "dead"
    [row] = await db.read(rows, "SELECT id, reason FROM given_up")
    assert dict(row) == {"id": "a", "reason": "NO_SUCH_TEMPLATE"}
    assert await db.run(operations.replay, "post", "a")
    assert await state_of(db, "a") == "queued"


async def test_expired_job_after_the_minimum_of_tries_becomes_a_dead_letter(db: Database) -> None:
    await db.run(jobs.add, "post", "a", b"")
    for attempt in range(1, jobs.MIN_TRIES + 1):
        db.offset_ms += 2 * 86_400_000
        [job] = await claim_now(db)
        died = await db.run(jobs.fail, job, 1.0, "NOT_SENT", remember)
        assert died == (attempt == jobs.MIN_TRIES)

    assert await state_of(db, "a") == "dead"


async def test_snoozed_job_counts_no_failure(db: Database) -> None:
    await db.run(jobs.add, "post", "a", b"")
    for _ in range(20):
        db.offset_ms += 86_400_000
        [job] = await claim_now(db)
        await db.run(jobs.snooze, job, Snooze(1.0, "BREAKER_OPEN"))

    row = await db.read(operations.show, "post", "a")
    assert row is not None
    assert (row["state"], row["failures"], row["note"]) == ("queued", 0, "BREAKER_OPEN")


@pytest.mark.parametrize(
    ("error", "reason", "pause"),
    [
        (ProviderThrottled("Sandbox", None, "slow down", retry_after=30.0), "THROTTLED", 30),
        (CredentialsRefused("Sandbox", None, "401"), "PROVIDER_CREDENTIALS", 60),
    ],
)
async def test_pause_of_a_provider_ends_after_one_successful_trial(
    db: Database, error: Exception, reason: str, pause: int
) -> None:
    requests = 0

    async def handler(_job: Job, mark_attempted: MarkAttempted) -> Outcome:
        nonlocal requests
        await mark_attempted(1.0)
        requests += 1
        if db.offset_ms == 0:
            raise error
        return Complete()

    queue = queue_of(handler, concurrency=1)
    for n in range(5):
        await db.run(jobs.add, "post", str(n), b"")
    worker = Worker(db, queue)
    [job] = await claim_now(db, slots=1)
    await asyncio.gather(worker.perform(job), return_exceptions=True)

    assert await claim_now(db) == ()
    assert reason == (await db.read(operations.census, "post"))["paused"]
    with pytest.raises((Throttled, Unavailable)) as refused:
        await db.run(rate_limit.acquire, queue.name, queue.rate_limit)
    assert refused.value.reason == reason
    assert pause - 5 < (refused.value.retry_after or 0) <= pause

    db.offset_ms = (pause + 1) * 1000
    assert (await db.read(jobs.peek, "post")).due
    trial = await db.run(jobs.claim, queue, 10)
    assert (len(trial.jobs), trial.recovering) == (1, True)
    await worker.perform(trial.jobs[0], recovering=True)
    assert (await db.read(operations.census, "post"))["paused"] == ""
    await work(db, queue, until=5)
    assert requests == 6


async def test_rate_limit_is_shared_and_its_burst_is_not_exceeded(db: Database) -> None:
    queue = queue_of(rate_limit=RateLimit(per_second=10, burst=3))
    for n in range(10):
        await db.run(jobs.add, "post", str(n), b"")

    assert len(await claim_now(db, queue=queue)) == 3
    with pytest.raises(Throttled):
        await db.run(rate_limit.acquire, queue.name, queue.rate_limit)
    db.offset_ms = 250
    assert len(await claim_now(db, queue=queue)) in {2, 3}
    db.offset_ms = 60_000
    assert len(await claim_now(db, queue=queue)) == 3


async def test_cancel_of_a_running_or_attempted_job_is_refused(db: Database) -> None:
    for id in ("waiting", "outcome_unknown", "running"):
        await db.run(jobs.add, "post", id, b"")
    outcome_unknown = await db.run(jobs.claim_one, QUEUE, "outcome_unknown")
    assert outcome_unknown is not None
    await db.run(jobs.snooze, replace(outcome_unknown, attempted=1), Snooze(60, "OUTCOME_UNKNOWN"))
    await db.run(jobs.claim_one, QUEUE, "running")

    assert [await db.run(jobs.cancel, "post", id) for id in ("waiting", "outcome_unknown", "running")] == [
        True,
        False,
        False,
    ]
    assert not await db.run(jobs.reschedule, "post", "outcome_unknown", 0)


async def test_job_can_be_rescheduled_and_parked(db: Database) -> None:
    await db.run(jobs.add, "post", "a", b"")
    now = (await db.run(one, "SELECT now_ms() AS now"))["now"]

    assert await db.run(jobs.reschedule, "post", "a", now + 60_000)
    assert await claim_now(db) == ()
    assert await db.run(operations.park, "post", "a")
    db.offset_ms = 120_000
    assert await claim_now(db) == ()
    assert [row["id"] for row in await db.read(operations.list_jobs, "post", "parked")] == ["a"]
    assert await db.run(operations.unpark, "post", "a")
    assert [job.id for job in await claim_now(db)] == ["a"]


async def test_purge_deletes_old_finished_jobs_and_keeps_dead_letters(db: Database) -> None:
    for id in ("done", "dead"):
        await db.run(jobs.add, "post", id, b"secret")
    dead, done = sorted(await claim_now(db), key=lambda job: job.id)
    await db.run(jobs.complete, done, Complete())
    await db.run(jobs.discard, dead, "NO", remember)
    assert (await db.read(one, "SELECT payload FROM job WHERE id = 'done'"))["payload"] == b""

    db.offset_ms = 10_000
    assert await db.run(operations.purge, "post", 60_000) == 0
    db.offset_ms = 61_000
    assert await db.run(operations.purge, "post", 60_000) == 1
    assert (await state_of(db, "done"), await state_of(db, "dead")) == ("", "dead")


@pytest.mark.parametrize("days", [1, 35, 90])
async def test_old_dead_letter_is_purged_and_a_parked_job_is_kept(db: Database, days: int) -> None:
    for id in ("never", "tried", "parked", "young"):
        await db.run(jobs.add, "post", id, b"words of a message")
    claimed = {job.id: job for job in await claim_now(db)}
    await db.run(jobs.discard, claimed["never"], "NO", remember)
    for id in ("tried", "parked"):
        await db.run(jobs.discard, claimed[id], "NO", remember)
    assert await db.run(operations.park, "post", "parked")
    db.offset_ms = days * 86_400_000 + 1_000
    await db.run(rows, "UPDATE job SET due_at = now_ms() + 1000 WHERE id = 'young'")
    await db.run(jobs.discard, claimed["young"], "NO", remember)

    queue = queue_of(retention_days=days)
    worker = Worker(db, queue)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while await state_of(db, "never") or await state_of(db, "tried"):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)
    worker.stop()
    await running
    assert [await state_of(db, id) for id in ("parked", "young")] == ["parked", "dead"]


async def test_poison_job_among_twenty_dies_alone(db: Database) -> None:
    """All claims of the poison job's worker expire together, as after kill -9."""
    done: set[str] = set()

    async def handler(job: Job, _mark_attempted: MarkAttempted) -> Outcome:
        done.add(job.id)
        return Complete()

    for n in range(20):
        await db.run(jobs.add, "post", f"{n:02}", b"")
    assert len(await claim_now(db, slots=20)) == 20
    worker = Worker(db, queue_of(handler))
    for _ in range(20 + jobs.MAX_CRASHES):
        db.offset_ms += QUEUE.lease_ms + 1_000
        [job] = (await db.run(jobs.claim, QUEUE, 20, stalled=True)).jobs or [None]
        if job is None:
            break
        if job.id == "07" and job.crashes < jobs.MAX_CRASHES:
            continue  # it killed its worker again
        await worker._start(job, recovering=False, alone=True)

    assert len(done) == 19
    assert await state_of(db, "07") == "dead"
    [row] = await db.read(rows, "SELECT reason FROM given_up")
    assert row["reason"] == "CRASHES"


async def test_stalled_job_runs_alone(db: Database) -> None:
    running, max_running = 0, 0

    async def handler(_job: Job, _mark_attempted: MarkAttempted) -> Outcome:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Complete()

    for n in range(5):
        await db.run(jobs.add, "post", str(n), b"")
    await claim_now(db)
    db.offset_ms = QUEUE.lease_ms + 1
    await work(db, queue_of(handler), until=5)

    assert max_running == 1


class Load:
    """Run each job for 50 ms, and record the jobs that ran beside a stalled one."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.done: list[str] = []
        self.beside_stalled: set[str] = set()

    async def handle(self, job: Job, _mark_attempted: MarkAttempted) -> Outcome:
        self.running.add(job.id)
        if any(id.startswith("stalled") for id in self.running):
            self.beside_stalled |= {id for id in self.running if not id.startswith("stalled")}
        await asyncio.sleep(0.05)
        self.running.discard(job.id)
        self.done.append(job.id)
        return Complete()


async def stalled(db: Database, *ids: str, seconds: float) -> None:
    """Store jobs whose leases ended that many seconds ago."""
    for id in ids:
        await db.run(jobs.add_claimed, QUEUE, id, b"")
        ended = "UPDATE job SET due_at = now_ms() - CAST(:age AS BIGINT) WHERE id = :id"
        await db.run(rows, ended, id=id, age=int(seconds * 1000))


@pytest.mark.parametrize(("queued", "by_rpc"), [(3, 0), (0, 3), (3, 3), (0, 40)])
async def test_stalled_jobs_under_constant_load_run_alone_within_seconds(
    db: Database, queued: int, by_rpc: int
) -> None:
    """40 concurrent calls exceed the queue's concurrency, so its worker never has a free slot."""
    load = Load()
    queue = queue_of(load.handle, concurrency=20)
    worker = Worker(db, queue)
    running = asyncio.create_task(worker.run())
    loading = True

    async def keep_queued(number: int) -> None:
        for n in range(10_000):
            if not loading:
                break
            await db.run(jobs.add, "post", f"queued-{number}-{n}", b"")
            worker.wake()
            await asyncio.sleep(0.02)

    async def keep_calling(number: int) -> None:
        for n in range(10_000):
            if not loading:
                break
            await worker.perform(await db.run(jobs.add_claimed, queue, f"rpc-{number}-{n}", b""))

    loads = [asyncio.create_task(keep_calling(n)) for n in range(by_rpc)]
    loads += [asyncio.create_task(keep_queued(n)) for n in range(queued)]
    await asyncio.sleep(0.3)
    assert load.done
    await stalled(db, "stalled-1", "stalled-2", "stalled-3", seconds=4)
    async with asyncio.timeout(20):
        while sum(id.startswith("stalled") for id in load.done) < 3:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    loading = False
    await asyncio.gather(*loads)
    worker.stop()
    await running

    assert load.beside_stalled == set()
    assert len(load.done) > 3


async def test_young_stalled_job_does_not_close_the_gate(db: Database) -> None:
    load = Load()
    worker = Worker(db, queue_of(load.handle))
    await stalled(db, "stalled", seconds=0.1)
    performing = asyncio.create_task(worker.perform(await db.run(jobs.add_claimed, worker.queue, "rpc", b"")))
    await asyncio.sleep(0)
    await worker._turn()

    assert worker._gate.is_set()
    assert await state_of(db, "stalled") == "running"
    await performing


@pytest.mark.parametrize("end", ["breaker", "stop", "caller"])
async def test_call_that_waits_for_a_stalled_job_is_performed_whatever_ends_the_wait(db: Database, end: str) -> None:
    load = Load()
    capacity = 20
    worker = Worker(db, queue_of(load.handle), capacity=lambda: capacity)
    await stalled(db, "stalled", seconds=60)
    first = asyncio.create_task(worker.perform(await db.run(jobs.add_claimed, worker.queue, "first", b"")))
    await asyncio.sleep(0)
    await worker._turn()
    held = asyncio.create_task(worker.perform(await db.run(jobs.add_claimed, worker.queue, "held", b"")))
    await asyncio.sleep(0)
    assert not worker._gate.is_set()
    if end == "breaker":
        capacity = 0
        await worker._turn()
    elif end == "caller":
        held.cancel()
    running = asyncio.create_task(worker.run())
    if end != "stop":
        await asyncio.sleep(0.5)
    worker.stop()
    await running
    await asyncio.gather(first, held, return_exceptions=True)

    assert {"first", "held"} <= set(load.done)


async def clock_set_back(db: Database, seconds: float) -> None:
    """Set the clock back, so that the stored times lie in the future."""
    db.offset_ms -= int(seconds * 1000)


@pytest.mark.parametrize("seconds", [20, 3_600, 86_400])
@pytest.mark.parametrize("limit", [RateLimit(10, burst=3), RateLimit(400, burst=400), RateLimit(0.5)])
async def test_rate_limit_after_the_clock_was_set_back_is_at_most_a_burst_ahead(
    db: Database, limit: RateLimit, seconds: int
) -> None:
    queue = queue_of(rate_limit=limit)
    for _ in range(limit.burst):
        await db.run(rate_limit.acquire, queue.name, limit)
    await clock_set_back(db, seconds)
    await db.run(jobs.add, "post", "a", b"")

    assert await claim_now(db, queue=queue) == ()  # the burst is used up
    db.offset_ms += int(limit.burst / limit.per_second * 1000) + 5
    assert [job.id for job in await claim_now(db, queue=queue)] == ["a"]


@pytest.mark.parametrize("seconds", [5, 3_600, 86_400])
async def test_pause_after_the_clock_was_set_back_is_over_and_one_trial_begins(db: Database, seconds: int) -> None:
    for id in "abc":
        await db.run(jobs.add, "post", id, b"")
    [job, *_] = await claim_now(db, slots=1)
    await db.run(jobs.snooze, job, Snooze(60, "THROTTLED", pause=True))
    assert (await db.read(jobs.peek, "post")).wait is not None
    await clock_set_back(db, seconds)

    trial = await db.run(jobs.claim, QUEUE, 10)
    assert trial.jobs == ()  # they were added after the time that the clock shows
    await db.run(operations.clock_set_back, "post", QUEUE.lease_ms)
    trial = await db.run(jobs.claim, QUEUE, 10)
    assert (len(trial.jobs), trial.recovering) == (1, True)
    await db.run(rate_limit.resume, "post")
    assert len(await claim_now(db)) == 1


@pytest.mark.parametrize("seconds", [30, 3_600, 86_400])
async def test_jobs_after_the_clock_was_set_back_wait_no_longer_than_before(db: Database, seconds: int) -> None:
    """A lease ends in time, a job that was to run at once runs at once, and a scheduled one keeps its time."""
    await db.run(jobs.add, "post", "lost", b"")
    [lost] = await claim_now(db)
    await db.run(jobs.add, "post", "failed", b"")
    [failed] = await claim_now(db)
    await db.run(jobs.fail, failed, 5.0, "NOT_SENT", remember)
    await db.run(jobs.add, "post", "now", b"")
    now = (await db.run(one, "SELECT now_ms() AS now"))["now"]
    await db.run(jobs.add, "post", "scheduled", b"", due_at=now + 60_000)
    load = Load()
    worker = Worker(db, queue_of(load.handle))
    await clock_set_back(db, seconds)
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(10):
        while len(load.done) < 2:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    db.offset_ms += QUEUE.lease_ms + 1_000
    async with asyncio.timeout(10):
        while len(load.done) < 3:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    worker.stop()
    await running

    assert sorted(load.done) == ["failed", "lost", "now"]
    row = await db.read(operations.show, "post", "scheduled")
    assert row is not None
    assert row["due_at"] == now + 60_000
    with pytest.raises(jobs.LeaseLost):
        await db.run(jobs.mark_attempted, lost, 1_000)


async def test_claim_of_one_job_ignores_its_backoff_but_not_another_worker(db: Database) -> None:
    await db.run(jobs.add, "post", "a", b"")
    [job] = await claim_now(db)
    assert await db.run(jobs.claim_one, QUEUE, "a") is None
    await db.run(jobs.fail, job, 3_600.0, "NOT_SENT", remember)

    again = await db.run(jobs.claim_one, QUEUE, "a")
    assert again is not None
    assert again.failures == 1


async def test_handler_past_its_deadline_fails_with_an_unknown_outcome(db: Database) -> None:
    async def handler(_job: Job, mark_attempted: MarkAttempted) -> Outcome:
        await mark_attempted(0.1)
        await asyncio.sleep(5)
        return Complete()

    queue = queue_of(handler, deadline=0.2)
    await db.run(jobs.add, "post", "a", b"")
    job = await db.run(jobs.claim_one, queue, "a")
    assert job is not None
    with pytest.raises(TimeoutError):
        await Worker(db, queue).perform(job)

    row = await db.read(operations.show, "post", "a")
    assert row is not None
    assert (row["state"], row["failures"], row["attempted"], row["note"]) == ("queued", 1, 1, "TimeoutError")


async def test_workers_share_due_jobs_and_run_each_once(db: Database) -> None:
    done: list[str] = []

    async def handler(job: Job, mark_attempted: MarkAttempted) -> Outcome:
        await mark_attempted(1.0)
        done.append(job.id)
        return Complete()

    for n in range(100):
        await db.run(jobs.add, "post", str(n), b"")
    await asyncio.gather(*(work(db, queue_of(handler, concurrency=5), until=100) for _ in range(3)))

    assert sorted(done) == sorted(str(n) for n in range(100))


async def test_worker_survives_an_outage_of_the_database(request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue("postgres")
    from services.chassis.database.connect import connect  # noqa: PLC0415

    done = asyncio.Event()

    async def handler(_job: Job, _mark_attempted: MarkAttempted) -> Outcome:
        done.set()
        return Complete()

    async with connect(server.database()) as db:
        worker = Worker(db, queue_of(handler))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.3)
        server.kill()
        with pytest.raises(Unavailable):
            await db.run(jobs.add, "post", "lost", b"")
        await asyncio.sleep(1.0)
        assert not running.done()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            while True:
                try:
                    await db.run(jobs.add, "post", "a", b"")
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
            await done.wait()
        worker.stop()
        await running
