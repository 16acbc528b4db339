"""Repeat what is provably safe to repeat: a few times, at random moments, while the deadline and a budget allow it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from services.chassis.errors import InProgress, ServiceError
from services.chassis.outbound import deadline

T = TypeVar("T")
Args = TypeVarTuple("Args")

PATIENCE = 10.0  # seconds from the first attempt, where no deadline is set


class RetryBudget:
    """
    Tokens for retries: a call that succeeds earns a part of one, a retry costs one.

    In a full outage nothing is earned, so that layers of retries do not multiply: each makes `max_tokens` retries
    altogether and then passes the errors on. `max_tokens` is also the most that is ever saved up.
    """

    def __init__(self, ratio: float = 0.1, max_tokens: int = 10) -> None:
        self._ratio = ratio
        self._max_tokens = self._tokens = float(max_tokens)

    def earn(self) -> None:
        self._tokens = min(self._max_tokens, self._tokens + self._ratio)

    def take(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Retry:
    """
    Attempts after waits of up to `first` seconds, then up to twice as long each time, `most` at most.

    A Retry-After is waited out instead; one that does not fit the deadline ends the call at once with the error.
    InProgress, where it may be repeated at all, is repeated until the deadline: the first request is known to run.
    """

    def __init__(
        self,
        *,
        attempts: int = 3,
        budget: RetryBudget | None = None,
        initial_backoff: float = 0.2,
        max_backoff: float = 2.0,
    ) -> None:
        self._attempts = attempts
        self._budget = budget or RetryBudget()
        self._backoff = wait_random_exponential(multiplier=initial_backoff, max=max_backoff)

    async def call(
        self,
        function: Callable[[*Args], Awaitable[T]],
        *args: *Args,
        also: Callable[[ServiceError], bool] | None = None,
    ) -> T:
        """`also` names errors that are safe to repeat in this call only, such as lost answers under the same key."""

        def retryable(error: BaseException) -> bool:
            return isinstance(error, ServiceError) and (error.retryable or (also is not None and also(error)))

        async def attempt() -> T:  # tenacity would not await what a partial or a callable object returns
            return await function(*args)

        result: T = await AsyncRetrying(
            retry=retry_if_exception(retryable), wait=self._wait, stop=self._gives_up, reraise=True
        )(attempt)
        self._budget.earn()
        return result

    def _wait(self, state: RetryCallState) -> float:
        backoff = self._backoff(state)
        error = state.outcome and state.outcome.exception()
        known = error.retry_after if isinstance(error, ServiceError) else None
        # Those who were told the same moment should not come back in the same instant.
        return backoff if known is None else known + min(backoff, known / 10)

    def _gives_up(self, state: RetryCallState) -> bool:
        remaining = deadline.remaining()
        if remaining is None:
            remaining = PATIENCE - (state.seconds_since_start or 0.0)
        in_progress = state.outcome is not None and isinstance(state.outcome.exception(), InProgress)
        return (
            (state.attempt_number >= self._attempts and not in_progress)
            or state.upcoming_sleep >= remaining
            or not self._budget.take()  # last: it costs
        )
