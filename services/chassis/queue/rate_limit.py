"""
The rate limit and the pause of each provider, which all replicas share: one row for each provider.

After a pause, the provider gets one trial call. `resume` after its success ends the pause for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from services.chassis.database.transactions import Row, maybe_one, one, rows
from services.chassis.errors import Throttled, Unavailable

PEEK = """
    SELECT COALESCE(free_at, 0) AS free_at, COALESCE(paused_at, 0) AS paused_at,
        COALESCE(paused_until, 0) AS paused_until, COALESCE(reason, '') AS reason, now_ms() AS now
    FROM (SELECT 1) AS always LEFT JOIN rate_limit ON queue = :queue
"""
LOCKED = "SELECT free_at, paused_at, paused_until, reason FROM rate_limit WHERE queue = :queue FOR UPDATE"
ENSURE = "INSERT INTO rate_limit (queue) VALUES (:queue) ON CONFLICT (queue) DO NOTHING"
STORE = "UPDATE rate_limit SET free_at = :free_at WHERE queue = :queue"
PAUSE = """
    INSERT INTO rate_limit (queue, paused_at, paused_until, reason)
    VALUES (:queue, now_ms(), now_ms() + :pause, :reason)
    ON CONFLICT (queue) DO UPDATE SET
        paused_at = excluded.paused_at, paused_until = excluded.paused_until, reason = excluded.reason
    WHERE rate_limit.reason <> 'PAUSED' OR rate_limit.paused_until <= now_ms()
"""
# No start is stored: this pause stays when the clock is set back.
PAUSE_BY_OPERATOR = """
    INSERT INTO rate_limit (queue, paused_at, paused_until, reason)
    VALUES (:queue, 0, COALESCE(now_ms() + CAST(:pause AS BIGINT), :forever), 'PAUSED')
    ON CONFLICT (queue) DO UPDATE SET
        paused_at = excluded.paused_at, paused_until = excluded.paused_until, reason = excluded.reason
"""
RESUME_BY_OPERATOR = """
    UPDATE rate_limit SET paused_at = 0, paused_until = 0, reason = '' WHERE queue = :queue AND reason <> ''
    RETURNING queue
"""
RESUME = """
    UPDATE rate_limit SET reason = ''
    WHERE queue = :queue AND reason <> '' AND (paused_until <= now_ms() OR paused_at > now_ms())
"""

#: The reason of an operator's pause. A provider's answer does not replace it, and no trial is needed after it.
PAUSED = "PAUSED"
#: The end of a pause that lasts until an operator resumes the queue.
FOREVER = 4_102_444_800_000
#: Seconds after which a caller may ask again whether an operator's pause has ended.
PAUSED_RETRY = 60.0


@dataclass(frozen=True)
class RateLimit:
    """
    The calls that a provider gets from all replicas together: GCRA with bursts of `burst` calls.

    Times are epoch microseconds, because at 400 calls a second each takes 2.5 milliseconds.
    """

    per_second: float
    burst: int = 1

    def free_slots(self, free_at: int, now: int) -> int:
        ahead = max(free_at - now, 0) * self.per_second / 1e6
        return max(int(self.burst - ahead), 0)

    def capped(self, free_at: int, now: int) -> int:
        """Return `free_at`, at most a burst ahead. It is further ahead only if the clock was set back."""
        return min(free_at, now + ceil(self.burst * 1e6 / self.per_second))

    def after(self, free_at: int, now: int, taken: int) -> int:
        return max(free_at, now) + ceil(taken * 1e6 / self.per_second)


@dataclass(frozen=True)
class State:
    """
    `free_at` and `now` are epoch microseconds, `paused_for` is seconds. `reason` stays until a trial succeeds.

    `paused_until` is epoch milliseconds, or None if the queue is not paused or the end is unknown.
    """

    free_at: int
    now: int
    paused_for: float
    reason: str
    paused_until: int | None

    @property
    def recovering(self) -> bool:
        return self.reason != ""


async def peek(queue: str) -> State:
    row = await one(PEEK, queue=queue)
    return _state(row, row["now"])


async def lock(queue: str, rate_limit: RateLimit | None) -> State:
    """Lock the row until the commit, and correct a `free_at` that lies too far ahead."""
    row = await maybe_one(LOCKED, queue=queue)
    if row is None:
        await rows(ENSURE, queue=queue)
        row = await one(LOCKED, queue=queue)
    # Read the time in a statement of its own: PostgreSQL takes it before a statement waits for a lock.
    state = _state(row, (await one("SELECT now_ms() AS now"))["now"])
    if rate_limit is None or (free_at := rate_limit.capped(state.free_at, state.now)) == state.free_at:
        return state
    await store(queue, free_at)
    return replace(state, free_at=free_at)


def _state(row: Row, now: int) -> State:
    # A pause that begins in the future was stored before the clock was set back. Its end is unknown, so it is over.
    until = row["paused_until"] if row["paused_at"] <= now else 0
    reason = "" if row["reason"] == PAUSED and until <= now else row["reason"]
    known = until if now < until < FOREVER else None
    return State(row["free_at"], now * 1000, max(0.0, (until - now) / 1000), reason, known)


async def store(queue: str, free_at: int) -> None:
    await rows(STORE, queue=queue, free_at=free_at)


async def acquire(queue: str, rate_limit: RateLimit | None) -> bool:
    """
    Take a slot for a call that an RPC makes itself; return whether it is the trial after a pause.

    Raises Throttled if no slot is free, and Throttled or Unavailable with the pause's reason during a pause.
    """
    state = await lock(queue, rate_limit)
    if state.paused_for > 0 and state.reason == PAUSED:
        wait = min(state.paused_for, PAUSED_RETRY)
        raise Unavailable(f"an operator has paused {queue}", reason="PAUSED", retry_after=wait)
    if state.paused_for > 0:
        refusal = Throttled if state.reason == "THROTTLED" else Unavailable
        raise refusal(f"{queue} is paused", reason=state.reason, retry_after=state.paused_for)
    if rate_limit is not None:
        if rate_limit.free_slots(state.free_at, state.now) < 1:
            wait = (state.free_at - state.now) / 1e6
            raise Throttled(f"the rate limit of {queue} is used up", retry_after=max(wait, 0.1))
        await store(queue, rate_limit.after(state.free_at, state.now, 1))
    return state.recovering


async def pause(queue: str, seconds: float, reason: str) -> None:
    await rows(PAUSE, queue=queue, pause=int(seconds * 1000), reason=reason)


async def resume(queue: str) -> None:
    """End the pause of a provider after its trial succeeded."""
    await rows(RESUME, queue=queue)


async def pause_by_operator(queue: str, milliseconds: int | None) -> None:
    """Pause for this long; None: until `resume_by_operator`."""
    await rows(PAUSE_BY_OPERATOR, queue=queue, pause=milliseconds, forever=FOREVER)


async def resume_by_operator(queue: str) -> bool:
    """End a pause of any cause at once; False where there is none."""
    return await maybe_one(RESUME_BY_OPERATOR, queue=queue) is not None
