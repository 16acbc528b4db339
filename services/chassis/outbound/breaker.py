"""
Stop calling a service that keeps failing, and find out with one call at a time when to start again.

* CLOSED     every call goes through and is counted
* OPEN       none goes through until the open period is over, or an operator releases the circuit
* HALF_OPEN  one trial call goes through; it closes the circuit or opens it for twice as long
"""

import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import aiobreaker
import structlog
from aiobreaker.listener import CircuitBreakerListener
from aiobreaker.state import CircuitBreakerBaseState, CircuitBreakerState

from services.chassis import metrics
from services.chassis.errors import BreakerOpen, DeadlineExceeded, ServiceError

P = ParamSpec("P")
T = TypeVar("T")

TRIAL_IN_A_MOMENT = 1.0  # seconds to wait for the verdict of somebody else's trial call

_log = structlog.get_logger()
_dice = random.SystemRandom()


def _judge(error: Exception) -> bool | None:
    """
    True: the provider failed. False: it answered, if only with a refusal. None: the error tells nothing about it.

    Nothing: our own bugs, and calls that ended before they reached the provider.
    """
    if not isinstance(error, ServiceError) or isinstance(error, BreakerOpen | DeadlineExceeded):
        return None
    return error.provider_fault


class _Generation(CircuitBreakerBaseState):  # type: ignore[misc]  # aiobreaker has no types
    """One stay in one state: what was counted in it, and the token that tells its calls from later ones."""

    kind: CircuitBreakerState

    def __init__(self, breaker: "CircuitBreaker") -> None:
        super().__init__(breaker, self.kind)
        self.breaker = breaker

    async def call_async(self, func: Callable[..., Awaitable[T]], *args: object, **kwargs: object) -> T:
        self.before_call(func)  # raises BreakerOpen
        started = self.breaker.clock()
        failed: bool | None = None  # stays so when the call is cancelled
        try:
            result = await func(*args, **kwargs)
            failed = self.breaker.was_slow(started)
        except Exception as error:
            failed = _judge(error)
            if failed is False:
                failed = self.breaker.was_slow(started)
            raise
        else:
            return result
        finally:
            self.after_call(failed)

    def after_call(self, failed: bool | None) -> None:
        if failed is not None and self.breaker.generation is self:
            self.settle(failed)

    def settle(self, failed: bool) -> None:
        raise NotImplementedError

    def capacity(self) -> int:
        return 1 if self.retry_after() == 0.0 else 0

    def retry_after(self) -> float:
        return 0.0


class _Closed(_Generation):
    kind = CircuitBreakerState.CLOSED

    def __init__(self, breaker: "CircuitBreaker") -> None:
        super().__init__(breaker)
        self.results: deque[tuple[float, bool]] = deque()  # within the window: when, and whether it failed
        self.failures = 0  # among them
        self.failures_in_a_row = 0

    def settle(self, failed: bool) -> None:
        breaker, now = self.breaker, self.breaker.clock()
        self.results.append((now, failed))
        self.failures += failed
        while self.results[0][0] < now - breaker.window:
            self.failures -= self.results.popleft()[1]
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0
        calls = len(self.results)
        often = calls >= breaker.minimum_calls and self.failures >= breaker.failure_rate * calls
        if failed and (often or self.failures_in_a_row >= breaker.fail_max):
            breaker.open()

    def capacity(self) -> int:
        return sys.maxsize


class _Open(_Generation):
    kind = CircuitBreakerState.OPEN

    def __init__(self, breaker: "CircuitBreaker", open_for: float, *, forced: bool = False) -> None:
        super().__init__(breaker)
        self.until = breaker.clock() + open_for
        self.open_for = open_for
        self.forced = forced

    async def call_async(self, func: Callable[..., Awaitable[T]], *args: object, **kwargs: object) -> T:
        self.breaker.refuse_unless(self.retry_after() == 0.0)
        self.breaker.half_open()
        return await self.breaker.call(func, *args, **kwargs)

    def retry_after(self) -> float:
        """Count the period from now on while an operator holds the circuit open: nobody knows for how long."""
        return self.open_for if self.forced else max(0.0, self.until - self.breaker.clock())


