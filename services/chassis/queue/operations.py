"""What operators do to the durable queue, as transactions: look, count, replay, set aside, forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.chassis.database.transactions import Row, maybe_one, one, rows
from services.chassis.queue import rate_limit
from services.chassis.queue.jobs import PRIORITIES

REQUEUE = """
    UPDATE job SET state = 'queued', due_at = now_ms(), failures = 0, crashes = 0, finished_at = NULL,
        expires_at = now_ms() + 86400000
    WHERE queue = :queue AND id = :id AND state = :state
    RETURNING id
"""
PARK = """
    UPDATE job SET state = 'parked', finished_at = NULL
    WHERE queue = :queue AND id = :id AND state IN ('queued', 'dead') RETURNING id
"""
PURGE = """
    DELETE FROM job WHERE queue = :queue AND id IN (
        SELECT id FROM job WHERE queue = :queue AND finished_at < now_ms() - :age AND finished_at IS NOT NULL
            AND state IN ('done', 'cancelled') ORDER BY finished_at LIMIT :most)
    RETURNING id
"""
PURGE_DEAD = PURGE.replace("state IN ('done', 'cancelled')", "state = 'dead'")
# No lease is longer than a lease from now, so that a dead worker's job is found again in time.
LEASES = """
    UPDATE job SET due_at = now_ms() + :lease
    WHERE queue = :queue AND priority = :priority AND state IN ('queued', 'running') AND state = 'running'
        AND due_at > now_ms() + :lease
"""
# A job that comes from the future and was to run at once, or has failed since, runs at once. A scheduled one keeps its
# time, which is the wall clock's.
FROM_THE_FUTURE = """
    UPDATE job SET due_at = now_ms(), created_at = now_ms()
    WHERE queue = :queue AND priority = :priority AND state IN ('queued', 'running') AND state = 'queued'
        AND created_at > now_ms() AND (due_at <= created_at OR failures > 0)
"""
SHOWN = """queue, id, priority, state, due_at, claims, attempted, failures, crashes, note, trace,
        created_at, finished_at, expires_at"""
SHOW = f"SELECT {SHOWN} FROM job WHERE queue = :queue AND id = :id"
LIST = f"SELECT {SHOWN} FROM job WHERE queue = :queue AND state = :state ORDER BY due_at, id LIMIT :most"
CENSUS = """
    SELECT
        (SELECT COUNT(*) FROM job
            WHERE queue = :queue AND state IN ('queued', 'running') AND state = 'queued') AS queued,
        (SELECT COUNT(*) FROM job
            WHERE queue = :queue AND state IN ('queued', 'running') AND state = 'running') AS running,
        (SELECT COUNT(*) FROM job WHERE queue = :queue AND state = 'dead') AS dead,
        now_ms() AS now
"""
OLDEST_DUE = """
    SELECT MIN(due_at) AS due_at FROM job
    WHERE queue = :queue AND priority = :priority AND state IN ('queued', 'running') AND due_at <= now_ms()
"""


async def replay(queue: str, id: str) -> bool:
    """Queue a dead letter again, for another day."""
    return await maybe_one(REQUEUE, queue=queue, id=id, state="dead") is not None


async def park(queue: str, id: str) -> bool:
    """Set a job aside until somebody unparks it."""
    return await maybe_one(PARK, queue=queue, id=id) is not None


async def unpark(queue: str, id: str) -> bool:
    return await maybe_one(REQUEUE, queue=queue, id=id, state="parked") is not None


async def purge(queue: str, age_ms: int, most: int = 500) -> int:
    """Forget done and cancelled jobs of this age, a small batch at a time; returns how many. Parked jobs stay."""
    return len(await rows(PURGE, queue=queue, age=age_ms, most=most))


async def purge_dead(queue: str, age_ms: int, most: int = 500) -> int:
    """Forget dead letters of this age, which hold the words of messages; their alert has stood for as long."""
    return len(await rows(PURGE_DEAD, queue=queue, age=age_ms, most=most))


async def show(queue: str, id: str) -> Row | None:
    return await maybe_one(SHOW, queue=queue, id=id)


async def list_jobs(queue: str, state: str, most: int = 50) -> list[Row]:
    return list(await rows(LIST, queue=queue, state=state, most=most))


async def census(queue: str, providers: Sequence[str] = ()) -> Mapping[str, Any]:
    """
    Count a queue: queued, running, dead, oldest_due_ms, paused (the reason or an empty string), paused_until, now.

    The last two are epoch milliseconds. The first of its providers that is paused tells; a pause that has ended counts
    until a trial has succeeded.
    """
    states = [await rate_limit.peek(provider) for provider in providers or (queue,)]
    paused = next((state for state in states if state.reason), states[0])
    counted = await one(CENSUS, queue=queue)
    oldest = [(await one(OLDEST_DUE, queue=queue, priority=priority))["due_at"] for priority in PRIORITIES]
    return {
        "queued": counted["queued"],
        "running": counted["running"],
        "dead": counted["dead"],
        "oldest_due_ms": max((counted["now"] - due for due in oldest if due is not None), default=0),
        "paused": paused.reason,
        "paused_until": paused.now // 1000 + round(paused.paused_for * 1000),
        "now": counted["now"],
    }


async def clock_set_back(queue: str, lease_ms: int) -> None:
    """Correct what was stored before the database's clock was set back. It reads the whole backlog."""
    for priority in PRIORITIES:
        await rows(LEASES, queue=queue, priority=priority, lease=lease_ms)
        await rows(FROM_THE_FUTURE, queue=queue, priority=priority)
