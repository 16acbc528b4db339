"""
How fast a provider may be called, by all replicas together, and the pauses it asks for: one row a queue.

A queue that was paused starts again with one trial; `resume` after its success gives it its full width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from services.chassis.database.transactions import Row, maybe_one, one, rows
from services.chassis.errors import Throttled, Unavailable

PEEK = """
    SELECT COALESCE(free_at, 0) AS free_at, COALESCE(paused_at, 0) AS paused_at,
        COALESCE(paused_until, 0) AS paused_until, COALESCE(reason, '') AS reason, now_ms() AS now
    FROM (SELECT 1) AS asked LEFT JOIN rate_limit ON queue = :queue
"""
LOCKED = "SELECT free_at, paused_at, paused_until, reason FROM rate_limit WHERE queue = :queue FOR UPDATE"
ENSURE = "INSERT INTO rate_limit (queue) VALUES (:queue) ON CONFLICT (queue) DO NOTHING"
STORE = "UPDATE rate_limit SET free_at = :free_at WHERE queue = :queue"
PAUSE = """
    INSERT INTO rate_limit (queue, paused_at, paused_until, reason)
    VALUES (:queue, now_ms(), now_ms() + :pause, :reason)
    ON CONFLICT (queue) DO UPDATE SET
        paused_at = excluded.paused_at, paused_until = excluded.paused_until, reason = excluded.reason
"""
RESUME = """
    UPDATE rate_limit SET reason = ''
    WHERE queue = :queue AND reason <> '' AND (paused_until <= now_ms() OR paused_at > now_ms())
"""


@dataclass(frozen=True)
class RateLimit:
    """
    How fast a provider may be called, by all replicas together: GCRA with `burst` calls at once.

    Moments are epoch microseconds: at 400 calls a second, one takes two and a half milliseconds.
    """

    per_second: float
    burst: int = 1

    def free_slots(self, free_at: int, now: int) -> int:
        ahead = max(free_at - now, 0) * self.per_second / 1e6
        return max(int(self.burst - ahead), 0)

    def capped(self, free_at: int, now: int) -> int:
        """Return `free_at`, at most a burst ahead: it is further ahead only where the clock was set back since."""
        return min(free_at, now + ceil(self.burst * 1e6 / self.per_second))

    def after(self, free_at: int, now: int, taken: int) -> int:
        return max(free_at, now) + ceil(taken * 1e6 / self.per_second)


@dataclass(frozen=True)
class State:
    """`free_at` and `now` are epoch microseconds, `paused_for` seconds. `reason` stays until a trial has succeeded."""

    free_at: int
    now: int
    paused_for: float
    reason: str

    @property
    def recovering(self) -> bool:
        return self.reason != ""


async def peek(queue: str) -> State:
    row = await one(PEEK, queue=queue)
    return _state(row, row["now"])


async def lock(queue: str, rate_limit: RateLimit | None) -> State:
    """See it, with `free_at` in the range of the rate limit, and keep it from all others until the commit."""
    row = await maybe_one(LOCKED, queue=queue)
    if row is None:
        await rows(ENSURE, queue=queue)
        row = await one(LOCKED, queue=queue)
    # Afterwards: PostgreSQL's time is from before a statement waits for a lock.
    state = _state(row, (await one("SELECT now_ms() AS now"))["now"])
    if rate_limit is None or (free_at := rate_limit.capped(state.free_at, state.now)) == state.free_at:
        return state
    await store(queue, free_at)
    return replace(state, free_at=free_at)


def _state(row: Row, now: int) -> State:
    # A pause that begins in the future was stored before the clock was set back: nobody knows its end, so it is over.
    until = row["paused_until"] if row["paused_at"] <= now else 0
    return State(row["free_at"], now * 1000, max(0.0, (until - now) / 1000), row["reason"])


async def store(queue: str, free_at: int) -> None:
    await rows(STORE, queue=queue, free_at=free_at)


async def acquire(queue: str, rate_limit: RateLimit | None) -> bool:
    """
    Take a turn for a call that an RPC makes itself; raises, nothing stored, where none is free.

    Returns whether the queue was paused and this is its trial.
    """
    state = await lock(queue, rate_limit)
    if state.paused_for > 0:
        refusal = Throttled if state.reason == "THROTTLED" else Unavailable
        raise refusal(f"{queue} is paused", reason=state.reason, retry_after=state.paused_for)
    if rate_limit is not None:
        if rate_limit.free_slots(state.free_at, state.now) < 1:
            wait = (state.free_at - state.now) / 1e6
            raise Throttled(f"the pace of {queue} is used up", retry_after=max(wait, 0.1))
        await store(queue, rate_limit.after(state.free_at, state.now, 1))
    return state.recovering


async def pause(queue: str, seconds: float, reason: str) -> None:
    await rows(PAUSE, queue=queue, pause=int(seconds * 1000), reason=reason)


async def resume(queue: str) -> None:
    """Let a paused queue run at full width again: its trial succeeded."""
    await rows(RESUME, queue=queue)
