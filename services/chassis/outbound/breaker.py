"""
Stop calling a service that keeps failing, and try one call at a time until it answers again.

* CLOSED     every call passes and is counted
* OPEN       no call passes until the open period ends or an operator releases the breaker
* HALF_OPEN  one trial call passes; its success closes the breaker, its failure opens it for twice as long
"""

import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import structlog
from aiobreaker.state import CircuitBreakerBaseState, CircuitBreakerState

from services.chassis import metrics
from services.chassis.errors import BreakerOpen, DeadlineExceeded, ServiceError

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds until a caller may come back while another caller's trial call runs.
TRIAL_RETRY_AFTER = 1.0
GAUGE = {CircuitBreakerState.CLOSED: 0, CircuitBreakerState.HALF_OPEN: 1, CircuitBreakerState.OPEN: 2}

_log = structlog.get_logger()
_random = random.SystemRandom()


def _is_failure(error: Exception) -> bool | None:
    """
    Return True where the provider failed, False where it answered, None where the error says nothing about it.

    Our own bugs and calls that ended before they reached the provider say nothing.
    """
    if not isinstance(error, ServiceError) or isinstance(error, BreakerOpen | DeadlineExceeded):
        return None
    return error.provider_fault


class _Generation(CircuitBreakerBaseState):  # type: ignore[misc]  # aiobreaker has no types
    """One stay in a state, with its counts. aiobreaker's hooks: before_call, on_success, on_failure."""

    kind: CircuitBreakerState

    def __init__(self, breaker: "CircuitBreaker") -> None:
        super().__init__(breaker, self.kind)
        self.breaker = breaker

    def after_call(self) -> None:
        """Note that a call of this generation has ended, however it ended."""

    def capacity(self) -> int:
        return 1 if self.retry_after() == 0.0 else 0

    def retry_after(self) -> float:
        return 0.0


class _Closed(_Generation):
    kind = CircuitBreakerState.CLOSED

    def __init__(self, breaker: "CircuitBreaker") -> None:
        super().__init__(breaker)
        self.results: deque[tuple[float, bool]] = deque()  # (time, failed) of the calls within the window
        self.failures = 0  # among the results
        self.failures_in_a_row = 0

    def on_success(self) -> None:
        self._record(failed=False)
        self.failures_in_a_row = 0

    def on_failure(self, _error: object) -> None:
        self._record(failed=True)
        self.failures_in_a_row += 1
        breaker, calls = self.breaker, len(self.results)
        often = calls >= breaker.minimum_calls and self.failures >= breaker.failure_rate * calls
        if often or self.failures_in_a_row >= breaker.max_failures:
            breaker.open()

    def _record(self, *, failed: bool) -> None:
        now = self.breaker.clock()
        self.results.append((now, failed))
        self.failures += failed
        while self.results[0][0] < now - self.breaker.window:
            self.failures -= self.results.popleft()[1]

    def capacity(self) -> int:
        return sys.maxsize


class _Open(_Generation):
    kind = CircuitBreakerState.OPEN

    def __init__(self, breaker: "CircuitBreaker", open_for: float, *, forced: bool = False) -> None:
        super().__init__(breaker)
        self.until = breaker.clock() + open_for
        self.open_for = open_for
        self.forced = forced

    def retry_after(self) -> float:
        """Return the full period where an operator holds the breaker open: its end is not known."""
        return self.open_for if self.forced else max(0.0, self.until - self.breaker.clock())


class _HalfOpen(_Generation):
    kind = CircuitBreakerState.HALF_OPEN
    trial_running = False

    def before_call(self, _function: object) -> None:
        self.trial_running = True

    def after_call(self) -> None:
        self.trial_running = False

    def on_success(self) -> None:
        self.breaker.close()

    def on_failure(self, _error: object) -> None:
        self.breaker.open()

    def retry_after(self) -> float:
        return TRIAL_RETRY_AFTER if self.trial_running else 0.0


class CircuitBreaker:
    """
    A circuit breaker for calls that overlap.

    It opens after `max_failures` failures in a row, or when at least `minimum_calls` calls ended within `window`
    seconds and the share `failure_rate` of them failed. It stays open for `open_for` seconds, and twice as long after
    each failed trial, up to `max_open_for`.

    The result of a call may arrive after the state has changed. Each change begins a new generation, and results of
    earlier generations are ignored: a late failure must not reopen what a trial has just closed.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.max_failures, self.failure_rate, self.minimum_calls = max_failures, failure_rate, minimum_calls
        self.window, self.open_for, self.max_open_for = window, open_for, max_open_for
        self.clock = clock
        self.next_period = open_for
        self.generation: _Generation = _Closed(self)
        metrics.breaker_state.labels(target=name).set(0)

    @property
    def state(self) -> str:
        name: str = self.generation.kind.name
        return name

    async def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function and count its result. Raises BreakerOpen without a call where the breaker is open."""
        if self.capacity() == 0:
            raise BreakerOpen(f"{self.name} was not called: its circuit is open", retry_after=self.retry_after())
        if isinstance(self.generation, _Open):
            self.half_open()
        generation = self.generation
        generation.before_call(function)
        failed: bool | None = None  # a cancelled call says nothing
        try:
            result = await function(*args, **kwargs)
            failed = False
        except Exception as error:
            failed = _is_failure(error)
            raise
        else:
            return result
        finally:
            generation.after_call()
            if failed is not None and self.generation is generation:
                generation.on_failure(None) if failed else generation.on_success()

    def capacity(self) -> int:
        """Return how many calls may pass now."""
        return self.generation.capacity()

    def retry_after(self) -> float:
        """Return the seconds until a call may pass; 0.0 where one may pass now."""
        return self.generation.retry_after()

    def open(self) -> None:
        """Open for the next period, shortened at random so that replicas do not try again together."""
        period, self.next_period = self.next_period, min(self.max_open_for, 2 * self.next_period)
        self._enter(_Open(self, period * _random.uniform(0.8, 1.0)))

    def half_open(self) -> None:
        self._enter(_HalfOpen(self))

    def close(self) -> None:
        self.next_period = self.open_for
        self._enter(_Closed(self))

    def force_open(self) -> None:
        """Let no call pass until an operator releases the breaker."""
        self._enter(_Open(self, self.open_for, forced=True))

    def release(self) -> None:
        """Let one trial call pass now, however long the open period still lasts."""
        if isinstance(self.generation, _Open):
            self.half_open()

    def _enter(self, generation: _Generation) -> None:
        before, self.generation = self.generation, generation
        metrics.breaker_state.labels(target=self.name).set(GAUGE[generation.kind])
        _log.warning("breaker.changed", target=self.name, before=before.kind.name, after=generation.kind.name)
