"""What operators do to the durable queue, as transactions: list, show, count, replay, park, discard, purge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from services.chassis.database.transactions import Row, maybe_one, one, rows
from services.chassis.queue import rate_limit
from services.chassis.queue.jobs import PRIORITIES, live

# The expiry stays: whether the job is still of use is for its owner to say. A parked job keeps its time.
REPLAY = """
    UPDATE job SET state = 'queued', due_at = now_ms(), failures = 0, crashes = 0, finished_at = NULL
    WHERE queue = :queue AND id = :id AND state = 'dead' RETURNING id
"""
PARK = """
    UPDATE job SET state = 'parked', finished_at = NULL
    WHERE queue = :queue AND id = :id AND state IN ('queued', 'dead') RETURNING id
"""
UNPARK = """
    UPDATE job SET state = 'queued', failures = 0, crashes = 0
    WHERE queue = :queue AND id = :id AND state = 'parked' RETURNING id
"""
DISCARD = """
    UPDATE job SET state = 'cancelled', note = 'DISCARDED', payload = :nothing, finished_at = now_ms()
    WHERE queue = :queue AND id = :id AND state = 'dead' RETURNING id
"""
PURGE = """
    DELETE FROM job WHERE queue = :queue AND id IN (
        SELECT id FROM job WHERE queue = :queue AND finished_at < now_ms() - :age AND finished_at IS NOT NULL
            AND state IN ('done', 'cancelled') ORDER BY finished_at LIMIT :limit)
    RETURNING id
"""
PURGE_DEAD = PURGE.replace("state IN ('done', 'cancelled')", "state = 'dead'")
# No lease may end later than a full lease from now. Otherwise a stalled job would wait too long.
LEASES = """
    UPDATE job SET due_at = now_ms() + :lease
    WHERE queue = :queue AND priority = :priority AND state IN ('queued', 'running') AND state = 'running'
        AND due_at > now_ms() + :lease
"""
# A job from the future that was due at once, or has failed, becomes due now. A scheduled job keeps its time, because
# that is a time of the wall clock.
FROM_THE_FUTURE = """
    UPDATE job SET due_at = now_ms(), created_at = now_ms()
    WHERE queue = :queue AND priority = :priority AND state IN ('queued', 'running') AND state = 'queued'
        AND created_at > now_ms() AND (due_at <= created_at OR failures > 0)
"""
COLUMNS = """queue, id, priority, state, due_at, claims, attempted, failures, crashes, provider, note, trace,
        created_at, finished_at, expires_at, length(payload) AS payload_bytes"""
SHOW = f"SELECT {COLUMNS} FROM job WHERE queue = :queue AND id = :id"


# The states stand verbatim because SQLite uses a partial index only then.
def _list(states: str) -> str:
    return f"""
        SELECT {COLUMNS} FROM job
        WHERE queue = :queue AND {states} AND state = :state AND created_at <= :created_at
            AND (created_at < :created_at OR id > :id) AND created_at >= :created_from AND created_at < :created_before
            AND (CAST(:note AS TEXT) = '' OR note = :note)
        ORDER BY created_at DESC, id LIMIT :limit
    """


LIVE, SET_ASIDE, ENDED = (
    _list("state IN ('queued', 'running')"),
    _list("state IN ('dead', 'parked')"),
    _list("finished_at IS NOT NULL"),
)
LIST = {"queued": LIVE, "running": LIVE, "dead": SET_ASIDE, "parked": SET_ASIDE, "done": ENDED, "cancelled": ENDED}
CENSUS = """
    SELECT
        (SELECT COUNT(*) FROM job
            WHERE queue = :queue AND state IN ('queued', 'running') AND state = 'queued') AS queued,
        (SELECT COUNT(*) FROM job
            WHERE queue = :queue AND state IN ('queued', 'running') AND state = 'running') AS running,
        (SELECT COUNT(*) FROM job WHERE queue = :queue AND state IN ('dead', 'parked') AND state = 'dead') AS dead,
        (SELECT COUNT(*) FROM job WHERE queue = :queue AND state IN ('dead', 'parked') AND state = 'parked') AS parked,
        now_ms() AS now
