"""Invariants of the circuit breaker under random orders of calls, time and operators."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.chassis.errors import BreakerOpen, NotSent, ProviderRejected
from services.chassis.outbound.breaker import CircuitBreaker

ENDINGS: dict[str, Callable[[], BaseException]] = {
    "failure": lambda: NotSent("model", None, "down"),
    "refusal": lambda: ProviderRejected("model", None, "no"),
    "bug": lambda: KeyError("bug"),
    "cancelled": asyncio.CancelledError,
}


class Pause:
    """The end of a call. The state machine sends or throws it, so no event loop is needed."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def provider() -> None:
    await Pause()


class OverlappingCalls(RuleBasedStateMachine):
    """Calls begin and end in any order while the clock and an operator move the circuit."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = CircuitBreaker(
            "model", max_failures=3, minimum_calls=4, open_for=10, max_open_for=40, clock=lambda: self.now
        )
        self.running: list[Coroutine[None, None, None]] = []
        self.forced = False

    def teardown(self) -> None:
        for call in self.running:
            call.close()

    @rule()
    def begin(self) -> None:
        room, state = self.breaker.capacity(), self.breaker.state
        call = self.breaker.call(provider)
        if room:
            call.send(None)
            self.running.append(call)
            assert state == "CLOSED" or self.breaker.capacity() == 0  # no second trial
        else:
            with pytest.raises(BreakerOpen) as refusal:
                call.send(None)
            assert 0 < (refusal.value.retry_after or 0) <= 40
            assert self.breaker.state == state

    @rule(data=st.data(), how=st.sampled_from(["success", *ENDINGS]))
    def end(self, data: st.DataObject, how: str) -> None:
        if not self.running:
            return
        call = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before = self.breaker.state
        with suppress(StopIteration, NotSent, ProviderRejected, KeyError, asyncio.CancelledError):
            if how == "success":
                call.send(None)
            else:
                call.throw(ENDINGS[how]())
        if before == "OPEN" or how in {"bug", "cancelled"}:
            assert self.breaker.state == before  # only time and operators end an open period
        if how in {"success", "refusal"}:
            assert self.breaker.state in {before, "CLOSED"}

    @rule(seconds=st.floats(0.1, 50))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def force_open(self) -> None:
        self.breaker.force_open()
        self.forced = True

    @rule()
    def release(self) -> None:
        self.breaker.release()
        self.forced = False
        assert self.breaker.state != "OPEN"

    @invariant()
    def an_operator_has_the_last_word(self) -> None:
        assert not self.forced or (self.breaker.state, self.breaker.capacity()) == ("OPEN", 0)

    @invariant()
    def room_and_waiting_tell_the_same_story(self) -> None:
        assert (self.breaker.capacity() > 0) == (self.breaker.retry_after() == 0.0)
        assert self.breaker.retry_after() <= 40


TestOverlappingCalls = OverlappingCalls.TestCase
TestOverlappingCalls.settings = settings(max_examples=100, stateful_step_count=40)