class _HalfOpen(_Generation):
    kind = CircuitBreakerState.HALF_OPEN
    trial_running = False

    def before_call(self, _func: object) -> None:
        self.breaker.refuse_unless(not self.trial_running)
        self.trial_running = True

    def after_call(self, failed: bool | None) -> None:
        self.trial_running = False
        super().after_call(failed)

    def settle(self, failed: bool) -> None:
        if failed:
            self.breaker.open()
        else:
            self.breaker.close()

    def retry_after(self) -> float:
        return TRIAL_IN_A_MOMENT if self.trial_running else 0.0


class _Announcer(CircuitBreakerListener):  # type: ignore[misc]  # aiobreaker has no types
    def state_change(self, breaker: "CircuitBreaker", old: _Generation, new: _Generation) -> None:
        metrics.breaker_state.labels(target=breaker.name).set(_GAUGE[new.kind])
        _log.warning("breaker.state", target=breaker.name, before=old.kind.name, after=new.kind.name)


_GAUGE = {CircuitBreakerState.CLOSED: 0, CircuitBreakerState.HALF_OPEN: 1, CircuitBreakerState.OPEN: 2}


class CircuitBreaker(aiobreaker.CircuitBreaker):  # type: ignore[misc]  # aiobreaker has no types
    """
    aiobreaker's states, with rules that hold when calls overlap.

    Results may come back after the state has moved on. Each transition starts a new generation, and results of an
    older one are ignored: the last failure of an outage must not re-open a circuit that a trial call has just closed.
    The error that trips the circuit is raised as it is; BreakerOpen always means "not attempted".
    """

    def __init__(
        self,
        name: str,
        *,
        max_failures: int = 5,
        failure_rate: float = 0.5,
        minimum_calls: int = 10,
        window: float = 30.0,
        open_for: float = 60.0,
        max_open_for: float = 600.0,
        slow_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failure_rate, self.minimum_calls, self.window = failure_rate, minimum_calls, window
        self.open_for, self.max_open_for = open_for, max_open_for
        self.slow_after = slow_after  #: Seconds; a call that took longer counts as failed, whatever it answered.
        self.clock = clock
        self.next_period = open_for
        super().__init__(fail_max=max_failures, name=name, listeners=[_Announcer()])
        self.generation: _Generation = _Closed(self)
        metrics.breaker_state.labels(target=name).set(0)

    @property
    def state(self) -> str:
        name: str = self.generation.kind.name
        return name

    async def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.generation.call_async(function, *args, **kwargs)

    def capacity(self) -> int:
        """How many calls would be let through now."""
        return self.generation.capacity()

    def retry_after(self) -> float:
        """Seconds until a call may be let through; 0.0 when one would be now."""
        return self.generation.retry_after()

    def open(self) -> None:
        """Trip. Jitter only shortens the period: replicas must not all try again in the same instant."""
        period, self.next_period = self.next_period, min(self.max_open_for, 2 * self.next_period)
        self._enter(_Open(self, period * _dice.uniform(0.8, 1.0)))

    def half_open(self) -> None:
        self._enter(_HalfOpen(self))

    def close(self) -> None:
        self.next_period = self.open_for
        self._enter(_Closed(self))

    def force_open(self) -> None:
        """Let nothing through until an operator releases the circuit."""
        self._enter(_Open(self, self.open_for, forced=True))

    def release(self) -> None:
        """Let one trial call through at once, however long the circuit had still to stay open."""
        if isinstance(self.generation, _Open):
            self.half_open()

    def refuse_unless(self, allowed: bool) -> None:
        if not allowed:
            raise BreakerOpen(f"{self.name} was not called: its circuit is open", retry_after=self.retry_after())

    def was_slow(self, started: float) -> bool:
        return self.slow_after is not None and self.clock() - started > self.slow_after

    def _enter(self, generation: _Generation) -> None:
        before, self.generation = self.generation, generation
        for listener in self.listeners:
            listener.state_change(self, before, generation)