"""
# MIN over one priority and one state, because that is the first entry of a range of job_due. The bound of now is not
# in SQL: with old statistics, PostgreSQL would believe that it selects most of the table, and scan it.
OLDEST_DUE = " UNION ALL ".join(
    f"SELECT MIN(due_at) AS due_at FROM job WHERE {live(priority, state)}"
    for priority in PRIORITIES
    for state in ("'queued'", "'running'")
)


#: After every time that a database holds.
LATEST = 2**62


class Filter(NamedTuple):
    """Which jobs of a state: with this note, where it is not empty, and created in this range of epoch milliseconds."""

    note: str = ""
    created_from: int = 0
    created_before: int = LATEST


class Position(NamedTuple):
    """The last job of a page: where the next one begins."""

    created_at: int = LATEST
    id: str = ""


FIRST, ALL = Position(), Filter()


async def replay(queue: str, id: str) -> bool:
    """Queue a dead letter again; False where it is none."""
    return await maybe_one(REPLAY, queue=queue, id=id) is not None


async def park(queue: str, id: str) -> bool:
    """Set a queued job or a dead letter aside until it is unparked; False where it is neither."""
    return await maybe_one(PARK, queue=queue, id=id) is not None


async def unpark(queue: str, id: str) -> bool:
    """Queue a parked job for the time that it had; False where it is not parked."""
    return await maybe_one(UNPARK, queue=queue, id=id) is not None


async def discard(queue: str, id: str) -> bool:
    """End a dead letter for good and erase its payload; False where it is none."""
    return await maybe_one(DISCARD, queue=queue, id=id, nothing=b"") is not None


async def purge(queue: str, age_ms: int, limit: int = 500) -> int:
    """Forget done and cancelled jobs of this age, a small batch at a time; returns how many. Parked jobs stay."""
    return len(await rows(PURGE, queue=queue, age=age_ms, limit=limit))


async def purge_dead(queue: str, age_ms: int, limit: int = 500) -> int:
    """Forget dead letters of this age, which hold the words of messages; their alert has stood for as long."""
    return len(await rows(PURGE_DEAD, queue=queue, age=age_ms, limit=limit))


async def show(queue: str, id: str) -> Row | None:
    return await maybe_one(SHOW, queue=queue, id=id)


async def list_jobs(
    queue: str, state: str, limit: int = 50, after: Position = FIRST, filter: Filter = ALL
) -> Sequence[Row]:
    """Return jobs of one state, the newest first, then by id. It may read all jobs of that state."""
    return await rows(LIST[state], queue=queue, state=state, limit=limit, **after._asdict(), **filter._asdict())


async def census(queue: str, providers: Sequence[str] = ()) -> Mapping[str, Any]:
    """
    Count a queue: queued, running, dead, parked, oldest_due_ms, paused (a reason or empty), paused_until, now.

    The last two are epoch milliseconds; `paused_until` is None where nobody knows. The first of its providers that is
    paused is told; a pause that has ended counts until a trial has succeeded.
    """
    states = [await rate_limit.peek(provider) for provider in providers or (queue,)]
    paused = next((state for state in states if state.reason), states[0])
    counted = await one(CENSUS, queue=queue)
    oldest = [row["due_at"] for row in await rows(OLDEST_DUE, queue=queue) if row["due_at"] is not None]
    return {
        "queued": counted["queued"],
        "running": counted["running"],
        "dead": counted["dead"],
        "parked": counted["parked"],
        "oldest_due_ms": max((counted["now"] - due for due in oldest if due <= counted["now"]), default=0),
        "paused": paused.reason,
        "paused_until": paused.paused_until,
        "now": counted["now"],
    }


async def clock_set_back(queue: str, lease_ms: int) -> None:
    """Correct leases and due times that were stored before the clock was set back. Reads the whole backlog."""
    for priority in PRIORITIES:
        await rows(LEASES, queue=queue, priority=priority, lease=lease_ms)
        await rows(FROM_THE_FUTURE, queue=queue, priority=priority)
