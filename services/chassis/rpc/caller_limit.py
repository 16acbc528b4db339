"""How much one caller may ask, per replica: the same for RPCs and for HTTP requests."""

import time

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from services.chassis import metrics
from services.chassis.errors import Throttled


class CallerLimit:
    def __init__(self, rate: limits.RateLimitItem | None) -> None:
        self._rate = rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count(self, caller: str) -> None:
        """Count one more; raises Throttled, when that is one too many."""
        if self._rate is None or await self._limiter.hit(self._rate, caller):
            return
        metrics.rpcs_shed_total.labels("THROTTLED").inc()
        again_at, _ = await self._limiter.get_window_stats(self._rate, caller)
        wait = max(0.1, again_at - time.time())
        raise Throttled(f"{caller} may call {self._rate}", retry_after=wait)
