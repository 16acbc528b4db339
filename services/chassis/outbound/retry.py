"""Retry calls that are safe to repeat, with jitter, within the deadline and a budget."""

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from services.chassis.errors import InProgress, ServiceError
from services.chassis.outbound import deadline

T = TypeVar("T")
Args = TypeVarTuple("Args")

MAX_SECONDS = 10.0  # from the first attempt, where no deadline is set


class RetryBudget:
    """
    A token bucket for retries: a successful call adds `ratio` of a token, a retry takes one.

    In a full outage each layer makes `max_tokens` retries in total and then passes the errors on. So the retries of
    several layers do not multiply.
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
    Retry with exponential backoff and full jitter, from `initial_backoff` to `max_backoff` seconds.

    A Retry-After replaces the backoff; where it exceeds the deadline, the error is raised at once. A retryable
    InProgress is retried until the deadline, because the first request still runs.
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
        """Call the function. `also` returns True for errors that are safe to repeat in this call only."""

        def retryable(error: BaseException) -> bool:
            return isinstance(error, ServiceError) and (error.retryable or (also is not None and also(error)))

        async def attempt() -> T:  # tenacity does not await the result of a partial or a callable object
            return await function(*args)

        result: T = await AsyncRetrying(
            retry=retry_if_exception(retryable), wait=self._wait, stop=self._must_stop, reraise=True
        )(attempt)
        self._budget.earn()
        return result

    def _wait(self, state: RetryCallState) -> float:
        backoff = self._backoff(state)
        error = state.outcome and state.outcome.exception()
        retry_after = error.retry_after if isinstance(error, ServiceError) else None
        # Jitter keeps callers with the same Retry-After apart.
        return backoff if retry_after is None else retry_after + min(backoff, retry_after / 10)

    def _must_stop(self, state: RetryCallState) -> bool:
        remaining = deadline.remaining()
        if remaining is None:
            remaining = MAX_SECONDS - (state.seconds_since_start or 0.0)
        in_progress = state.outcome is not None and isinstance(state.outcome.exception(), InProgress)
        return (
            (state.attempt_number >= self._attempts and not in_progress)
            or state.upcoming_sleep >= remaining
            or not self._budget.take()  # last, because it takes a token
        )
