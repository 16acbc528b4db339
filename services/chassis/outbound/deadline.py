"""The time at which the caller stops waiting for the response."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)  # time.monotonic()


def remaining() -> float | None:
    """Return the seconds left, 0.0 after the deadline; None without a deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Set a deadline for the body. An earlier outer deadline stays in force."""
    deadline, outer = time.monotonic() + seconds, _deadline.get()
    token = _deadline.set(deadline if outer is None else min(deadline, outer))
    try:
        yield
    finally:
        _deadline.reset(token)
