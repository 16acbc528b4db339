"""The circuit breaker, with a clock that only the tests move."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.chassis.errors import BreakerOpen, DeadlineExceeded, NotSent, OutcomeUnknown, ProviderRejected
from services.chassis.outbound.breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("stripe", clock=clock)


def outage() -> NotSent:
    return NotSent("stripe", None, "refused")


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        raise error

    return call


async def answering() -> str:
    return "answer"


async def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(NotSent):
            await breaker.call(raising(outage()))


def silent() -> OutcomeUnknown:
    error = OutcomeUnknown("stripe", None, "a stored answer")
    error.provider_fault = None
    return error


class Gate:
    """A provider that responds when the test releases it."""

    def __init__(self) -> None:
        self.calls = 0
        self._answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.calls += 1
        return await asyncio.shield(self._answer)

    def succeed(self) -> None:
        self._answer.set_result("answer")

    def fail(self) -> None:
        self._answer.set_exception(outage())


async def test_five_failures_in_a_row_open_the_breaker_and_the_fifth_error_is_raised(breaker: CircuitBreaker) -> None:
    await fail(breaker, 4)
    assert breaker.state == "CLOSED"

    await fail(breaker)

    assert breaker.state == "OPEN"


async def test_open_breaker_attempts_nothing_and_returns_retry_after(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 5)
    clock.now += 10
    gate = Gate()

    with pytest.raises(BreakerOpen) as refusal:
        await breaker.call(gate)

    assert gate.calls == 0
    assert refusal.value.retry_after == breaker.retry_after()
    assert 38 <= breaker.retry_after() <= 50
    assert breaker.capacity() == 0


async def test_success_resets_the_failures_in_a_row(breaker: CircuitBreaker) -> None:
    await fail(breaker, 4)
    await breaker.call(answering)
    await fail(breaker, 4)

    assert breaker.state == "CLOSED"


async def test_half_of_ten_calls_failing_opens_the_breaker(breaker: CircuitBreaker) -> None:
    for _ in range(4):
        await breaker.call(answering)
        await fail(breaker)
    await breaker.call(answering)
    assert breaker.state == "CLOSED"

    await fail(breaker)

    assert breaker.state == "OPEN"


async def test_failures_older_than_the_window_do_not_count(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(4):
        await breaker.call(answering)
        await fail(breaker)
    clock.now += 31
    await breaker.call(answering)
    await fail(breaker)

    assert breaker.state == "CLOSED"


async def test_refusal_counts_as_success(breaker: CircuitBreaker) -> None:
    await fail(breaker, 4)
    with pytest.raises(ProviderRejected):
        await breaker.call(raising(ProviderRejected("stripe", None, "declined")))
    await fail(breaker, 4)

    assert breaker.state == "CLOSED"


@pytest.mark.parametrize("error", [ValueError("a bug"), DeadlineExceeded("too late to try"), asyncio.CancelledError()])
async def test_bugs_and_unsent_calls_do_not_count(breaker: CircuitBreaker, error: BaseException) -> None:
    await fail(breaker, 4)
    with pytest.raises(type(error)):
        await breaker.call(raising(error))
    assert breaker.state == "CLOSED"

    await fail(breaker)

    assert breaker.state == "OPEN"


async def test_half_open_breaker_passes_one_of_a_hundred_calls(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 5)
    clock.now += 61
    assert breaker.capacity() == 1
    gate = Gate()

    calls = [asyncio.create_task(breaker.call(gate)) for _ in range(100)]
    await asyncio.sleep(0)
    assert (breaker.state, breaker.capacity()) == ("HALF_OPEN", 0)
    gate.succeed()
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert gate.calls == 1
    assert results.count("answer") == 1
    assert sum(isinstance(result, BreakerOpen) for result in results) == 99
    assert breaker.state == "CLOSED"


async def test_cancelled_trial_allows_another(breaker: CircuitBreaker, clock: Clock) -> None:
    await fail(breaker, 5)
    clock.now += 61
    trial = asyncio.create_task(breaker.call(Gate()))
    await asyncio.sleep(0)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert (breaker.state, breaker.capacity()) == ("HALF_OPEN", 1)

    await breaker.call(answering)

    assert breaker.state == "CLOSED"


async def test_failed_trial_doubles_the_open_period_up_to_the_maximum_and_success_resets_it(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    await fail(breaker, 5)
    for longest in (60, 120, 240, 480, *[600] * 1100):  # a week of it
        assert 0.8 * longest <= breaker.retry_after() <= longest
        clock.now += longest
        await fail(breaker)
    clock.now += 600
    await breaker.call(answering)

    await fail(breaker, 5)

    assert 48 <= breaker.retry_after() <= 60


async def test_late_failure_does_not_reopen_a_closed_breaker(breaker: CircuitBreaker, clock: Clock) -> None:
    straggler = Gate()
    late = [asyncio.create_task(breaker.call(straggler)) for _ in range(10)]
    await asyncio.sleep(0)
    await fail(breaker, 5)
    clock.now += 61
    await breaker.call(answering)

    straggler.fail()
    await asyncio.gather(*late, return_exceptions=True)

    assert breaker.state == "CLOSED"


async def test_late_success_does_not_close_an_open_breaker(breaker: CircuitBreaker) -> None:
    straggler = Gate()
    late = asyncio.create_task(breaker.call(straggler))
    await asyncio.sleep(0)
    await fail(breaker, 5)

    straggler.succeed()
    await late

    assert breaker.state == "OPEN"


async def test_forced_breaker_stays_open_until_released_to_one_trial(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.force_open()
    clock.now += 100_000
    with pytest.raises(BreakerOpen):
        await breaker.call(answering)
    assert (breaker.capacity(), breaker.retry_after()) == (0, 60)

    breaker.release()
    assert (breaker.state, breaker.capacity()) == ("HALF_OPEN", 1)

    await breaker.call(answering)
    assert breaker.state == "CLOSED"


async def test_release_of_a_closed_breaker_changes_nothing(breaker: CircuitBreaker) -> None:
    breaker.release()

    assert breaker.state == "CLOSED"


@pytest.mark.parametrize("times", [1, 4, 20])
async def test_neutral_error_neither_counts_nor_resets_failures(breaker: CircuitBreaker, times: int) -> None:
    await fail(breaker, 4)
    for _ in range(times):
        with pytest.raises(OutcomeUnknown):
            await breaker.call(raising(silent()))
    assert breaker.state == "CLOSED"
    await fail(breaker)
    assert breaker.state == "OPEN"


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_neutral_trial_leaves_the_trial_to_the_next_call(
    breaker: CircuitBreaker, clock: Clock, times: int
) -> None:
    await fail(breaker, 5)
    clock.now += 61
    for _ in range(times):
        with pytest.raises(OutcomeUnknown):
            await breaker.call(raising(silent()))
        assert (breaker.state, breaker.capacity()) == ("HALF_OPEN", 1)
    await breaker.call(answering)
    assert breaker.state == "CLOSED"
