"""How many calls run at one time, and how many one caller may make. All limits hold per process."""

import time
from collections import Counter

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from services.chassis import context, metrics
from services.chassis.errors import Throttled
from services.chassis.rpc.interceptors import SHED, Call, Next, refuse

#: Seconds until a refused stream may be tried again.
STREAM_RETRY_AFTER = 5.0


class ConcurrencyLimit:
    """
    Refuse unary RPCs above a number that run at one time.

    A refusal writes no log line and parses nothing: under overload its cost is taken from the calls that run.
    """

    def __init__(self, max_concurrent: int) -> None:
        self._max_concurrent = max_concurrent
        self._running = 0

    async def intercept(self, call: Call, call_next: Next) -> None:
        if call.health or call.streaming:
            await call_next(call)
            return
        if self._running >= self._max_concurrent:
            await refuse(call.rpc, SHED)
        self._running += 1
        metrics.rpcs_running.set(self._running)
        try:
            await call_next(call)
        finally:
            self._running -= 1
            metrics.rpcs_running.set(self._running)


class StreamLimit:
    """
    Limit the open streams, of all callers and of each, so that one caller cannot take them all.

    Health watches need no token, so they are counted apart and per connection.
    """

    def __init__(self, max_open: int, max_per_caller: int, max_health_watches: int) -> None:
        self._max_open = max_open
        self._max_each = {False: max_per_caller, True: max_health_watches}
        self._open: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}

    async def intercept(self, call: Call, call_next: Next) -> None:
        if not call.streaming:
            await call_next(call)
            return
        counts, caller = self._open[call.health], call.rpc.peer() if call.health else context.caller.get()
        if counts[caller] >= self._max_each[call.health]:
            self._refuse("THROTTLED", f"{caller} may have {self._max_each[call.health]} streams open")
        if counts.total() >= self._max_open:
            self._refuse("SHEDDING", "too many streams are open")
        counts[caller] += 1
        metrics.streams_open.inc()
        try:
            await call_next(call)
        finally:
            metrics.streams_open.dec()
            counts[caller] -= 1
            if not counts[caller]:
                del counts[caller]

    def _refuse(self, reason: str, message: str) -> None:
        metrics.rpcs_shed_total.labels(reason).inc()
        raise Throttled(message, reason=reason, retry_after=STREAM_RETRY_AFTER)


class CallerLimit:
    """The rate limit of each caller, for RPCs and for HTTP requests."""

    def __init__(self, rate: limits.RateLimitItem | None) -> None:
        self._rate = rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count(self, caller: str) -> None:
        """Count one call. Raises Throttled where it exceeds the rate."""
        if self._rate is None or await self._limiter.hit(self._rate, caller):
            return
        metrics.rpcs_shed_total.labels("THROTTLED").inc()
        reset_time, _ = await self._limiter.get_window_stats(self._rate, caller)
        raise Throttled(f"{caller} may call {self._rate}", retry_after=max(0.1, reset_time - time.time()))

    async def intercept(self, call: Call, call_next: Next) -> None:
        if not call.health:
            await self.count(context.caller.get())
        await call_next(call)
