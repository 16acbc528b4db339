"""Which errors are retried, how often, and when not."""

import asyncio
import time

import pytest

from services.chassis.errors import NotSent, OutcomeUnknown, ProviderThrottled, ServiceError
from services.chassis.outbound import deadline
from services.chassis.outbound.retry import Retry, RetryBudget


class FakeProvider:
    """A provider that fails with each error in turn, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def send(self, text: str) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"sent {text}"


def not_sent() -> NotSent:
    return NotSent("twilio", None, "refused")


def lost() -> OutcomeUnknown:
    return OutcomeUnknown("twilio", None, "reset")


def throttled(seconds: float) -> ProviderThrottled:
    return ProviderThrottled("twilio", None, "too many", retry_after=seconds)


@pytest.fixture
def retry() -> Retry:
    return Retry(initial_backoff=0.001, max_backoff=0.01)


async def test_not_sent_is_retried(retry: Retry) -> None:
    provider = FakeProvider(not_sent(), not_sent())

    assert await retry.call(provider.send, "hello") == "sent hello"
    assert provider.calls == 3


async def test_last_attempt_raises_its_error(retry: Retry) -> None:
    provider = FakeProvider(not_sent(), not_sent(), last := not_sent())

    with pytest.raises(NotSent) as raised:
        await retry.call(provider.send, "hello")

    assert raised.value is last
    assert provider.calls == 3


async def test_outcome_unknown_is_retried_only_where_the_call_allows_it(retry: Retry) -> None:
    provider = FakeProvider(lost())
    with pytest.raises(OutcomeUnknown):
        await retry.call(provider.send, "hello")
    assert provider.calls == 1

    provider = FakeProvider(lost())
    await retry.call(provider.send, "hello", also=lambda error: isinstance(error, OutcomeUnknown))
    assert provider.calls == 2


async def test_bug_is_not_retried(retry: Retry) -> None:
    provider = FakeProvider(KeyError("sid"))
    with pytest.raises(KeyError):
        await retry.call(provider.send, "hello")

    assert provider.calls == 1


async def test_cancellation_ends_an_attempt_and_a_wait() -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    provider = FakeProvider(throttled(5))
    for call in (Retry().call(for_ever), Retry().call(provider.send, "hello")):
        task = asyncio.create_task(call)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert provider.calls == 1


async def test_retry_after_is_respected(retry: Retry) -> None:
    provider = FakeProvider(throttled(0.2))
    started = time.monotonic()

    await retry.call(provider.send, "hello")

    assert 0.2 <= time.monotonic() - started < 0.5


async def test_retry_after_beyond_the_deadline_raises_at_once(retry: Retry) -> None:
    provider = FakeProvider(throttled(2))
    started = time.monotonic()
    with deadline.within(1), pytest.raises(ProviderThrottled):
        await retry.call(provider.send, "hello")

    assert time.monotonic() - started < 0.2
    assert provider.calls == 1


async def test_retry_without_deadline_is_limited(retry: Retry) -> None:
    provider = FakeProvider(throttled(3600))
    with pytest.raises(ProviderThrottled):
        await asyncio.wait_for(retry.call(provider.send, "hello"), 1)


async def test_backoff_is_between_zero_and_the_doubling_limit() -> None:
    waits: list[float] = []

    async def call() -> None:
        waits.append(time.monotonic())
        raise not_sent()

    for _ in range(20):
        waits.append(time.monotonic())
        with pytest.raises(NotSent):
            await Retry(attempts=2, initial_backoff=0.02, max_backoff=0.02).call(call)
    pauses = [second - first for _, first, second in zip(waits[::3], waits[1::3], waits[2::3], strict=True)]

    assert min(pauses) < 0.01
    assert max(pauses) > 0.01


async def test_empty_budget_stops_retries_and_successes_refill_it() -> None:
    budget = RetryBudget(ratio=0.5, max_tokens=1)
    retry = Retry(budget=budget, initial_backoff=0.001, max_backoff=0.001)
    first, second, third = FakeProvider(not_sent()), FakeProvider(not_sent()), FakeProvider(not_sent())
    await retry.call(first.send, "hello")
    with pytest.raises(NotSent):
        await retry.call(second.send, "hello")

    for _ in range(2):
        await retry.call(FakeProvider().send, "hello")
    await retry.call(third.send, "hello")

    assert (first.calls, second.calls, third.calls) == (2, 1, 2)


async def test_three_layers_of_retries_do_not_multiply() -> None:
    calls = 0

    async def down() -> None:
        nonlocal calls
        calls += 1
        raise not_sent()

    service, gateway, client = (Retry(initial_backoff=0.0001, max_backoff=0.0001) for _ in range(3))

    async def through_service() -> None:
        await service.call(down)

    async def through_gateway() -> None:
        await gateway.call(through_service)

    for _ in range(500):
        with pytest.raises(ServiceError):
            await client.call(through_gateway)

    assert calls / 500 < 1.3
